//! Appends of one process that meet share tokens and pieces.
//!
//! ```text
//! append ─┐                          ┌─▶ its positions
//! append ─┼─▶ waiting ─▶ one run ────┼─▶ its positions
//! append ─┘   (a worker takes all)   └─▶ its positions
//! ```
//! An append never waits for others to come: it waits for the task that will carry it to get its turn, or while as many
//! runs as may be under way are. So one append at a time costs what it did alone, and many at once cost each a fraction
//! of the calls. Each keeps its own records, deadline and outcome.
//!
//! - G1 A run carries appends of the same streams only, whole ones, in the order in which they came.
//! - G2 What an append is told follows from its own records alone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use milonga_host::Moment;
use milonga_wire::StreamId;
use tokio::sync::oneshot;

use crate::append::{AppendError, Appended, Ended, Order};
use crate::log::Log;
use crate::resume::SavedAppend;
use crate::trouble::Unavailable;

/// Runs of one kind under way at a time. A chain has four stations (sequencer, head, middle, tail): more runs would
/// only be smaller ones.
const WORKERS_MAX: usize = 4;
/// Records of a run that several appends share.
const RECORDS_MAX: usize = 512;
/// Bytes of a run that several appends share. Larger appends go alone: their calls are not what they cost.
const BYTES_MAX: usize = 256 << 10;

/// Which appends may share a run (G1).
type Kind = (Vec<StreamId>, Duration);

/// The appends of one process that wait for their turn.
#[derive(Debug, Default)]
pub(crate) struct Gathering(Mutex<BTreeMap<Kind, Queue>>);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Member>,
    workers: usize,
    /// A worker that has been started takes what waits as soon as it runs: no need for another.
    starting: bool,
}

