//! Every change by hand on a cluster in memory: its effect while appends go on, what it shows before, and why it is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use milonga_wire::{
    Decided, Layout, LayoutRequest, Payload, Position, Role, Server, Span, Term, UnitRequest,
};

use super::*;
use crate::entry::Kind;
use crate::log::Log;
use crate::testing::{Cluster, Fault};

/// Appends numbers until it is told to stop; says which were acknowledged.
struct Writer {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<Bytes>>,
}

impl Writer {
    fn start(cluster: &Cluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopped) = (cluster.client(Role::Writer), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut written = vec![];
            let mut number = 0_u32;
            while !stopped.load(Ordering::Relaxed) {
                let record = Bytes::from(number.to_le_bytes().to_vec());
                log.append(record.clone(), &[]).await.unwrap();
                written.push(record);
                number += 1;
            }
            written
        });
        Self { stop, task }
    }

    /// Every acknowledged record is in the log once, in order.
    async fn stop(self, log: &Log) {
        self.stop.store(true, Ordering::Relaxed);
        let written = self.task.await.unwrap();
        assert!(!written.is_empty());
        assert_eq!(records(log).await, written);
    }
}

async fn records(log: &Log) -> Vec<Bytes> {
    let all = Span::new(Position::FIRST, Position(u64::MAX));
    let entries = log.read_range(all).await.unwrap();
    let records = entries.iter().filter_map(|entry| entry.payload().cloned());
    records.collect()
}

async fn fill_up(log: &Log, count: u8) {
    for number in 0..count {
        log.append(vec![number], &[]).await.unwrap();
    }
}

fn open(layout: &Layout) -> Vec<Vec<String>> {
    let chains = layout.open_segment().chains.iter();
    let names = chains.map(|chain| {
        let units = layout.units_of(chain);
        units.map(|unit| unit.name.to_string()).collect()
    });
    names.collect()
}

fn address(server: &Server) -> String {
    server.address.to_string()
}

async fn done(log: &Log, wish: Wish) -> Arc<Decided> {
    let done = carry_out(log, &wish, "a test").await;
    done.unwrap_or_else(|error| panic!("{wish:?}: {error}"))
}

async fn refused(log: &Log, wish: Wish) -> HandError {
    let planned = plan(log, &wish).await;
    let error = carry_out(log, &wish, "a test").await.unwrap_err();
    let planned = planned.map(|_| ()).unwrap_err();
    assert_eq!(planned.to_string(), error.to_string(), "{wish:?}");
    error
}

fn text(named: &str) -> String {
    named.to_owned()
}

fn evict(unit: &str, force: bool) -> Wish {
    let unit = text(unit);
    Wish::Evict { unit, force }
}

fn dead(cluster: &Cluster, name: &str) {
    let name = text(name);
    cluster.rule(move |server, _| (server == name).then_some(Fault::Down));
}

/// P8: a unit that is kept for closed positions may hold what its chain never acknowledged. It comes back empty, or not at all.
#[tokio::test(start_paused = true)]
async fn a_unit_that_is_kept_for_closed_positions_does_not_come_back_as_it_is() {
    let cluster = Cluster::new(2, 1, 1);
    let log = cluster.client(Role::Control);
    fill_up(&log, 10).await;
    done(&log, Wish::RemoveChain { chain: 1 }).await;
    let term = cluster.layout().term;

    let unit = text("u-10");
    let error = refused(&log, Wish::AddUnit { chain: 0, unit }).await;
    assert!(error.to_string().contains("closed positions"), "{error}");
    assert_eq!(cluster.layout().term, term);
}

