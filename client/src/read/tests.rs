//! Reads: holes, ends and spreading, on a cluster in memory.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use milonga_wire::{Report, Request, Role, Term, UnitRequest};

use super::*;
use crate::options::Options;
use crate::testing::{Cluster, Fault, Gate, once};

fn all() -> Span {
    Span::new(Position::FIRST, Position(u64::MAX))
}

/// H9: a remembered "empty" is no answer: whoever won at the head is read again.
#[tokio::test(start_paused = true)]
async fn a_reader_that_loses_the_race_to_fill_reads_the_winner() {
    let cluster = Cluster::new(1, 3, 1);
    let (writer, reader) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
    let (written, filled) = (Gate::new(), Gate::new());
    cluster.rule(once("u-00", "write", Fault::Hold(written.clone())));
    cluster.rule(once("u-00", "fill", Fault::Hold(filled.clone())));
    let writing = tokio::spawn(async move { writer.append("a", &[]).await });
    written.arrived().await;
    let reading = tokio::spawn(async move { reader.read(Position(0)).await });
    filled.arrived().await;
    written.open();
    assert_eq!(writing.await.unwrap().unwrap(), Position(0));
    filled.open();

    let entry = reading.await.unwrap().unwrap();
    assert_eq!(entry.payload().unwrap(), "a");
}

/// 5.2: a hole that could not be settled is no junk yet: at the head its writer may still win, and below it nobody else
/// would be told the same.
#[tokio::test(start_paused = true)]
async fn a_reader_that_could_not_settle_a_hole_does_not_call_it_junk() {
    for (unit, written) in [("u-00", true), ("u-01", false)] {
        let cluster = Cluster::new(1, 2, 1);
        let (writer, reader) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
        let (gate, is_cut_off) = (Gate::new(), Arc::new(AtomicBool::new(true)));
        let (held, fails) = (gate.clone(), Arc::clone(&is_cut_off));
        cluster.rule(move |server, request| match request {
            Request::Unit(UnitRequest::Write { .. }) => Some(Fault::Hold(held.clone())),
            Request::Unit(UnitRequest::Fill(_)) if server == unit => {
                fails.load(Ordering::Relaxed).then_some(Fault::LoseRequest)
            }
            _ => None,
        });
        let writing = tokio::spawn(async move { writer.append("a", &[]).await });
        gate.arrived().await;

        let early = reader.read(Position(0)).await;
        assert!(matches!(early, Err(ReadError::Unavailable(_))), "{early:?}");
        let early = reader.read_range(all()).await;
        assert!(matches!(early, Err(ReadError::Unavailable(_))), "{early:?}");

        is_cut_off.store(false, Ordering::Relaxed);
        gate.open();
        let _ = writing.await.unwrap();
        let entry = reader.read(Position(0)).await.unwrap();
        assert_eq!(entry.payload().is_some(), written, "{entry:?}");
    }
}

/// C4: what only the head has is completed before it is read.
#[tokio::test(start_paused = true)]
async fn a_half_written_entry_is_completed_down_its_chain() {
    let cluster = Cluster::new(1, 3, 1);
    let (writer, reader) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
    let gate = Gate::new();
    cluster.rule(once("u-01", "write", Fault::Hold(gate.clone())));
    let writing = tokio::spawn(async move { writer.append("a", &[]).await });
    gate.arrived().await;

    let entry = reader.read(Position(0)).await.unwrap();
    assert_eq!(entry.payload().unwrap(), "a");
    let head = cluster.slot("u-00", 0);
    assert!(head.is_some());
    assert_eq!(
        (cluster.slot("u-01", 0), cluster.slot("u-02", 0)),
        (head.clone(), head)
    );
    assert_eq!(cluster.seen("u", "fill"), 0);
    gate.open();
    assert_eq!(writing.await.unwrap().unwrap(), Position(0));
}

/// H10, H11: one wait and one fill a unit for all of them, not one for each.
#[tokio::test(start_paused = true)]
async fn a_batch_of_holes_is_settled_in_one_go() {
    let cluster = Cluster::new(2, 2, 2);
    let log = cluster.client(Role::Writer);
    log.append("a", &[]).await.unwrap();
    cluster.burn(&log, 20, &[]).await;
    log.append("b", &[]).await.unwrap();
    let clock = log.host().clock.clone();
    let (began, wait) = (clock.now(), log.hole_wait());

    let entries = log.read_range(all()).await.unwrap();

    assert_eq!(entries.len(), 22);
    let is_junk = |entry: &&Entry| matches!(entry.kind, Kind::Junk { term: Term(0) });
    assert_eq!(entries.iter().filter(is_junk).count(), 20);
    assert_eq!(cluster.seen("u", "fill"), 4);
    let took = clock.now().since(began);
    assert!(took < wait * 4, "{took:?}, with a wait of {wait:?}");
}

