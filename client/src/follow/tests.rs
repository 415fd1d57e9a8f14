//! Following, on a cluster in memory.

use milonga_wire::Role;

use super::*;
use crate::entry::Kind;
use crate::options::Options;
use crate::testing::{Cluster, Fault, Gate, once};

/// Each entry once, in order, never a gap: over holes and over changes of layout.
#[tokio::test(start_paused = true)]
async fn a_follower_brings_every_position_once_in_order() {
    let cluster = Cluster::new(2, 2, 2);
    let (log, other) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
    let mut follower = log.follow(Position::FIRST);
    let appending = async {
        for round in 0..12 {
            other.append("a", &[]).await.unwrap();
            if round % 4 == 1 {
                cluster.burn(&other, 3, &[]).await;
            }
            if round % 5 == 2 {
                cluster.next_term().await;
            }
        }
    };
    let following = async {
        let (mut positions, mut records) = (vec![], 0);
        while records < 12 {
            let entry = follower.next().await.unwrap();
            records += u32::from(entry.payload().is_some());
            positions.push(entry.position);
        }
        positions
    };
    let (positions, ()) = futures_util::future::join(following, appending).await;

    let expected: Vec<Position> = (0..positions.len() as u64).map(Position).collect();
    assert_eq!(positions, expected);
    assert_eq!(follower.next_ready().await.unwrap(), None);
}

/// A follower that settles nothing waits at a hole: what is in flight there is not passed by.
#[tokio::test(start_paused = true)]
async fn a_follower_that_settles_nothing_waits_for_what_is_in_flight() {
    let cluster = Cluster::new(1, 2, 1);
    let (log, writer) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
    let gate = Gate::new();
    cluster.rule(once("u-01", "write", Fault::Hold(gate.clone())));
    let writing = tokio::spawn(async move { writer.append("a", &[]).await });
    gate.arrived().await;
    let mut follower = log
        .with_options(Options {
            settle: false,
            ..Options::default()
        })
        .follow(Position::FIRST);

    assert_eq!(follower.next_ready().await.unwrap(), None);
    assert_eq!(follower.position(), Position::FIRST);
    gate.open();
    writing.await.unwrap().unwrap();
    let entry = follower.next().await.unwrap();
    assert!(matches!(entry.kind, Kind::Data { .. }), "{entry:?}");
}

/// H34: whoever waits, at a hole right below the end or at the end itself, looks again after pauses, and asks the sequencer
/// no more often than that.
#[tokio::test(start_paused = true)]
async fn whoever_waits_asks_for_the_end_with_pauses() {
    const TIME: Duration = Duration::from_secs(10);
    for (settle, waits_at) in [(false, Position(1)), (true, Position(2))] {
        let cluster = Cluster::new(1, 2, 1);
        let (log, writer) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
        writer.append("a", &[]).await.unwrap();
        cluster.burn(&writer, 1, &[]).await;
        let mut follower = log
            .with_options(Options {
                settle,
                ..Options::default()
            })
            .follow(Position::FIRST);
        let clock = log.host().clock.clone();
        let following = async {
            loop {
                follower.next().await.unwrap();
            }
        };
        assert!(clock.within(TIME, following).await.is_err());

        assert_eq!(follower.position(), waits_at);
        let looks = (TIME.as_millis() / PAUSES.1.as_millis()) as usize;
        let asked = cluster.seen("q-", "end");
        assert!((looks / 2..looks + 32).contains(&asked), "{asked}");
    }
}
