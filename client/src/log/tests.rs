//! What a client does after trouble, on a cluster in memory.

use milonga_wire::{Refusal, Request, Term, WriteKind};

use super::*;
use crate::append::AppendError;
use crate::entry::Kind;
use crate::testing::{Cluster, Fault, Gate, is_write, once};

/// What a sequencer issued in vain vanishes with its term; a session is never told a lower end for it.
#[tokio::test(start_paused = true)]
async fn the_end_never_goes_back_within_a_session() {
    let cluster = Cluster::new(2, 2, 1);
    let log = cluster.client(Role::Writer);
    log.append("a", &[]).await.unwrap();
    cluster.burn(&log, 9, &[]).await;
    assert_eq!(log.end().await.unwrap().position, Position(10));
    cluster.restart_sequencer("q-0");
    cluster.next_term().await;

    let end = log.end().await.unwrap();
    assert_eq!(
        (end.position, end.counter, end.term),
        (Position(10), Position(1), Term(1))
    );
    assert_eq!(log.append("b", &[]).await.unwrap(), Position(1));
    let fresh = cluster.client(Role::Reader).end().await.unwrap();
    assert_eq!(fresh.position, Position(2));
}

#[tokio::test(start_paused = true)]
async fn the_end_tells_the_last_positions_of_streams() {
    let cluster = Cluster::new(2, 2, 1);
    let log = cluster.client(Role::Writer);
    let (one, other) = (StreamId([1; 16]), StreamId([2; 16]));
    for _ in 0..6 {
        log.append("a", &[one]).await.unwrap();
    }
    let before = |end: &End, index: usize| end.streams[index].before.clone();
    let known = |positions: &[u64]| {
        milonga_wire::Before::Known(positions.iter().copied().map(Position).collect())
    };

    let end = log.end_of(&[one, other]).await.unwrap();
    assert_eq!(
        (before(&end, 0), before(&end, 1)),
        (known(&[5, 4, 3, 2]), known(&[]))
    );
    cluster.next_term().await;
    let end = log.end_of(&[one]).await.unwrap();
    assert_eq!(before(&end, 0), known(&[5, 4, 3, 2]));
}

/// A proposer that died when only its seal of the sequencer had arrived left a log that issued nothing any more, and every
/// other client thought the cluster well.
#[tokio::test(start_paused = true)]
async fn a_control_client_finishes_a_term_that_only_the_sequencer_is_sealed_for() {
    let cluster = Cluster::new(1, 1, 1);
    let log = cluster.client(Role::Control);
    log.append("a", &[]).await.unwrap();
    let layout = cluster.layout();
    let next = layout.term.next();
    let calls = &log.shared.calls;
    let sealed = calls.sequencer(&layout.sequencer, next, SequencerRequest::Seal);
    sealed.await.unwrap();

    assert_eq!(log.append("b", &[]).await.unwrap(), Position(1));
    assert_eq!(cluster.layout().term, next);
}

/// A restarted sequencer issues nothing until a new term names it; any control client sees to that by itself.
#[tokio::test(start_paused = true)]
async fn a_control_client_mends_a_restarted_sequencer() {
    let cluster = Cluster::new(2, 2, 1);
    let log = cluster.client(Role::Control);
    log.append("a", &[]).await.unwrap();
    cluster.restart_sequencer("q-0");

    assert_eq!(log.append("b", &[]).await.unwrap(), Position(1));
    let layout = cluster.layout();
    assert_eq!(
        (layout.term, layout.sequencer.name.as_str()),
        (Term(1), "q-0")
    );
    assert_eq!(log.end().await.unwrap().counter, Position(2));
}

