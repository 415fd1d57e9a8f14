//! Trims and fills, on a cluster in memory.

use milonga_wire::{Role, Term};

use super::*;
use crate::testing::Cluster;

#[tokio::test(start_paused = true)]
async fn a_trim_beyond_the_end_is_refused_and_one_below_it_says_what_it_achieved() {
    let cluster = Cluster::new(2, 2, 2);
    let log = cluster.client(Role::Control);
    for _ in 0..6 {
        log.append("a", &[]).await.unwrap();
    }
    let beyond = log.trim(Position(7)).await;
    assert!(
        matches!(
            beyond,
            Err(TrimError::BeyondEnd {
                asked: Position(7),
                end: Position(6)
            })
        ),
        "{beyond:?}"
    );

    assert_eq!(log.trim(Position(3)).await.unwrap(), Position(3));
    assert_eq!(log.read(Position(2)).await.unwrap().kind, Kind::Trimmed);
    assert_eq!(log.read(Position(3)).await.unwrap().payload().unwrap(), "a");
    // The furthest trim stands, and is told (H24).
    assert_eq!(log.trim(Position(1)).await.unwrap(), Position(3));
    assert_eq!(log.trim(Position(6)).await.unwrap(), Position(6));
    assert_eq!(log.append("b", &[]).await.unwrap(), Position(6));
}

/// No unit has to remember that a trimmed position was undecided.
#[tokio::test(start_paused = true)]
async fn a_trim_settles_the_holes_below_it_first() {
    let cluster = Cluster::new(2, 2, 2);
    let log = cluster.client(Role::Control);
    log.append("a", &[]).await.unwrap();
    cluster.burn(&log, 8, &[]).await;
    log.append("b", &[]).await.unwrap();

    assert_eq!(log.trim(Position(7)).await.unwrap(), Position(7));
    assert!(log.settled().await.unwrap() >= Position(7));
    let entry = log.read(Position(7)).await.unwrap();
    assert_eq!(entry.kind, Kind::Junk { term: Term(0) });
}

#[tokio::test(start_paused = true)]
async fn a_fill_by_hand_ends_a_hole_and_spares_what_is_there() {
    let cluster = Cluster::new(1, 2, 1);
    let log = cluster.client(Role::Writer);
    log.append("a", &[]).await.unwrap();
    cluster.burn(&log, 1, &[]).await;

    assert_eq!(log.fill(Position(0)).await.unwrap().payload().unwrap(), "a");
    let filled = log.fill(Position(1)).await.unwrap();
    assert_eq!(filled.kind, Kind::Junk { term: Term(0) });
    let beyond = log.fill(Position(2)).await;
    assert!(
        matches!(beyond, Err(TrimError::BeyondEnd { .. })),
        "{beyond:?}"
    );
}