/// H11: an entry in flight is left to its writer for a while.
#[tokio::test(start_paused = true)]
async fn an_entry_in_flight_is_waited_for_before_anything_is_filled() {
    let cluster = Cluster::new(1, 2, 1);
    let (writer, reader) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
    let gate = Gate::new();
    cluster.rule(once("u-00", "write", Fault::Hold(gate.clone())));
    let writing = tokio::spawn(async move { writer.append("a", &[]).await });
    gate.arrived().await;
    let soon = reader.hole_wait() / 2;
    let clock = reader.host().clock.clone();
    let reading = tokio::spawn(async move { reader.read(Position(0)).await });
    clock.sleep(soon).await;
    gate.open();

    assert_eq!(reading.await.unwrap().unwrap().payload().unwrap(), "a");
    assert_eq!(writing.await.unwrap().unwrap(), Position(0));
    assert_eq!(cluster.seen("u", "fill"), 0);
}

/// What is written a moment later is read a moment later, not when the whole wait for its writer is over.
#[tokio::test(start_paused = true)]
async fn an_entry_in_flight_is_read_soon_after_it_is_written() {
    let cluster = Cluster::new(1, 2, 1);
    let (writer, reader) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
    let gate = Gate::new();
    cluster.rule(once("u-00", "write", Fault::Hold(gate.clone())));
    let writing = tokio::spawn(async move { writer.append("a", &[]).await });
    gate.arrived().await;
    let wait = reader.hole_wait();
    let clock = reader.host().clock.clone();
    let began = clock.now();
    let reading = tokio::spawn(async move { reader.read(Position(0)).await });
    clock.sleep(wait / 40).await;
    gate.open();

    assert_eq!(reading.await.unwrap().unwrap().payload().unwrap(), "a");
    let took = clock.now().since(began);
    assert!(took < wait * 3 / 4, "{took:?} of {wait:?}");
    assert_eq!(writing.await.unwrap().unwrap(), Position(0));
}

/// H12, C5.
#[tokio::test(start_paused = true)]
async fn reads_at_and_above_the_end_fill_nothing() {
    let cluster = Cluster::new(2, 2, 1);
    let log = cluster.client(Role::Writer);
    log.append("a", &[]).await.unwrap();

    for position in [1, 2, 1_000, u64::MAX - 1].map(Position) {
        let entry = log.read(position).await.unwrap();
        assert_eq!(entry.kind, Kind::Unwritten);
    }
    assert_eq!(log.read_range(all()).await.unwrap().len(), 1);
    let beyond = Span::new(Position(1), Position(90));
    assert_eq!(log.read_range(beyond).await.unwrap(), []);
    assert_eq!(log.follow(Position(1)).next_ready().await.unwrap(), None);
    assert_eq!(cluster.seen("u", "fill"), 0);
    assert_eq!(log.append("b", &[]).await.unwrap(), Position(1));
}

/// Design: below the settled mark any unit of the chain serves, so reads scale with replicas.
#[tokio::test(start_paused = true)]
async fn reads_below_the_settled_mark_spread_over_the_chain() {
    let cluster = Cluster::new(1, 3, 1);
    let log = cluster.client(Role::Writer);
    for _ in 0..10 {
        log.append("a", &[]).await.unwrap();
    }
    log.read_range(all()).await.unwrap();
    cluster.forget();
    for _ in 0..30 {
        log.read(Position(3)).await.unwrap();
    }
    let reads = ["u-00", "u-01", "u-02"].map(|unit| cluster.seen(unit, "read"));
    assert_eq!(reads, [10, 10, 10]);
}

/// H42, C4: above the mark, only the tail is asked: the head may hold what is not on the whole chain.
#[tokio::test(start_paused = true)]
async fn above_the_settled_mark_only_the_tail_is_asked() {
    let cluster = Cluster::new(1, 2, 1);
    let (writer, log) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
    for _ in 0..4 {
        log.append("a", &[]).await.unwrap();
    }
    log.read_range(all()).await.unwrap();
    let gate = Gate::new();
    cluster.rule(once("u-01", "write", Fault::Hold(gate.clone())));
    let writing = tokio::spawn(async move { writer.append("half", &[]).await });
    gate.arrived().await;
    let careful = log.with_options(Options {
        settle: false,
        ..log.options().clone()
    });

    for _ in 0..4 {
        let entry = careful.read(Position(4)).await.unwrap();
        assert_eq!(entry.kind, Kind::Unwritten);
        let both = Span::new(Position(3), Position(5));
        let kinds = careful.read_range(both).await.unwrap();
        assert_eq!((kinds.len(), &kinds[1].kind), (2, &Kind::Unwritten));
    }
    gate.open();
    writing.await.unwrap().unwrap();
    assert_eq!(
        careful.read(Position(4)).await.unwrap().payload().unwrap(),
        "half"
    );
}

