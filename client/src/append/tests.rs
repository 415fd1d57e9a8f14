//! Appends: three outcomes, one entry, whatever is lost on the way.

use std::collections::BTreeSet;
use std::time::Duration;

use milonga_wire::limits::WINDOW_POSITIONS;
use milonga_wire::{Request, Role, Term, WriteKind};

use super::*;
use crate::entry::Entry;
use crate::options::Options;
use crate::testing::{Cluster, Fault, Gate, is_write, once};

fn records(count: u8) -> Vec<Bytes> {
    (0..count)
        .map(|number| Bytes::from(format!("r{number}")))
        .collect()
}

/// The records that the whole log holds, with their positions.
async fn held(cluster: &Cluster) -> Vec<(u64, Bytes)> {
    let span = Span::new(Position::FIRST, Position(u64::MAX));
    let entries = cluster.client(Role::Writer).read_range(span).await.unwrap();
    let data = |entry: Entry| Some((entry.position.0, entry.payload()?.clone()));
    entries.into_iter().filter_map(data).collect()
}

fn hasty() -> Options {
    Options {
        deadline: Duration::from_millis(400),
        call: Duration::from_millis(100),
        ..Options::default()
    }
}

/// C3: retries carry the stamp, so a unit knows them again.
#[tokio::test(start_paused = true)]
async fn an_append_is_one_entry_though_every_server_loses_its_first_reply() {
    let cluster = Cluster::new(2, 3, 1);
    let mut lost = BTreeSet::new();
    cluster.rule(move |server, request| {
        let is_first = lost.insert((server.to_owned(), request.verb()));
        is_first.then_some(Fault::LoseReply)
    });
    let log = cluster.client(Role::Writer);
    let appended = log.append_batch(&records(4), &[]).await.unwrap();

    cluster.heal();
    let held: Vec<(u64, Bytes)> = held(&cluster).await;
    let expected = appended.positions.iter().map(|position| position.0);
    assert_eq!(held, expected.zip(records(4)).collect::<Vec<_>>());
}

/// C3: what a lost token leaves is a hole, and nothing else.
#[tokio::test(start_paused = true)]
async fn a_lost_token_burns_its_position_and_nothing_else() {
    let cluster = Cluster::new(1, 2, 1);
    cluster.rule(once("q", "take tokens", Fault::LoseReply));
    let log = cluster.client(Role::Writer);

    assert_eq!(log.append("a", &[]).await.unwrap(), Position(1));
    assert_eq!(held(&cluster).await, [(1, Bytes::from("a"))]);
}

/// CORFU (NSDI '12), "Filling holes": the filler wins, the writer goes elsewhere.
#[tokio::test(start_paused = true)]
async fn a_hole_left_by_a_slow_writer_is_settled_once_and_its_entry_lands_once_elsewhere() {
    let cluster = Cluster::new(1, 3, 1);
    let (writer, reader) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
    let gate = Gate::new();
    cluster.rule(once("u-00", "write", Fault::Hold(gate.clone())));
    let slow = tokio::spawn(async move { writer.append("slow", &[]).await });
    gate.arrived().await;

    let settled = reader.read(Position(0)).await.unwrap();
    let again = reader.read(Position(0)).await.unwrap();
    gate.open();

    assert_eq!(settled.kind, crate::EntryKind::Junk { term: Term(0) });
    assert_eq!(again, settled);
    assert_eq!(cluster.seen("u-00", "fill"), 1);
    assert_eq!(slow.await.unwrap().unwrap(), Position(1));
    assert_eq!(held(&cluster).await, [(1, Bytes::from("slow"))]);
}

/// H8, H41: a token is no good in another term. Nothing was held at or above where the *next* term opened.
#[tokio::test(start_paused = true)]
async fn a_token_of_an_ended_term_that_was_not_written_is_taken_again() {
    let cluster = Cluster::new(2, 2, 1);
    let (writer, other) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
    let gate = Gate::new();
    cluster.rule(once("u", "write", Fault::Hold(gate.clone())));
    let late = tokio::spawn(async move { writer.append("late", &[]).await });
    gate.arrived().await;
    // The sequencer forgets its counter with the term, so the position is issued again, to another.
    cluster.restart_sequencer("q-0");
    assert_eq!(cluster.next_term().await.open_segment().start, Position(0));
    assert_eq!(other.append("other", &[]).await.unwrap(), Position(0));
    cluster.next_term().await;
    cluster.forget();
    gate.open();

    let position = late.await.unwrap().unwrap();
    assert_eq!(position, Position(1));
    // It was proved by the layout alone: nothing had to be settled.
    assert_eq!(cluster.seen("u", "fill"), 0);
    let both = [(0, Bytes::from("other")), (1, Bytes::from("late"))];
    assert_eq!(held(&cluster).await, both);
}

