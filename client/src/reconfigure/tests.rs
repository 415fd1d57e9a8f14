//! Units that die, leave, join and are copied to, on a cluster in memory.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use milonga_wire::{
    Layout, LayoutReply, LayoutRequest, Payload, Position, Rank, Refusal, Request, Role, Server,
    Span, UnitRequest,
};

use super::*;
use crate::log::Log;
use crate::options::Options;
use crate::testing::{Cluster, Fault, Gate, once};

pub(super) async fn fill_up(log: &Log, from: u8, to: u8) {
    for number in from..to {
        log.append(vec![number], &[]).await.unwrap();
    }
}

/// The records of the whole log, in order.
pub(super) async fn records(log: &Log) -> Vec<Bytes> {
    let all = Span::new(Position::FIRST, Position(u64::MAX));
    let entries = log.read_range(all).await.unwrap();
    entries
        .iter()
        .filter_map(|entry| entry.payload().cloned())
        .collect()
}

pub(super) fn numbers(to: u8) -> Vec<Bytes> {
    (0..to).map(|number| Bytes::from(vec![number])).collect()
}

pub(super) fn dead(cluster: &Cluster, name: &str) {
    let name = name.to_owned();
    cluster.rule(move |server, _| (server == name).then_some(Fault::Down));
}

pub(super) fn open(cluster: &Cluster) -> Vec<String> {
    let layout = cluster.layout();
    let chain = &layout.open_segment().chains[0];
    layout
        .units_of(chain)
        .map(|unit| unit.name.to_string())
        .collect()
}

async fn with_spare(cluster: &Cluster) -> (Log, Server) {
    let log = cluster.client(Role::Control);
    let spare = cluster.add_unit("s-0");
    let ready = Change {
        spares: vec![spare.clone()],
        ..Change::default()
    };
    change(&log, &ready, "a spare came").await.unwrap();
    (log, spare)
}

/// Whichever unit of a chain dies, appends go on without it, and nothing that was acknowledged is lost.
#[tokio::test(start_paused = true)]
async fn appends_go_on_when_any_one_unit_of_a_chain_dies() {
    for name in ["u-00", "u-01", "u-02"] {
        let cluster = Cluster::new(1, 3, 1);
        let log = cluster.client(Role::Control);
        fill_up(&log, 0, 10).await;
        dead(&cluster, name);
        fill_up(&log, 10, 20).await;

        assert_eq!(open(&cluster).len(), 2, "{name}");
        assert!(!open(&cluster).contains(&name.to_owned()));
        assert_eq!(records(&log).await, numbers(20), "{name}");
    }
}

/// A unit that dies while an append is half way down its chain: the append is there once.
#[tokio::test(start_paused = true)]
async fn an_append_that_is_half_way_down_when_a_unit_dies_is_there_once() {
    for name in ["u-00", "u-01", "u-02"] {
        let cluster = Cluster::new(1, 3, 1);
        let log = cluster.client(Role::Control);
        fill_up(&log, 0, 3).await;
        let gate = Gate::new();
        cluster.rule(once("u-01", "write", Fault::Hold(gate.clone())));
        let writer = log.clone();
        let half = tokio::spawn(async move { writer.append(vec![3], &[]).await });
        gate.arrived().await;
        dead(&cluster, name);
        gate.open();
        half.await.unwrap().unwrap();
        fill_up(&log, 4, 6).await;
        assert_eq!(records(&log).await, numbers(6), "{name}");
    }
}

/// The chain is as long as before at once; what was closed before is copied while appends go on, and then listed.
#[tokio::test(start_paused = true)]
async fn a_spare_takes_a_dead_units_place_and_is_copied_to() {
    let cluster = Cluster::new(1, 3, 1);
    let (log, spare) = with_spare(&cluster).await;
    fill_up(&log, 0, 30).await;
    cluster.burn(&log, 3, &[]).await;
    dead(&cluster, "u-01");
    fill_up(&log, 30, 40).await;
    assert_eq!(open(&cluster), ["u-00", "u-02", "s-0"]);
    assert!(cluster.slot("s-0", 5).is_none());

    heal(&log, "a test").await.unwrap();
    fill_up(&log, 40, 50).await;
    let layout = cluster.layout();
    assert_eq!(gaps(&layout), []);
    let first = &layout.segments[0].chains[0];
    assert!(first.units.contains(&spare.identity) && first.units.len() == 3);
    for position in 0..30 {
        assert_eq!(
            cluster.slot("s-0", position),
            cluster.slot("u-00", position)
        );
    }
    assert_eq!(records(&log).await, numbers(50));
    assert_eq!(heal(&log, "again").await.unwrap(), None);

    // It carries the log alone, if it has to.
    dead(&cluster, "u-00");
    fill_up(&log, 50, 55).await;
    dead(&cluster, "u-02");
    fill_up(&log, 55, 60).await;
    assert_eq!(records(&log).await, numbers(60));
}