/// One append.
#[derive(Debug)]
struct Member {
    records: Vec<Bytes>,
    since: Moment,
    tell: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Gathering {
    fn queues(&self) -> MutexGuard<'_, BTreeMap<Kind, Queue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an append, and says whether a worker must be started for it.
    fn add(&self, kind: &Kind, member: Member) -> bool {
        let mut queues = self.queues();
        let queue = match queues.get_mut(kind) {
            Some(queue) => queue,
            None => queues.entry(kind.clone()).or_default(),
        };
        queue.waiting.push_back(member);
        let start = !queue.starting && queue.workers < WORKERS_MAX;
        if start {
            queue.starting = true;
            queue.workers += 1;
        }
        start
    }

    /// Takes what one run may carry; nothing if nothing waits, and then the worker that asked is done.
    fn take(&self, kind: &Kind) -> Option<Vec<Member>> {
        let mut queues = self.queues();
        let queue = queues.get_mut(kind)?;
        queue.starting = false;
        let (mut records, mut bytes) = (0, 0);
        let fits = queue.waiting.iter().take_while(|member| {
            records += member.records.len();
            bytes += bytes_of(&member.records);
            records <= RECORDS_MAX && bytes <= BYTES_MAX
        });
        // One that is over a bound by itself does not come here.
        let count = fits.count();
        if count > 0 {
            return Some(queue.waiting.drain(..count).collect());
        }
        queue.workers -= 1;
        if queue.workers == 0 {
            queues.remove(kind);
        }
        None
    }
}

/// Whether an append may share a run with others.
pub(crate) fn shares(records: &[Bytes]) -> bool {
    records.len() <= RECORDS_MAX / 4 && bytes_of(records) <= BYTES_MAX / 4
}

/// Appends `records` together with whatever else this process appends to `streams` now.
pub(crate) async fn append(
    log: &Log,
    records: &[Bytes],
    streams: &[StreamId],
) -> Result<Appended, AppendError> {
    let kind = (streams.to_vec(), log.options.deadline);
    let (tell, told) = oneshot::channel();
    let member = Member {
        records: records.to_vec(),
        since: log.shared.host.clock.now(),
        tell,
    };
    if log.shared.gathering.add(&kind, member) {
        log.background(|log| work(log, kind));
    }
    told.await.unwrap_or_else(|_| {
        Err(AppendError::Unknown {
            saved: Box::new(SavedAppend {
                session: log.session(),
                request: 0,
                first: 0,
                placed: vec![],
            }),
            positions: vec![None; records.len()],
            why: Unavailable::Protocol {
                why: "this client was shut down; read the log to see".to_owned(),
            },
        })
    })
}

/// Run after run, until nothing waits.
async fn work(log: Log, kind: Kind) {
    let (streams, deadline) = &kind;
    while let Some(mut members) = log.shared.gathering.take(&kind) {
        let now = log.shared.host.clock.now();
        // Nobody asks any more, or nobody may be told in time: nothing was sent for them.
        members.retain(|member| !member.tell.is_closed());
        let (late, members): (Vec<_>, Vec<_>) = members
            .into_iter()
            .partition(|member| now.since(member.since) >= *deadline);
        for member in late {
            let why = Unavailable::Deadline {
                waited: now.since(member.since),
                last: "earlier appends of this client are not done".to_owned(),
            };
            let _ = member.tell.send(Err(AppendError::NotAppended { why }));
        }
        let Some(first) = members.first() else {
            continue;
        };
        // The one that came first waits half as long again at the most, for the sake of those that came last.
        let left = deadline.saturating_sub(now.since(first.since));
        let records: Vec<Bytes> = members
            .iter()
            .flat_map(|member| member.records.iter().cloned())
            .collect();
        let ended = log
            .append_run(&records, streams, left.max(*deadline / 2), Order::None)
            .await;
        tell(&ended, members);
    }
}

/// G2.
fn tell(ended: &Ended, members: Vec<Member>) {
    let mut from = 0;
    for member in members {
        let to = from + member.records.len();
        let _ = member.tell.send(ended.part(from, to));
        from = to;
    }
}

fn bytes_of(records: &[Bytes]) -> usize {
    records.iter().map(Bytes::len).sum()
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use milonga_wire::{Position, Role, Session, Stamp, Term};

    use super::*;
    use crate::EntryKind;
    use crate::options::Options;
    use crate::resume::Placed;
    use crate::testing::{Cluster, Fault, Gate, once};

    fn name(number: usize) -> Bytes {
        format!("r{number}").into()
    }

    /// G2: whoever shares a run still finds its own record at its own position.
    #[tokio::test(start_paused = true)]
    async fn appends_made_at_once_share_a_token_and_each_gets_its_own_position() {
        let cluster = Cluster::new(1, 3, 1);
        let log = cluster.client(Role::Writer);
        let appended = join_all((0..50).map(|number| log.append(name(number), &[]))).await;

        assert_eq!(cluster.seen("q", "take tokens"), 1);
        assert_eq!(cluster.seen("u-00", "write"), 1);
        for (number, position) in appended.into_iter().enumerate() {
            let entry = log.read(position.unwrap()).await.unwrap();
            assert_eq!(entry.payload(), Some(&name(number)));
        }
    }

    /// G1: a record must not turn up in a stream that its writer did not name.
    #[tokio::test(start_paused = true)]
    async fn appends_to_different_streams_share_nothing() {
        let cluster = Cluster::new(1, 1, 1);
        let log = cluster.client(Role::Writer);
        let streams: Vec<[StreamId; 1]> = ["a", "b"].map(|name| [StreamId::of_name(name)]).into();
        let both = join_all((0..20).map(|n| log.append(name(n), &streams[n % 2]))).await;

        assert_eq!(cluster.seen("q", "take tokens"), 2);
        for (number, position) in both.into_iter().enumerate() {
            let entry = log.read(position.unwrap()).await.unwrap();
            let EntryKind::Data { streams: named, .. } = entry.kind else {
                panic!("{entry:?}");
            };
            let named: Vec<StreamId> = named.iter().map(|link| link.stream).collect();
            assert_eq!(named, streams[number % 2]);
        }
    }

    /// While runs are under way, what comes is gathered; it goes as soon as one of them ends.
    #[tokio::test(start_paused = true)]
    async fn what_comes_while_enough_runs_are_under_way_goes_together_afterwards() {
        let cluster = Cluster::new(1, 1, 1);
        let log = cluster.client(Role::Writer);
        let gate = Gate::new();
        let mut first = vec![];
        for number in 0..WORKERS_MAX {
            cluster.rule(once("q", "take tokens", Fault::Hold(gate.clone())));
            let log = log.clone();
            first.push(tokio::spawn(
                async move { log.append(name(number), &[]).await },
            ));
            gate.arrived().await;
        }
        let later = {
            let log = log.clone();
            let all = (0..30).map(move |n| {
                let log = log.clone();
                async move { log.append(name(n), &[]).await }
            });
            tokio::spawn(join_all(all))
        };
        tokio::task::yield_now().await;
        assert_eq!(cluster.seen("q", "take tokens"), WORKERS_MAX);
        gate.open();

        for append in first {
            append.await.unwrap().unwrap();
        }
        assert!(later.await.unwrap().iter().all(Result::is_ok));
        assert_eq!(cluster.seen("q", "take tokens"), WORKERS_MAX + 1);
    }

    /// Who was never sent anywhere is told so, and may append again elsewhere.
    #[tokio::test(start_paused = true)]
    async fn an_append_whose_turn_comes_too_late_is_not_appended() {
        let cluster = Cluster::new(1, 1, 1);
        let log = cluster.client(Role::Writer).with_options(Options {
            deadline: Duration::from_millis(400),
            call: Duration::from_secs(60),
            ..Options::default()
        });
        let gate = Gate::new();
        for number in 0..WORKERS_MAX {
            cluster.rule(once("q", "take tokens", Fault::Hold(gate.clone())));
            let log = log.clone();
            tokio::spawn(async move { log.append(name(number), &[]).await });
            gate.arrived().await;
        }
        let late = log.clone();
        let late = tokio::spawn(async move { late.append("late", &[]).await });
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_secs(1)).await;
        gate.open();

        let told = late.await.unwrap();
        assert!(
            matches!(told, Err(AppendError::NotAppended { .. })),
            "{told:?}"
        );
    }

    /// G2: a neighbour's unknown outcome is not this append's.
    #[test]
    fn each_part_of_a_run_has_the_outcome_of_its_own_records() {
        let at = |first, record, count| Placed {
            term: Term(1),
            first: Position(first),
            record,
            count,
        };
        let positions = [Some(10), None, None, None, Some(14), None];
        let ended = Ended {
            session: Session([1; 16]),
            request: 7,
            positions: positions.map(|p| p.map(Position)).to_vec(),
            unknown: vec![at(12, 2, 2)],
            why: None,
        };
        let stamp = |record| Stamp {
            session: Session([1; 16]),
            request: 7,
            record,
        };
        let first = ended.part(0, 1).unwrap();
        assert_eq!(
            (first.positions, first.stamp),
            (vec![Position(10)], stamp(0))
        );
        assert!(matches!(
            ended.part(1, 2),
            Err(AppendError::NotAppended { .. })
        ));
        let Err(AppendError::Unknown {
            saved, positions, ..
        }) = ended.part(3, 5)
        else {
            panic!("not unknown");
        };
        assert_eq!((saved.first, saved.placed), (3, vec![at(13, 0, 1)]));
        assert_eq!(positions, [None, Some(Position(14))]);
        assert!(matches!(ended.part(4, 6), Err(AppendError::Partly { .. })));
    }
}
