//! The world of one run: its nodes, what is on its way between them, and what is broken right now.
//!
//! Everything due is kept in one queue ordered by (time, order of sending), because the runtime's timers know whole
//! milliseconds only. One task takes what is due and delivers it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milonga_host::{Clock, Host, Moment, Random, Tasks};
use milonga_wire::{Address, Caller, ClusterId, Position, Request, Role, ServerName, Term};
use tokio::sync::Notify;

use super::faults::{NetworkFaults, flip};
use super::network::{Arrival, SimNetwork, Waiting, deliver};
use super::node::{Machine, Node, NodeId};
use super::trace::Trace;

/// Deliveries after which a run is taken for one that will never end.
const DELIVERIES_MAX: u64 = 20_000_000;

/// Handle to a world; clones are the same world.
#[derive(Clone)]
pub struct World(pub(super) Arc<Shared>);

pub(super) struct Shared {
    seed: u64,
    clock: Clock,
    from: Moment,
    earlier: Notify,
    tasks: Tasks,
    troubled: AtomicBool,
    state: Mutex<State>,
}

pub(super) struct State {
    pub(super) random: Random,
    pub(super) faults: NetworkFaults,
    pub(super) nodes: Vec<Node>,
    pub(super) addresses: BTreeMap<Address, NodeId>,
    pub(super) blocked: BTreeSet<(NodeId, NodeId)>,
    pub(super) calls: BTreeMap<u64, Waiting>,
    pub(super) calls_made: u64,
    /// When the last request of a lane arrives: the next one is not earlier (N3).
    pub(super) lanes: BTreeMap<(NodeId, NodeId, u64), u64>,
    /// Until when a lane stands still, because a request on it does.
    pub(super) held_until: BTreeMap<(NodeId, NodeId, u64), u64>,
    pub(super) trace: Trace,
    /// The end that the first seal of each term told.
    pub(super) seals: BTreeMap<Term, Position>,
    /// Layout servers that may not vote (any more).
    pub(super) voteless: BTreeSet<NodeId>,
    /// Who waits for which request.
    pub(super) trap: Option<Trap>,
    queue: BinaryHeap<Reverse<Due>>,
    sent: u64,
    delivered: u64,
    violations: Vec<String>,
}

/// Somebody waits for a request of some kind.
pub(super) struct Trap {
    matches: fn(&Request) -> bool,
    others: u64,
    notice: Arc<Notify>,
}

/// Something that arrives at a time.
struct Due {
    at_us: u64,
    order: u64,
    what: Arrival,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.order).cmp(&(other.at_us, other.order))
    }
}

impl State {
    /// `what` arrives at `at_us`.
    pub(super) fn schedule(&mut self, at_us: u64, what: Arrival) {
        self.sent += 1;
        self.queue.push(Reverse(Due {
            at_us,
            order: self.sent,
            what,
        }));
    }

    /// Something that must not happen has happened.
    pub(super) fn blame(&mut self, text: String) {
        self.violations.push(text);
    }

    /// `request` arrives: whoever waits for it is told.
    pub(super) fn spring(&mut self, request: &Request) {
        let Some(trap) = self.trap.as_mut().filter(|trap| (trap.matches)(request)) else {
            return;
        };
        if trap.others > 0 {
            trap.others -= 1;
        } else if let Some(trap) = self.trap.take() {
            trap.notice.notify_one();
        }
    }

    /// The node of that id.
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[usize::from(id.0)]
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[usize::from(id.0)]
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds since the run began.
    pub(super) fn now_us(&self) -> u64 {
        self.clock.now().since(self.from).as_micros() as u64
    }

    /// Something was scheduled that may be due before all else.
    pub(super) fn rescheduled(&self) {
        self.earlier.notify_one();
    }
}

impl World {
    /// An empty world in which nothing goes wrong yet. Must be called inside the runtime whose time it lives in.
    pub fn new(seed: u64, print: bool) -> Self {
        let clock = Clock::real();
        let shared = Arc::new(Shared {
            seed,
            from: clock.now(),
            clock,
            earlier: Notify::new(),
            tasks: Tasks::new(),
            troubled: AtomicBool::new(false),
            state: Mutex::new(State {
                random: seeded(seed, "network", 0),
                faults: NetworkFaults::none(),
                nodes: vec![],
                addresses: BTreeMap::new(),
                blocked: BTreeSet::new(),
                calls: BTreeMap::new(),
                calls_made: 0,
                lanes: BTreeMap::new(),
                held_until: BTreeMap::new(),
                trace: Trace::new(print),
                seals: BTreeMap::new(),
                voteless: BTreeSet::new(),
                trap: None,
                queue: BinaryHeap::new(),
                sent: 0,
                delivered: 0,
                violations: vec![],
            }),
        });
        shared.tasks.spawn(drive(Arc::clone(&shared)));
        Self(shared)
    }