/// H41: compared with its own term's start, this entry would seem lost, and be appended twice.
#[tokio::test(start_paused = true)]
async fn an_entry_that_reached_a_head_before_its_term_ended_is_found_there() {
    let cluster = Cluster::new(1, 2, 1);
    let writer = cluster.client(Role::Writer);
    let gate = Gate::new();
    cluster.rule(once("u-01", "write", Fault::Hold(gate.clone())));
    let late = tokio::spawn(async move { writer.append("late", &[]).await });
    gate.arrived().await;
    for _ in 0..3 {
        cluster.next_term().await;
    }
    gate.open();

    assert_eq!(late.await.unwrap().unwrap(), Position(0));
    assert_eq!(held(&cluster).await, [(0, Bytes::from("late"))]);
}

/// The position was issued below the next term's start but never written: it must be settled, not guessed.
#[tokio::test(start_paused = true)]
async fn a_token_below_the_next_terms_start_is_settled_before_another_is_taken() {
    let cluster = Cluster::new(1, 2, 1);
    let (writer, other) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
    let gate = Gate::new();
    cluster.rule(once("u-00", "write", Fault::Hold(gate.clone())));
    let late = tokio::spawn(async move { writer.append("late", &[]).await });
    gate.arrived().await;
    other.append("other", &[]).await.unwrap();
    cluster.next_term().await;
    gate.open();

    assert_eq!(late.await.unwrap().unwrap(), Position(2));
    let both = [(1, Bytes::from("other")), (2, Bytes::from("late"))];
    assert_eq!(held(&cluster).await, both);
    assert!(cluster.seen("u-00", "fill") >= 1);
}

/// A term that ended is one refusal, one look at the layout, and work goes on.
#[tokio::test(start_paused = true)]
async fn a_client_of_an_ended_term_goes_on_in_the_next() {
    let cluster = Cluster::new(2, 2, 1);
    let log = cluster.client(Role::Writer);
    log.append("a", &[]).await.unwrap();
    cluster.next_term().await;
    cluster.forget();

    log.append("b", &[]).await.unwrap();
    assert_eq!(log.layout().await.unwrap().layout.term, Term(1));
    assert!(cluster.seen("l", "read the layout") <= 1);
    assert_eq!(cluster.seen("q", "take tokens"), 2);
}

/// An ordered append is in the log up to some record and not beyond it, in order, whatever happens to its pieces.
#[tokio::test(start_paused = true)]
async fn an_ordered_append_keeps_its_order_when_a_middle_piece_loses_its_place() {
    let cluster = Cluster::new(2, 2, 2);
    let (log, other) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
    let mut producer = log.producer(&[]);
    let gate = Gate::new();
    cluster.rule(once("u-10", "write", Fault::Hold(gate.clone())));
    let producing = tokio::spawn(async move { producer.append(&records(6)).await });
    gate.arrived().await;
    other.fill(Position(3)).await.unwrap();
    gate.open();

    let positions: Vec<u64> = producing
        .await
        .unwrap()
        .unwrap()
        .iter()
        .map(|position| position.0)
        .collect();
    assert_eq!(positions, [0, 1, 4, 5, 6, 7]);
    let expected: Vec<(u64, Bytes)> = positions.into_iter().zip(records(6)).collect();
    assert_eq!(held(&cluster).await, expected);
}

/// The same run without the promise: only the piece that lost its place moves.
#[tokio::test(start_paused = true)]
async fn a_batch_appends_again_only_the_piece_that_lost_its_place() {
    let cluster = Cluster::new(2, 2, 2);
    let (log, other) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
    let gate = Gate::new();
    cluster.rule(once("u-10", "write", Fault::Hold(gate.clone())));
    let appending = tokio::spawn(async move { log.append_batch(&records(6), &[]).await });
    gate.arrived().await;
    other.fill(Position(2)).await.unwrap();
    gate.open();

    let appended = appending.await.unwrap().unwrap();
    assert_eq!(appended.positions, [0, 1, 6, 7, 4, 5].map(Position));
    assert_eq!(held(&cluster).await.len(), 6);
}

