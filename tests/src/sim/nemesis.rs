//! What goes wrong in a run, and when: crashes, partitions and freezes, drawn from the seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use milonga_host::{Clock, Random};
use tokio::task::JoinHandle;

use super::faults::{Profile, chance, flip, pick};
use super::node::NodeId;
use super::world::World;

/// Whom a nemesis troubles.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    /// Servers, by kind.
    pub servers: Vec<Vec<NodeId>>,
    /// Clients.
    pub clients: Vec<NodeId>,
    /// Whether clients crash too (and start again): they have machines.
    pub clients_crash: bool,
    /// Whose processes do not crash: the scenario sees to them.
    pub spared: Vec<NodeId>,
}

impl Targets {
    fn all(&self) -> Vec<NodeId> {
        let servers = self.servers.iter().flatten();
        servers.chain(&self.clients).copied().collect()
    }

    fn victims(&self) -> Vec<NodeId> {
        let clients = self.clients.iter().filter(|_| self.clients_crash);
        let all = self.servers.iter().flatten().chain(clients).copied();
        all.filter(|victim| !self.spared.contains(victim)).collect()
    }

    /// Whom a partition parts from the rest: half of all, one node with a few others, or one server with clients that
    /// still reach it. Kinds are drawn first, so that the few are met as often as the many.
    fn draw(&self, random: &Random) -> Vec<NodeId> {
        let nodes = self.all();
        let kind = pick(random, &self.servers);
        let server = *pick(random, kind);
        let anyone = *pick(random, &nodes);
        let (first, joins_ppm, among) = match random.below(4) {
            0 => (anyone, 500_000, &nodes),
            1 => (anyone, 0, &nodes),
            2 => (server, 150_000, &nodes),
            _ => (server, 500_000, &self.clients),
        };
        let others = among.iter().copied().filter(|node| *node != first);
        let joining = others.filter(|_| chance(random, joins_ppm));
        std::iter::once(first).chain(joining).collect()
    }
}

/// Troubles a world until it is stopped.
pub struct Nemesis {
    world: World,
    victims: Vec<NodeId>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Nemesis {
    /// Starts to crash, part and freeze `targets`, as often as the profile says.
    pub fn start(world: &World, profile: &Profile, targets: &Targets) -> Self {
        let victims = targets.victims();
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = vec![];
        if let Some(every) = profile.crash_every {
            let trouble = Trouble::new(world, &stop, "crashes", every);
            tasks.push(tokio::spawn(
                trouble.crash(victims.clone(), profile.down_max),
            ));
        }
        if let Some(every) = profile.partition_every {
            let trouble = Trouble::new(world, &stop, "partitions", every);
            let (longest, one_way) = (profile.partition_max, profile.one_way);
            tasks.push(tokio::spawn(trouble.part(
                targets.clone(),
                longest,
                one_way,
            )));
        }
        if let Some(every) = profile.freeze_every {
            let trouble = Trouble::new(world, &stop, "freezes", every);
            tasks.push(tokio::spawn(
                trouble.freeze(targets.all(), profile.freeze_max),
            ));
        }
        Self {
            world: world.clone(),
            victims,
            stop,
            tasks,
        }
    }

    /// Ends all trouble: the network is whole, every process runs again.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            // Each stops at its next move; one that failed has been reported as a panic.
            let _ = task.await;
        }
        self.world.calm();
        for victim in self.victims {
            restart(&self.world, victim).await;
        }
    }
}

/// One kind of trouble.
struct Trouble {
    world: World,
    clock: Clock,
    random: Random,
    stop: Arc<AtomicBool>,
    every: Duration,
}

impl Trouble {
    fn new(world: &World, stop: &Arc<AtomicBool>, kind: &str, every: Duration) -> Self {
        Self {
            world: world.clone(),
            clock: world.clock().clone(),
            random: world.random(kind),
            stop: Arc::clone(stop),
            every,
        }
    }

    /// Waits for the next time; false once it is over.
    async fn next(&self) -> bool {
        let wait = Duration::from_millis(self.random.below(2 * self.every.as_millis() as u64));
        self.pause(wait).await
    }

    /// Waits in small steps, so that an end is noticed soon; false once it is over.
    async fn pause(&self, mut wait: Duration) -> bool {
        const STEP: Duration = Duration::from_millis(100);
        while !wait.is_zero() && !self.stop.load(Ordering::Relaxed) {
            let step = wait.min(STEP);
            self.clock.sleep(step).await;
            wait -= step;
        }
        !self.stop.load(Ordering::Relaxed)
    }

    async fn crash(self, victims: Vec<NodeId>, down_max: Duration) {
        let mut down: Vec<(NodeId, Duration)> = vec![];
        while self.next().await {
            let victim = *pick(&self.random, &victims);
            let wait = Duration::from_millis(self.random.below(down_max.as_millis() as u64 + 1));
            if self.world.is_up(victim) {
                self.world.crash(victim);
                down.push((victim, wait));
            }
            // One process is away at a time in half of the crashes, several in the others.
            if flip(&self.random) {
                for (victim, wait) in std::mem::take(&mut down) {
                    if !self.pause(wait).await {
                        return;
                    }
                    restart(&self.world, victim).await;
                }
            }
        }
    }

    async fn part(self, targets: Targets, longest: Duration, one_way: bool) {
        let nodes = targets.all();
        while self.next().await {
            let apart = targets.draw(&self.random);
            let both = !(one_way && flip(&self.random));
            let wait = Duration::from_millis(self.random.below(longest.as_millis() as u64 + 1));
            let mut pairs = vec![];
            for inside in &apart {
                for outside in nodes.iter().filter(|node| !apart.contains(node)) {
                    pairs.push((*inside, *outside));
                    if both {
                        pairs.push((*outside, *inside));
                    }
                }
            }
            for (from, to) in &pairs {
                self.world.block(*from, *to);
            }
            self.pause(wait).await;
            for (from, to) in &pairs {
                self.world.unblock(*from, *to);
            }
        }
    }

    async fn freeze(self, nodes: Vec<NodeId>, longest: Duration) {
        while self.next().await {
            let wait = Duration::from_millis(1 + self.random.below(longest.as_millis() as u64));
            self.world.freeze(*pick(&self.random, &nodes), wait);
        }
    }
}

/// Starts a crashed process; that it does not start is a violation.
async fn restart(world: &World, id: NodeId) {
    if let Err(why) = world.start(id).await {
        let name = world.name(id);
        world.violation(format!("{name} does not start again: {why}"));
    }
}