/// A copy that was cut off goes on where it ended: nothing is read twice.
#[tokio::test(start_paused = true)]
async fn a_copy_that_was_cut_off_goes_on_where_it_ended() {
    let cluster = Cluster::new(1, 2, 1);
    let log = cluster.client(Role::Control);
    let many: Vec<Bytes> = (0..3_000_u32)
        .map(|n| Bytes::from(n.to_le_bytes().repeat(500)))
        .collect();
    log.append_batch(&many, &[]).await.unwrap();
    let (_, spare) = with_spare(&cluster).await;
    dead(&cluster, "u-01");
    fill_up(&log, 0, 1).await;
    assert_eq!(open(&cluster), ["u-00", "s-0"]);

    let is_copy = |request: &Request| {
        matches!(
            request,
            Request::Unit(UnitRequest::Write {
                kind: milonga_wire::WriteKind::Copy,
                ..
            })
        )
    };
    let mut copies = 0;
    cluster.rule(move |server, request| {
        copies += u32::from(server == "s-0" && is_copy(request));
        (copies == 2).then_some(Fault::Down)
    });
    heal(&log, "a test").await.unwrap_err();
    cluster.heal();
    dead(&cluster, "u-01");
    cluster.forget();
    heal(&log, "a test").await.unwrap().unwrap();
    assert_eq!(cluster.count(|seen| is_copy(&seen.request)), 2);
    let first = cluster.layout().segments[0].chains[0].clone();
    assert!(first.units.contains(&spare.identity));
}

/// A unit leaves by hand only if the others have everything; a chain of one keeps its unit.
#[tokio::test(start_paused = true)]
async fn a_unit_leaves_by_hand_and_the_last_one_does_not() {
    let cluster = Cluster::new(1, 2, 1);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 5).await;
    let leave = |name: &str| {
        let layout = cluster.layout();
        let unit = layout.units.iter().find(|unit| unit.name.as_str() == name);
        Change {
            leave: BTreeSet::from([unit.unwrap().identity]),
            ..Change::default()
        }
    };
    change(&log, &leave("u-00"), "a test").await.unwrap();
    assert_eq!(open(&cluster), ["u-01"]);
    let term = cluster.layout().term;
    let refused = change(&log, &leave("u-01"), "a test").await;
    assert!(
        matches!(
            refused,
            Err(ChangeError::Plan(PlanError::NoCompleteUnit { .. }))
        ),
        "{refused:?}"
    );
    fill_up(&log, 5, 8).await;
    assert_eq!(records(&log).await, numbers(8));
    assert!(cluster.layout().term >= term);
}

/// H29, H45: whoever did not hear a unit, neither itself nor through a layout server, nor then itself, and hears it when a
/// change is about to begin, changes nothing: nobody confirmed that anything is wrong.
#[tokio::test(start_paused = true)]
async fn a_unit_that_is_back_before_a_change_begins_makes_no_term() {
    let cluster = Cluster::new(1, 3, 1);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 3).await;
    let term = cluster.layout().term;
    let mut looks = 0;
    cluster.rule(move |server, request| {
        let look = server == "u-01" && matches!(request, Request::Describe);
        looks += u32::from(look);
        (look && looks <= 3).then_some(Fault::LoseRequest)
    });
    let unheard = mend(&log, "a test", None).await;
    assert!(
        matches!(unheard, Err(ChangeError::Unconfirmed(_))),
        "{unheard:?}"
    );
    mend(&log, "a test", None).await.unwrap_err();
    mend(&log, "a test", None).await.unwrap();

    assert_eq!(cluster.layout().term, term);
    assert_eq!(cluster.count(|seen| seen.request.verb() == "seal"), 0);
    assert_eq!(open(&cluster).len(), 3);
}

