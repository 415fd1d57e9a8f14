//! Replicated maps under load while everything fails: processes that host all of them or some write, read, transact, watch
//! and snapshot, and die at any step, between a transaction's record and its decision too. At the end the network is whole
//! and every process runs; a newcomer replays every map from the start, and all that anybody was told is held against that.
//! Then what the newest snapshots do without is trimmed, twice, and each time one more newcomer has to be where all are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use milonga_client::object::{Keys, PlayError, SnapshotError};
use milonga_client::{Log, Options, reconfigure};
use milonga_host::BoxFuture;
use milonga_wire::{Position, Role};

use super::cluster::{Cluster, Shape, log};
use super::map_client::{MapMachine, Shared};
use super::maps::{MAPS, Replica, change_of, contents_now};
use crate::invariants::objects::{self, Truth};
use crate::object_history::{History, Watched};
use crate::sim::faults::pick;
use crate::sim::nemesis::{Nemesis, Targets};
use crate::sim::network::CRASH_WAIT_MAX;
use crate::sim::{NodeId, Profile, World};

/// Longer than any operation of a client goes on, and than any message is late: a late request still takes tokens.
const QUIET: Duration = Duration::from_secs(130);
/// Behind everything.
const END: Position = Position(u64::MAX);
/// How long a whole cluster whose processes all run may take to serve again.
const RECOVERY_MAX: Duration = Duration::from_secs(120);

/// Plays it.
pub fn play(world: World, profile: Profile) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let random = world.random("scenario");
        // A unit that is away is left out; nobody may be who shares a chain with a disk that lies.
        let profile = if profile.lying {
            profile.steadied()
        } else {
            profile
        };
        let shape = Shape::draw(&random);
        world.note(&format!("{shape:?}"));
        let cluster = match Cluster::start(&world, &profile, &shape).await {
            Ok(cluster) => cluster,
            Err(why) => return world.violation(format!("the cluster does not start: {why}")),
        };
        let shared = Shared {
            world: world.clone(),
            history: History::default(),
            layout: cluster.layout.clone(),
            stop: Arc::new(AtomicBool::new(false)),
            processes: Arc::new(AtomicU64::new(1)),
            replicas: Arc::default(),
        };
        world.trouble(profile.network.clone());
        let clients = clients(&shared, 4 + random.below(3)).await;
        let nemesis = Nemesis::start(
            &world,
            &profile,
            &Targets {
                servers: cluster.servers.clone(),
                clients: clients.clone(),
                clients_crash: true,
                spared: cluster.needed(),
            },
        );
        let killer = profile
            .crash_every
            .map(|every| tokio::spawn(kill(shared.clone(), clients, every)));
        world.clock().sleep(profile.busy).await;
        shared.stop.store(true, Ordering::Relaxed);
        if let Some(killer) = killer {
            // One that failed has been reported as a panic.
            let _ = killer.await;
        }
        nemesis.stop().await;
        world.clock().sleep(QUIET).await;
        audit(&shared, &cluster).await;
    })
}

async fn clients(shared: &Shared, count: u64) -> Vec<NodeId> {
    let random = shared.world.random("roles");
    let mut clients = vec![];
    for number in 1..=count {
        let name = format!("c-{number}");
        // One at least may mend what is broken.
        let role = match number {
            1 => Role::Control,
            _ => *pick(&random, &[Role::Control, Role::Writer]),
        };
        let machine = MapMachine {
            shared: shared.clone(),
            name: name.parse().expect("a server name"),
            role,
        };
        let client = shared.world.add_server(&name, role, 0, Arc::new(machine));
        if let Err(why) = shared.world.start(client).await {
            shared.world.violation(why);
        }
        clients.push(client);
    }
    clients
}