/// The third outcome: what was saved tells later, from another process, and the same every time.
#[tokio::test(start_paused = true)]
async fn an_unknown_append_carries_what_resolves_it() {
    for (reached, outcome) in [
        ("u-01", Resumed::Appended(Position(1))),
        ("u-00", Resumed::NotAppended),
    ] {
        let cluster = Cluster::new(1, 2, 1);
        let log = cluster.client_with(Role::Writer, hasty());
        log.append("before", &[]).await.unwrap();
        // From the write to `reached` on, no unit hears anything any more.
        let mut silent = false;
        cluster.rule(move |server, request| {
            silent |= server == reached && request.verb() == "write";
            (silent && server.starts_with('u')).then_some(Fault::LoseRequest)
        });
        let unknown = log.append("x", &[]).await;
        let Err(AppendError::Unknown {
            saved, positions, ..
        }) = unknown
        else {
            panic!("{unknown:?}");
        };
        assert_eq!(positions, [None]);
        cluster.heal();

        let saved: SavedAppend = saved.to_string().parse().unwrap();
        for _ in 0..2 {
            let other = cluster.client(Role::Writer);
            assert_eq!(other.resume(&saved).await.unwrap(), [(0, outcome)]);
        }
        cluster.next_term().await;
        let other = cluster.client(Role::Writer);
        assert_eq!(other.resume(&saved).await.unwrap(), [(0, outcome)]);
    }
}

/// Trimmed meanwhile: neither yes nor no would be true.
#[tokio::test(start_paused = true)]
async fn what_was_trimmed_meanwhile_stays_unknown() {
    let cluster = Cluster::new(1, 2, 1);
    let log = cluster.client(Role::Control);
    let position = log.append("a", &[]).await.unwrap();
    log.append("b", &[]).await.unwrap();
    log.trim(Position(1)).await.unwrap();

    let placed = Placed {
        term: Term(0),
        first: position,
        record: 0,
        count: 2,
    };
    let saved = SavedAppend {
        session: log.session(),
        request: 0,
        first: 0,
        placed: vec![placed],
    };
    assert_eq!(
        log.resume(&saved).await.unwrap(),
        [(0, Resumed::Unknown), (1, Resumed::NotAppended)]
    );
}

/// The order of what follows could not be promised.
#[tokio::test(start_paused = true)]
async fn a_producer_stops_after_an_unknown_outcome() {
    let cluster = Cluster::new(1, 2, 1);
    let log = cluster.client_with(Role::Writer, hasty());
    let mut producer = log.producer(&[]);
    let mut silent = false;
    cluster.rule(move |server, request| {
        silent |= is_write(request, WriteKind::Follow);
        (silent && server.starts_with('u')).then_some(Fault::LoseRequest)
    });
    let unknown = producer.append(&records(3)).await;
    assert!(
        matches!(unknown, Err(AppendError::Unknown { .. })),
        "{unknown:?}"
    );
    cluster.heal();

    let refused = producer.append(&records(1)).await;
    assert!(
        matches!(refused, Err(AppendError::NotAppended { .. })),
        "{refused:?}"
    );
}

/// Nothing was sent, so nothing was appended: that is known, however long it took.
#[tokio::test(start_paused = true)]
async fn an_append_that_never_got_a_token_is_proved_not_appended() {
    let cluster = Cluster::new(1, 2, 1);
    let log = cluster.client_with(Role::Writer, hasty());
    cluster.rule(|server, _| server.starts_with('q').then_some(Fault::Down));

    let refused = log.append("a", &[]).await;
    assert!(
        matches!(&refused, Err(AppendError::NotAppended { why }) if why.may_pass()),
        "{refused:?}"
    );
}

