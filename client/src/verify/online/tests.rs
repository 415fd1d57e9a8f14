//! Verifying a cluster in memory, with what is wrong put there by hand.

use milonga_wire::{Payload, Position, Role, Span, StreamId};

use super::*;
use crate::testing::{Cluster, Fault, Slot};

async fn verified(cluster: &Cluster) -> Findings {
    let reader = cluster.client(Role::Reader);
    let quiet: Progress<'_> = &|_, _| {};
    verify(&reader, &VerifyOptions::default(), quiet)
        .await
        .unwrap()
}

async fn filled(cluster: &Cluster, count: u8) -> Log {
    let log = cluster.client(Role::Control);
    let streams = ["a", "b", "c"].map(StreamId::of_name);
    for number in 0..count {
        let of = &streams[..usize::from(number % 4)];
        log.append(vec![number], of).await.unwrap();
    }
    log
}

fn span(start: u64, end: u64) -> Span {
    Span::new(Position(start), Position(end))
}

/// K1: whatever a cluster went through, if its units hold the same, nothing is found; and K2: nothing is changed.
#[tokio::test(start_paused = true)]
async fn a_cluster_that_is_well_has_no_findings_but_what_its_writers_left() {
    let cluster = Cluster::new(2, 3, 4);
    filled(&cluster, 20).await;
    cluster.next_term().await;
    let log = filled(&cluster, 30).await;
    cluster.burn(&log, 5, &[StreamId::of_name("a")]).await;
    filled(&cluster, 6).await;
    cluster.forget();
    let findings = verified(&cluster).await;

    assert_eq!(findings.violations, vec![]);
    assert!(!findings.is_bad());
    assert_eq!((findings.checked, findings.streams), (61, 3));
    assert_eq!(findings.holes, [span(50, 55)]);
    assert_eq!(findings.incomplete, []);
    assert_eq!(cluster.seen("u-", "fill") + cluster.seen("u-", "write"), 0);
}

/// C2: every way in which one unit can hold something else than another is found, and named.
#[tokio::test(start_paused = true)]
async fn what_one_unit_holds_otherwise_is_found() {
    type Change = fn(EntryHeadAnd) -> Option<Slot>;
    type EntryHeadAnd = (milonga_wire::EntryHead, Payload);
    let changes: [(&str, Change); 6] = [
        ("diverged", |(head, _)| Some(Slot::Junk(head.term))),
        ("diverged", |(head, _)| {
            Some(Slot::Data(head, Payload::from(vec![99])))
        }),
        ("diverged", |(mut head, payload)| {
            head.stamp.request += 1;
            Some(Slot::Data(head, payload))
        }),
        ("diverged", |(mut head, payload)| {
            head.term = milonga_wire::Term(0);
            Some(Slot::Data(head, payload))
        }),
        ("diverged", |(mut head, payload)| {
            head.streams.clear();
            Some(Slot::Data(head, payload))
        }),
        ("lacks", |_| None),
    ];
    for (code, change) in changes {
        let cluster = Cluster::new(1, 3, 1);
        cluster.next_term().await;
        filled(&cluster, 12).await;
        let Some(Slot::Data(head, payload)) = cluster.slot("u-01", 7) else {
            panic!("no record");
        };
        cluster.put("u-01", 7, change((head, payload)));
        let findings = verified(&cluster).await;
        let found: Vec<_> = findings
            .violations
            .iter()
            .map(|v| (v.code, v.position))
            .collect();
        assert!(found.contains(&(code, Position(7))), "{code}: {findings:?}");
        assert!(
            findings.violations[0].units.contains("u-01"),
            "{findings:?}"
        );
    }
}

/// K1: damage and silence are told by unit, apart from violations.
#[tokio::test(start_paused = true)]
async fn damage_and_silence_are_told_by_unit() {
    let cluster = Cluster::new(1, 3, 1);
    filled(&cluster, 12).await;
    for position in [3, 4, 9] {
        cluster.damage("u-01", position);
    }
    let findings = verified(&cluster).await;
    assert_eq!(findings.violations, vec![]);
    assert!(findings.is_bad());
    assert_eq!(findings.damaged.len(), 1);
    assert_eq!(findings.damaged[0].unit, "u-01");
    assert_eq!(findings.damaged[0].spans, [span(3, 5), span(9, 10)]);
    assert_eq!(findings.lost, []);

    cluster.rule(|server, request| {
        (server == "u-02" && request.verb() == "read").then_some(Fault::Down)
    });
    let findings = verified(&cluster).await;
    let silent: Vec<_> = findings.unreachable.keys().cloned().collect();
    assert_eq!(silent, ["u-02"]);
    assert_eq!(findings.violations, vec![]);
}

/// Entries that are under way, units that come and go, terms that begin: none of it is a violation.
#[tokio::test(start_paused = true)]
async fn what_goes_on_meanwhile_gives_no_false_alarm() {
    let cluster = Cluster::new(2, 2, 2);
    let log = filled(&cluster, 40).await;
    let writer = tokio::spawn(async move {
        for number in 0..60_u8 {
            log.append(vec![number], &[StreamId::of_name("a")])
                .await
                .unwrap();
        }
    });
    let changer = {
        let cluster = cluster.clone();
        tokio::spawn(async move {
            for _ in 0..4 {
                cluster.next_term().await;
            }
        })
    };
    for _ in 0..6 {
        let findings = verified(&cluster).await;
        assert_eq!(findings.violations, vec![]);
        assert!(!findings.is_bad(), "{findings:?}");
        assert!(findings.unreachable.is_empty(), "{findings:?}");
    }
    writer.await.unwrap();
    changer.await.unwrap();
}