/// Clients die after some request or other, which is in the middle of a transaction more often than not, and come back.
async fn kill(shared: Shared, clients: Vec<NodeId>, every: Duration) {
    let (world, random) = (&shared.world, shared.world.random("killer"));
    while !shared.stop.load(Ordering::Relaxed) {
        let victim = *pick(&random, &clients);
        if world.is_up(victim) {
            world.crash_after(victim, 1 + random.below(30));
        }
        world.clock().sleep(random.jittered(every / 2)).await;
        let is_down = !world.is_up(victim);
        if is_down && let Err(why) = world.start(victim).await {
            world.note(&format!("a client does not start: {why}"));
        }
    }
    for client in clients {
        world.crash_after(client, u64::MAX);
    }
    // A crash may be on its way.
    world.clock().sleep(2 * CRASH_WAIT_MAX).await;
}

/// A newcomer replays everything from the start, and everything is held against what it found.
async fn audit(shared: &Shared, cluster: &Cluster) {
    let world = &shared.world;
    let node = world.add_client("auditor", Role::Control, 0);
    let options = Options {
        deadline: RECOVERY_MAX,
        ..Options::default()
    };
    let log = log(world, node, Role::Control, &cluster.layout, options);
    if let Err(error) = reconfigure::mend(&log, "audit", None).await {
        world.note(&format!("the auditor cannot mend: {error}"));
    }
    let newcomer = Replica::new(&log, 0..MAPS, 0..MAPS);
    let truth = match replay(&newcomer).await {
        Ok(truth) => truth,
        Err(why) => return world.violation(format!("the maps cannot be replayed: {why}")),
    };
    let (operations, watches) = (shared.history.operations(), shared.history.watches());
    for violation in objects::check(&truth, &operations, &watches) {
        world.violation(violation);
    }
    let replicas = shared.replicas().clone();
    for ((machine, number), replica) in &replicas {
        compare(world, &truth, &format!("{machine} {number}"), replica).await;
    }
    compare(world, &truth, "the newcomer", &newcomer).await;
    // Who comes after the first trim has nothing but snapshots to make the second ones of.
    let mut last = newcomer;
    for name in ["who came after a trim", "who came after two"] {
        if let Err(why) = trim(&log, &last).await {
            return world.violation(format!("nothing can be trimmed: {why}"));
        }
        last = Replica::new(&log, 0..MAPS, 0..MAPS);
        compare(world, &truth, name, &last).await;
    }
}

async fn replay(newcomer: &Replica) -> Result<Truth, PlayError> {
    let mut changes = vec![];
    for (number, map) in &newcomer.maps {
        let mut watch = map.watch(Keys::all(), Position::FIRST);
        while let Some(change) = watch.next_ready().await? {
            let (at, value) = (change.position, change.value.as_ref());
            changes.push(change_of(*number, at, &change.key, value));
        }
    }
    Ok(Truth::new(changes))
}

/// O2, O3.
async fn compare(world: &World, truth: &Truth, name: &str, replica: &Replica) {
    let mut wrong = vec![];
    for (number, map) in &replica.maps {
        wrong.push(match contents_now(map).await {
            Ok(found) => objects::contents(truth, *number, END, &found),
            Err(why) => Some(format!("map {number} cannot be played: {why}")),
        });
    }
    for (number, tape) in &replica.tapes {
        wrong.push(match tape.read(|tape| tape.told(*number)).await {
            Ok(changes) => {
                let listed = Watched::listed(*number, 0, 0, changes);
                objects::watch(truth, &listed, |_| END)
            }
            Err(why) => Some(format!("the tape of map {number} cannot be played: {why}")),
        });
    }
    for wrong in wrong.into_iter().flatten() {
        world.violation(format!("{wrong}, says {name}"));
    }
}

/// Leaves nothing but what the newest snapshots need.
async fn trim(log: &Log, replica: &Replica) -> Result<(), String> {
    let mut needs = END;
    let failed = |why: SnapshotError| why.to_string();
    for map in replica.maps.values() {
        needs = needs.min(map.view().snapshot().await.map_err(failed)?.needs);
    }
    for tape in replica.tapes.values() {
        needs = needs.min(tape.snapshot().await.map_err(failed)?.needs);
    }
    log.trim(needs).await.map_err(|why| why.to_string())?;
    Ok(())
}