    /// The seed of the run.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// A sequence of its own for `purpose`: drawing from it shifts no other.
    pub fn random(&self, purpose: &str) -> Random {
        seeded(self.0.seed, purpose, 0)
    }

    /// True time, which no node sees.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Microseconds since the run began.
    pub fn now_us(&self) -> u64 {
        self.0.now_us()
    }

    /// The cluster that every node's certificate names.
    pub fn cluster(&self) -> ClusterId {
        ClusterId(self.random("cluster").id())
    }

    /// Where a server of that name listens.
    ///
    /// # Panics
    /// If it is no server name.
    pub fn address_of(name: &str) -> Address {
        format!("{name}:7000").parse().expect("a host and a port")
    }

    /// Adds a server, not yet started, at `address`.
    ///
    /// # Panics
    /// If the name is no server name, or the address is taken.
    pub fn add_server(
        &self,
        name: &str,
        role: Role,
        skew_ppm: i32,
        machine: Arc<dyn Machine>,
    ) -> NodeId {
        let address = Self::address_of(name);
        let id = self.add(name, role, skew_ppm, Some(machine), Some(address.clone()));
        let taken = self.0.lock().addresses.insert(address, id);
        assert_eq!(taken, None, "two servers at one address");
        id
    }

    /// Adds a client, which is up at once.
    ///
    /// # Panics
    /// If the name is no server name.
    pub fn add_client(&self, name: &str, role: Role, skew_ppm: i32) -> NodeId {
        let id = self.add(name, role, skew_ppm, None, None);
        self.0.lock().node_mut(id).up = true;
        id
    }

    fn add(
        &self,
        name: &str,
        role: Role,
        skew_ppm: i32,
        machine: Option<Arc<dyn Machine>>,
        address: Option<Address>,
    ) -> NodeId {
        const WALL_MS: u64 = 1_700_000_000_000;
        let name: ServerName = name.parse().expect("a server name");
        let caller = Caller {
            cluster: self.cluster(),
            role,
            name: name.clone(),
        };
        let node = Node {
            name,
            address,
            caller,
            machine,
            clock: Clock::simulated(skew_ppm, WALL_MS),
            boot: 0,
            service: None,
            tasks: Tasks::new(),
            up: false,
            starting: false,
            buried: false,
            requests_left: None,
            frozen_until_us: 0,
            away_until_us: None,
        };
        let mut state = self.0.lock();
        state.nodes.push(node);
        NodeId(state.nodes.len() as u16 - 1)
    }

    /// What the present process of node `id` runs on.
    pub fn host(&self, id: NodeId) -> Host {
        let state = self.0.lock();
        let node = state.node(id);
        Host {
            net: Arc::new(SimNetwork::new(Arc::clone(&self.0), id, node)),
            clock: node.clock.clone(),
            random: seeded(self.0.seed, node.name.as_str(), node.boot),
            tasks: node.tasks.clone(),
        }
    }

    /// Where node `id` listens, if it is a server.
    pub fn address(&self, id: NodeId) -> Option<Address> {
        self.0.lock().node(id).address.clone()
    }

    /// The name of node `id`.
    pub fn name(&self, id: NodeId) -> ServerName {
        self.0.lock().node(id).name.clone()
    }

    /// Whether node `id` has a process.
    pub fn is_up(&self, id: NodeId) -> bool {
        self.0.lock().node(id).up
    }

    /// Whether node `id` runs, or ran, in another process start than its first.
    pub fn has_restarted(&self, id: NodeId) -> bool {
        self.0.lock().node(id).boot > 0
    }

    /// Whether node `id` has been within reach of all others, and awake, for `time`: nobody finds it in trouble.
    pub fn has_been_within_reach(&self, id: NodeId, time: Duration) -> bool {
        let state = self.0.lock();
        let is_cut = |(from, to): &(NodeId, NodeId)| *from == id || *to == id;
        let away_until = state.node(id).away_until_us;
        let due = away_until.map(|until| until + time.as_micros() as u64);
        !state.blocked.iter().any(is_cut) && due.is_none_or(|due| due <= self.0.now_us())
    }

