//! Calls over QUIC: the only file that names quinn.
//!
//! ```text
//! call ─▶ lane (queue, calls) ─▶ writer ══ one long-lived stream ══▶ reader ─▶ Service::serve, in order (N3)
//!   ▲                                                                             │ Responder, in any order
//!   └────── reader ◀═════════════ the same stream ═══════════ writer ◀─ replies ◀─┘
//! ```
//! A connection carries a few streams, a stream carries every call: frames go out as they come, and whatever is ready
//! when the writer wakes goes in one write. N1 and B1 are kept in `calls.rs`, B2 and B3 in `replies.rs`.
//!
//! - Q1 A call is sent only after the server has greeted: before, a failure means the request did not reach it (N2).
//! - Q2 Hostile bytes cost their connection and nothing else. Every wait on a peer has a limit.
//! - Q3 A call during back-off fails at once with the last reason: its caller knows better than to wait, it may have
//!   another server to ask. While a first attempt is under way, calls wait for it within their deadline.
//! - Q4 A connection over which nothing at all comes for a while though calls wait is given up, and they are told.
//!   A slow server is not silent: what is sent to ask it is acknowledged. One whose only thread stands still is, be it in
//!   its disk.

mod bytes;
mod calls;
mod queue;
mod replies;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use ::bytes::Bytes;
use milonga_wire::{
    Address, Caller, FORMAT_VERSION, Payload, Refusal, ReplyHead, RequestHead, decode_head,
    next_frame,
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

pub use self::bytes::{ByteReceiver, ByteSender, ByteService};
use self::calls::{Exchange, Lane, Outcome};
use self::replies::{Load, Replies};
use crate::net::{Request, Response};
use crate::tls::{self, Whose};
use crate::{
    BoxFuture, CallError, Clock, Credentials, Moment, Network, Peer, Random, Service, Tasks,
    WeakTasks,
};

/// The largest datagram taken in, whatever the path: loopback carries 64 KiB.
const DATAGRAM_BYTES_MAX: u16 = 65_527;
/// Chunks taken from a stream at once.
const CHUNKS: usize = 32;
/// Replies handed out at once. What they lead to is sent off before more are: else a caller that always has hundreds of
/// calls in flight and its server would work in turn, and never at the same time.
const REPLIES: usize = 128;
/// How often a connection over which calls wait is looked at (Q4).
const LISTEN: Duration = Duration::from_millis(50);
/// What asks a quiet connection for a sign of life.
const ASK: &[u8] = b"?";
/// A connection that broke sooner than this counts as a failed attempt.
const SHORT_LIVED: Duration = Duration::from_secs(1);
/// The next address of a name is tried after this long, while the ones before still are.
const STAGGER: Duration = Duration::from_millis(200);
/// How long the last packets of closed connections may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// What the names in certificates are not checked against: they need one, and milonga's say role and name (T2).
const SERVER_NAME: &str = "milonga";

/// Why a connection was closed, for the other end.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Close {
    Done = 0,
    Drained = 1,
    Malformed = 2,
    Silent = 3,
    Idle = 4,
}

impl Close {
    fn connection(self, connection: &quinn::Connection, why: &str) {
        connection.close(VarInt::from_u32(self as u32), why.as_bytes());
    }
}

/// What the path to a peer carries.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum PathKind {
    /// Loopback peers get [`PathKind::Loopback`], all others [`PathKind::Network`].
    Auto,
    /// Datagrams of up to 64 KiB, which are found out step by step; one per system call.
    Loopback,
    /// Datagrams for Ethernet, many per system call.
    Network,
}

/// Every limit of a transport, with a default for each.
#[derive(Clone, Debug)]
pub struct TransportOptions {
    /// Streams per connection that calls are spread over. More than one only helps where packets are lost.
    pub streams: usize,
    /// Bytes of requests queued or unanswered per connection, at a caller (B1).
    pub call_bytes_max: usize,
    /// How long an attempt to connect may take.
    pub connect_within: Duration,
    /// The first wait after a failed attempt; it doubles.
    pub back_off_min: Duration,
    /// The longest wait after a failed attempt.
    pub back_off_max: Duration,
    /// A connection without calls is closed after this long.
    pub close_idle_after: Duration,
    /// A connection over which nothing comes for this long is lost.
    pub silence_max: Duration,
    /// A connection over which calls wait and nothing comes for this long, or for eight of its round trips if they are
    /// longer, is lost (Q4). Others are told sooner that way than by the deadlines of the calls.
    pub silence_of_asked: Duration,
    /// How often a quiet connection shows that it is alive.
    pub keep_alive: Duration,
    /// Connections that a server accepts.
    pub connections_max: usize,
    /// Streams that a server accepts on one connection.
    pub streams_max: u32,
    /// Bytes of requests at work and replies not yet written per connection, at a server (B2).
    pub serve_bytes_max: usize,
    /// How long a new connection has to finish its handshake, and then to ask something.
    pub handshake_within: Duration,
    /// How long a frame of a request, of up to 16 MiB, may take to arrive wholly: half of one holds memory.
    pub frame_within: Duration,
    /// Bytes under way on one connection that the other end has not taken in.
    pub window_bytes: u32,
    /// What the path carries.
    pub path: PathKind,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            streams: 1,
            call_bytes_max: 64 << 20,
            connect_within: Duration::from_secs(2),
            back_off_min: Duration::from_millis(20),
            back_off_max: Duration::from_secs(1),
            close_idle_after: Duration::from_secs(300),
            silence_max: Duration::from_secs(10),
            silence_of_asked: Duration::from_millis(250),
            keep_alive: Duration::from_secs(3),
            connections_max: 10_000,
            streams_max: 16,
            serve_bytes_max: 64 << 20,
            handshake_within: Duration::from_secs(10),
            frame_within: Duration::from_secs(30),
            window_bytes: 16 << 20,
            path: PathKind::Auto,
        }
    }
}

impl TransportOptions {
    fn is_loopback(&self, address: SocketAddr) -> bool {
        match self.path {
            PathKind::Auto => address.ip().to_canonical().is_loopback(),
            PathKind::Loopback => true,
            PathKind::Network => false,
        }
    }

