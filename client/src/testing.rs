//! A cluster in memory, for tests: layout servers, sequencers, and chains of log units that keep to the wire's rules.
//!
//! Plain maps behind a [`Network`]: no disk, no batches, no pages. Requests are served one at a time; a [`Rule`] may lose,
//! hold or refuse any of them, and [`Cluster::seen`] counts what arrived. A request that was sent is served even if its
//! caller gave up, as on a real network.

mod layout;
mod replies;
mod sequencer;
mod through;
mod unit;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milonga_host::net::Request as NetRequest;
use milonga_host::net::Response;
use milonga_host::{BoxFuture, CallError, Clock, Host, Network, Peer, Random, Tasks};
use milonga_wire::{
    Address, Caller, Chain, ClusterId, Decided, Identity, Incarnation, Kind, Layout, LayoutRequest,
    Origin, Payload, Position, Refusal, Reply, Report, Request, RequestHead, Role, Segment,
    SequencerReply, SequencerRequest, Server, ServerName, Settings, StreamId, Term, Token,
    UnitRequest, WriteKind, admit,
};
use tokio::sync::{Semaphore, oneshot};

use self::layout::{LayoutServer, LayoutServers};
use self::replies::{described, wrong_kind};
pub(crate) use self::unit::Slot;
use self::{sequencer::Sequencer, unit::Room, unit::Unit};
use crate::log::Log;
use crate::options::Options;
use crate::reconfigure;

/// What one way through the network takes: what tokio's paused clock can tell apart.
const LATENCY: Duration = Duration::from_millis(1);
/// When all begins: some day in 2026.
const WALL_MS: u64 = 1_780_000_000_000;
const CLUSTER: ClusterId = ClusterId([9; 16]);

/// What happens to a request.
pub(crate) enum Fault {
    /// It is served, and its reply is lost.
    LoseReply,
    /// It is lost.
    LoseRequest,
    /// The server cannot be reached.
    Down,
    /// It waits at the gate, then is served.
    Hold(Gate),
    /// It is served, and its reply waits at the gate.
    HoldReply(Gate),
    /// The server refuses.
    Refuse(Refusal),
}

/// Decides what happens to a request to a server; the first rule that answers counts.
pub(crate) type Rule = Box<dyn FnMut(&str, &Request) -> Option<Fault> + Send>;

/// Where held requests wait.
#[derive(Clone)]
pub(crate) struct Gate {
    arrived: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Gate {
    pub(crate) fn new() -> Self {
        let closed = || Arc::new(Semaphore::new(0));
        Self {
            arrived: closed(),
            open: closed(),
        }
    }

    /// Waits until one more request stands at the gate.
    pub(crate) async fn arrived(&self) {
        self.arrived.acquire().await.unwrap().forget();
    }

    /// Lets everything through from now on.
    pub(crate) fn open(&self) {
        self.open.close();
    }

    async fn pass(&self) {
        self.arrived.add_permits(1);
        let _ = self.open.acquire().await;
    }
}

/// A request that a server was sent.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) server: String,
    pub(crate) request: Request,
}

struct State {
    layout: LayoutServers,
    sequencers: BTreeMap<ServerName, Sequencer>,
    units: BTreeMap<ServerName, Unit>,
    rules: Vec<Rule>,
    /// Who does not reach whom, by name.
    cuts: BTreeSet<(String, String)>,
    seen: Vec<Seen>,
    /// Numbers process starts and clients.
    numbers: u64,
}

/// The cluster. Clones share it.
#[derive(Clone)]
pub(crate) struct Cluster {
    clock: Clock,
    tasks: Tasks,
    state: Arc<Mutex<State>>,
}

fn server(name: &str, number: u8) -> Server {
    let name: ServerName = name.parse().unwrap();
    Server {
        address: format!("127.0.0.1:{}", 7000 + u16::from(number))
            .parse()
            .unwrap(),
        identity: Identity([number; 16]),
        incarnation: Incarnation(u64::from(number)),
        name,
    }
}

/// Layout server `l-0`, which is 1, or one of those after it, which are 4 and up: sequencers are 2 and 3.
fn layout_server(index: u8) -> Server {
    let number = if index == 0 { 1 } else { 3 + index };
    server(&format!("l-{index}"), number)
}

impl Cluster {
    /// `chains` chains of `replicas` units (`u-00` is the head of the first, `u-01` behind it), in stripes of `width`;
    /// layout server `l-0`, sequencer `q-0`, standby `q-1`.
    pub(crate) fn new(chains: u8, replicas: u8, width: u32) -> Self {
        Self::with_layout_servers(chains, replicas, width, 1)
    }

