//! The end of a run: the network is whole, every process runs, and all that was acknowledged has to be there.

use std::sync::atomic::Ordering;
use std::time::Duration;

use milonga_client::{EntryKind, Options, reconfigure};
use milonga_wire::{Position, Role, StreamId};

use super::cluster::{Cluster, log};
use super::inspection::inspect;
use super::records;
use super::workload::{Client, STREAMS, Workload};
use crate::history::{Operation, Seen};
use crate::invariants;
use crate::sim::World;

/// How long a whole cluster whose processes all run may take to serve again.
const RECOVERY_MAX: Duration = Duration::from_secs(120);

/// How many positions the audit reads at a time.
const PAGE: u64 = 256;

/// Has newcomers read everything, then holds all that clients were told against every invariant.
pub async fn audit(world: &World, workload: &Workload, cluster: &Cluster) {
    let auditors = workload.processes.load(Ordering::Relaxed);
    look(world, workload, cluster).await;
    let history = workload.history.operations();
    let mut violations = invariants::check(&history);
    violations.extend(open_ends(&history, auditors));
    violations.extend(invariants::streams::check_links(&workload.history.links()));
    for violation in violations {
        world.violation(violation);
    }
}

/// Positions below the end that the audit could not tell: every process runs and no disk has lied, so whatever a crash
/// left behind is restored or filled by now.
fn open_ends(history: &[Operation], auditors: u64) -> Vec<String> {
    let audits = history.iter().filter(|read| read.client >= auditors);
    audits
        .flat_map(Operation::seen)
        .filter(|(_, seen)| matches!(seen, Seen::Unknown | Seen::Unwritten))
        .map(|(position, seen)| format!("position {position} is still {seen:?} in the audit"))
        .collect()
}

/// A control client that was never there before makes the cluster serve again, appends, and reads everything; a reader
/// reads it once more.
async fn look(world: &World, workload: &Workload, cluster: &Cluster) {
    for (name, role) in [("auditor-1", Role::Control), ("auditor-2", Role::Writer)] {
        let process = workload.processes.fetch_add(1, Ordering::Relaxed);
        let node = world.add_client(name, role, 0);
        // What a term in the middle of the inspection would show is no mistake, and nobody would finish one that is begun last.
        let options = Options {
            deadline: RECOVERY_MAX,
            attend: false,
            ..Options::default()
        };
        let log = log(world, node, role, &cluster.layout, options);
        let auditor = Client::new(workload.clone(), process, log.clone());
        let Some(end) = auditor.end().await else {
            return world.violation(format!("{name}: no end after {RECOVERY_MAX:?} of calm"));
        };
        auditor.append(1, &[]).await;
        let Some(end) = auditor.end().await.map(|later| later.max(end)) else {
            return world.violation(format!("{name}: no end after an append"));
        };
        let mut from = Position::FIRST;
        while from < end {
            let count = end.since(from).min(PAGE);
            let Some(next) = auditor.read_from(from, count).await else {
                return world.violation(format!("{name}: position {from} cannot be read"));
            };
            from = next;
        }
        world.note(&format!("{name} read everything below {end}"));
        for stream in STREAMS.map(StreamId::of_name) {
            auditor.read_stream(stream, true).await;
        }
        // H12: looking above the end uses no position up; the inspection sees it if it does.
        let above = log.read(end.plus(3)).await.map(|entry| entry.kind);
        if !matches!(above, Ok(EntryKind::Unwritten)) {
            world.violation(format!("{name}: above the end there is {above:?}"));
        }
        // Nobody may have called a server that was restarted last: who mends looks at all of them.
        if role == Role::Control
            && let Err(error) = reconfigure::mend(&log, "audit", None).await
        {
            world.violation(format!("{name} cannot mend: {error}"));
        }
        inspect(world, &log, end).await;
        if role == Role::Control
            && let Ok(newest) = log.newest_layout().await
        {
            let term = newest.layout.term;
            let history = records::history(log.host(), world, &cluster.layout, term).await;
            for violation in invariants::layouts::check(&history) {
                world.violation(violation);
            }
        }
    }
}