    /// Starts the process of server `id`; does nothing if it runs or starts already.
    ///
    /// # Errors
    /// The machine's.
    pub async fn start(&self, id: NodeId) -> Result<(), String> {
        let (machine, boot) = {
            let mut state = self.0.lock();
            let node = state.node_mut(id);
            if node.up || node.starting || node.buried {
                return Ok(());
            }
            let machine = node.machine.clone().ok_or("a client is no server")?;
            node.starting = true;
            (machine, node.boot)
        };
        let host = self.host(id);
        let started = machine.start(host).await;
        let mut state = self.0.lock();
        let node = state.node_mut(id);
        if node.boot != boot {
            return Ok(()); // It crashed while it started: whoever crashed it starts it again.
        }
        node.starting = false;
        let service = started?;
        (node.service, node.up) = (Some(service), true);
        let text = format!("{} starts", node.name);
        state.trace.line(self.0.now_us(), &text, &[]);
        state
            .trace
            .count(if boot == 0 { "start" } else { "restart" });
        Ok(())
    }

    /// Ends the process of node `id` without warning (V3).
    pub fn crash(&self, id: NodeId) {
        let (service, tasks, machine, random) = {
            let mut state = self.0.lock();
            let node = state.node_mut(id);
            node.boot += 1;
            (node.up, node.starting) = (false, false);
            let service = node.service.take();
            let tasks = std::mem::take(&mut node.tasks);
            let machine = node.machine.clone();
            let random = seeded(self.0.seed, node.name.as_str(), node.boot | 1 << 63);
            let text = format!("{} crashes", node.name);
            state.trace.line(self.0.now_us(), &text, &[]);
            state.trace.count("crash");
            (service, tasks, machine, random)
        };
        // Outside the lock: what ends here may hold handles of this world.
        tasks.abort_all();
        drop(service);
        if let Some(machine) = machine {
            machine.crashed(&random);
        }
    }

    /// Ends the process of node `id` for good: nobody starts it again before [`World::raise`].
    pub fn bury(&self, id: NodeId) {
        self.0.lock().node_mut(id).buried = true;
        self.count("buried");
        if self.is_up(id) || self.0.lock().node(id).starting {
            self.crash(id);
        }
    }

    /// Whether node `id` is gone for good, as far as anybody knows.
    pub fn is_buried(&self, id: NodeId) -> bool {
        self.0.lock().node(id).buried
    }

    /// Whoever is gone for good comes back all the same, with what is on its disk now.
    ///
    /// # Errors
    /// The machine's.
    pub async fn raise(&self, id: NodeId) -> Result<(), String> {
        self.0.lock().node_mut(id).buried = false;
        self.start(id).await
    }

    /// Node `id` crashes once it has sent so many more requests: at any step of whatever it is doing, and within
    /// [`CRASH_WAIT_MAX`](super::network::CRASH_WAIT_MAX) of the last.
    pub fn crash_after(&self, id: NodeId, requests: u64) {
        self.0.lock().node_mut(id).requests_left = Some(requests);
    }

    /// From now on it is a violation if layout server `id` promises or accepts anything.
    pub fn take_vote(&self, id: NodeId) {
        self.0.lock().voteless.insert(id);
    }

    /// Waits until a request that `matches` has arrived anywhere, the one after `others`.
    pub async fn request(&self, matches: fn(&Request) -> bool, others: u64) {
        let notice = Arc::new(Notify::new());
        self.0.lock().trap = Some(Trap {
            matches,
            others,
            notice: Arc::clone(&notice),
        });
        notice.notified().await;
    }

    /// Nothing sent by `from` reaches `to` any more.
    pub fn block(&self, from: NodeId, to: NodeId) {
        let mut state = self.0.lock();
        if state.blocked.insert((from, to)) {
            let text = format!(
                "{} no longer reaches {}",
                state.node(from).name,
                state.node(to).name
            );
            state.trace.line(self.0.now_us(), &text, &[]);
            state.trace.count("partition");
        }
    }

    /// What [`World::block`] stopped flows again.
    pub fn unblock(&self, from: NodeId, to: NodeId) {
        let mut state = self.0.lock();
        if state.blocked.remove(&(from, to)) {
            let text = format!(
                "{} reaches {} again",
                state.node(from).name,
                state.node(to).name
            );
            let now = self.0.now_us();
            state.trace.line(now, &text, &[]);
            for id in [from, to] {
                state.node_mut(id).away_until_us = Some(now);
            }
        }
    }