    fn transport_config(&self, loopback: bool, keep_alive: bool) -> quinn::TransportConfig {
        let mut acks = quinn::AckFrequencyConfig::default();
        acks.ack_eliciting_threshold(VarInt::from_u32(20))
            .max_ack_delay(Some(Duration::from_millis(1)));
        let mut discovery = quinn::MtuDiscoveryConfig::default();
        // Batches of larger datagrams would pass what one system call can send, and be lost as a whole.
        discovery.upper_bound(if loopback { 65_000 } else { 1_452 });
        // Probes of 64 KiB count as under way: a window that one of them fills would hold everything else back.
        let mut congestion = quinn::congestion::CubicConfig::default();
        congestion.initial_window(if loopback { 1 << 20 } else { 64 << 10 });
        let mut config = quinn::TransportConfig::default();
        config
            .congestion_controller_factory(Arc::new(congestion))
            .max_concurrent_bidi_streams(VarInt::from_u32(self.streams_max))
            .max_concurrent_uni_streams(VarInt::from_u32(1))
            .stream_receive_window(VarInt::from_u32(self.window_bytes))
            .receive_window(VarInt::from_u32(self.window_bytes.saturating_mul(2)))
            .send_window(u64::from(self.window_bytes))
            // Nobody reads datagrams, they are sent to be acknowledged (Q4): this much is kept, then the oldest are dropped.
            .datagram_receive_buffer_size(Some(1_024))
            .initial_rtt(Duration::from_millis(100))
            .initial_mtu(1_200)
            .mtu_discovery_config(Some(discovery))
            .enable_segmentation_offload(!loopback)
            .ack_frequency_config(Some(acks))
            .keep_alive_interval(keep_alive.then_some(self.keep_alive))
            .max_idle_timeout(self.silence_max.try_into().ok());
        config
    }
}

/// Why a transport or a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has the port.
    #[error("{address} is in use by another program; stop it, or choose another port")]
    Occupied {
        /// Which address.
        address: String,
    },
    /// The address is not this machine's, or means nothing.
    #[error("cannot listen at {address}: {why}; give an address of this machine, or 0.0.0.0")]
    Address {
        /// Which address.
        address: String,
        /// The machine's reason.
        why: io::Error,
    },
    /// The certificate is a client's.
    #[error("a {role} certificate may not serve; issue one with `--role server`")]
    ClientCertificate {
        /// Its role.
        role: milonga_wire::Role,
    },
    /// The network of this machine does not work.
    #[error("cannot use the network: {0}")]
    Network(io::Error),
}

/// A place that datagrams come from and go to: for simulations, in place of a UDP socket.
pub trait DatagramSocket: fmt::Debug + Send + Sync + 'static {
    /// Sends one datagram, now or never.
    fn send(&self, to: SocketAddr, datagram: &[u8]);

    /// Takes the next datagram that came into `buffer` (65,536 bytes or more): its length and its sender. One task waits.
    fn poll_receive(
        &self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<(usize, SocketAddr)>;

    /// The address that others reach it under.
    fn local_address(&self) -> SocketAddr;
}

/// One node's end of the network: calls others, and serves. Clones are the same transport; dropping the last closes its
/// connections.
#[derive(Clone)]
pub struct Transport(Arc<Inner>);

struct Inner {
    options: TransportOptions,
    credentials: Credentials,
    clock: Clock,
    random: Random,
    tasks: WeakTasks,
    endpoint: quinn::Endpoint,
    /// Whether the endpoint's socket serves too, because there is no other.
    shared: bool,
    peers: Mutex<BTreeMap<Peer, State>>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("options", &self.0.options)
            .finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.endpoint
            .close(VarInt::from_u32(Close::Done as u32), b"done");
    }
}

impl Transport {
    /// A transport on a UDP socket of its own. Must be called inside a runtime; its tasks go to `tasks`.
    ///
    /// # Errors
    /// [`BindError::Network`].
    pub fn bind(
        options: TransportOptions,
        credentials: Credentials,
        clock: Clock,
        random: Random,
        tasks: &Tasks,
    ) -> Result<Self, BindError> {
        let runtime = Arc::new(NodeRuntime(tasks.downgrade()));
        let socket = std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))
            .or_else(|_| std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
            .map_err(BindError::Network)?;
        enlarge_buffers(&socket);
        let config = endpoint_config(&credentials, &random);
        let endpoint =
            quinn::Endpoint::new(config, None, socket, runtime).map_err(BindError::Network)?;
        Ok(Self::over(
            endpoint,
            false,
            options,
            credentials,
            clock,
            random,
            tasks,
        ))
    }

    /// A transport that calls and serves over `socket`: the whole of QUIC and TLS on a simulated network.
    ///
    /// With a paused runtime, seeded `random` and Ed25519 certificates, a run repeats packet for packet.
    ///
    /// # Errors
    /// [`BindError::Network`].
    pub fn over_socket(
        socket: Arc<dyn DatagramSocket>,
        options: TransportOptions,
        credentials: Credentials,
        clock: Clock,
        random: Random,
        tasks: &Tasks,
    ) -> Result<Self, BindError> {
        let runtime = Arc::new(NodeRuntime(tasks.downgrade()));
        let config = endpoint_config(&credentials, &random);
        let socket = Arc::new(Abstract(socket));
        let endpoint = quinn::Endpoint::new_with_abstract_socket(config, None, socket, runtime)
            .map_err(BindError::Network)?;
        Ok(Self::over(
            endpoint,
            true,
            options,
            credentials,
            clock,
            random,
            tasks,
        ))
    }

    fn over(
        endpoint: quinn::Endpoint,
        shared: bool,
        options: TransportOptions,
        credentials: Credentials,
        clock: Clock,
        random: Random,
        tasks: &Tasks,
    ) -> Self {
        Self(Arc::new(Inner {
            options,
            credentials,
            clock,
            random,
            tasks: tasks.downgrade(),
            endpoint,
            shared,
            peers: Mutex::default(),
        }))
    }

    /// Serves `service` at `listen` (port 0: any free one) until the node's tasks end or the handle drains it.
    ///
    /// A transport over a [`DatagramSocket`] serves on that socket, and `listen` is not looked at.
    ///
    /// # Errors
    /// [`BindError::Occupied`] if another program has the port; a certificate that may not serve.
    pub async fn serve(
        &self,
        listen: &Address,
        service: Arc<dyn Service>,
    ) -> Result<ServerHandle, BindError> {
        self.serve_what(listen, Served::Calls(service)).await
    }

    async fn serve_what(
        &self,
        listen: &Address,
        service: Served,
    ) -> Result<ServerHandle, BindError> {
        let inner = &self.0;
        let role = inner.credentials.identity().role;
        if !role.is_server() {
            return Err(BindError::ClientCertificate { role });
        }
        let configs = ServerConfigs::new(inner);
        let endpoint = if inner.shared {
            inner
                .endpoint
                .set_server_config(Some(configs.network.as_ref().clone()));
            inner.endpoint.clone()
        } else {
            let socket = listening_socket(listen).await?;
            enlarge_buffers(&socket);
            quinn::Endpoint::new(
                endpoint_config(&inner.credentials, &inner.random),
                Some(configs.network.as_ref().clone()),
                socket,
                Arc::new(NodeRuntime(inner.tasks.clone())),
            )
            .map_err(BindError::Network)?
        };
        let local = endpoint.local_addr().map_err(BindError::Network)?;
        let (stop, stopped) = watch::channel(None);
        let (ended, end) = oneshot::channel();
        let serving = Arc::new(Serving {
            options: inner.options.clone(),
            clock: inner.clock.clone(),
            service,
            configs,
            live: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
        });
        let handle = ServerHandle {
            local,
            serving: serving.clone(),
            endpoint: endpoint.clone(),
            shared: inner.shared,
            clock: inner.clock.clone(),
            stop,
            end,
        };
        inner.tasks.spawn(async move {
            accept(endpoint, serving, stopped).await;
            let _ = ended.send(());
        });
        Ok(handle)
    }

    /// Closes all connections and tells the other ends, which would else have to notice the silence. Calls in flight are
    /// lost; do this last.
    pub async fn close(&self) {
        let endpoint = &self.0.endpoint;
        endpoint.close(VarInt::from_u32(Close::Done as u32), b"done");
        let _ = self.0.clock.within(GOODBYE, endpoint.wait_idle()).await;
    }

    /// The address that a transport over a [`DatagramSocket`] is reached under, or that calls come from.
    ///
    /// # Errors
    /// The machine's.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.endpoint.local_addr()
    }
}

