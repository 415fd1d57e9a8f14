//! Log units die for good, at any moment: between two appends, in front of a seal, in the middle of a copy, when their chain
//! has just been healed. Some come back late, with what they had, or wiped and under their old name, and are not believed.
//! Control clients evict them, take spares, copy and list, several at once and dying themselves; appends and reads go on.
//!
//! A unit dies only while, of every range that it is listed for, somebody else is left who never restarted: what all units
//! of a chain lose together is lost. At the end every chain has to be as long as the units that are left allow, and each
//! unit to hold all that it is listed for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use milonga_client::reconfigure::{self, Change};
use milonga_client::{Log, Options};
use milonga_host::{BoxFuture, Random};
use milonga_wire::{
    Identity, Layout, LayoutRequest, Request, Role, ServerName, UnitRequest, WriteKind,
};
use tokio::task::JoinHandle;

use super::audit::audit;
use super::cluster::{Cluster, Shape, log};
use super::inspection::inspect_whole;
use super::keeper::{KeeperMachine, note};
use super::records;
use super::workload::{ClientMachine, Workload};
use crate::sim::faults::{flip, pick};
use crate::sim::nemesis::{Nemesis, Targets};
use crate::sim::{NodeId, Profile, World};

/// Longer than any operation of a client goes on, and than any message is late: a late request still takes tokens.
const QUIET: Duration = Duration::from_secs(130);
/// Longer than anybody acts on what was found out about a server.
const CHANGE_MAX: Duration = Duration::from_secs(10);
/// How long a cluster may take, when all is quiet, to be as strong as its units allow.
const HEALING_MAX: Duration = Duration::from_secs(120);

/// Plays it.
pub fn play(world: World, profile: Profile) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let random = world.random("scenario");
        // With a disk that forgets beside one that is gone, what is lost is lost.
        let profile = Profile {
            lying: false,
            ..profile
        };
        let shape = Shape {
            layout_servers: *pick(&random, &[3, 3, 1]),
            standbys: random.below(2),
            chains: *pick(&random, &[1, 1, 2]),
            replicas: 3,
            spares: 1 + random.below(2),
            stripe_width: *pick(&random, &[1, 4, 64]),
        };
        world.note(&format!("{shape:?}"));
        let cluster = match Cluster::start(&world, &profile, &shape).await {
            Ok(cluster) => cluster,
            Err(why) => return world.violation(format!("the cluster does not start: {why}")),
        };
        let workload = Workload::new(&world, &cluster.layout, random.below(4) == 0);
        world.trouble(profile.network.clone());
        let clients = clients(&world, &workload, &profile, &random).await;
        let targets = Targets {
            servers: cluster.servers.clone(),
            clients,
            clients_crash: true,
            spared: cluster.servers[2].clone(),
        };
        let nemesis = Nemesis::start(&world, &profile, &targets);
        let cluster = Arc::new(cluster);
        let mut fate = Fate::new(&world, &workload, &cluster, &profile);
        for _ in 0..=random.below(4) {
            fate.strike().await;
        }
        world
            .clock()
            .sleep(Duration::from_millis(random.below(4_000)))
            .await;
        nemesis.stop().await;
        workload.stop.store(true, Ordering::Relaxed);
        world.clock().sleep(QUIET).await;
        for returning in fate.returning {
            // One that failed has been reported as a panic.
            let _ = returning.await;
        }
        let healer = heal_fully(&world, &workload, &cluster).await;
        audit(&world, &workload, &cluster).await;
        // Reading it all has settled what was half done.
        inspect_whole(&world, &healer).await;
    })
}

/// Clients that append and read, and keepers that mend and heal.
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
    for number in 1..=1 + random.below(3) {
        let name = format!("k-{number}");
        let machine = KeeperMachine {
            workload: workload.clone(),
            name: name.parse().expect("a server name"),
        };
        clients.push(world.add_server(&name, Role::Control, 0, Arc::new(machine)));
    }
    for client in &clients {
        if let Err(why) = world.start(*client).await {
            world.violation(why);
        }
    }
    clients
}

/// Decides who dies.
struct Fate {
    world: World,
    workload: Workload,
    cluster: Arc<Cluster>,
    random: Random,
    /// Its client is never troubled, so that it knows the newest layout.
    log: Log,
    /// Who restarted or was gone: it may lack something, so nobody else dies relying on it.
    unsure: BTreeSet<Identity>,
    /// How many have to be left who lack nothing. One, if nothing else can take it out of its chain meanwhile.
    left: usize,
    returning: Vec<JoinHandle<()>>,
}