    /// Node `id` neither sends nor receives for `time`; afterwards all of it arrives.
    pub fn freeze(&self, id: NodeId, time: Duration) {
        let now = self.0.now_us();
        let mut state = self.0.lock();
        let node = state.node_mut(id);
        node.frozen_until_us = now + time.as_micros() as u64;
        node.away_until_us = Some(node.frozen_until_us);
        let text = format!("{} freezes for {} ms", node.name, time.as_millis());
        state.trace.line(now, &text, &[]);
        state.trace.count("freeze");
    }

    /// From now on `faults` happen to messages, and disks may fail.
    pub fn trouble(&self, faults: NetworkFaults) {
        self.0.troubled.store(true, Ordering::Relaxed);
        self.0.lock().faults = faults;
    }

    /// Whether things may go wrong now: after [`World::trouble`], before [`World::calm`].
    pub fn is_troubled(&self) -> bool {
        self.0.troubled.load(Ordering::Relaxed)
    }

    /// Runs `task` for as long as the world lives. It is no part of any node.
    pub fn watch(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.tasks.spawn(task);
    }

    /// The network is whole again and nothing happens to messages from now on. Processes that are down stay down.
    pub fn calm(&self) {
        let now = self.0.now_us();
        self.0.troubled.store(false, Ordering::Relaxed);
        let mut state = self.0.lock();
        state.blocked.clear();
        state.faults = NetworkFaults::none();
        for node in &mut state.nodes {
            node.frozen_until_us = node.frozen_until_us.min(now);
        }
        state.trace.line(now, "calm", &[]);
    }

    /// Adds a line to the trace.
    pub fn note(&self, text: &str) {
        let now = self.0.now_us();
        self.0.lock().trace.line(now, text, &[]);
    }

    /// Counts something worth knowing about a set of runs.
    pub fn count(&self, what: &'static str) {
        self.0.lock().trace.count(what);
    }

    /// Something that must not happen has happened.
    pub fn violation(&self, text: String) {
        self.note(&text);
        self.0.lock().violations.push(text);
    }

    /// Ends the world: every process, and the delivery of messages. Returns what was violated, and the trace.
    pub(super) fn end(&self) -> (Vec<String>, Trace) {
        let nodes = self.0.lock().nodes.len();
        for id in 0..nodes {
            let (service, machine, tasks) = {
                let mut state = self.0.lock();
                let node = state.node_mut(NodeId(id as u16));
                let tasks = std::mem::take(&mut node.tasks);
                (node.service.take(), node.machine.take(), tasks)
            };
            tasks.abort_all();
            // Both may hold handles of this world: it would never be freed.
            drop((service, machine));
        }
        self.0.tasks.abort_all();
        let mut state = self.0.lock();
        state.queue.clear();
        let trace = std::mem::replace(&mut state.trace, Trace::new(false));
        (std::mem::take(&mut state.violations), trace)
    }
}

/// Delivers what is due, in order, for as long as the world lives.
async fn drive(shared: Arc<Shared>) {
    loop {
        let now = shared.now_us();
        let next = {
            let mut state = shared.lock();
            let due_us = state.queue.peek().map(|Reverse(due)| due.at_us);
            match due_us {
                Some(at_us) if at_us <= now => {
                    state.delivered += 1;
                    if state.delivered == DELIVERIES_MAX {
                        let text = format!("the run does not end: {DELIVERIES_MAX} deliveries");
                        state.violations.push(text);
                        return;
                    }
                    Ok(state.queue.pop().map(|Reverse(due)| (due.at_us, due.what)))
                }
                Some(at_us) => Err(Duration::from_micros(at_us - now)),
                None => Err(Duration::from_secs(3_600)),
            }
        };
        match next {
            Ok(what) => {
                if let Some((due_us, what)) = what {
                    deliver(&shared, due_us, what);
                }
                let pause = flip(&shared.lock().random);
                if pause {
                    tokio::task::yield_now().await;
                }
            }
            Err(wait) => {
                tokio::select! {
                    biased;
                    () = shared.earlier.notified() => {}
                    () = shared.clock.sleep(wait) => {}
                }
            }
        }
    }
}

/// The sequence of `seed` for one purpose and count.
fn seeded(seed: u64, purpose: &str, count: u64) -> Random {
    let mut mixed = 0x9e37_79b9_7f4a_7c15_u64 ^ seed;
    for byte in purpose.bytes().chain(count.to_le_bytes()) {
        mixed = (mixed ^ u64::from(byte))
            .wrapping_mul(0x0100_0000_01b3)
            .rotate_left(23);
    }
    Random::seeded(mixed)
}