impl Network for Transport {
    fn call<'a>(
        &'a self,
        peer: &'a Peer,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'a, Result<Response, CallError>> {
        let inner = &self.0;
        match inner.send_at_once(peer, &request, within) {
            Some(Ok(exchange)) => Box::pin(async move { outcome(exchange.await, peer, within) }),
            Some(Err(over)) => Box::pin(std::future::ready(outcome(over, peer, within))),
            None => Box::pin(inner.call(peer, request, within)),
        }
    }

    fn round_trip(&self, peer: &Peer) -> Option<Duration> {
        match self.0.peers().get(peer)? {
            State::Up { link, .. } => Some(link.connection.rtt()),
            State::Dialing { round_trip, .. } => round_trip.get().copied(),
            State::Down { .. } => None,
        }
    }
}

// ---- Calling ----

/// What is known of a peer.
#[derive(Debug)]
enum State {
    Up {
        link: Arc<Link>,
        since: Moment,
        failures: u32,
    },
    Dialing {
        /// Wakes when the attempt is over.
        done: watch::Receiver<()>,
        /// What the handshake has shown.
        round_trip: Arc<OnceLock<Duration>>,
    },
    Down {
        until: Moment,
        why: Arc<str>,
        failures: u32,
    },
}

/// A connection that calls go over.
#[derive(Debug)]
struct Link {
    lanes: Vec<Arc<Lane>>,
    next: AtomicUsize,
    /// Takes no more calls (Q4).
    retired: AtomicBool,
    connection: quinn::Connection,
}

impl Link {
    fn lane(&self) -> &Arc<Lane> {
        match self.lanes.as_slice() {
            [only] => only,
            lanes => &lanes[self.next.fetch_add(1, Ordering::Relaxed) % lanes.len()],
        }
    }

    /// Why it takes no more calls.
    fn over(&self) -> Option<Arc<str>> {
        if !self.retired.load(Ordering::Relaxed) {
            return None;
        }
        let ended = self.connection.close_reason();
        Some(ended.map_or_else(
            || "the other end fell silent".into(),
            |error| why(&error).into(),
        ))
    }
}

/// What a head takes on the wire, until it is known. Only those that carry layouts or stream tails take much more.
const HEAD_BYTES: usize = 128;

fn outcome(outcome: Outcome, peer: &Peer, within: Duration) -> Result<Response, CallError> {
    let peer = || peer.to_string();
    match outcome {
        Outcome::Reply(response) => Ok(response),
        Outcome::NotSent(why) => Err(CallError::NotSent {
            peer: peer(),
            why: why.to_string(),
        }),
        Outcome::Lost(why) => Err(CallError::Lost {
            peer: peer(),
            why: why.to_string(),
        }),
        Outcome::Deadline => Err(CallError::Deadline {
            peer: peer(),
            waited: within,
        }),
        Outcome::Protocol(why) => Err(CallError::Protocol { peer: peer(), why }),
    }
}

/// What a call finds when it looks for a connection.
enum Found {
    Up(Arc<Link>),
    Dialing(watch::Receiver<()>),
    Down(Arc<str>),
}

impl Inner {
    /// What nearly every call finds: a connection, and room on it.
    fn send_at_once(
        self: &Arc<Self>,
        peer: &Peer,
        request: &Request,
        within: Duration,
    ) -> Option<Result<Exchange, Outcome>> {
        let Found::Up(link) = self.find(peer) else {
            return None;
        };
        let room = link.lane().try_admit(HEAD_BYTES + request.payload.len())?;
        Some(room.exchange(request, || self.clock.now(), within))
    }

    async fn call(
        self: &Arc<Self>,
        peer: &Peer,
        request: Request,
        within: Duration,
    ) -> Result<Response, CallError> {
        let bytes = HEAD_BYTES + request.payload.len();
        let deadline = self.clock.now().plus(within);
        let not_sent = |why: &str| CallError::NotSent {
            peer: peer.to_string(),
            why: why.to_owned(),
        };
        let room = loop {
            let link = self
                .link(peer, deadline)
                .await
                .map_err(|why| not_sent(&why))?;
            let lane = link.lane();
            let admitted = lane.admit(bytes);
            match self.clock.within(self.remaining(deadline), admitted).await {
                Ok(Some(room)) => break room,
                // The connection broke: another may be had.
                Ok(None) => link.retired.store(true, Ordering::Relaxed),
                Err(_) => return Err(not_sent("too many bytes are in flight; wait for replies")),
            }
        };
        let over = match room.exchange(&request, || self.clock.now(), self.remaining(deadline)) {
            Ok(exchange) => exchange.await,
            Err(over) => over,
        };
        outcome(over, peer, within)
    }