impl Fate {
    fn new(world: &World, workload: &Workload, cluster: &Arc<Cluster>, profile: &Profile) -> Self {
        let node = world.add_client("fate", Role::Control, 0);
        let options = Options {
            deadline: Duration::from_secs(3),
            ..Options::default()
        };
        Self {
            world: world.clone(),
            workload: workload.clone(),
            cluster: Arc::clone(cluster),
            random: world.random("fate"),
            log: log(world, node, Role::Control, &cluster.layout, options),
            unsure: BTreeSet::new(),
            left: if profile.is_steady() { 1 } else { 2 },
            returning: vec![],
        }
    }

    /// After a while, or at a certain moment, somebody dies.
    async fn strike(&mut self) {
        let clock = self.world.clock().clone();
        let pause = *pick(&self.random, &[0, 1_000, 4_000, 10_000]);
        clock
            .sleep(Duration::from_millis(self.random.below(pause + 1)))
            .await;
        if let Some((matches, what)) = moment(&self.random) {
            let others = self.random.below(4);
            let wait = self.world.request(matches, others);
            if clock.within(Duration::from_secs(4), wait).await.is_ok() {
                self.world.count(what);
            }
        }
        let Ok(newest) = self.log.newest_layout().await else {
            return;
        };
        let layout = &newest.layout;
        let units = layout.units.iter();
        let mortal =
            units.filter(|unit| self.is_up(&unit.name) && self.may_die(layout, unit.identity));
        let mortal: Vec<_> = mortal
            .map(|unit| (unit.identity, unit.name.clone()))
            .collect();
        if mortal.is_empty() {
            return self.world.count("nobody may die");
        }
        let (identity, name) = pick(&self.random, &mortal);
        let node = self.node(name);
        self.unsure.insert(*identity);
        if self.random.below(6) == 0 {
            self.world.crash(node);
            self.world.count("unit restarted");
            return self.come_back(node, false);
        }
        self.world.bury(node);
        match self.random.below(4) {
            0 | 1 => {}
            2 => self.come_back(node, false),
            _ => self.come_back(node, true),
        }
    }

    fn node(&self, name: &ServerName) -> NodeId {
        let mut units = self.cluster.servers[2].iter();
        let node = units.find(|id| self.world.name(**id) == *name);
        *node.expect("a layout lists units of the cluster")
    }

    fn is_up(&self, name: &ServerName) -> bool {
        self.world.is_up(self.node(name))
    }

    /// Whether of every chain that lists `unit` enough others are left.
    fn may_die(&self, layout: &Layout, unit: Identity) -> bool {
        let chains = layout.chains().map(|(chain, _)| chain);
        let mut chains = chains.filter(|chain| chain.units.contains(&unit));
        chains.all(|chain| {
            let others = layout
                .units_of(chain)
                .filter(|other| other.identity != unit);
            let solid = others.filter(|other| {
                let node = self.node(&other.name);
                // Whoever restarted, as after a power failure, may lack something. Whoever was cut off may be left out.
                self.world.is_up(node)
                    && self.world.has_been_within_reach(node, CHANGE_MAX)
                    && !self.world.has_restarted(node)
                    && !self.unsure.contains(&other.identity)
            });
            solid.count() >= self.left
        })
    }

    /// Some time later it is there again; wiped, it may be offered as a spare.
    fn come_back(&mut self, node: NodeId, wiped: bool) {
        let (world, cluster) = (self.world.clone(), Arc::clone(&self.cluster));
        let (workload, log) = (self.workload.clone(), self.log.clone());
        let wait = Duration::from_millis(
            self.random
                .below(*pick(&self.random, &[100, 5_000, 40_000])),
        );
        let offered = wiped && flip(&self.random);
        self.returning.push(tokio::spawn(async move {
            world.clock().sleep(wait).await;
            if wiped {
                cluster.wipe(node);
            }
            world.count(if wiped {
                "back, wiped"
            } else {
                "back as it was"
            });
            if let Err(why) = world.raise(node).await {
                return world.violation(format!("{} does not start: {why}", world.name(node)));
            }
            if !offered {
                return;
            }
            let Ok(spare) = records::present(log.host(), &world, &world.name(node)).await else {
                return;
            };
            let offer = Change {
                spares: vec![spare],
                ..Change::default()
            };
            match reconfigure::change(&log, &offer, "a new disk").await {
                Ok(_) => world.count("offered as a spare"),
                Err(error) => note(&workload, "offer", &error),
            }
        }));
    }
}