/// U11 at the client: a full disk is a definite answer, and the hole it leaves is settled.
#[tokio::test(start_paused = true)]
async fn a_full_disk_is_a_definite_answer() {
    let cluster = Cluster::new(1, 2, 1);
    let log = cluster.client(Role::Writer);
    cluster.rule(|server, request: &Request| {
        let is_full = server == "u-00" && is_write(request, WriteKind::Decide);
        is_full.then_some(Fault::Refuse(Refusal::DiskFull))
    });

    let refused = log.append("a", &[]).await;
    assert!(
        matches!(
            &refused,
            Err(AppendError::NotAppended {
                why: Unavailable::Refused {
                    refusal: Refusal::DiskFull,
                    ..
                }
            })
        ),
        "{refused:?}"
    );
    cluster.heal();
    assert_eq!(log.append("b", &[]).await.unwrap(), Position(1));
}

/// 3.8: below the head a full disk is met when the head has the record already. Who has met it asks first from then on, so
/// that the next records are proved to be nowhere and take no space of the head's; and goes on once there is room.
#[tokio::test(start_paused = true)]
async fn a_unit_below_the_head_that_is_full_is_asked_before_more_is_decided() {
    for full in ["u-01", "u-02"] {
        let cluster = Cluster::new(1, 3, 1);
        let log = cluster.client(Role::Writer);
        log.append("a", &[]).await.unwrap();
        cluster.full(full, true);
        let is_full = |why: &Unavailable| {
            let refusal = Refusal::DiskFull;
            matches!(why, Unavailable::Refused { server, refusal: found } if server.contains(full) && *found == refusal)
        };

        let first = log.append("b", &[]).await;
        let Err(AppendError::Unknown { saved, why, .. }) = first else {
            panic!("{first:?}");
        };
        assert!(is_full(&why), "{why}");
        for position in 2..5 {
            let next = log.append("c", &[]).await;
            assert!(
                matches!(&next, Err(AppendError::NotAppended { why }) if is_full(why)),
                "{next:?}"
            );
            assert_eq!(cluster.slot("u-00", position), None);
        }
        let held = log.read(Position(0)).await.unwrap();
        assert_eq!(held.payload().unwrap(), "a");

        cluster.full(full, false);
        assert_eq!(log.append("d", &[]).await.unwrap(), Position(5));
        let resumed = log.resume(&saved).await.unwrap();
        assert_eq!(resumed, [(0, Resumed::Appended(Position(1)))]);
        let asked = cluster.seen(full, "describe");
        log.append("e", &[]).await.unwrap();
        assert_eq!(cluster.seen(full, "describe"), asked, "it has room");
    }
}

/// 3.8: a unit below the head takes what its head has into its reserve, and is asked from then on: nothing is left half
/// written, and the reserve stays for others.
#[tokio::test(start_paused = true)]
async fn a_unit_that_has_its_reserve_left_takes_what_is_under_way_and_is_asked_before_more() {
    let cluster = Cluster::new(1, 3, 1);
    let log = cluster.client(Role::Writer);
    cluster.in_reserve("u-02");

    assert_eq!(log.append("a", &[]).await.unwrap(), Position(0));
    let next = log.append("b", &[]).await;
    assert!(
        matches!(&next, Err(AppendError::NotAppended { why }) if why.to_string().contains("u-02")),
        "{next:?}"
    );
    assert_eq!(cluster.slot("u-00", 1), None);
}