    /// The same with layout servers `l-0` to `l-4` at most.
    pub(crate) fn with_layout_servers(chains: u8, replicas: u8, width: u32, count: u8) -> Self {
        let units: Vec<Vec<Server>> = (0..chains)
            .map(|chain| {
                (0..replicas)
                    .map(|unit| server(&format!("u-{chain}{unit}"), 10 + chain * replicas + unit))
                    .collect()
            })
            .collect();
        let segment = Segment {
            start: Position::FIRST,
            end: None,
            stripe_width: width,
            chains: units
                .iter()
                .map(|chain| Chain::new(chain.iter().map(|unit| unit.identity).collect()))
                .collect(),
        };
        let layout = Layout {
            cluster: CLUSTER,
            term: Term::GENESIS,
            layout_servers: (0..count).map(layout_server).collect(),
            sequencer: server("q-0", 2),
            standbys: vec![server("q-1", 3)],
            units: units.concat(),
            segments: vec![segment],
            spares: vec![],
            lost: vec![],
            left: vec![],
            settings: Settings {
                replicas: u16::from(replicas),
                trust_restarted: true,
            },
            origin: Origin::default(),
        };
        layout.validate().unwrap();
        let decided = Decided {
            layout: layout.clone(),
            acceptances: vec![],
        };
        let sequencers = [
            Sequencer::serving(layout.sequencer.clone(), &decided),
            Sequencer::blank(layout.standbys[0].clone()),
        ];
        let state = State {
            layout: LayoutServers::new(&decided),
            sequencers: sequencers
                .into_iter()
                .map(|one| (one.server.name.clone(), one))
                .collect(),
            units: layout
                .units
                .iter()
                .map(|unit| (unit.name.clone(), Unit::member(unit.clone())))
                .collect(),
            rules: vec![],
            cuts: BTreeSet::new(),
            seen: vec![],
            numbers: 100,
        };
        Self {
            clock: Clock::simulated(0, WALL_MS),
            tasks: Tasks::new(),
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client with a certificate of `role`.
    pub(crate) fn client(&self, role: Role) -> Log {
        self.client_with(role, Options::default())
    }

    /// A client with a certificate of `role`, told to wait as `options` says.
    pub(crate) fn client_with(&self, role: Role, options: Options) -> Log {
        let first = layout_server(0).address;
        self.client_from(role, options, vec![first])
    }

    /// The same, configured with the addresses of these layout servers.
    pub(crate) fn client_from(&self, role: Role, options: Options, from: Vec<Address>) -> Log {
        let number = self.number();
        let caller = Caller {
            cluster: CLUSTER,
            role,
            name: format!("client-{number}").parse().unwrap(),
        };
        let wire = Wire {
            cluster: self.clone(),
            caller: caller.clone(),
        };
        let host = Host {
            net: Arc::new(wire),
            clock: self.clock.clone(),
            random: Random::seeded(number),
            tasks: Tasks::new(),
        };
        Log::new(host, caller, from, options)
    }

    fn number(&self) -> u64 {
        let mut state = self.state();
        state.numbers += 1;
        state.numbers
    }

    /// From now on `rule` is asked first.
    pub(crate) fn rule(&self, rule: impl FnMut(&str, &Request) -> Option<Fault> + Send + 'static) {
        self.state().rules.insert(0, Box::new(rule));
    }

    /// From now on nothing that `from` sends to `to` arrives: one direction of one link. `from` is a client, by the name
    /// of its certificate, or `l-0`, which calls those on whom it has an opinion.
    pub(crate) fn cut(&self, from: &str, to: &str) {
        self.state().cuts.insert((from.to_owned(), to.to_owned()));
    }

    /// Every request is served again.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.cuts.clear();
    }

    /// How many requests arrived that `which` picks.
    pub(crate) fn count(&self, mut which: impl FnMut(&Seen) -> bool) -> usize {
        self.state().seen.iter().filter(|seen| which(seen)).count()
    }

    /// How many requests of `verb` arrived at servers whose names start with `server`.
    pub(crate) fn seen(&self, server: &str, verb: &str) -> usize {
        self.count(|seen| seen.server.starts_with(server) && seen.request.verb() == verb)
    }

    /// Forgets what arrived.
    pub(crate) fn forget(&self) {
        self.state().seen.clear();
    }

    /// What `unit` holds at `position`.
    pub(crate) fn slot(&self, unit: &str, position: u64) -> Option<Slot> {
        self.unit(unit, |unit| unit.slot(Position(position)))
    }

    /// Puts something at a position of one unit, as a damaged or hostile one might.
    pub(crate) fn put(&self, unit: &str, position: u64, slot: Option<Slot>) {
        self.unit(unit, |unit| unit.put(Position(position), slot));
    }

    /// The index of `unit` does not tell of `position`.
    pub(crate) fn forget_index(&self, unit: &str, position: u64) {
        self.unit(unit, |unit| unit.forget_index(Position(position)));
    }

    /// `unit` cannot tell what it held at `position`.
    pub(crate) fn damage(&self, unit: &str, position: u64) {
        self.unit(unit, |unit| unit.damage(Position(position)));
    }

    /// The disk of `unit` failed: it says so, reads, and does nothing else.
    pub(crate) fn fail_disk(&self, unit: &str) {
        self.unit(unit, |unit| unit.failed = true);
    }

    /// `unit` runs on another directory, which is not empty.
    pub(crate) fn change_identity(&self, unit: &str) {
        let number = self.number();
        self.unit(unit, |unit| {
            unit.server.identity = Identity([number as u8; 16]);
        });
    }

    /// `unit` does not know of its last trim any more, as after a restart on a disk that lied about it.
    pub(crate) fn forget_trim(&self, unit: &str) {
        self.unit(unit, Unit::forget_trim);
    }

    pub(crate) fn trimmed(&self, unit: &str) -> Position {
        self.unit(unit, |unit| unit.trimmed())
    }

    /// `unit` has no room for records any more, or has some again.
    pub(crate) fn full(&self, unit: &str, is_full: bool) {
        let room = if is_full { Room::None } else { Room::Plenty };
        self.unit(unit, |unit| unit.room = room);
    }

    /// `unit` has only its reserve left.
    pub(crate) fn in_reserve(&self, unit: &str) {
        self.unit(unit, |unit| unit.room = Room::Reserve);
    }

    fn unit<T>(&self, name: &str, act: impl FnOnce(&mut Unit) -> T) -> T {
        let name: ServerName = name.parse().unwrap();
        act(self.state().units.get_mut(&name).unwrap())
    }

    /// The sequencer of that name is a new process.
    pub(crate) fn restart_sequencer(&self, name: &str) {
        let incarnation = Incarnation(self.number());
        let name: ServerName = name.parse().unwrap();
        let mut state = self.state();
        let sequencer = state.sequencers.get_mut(&name).unwrap();
        *sequencer = Sequencer::blank(Server {
            incarnation,
            ..sequencer.server.clone()
        });
    }

    /// A blank unit comes up, which no layout names yet.
    pub(crate) fn add_unit(&self, name: &str) -> Server {
        let number = self.number() as u8;
        let server = server(name, number);
        let unit = Unit::blank(server.clone());
        self.state().units.insert(server.name.clone(), unit);
        server
    }

    /// A blank layout server comes up, which no layout names yet.
    pub(crate) fn add_layout_server(&self, name: &str) -> Server {
        let server = server(name, self.number() as u8);
        let one = LayoutServer::blank(server.clone());
        let mut state = self.state();
        state.layout.servers.insert(server.name.clone(), one);
        server
    }

    /// The directory of a layout server is wiped: it is another server, at the same address.
    pub(crate) fn wipe_layout_server(&self, name: &str) {
        let identity = Identity([self.number() as u8; 16]);
        let name: ServerName = name.parse().unwrap();
        let mut state = self.state();
        let one = state.layout.servers.get_mut(&name).unwrap();
        let server = Server {
            identity,
            ..one.server.clone()
        };
        *one = LayoutServer::blank(server);
    }

    /// The newest term that the layout server of that name knows.
    pub(crate) fn knows(&self, name: &str) -> Option<Term> {
        let name: ServerName = name.parse().unwrap();
        let state = self.state();
        let newest = state.layout.servers[&name].newest();
        newest.map(|newest| newest.layout.term)
    }

    /// A sequencer comes up that no layout names yet.
    pub(crate) fn add_sequencer(&self, name: &str) -> Server {
        let server = server(name, self.number() as u8);
        let one = Sequencer::blank(server.clone());
        self.state().sequencers.insert(server.name.clone(), one);
        server
    }

    /// The unit of that name is a new process: it holds what it held, and cannot tell about the rest.
    pub(crate) fn restart_unit(&self, name: &str) {
        let incarnation = Incarnation(self.number());
        self.unit(name, |unit| unit.restart(incarnation));
    }

    /// What clients reported to the layout server.
    pub(crate) fn reports(&self) -> Vec<Report> {
        let state = self.state();
        let servers = state.layout.servers.values();
        servers.flat_map(|one| one.reports.clone()).collect()
    }

    /// The newest decided layout.
    pub(crate) fn layout(&self) -> Layout {
        self.state().layout.newest().layout.clone()
    }

    /// Another control client makes the next term.
    pub(crate) async fn next_term(&self) -> Layout {
        let control = self.client(Role::Control);
        let decided = reconfigure::rebuild(&control, "a test asked for it")
            .await
            .unwrap();
        decided.layout.clone()
    }

    /// `log` takes `count` positions in `streams` and never writes to them: what a writer that dies leaves behind.
    pub(crate) async fn burn(&self, log: &Log, count: u32, streams: &[StreamId]) -> Token {
        let decided = log.layout().await.unwrap();
        let layout = &decided.layout;
        let request = SequencerRequest::Tokens {
            count,
            streams: streams.to_vec(),
        };
        let asked = log
            .shared
            .calls
            .sequencer(&layout.sequencer, layout.term, request);
        match asked.await.unwrap() {
            SequencerReply::Token(token) => token,
            other => panic!("{other:?}"),
        }
    }

    fn serve(&self, caller: &Caller, address: &Address, request: NetRequest) -> Response {
        let (head, payload) = (request.head, request.payload);
        let mut state = self.state();
        match state.serve(caller, address, head, payload) {
            Ok((reply, payload)) => Response {
                reply: Ok(reply),
                payload,
            },
            Err(refusal) => Response {
                reply: Err(refusal),
                payload: Payload::new(),
            },
        }
    }
}

impl State {
    fn name(&self, address: &Address) -> Option<ServerName> {
        let sequencers = self.sequencers.values().map(|one| &one.server);
        let units = self.units.values().map(|one| &one.server);
        let layout = self.layout.servers.values().map(|one| &one.server);
        layout
            .chain(sequencers)
            .chain(units)
            .find(|server| server.address == *address)
            .map(|server| server.name.clone())
    }