/// Which request somebody dies at, and how that is counted.
type Moment = (fn(&Request) -> bool, &'static str);

/// Sometimes the moment is one that takes a guard.
fn moment(random: &Random) -> Option<Moment> {
    match random.below(10) {
        0 => Some((is_copy, "struck at a copy")),
        1 => Some((is_seal, "struck at a seal")),
        2 => Some((is_announcement, "struck at an announcement")),
        3 => Some((is_proposal, "struck at a proposal")),
        4 => Some((is_question_for_a_mark, "struck at a mark")),
        _ => None,
    }
}

fn is_copy(request: &Request) -> bool {
    matches!(
        request,
        Request::Unit(UnitRequest::Write {
            kind: WriteKind::Copy,
            ..
        })
    )
}

fn is_seal(request: &Request) -> bool {
    matches!(request, Request::Unit(UnitRequest::Seal))
}

fn is_announcement(request: &Request) -> bool {
    matches!(request, Request::Unit(UnitRequest::Announce { .. }))
}

fn is_question_for_a_mark(request: &Request) -> bool {
    matches!(request, Request::Unit(UnitRequest::Settled { .. }))
}

fn is_proposal(request: &Request) -> bool {
    matches!(request, Request::Layout(LayoutRequest::Propose { .. }))
}

/// Somebody who was never there before brings the cluster to full strength, and every unit holds what it is listed for.
async fn heal_fully(world: &World, workload: &Workload, cluster: &Cluster) -> Log {
    let node = world.add_client("healer", Role::Control, 0);
    let log = log(
        world,
        node,
        Role::Control,
        &cluster.layout,
        Options::default(),
    );
    let until = world.now_us() + HEALING_MAX.as_micros() as u64;
    loop {
        let mended = reconfigure::mend(&log, "all is quiet", None)
            .await
            .map(|_| ());
        let healed = match mended {
            Ok(()) => reconfigure::heal(&log, "all is quiet").await.map(|_| ()),
            failed => failed,
        };
        if let Err(error) = &healed {
            note(workload, "at last", error);
        }
        let lacking = match log.newest_layout().await {
            Ok(newest) => weakness(world, &log, &newest.layout).await,
            Err(error) => Some(error.to_string()),
        };
        let Some(why) = lacking else { return log };
        if world.now_us() > until {
            let last = healed
                .err()
                .map_or_else(|| "nothing".to_owned(), |error| error.to_string());
            world.violation(format!(
                "not at full strength after {HEALING_MAX:?} of calm: {why}; the last that failed: {last}"
            ));
            return log;
        }
        world.clock().sleep(Duration::from_millis(500)).await;
    }
}

/// Why a cluster is not as strong as the units that run allow.
async fn weakness(world: &World, log: &Log, layout: &Layout) -> Option<String> {
    let mut alive: BTreeSet<Identity> = BTreeSet::new();
    for server in layout.units.iter().chain(&layout.spares) {
        let found = records::describe(log.host(), world, &server.name).await;
        alive.extend(found.ok().map(|found| found.identity));
    }
    if let Some(gap) = reconfigure::gaps(layout).first() {
        return Some(format!("{} lacks {}", gap.unit.name, gap.stripes.span));
    }
    for (chain, stripes) in layout.chains() {
        if chain.unreachable {
            return Some(format!("{} is out of reach", stripes.span));
        }
        let gone = layout
            .units_of(chain)
            .find(|unit| !alive.contains(&unit.identity));
        if let Some(gone) = gone {
            return Some(format!(
                "{} is gone and listed for {}",
                gone.name, stripes.span
            ));
        }
    }
    let replicas = usize::from(layout.settings.replicas);
    let short = layout.open_segment().chains.iter();
    let short = short.filter(|chain| chain.units.len() < replicas).count();
    let ready = layout
        .spares
        .iter()
        .find(|spare| alive.contains(&spare.identity));
    match ready {
        Some(spare) if short > 0 => Some(format!(
            "{short} chains are short, and {} is ready",
            spare.name
        )),
        Some(_) | None => None,
    }
}
