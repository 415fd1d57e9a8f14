//! Calls between simulated nodes: what becomes of a request and of its reply on their way.

use std::fmt::Write as _;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::BytesMut;
use milonga_host::net::{PeerKind, reply_frame};
use milonga_host::{
    BoxFuture, CallError, Clock, Network, Peer, Responder, net::Request, net::Response,
};
use milonga_wire::{
    Answer, Caller, Frame, Kind, LayoutReply, Payload, Refusal, Reply, ReplyHead, RequestHead,
    SequencerReply, Term, UnitReply, WriteOutcome,
};
use tokio::sync::oneshot;

use super::faults::{NetworkFaults, chance, flip};
use super::node::{Node, NodeId};
use super::world::{Shared, State, World};

/// How long at most a process lives on after the request that it dies of, however late the answer is.
pub const CRASH_WAIT_MAX: Duration = Duration::from_secs(5);

/// The network as one process of one node sees it.
pub struct SimNetwork {
    shared: Arc<Shared>,
    from: NodeId,
    boot: u64,
    clock: Clock,
}

/// A call that waits for its reply.
pub(super) struct Waiting {
    from: NodeId,
    to: NodeId,
    answer: oneshot::Sender<Result<Response, Failure>>,
}

/// Why no reply comes.
pub(super) enum Failure {
    NotSent(String),
    Lost(&'static str),
    Protocol(String),
}

/// What is on its way.
pub(super) enum Arrival {
    Request(Travelling),
    Reply(Travelling),
    /// A caller learns that its call failed.
    Failure(u64, Failure),
    /// A node has sent all that it was to send.
    Crash(NodeId, u64),
}

/// A frame on its way from one process to another.
pub(super) struct Travelling {
    from: NodeId,
    from_boot: u64,
    to: NodeId,
    to_boot: u64,
    call: u64,
    bytes: Payload,
    /// A second copy of a request: it reaches whatever process runs then, as one that a transport sent again would.
    copy: bool,
    /// Which lane a request takes; a reply takes none, since replies may overtake each other.
    lane: Option<u64>,
}

impl SimNetwork {
    pub(super) fn new(shared: Arc<Shared>, from: NodeId, node: &Node) -> Self {
        Self {
            shared,
            from,
            boot: node.boot,
            clock: node.clock.clone(),
        }
    }
}

/// Forgets a call whose caller no longer waits.
struct Abandon<'a>(&'a Shared, u64);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.0.lock().calls.remove(&self.1);
    }
}

impl Network for SimNetwork {
    fn call<'a>(
        &'a self,
        peer: &'a Peer,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'a, Result<Response, CallError>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            let call = send(self, peer, request, answer);
            let _abandon = Abandon(&self.shared, call);
            let outcome = self.clock.within(within, answered).await;
            let peer = peer.to_string();
            match outcome {
                Ok(Ok(Ok(response))) => Ok(response),
                Ok(Ok(Err(Failure::NotSent(why)))) => Err(CallError::NotSent { peer, why }),
                Ok(Ok(Err(Failure::Lost(why)))) => Err(CallError::Lost {
                    peer,
                    why: why.to_owned(),
                }),
                Ok(Ok(Err(Failure::Protocol(why)))) => Err(CallError::Protocol { peer, why }),
                // The sender is only dropped with the world.
                Ok(Err(_)) => Err(CallError::Lost {
                    peer,
                    why: "the run ended".to_owned(),
                }),
                Err(_) => Err(CallError::Deadline {
                    peer,
                    waited: within,
                }),
            }
        })
    }
}

