//! Replicated maps under load while everything fails: processes that host all of them or some write, read, transact, watch
//! and snapshot, and die at any step, between a transaction's record and its decision too. At the end the network is whole
//! and every process runs; a newcomer replays every map from the start, and all that anybody was told is held against that.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use milonga_client::object::{Keys, PlayError};
use milonga_client::{Options, reconfigure};
use milonga_host::BoxFuture;
use milonga_wire::{Position, Role};

use super::cluster::{Cluster, Shape, log};
use super::map_client::{MAPS, MapMachine, Replica, Shared, change_of, contents_of};
use crate::invariants::objects::{self, Truth};
use crate::object_history::History;
use crate::sim::faults::pick;
use crate::sim::nemesis::{Nemesis, Targets};
use crate::sim::{NodeId, Profile, World};

/// Longer than any operation of a client goes on, and than any message is late: a late request still takes tokens.
const QUIET: Duration = Duration::from_secs(130);
/// How long a whole cluster whose processes all run may take to serve again.
const RECOVERY_MAX: Duration = Duration::from_secs(120);
/// Longer than a process lives on after the request that it dies of.
const CRASH_MAX: Duration = Duration::from_secs(5);

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
    world.clock().sleep(CRASH_MAX).await;
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
    let newcomer = Replica::new(&log, 0..MAPS);
    let truth = match replay(&newcomer).await {
        Ok(truth) => truth,
        Err(why) => return world.violation(format!("the maps cannot be replayed: {why}")),
    };
    let mut replicas = shared
        .replicas
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    // It starts from snapshots, where there are some.
    replicas.insert("auditor".to_owned(), newcomer);
    compare(world, &truth, &replicas).await;
    let (operations, watches) = (shared.history.operations(), shared.history.watches());
    for violation in objects::check(&truth, &operations, &watches) {
        world.violation(violation);
    }
}

async fn replay(newcomer: &Replica) -> Result<Truth, PlayError> {
    let mut changes = vec![];
    for (number, map) in &newcomer.maps {
        let mut watch = map.watch(Keys::all(), Position::FIRST);
        while let Some(change) = watch.next_ready().await? {
            changes.push(change_of(*number, &change));
        }
    }
    Ok(Truth::new(changes))
}

/// O2.
async fn compare(world: &World, truth: &Truth, replicas: &BTreeMap<String, Replica>) {
    for (name, replica) in replicas {
        for (number, map) in &replica.maps {
            match map.view().read(contents_of).await {
                Ok(found) => {
                    let wrong = objects::contents(truth, *number, Position(u64::MAX), &found);
                    if let Some(wrong) = wrong {
                        world.violation(format!("{wrong}, says {name}"));
                    }
                }
                Err(why) => world.violation(format!("{name} cannot play map {number}: {why}")),
            }
        }
    }
}