    fn remaining(&self, deadline: Moment) -> Duration {
        deadline.since(self.clock.now())
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<Peer, State>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to `peer`, or why there is none by the deadline.
    async fn link(self: &Arc<Self>, peer: &Peer, deadline: Moment) -> Result<Arc<Link>, Arc<str>> {
        loop {
            match self.find(peer) {
                Found::Up(link) => return Ok(link),
                Found::Down(why) => return Err(why),
                Found::Dialing(mut done) => {
                    let waited = self.clock.within(self.remaining(deadline), done.changed());
                    if waited.await.is_err() {
                        return Err("it has not answered an attempt to connect yet".into());
                    }
                }
            }
        }
    }

    /// Q3.
    fn find(self: &Arc<Self>, peer: &Peer) -> Found {
        let mut peers = self.peers();
        let failures = match peers.get(peer) {
            Some(State::Up {
                link,
                since,
                failures,
            }) => match link.over() {
                None => return Found::Up(link.clone()),
                Some(why) if self.clock.now().since(*since) < SHORT_LIVED => {
                    let failures = failures.saturating_add(1);
                    let down = self.down(why.clone(), failures);
                    peers.insert(peer.clone(), down);
                    return Found::Down(why);
                }
                Some(_) => 0,
            },
            Some(State::Dialing { done, .. }) if done.has_changed().is_ok() => {
                return Found::Dialing(done.clone());
            }
            // Its task ended without an outcome: so has the node.
            Some(State::Dialing { .. }) => return Found::Down("this node is stopping".into()),
            Some(State::Down { until, why, .. }) if *until > self.clock.now() => {
                return Found::Down(why.clone());
            }
            Some(State::Down { failures, .. }) => *failures,
            None => {
                self.forget_old(&mut peers);
                0
            }
        };
        let (over, done) = watch::channel(());
        let round_trip = Arc::new(OnceLock::new());
        let dialing = State::Dialing {
            done: done.clone(),
            round_trip: round_trip.clone(),
        };
        peers.insert(peer.clone(), dialing);
        drop(peers);
        let (inner, peer) = (self.clone(), peer.clone());
        self.tasks.spawn(async move {
            let outcome = inner.dial(&peer, &round_trip).await;
            let state = match outcome {
                Ok(link) => State::Up {
                    link,
                    since: inner.clock.now(),
                    failures,
                },
                Err(why) => inner.down(why.into(), failures.saturating_add(1)),
            };
            inner.peers().insert(peer, state);
            let _ = over.send(());
        });
        Found::Dialing(done)
    }

    fn down(&self, why: Arc<str>, failures: u32) -> State {
        let options = &self.options;
        let doubled = options
            .back_off_min
            .saturating_mul(1 << failures.saturating_sub(1).min(16));
        let wait = self.random.jittered(doubled.min(options.back_off_max));
        State::Down {
            until: self.clock.now().plus(wait),
            why,
            failures,
        }
    }

    /// Peers that left the layout long ago would stay for ever.
    fn forget_old(&self, peers: &mut BTreeMap<Peer, State>) {
        let now = self.clock.now();
        peers.retain(|_, state| match state {
            State::Up { link, .. } => link.over().is_none(),
            State::Dialing { .. } => true,
            State::Down { until, .. } => *until > now,
        });
    }

    async fn dial(
        &self,
        peer: &Peer,
        round_trip: &Arc<OnceLock<Duration>>,
    ) -> Result<Arc<Link>, String> {
        let within = self.options.connect_within;
        let attempt = async {
            let addresses = resolve(&peer.address).await?;
            let (connection, lanes) = self.connect_any(peer, addresses, round_trip).await?;
            Ok(self.start(connection, lanes))
        };
        self.clock
            .within(within, attempt)
            .await
            .unwrap_or_else(|_| {
                Err(format!(
                    "no answer within {} ms; check the address, and that the server runs",
                    within.as_millis()
                ))
            })
    }

    /// The first address that answers.
    async fn connect_any(
        &self,
        peer: &Peer,
        addresses: Vec<SocketAddr>,
        round_trip: &Arc<OnceLock<Duration>>,
    ) -> Result<(quinn::Connection, Streams), String> {
        if let [only] = addresses.as_slice() {
            return self.attempt(peer, *only, round_trip.clone()).await;
        }
        let mut attempts = JoinSet::new();
        for (index, address) in addresses.into_iter().enumerate() {
            let attempt = self.attempt(peer, address, round_trip.clone());
            let clock = self.clock.clone();
            attempts.spawn(async move {
                clock.sleep(STAGGER * index as u32).await;
                attempt.await
            });
        }
        let mut last = "its name has no address".to_owned();
        while let Some(ended) = attempts.join_next().await {
            match ended {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(why)) => last = why,
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    fn attempt(
        &self,
        peer: &Peer,
        address: SocketAddr,
        round_trip: Arc<OnceLock<Duration>>,
    ) -> impl Future<Output = Result<(quinn::Connection, Streams), String>> + Send + use<> {
        let loopback = self.options.is_loopback(address);
        let crypto = QuicClientConfig::try_from(self.credentials.client_config(peer))
            .expect("the provider has AES-128-GCM, which QUIC starts with");
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(self.options.transport_config(loopback, true)));
        let connecting = self.endpoint.connect_with(config, address, SERVER_NAME);
        let streams = self.options.streams.max(1);
        async move {
            let connecting = connecting.map_err(|error| error.to_string())?;
            let connection = connecting.await.map_err(|error| why(&error))?;
            round_trip.get_or_init(|| connection.rtt());
            greeted(&connection).await?;
            let mut opened = vec![];
            for _ in 0..streams {
                opened.push(connection.open_bi().await.map_err(|error| why(&error))?);
            }
            Ok((connection, opened))
        }
    }

    fn start(&self, connection: quinn::Connection, streams: Streams) -> Arc<Link> {
        let limit = self.options.call_bytes_max.clamp(1, u32::MAX as usize >> 1) / streams.len();
        let (sends, receives): (Vec<_>, Vec<_>) = streams.into_iter().unzip();
        let link = Arc::new(Link {
            lanes: sends
                .iter()
                .map(|_| Arc::new(Lane::new(limit as u32)))
                .collect(),
            next: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
            connection,
        });
        for (lane, (send, receive)) in link.lanes.iter().zip(sends.into_iter().zip(receives)) {
            self.tasks.spawn(write_requests(lane.clone(), send));
            self.tasks
                .spawn(read_replies(link.clone(), lane.clone(), receive));
            let clock = self.clock.clone();
            let limits = (self.options.silence_of_asked, self.options.close_idle_after);
            self.tasks
                .spawn(watch_deadlines(link.clone(), lane.clone(), clock, limits));
        }
        link
    }
}

type Streams = Vec<(quinn::SendStream, quinn::RecvStream)>;

/// Q1: the server greets once it has accepted this node's certificate.
async fn greeted(connection: &quinn::Connection) -> Result<(), String> {
    let mut stream = connection.accept_uni().await.map_err(|error| why(&error))?;
    let greeting = stream.read_to_end(16).await.map_err(|error| match error {
        quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(error)) => why(&error),
        error => error.to_string(),
    })?;
    match greeting.as_slice() {
        [FORMAT_VERSION] => Ok(()),
        [other] => Err(format!(
            "it speaks frame format {other}, this program {FORMAT_VERSION}; use programs of one version"
        )),
        _ => Err("it does not greet as a milonga server does".to_owned()),
    }
}

async fn resolve(address: &Address) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host(address.as_str()).await;
    let addresses: Vec<_> = found
        .map_err(|error| format!("its name cannot be resolved: {error}"))?
        .collect();
    if addresses.is_empty() {
        return Err("its name has no address".to_owned());
    }
    Ok(addresses)
}