/// Puts a request on its way, or its failure. Returns the call's number.
fn send(
    network: &SimNetwork,
    peer: &Peer,
    request: Request,
    answer: oneshot::Sender<Result<Response, Failure>>,
) -> u64 {
    let shared = &network.shared;
    let now = shared.now_us();
    let mut state = shared.lock();
    let state = &mut *state;
    state.calls_made += 1;
    let (call, from) = (state.calls_made, network.from);
    let verb = request.head.request.verb();
    let head = RequestHead {
        id: call,
        ..request.head
    };
    let frame = Frame::new(&head, request.payload);

    let gone = state.node(from).boot != network.boot;
    if let Some(left) = state
        .node_mut(from)
        .requests_left
        .as_mut()
        .filter(|_| !gone)
    {
        *left = left.saturating_sub(1);
        if *left == 0 {
            state.node_mut(from).requests_left = None;
            // With the answer, or before it.
            let wait = state.random.below(2) * 2 * latency(state);
            let wait = wait.min(CRASH_WAIT_MAX.as_micros() as u64);
            state.schedule(now + wait, Arrival::Crash(from, network.boot));
        }
    }
    let to = state.addresses.get(&peer.address).copied();
    let failure = match (&frame, to) {
        // A process that is gone sends nothing (V3); nobody waits for this either.
        _ if gone => Some(Failure::NotSent("this process is gone".to_owned())),
        (Err(error), _) => Some(Failure::Protocol(error.to_string())),
        (Ok(_), None) => Some(Failure::NotSent("nobody listens there".to_owned())),
        (Ok(_), Some(to)) => refused(state, from, to, peer).map(Failure::NotSent),
    };
    let to_id = to.unwrap_or(from);
    state.calls.insert(
        call,
        Waiting {
            from,
            to: to_id,
            answer,
        },
    );
    let text = describe(state, from, to_id, verb);
    match (frame, failure) {
        (Ok(frame), None) => {
            let boots = (network.boot, state.node(to_id).boot);
            trace(state, now, text, frame.wire_bytes(), "sent", &frame.head);
            launch(state, now, (from, to_id), boots, call, &wire(&frame));
        }
        (_, Some(failure)) => {
            trace(state, now, text, 0, "not sent", &[]);
            state.trace.count("not sent");
            // At once, or after a connection attempt has timed out.
            let wait = latency(state)
                + if chance(&state.random, 250_000) {
                    state.random.below(2_000_000)
                } else {
                    0
                };
            state.schedule(now + wait, Arrival::Failure(call, failure));
        }
        (Err(_), None) => unreachable!("a frame that cannot be made is a failure"),
    }
    shared.rescheduled();
    call
}

/// Why a request from `from` to `to` certainly does not get there, if so (N2).
fn refused(state: &State, from: NodeId, to: NodeId, peer: &Peer) -> Option<String> {
    let node = state.node(to);
    if peer.name.as_ref().is_some_and(|name| *name != node.name) {
        return Some(format!("its certificate names {}", node.name));
    }
    let serves = match peer.kind {
        PeerKind::Layout => node.caller.role.may_serve(Kind::Layout),
        PeerKind::Sequencer => node.caller.role.may_serve(Kind::Sequencer),
        PeerKind::LogUnit => node.caller.role.may_serve(Kind::LogUnit),
        PeerKind::Any => node.caller.role.is_server(),
    };
    if !serves {
        return Some("its certificate is of another role".to_owned());
    }
    if !node.up {
        return Some("connection refused".to_owned());
    }
    // While no packet gets through, a new connection is not made; an old one takes the request and keeps it.
    let blocked = state.blocked.contains(&(from, to)) || state.blocked.contains(&(to, from));
    (blocked && flip(&state.random)).then(|| "no answer to a connection attempt".to_owned())
}

/// Decides what becomes of a request that was sent.
fn launch(
    state: &mut State,
    now: u64,
    (from, to): (NodeId, NodeId),
    (from_boot, to_boot): (u64, u64),
    call: u64,
    bytes: &Payload,
) {
    let leaves = now.max(state.node(from).frozen_until_us);
    let travelling = |lane: Option<u64>| Travelling {
        from,
        from_boot,
        to,
        to_boot,
        call,
        bytes: bytes.clone(),
        copy: lane.is_none(),
        lane,
    };
    if chance(&state.random, state.faults.break_ppm) {
        break_connection(state, now, from, to);
    }
    if chance(&state.random, state.faults.duplicate_ppm) {
        let late = state.random.below(state.faults.duplicate_us_max.max(1));
        state.trace.count("duplicate");
        state.schedule(leaves + late, Arrival::Request(travelling(None)));
    }
    if chance(&state.random, state.faults.lose_ppm) {
        state.trace.count("request lost");
        maybe_notice(state, now, call);
        return;
    }
    let lane = state.random.below(state.faults.lanes);
    let soonest = leaves + latency(state);
    let last = state.lanes.entry((from, to, lane)).or_default();
    *last = soonest.max(*last + 1);
    let at_us = *last;
    state.schedule(at_us, Arrival::Request(travelling(Some(lane))));
}

