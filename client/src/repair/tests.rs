//! Damage on a cluster in memory: found by reads, put back from peers, named where it is lost.

use std::time::Duration;

use milonga_wire::{Request, UnitRequest, WriteKind};

use super::*;
use crate::EntryKind;
use crate::options::Options;
use crate::testing::{Cluster, Fault};

fn unit(name: &str) -> ServerName {
    name.parse().unwrap()
}

async fn filled(cluster: &Cluster, count: u8) -> Log {
    let log = cluster.client(Role::Control);
    for number in 0..count {
        log.append(vec![number], &[]).await.unwrap();
    }
    log
}

/// 3.6, H38: what a closed range lost on any one unit comes back as it was, from a peer, and no term is made for it.
#[tokio::test(start_paused = true)]
async fn what_a_closed_range_lost_on_one_unit_comes_back_without_a_term() {
    for name in ["u-00", "u-01", "u-02"] {
        let cluster = Cluster::new(1, 3, 1);
        let log = filled(&cluster, 8).await;
        let term = cluster.next_term().await.term;
        let before: Vec<_> = (0..8).map(|at| cluster.slot(name, at)).collect();
        for position in [1, 2, 6] {
            cluster.damage(name, position);
        }

        let repaired = repair(&log, &unit(name)).await.unwrap();
        let expected = Repaired {
            restored: 3,
            lost: vec![],
            term,
        };
        assert_eq!(repaired, expected, "{name}");
        let after: Vec<_> = (0..8).map(|at| cluster.slot(name, at)).collect();
        assert_eq!(after, before, "{name}");
        assert_eq!(cluster.layout().term, term, "{name}");
        let again = repair(&log, &unit(name)).await.unwrap();
        assert_eq!((again.restored, again.lost), (0, vec![]));
    }
}

/// 3.4, H16: in the open segment somebody may still be writing it. A later term comes first; only then is it put back.
#[tokio::test(start_paused = true)]
async fn damage_in_the_open_segment_is_repaired_in_a_later_term() {
    let cluster = Cluster::new(2, 2, 2);
    let log = filled(&cluster, 8).await;
    let (term, before) = (cluster.layout().term, cluster.slot("u-01", 1));
    cluster.damage("u-01", 1);
    let early = cluster.count(|seen| is_copy(&seen.request));
    let repaired = repair(&log, &unit("u-01")).await.unwrap();

    assert_eq!((repaired.restored, repaired.term), (1, term.next()));
    assert_eq!(early, 0);
    assert_eq!(cluster.slot("u-01", 1), before);
    log.append("more", &[]).await.unwrap();
    assert_eq!(cluster.layout().term, term.next(), "one term for all of it");
}

fn is_copy(request: &Request) -> bool {
    matches!(
        request,
        Request::Unit(UnitRequest::Write {
            kind: WriteKind::Copy,
            ..
        })
    )
}

/// H32: what is damaged on every unit is named with its range, at once; what is not is repaired all the same.
#[tokio::test(start_paused = true)]
async fn what_every_unit_lost_is_named_and_the_rest_is_repaired() {
    let cluster = Cluster::new(1, 2, 1);
    let log = filled(&cluster, 9).await;
    cluster.next_term().await;
    for position in [2, 3, 5] {
        cluster.damage("u-00", position);
    }
    for position in [2, 3, 7] {
        cluster.damage("u-01", position);
    }
    let lost = vec![Span::new(Position(2), Position(4))];
    cluster.forget();
    let repaired = repair(&log, &unit("u-00")).await.unwrap();
    assert_eq!((repaired.restored, repaired.lost), (1, lost.clone()));
    let repaired = repair(&log, &unit("u-01")).await.unwrap();
    assert_eq!((repaired.restored, repaired.lost), (1, lost));
    assert!(cluster.seen("u-", "read") < 20, "it does not go round");
    assert!(cluster.slot("u-00", 2).is_none(), "nothing takes its place");
    assert!(cluster.slot("u-00", 5).is_some() && cluster.slot("u-01", 7).is_some());
}

/// H16: as long as one unit listed for the range is silent, nothing says that it does not hold what the others lost.
#[tokio::test(start_paused = true)]
async fn nothing_is_decided_while_a_unit_of_the_chain_is_silent() {
    let cluster = Cluster::new(1, 3, 1);
    let log = filled(&cluster, 4).await;
    cluster.next_term().await;
    for name in ["u-00", "u-01"] {
        cluster.put(name, 1, None);
        cluster.restart_unit(name);
    }
    cluster.rule(|server, request| {
        (server == "u-02" && request.verb() == "read").then_some(Fault::Down)
    });
    cluster.next_term().await;
    let refused = repair(&log, &unit("u-00")).await;
    assert!(matches!(refused, Err(RepairError::Unit(_))), "{refused:?}");
    assert!(cluster.slot("u-00", 1).is_none(), "no junk took its place");
    cluster.heal();
    let repaired = repair(&log, &unit("u-00")).await.unwrap();
    assert_eq!((repaired.restored, repaired.lost), (1, vec![]));
    assert_eq!(cluster.slot("u-00", 1), cluster.slot("u-02", 1));
}

/// Damage that a reader meets and gets around is told to those who repair, even on a unit that is no tail.
#[tokio::test(start_paused = true)]
async fn a_reader_that_meets_damage_gets_its_answer_and_tells() {
    let cluster = Cluster::new(1, 2, 1);
    filled(&cluster, 6).await;
    let reader = cluster.client_with(
        Role::Reader,
        Options {
            deadline: Duration::from_secs(2),
            ..Options::default()
        },
    );
    let clock = reader.host().clock.clone();
    // Both units answer once the mark is known.
    for _ in 0..4 {
        reader.read(Position(5)).await.unwrap();
        clock.sleep(Duration::from_millis(50)).await;
    }
    cluster.damage("u-00", 3);
    for _ in 0..4 {
        let entry = reader.read(Position(3)).await.unwrap();
        assert!(matches!(entry.kind, EntryKind::Data { .. }), "{entry:?}");
    }
    clock.sleep(Duration::from_secs(1)).await;
    let span = Span::one(Position(3));
    let told = Report::Damaged {
        server: unit("u-00"),
        spans: vec![span],
    };
    assert_eq!(cluster.reports(), [told], "once");

    // A control client that meets it repairs it.
    let control = cluster.client(Role::Control);
    for _ in 0..6 {
        control.read(Position(3)).await.unwrap();
        clock.sleep(Duration::from_millis(500)).await;
    }
    assert!(cluster.slot("u-00", 3).is_some());
}

#[tokio::test(start_paused = true)]
async fn who_may_not_repair_and_what_is_no_unit_is_said() {
    let cluster = Cluster::new(1, 2, 1);
    let writer = cluster.client(Role::Writer);
    let refused = repair(&writer, &unit("u-00")).await;
    assert!(matches!(refused, Err(RepairError::WrongRole(Role::Writer))));
    let control = cluster.client(Role::Control);
    let unknown = repair(&control, &unit("u-77")).await;
    assert!(matches!(unknown, Err(RepairError::NotListed(_))));
}