/// Who may not change layouts waits, tells the layout servers whom it suspects, and goes on once somebody did.
#[tokio::test(start_paused = true)]
async fn a_writer_waits_and_reports_until_somebody_mends() {
    let cluster = Cluster::new(2, 2, 1);
    let log = cluster.client(Role::Writer);
    log.append("a", &[]).await.unwrap();
    cluster.restart_sequencer("q-0");
    let waiting = log.clone();
    let waiting = tokio::spawn(async move { waiting.append("b", &[]).await });
    log.host().clock.sleep(Duration::from_secs(3)).await;

    let reports = cluster.reports();
    let is_suspect = |report: &Report| matches!(report, Report::Suspect { server, .. } if server.as_str() == "q-0");
    assert!(
        !reports.is_empty() && reports.iter().all(is_suspect),
        "{reports:?}"
    );
    assert!(reports.len() <= 4, "{} reports in 3 s", reports.len());
    assert_eq!(cluster.layout().term, Term(0));
    assert_eq!(cluster.count(|seen| seen.request.verb() == "seal"), 0);
    cluster.next_term().await;
    assert_eq!(waiting.await.unwrap().unwrap(), Position(1));
}

/// A term that is sealed and not decided stops everybody: it is gone through with, although the operation that began it has
/// ended.
#[tokio::test(start_paused = true)]
async fn a_change_goes_on_when_the_operation_that_began_it_has_ended() {
    let cluster = Cluster::new(1, 2, 1);
    let deadline = Duration::from_millis(100);
    let hurried = Options {
        deadline,
        ..Options::default()
    };
    let log = cluster.client_with(Role::Control, hurried);
    let writer = cluster.client(Role::Writer);
    writer.append("a", &[]).await.unwrap();
    cluster.restart_sequencer("q-0");
    let gate = Gate::new();
    let held = gate.clone();
    cluster.rule(move |_, request| {
        let is_proposal = matches!(request, Request::Layout(LayoutRequest::Propose { .. }));
        is_proposal.then(|| Fault::Hold(held.clone()))
    });

    let ended = log.append("b", &[]).await;
    assert!(
        matches!(
            &ended,
            Err(AppendError::NotAppended {
                why: Unavailable::Deadline { .. }
            })
        ),
        "{ended:?}"
    );
    assert_eq!(cluster.layout().term, Term(0));
    gate.arrived().await;
    gate.open();
    assert_eq!(writer.append("c", &[]).await.unwrap(), Position(1));
}

/// A sequencer that is gone for good: its standby takes over.
#[tokio::test(start_paused = true)]
async fn a_standby_takes_over_from_a_silent_sequencer() {
    let cluster = Cluster::new(2, 2, 1);
    let log = cluster.client(Role::Control);
    for _ in 0..3 {
        log.append("a", &[]).await.unwrap();
    }
    cluster.rule(|server, _| (server == "q-0").then_some(Fault::Down));

    assert_eq!(log.append("b", &[]).await.unwrap(), Position(3));
    assert_eq!(cluster.layout().sequencer.name.as_str(), "q-1");
}

/// A restarted unit serves what it has; what it cannot tell is put back from its peer, and what nobody holds is junk.
#[tokio::test(start_paused = true)]
async fn a_restarted_unit_is_listed_again_and_what_it_lacks_is_restored() {
    // A head that refuses costs the append its position; what has reached a head is completed.
    for (restarted, position) in [("u-00", 5), ("u-01", 4)] {
        let cluster = Cluster::new(1, 2, 1);
        let log = cluster.client(Role::Control);
        log.append("a", &[]).await.unwrap();
        cluster.burn(&log, 2, &[]).await;
        log.append("b", &[]).await.unwrap();
        cluster.put(restarted, 0, None);
        cluster.restart_unit(restarted);

        let appended = log.append("c", &[]).await.unwrap();
        assert_eq!(appended, Position(position), "{restarted}");
        assert_eq!(cluster.layout().term, Term(1));
        let entries = log
            .read_range(Span::new(Position(0), appended.next()))
            .await
            .unwrap();
        let (junk, data): (Vec<_>, Vec<_>) = entries
            .iter()
            .partition(|entry| matches!(entry.kind, Kind::Junk { .. }));
        let data: Vec<&[u8]> = data
            .iter()
            .map(|entry| entry.payload().unwrap().as_ref())
            .collect();
        assert_eq!(data, [b"a", b"b", b"c"], "{restarted}");
        assert_eq!(junk.len() as u64, position - 2);
        for position in 0..=position {
            let slot = cluster.slot("u-00", position);
            assert!(slot.is_some() && slot == cluster.slot("u-01", position));
        }
    }
}