/// All calls in flight from `from` to `to` fail; their requests may still arrive, their replies do not.
fn break_connection(state: &mut State, now: u64, from: NodeId, to: NodeId) {
    let broken: Vec<u64> = state
        .calls
        .iter()
        .filter(|(_, waiting)| waiting.from == from && waiting.to == to)
        .map(|(call, _)| *call)
        .collect();
    state.trace.count("connection broken");
    for call in broken {
        let at_us = now + latency(state);
        state.schedule(
            at_us,
            Arrival::Failure(call, Failure::Lost("connection reset")),
        );
    }
}

/// In half of all cases the caller notices that its call will bring nothing; else it waits for its deadline.
fn maybe_notice(state: &mut State, now: u64, call: u64) {
    if flip(&state.random) {
        let at_us = now + state.random.below(1_000_000);
        state.schedule(
            at_us,
            Arrival::Failure(call, Failure::Lost("no acknowledgement")),
        );
    }
}

/// What was due at `due_us` arrives, or does not. The runtime's time may be up to a millisecond further.
pub(super) fn deliver(shared: &Arc<Shared>, due_us: u64, what: Arrival) {
    match what {
        Arrival::Request(travelling) => deliver_request(shared, due_us, travelling),
        Arrival::Reply(travelling) => deliver_reply(shared, due_us, travelling),
        Arrival::Failure(call, failure) => {
            let waiting = shared.lock().calls.remove(&call);
            if let Some(waiting) = waiting {
                // The caller may have stopped waiting: then nobody hears it.
                let _ = waiting.answer.send(Err(failure));
            }
        }
        Arrival::Crash(node, boot) => {
            let same = shared.lock().node(node).boot == boot;
            if same {
                World(Arc::clone(shared)).crash(node);
            }
        }
    }
}

fn deliver_request(shared: &Arc<Shared>, now: u64, travelling: Travelling) {
    let mut frame_bytes = travelling.bytes.clone();
    let frame = Frame::take_from(&mut frame_bytes)
        .ok()
        .flatten()
        .expect("a frame that was encoded is decoded (W1)");
    let head: RequestHead = frame
        .decode()
        .expect("a head that was encoded is decoded (W1)");
    let ready = {
        let mut state = shared.lock();
        let state = &mut *state;
        let text = describe(state, travelling.from, travelling.to, head.request.verb());
        let (from, to, call, length) = (
            travelling.from,
            travelling.to,
            travelling.call,
            frame.wire_bytes(),
        );
        let Some(arrived) = pass(state, now, travelling, Arrival::Request) else {
            trace(state, now, text, length, "held or lost", &[]);
            return;
        };
        let node = state.node(to);
        let same = node.boot == arrived.to_boot || arrived.copy;
        match &node.service {
            Some(service) if same => {
                let service = Arc::clone(service);
                let caller = state.node(from).caller.clone();
                let to_boot = state.node(to).boot;
                trace(state, now, text, length, "arrives", &[]);
                state.spring(&head.request);
                Some((service, caller, to_boot, arrived))
            }
            Some(_) | None => {
                trace(state, now, text, length, "finds nobody", &[]);
                maybe_notice(state, now, call);
                None
            }
        }
    };
    let Some((service, caller, to_boot, arrived)) = ready else {
        return;
    };
    serve(
        shared,
        service.as_ref(),
        &caller,
        to_boot,
        &arrived,
        Request {
            head,
            payload: frame.payload,
        },
    );
}