/// A unit that only a closed range needs, and that could not be sealed, is out of reach in that term. When it is back, and
/// well, a later term takes it in: nothing else would, and the range could not be read until something else went wrong. One
/// that answers and cannot be sealed is not back, or each look would make a term.
#[tokio::test(start_paused = true)]
async fn a_unit_of_a_closed_range_that_is_back_is_taken_in_by_one_more_term() {
    let cluster = Cluster::new(2, 1, 1);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 10).await;
    let without = Change {
        without: BTreeSet::from([1]),
        ..Change::default()
    };
    change(&log, &without, "a test").await.unwrap();
    let is_out_of_reach = || cluster.layout().segments[0].chains[1].unreachable;
    assert_eq!(
        (cluster.layout().segments.len(), is_out_of_reach()),
        (2, false)
    );
    dead(&cluster, "u-10");
    rebuild(&log, "a test").await.unwrap();
    assert!(is_out_of_reach());
    let term = cluster.layout().term;

    for writes in [false, true] {
        cluster.heal();
        cluster.rule(move |server, request| {
            let why = "the cable is out".to_owned();
            let refuses = server == "u-10"
                && if writes {
                    // As one that asks layout servers that are no more whether the term may be.
                    request.verb() == "seal"
                } else {
                    !matches!(request, Request::Describe)
                };
            refuses.then_some(Fault::Refuse(Refusal::DiskFailed { why }))
        });
        mend(&log, "a test", None).await.unwrap();
        assert_eq!(cluster.layout().term, term);
    }

    cluster.heal();
    mend(&log, "a test", None).await.unwrap();
    mend(&log, "a test", None).await.unwrap();
    assert_eq!(
        (cluster.layout().term, is_out_of_reach()),
        (term.next(), false)
    );
    assert_eq!(records(&log).await, numbers(10));
}

/// P6, H15: whoever asks for a unit to be listed may be wrong, or late; the unit is asked, sealed, whether it lacks anything.
#[tokio::test(start_paused = true)]
async fn a_unit_that_lacks_something_is_not_listed_whoever_asks_for_it() {
    let cluster = Cluster::new(1, 2, 1);
    let (log, spare) = with_spare(&cluster).await;
    fill_up(&log, 0, 5).await;
    dead(&cluster, "u-01");
    fill_up(&log, 5, 8).await;
    let gap = gaps(&cluster.layout()).remove(0);
    assert_eq!(gap.unit.identity, spare.identity);

    let listed = Change {
        list: vec![(gap.segment, gap.chain, spare.identity)],
        ..Change::default()
    };
    change(&log, &listed, "a test").await.unwrap();
    assert_eq!(gaps(&cluster.layout()).len(), 1);
    heal(&log, "a test").await.unwrap();
    assert_eq!(gaps(&cluster.layout()), []);
}

/// H7, H14: a unit that was left out and answers again comes back by itself, as another one, empty, when it has answered for
/// a while; and then gets everything. Whoever is sent away by hand stays away.
#[tokio::test(start_paused = true)]
async fn a_unit_that_left_comes_back_as_another_one_and_gets_everything() {
    let cluster = Cluster::new(1, 3, 1);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 30).await;
    let before = cluster.layout().units[1].clone();
    dead(&cluster, "u-01");
    fill_up(&log, 30, 40).await;
    let names = |servers: &[Server]| -> Vec<String> {
        servers
            .iter()
            .map(|server| server.name.to_string())
            .collect()
    };
    assert_eq!(names(&cluster.layout().left), ["u-01"]);

    cluster.heal();
    attend(&log).await;
    let layout = cluster.layout();
    assert_eq!(names(&layout.left), Vec::<String>::new());
    assert_eq!(open(&cluster), ["u-00", "u-02", "u-01"]);
    assert!(
        layout.unit(before.identity).is_none(),
        "it is another one now"
    );
    assert_eq!(gaps(&layout), []);
    for position in 0..30 {
        assert_eq!(
            cluster.slot("u-01", position),
            cluster.slot("u-00", position)
        );
    }
    assert_eq!(records(&log).await, numbers(40));

    let leave = Change {
        leave: BTreeSet::from([cluster.layout().units[0].identity]),
        ..Change::default()
    };
    change(&log, &leave, "by hand").await.unwrap();
    assert_eq!(names(&cluster.layout().left), Vec::<String>::new());
}

/// For a spare that does not write no term is made, however short the chain is: there would be no end of them.
#[tokio::test(start_paused = true)]
async fn a_spare_that_is_down_or_cannot_write_makes_no_term() {
    for refused in [&["describe"][..], &["seal", "probe"], &["seal"]] {
        let cluster = Cluster::new(1, 3, 1);
        let (log, _) = with_spare(&cluster).await;
        fill_up(&log, 0, 5).await;
        cluster.rule(move |server, request| match server {
            "u-01" => Some(Fault::Down),
            "s-0" if refused == ["describe"] => Some(Fault::Down),
            "s-0" if refused.contains(&request.verb()) => {
                let why = "the cable is out".to_owned();
                Some(Fault::Refuse(Refusal::DiskFailed { why }))
            }
            _ => None,
        });
        fill_up(&log, 5, 8).await;
        assert_eq!(open(&cluster), ["u-00", "u-02"]);
        let before = cluster.layout().term;

        attend(&log).await;

        assert_eq!(cluster.layout().term, before);
        cluster.heal();
        attend(&log).await;
        assert!(open(&cluster).contains(&"s-0".to_owned()));
    }
}