async fn write_requests(lane: Arc<Lane>, mut send: quinn::SendStream) {
    let mut parts = vec![];
    while let Some(bytes) = lane.take(&mut parts).await {
        if send.write_all_chunks(&mut parts).await.is_err() {
            // The reader learns why, and tells the callers.
            return;
        }
        parts.clear();
        lane.written(bytes);
    }
}

async fn read_replies(link: Arc<Link>, lane: Arc<Lane>, mut receive: quinn::RecvStream) {
    let why = replies_until_the_end(&link, &lane, &mut receive).await;
    // One stream's end is the connection's: its other calls go over a new one.
    link.retired.store(true, Ordering::Relaxed);
    let why: Arc<str> = why.into();
    for lane in &link.lanes {
        lane.fail(&why);
    }
    Close::Done.connection(&link.connection, "done");
}

async fn replies_until_the_end(
    link: &Link,
    lane: &Lane,
    receive: &mut quinn::RecvStream,
) -> String {
    let mut chunks = [const { Bytes::new() }; CHUNKS];
    let mut arrived = Payload::new();
    let (mut outcomes, mut wakers) = (vec![], vec![]);
    loop {
        match receive.read_chunks(&mut chunks).await {
            Ok(Some(count)) => {
                for chunk in &mut chunks[..count] {
                    arrived.push(std::mem::take(chunk));
                }
            }
            Ok(None) => return "the server is shutting down".to_owned(),
            Err(quinn::ReadError::ConnectionLost(error)) => return why(&error),
            Err(error) => return error.to_string(),
        }
        loop {
            match next_frame(&mut arrived, read_reply) {
                Ok(Some((Some(Ok(ReplyHead { id, reply })), payload))) => {
                    outcomes.push((id, Outcome::Reply(Response { reply, payload })));
                }
                Ok(Some((Some(Err(Unreadable { id, why })), _))) => {
                    outcomes.push((id, Outcome::Protocol(why)));
                }
                Ok(Some((None, _))) => return malformed(link, "a reply without an id"),
                Ok(None) => break,
                Err(error) => return malformed(link, &error.to_string()),
            }
            if outcomes.len() == REPLIES {
                lane.deliver(&mut outcomes, &mut wakers);
                tokio::task::yield_now().await;
            }
        }
        lane.deliver(&mut outcomes, &mut wakers);
    }
}

/// The head of a reply, or why it cannot be read; nothing if there is not even an id.
fn read_reply(head: &[u8]) -> Option<Result<ReplyHead, Unreadable>> {
    match decode_head(head) {
        Ok(head) => Some(Ok(head)),
        Err(error) => {
            let why = format!("the reply cannot be read: {error}; use programs of one version");
            let id = id_of(head)?;
            Some(Err(Unreadable { id, why }))
        }
    }
}

fn malformed(link: &Link, why: &str) -> String {
    Close::Malformed.connection(&link.connection, why);
    format!("the server sent what is no reply: {why}")
}

/// The id of a head, whatever the rest of it is: both kinds of head start with it.
fn id_of(head: &[u8]) -> Option<u64> {
    let (version, head) = head.split_first()?;
    if *version != FORMAT_VERSION {
        return None;
    }
    let mut id = 0_u64;
    for (index, byte) in head.iter().take(10).enumerate() {
        id |= u64::from(byte & 0x7f).checked_shl(7 * index as u32)?;
        if byte & 0x80 == 0 {
            return Some(id);
        }
    }
    None
}

/// Ends calls at their deadlines, gives a silent connection up (Q4), and closes an idle one.
async fn watch_deadlines(
    link: Arc<Link>,
    lane: Arc<Lane>,
    clock: Clock,
    (silence, idle): (Duration, Duration),
) {
    let mut listened = Listened::default();
    while lane.failed().is_none() {
        let now = clock.now();
        // Whether calls wait is asked once: one that ended between two looks would have left its deadline behind, and until
        // then nobody would listen.
        let (_, soonest) = lane.expire(now);
        let (is_asked, calls) = (soonest.is_some(), lane.usage().1);
        let stats = link.connection.stats();
        let quiet = listened.quiet(now, is_asked, stats.udp_rx.datagrams);
        if quiet >= silence.max(stats.path.rtt * 8) {
            link.retired.store(true, Ordering::Relaxed);
            let (peer, rtt) = (link.connection.remote_address(), stats.path.rtt);
            tracing::debug!(%peer, ?quiet, ?rtt, "nothing was heard");
            lane.fail(&"nothing was heard from it, not even that it got what it was sent".into());
            Close::Silent.connection(&link.connection, "no sign of life");
            return;
        }
        if !quiet.is_zero() {
            // It fails only on a connection that is over.
            let _ = link.connection.send_datagram(Bytes::from_static(ASK));
        }
        let listen = is_asked.then_some(LISTEN);
        let due = soonest.map(|soonest| soonest.since(now));
        let sleep = due.into_iter().chain(listen).fold(idle, Duration::min);
        let slept = tokio::select! {
            biased;
            () = lane.sooner() => false,
            () = clock.sleep(sleep) => true,
        };
        if slept && sleep == idle && !is_asked && lane.usage() == (0, calls) {
            link.retired.store(true, Ordering::Relaxed);
            Close::Idle.connection(&link.connection, "no calls");
            return;
        }
    }
}