/// Hands a request to the service, outside the world's lock.
fn serve(
    shared: &Arc<Shared>,
    service: &dyn milonga_host::Service,
    caller: &Caller,
    boot: u64,
    arrived: &Travelling,
    request: Request,
) {
    let world: Weak<Shared> = Arc::downgrade(shared);
    let (server, client, client_boot, call) =
        (arrived.to, arrived.from, arrived.from_boot, arrived.call);
    let (verb, term) = (request.head.request.verb(), request.head.term);
    let respond = Responder::new(call, move |head: ReplyHead, payload: Payload| {
        let Some(shared) = world.upgrade() else {
            return;
        };
        let now = shared.now_us();
        let mut state = shared.lock();
        let state = &mut *state;
        if state.node(server).boot != boot {
            return; // V3.
        }
        let frame = reply_frame(&head, payload);
        let mut text = describe(state, server, client, verb);
        blame(state, server, &text, &head);
        let _ = write!(text, ": {}", outcome(&head));
        trace(
            state,
            now,
            text,
            frame.wire_bytes(),
            "answered",
            &frame.head,
        );
        count(state, term, &head);
        if chance(&state.random, state.faults.lose_ppm) {
            state.trace.count("reply lost");
            maybe_notice(state, now, call);
            return;
        }
        let at_us = now.max(state.node(server).frozen_until_us) + latency(state);
        state.schedule(
            at_us,
            Arrival::Reply(Travelling {
                from: server,
                from_boot: boot,
                to: client,
                to_boot: client_boot,
                call,
                bytes: wire(&frame),
                copy: false,
                lane: None,
            }),
        );
        shared.rescheduled();
    });
    service.serve(caller, request, respond);
}

fn deliver_reply(shared: &Arc<Shared>, now: u64, travelling: Travelling) {
    let mut state = shared.lock();
    let state = &mut *state;
    let Some(arrived) = pass(state, now, travelling, Arrival::Reply) else {
        return;
    };
    // V3: what a process sent before it crashed may still arrive; nothing reaches one that is gone.
    if state.node(arrived.to).boot != arrived.to_boot {
        return;
    }
    let Some(waiting) = state.calls.remove(&arrived.call) else {
        state.trace.count("late reply");
        return;
    };
    let mut bytes = arrived.bytes;
    let decoded = Frame::take_from(&mut bytes)
        .ok()
        .flatten()
        .and_then(|frame| Some((frame.decode::<ReplyHead>().ok()?, frame.payload)));
    let answer = match decoded {
        Some((head, payload)) => {
            assert_eq!(head.id, arrived.call, "N1: a reply of another call");
            Ok(Response {
                reply: head.reply,
                payload,
            })
        }
        None => Err(Failure::Protocol("the reply is no reply".to_owned())),
    };
    let text = describe(state, arrived.from, arrived.to, "reply");
    trace(state, now, text, 0, "arrives", &[]);
    let _ = waiting.answer.send(answer);
}

/// Lets a frame through, or holds it (a freeze, a partition that may end), or loses it. Requests behind one that is held
/// on the same lane wait with it (N3).
fn pass(
    state: &mut State,
    now: u64,
    travelling: Travelling,
    again: fn(Travelling) -> Arrival,
) -> Option<Travelling> {
    let Travelling { from, to, lane, .. } = travelling;
    let lane = lane.map(|lane| (from, to, lane));
    let behind = lane.and_then(|lane| state.held_until.get(&lane).copied());
    let thaws = state.node(to).frozen_until_us;
    // Behind the others first, even if the freeze lasts longer: they were sent earlier.
    let waits_until = behind.filter(|until| *until > now).unwrap_or(thaws);
    if waits_until > now {
        if let Some(lane) = lane {
            state.held_until.insert(lane, waits_until);
        }
        state.schedule(waits_until, again(travelling));
        return None;
    }
    if !state.blocked.contains(&(from, to)) {
        return Some(travelling);
    }
    // The transport repeats what is not acknowledged until it gives the connection up.
    if chance(&state.random, 800_000) {
        let at_us = now + 50_000 + state.random.below(500_000);
        if let Some(lane) = lane {
            state.held_until.insert(lane, at_us);
        }
        state.schedule(at_us, again(travelling));
    } else {
        state.trace.count("lost in a partition");
        maybe_notice(state, now, travelling.call);
    }
    None
}

fn latency(state: &State) -> u64 {
    let NetworkFaults {
        latency_us_min,
        latency_us_max,
        straggle_ppm,
        straggle_us_max,
        ..
    } = state.faults;
    let usual = latency_us_min
        + state
            .random
            .below(latency_us_max.saturating_sub(latency_us_min) + 1);
    if chance(&state.random, straggle_ppm) {
        usual + state.random.below(straggle_us_max + 1)
    } else {
        usual
    }
}

/// A frame as it travels: one run of bytes, as far as anyone can tell.
fn wire(frame: &Frame) -> Payload {
    let mut head = BytesMut::new();
    frame.encode_head(&mut head);
    let mut bytes = Payload::from(head.freeze());
    bytes.append(frame.payload.clone());
    bytes
}