/// Who is silent, and kept for closed positions that nobody else holds, does not leave by a term that changes nothing. An admin
/// gives them up, and a spare takes them over where every unit serves others of them.
#[tokio::test(start_paused = true)]
async fn the_last_holder_of_closed_positions_leaves_by_force_only() {
    let cluster = Cluster::new(2, 1, 1);
    let log = cluster.client(Role::Admin);
    fill_up(&log, 10).await;
    done(&log, Wish::RemoveChain { chain: 1 }).await;
    let spare = cluster.add_unit("n-0");
    let unit = address(&spare);
    done(&log, Wish::AddSpare { unit }).await;
    let term = cluster.layout().term;
    dead(&cluster, "u-10");

    let unit = || text("u-10");
    for wish in [evict("u-10", false), Wish::RemoveUnit { unit: unit() }] {
        let error = refused(&log, wish).await.to_string();
        assert!(
            error.contains("u-10 cannot leave: it does not answer"),
            "{error}"
        );
    }
    assert_eq!(cluster.layout().term, term);

    let decided = done(&log, evict("u-10", true)).await;
    let heirs = &decided.layout.segments[0].chains[1].units;
    assert_eq!(*heirs, [spare.identity]);
    assert_eq!(records(&log).await.len(), 5);
}

/// Two clusters may share certificates: who serves, or decides, in the other one stays there.
#[tokio::test(start_paused = true)]
async fn servers_of_another_cluster_are_refused() {
    let cluster = Cluster::new(1, 2, 4);
    let log = cluster.client(Role::Control);
    let elsewhere = Term(1);
    let (unit, decides) = (cluster.add_unit("n-0"), cluster.add_layout_server("l-9"));
    let calls = &log.shared.calls;
    let start = Position::FIRST;
    for request in [UnitRequest::Seal, UnitRequest::Announce { start }] {
        let done = calls.unit(&unit, elsewhere, request, Payload::new());
        done.await.unwrap();
    }
    let mut genesis = (*log.newest_layout().await.unwrap()).clone();
    genesis.layout.origin.why = "another first layout".to_owned();
    let decided = Box::new(genesis);
    let learn = LayoutRequest::Learn { decided };
    calls.layout(&decides, Term::GENESIS, learn).await.unwrap();
    let term = cluster.layout().term;

    let servers = vec![address(&decides)];
    for (wish, words) in [
        (
            Wish::AddSpare {
                unit: address(&unit),
            },
            "serves in term 1",
        ),
        (
            Wish::SetLayoutServers { servers },
            "decides the layouts of another cluster",
        ),
    ] {
        let error = refused(&log, wish).await.to_string();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(cluster.layout().term, term);
}

/// Design 6.7: one command each, with appends in flight all the time.
#[tokio::test(start_paused = true)]
async fn units_chains_and_spares_come_and_go_while_appends_go_on() {
    let cluster = Cluster::new(1, 2, 4);
    let log = cluster.client(Role::Control);
    let writer = Writer::start(&cluster);
    let fresh: Vec<Server> = (0..6)
        .map(|number| cluster.add_unit(&format!("n-{number}")))
        .collect();
    let new = |number: usize| address(&fresh[number]);

    let unit = new(0);
    let decided = done(&log, Wish::AddUnit { chain: 0, unit }).await;
    assert_eq!(open(&decided.layout), [["u-00", "u-01", "n-0"]]);
    assert_eq!(decided.layout.settings.replicas, 2, "raises nothing else");
    assert_eq!(decided.layout.origin.why, "a test");

    let decided = done(&log, Wish::AddSpare { unit: new(1) }).await;
    assert_eq!(decided.layout.spares.len(), 1);
    let (old, new_one) = (text("u-00"), text("n-1"));
    let replace = Wish::Replace {
        old,
        new: new_one,
        force: false,
    };
    let decided = done(&log, replace).await;
    assert_eq!(open(&decided.layout), [["n-1", "u-01", "n-0"]]);
    assert_eq!(decided.layout.spares, []);
    heal_all(&log, "a test").await.unwrap();

    let units = vec![new(2), new(3)];
    let decided = done(&log, Wish::AddChain { units }).await;
    assert_eq!(open(&decided.layout).len(), 2);
    let unit = text("n-0");
    let decided = done(&log, Wish::RemoveUnit { unit }).await;
    assert_eq!(open(&decided.layout)[0], ["n-1", "u-01"]);
    let decided = done(&log, Wish::RemoveChain { chain: 0 }).await;
    assert_eq!(open(&decided.layout), [["n-2", "n-3"]]);
    assert!(
        decided
            .layout
            .origin
            .change
            .contains("1 chains instead of 2")
    );

    done(&log, Wish::AddSpare { unit: new(4) }).await;
    let decided = done(&log, evict("n-2", false)).await;
    assert_eq!(open(&decided.layout), [["n-3", "n-4"]], "the spare came in");
    done(&log, Wish::StripeWidth(2)).await;
    done(&log, Wish::TrustRestarted(false)).await;
    let decided = done(&log, Wish::Replicas(1)).await;
    let settings = &decided.layout.settings;
    assert_eq!((settings.replicas, settings.trust_restarted), (1, false));
    assert_eq!(decided.layout.open_segment().stripe_width, 2);
    writer.stop(&log).await;
}

/// H19: of several who want something at once each gets it, whoever decides first.
#[tokio::test(start_paused = true)]
async fn wishes_that_meet_all_come_true() {
    let cluster = Cluster::new(1, 2, 4);
    let wishes = (0..5).map(|number| {
        let log = cluster.client(Role::Control);
        let unit = address(&cluster.add_unit(&format!("n-{number}")));
        async move { done(&log, Wish::AddSpare { unit }).await }
    });
    futures_util::future::join_all(wishes).await;
    assert_eq!(cluster.layout().spares.len(), 5);
    let log = cluster.client(Role::Control);
    log.append("on", &[]).await.unwrap();
}

/// Design 6.7: redundancy never falls below what it was, at no moment of a drain; and who dies over it is followed.
#[tokio::test(start_paused = true)]
async fn a_drained_unit_leaves_only_when_another_holds_all_that_it_holds() {
    let cluster = Cluster::new(1, 2, 4);
    let log = cluster.client(Role::Control);
    fill_up(&log, 20).await;
    let drain = || Wish::Drain { unit: text("u-00") };
    let error = refused(&log, drain()).await;
    assert!(error.to_string().contains("no spare answers"), "{error}");
    let spare = cluster.add_unit("s-0");
    done(
        &log,
        Wish::AddSpare {
            unit: address(&spare),
        },
    )
    .await;
    let writer = cluster.client(Role::Writer);

    // The proposer dies over the copy: the spare is in, and nobody has left.
    cluster.rule(|server, request| {
        (server == "s-0" && request.verb() == "copy").then_some(Fault::Down)
    });
    carry_out(&log, &drain(), "a test").await.unwrap_err();
    assert_eq!(open(&cluster.layout()), [["u-00", "u-01", "s-0"]]);
    cluster.heal();
    fill_up(&writer, 10).await;

    let shown = plan(&log, &drain()).await.unwrap();
    assert!(
        shown
            .redundancy
            .iter()
            .all(|row| row.after >= row.before.min(2)),
        "{shown:?}"
    );
    assert!(
        shown
            .copies
            .iter()
            .any(|copy| copy.positions > 0 && copy.bytes > 0)
    );
    let before = cluster.layout().term;
    let decided = done(&log, drain()).await;
    assert_eq!(open(&decided.layout), [["u-01", "s-0"]]);
    assert!(
        decided
            .layout
            .units
            .iter()
            .all(|unit| unit.name.as_str() != "u-00")
    );
    for term in before.0..=decided.layout.term.0 {
        let layout = log
            .shared
            .layouts
            .at(milonga_wire::Term(term))
            .await
            .unwrap()
            .unwrap();
        let mut closed = layout.chains();
        assert!(
            closed.all(|(chain, _)| chain.units.len() >= 2),
            "term {term}"
        );
    }
    assert_eq!(records(&log).await.len(), 30);
}

/// Design 7.5: positions are issued by whoever is named, and the others stand by.
#[tokio::test(start_paused = true)]
async fn the_sequencer_moves_and_standbys_come_and_go() {
    let cluster = Cluster::new(1, 2, 4);
    let log = cluster.client(Role::Control);
    let writer = Writer::start(&cluster);
    let to = text("q-1");
    let decided = done(&log, Wish::MoveSequencer { to: to.clone() }).await;
    assert_eq!(decided.layout.sequencer.name.as_str(), "q-1");
    let error = refused(&log, Wish::MoveSequencer { to }).await;
    assert!(error.to_string().contains("rebuild-sequencer"), "{error}");

    let sequencer = address(&cluster.add_sequencer("q-9"));
    done(&log, Wish::AddStandby { sequencer }).await;
    let to = text("q-9");
    let decided = done(&log, Wish::MoveSequencer { to }).await;
    assert_eq!(decided.layout.sequencer.name.as_str(), "q-9");
    let sequencer = text("q-0");
    let decided = done(&log, Wish::RemoveStandby { sequencer }).await;
    let standbys = decided.layout.standbys.iter();
    let standbys: Vec<&str> = standbys.map(|one| one.name.as_str()).collect();
    assert_eq!(standbys, ["q-1"]);
    dead(&cluster, "q-1");
    let to = text("q-1");
    let error = refused(&log, Wish::MoveSequencer { to }).await;
    assert!(matches!(error, HandError::Stranger { .. }), "{error}");
    writer.stop(&log).await;
}

/// Design 6.7: what is shown changes nothing, seals nothing, and says what it costs.
#[tokio::test(start_paused = true)]
async fn a_plan_shows_what_a_change_costs_and_changes_nothing() {
    let cluster = Cluster::new(2, 2, 4);
    let log = cluster.client(Role::Control);
    fill_up(&log, 40).await;
    let spare = cluster.add_unit("s-0");
    done(
        &log,
        Wish::AddSpare {
            unit: address(&spare),
        },
    )
    .await;
    let term = cluster.layout().term;
    cluster.forget();

    let shown = plan(&log, &evict("u-00", false)).await.unwrap();

    assert_eq!(open(&shown.layout), [["u-01", "s-0"], ["u-10", "u-11"]]);
    assert_eq!(shown.layout.term, term.next());
    let lowered = |row: &&Redundancy| row.after < row.before;
    let lowered: Vec<&Redundancy> = shown.redundancy.iter().filter(lowered).collect();
    assert!(
        lowered.iter().all(|row| !row.open && row.chain == 0),
        "{lowered:?}"
    );
    let copies: Vec<(&str, u64)> = shown
        .copies
        .iter()
        .map(|copy| (copy.gap.unit.name.as_str(), copy.positions))
        .collect();
    assert_eq!(copies, [("s-0", 20)]);
    assert!(shown.copies[0].bytes >= 1_000);
    assert!(shown.reach.iter().all(|one| one.answers));
    assert_eq!(cluster.layout().term, term);
    for verb in [
        "seal",
        "prepare a layout",
        "propose a layout",
        "announce",
        "write",
        "copy",
    ] {
        assert_eq!(cluster.seen("", verb), 0, "{verb}");
    }

    let decided = done(&log, evict("u-00", false)).await;
    assert_eq!(
        open(&decided.layout),
        open(&shown.layout),
        "as it was shown"
    );
    assert_eq!(decided.layout.segments, shown.layout.segments);
}

/// Design 12: what was wrong, what was expected, what to do; and nothing was sealed for it.
#[tokio::test(start_paused = true)]
async fn refusals_come_before_any_seal_and_say_what_to_do() {
    let cluster = Cluster::new(1, 2, 4);
    let log = cluster.client(Role::Admin);
    fill_up(&log, 5).await;
    let used = cluster.add_unit("n-0");
    let other = cluster.add_unit("n-1");
    cluster.put("n-0", 3, cluster.slot("u-00", 3));
    let unit = |named: &str| Wish::AddUnit {
        chain: 0,
        unit: text(named),
    };
    let replace = |old: &str, new: &str| Wish::Replace {
        old: text(old),
        new: text(new),
        force: false,
    };
    cluster.forget();
    for (wish, words) in [
        (evict("u-99", false), "expected one of: u-00, u-01"),
        (unit("u-01"), "serves in chain 0 already"),
        (unit("n-7"), "expected one of"),
        (unit(&address(&used)), "is not blank"),
        (unit("127.0.0.1:7002"), "is a sequencer"),
        (
            unit("127.0.0.1:1"),
            "does not answer as a log unit of this cluster",
        ),
        (
            Wish::AddUnit {
                chain: 3,
                unit: address(&other),
            },
            "no chain 3",
        ),
        (replace("u-00", "u-00"), "by itself"),
        (
            replace("u-00", &address(&cluster.layout().units[0])),
            "by itself",
        ),
        (Wish::RemoveChain { chain: 0 }, "the last one"),
        (
            Wish::AddChain {
                units: vec![address(&other), text("u-00")],
            },
            "serves in chain 0",
        ),
        (
            Wish::AddChain {
                units: vec![address(&other); 2],
            },
            "named twice",
        ),
        (Wish::StripeWidth(0), "expected 1 to"),
        (Wish::StripeWidth(1 << 21), "expected 1 to"),
        (Wish::Replicas(0), "expected 1 to"),
        (
            Wish::MoveSequencer { to: text("q-7") },
            "expected one of: q-1",
        ),
        (
            Wish::RemoveStandby {
                sequencer: text("q-0"),
            },
            "move-sequencer",
        ),
        (
            Wish::AddStandby {
                sequencer: text("q-1"),
            },
            "already",
        ),
        (
            Wish::SetLayoutServers {
                servers: vec![text("l-0"); 2],
            },
            "1, 3 or 5",
        ),
        (
            Wish::SetLayoutServers {
                servers: vec![text("l-0"); 3],
            },
            "named twice",
        ),
        (
            Wish::DeclareLost(Span::new(Position(4), Position(4))),
            "no position",
        ),
        (
            Wish::DeclareLost(Span::new(Position(90), Position(95))),
            "beyond what was ever written",
        ),
    ] {
        let error = refused(&log, wish.clone()).await;
        assert!(error.to_string().contains(words), "{wish:?}: {error}");
    }
    assert_eq!(cluster.seen("", "seal"), 0);
    assert_eq!(cluster.layout().term.0, 0);
}

/// Design 10: what a certificate is not good for is refused before anybody is asked anything.
#[tokio::test(start_paused = true)]
async fn lesser_certificates_are_refused_by_role() {
    let cluster = Cluster::new(1, 2, 4);
    let writer = cluster.client(Role::Writer);
    let error = refused(&writer, Wish::Heal).await;
    assert!(
        error.to_string().contains("a writer certificate"),
        "{error}"
    );
    let control = cluster.client(Role::Control);
    for wish in [
        evict("u-00", true),
        Wish::DeclareLost(Span::new(Position(0), Position(2))),
    ] {
        let error = refused(&control, wish).await;
        assert!(
            matches!(
                error,
                HandError::Role {
                    needs: Role::Admin,
                    ..
                }
            ),
            "{error}"
        );
    }
    assert_eq!(cluster.count(|_| true), 0, "nobody was asked anything");
}

/// P3: the last one that is sure to hold everything stays, and the refusal names who must come back.
#[tokio::test(start_paused = true)]
async fn the_last_complete_unit_of_a_chain_is_kept_and_the_missing_one_named() {
    let cluster = Cluster::new(1, 2, 4);
    let log = cluster.client(Role::Control);
    fill_up(&log, 10).await;
    dead(&cluster, "u-01");
    fill_up(&log, 2).await;
    assert_eq!(open(&cluster.layout()), [["u-00"]]);
    let term = cluster.layout().term;
    let error = refused(&log, evict("u-00", false)).await;
    assert!(error.to_string().contains("add-unit 0"), "{error}");

    let spare = cluster.add_unit("s-0");
    let unit = address(&spare);
    done(&log, Wish::AddSpare { unit }).await;
    let error = refused(&log, evict("u-00", false)).await;
    assert!(matches!(error, HandError::Precondition(_)), "{error}");
    assert!(error.to_string().contains("u-00 cannot leave"), "{error}");
    assert!(error.to_string().contains("cluster heal"), "{error}");
    heal_all(&log, "a test").await.unwrap();
    done(&log, evict("u-00", false)).await;
    assert_eq!(records(&log).await.len(), 12);
    assert!(cluster.layout().term > term);
}

/// P7: an admin may give up what only one unit holds; the layout says so, and readers go on behind it.
#[tokio::test(start_paused = true)]
async fn what_only_an_evicted_unit_held_is_given_up_by_force_and_read_as_junk() {
    let cluster = Cluster::new(1, 1, 4);
    let log = cluster.client(Role::Admin);
    fill_up(&log, 10).await;
    let spare = cluster.add_unit("s-0");
    let unit = address(&spare);
    done(&log, Wish::AddSpare { unit }).await;
    fill_up(&log, 3).await;
    dead(&cluster, "u-00");
    let shown = plan(&log, &evict("u-00", true)).await.unwrap();
    let gone = Span::new(Position(0), Position(13));
    assert_eq!(shown.lost, [gone]);

    let decided = done(&log, evict("u-00", true)).await;

    assert_eq!(decided.layout.lost, [gone]);
    assert!(
        decided
            .layout
            .origin
            .change
            .contains("declared lost: 0..13")
    );
    assert_eq!(open(&decided.layout), [["s-0"]]);
    let reader = cluster.client(Role::Reader);
    let first = reader.read(Position(5)).await.unwrap();
    assert!(matches!(first.kind, Kind::Junk { .. }), "{first:?}");
    let position = log.append("on", &[]).await.unwrap();
    assert_eq!(position, Position(13));
    let all = Span::new(Position::FIRST, Position(u64::MAX));
    let entries = log.read_range(all).await.unwrap();
    assert_eq!(entries.len(), 14);
    assert_eq!(entries[13].payload().unwrap(), "on");
}

/// P7; H32: what no unit holds any more is junk once an admin says so, and what one still holds is restored first.
#[tokio::test(start_paused = true)]
async fn positions_declared_lost_are_junk_and_what_a_unit_still_holds_is_not() {
    let cluster = Cluster::new(1, 2, 4);
    let log = cluster.client(Role::Admin);
    fill_up(&log, 10).await;
    cluster.next_term().await;
    for position in [3, 4] {
        cluster.damage("u-00", position);
        cluster.damage("u-01", position);
    }
    cluster.damage("u-01", 6);
    let quick = log.with_deadline(std::time::Duration::from_millis(500));
    assert_eq!(quick.read(Position(3)).await.unwrap().kind, Kind::Unknown);

    let span = Span::new(Position(2), Position(8));
    let decided = done(&log, Wish::DeclareLost(span)).await;

    assert_eq!(decided.layout.lost, [span]);
    let reader = cluster.client(Role::Reader);
    let entries = reader
        .read_range(Span::new(Position(0), Position(10)))
        .await
        .unwrap();
    for (number, entry) in entries.iter().enumerate() {
        if [3, 4].contains(&number) {
            assert!(matches!(entry.kind, Kind::Junk { .. }), "{entry:?}");
        } else {
            assert_eq!(entry.payload().unwrap(), &[number as u8][..], "{entry:?}");
        }
    }
    assert_eq!(entries.len(), 10);
}

/// P7: where all that is left is silent for good, the span alone is taken over; what lies beside it still waits.
#[tokio::test(start_paused = true)]
async fn a_silent_chain_is_given_up_only_where_it_is_declared_lost() {
    let cluster = Cluster::new(1, 1, 4);
    let log = cluster.client(Role::Admin);
    fill_up(&log, 10).await;
    let units = vec![address(&cluster.add_unit("n-0"))];
    done(&log, Wish::AddChain { units }).await;
    done(&log, Wish::RemoveChain { chain: 0 }).await;
    dead(&cluster, "u-00");
    fill_up(&log, 5).await;

    let span = Span::new(Position(0), Position(6));
    let decided = done(&log, Wish::DeclareLost(span)).await;

    let starts: Vec<u64> = decided.layout.segments.iter().map(|s| s.start.0).collect();
    assert_eq!(starts[..2], [0, 6]);
    let entries = log.read_range(span).await.unwrap();
    assert!(
        entries
            .iter()
            .all(|entry| matches!(entry.kind, Kind::Junk { .. }))
    );
    assert!(decided.layout.segments[1].chains[0].unreachable);
    cluster.heal();
    cluster.next_term().await;
    assert_eq!(
        log.read(Position(7)).await.unwrap().payload().unwrap(),
        &[7][..]
    );
    assert!(matches!(
        log.read(Position(2)).await.unwrap().kind,
        Kind::Junk { .. }
    ));
}