/// How long it must have answered is said by whoever looks after the cluster.
#[tokio::test(start_paused = true)]
async fn a_unit_that_left_comes_back_after_the_time_that_was_asked_for() {
    let (short, long) = (Duration::from_secs(2), Duration::from_secs(600));
    for steady in [short, long] {
        let cluster = Cluster::new(1, 3, 1);
        let log = cluster.client(Role::Control);
        let log = log.with_options(Options {
            steady,
            ..log.options().clone()
        });
        fill_up(&log, 0, 5).await;
        dead(&cluster, "u-01");
        fill_up(&log, 5, 8).await;
        cluster.heal();
        let clock = log.host().clock.clone();
        let within = clock.within(short * 5, attend(&log)).await;
        assert_eq!(within.is_ok(), steady == short);
        assert_eq!(cluster.layout().left.is_empty(), steady == short);
        attend(&log).await;
        assert!(cluster.layout().left.is_empty());
    }
}

/// There are disks that do everything but write: whoever comes back on one would be left out again, at the cost of a term.
#[tokio::test(start_paused = true)]
async fn a_unit_that_left_and_cannot_write_stays_out() {
    let cluster = Cluster::new(1, 3, 1);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 10).await;
    dead(&cluster, "u-01");
    fill_up(&log, 10, 20).await;
    cluster.heal();
    cluster.rule(|server, request| {
        let why = "the cable is out".to_owned();
        let refuse = Fault::Refuse(Refusal::DiskFailed { why });
        (server == "u-01" && request.verb() == "probe").then_some(refuse)
    });
    attend(&log).await;
    assert_eq!(cluster.layout().left.len(), 1);
    assert!(cluster.slot("u-01", 3).is_some());

    cluster.heal();
    attend(&log).await;
    assert_eq!(cluster.layout().left.len(), 0);
}

/// A unit that left and answers is taken back at once when an operator heals; and after a while by any control client that merely
/// sees the layout, though it met no trouble, unless it was told not to attend.
#[tokio::test(start_paused = true)]
async fn a_unit_that_left_comes_back_by_hand_or_by_whoever_sees_that_it_is_missing() {
    for (by_hand, attend) in [(true, false), (false, true), (false, false)] {
        let cluster = Cluster::new(1, 3, 1);
        let log = cluster.client(Role::Control);
        fill_up(&log, 0, 5).await;
        dead(&cluster, "u-01");
        fill_up(&log, 5, 8).await;
        drop(log);
        cluster.heal();
        let options = Options {
            attend,
            ..Options::default()
        };
        let other = cluster.client_with(Role::Control, options);
        other.read(Position(0)).await.unwrap();
        if by_hand {
            heal_all(&other, "a test").await.unwrap();
        } else {
            other.host().clock.sleep(Duration::from_secs(180)).await;
        }

        let layout = cluster.layout();
        assert_eq!(
            layout.left.is_empty(),
            by_hand || attend,
            "{by_hand} {attend}"
        );
        assert_eq!(open(&cluster).len() == 3, by_hand || attend);
        assert_eq!(records(&other).await, numbers(8));
    }
}

/// While anything is missing, the unit that left may hold the last copy of it: nobody empties it unasked.
#[tokio::test(start_paused = true)]
async fn a_unit_that_left_is_not_emptied_while_something_is_missing() {
    let cluster = Cluster::new(1, 3, 1);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 10).await;
    dead(&cluster, "u-01");
    fill_up(&log, 10, 20).await;
    cluster.heal();
    cluster.damage("u-00", 3);
    cluster.damage("u-02", 3);

    attend(&log).await;

    assert_eq!(cluster.layout().left.len(), 1);
    assert!(cluster.slot("u-01", 3).is_some());
}

/// The same while the only copy is on a disk that failed, or a unit of the chain runs on another directory; and whoever took over
/// the address of the unit that left is not emptied for it.
#[tokio::test(start_paused = true)]
async fn a_unit_that_left_is_not_emptied_beside_a_failed_or_wiped_one_nor_is_another() {
    for trouble in ["failed", "wiped", "another"] {
        let cluster = Cluster::new(1, 2, 1);
        let log = cluster.client(Role::Control);
        fill_up(&log, 0, 10).await;
        dead(&cluster, "u-01");
        fill_up(&log, 10, 20).await;
        cluster.heal();
        match trouble {
            "failed" => cluster.fail_disk("u-00"),
            "wiped" => cluster.change_identity("u-00"),
            _ => cluster.change_identity("u-01"),
        }

        attend(&log).await;

        assert_eq!(cluster.layout().left.len(), 1, "{trouble}");
        assert!(cluster.slot("u-01", 3).is_some(), "{trouble}");
    }
}