    /// What happens to a request of `from`.
    fn arrive(&mut self, from: &ServerName, address: &Address, request: &Request) -> Option<Fault> {
        let server = self.name(address)?.to_string();
        if self.cuts.contains(&(from.to_string(), server.clone())) {
            return Some(Fault::LoseRequest);
        }
        let mut rules = self.rules.iter_mut();
        let fault = rules.find_map(|rule| rule(&server, request));
        self.seen.push(Seen {
            server,
            request: request.clone(),
        });
        fault
    }

    fn serve(
        &mut self,
        caller: &Caller,
        address: &Address,
        head: RequestHead,
        payload: Payload,
    ) -> Result<(Reply, Payload), Refusal> {
        let name = self.name(address).expect("a server listens there");
        if let Some(unit) = self.units.get_mut(&name) {
            admit(
                caller,
                &head,
                CLUSTER,
                unit.server.identity,
                Some(unit.server.incarnation),
            )?;
            let (server, term) = (unit.server.clone(), unit.term);
            return match head.request {
                Request::Describe => {
                    let (is_blank, spoken) = (unit.is_blank(), [unit.end(), unit.trimmed()]);
                    let (mut reply, payload) = described(
                        &server,
                        Kind::LogUnit,
                        term,
                        is_blank,
                        spoken,
                        unit.damaged(),
                    );
                    if let Reply::Described(said) = &mut reply {
                        said.state = unit.condition().to_owned();
                    }
                    Ok((reply, payload))
                }
                Request::Unit(request) => {
                    let (reply, payload) = unit.serve(head.term, request, payload)?;
                    Ok((Reply::Unit(reply), payload))
                }
                Request::Sequencer(_) | Request::Layout(_) => Err(wrong_kind()),
            };
        }
        if let Some(sequencer) = self.sequencers.get_mut(&name) {
            admit(
                caller,
                &head,
                CLUSTER,
                sequencer.server.identity,
                Some(sequencer.server.incarnation),
            )?;
            let (server, term) = (sequencer.server.clone(), sequencer.term);
            return match head.request {
                Request::Describe => {
                    let spoken = [sequencer.counter().unwrap_or_default(), Position::FIRST];
                    let is_blank = sequencer.counter().is_none();
                    Ok(described(
                        &server,
                        Kind::Sequencer,
                        term,
                        is_blank,
                        spoken,
                        0,
                    ))
                }
                Request::Sequencer(request) => {
                    let reply = sequencer.serve(head.term, request, &self.layout)?;
                    Ok((Reply::Sequencer(reply), Payload::new()))
                }
                Request::Unit(_) | Request::Layout(_) => Err(wrong_kind()),
            };
        }
        let Some(layout) = self.layout.servers.get_mut(&name) else {
            unreachable!("{name} is a layout server")
        };
        admit(caller, &head, CLUSTER, layout.server.identity, None)?;
        if let Request::Layout(LayoutRequest::Opinion { of, kind }) = &head.request {
            let opinion = self.opinion(name, of, *kind, head.term)?;
            return Ok((Reply::Layout(opinion), Payload::new()));
        }
        if let Request::Layout(LayoutRequest::Relay { to, request }) = head.request {
            let brought = self.relay(name, &to, request, head.term)?;
            return Ok((Reply::Layout(brought), Payload::new()));
        }
        match head.request {
            Request::Describe => {
                let newest = layout.newest().map(|newest| newest.layout.term);
                let (server, term) = (layout.server.clone(), newest.unwrap_or_default());
                let (kind, is_blank) = (Kind::Layout, newest.is_none());
                Ok(described(
                    &server,
                    kind,
                    term,
                    is_blank,
                    [Position::FIRST; 2],
                    0,
                ))
            }
            Request::Layout(request) => {
                let reply = layout.serve(head.term, request)?;
                Ok((Reply::Layout(reply), Payload::new()))
            }
            Request::Unit(_) | Request::Sequencer(_) => Err(wrong_kind()),
        }
    }
}

/// One client's way to the cluster.
struct Wire {
    cluster: Cluster,
    caller: Caller,
}

impl Network for Wire {
    fn call<'a>(
        &'a self,
        peer: &'a Peer,
        request: NetRequest,
        within: Duration,
    ) -> BoxFuture<'a, Result<Response, CallError>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let (cluster, caller, peer_sent) =
                (self.cluster.clone(), self.caller.clone(), peer.clone());
            self.cluster.tasks.spawn(async move {
                let _ = answer.send(deliver(cluster, caller, peer_sent, request).await);
            });
            let waited = self.cluster.clock.within(within, answered).await;
            match waited {
                Ok(result) => result.expect("every delivery ends with an answer"),
                Err(_) => Err(CallError::Deadline {
                    peer: peer.to_string(),
                    waited: within,
                }),
            }
        })
    }
}

