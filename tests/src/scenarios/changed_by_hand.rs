//! An operator changes the cluster by hand while everything fails and clients append: units join, take the places of others
//! and leave, chains come and go, stripes become wider, the sequencer moves, units that left are wiped and offered again.
//! Whatever was written stays on the chain where it was written (I12), and streams are read whole (I9).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use milonga_client::reconfigure::{self, Change};
use milonga_client::{Log, Options};
use milonga_host::{BoxFuture, Random};
use milonga_wire::{Layout, Role, Server};

use super::audit::audit;
use super::cluster::{Cluster, Shape, log};
use super::keeper::{KeeperMachine, note};
use super::records;
use super::workload::{ClientMachine, Workload};
use crate::sim::faults::{flip, pick};
use crate::sim::nemesis::{Nemesis, Targets};
use crate::sim::{NodeId, Profile, World};

/// Longer than any operation of a client goes on, and than any message is late: a late request still takes tokens.
const QUIET: Duration = Duration::from_secs(130);

/// Plays it.
pub fn play(world: World, profile: Profile) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let random = world.random("scenario");
        // Disks that forget may come to stand in one chain, and what all of them forget is lost.
        let profile = Profile {
            lying: false,
            ..profile
        };
        let shape = Shape {
            layout_servers: 3,
            standbys: 1,
            chains: *pick(&random, &[1, 2]),
            replicas: *pick(&random, &[2, 3]),
            spares: 2,
            stripe_width: *pick(&random, &[1, 4, 64]),
        };
        let cluster = match Cluster::start(&world, &profile, &shape).await {
            Ok(cluster) => Arc::new(cluster),
            Err(why) => return world.violation(format!("the cluster does not start: {why}")),
        };
        let workload = Workload::new(&world, &cluster.layout, random.below(4) == 0);
        world.trouble(profile.network.clone());
        let clients = clients(&world, &workload, &profile, &random).await;
        let targets = Targets {
            servers: cluster.servers.clone(),
            clients,
            clients_crash: true,
            spared: vec![],
        };
        let nemesis = Nemesis::start(&world, &profile, &targets);
        let operator = Operator::new(&world, &workload, &cluster);
        let operating = tokio::spawn(operator.work());
        world.clock().sleep(profile.busy).await;
        nemesis.stop().await;
        workload.stop.store(true, Ordering::Relaxed);
        // One that failed has been reported as a panic.
        let _ = operating.await;
        world.clock().sleep(QUIET).await;
        audit(&world, &workload, &cluster).await;
    })
}

async fn clients(
    world: &World,
    workload: &Workload,
    profile: &Profile,
    random: &Random,
) -> Vec<NodeId> {
    let mut clients = vec![];
    for number in 1..=profile.clients.min(3) {
        let name = format!("c-{number}");
        let role = *pick(random, &[Role::Writer, Role::Control]);
        let machine = ClientMachine {
            workload: workload.clone(),
            name: name.parse().expect("a server name"),
            role,
        };
        clients.push(world.add_server(&name, role, 0, Arc::new(machine)));
    }
    let machine = KeeperMachine {
        workload: workload.clone(),
        name: "keeper".parse().expect("a server name"),
    };
    clients.push(world.add_server("keeper", Role::Control, 0, Arc::new(machine)));
    for client in &clients {
        if let Err(why) = world.start(*client).await {
            world.violation(why);
        }
    }
    clients
}

/// Changes one thing after the other.
struct Operator {
    world: World,
    workload: Workload,
    cluster: Arc<Cluster>,
    random: Random,
    log: Log,
}

impl Operator {
    fn new(world: &World, workload: &Workload, cluster: &Arc<Cluster>) -> Self {
        let node = world.add_client("operator", Role::Control, 0);
        let options = Options {
            deadline: Duration::from_secs(3),
            ..Options::default()
        };
        Self {
            world: world.clone(),
            workload: workload.clone(),
            cluster: Arc::clone(cluster),
            random: world.random("operator"),
            log: log(world, node, Role::Control, &cluster.layout, options),
        }
    }

    async fn work(self) {
        while !self.workload.stop.load(Ordering::Relaxed) {
            let pause = Duration::from_millis(self.random.below(1_500));
            self.world.clock().sleep(pause).await;
            let Ok(newest) = self.log.newest_layout().await else {
                continue;
            };
            if self.random.below(4) == 0 {
                self.recycle(&newest.layout).await;
                continue;
            }
            let Some((what, change)) = self.draw(&newest.layout) else {
                continue;
            };
            match reconfigure::change(&self.log, &change, what).await {
                Ok(_) => self.world.count(what),
                Err(error) => note(&self.workload, what, &error),
            }
        }
    }

    /// A change that makes sense at first sight.
    fn draw(&self, layout: &Layout) -> Option<(&'static str, Change)> {
        let open = &layout.open_segment().chains;
        let spare = || {
            let choice = (!layout.spares.is_empty()).then(|| pick(&self.random, &layout.spares));
            choice.cloned()
        };
        let chain = self.random.below(open.len() as u64) as usize;
        let unit = *pick(&self.random, &open[chain].units);
        Some(match self.random.below(9) {
            0 => (
                "join",
                Change {
                    join: vec![(chain, spare()?)],
                    ..Change::default()
                },
            ),
            1 | 2 => (
                "replace",
                Change {
                    replace: BTreeMap::from([(unit, spare()?)]),
                    ..Change::default()
                },
            ),
            3 => (
                "chain added",
                Change {
                    chains: vec![vec![spare()?]],
                    ..Change::default()
                },
            ),
            4 if open.len() > 1 => (
                "chain removed",
                Change {
                    without: BTreeSet::from([chain]),
                    ..Change::default()
                },
            ),
            4 | 5 => (
                "stripe width",
                Change {
                    stripe_width: Some(*pick(&self.random, &[1, 2, 4, 16, 64])),
                    ..Change::default()
                },
            ),
            6 => (
                "sequencer moved",
                Change {
                    sequencer: layout.standbys.first().map(|standby| standby.name.clone()),
                    ..Change::default()
                },
            ),
            _ => (
                "unit left",
                Change {
                    leave: BTreeSet::from([unit]),
                    heal: flip(&self.random),
                    ..Change::default()
                },
            ),
        })
    }

    /// A unit that no layout lists any more gets a new disk, and is offered as a spare.
    async fn recycle(&self, layout: &Layout) {
        let named = |node: &&NodeId| {
            let name = self.world.name(**node);
            let mut all = layout.units.iter().chain(&layout.spares);
            all.any(|server: &Server| server.name == name)
        };
        let units = self.cluster.servers[2].iter();
        let left: Vec<&NodeId> = units.filter(|node| !named(node)).collect();
        if left.is_empty() {
            return;
        }
        let node = **pick(&self.random, &left);
        self.world.crash(node);
        self.cluster.wipe(node);
        if let Err(why) = self.world.start(node).await {
            return self.world.violation(why);
        }
        let name = self.world.name(node);
        let Ok(spare) = records::present(self.log.host(), &self.world, &name).await else {
            return;
        };
        let offer = Change {
            spares: vec![spare],
            ..Change::default()
        };
        match reconfigure::change(&self.log, &offer, "a new disk").await {
            Ok(_) => self.world.count("offered as a spare"),
            Err(error) => note(&self.workload, "offer", &error),
        }
    }
}
