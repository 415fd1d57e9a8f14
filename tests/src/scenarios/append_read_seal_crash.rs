//! The whole log under load while everything fails: clients append, read and trim; any process crashes and comes back,
//! disks lose what was not synced, the network parts. Control clients finish what is left half done. At the end the
//! network is whole, every process runs, and all that was acknowledged has to be there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use milonga_host::BoxFuture;
use milonga_wire::Role;

use super::audit::audit;
use super::cluster::{Cluster, Shape};
use super::workload::{ClientMachine, Workload};
use crate::history::History;
use crate::sim::nemesis::{Nemesis, Targets};
use crate::sim::{Profile, World};

/// Longer than any operation of a client goes on, and than any message is late: a late request still takes tokens.
const QUIET: Duration = Duration::from_secs(130);

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
                spared: cluster.needed(),
            },
        );
        world.clock().sleep(profile.busy).await;
        nemesis.stop().await;
        workload.stop.store(true, Ordering::Relaxed);
        world.clock().sleep(QUIET).await;
        audit(&world, &workload, &cluster).await;
    })
}
