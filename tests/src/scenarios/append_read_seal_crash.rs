//! The whole log under load while everything fails: clients append, read and trim; any process crashes and comes back,
//! disks lose what was not synced, the network parts. Control clients finish what is left half done. At the end the
//! network is whole, every process runs, and all that was acknowledged has to be there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use milonga_client::{EntryKind, Options, reconfigure};
use milonga_host::BoxFuture;
use milonga_wire::{Position, Role, StreamId};

use super::cluster::{Cluster, Shape, log};
use super::inspection::inspect;
use super::workload::{Client, ClientMachine, STREAMS, Workload};
use crate::history::{History, Operation, Seen};
use crate::invariants;
use crate::sim::nemesis::{Nemesis, Targets};
use crate::sim::{Profile, World};

/// How long a whole cluster whose processes all run may take to serve again.
const RECOVERY_MAX: Duration = Duration::from_secs(120);
/// Longer than any operation of a client goes on.
const QUIET: Duration = Duration::from_secs(60);

/// How many positions the audit reads at a time.
const PAGE: u64 = 256;

/// Plays it.
pub fn play(world: World, profile: Profile) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let random = world.random("scenario");
        let shape = Shape::draw(&random);
        world.note(&format!("{shape:?}"));
        let cluster = match Cluster::start(&world, &profile, &shape).await {
            Ok(cluster) => cluster,
            Err(why) => return world.violation(format!("the cluster does not start: {why}")),
        };
        let workload = Workload {
            world: world.clone(),
            history: History::default(),
            layout: cluster.layout.clone(),
            stop: Arc::new(AtomicBool::new(false)),
            processes: Arc::new(AtomicU64::new(1)),
            trims: random.below(3) == 0,
        };
        world.trouble(profile.network.clone());
        let mut clients = vec![];
        for number in 1..=profile.clients {
            let name = format!("c-{number}");
            // One at least may mend what is broken.
            let role = match number {
                1 => Role::Control,
                _ if random.below(2) == 0 => Role::Control,
                _ => Role::Writer,
            };
            let machine = ClientMachine {
                workload: workload.clone(),
                name: name.parse().expect("a server name"),
                role,
            };
            let client = world.add_server(&name, role, 0, Arc::new(machine));
            if let Err(why) = world.start(client).await {
                world.violation(why);
            }
            clients.push(client);
        }
        let nemesis = Nemesis::start(
            &world,
            &profile,
            &Targets {
                servers: cluster.servers.clone(),
                clients,
                clients_crash: true,
            },
        );
        world.clock().sleep(profile.busy).await;
        nemesis.stop().await;
        workload.stop.store(true, Ordering::Relaxed);
        world.clock().sleep(QUIET).await;
        let auditors = workload.processes.load(Ordering::Relaxed);
        audit(&world, &workload, &cluster).await;
        let history = workload.history.operations();
        for violation in invariants::check(&history) {
            world.violation(violation);
        }
        for violation in open_ends(&history, auditors) {
            world.violation(violation);
        }
        for violation in invariants::streams::check_links(&workload.history.links()) {
            world.violation(violation);
        }
    })
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
async fn audit(world: &World, workload: &Workload, cluster: &Cluster) {
    for (name, role) in [("auditor-1", Role::Control), ("auditor-2", Role::Writer)] {
        let process = workload.processes.fetch_add(1, Ordering::Relaxed);
        let node = world.add_client(name, role, 0);
        let options = Options {
            deadline: RECOVERY_MAX,
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
            && let Err(error) = reconfigure::mend(&log, "audit").await
        {
            world.violation(format!("{name} cannot mend: {error}"));
        }
        inspect(world, &log, end).await;
    }
}