/// C2: below the head something else is found. Nothing was acknowledged, and nobody carries on as if it was.
#[tokio::test(start_paused = true)]
async fn a_chain_that_diverged_is_reported_and_never_acknowledged() {
    let cluster = Cluster::new(1, 2, 1);
    let (log, other) = (cluster.client(Role::Writer), cluster.client(Role::Writer));
    other.append("of another", &[]).await.unwrap();
    cluster.put("u-01", 1, cluster.slot("u-01", 0));

    let diverged = log.append("mine", &[]).await;
    assert!(
        matches!(
            &diverged,
            Err(AppendError::Unknown { why: Unavailable::Diverged { why }, .. })
                if why.contains("u-01") && why.contains('1')
        ),
        "{diverged:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_append_over_a_bound_is_refused_before_anything_is_asked() {
    let cluster = Cluster::new(1, 2, 1);
    let log = cluster.client(Role::Writer);
    let stream = StreamId([1; 16]);

    let large = log.append(vec![0; ENTRY_BYTES_MAX + 1], &[]).await;
    let empty = log.append_batch(&[], &[]).await.map(drop);
    let twice = log.append("a", &[stream, stream]).await;

    for refused in [large.map(drop), empty, twice.map(drop)] {
        assert!(
            matches!(refused, Err(AppendError::NotAppended { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(cluster.count(|_| true), 0);
}

/// Positions that were issued and never written must not leave the log closed to everybody.
#[tokio::test(start_paused = true)]
async fn an_append_far_above_what_the_units_hold_moves_their_windows_on() {
    let cluster = Cluster::new(2, 2, 3);
    let log = cluster.client(Role::Writer);
    let decided = log.layout().await.unwrap();
    let layout = &decided.layout;
    let burnt = 5 * WINDOW_POSITIONS / 2;
    for _ in 0..=burnt / u64::from(RUN_RECORDS_MAX) {
        let request = SequencerRequest::Tokens {
            count: RUN_RECORDS_MAX,
            streams: vec![],
        };
        let calls = &log.shared.calls;
        let token = calls.sequencer(&layout.sequencer, layout.term, request);
        token.await.unwrap();
    }

    let position = log.append("far", &[]).await.unwrap();
    assert!(position.0 > burnt);
    let batch = log.append_batch(&records(9), &[]).await.unwrap();
    let read = log.read(batch.positions[8]).await.unwrap();
    assert_eq!(read.payload(), Some(&records(9)[8]));
    let fills = cluster.seen("u-00", "fill") + cluster.seen("u-10", "fill");
    assert!((1..=8).contains(&fills), "{fills}");
}

/// Who is told "unknown" has to look; who was never heard need not.
#[tokio::test(start_paused = true)]
async fn an_append_that_never_reached_the_head_is_not_appended() {
    let cluster = Cluster::new(1, 2, 1);
    let log = cluster.client_with(Role::Writer, hasty());
    cluster.rule(|server, request| {
        (server == "u-00" && request.verb() == "write").then_some(Fault::Down)
    });
    let told = log.append("a", &[]).await;
    assert!(
        matches!(told, Err(AppendError::NotAppended { .. })),
        "{told:?}"
    );

    cluster.heal();
    cluster.rule(|server, request| {
        (server == "u-01" && request.verb() == "write").then_some(Fault::Down)
    });
    let told = log.append("b", &[]).await;
    assert!(
        !matches!(told, Err(AppendError::NotAppended { .. })),
        "{told:?}"
    );
}

/// H30: what a failing disk was writing may be found after a restart.
#[tokio::test(start_paused = true)]
async fn an_append_at_a_head_whose_disk_failed_is_not_proved_to_be_lost() {
    let cluster = Cluster::new(1, 2, 1);
    let log = cluster.client_with(Role::Writer, hasty());
    cluster.rule(|server, request| {
        let why = "a test".to_owned();
        match request.verb() {
            "write" if server == "u-00" => Some(Fault::Refuse(Refusal::DiskFailed { why })),
            "read" => Some(Fault::LoseRequest),
            _ => None,
        }
    });
    let told = log.append("a", &[]).await;
    assert!(matches!(told, Err(AppendError::Unknown { .. })), "{told:?}");
}

/// A deadline that is not kept is none: everything that is still tried after it fits into a quarter of it.
#[tokio::test(start_paused = true)]
async fn an_append_ends_soon_after_its_deadline_whoever_is_silent() {
    for (silent, verb) in [
        ("u-01", "write"),
        ("u", "write"),
        ("q", "take tokens"),
        ("u-00", "read"),
    ] {
        let cluster = Cluster::new(1, 2, 1);
        let log = cluster.client_with(
            Role::Writer,
            Options {
                deadline: Duration::from_secs(2),
                ..Options::default()
            },
        );
        log.append("first", &[]).await.unwrap();
        cluster.rule(move |server, request| {
            let is_write = request.verb() == "write" && server == "u-01";
            let asked = server.starts_with(silent) && request.verb() == verb;
            (asked || (verb == "read" && is_write)).then_some(Fault::LoseRequest)
        });
        let clock = &log.host().clock;
        let began = clock.now();
        log.append("late", &[]).await.unwrap_err();
        let took = clock.now().since(began);
        assert!(took <= Duration::from_millis(3_100), "{silent}: {took:?}");
    }
}