/// Unknown below the mark is answered by asking the tail; the reader need not know.
#[tokio::test(start_paused = true)]
async fn what_one_unit_lost_is_read_from_the_tail() {
    let cluster = Cluster::new(1, 2, 1);
    let log = cluster.client(Role::Writer);
    for _ in 0..4 {
        log.append("a", &[]).await.unwrap();
    }
    log.read_range(all()).await.unwrap();
    cluster.damage("u-00", 2);

    for _ in 0..4 {
        assert_eq!(log.read(Position(2)).await.unwrap().payload().unwrap(), "a");
    }
}

/// H32: nobody is left hanging where data is lost; the answer is typed and has its position.
#[tokio::test(start_paused = true)]
async fn what_every_unit_lost_is_said_to_be_lost() {
    let cluster = Cluster::new(1, 2, 1);
    let log = cluster.client(Role::Writer);
    for _ in 0..3 {
        log.append("a", &[]).await.unwrap();
    }
    cluster.damage("u-00", 1);
    cluster.damage("u-01", 1);

    assert_eq!(log.read(Position(1)).await.unwrap().kind, Kind::Unknown);
    let kinds: Vec<bool> = log
        .read_range(all())
        .await
        .unwrap()
        .iter()
        .map(|entry| entry.kind == Kind::Unknown)
        .collect();
    assert_eq!(kinds, [false, true, false]);
}

/// A reader's certificate may not fill: it reports the holes to the caretaker and waits.
#[tokio::test(start_paused = true)]
async fn a_reader_reports_holes_and_reads_on_once_somebody_settled_them() {
    let cluster = Cluster::new(1, 2, 1);
    let (writer, reader) = (cluster.client(Role::Writer), cluster.client(Role::Reader));
    cluster.burn(&writer, 2, &[]).await;
    writer.append("a", &[]).await.unwrap();
    let reading = tokio::spawn(async move { reader.read_range(all()).await });
    let clock = writer.host().clock.clone();
    while cluster.reports().is_empty() {
        clock.sleep(Duration::from_millis(1)).await;
    }
    let hole = Span::new(Position(0), Position(2));
    assert!(matches!(
        &cluster.reports()[0],
        Report::Holes { spans, end: Position(3) } if spans == &[hole]
    ));
    writer.read_range(all()).await.unwrap();

    assert_eq!(reading.await.unwrap().unwrap().len(), 3);
    assert_eq!(cluster.seen("u-00", "fill"), 1);
}

/// A big batch comes in as many replies as it takes, in order and whole.
#[tokio::test(start_paused = true)]
async fn replies_that_are_cut_short_leave_no_gap() {
    let cluster = Cluster::new(2, 2, 3);
    let log = cluster.client_with(
        Role::Writer,
        Options {
            read_bytes: 100,
            ..Options::default()
        },
    );
    for number in 0..40_u8 {
        log.append(vec![number; 30], &[]).await.unwrap();
    }
    let entries = log.read_range(all()).await.unwrap();
    let expected: Vec<Vec<u8>> = (0..40).map(|number| vec![number; 30]).collect();
    let read: Vec<&[u8]> = entries
        .iter()
        .map(|entry| entry.payload().unwrap().as_ref())
        .collect();
    assert_eq!(read, expected);
    assert!(
        cluster.count(|seen| {
            matches!(
                &seen.request,
                milonga_wire::Request::Unit(UnitRequest::Read { bytes_max: 100, .. })
            )
        }) > 10
    );
}

/// One hole low in the log, which nobody has asked for, would keep the mark there and every later read at the tail.
#[tokio::test(start_paused = true)]
async fn a_hole_that_keeps_the_settled_mark_down_is_settled_by_those_who_read_above_it() {
    let cluster = Cluster::new(1, 3, 1);
    cluster.rule(once("q", "take tokens", Fault::LoseReply));
    let log = cluster.client(Role::Writer);
    for number in 0..20_u8 {
        log.append(vec![number], &[]).await.unwrap();
    }
    log.end().await.unwrap();
    for _ in 0..100 {
        log.read(Position(9)).await.unwrap();
        tokio::time::advance(Duration::from_millis(30)).await;
    }
    assert!(cluster.slot("u-02", 0).is_some());
    cluster.forget();
    for _ in 0..30 {
        log.read(Position(9)).await.unwrap();
        tokio::time::advance(Duration::from_millis(30)).await;
    }
    assert!(cluster.seen("u-00", "read") > 0 && cluster.seen("u-01", "read") > 0);
}

/// H40: a tail that was left out of a newer layout says unwritten of what was acknowledged since.
#[tokio::test(start_paused = true)]
async fn a_reader_that_settles_nothing_asks_for_the_end_again_before_it_says_unwritten() {
    let cluster = Cluster::new(1, 1, 1);
    cluster.rule(once("q", "take tokens", Fault::LoseReply));
    let log = cluster.client_with(
        Role::Writer,
        Options {
            settle: false,
            ..Options::default()
        },
    );
    log.append("a", &[]).await.unwrap();
    log.end().await.unwrap();
    let before = cluster.seen("q", "end");

    let hole = log.read(Position(0)).await.unwrap();
    assert_eq!(hole.kind, Kind::Unwritten);
    assert!(cluster.seen("q", "end") > before);
}