/// H21: what was accepted may be decided, though its proposer died: it is finished, and nothing else takes its place.
#[tokio::test(start_paused = true)]
async fn an_accepted_layout_is_finished_and_not_replaced() {
    let cluster = Cluster::new(1, 1, 1);
    let (first, second) = (cluster.client(Role::Control), cluster.client(Role::Control));
    cluster.rule(once("l-0", "propose a layout", Fault::LoseReply));
    let proposed = reconfigure::rebuild(&first, "the first").await;
    assert!(proposed.is_err(), "{proposed:?}");
    assert_eq!(cluster.layout().term, Term::GENESIS);

    let decided = reconfigure::rebuild(&second, "the second").await.unwrap();
    assert_eq!(decided.layout.origin.why, "the first");
    assert_eq!(cluster.layout(), decided.layout);
}

/// H38: what is put back is put back at the head first: what only units behind it hold could be read, and lost with them.
#[tokio::test(start_paused = true)]
async fn what_is_restored_goes_down_its_chain_from_the_head() {
    let cluster = Cluster::new(1, 3, 1);
    let log = cluster.client(Role::Control);
    log.append("a", &[]).await.unwrap();
    for unit in ["u-00", "u-02"] {
        cluster.put(unit, 0, None);
        cluster.restart_unit(unit);
    }

    cluster.next_term().await;
    let entry = log.read(Position(0)).await.unwrap();
    assert_eq!(entry.payload().unwrap(), "a");

    let first_copy = |server: &str| {
        let mut number = 0;
        let mut first = None;
        cluster.count(|seen| {
            number += 1;
            if seen.server == server && is_write(&seen.request, WriteKind::Copy) {
                first.get_or_insert(number);
            }
            false
        });
        first.expect("every unit of the chain is sent it")
    };
    assert!(first_copy("u-00") < first_copy("u-01"));
    assert!(first_copy("u-01") < first_copy("u-02"));
}

/// H19: many who meet the same trouble make one term of it.
#[tokio::test(start_paused = true)]
async fn many_control_clients_that_meet_a_failure_make_few_terms() {
    let cluster = Cluster::new(2, 2, 1);
    let logs: Vec<Log> = (0..8).map(|_| cluster.client(Role::Control)).collect();
    for log in &logs {
        log.append("a", &[]).await.unwrap();
    }
    cluster.restart_sequencer("q-0");
    let appends = logs.iter().map(|log| log.append("b", &[]));
    let mut positions: Vec<u64> = futures_util::future::join_all(appends)
        .await
        .into_iter()
        .map(|position| position.unwrap().0)
        .collect();
    positions.sort_unstable();

    assert_eq!(cluster.layout().term, Term(1));
    assert_eq!(positions, (8..16).collect::<Vec<_>>());
}

/// H43's other half: while the layout servers do not confirm, no end is told.
#[tokio::test(start_paused = true)]
async fn an_end_that_nobody_confirms_is_not_told() {
    let cluster = Cluster::new(1, 2, 1);
    let log = cluster.client(Role::Writer);
    log.append("a", &[]).await.unwrap();
    cluster.rule(|server, request| {
        let refusal = Refusal::Unconfirmed { term: Term(0) };
        (server == "q-0" && request.verb() == "end").then_some(Fault::Refuse(refusal))
    });

    let unknown = log.end().await;
    assert!(
        matches!(unknown, Err(Unavailable::Deadline { .. })),
        "{unknown:?}"
    );
}

/// Background work lasts as long as somebody uses the client.
#[tokio::test(start_paused = true)]
async fn background_work_ends_when_the_last_user_drops_the_client() {
    let cluster = Cluster::new(1, 1, 1);
    let log = cluster.client(Role::Control);
    let (held, mut dropped) = oneshot::channel::<()>();
    log.background(|log| async move {
        let _held = (held, log);
        std::future::pending::<()>().await;
    });
    let other = log.clone();
    drop(log);
    other.append("a", &[]).await.unwrap();
    assert_eq!(dropped.try_recv(), Err(oneshot::error::TryRecvError::Empty));

    let clock = other.host().clock.clone();
    drop(other);
    let dropped = clock.within(Duration::from_secs(1), dropped).await;
    dropped.expect("the work has ended").unwrap_err();
}