/// What was heard over a connection while calls waited (Q4).
#[derive(Debug, Default)]
struct Listened {
    looked: Option<Moment>,
    datagrams: u64,
    quiet: Duration,
}

impl Listened {
    /// Notes a look at `now` that found so many `datagrams` received since the connection began: for how long none has come
    /// though calls waited. No two looks are taken to be far apart: a process that was stopped has had no chance to hear.
    fn quiet(&mut self, now: Moment, waiting: bool, datagrams: u64) -> Duration {
        let since = self.looked.map(|looked| now.since(looked).min(LISTEN));
        self.looked = Some(now);
        if waiting && datagrams == self.datagrams {
            self.quiet += since.unwrap_or_default();
        } else {
            self.quiet = Duration::ZERO;
        }
        self.datagrams = datagrams;
        self.quiet
    }
}

/// Why a connection is over, with what to try where that is known.
fn why(error: &ConnectionError) -> String {
    const CRYPTO: std::ops::Range<u64> = 0x100..0x200;
    let is_crypto = |code| CRYPTO.contains(&u64::from(code));
    match error {
        ConnectionError::TransportError(error) if is_crypto(error.code) => {
            tls::explain(&error.reason, Whose::Theirs)
        }
        ConnectionError::ConnectionClosed(close) if is_crypto(close.error_code) => {
            tls::explain(&String::from_utf8_lossy(&close.reason), Whose::Ours)
        }
        ConnectionError::ConnectionClosed(close)
            if close.error_code == quinn::TransportErrorCode::CONNECTION_REFUSED =>
        {
            "the server takes no more connections (it has too many, or is shutting down); try again later"
                .to_owned()
        }
        ConnectionError::ApplicationClosed(close) => {
            String::from_utf8_lossy(&close.reason).into_owned()
        }
        ConnectionError::Reset => "the server was restarted".to_owned(),
        ConnectionError::TimedOut => "the other end fell silent".to_owned(),
        ConnectionError::LocallyClosed => "this node closed the connection".to_owned(),
        ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::VersionMismatch
        | ConnectionError::CidsExhausted => error.to_string(),
    }
}

// ---- Serving ----

/// A running server.
#[derive(Debug)]
pub struct ServerHandle {
    local: SocketAddr,
    serving: Arc<Serving>,
    endpoint: quinn::Endpoint,
    shared: bool,
    clock: Clock,
    stop: watch::Sender<Option<Moment>>,
    end: oneshot::Receiver<()>,
}

impl ServerHandle {
    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// How many connections there are, those in their handshake included.
    pub fn connections(&self) -> usize {
        self.serving.live.load(Ordering::Relaxed)
    }

    /// Stops the server in good order: no new connections, new requests are refused as [`Refusal::Draining`], those at work
    /// are finished and their replies delivered, at most until `within` has passed.
    pub async fn drain(self, within: Duration) {
        let deadline = self.clock.now().plus(within);
        self.serving.draining.store(true, Ordering::Release);
        let _ = self.stop.send(Some(deadline));
        let _ = self.end.await;
        if self.shared {
            self.endpoint.set_server_config(None);
        } else {
            // Their last packets say why the connections are closed.
            let _ = self.clock.within(GOODBYE, self.endpoint.wait_idle()).await;
            self.endpoint
                .close(VarInt::from_u32(Close::Drained as u32), b"");
        }
    }
}

/// What goes over the streams of a server.
enum Served {
    Calls(Arc<dyn Service>),
    Bytes(Arc<dyn ByteService>),
}

struct Serving {
    options: TransportOptions,
    clock: Clock,
    service: Served,
    configs: ServerConfigs,
    live: AtomicUsize,
    draining: AtomicBool,
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving")
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

/// How to accept, by what the path carries.
struct ServerConfigs {
    loopback: Arc<quinn::ServerConfig>,
    network: Arc<quinn::ServerConfig>,
}

impl ServerConfigs {
    fn new(inner: &Inner) -> Self {
        let crypto = QuicServerConfig::try_from(inner.credentials.server_config())
            .expect("the provider has AES-128-GCM, which QUIC starts with");
        let crypto = Arc::new(crypto);
        let config = |loopback| {
            let mut config = quinn::ServerConfig::with_crypto(crypto.clone());
            config
                .transport_config(Arc::new(inner.options.transport_config(loopback, false)))
                .time_source(Arc::new(Wall(inner.clock.clone())));
            Arc::new(config)
        };
        Self {
            loopback: config(true),
            network: config(false),
        }
    }
}

/// Counts a connection while it lives.
struct Live(Arc<Serving>);

impl Live {
    fn new(serving: &Arc<Serving>) -> Option<Self> {
        let before = serving.live.fetch_add(1, Ordering::Relaxed);
        let live = Self(serving.clone());
        (before < serving.options.connections_max).then_some(live)
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn accept(
    endpoint: quinn::Endpoint,
    serving: Arc<Serving>,
    mut stop: watch::Receiver<Option<Moment>>,
) {
    // Held here, connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            biased;
            _ = stop.wait_for(Option::is_some) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => incoming,
                None => break,
            },
        };
        let Some(live) = Live::new(&serving) else {
            tracing::warn!(from = %incoming.remote_address(), "too many connections: one refused");
            incoming.refuse();
            continue;
        };
        connections.spawn(serve_connection(live, incoming, stop.clone()));
    }
    loop {
        tokio::select! {
            biased;
            ended = connections.join_next() => if ended.is_none() { break },
            incoming = endpoint.accept() => if let Some(incoming) = incoming { incoming.refuse() },
        }
    }
}