async fn deliver(
    cluster: Cluster,
    caller: Caller,
    peer: Peer,
    request: NetRequest,
) -> Result<Response, CallError> {
    cluster.clock.sleep(LATENCY).await;
    let lost = || CallError::Lost {
        peer: peer.to_string(),
        why: "a test lost it".to_owned(),
    };
    if cluster.state().name(&peer.address).is_none() {
        return Err(CallError::NotSent {
            peer: peer.to_string(),
            why: "nobody listens there".to_owned(),
        });
    }
    let fault = cluster
        .state()
        .arrive(&caller.name, &peer.address, &request.head.request);
    let serve = |request| cluster.serve(&caller, &peer.address, request);
    let response = match fault {
        None => Ok(serve(request)),
        Some(Fault::LoseRequest) => Err(lost()),
        Some(Fault::LoseReply) => {
            serve(request);
            Err(lost())
        }
        Some(Fault::Down) => Err(CallError::NotSent {
            peer: peer.to_string(),
            why: "a test took it down".to_owned(),
        }),
        Some(Fault::Hold(gate)) => {
            gate.pass().await;
            Ok(serve(request))
        }
        Some(Fault::HoldReply(gate)) => {
            let response = serve(request);
            gate.pass().await;
            Ok(response)
        }
        Some(Fault::Refuse(refusal)) => Ok(Response {
            reply: Err(refusal),
            payload: Payload::new(),
        }),
    };
    cluster.clock.sleep(LATENCY).await;
    response
}

/// A rule for the next request of `verb` to servers whose names start with `server`.
pub(crate) fn once(
    server: &'static str,
    verb: &'static str,
    fault: Fault,
) -> impl FnMut(&str, &Request) -> Option<Fault> + Send {
    let mut fault = Some(fault);
    move |to, request| {
        if to.starts_with(server) && request.verb() == verb {
            fault.take()
        } else {
            None
        }
    }
}

/// Whether a request writes new or repeated entries, and as which link.
pub(crate) fn is_write(request: &Request, link: WriteKind) -> bool {
    matches!(request, Request::Unit(UnitRequest::Write { kind, .. }) if *kind == link)
}