fn describe(state: &State, from: NodeId, to: NodeId, verb: &str) -> String {
    format!(
        "{} -> {} {verb}",
        state.node(from).name,
        state.node(to).name
    )
}

fn trace(
    state: &mut State,
    now: u64,
    mut text: String,
    length: usize,
    outcome: &str,
    bytes: &[u8],
) {
    let _ = write!(text, ", {length} bytes, {outcome}");
    state.trace.line(now, &text, bytes);
}

/// What a server refuses because no client that keeps to the protocol asks for it, as one that is unlucky may. The clients
/// here are the real ones: the guard held, and something in front of it did not.
fn blame(state: &mut State, server: NodeId, text: &str, head: &ReplyHead) {
    let votes = matches!(
        &head.reply,
        Ok(Reply::Layout(
            LayoutReply::Promised(_) | LayoutReply::Accepted { .. }
        ))
    );
    if votes && state.voteless.contains(&server) {
        state.blame(format!("A3: {text}: it has no vote"));
    }
    if let Err(
        refusal @ (Refusal::Malformed { .. }
        | Refusal::BeyondEnd { .. }
        | Refusal::TooLarge { .. }
        | Refusal::WrongCluster { .. }
        | Refusal::WrongKind { .. }),
    ) = &head.reply
    {
        state.blame(format!("I11: {text}: {refusal}"));
    }
}

/// Counts what a set of runs should have met: a fault or a race that no run met was not tested.
fn count(state: &mut State, term: Term, head: &ReplyHead) {
    let what = match &head.reply {
        Ok(Reply::Unit(UnitReply::Sealed(sealed))) => {
            if !sealed.synced {
                state.trace.count("seal of a store with a torn end");
            }
            let first = *state.seals.entry(term).or_insert(sealed.end);
            if first != sealed.end {
                state.trace.count("seal of units with unequal ends");
            }
            "seal"
        }
        Ok(Reply::Unit(UnitReply::Filled(_))) => "fill",
        Ok(Reply::Unit(UnitReply::Written(outcomes))) => {
            let taken = |outcome: &WriteOutcome| matches!(outcome, WriteOutcome::Taken { .. });
            if !outcomes.iter().any(taken) {
                return;
            }
            "write of a taken position"
        }
        Ok(Reply::Unit(UnitReply::Read(answers))) => {
            if !answers.iter().any(|a| matches!(a, Answer::Unknown(_))) {
                return;
            }
            "read answered unknown"
        }
        Ok(Reply::Layout(LayoutReply::Accepted { .. })) => "layout accepted",
        Err(Refusal::StaleTerm { .. }) => "refused: stale term",
        Err(Refusal::FutureTerm { .. }) => "refused: future term",
        Err(Refusal::WrongIncarnation { .. }) => "refused: another process start",
        Err(Refusal::Unknown { .. }) => "refused: unknown here",
        Err(Refusal::NotAnnounced { .. }) => "refused: not announced",
        Err(Refusal::NotBootstrapped { .. }) => "refused: not bootstrapped",
        Err(Refusal::DiskFailed { .. }) => "refused: disk failed",
        Err(Refusal::Outranked { .. }) => "refused: outranked",
        Err(Refusal::Unconfirmed { .. }) => "refused: unconfirmed",
        Err(Refusal::Trimmed { .. }) => "refused: trimmed",
        Err(Refusal::TermJump { .. }) => "refused: term jump",
        Err(Refusal::Malformed { .. }) => "refused: malformed",
        Ok(_) | Err(_) => return,
    };
    state.trace.count(what);
}

/// What a reply says, in a word or two.
fn outcome(head: &ReplyHead) -> String {
    match &head.reply {
        Ok(Reply::Unit(UnitReply::Written(outcomes))) => format!("{outcomes:?}"),
        Ok(Reply::Sequencer(SequencerReply::Token(token))) => {
            format!("{} from {}", token.count, token.first)
        }
        Ok(Reply::Sequencer(SequencerReply::End { end, term, .. })) => {
            format!("{end} in term {term}")
        }
        Ok(_) => "ok".to_owned(),
        Err(refusal) => brief(refusal),
    }
}

/// A refusal's text, without what a long one repeats.
fn brief(refusal: &Refusal) -> String {
    refusal.to_string().chars().take(120).collect()
}