async fn serve_connection(
    live: Live,
    incoming: quinn::Incoming,
    mut stop: watch::Receiver<Option<Moment>>,
) {
    let serving = &live.0;
    let remote = incoming.remote_address();
    let within = serving.options.handshake_within;
    let config = if serving.options.is_loopback(remote) {
        &serving.configs.loopback
    } else {
        &serving.configs.network
    };
    let handshake = async {
        let connection = incoming.accept_with(config.clone())?.await?;
        let mut greeting = connection.open_uni().await?;
        // What goes wrong here shows in the next read.
        let _ = greeting.write_all(&[FORMAT_VERSION]).await;
        let _ = greeting.finish();
        Ok::<_, ConnectionError>(connection)
    };
    let connection = match serving.clock.within(within, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::info!(from = %remote, "a handshake failed: {error}");
            return;
        }
        Err(_) => return,
    };
    let Some(caller) = proved(&connection) else {
        Close::Malformed.connection(&connection, "a certificate that names no member");
        return;
    };
    tracing::debug!(from = %remote, role = %caller.role, name = %caller.name, "connected");
    let load = Arc::new(Load::new(serving.options.serve_bytes_max));
    let mut streams = Serve {
        serving: serving.clone(),
        caller: Arc::new(caller),
        connection: connection.clone(),
        load,
        lanes: vec![],
        running: JoinSet::new(),
        asked: Arc::default(),
    };
    let deadline = tokio::select! {
        biased;
        () = streams.run() => return,
        stopped = stop.wait_for(Option::is_some) => stopped.ok().and_then(|moment| *moment),
    };
    let remaining = deadline.map_or(Duration::ZERO, |at| at.since(serving.clock.now()));
    let _ = serving.clock.within(remaining, streams.finish()).await;
    Close::Drained.connection(&connection, "the server is shutting down");
}

