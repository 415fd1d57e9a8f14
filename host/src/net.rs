//! Calls between nodes, as a trait: frames out, frames back, never in order, perhaps never.
//!
//! - N1 A reply reaches only the call it answers.
//! - N2 [`CallError::NotSent`] is said only if the request cannot have reached the server.
//! - N3 A [`Service`] sees the requests of one connection's stream in the order they were sent.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use milonga_wire::{Address, Caller, Frame, Kind, Payload, Refusal, Reply, ReplyHead, ServerName};

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whom to call. The certificate at the other end must name the cluster of our own, a role that may serve as `kind`,
/// and `name` if it is given (the layout gives it; a configuration file that lists layout servers need not).
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct Peer {
    /// The name its certificate must carry.
    pub name: Option<ServerName>,
    /// Where it listens.
    pub address: Address,
    /// What it must be allowed to serve as.
    pub kind: PeerKind,
}

/// [`Kind`], or any kind: `cluster init` and `describe` ask before they know.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub enum PeerKind {
    /// A layout server.
    Layout,
    /// A sequencer.
    Sequencer,
    /// A log unit.
    LogUnit,
    /// Any server.
    Any,
}

impl From<Kind> for PeerKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Layout => Self::Layout,
            Kind::Sequencer => Self::Sequencer,
            Kind::LogUnit => Self::LogUnit,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.address),
            None => self.address.fmt(f),
        }
    }
}

/// Why a call brought no reply.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CallError {
    /// Definite: the request did not reach the server.
    #[error("{peer} cannot be reached: {why}")]
    NotSent {
        /// Whom.
        peer: String,
        /// Why, with what to try where that is known.
        why: String,
    },
    /// The connection broke: the request may or may not have had its effect.
    #[error("the connection to {peer} broke: {why}")]
    Lost {
        /// Whom.
        peer: String,
        /// Why.
        why: String,
    },
    /// The deadline passed: the request may or may not have had, or still have, its effect.
    #[error("{peer} did not answer within {} ms", .waited.as_millis())]
    Deadline {
        /// Whom.
        peer: String,
        /// How long the call waited.
        waited: Duration,
    },
    /// The reply is no reply, or the request is too large to send.
    #[error("{peer}: {why}")]
    Protocol {
        /// Whom.
        peer: String,
        /// What is wrong.
        why: String,
    },
}

/// The network as a caller sees it.
pub trait Network: Send + Sync + 'static {
    /// Sends `request` to `peer` and waits for its reply, at most `within`.
    ///
    /// The network gives the request an id of its own. It connects, reconnects with jittered back-off, and holds callers
    /// back when too many bytes are in flight. The request may be on its way before the future is polled; dropping the
    /// future abandons the call.
    fn call<'a>(
        &'a self,
        peer: &'a Peer,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'a, Result<Response, CallError>>;

    /// How long the way to `peer` and back takes, as far as a connection to it, or the attempt at one under way, shows.
    fn round_trip(&self, _peer: &Peer) -> Option<Duration> {
        None
    }
}

/// How long to wait for a sign of life of `peer`: `least`, or longer if the way there is known to be long. A connection takes
/// two round trips, an answer another, and a packet may be lost.
pub fn long_enough(net: &dyn Network, peer: &Peer, least: Duration) -> Duration {
    const ROUND_TRIPS: u32 = 6;
    const LONGEST: Duration = Duration::from_secs(3);
    let known = net.round_trip(peer).unwrap_or_default();
    least.max((known * ROUND_TRIPS).min(LONGEST))
}

/// What a caller hands to the network: the head, to be encoded once its `id` is known, and the payload.
#[derive(Clone, Debug)]
pub struct Request {
    /// The head; its `id` is overwritten.
    pub head: milonga_wire::RequestHead,
    /// The payload.
    pub payload: Payload,
}

/// What comes back.
#[derive(Clone, Debug)]
pub struct Response {
    /// The answer, or why not.
    pub reply: Result<Reply, Refusal>,
    /// The payload.
    pub payload: Payload,
}

/// A server, as the network sees it.
pub trait Service: Send + Sync + 'static {
    /// Takes one request. The answer goes to `respond`, now or later, from any task; it must come, or the caller waits
    /// for its deadline. Called in the order in which the stream delivered the requests (N3), so it must not block for
    /// longer than a disk commit.
    fn serve(&self, caller: &Caller, request: Request, respond: Responder);
}

/// Takes the answers of a stream's requests.
pub trait Answers: Send + Sync + 'static {
    /// Request `head.id`, of `bytes` on the wire, is answered.
    fn answer(&self, head: ReplyHead, payload: Payload);

    /// A request of `bytes` is over, answered or not.
    fn over(&self, bytes: usize);
}

/// Where the answer to one request goes. Dropping it unanswered leaves the caller to its deadline.
pub struct Responder {
    to: Arc<dyn Answers>,
    id: u64,
    bytes: usize,
}

impl Responder {
    /// An answer to request `id`, which holds `bytes`, goes to `to`.
    pub fn of(to: Arc<dyn Answers>, id: u64, bytes: usize) -> Self {
        Self { to, id, bytes }
    }

    /// An answer to request `id` goes to `send`.
    pub fn new(id: u64, send: impl FnOnce(ReplyHead, Payload) + Send + 'static) -> Self {
        Self::of(Arc::new(Once(Mutex::new(Some(send)))), id, 0)
    }

    /// Answers with `reply`.
    pub fn send(self, reply: Result<Reply, Refusal>) {
        self.send_with(reply, Payload::new());
    }

    /// Answers with `reply` and a payload.
    pub fn send_with(self, reply: Result<Reply, Refusal>, payload: Payload) {
        let id = self.id;
        self.to.answer(ReplyHead { id, reply }, payload);
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.to.over(self.bytes);
    }
}

/// One answer, to a closure.
struct Once<F>(Mutex<Option<F>>);

impl<F: FnOnce(ReplyHead, Payload) + Send + 'static> Answers for Once<F> {
    fn answer(&self, head: ReplyHead, payload: Payload) {
        let send = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(send) = send {
            send(head, payload);
        }
    }

    fn over(&self, _: usize) {}
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Responder").field(&self.id).finish()
    }
}

/// What a transport does with a head it cannot decode is its own business; this is how it encodes what a service answered.
///
/// A reply over the frame limit becomes a refusal: a service that checks its limits never meets it.
pub fn reply_frame(head: &ReplyHead, payload: Payload) -> Frame {
    let fallback = |why: String| ReplyHead {
        id: head.id,
        reply: Err(Refusal::malformed(why)),
    };
    Frame::new(head, payload).unwrap_or_else(|error| {
        let small = fallback(format!("the reply does not fit: {error}"));
        Frame::new(&small, Payload::new()).expect("a refusal of bounded text fits a frame")
    })
}