/// A unit that says it is well, and takes no seal because its disk hangs, stopped everybody once a term had begun: nobody got a
/// token, so nobody wrote to it and suspected it.
#[tokio::test(start_paused = true)]
async fn a_unit_that_describes_itself_and_takes_no_seal_is_left_out() {
    for verbs in [&["seal"][..], &["announce"], &["stream-tails"]] {
        let cluster = Cluster::new(1, 3, 1);
        let log = cluster.client(Role::Control);
        fill_up(&log, 0, 3).await;
        let gate = Gate::new();
        cluster.rule(move |server, request| {
            let hangs =
                ["probe", "write"].contains(&request.verb()) || verbs.contains(&request.verb());
            (server == "u-01" && hangs).then(|| Fault::Hold(gate.clone()))
        });
        cluster.restart_sequencer("q-0");

        fill_up(&log, 3, 6).await;

        assert_eq!(open(&cluster), ["u-00", "u-02"], "{verbs:?}");
        assert_eq!(records(&log).await, numbers(6));
    }
}

/// A spare, a standby and a layout server that stand still cost a change no call's deadline: service stands still meanwhile.
#[tokio::test(start_paused = true)]
async fn who_is_not_needed_does_not_hold_a_change_up() {
    let cluster = Cluster::with_layout_servers(1, 2, 1, 3);
    let (log, _) = with_spare(&cluster).await;
    fill_up(&log, 0, 3).await;
    let gate = Gate::new();
    cluster.rule(move |server, _| {
        let stands_still = ["s-0", "q-1", "l-2"].contains(&server);
        stands_still.then(|| Fault::Hold(gate.clone()))
    });
    let clock = &log.host().clock;
    let began = clock.now();

    rebuild(&log, "a test").await.unwrap();

    assert!(clock.now().since(began) < log.options().call);
    fill_up(&log, 3, 6).await;
    assert_eq!(records(&log).await, numbers(6));
}

/// Paxos Made Simple, P2c: of what a majority accepted, the layout of the highest rank may be decided already; whoever promised
/// first has no weight.
#[tokio::test(start_paused = true)]
async fn the_accepted_layout_of_the_highest_rank_is_adopted() {
    for (low, high) in [(0, 1), (1, 0)] {
        let cluster = Cluster::with_layout_servers(1, 2, 1, 3);
        let log = cluster.client(Role::Control);
        let genesis = cluster.layout();
        let (calls, term) = (&log.shared.calls, genesis.term.next());
        for unit in &genesis.units {
            let sealed = calls.unit(unit, term, UnitRequest::Seal, Payload::new());
            sealed.await.unwrap();
        }
        for (voter, number) in [(low, 1), (high, 2)] {
            let rank = Rank {
                number,
                proposer: [number as u8; 16],
            };
            let mut layout = Layout {
                term,
                ..genesis.clone()
            };
            layout.origin.change = format!("rank {number}");
            let layout = Box::new(layout);
            let voter = &genesis.layout_servers[voter];
            for request in [
                LayoutRequest::Prepare { rank },
                LayoutRequest::Propose { rank, layout },
            ] {
                calls.layout(voter, term, request).await.unwrap();
            }
        }
        cluster.rule(|to, _| (to == "l-2").then_some(Fault::Down));

        rebuild(&log, "a test").await.unwrap();

        let second = calls.layout(&genesis.layout_servers[0], term, LayoutRequest::At);
        let LayoutReply::At {
            decided: Some(second),
        } = second.await.unwrap()
        else {
            panic!("no layout of term {term}");
        };
        assert_eq!(second.layout.origin.change, "rank 2");
        fill_up(&log, 0, 3).await;
    }
}

/// 3.7: a disk that lied forgot a trim. What the others gave back for good is not shown again by it.
#[tokio::test(start_paused = true)]
async fn a_term_raises_the_trim_points_that_lag() {
    let cluster = Cluster::new(2, 2, 1);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 6).await;
    assert_eq!(log.trim(Position(4)).await.unwrap(), Position(4));
    cluster.forget_trim("u-11");

    rebuild(&log, "a test").await.unwrap();

    // It is told in the background.
    log.host().clock.sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.trimmed("u-11"), Position(4));
}