fn proved(connection: &quinn::Connection) -> Option<Caller> {
    let identity = connection.peer_identity()?;
    tls::proved(identity.downcast_ref::<Vec<CertificateDer<'static>>>()?)
}

/// One connection's streams.
struct Serve {
    serving: Arc<Serving>,
    caller: Arc<Caller>,
    connection: quinn::Connection,
    load: Arc<Load>,
    lanes: Vec<std::sync::Weak<Replies>>,
    running: JoinSet<()>,
    asked: Arc<Asked>,
}

/// Whether a connection has asked anything, on any of its streams.
#[derive(Default)]
struct Asked(AtomicBool);

impl Asked {
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Serve {
    /// Accepts streams until the connection ends.
    async fn run(&mut self) {
        let within = self.serving.options.handshake_within;
        match self
            .serving
            .clock
            .within(within, self.connection.accept_bi())
            .await
        {
            Ok(Ok(stream)) => self.start(stream),
            Ok(Err(_)) => return,
            Err(_) => {
                Close::Silent.connection(&self.connection, "connected, and asked nothing");
                return;
            }
        }
        let deadline = self.serving.clock.now().plus(within);
        loop {
            let stream = tokio::select! {
                biased;
                stream = self.connection.accept_bi() => stream,
                () = self.serving.clock.sleep_until(deadline), if !self.asked.is_set() => {
                    if !self.asked.is_set() {
                        Close::Silent.connection(&self.connection, "connected, and asked nothing");
                        return;
                    }
                    continue;
                }
            };
            let Ok(stream) = stream else { return };
            while self.running.try_join_next().is_some() {}
            self.start(stream);
        }
    }

    fn start(&mut self, (send, receive): (quinn::SendStream, quinn::RecvStream)) {
        let service = match &self.serving.service {
            Served::Calls(service) => service.clone(),
            Served::Bytes(service) => {
                self.asked.set();
                let (send, receive) = bytes::halves(self.connection.clone(), send, receive);
                self.running.spawn(service.serve(send, receive));
                return;
            }
        };
        let replies = Arc::new(Replies::new(self.load.clone()));
        self.lanes.retain(|lane| lane.strong_count() > 0);
        self.lanes.push(Arc::downgrade(&replies));
        self.running.spawn(write_replies(replies.clone(), send));
        let reader = Reader {
            serving: self.serving.clone(),
            service,
            caller: self.caller.clone(),
            load: self.load.clone(),
            replies,
            asked: self.asked.clone(),
        };
        let connection = self.connection.clone();
        self.running.spawn(async move {
            if let Err(why) = reader.run(receive).await {
                Close::Malformed.connection(&connection, &why);
            }
        });
    }

    /// Finishes what is at work and delivers its replies. Requests that come meanwhile are refused.
    async fn finish(&mut self) {
        self.load.empty().await;
        let lanes: Vec<_> = self
            .lanes
            .iter()
            .filter_map(std::sync::Weak::upgrade)
            .collect();
        for lane in &lanes {
            lane.close();
        }
        for lane in &lanes {
            lane.delivered().await;
        }
    }
}

async fn write_replies(replies: Arc<Replies>, mut send: quinn::SendStream) {
    let mut parts = vec![];
    while let Some(bytes) = replies.take(&mut parts).await {
        let written = send.write_all_chunks(&mut parts).await;
        parts.clear();
        replies.written(bytes);
        if written.is_err() {
            replies.kill();
        }
    }
    if send.finish().is_ok() {
        // Until the other end has it all.
        let _ = send.stopped().await;
    }
    replies.set_delivered();
}

struct Reader {
    serving: Arc<Serving>,
    service: Arc<dyn Service>,
    caller: Arc<Caller>,
    load: Arc<Load>,
    replies: Arc<Replies>,
    asked: Arc<Asked>,
}

impl Reader {
    /// Reads until the stream ends.
    ///
    /// # Errors
    /// What is wrong with the bytes: the connection is of no use any more (Q2).
    async fn run(&self, mut receive: quinn::RecvStream) -> Result<(), String> {
        let mut chunks = [const { Bytes::new() }; CHUNKS];
        let mut arrived = Payload::new();
        // When a frame that has not wholly arrived yet began to.
        let mut begun: Option<Moment> = None;
        let clock = &self.serving.clock;
        loop {
            let read = receive.read_chunks(&mut chunks);
            let read = match begun {
                None => read.await,
                Some(begun) => {
                    let within = self.serving.options.frame_within;
                    let left = begun.plus(within).since(clock.now());
                    let read = clock.within(left, read).await;
                    read.map_err(|_| format!("half a frame for {} ms", within.as_millis()))?
                }
            };
            match read {
                Ok(Some(count)) => {
                    for chunk in &mut chunks[..count] {
                        arrived.push(std::mem::take(chunk));
                    }
                }
                Ok(None) => {
                    self.replies.close();
                    return Ok(());
                }
                Err(_) => {
                    self.replies.kill();
                    return Ok(());
                }
            }
            loop {
                let before = arrived.len();
                let next = next_frame(&mut arrived, read_request).map_err(|e| e.to_string())?;
                let Some((head, payload)) = next else { break };
                if !self.load.has_room() {
                    self.load.room().await;
                }
                self.serve(head?, payload, before - arrived.len());
                begun = None;
            }
            begun = match begun {
                _ if arrived.is_empty() => None,
                None => Some(clock.now()),
                begun => begun,
            };
        }
    }

    fn serve(&self, head: Result<RequestHead, Unreadable>, payload: Payload, bytes: usize) {
        self.asked.set();
        match head {
            Ok(head) => {
                let respond = self.replies.responder(head.id, bytes);
                if self.serving.draining.load(Ordering::Relaxed) {
                    respond.send(Err(Refusal::Draining));
                } else {
                    let request = Request { head, payload };
                    self.service.serve(&self.caller, request, respond);
                }
            }
            Err(Unreadable { id, why }) => {
                let refusal = Refusal::malformed(why);
                self.replies.responder(id, bytes).send(Err(refusal));
            }
        }
    }
}

/// A head of which only the id can be read.
#[derive(Debug)]
struct Unreadable {
    id: u64,
    why: String,
}

/// The head of a request.
///
/// # Errors
/// What is wrong with it, if it has not even an id.
fn read_request(head: &[u8]) -> Result<Result<RequestHead, Unreadable>, String> {
    match decode_head(head) {
        Ok(head) => Ok(Ok(head)),
        Err(error) => {
            let why = error.to_string();
            let id = id_of(head).ok_or_else(|| why.clone())?;
            Ok(Err(Unreadable { id, why }))
        }
    }
}

async fn listening_socket(listen: &Address) -> Result<std::net::UdpSocket, BindError> {
    let address = listen.to_string();
    let failed = |why: io::Error| {
        let address = address.clone();
        match why.kind() {
            io::ErrorKind::AddrInUse => BindError::Occupied { address },
            _ => BindError::Address { address, why },
        }
    };
    let found = tokio::net::lookup_host(listen.as_str())
        .await
        .map_err(failed)?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for candidate in found {
        match std::net::UdpSocket::bind(candidate) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

// ---- What quinn is given ----

/// Room for a burst of large datagrams, as far as the system lets us.
fn enlarge_buffers(socket: &std::net::UdpSocket) {
    const BYTES: usize = 4 << 20;
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(socket, BYTES);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket, BYTES);
}

fn endpoint_config(credentials: &Credentials, random: &Random) -> quinn::EndpointConfig {
    // Made from the node's key: a restarted server can tell its old callers that their connections are gone.
    let secret = credentials.reset_secret();
    let mut config = quinn::EndpointConfig::new(Arc::new(ResetKey(secret)));
    config
        .max_udp_payload_size(DATAGRAM_BYTES_MAX)
        .expect("it is the largest allowed");
    let ids = random.clone();
    config.cid_generator(move || Box::new(ConnectionIds(ids.clone())));
    let mut seed = [0; 32];
    seed[..16].copy_from_slice(&random.id());
    seed[16..].copy_from_slice(&random.id());
    config.rng_seed(Some(seed));
    config
}

/// Makes connection ids that repeat with the node's seed.
struct ConnectionIds(Random);

impl quinn::ConnectionIdGenerator for ConnectionIds {
    fn generate_cid(&mut self) -> quinn::ConnectionId {
        quinn::ConnectionId::new(&self.0.next().to_be_bytes())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Signs connection ids, so that only this key's holder can reset connections.
struct ResetKey([u8; 32]);

impl quinn::crypto::HmacKey for ResetKey {
    fn sign(&self, data: &[u8], out: &mut [u8]) {
        let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
        let hkdf = suite.tls13().expect("a suite of TLS 1.3").hkdf_provider;
        let key = rustls::crypto::tls13::OkmBlock::new(&self.0);
        out.copy_from_slice(hkdf.hmac_sign(&key, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), quinn::crypto::CryptoError> {
        let mut expected = [0; 32];
        self.sign(data, &mut expected);
        if expected == signature {
            Ok(())
        } else {
            Err(quinn::crypto::CryptoError)
        }
    }
}

struct Wall(Clock);

impl quinn::TimeSource for Wall {
    fn now(&self) -> std::time::SystemTime {
        std::time::UNIX_EPOCH + Duration::from_millis(self.0.wall_ms())
    }
}

/// quinn's tasks are the node's, and end with it.
#[derive(Debug)]
struct NodeRuntime(WeakTasks);

impl quinn::Runtime for NodeRuntime {
    fn new_timer(&self, at: std::time::Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        quinn::TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(future);
    }

    fn wrap_udp_socket(
        &self,
        socket: std::net::UdpSocket,
    ) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        quinn::TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> std::time::Instant {
        quinn::TokioRuntime.now()
    }
}

/// A [`DatagramSocket`] as quinn wants it.
#[derive(Debug)]
struct Abstract(Arc<dyn DatagramSocket>);

impl quinn::AsyncUdpSocket for Abstract {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn quinn::UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &quinn::udp::Transmit<'_>) -> io::Result<()> {
        self.0.send(transmit.destination, transmit.contents);
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [quinn::udp::RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut count = 0;
        for (buffer, meta) in buffers.iter_mut().zip(meta) {
            let Poll::Ready((len, addr)) = self.0.poll_receive(context, buffer) else {
                break;
            };
            *meta = quinn::udp::RecvMeta {
                addr,
                len,
                stride: len,
                ecn: None,
                dst_ip: None,
            };
            count += 1;
        }
        if count == 0 {
            Poll::Pending
        } else {
            Poll::Ready(Ok(count))
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.local_address())
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl quinn::UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
