//! The layout server's shell: durable before answered.

use std::time::Duration;

use milonga_host::{BoxFuture, CallError, Network, Peer, Random, Tasks};
use milonga_wire::{
    Brought, Layout, Payload, Relayed, Report, RequestHead, Role, SequencerReply, SequencerRequest,
    Target, UnitReply, UnitRequest,
};
use tokio::sync::{Semaphore, oneshot};

use super::*;
use crate::acceptor::tests::{CLUSTER, decided, layout, rank};
use crate::store::tests::Handle;

/// A layout server calls nobody but suspects, and whom it passes something on to.
struct Nobody;

impl Network for Nobody {
    fn call<'a>(
        &'a self,
        peer: &'a Peer,
        _: net::Request,
        _: Duration,
    ) -> BoxFuture<'a, Result<net::Response, CallError>> {
        panic!("nobody calls {peer}");
    }
}

fn start(disk: Arc<Handle>, seed: u64) -> Arc<Server> {
    start_on(Arc::new(Nobody), disk, seed).0
}

fn start_on(net: Arc<dyn Network>, disk: Arc<Handle>, seed: u64) -> (Arc<Server>, Tasks) {
    let host = Host {
        net,
        clock: Clock::real(),
        random: Random::seeded(seed),
        tasks: Tasks::new(),
    };
    let config = Config {
        name: "s-1".parse().unwrap(),
        listen: "127.0.0.1:7001".parse().unwrap(),
        admin: None,
        dir: "l-1".into(),
        layout: vec![],
        ca: "ca".into(),
        cert: "cert".into(),
        key: "key".into(),
        caretaker: false,
        reports_max: 8,
        opinion: Duration::from_millis(500),
    };
    let server = Server::start(&host, disk, CLUSTER, &config).unwrap();
    (server, host.tasks)
}

fn asked_by(role: Role, server: &Server, term: u64, request: Request) -> Result<Reply, Refusal> {
    sent_by(role, server, term, request).try_recv().unwrap()
}

fn sent_by(
    role: Role,
    server: &Server,
    term: u64,
    request: Request,
) -> oneshot::Receiver<Result<Reply, Refusal>> {
    let (send, receive) = oneshot::channel();
    let caller = Caller {
        cluster: CLUSTER,
        role,
        name: "c".parse().unwrap(),
    };
    let head = RequestHead {
        id: 1,
        cluster: CLUSTER,
        to: Some(Target {
            identity: server.identity(),
            incarnation: Incarnation(0),
        }),
        term: Term(term),
        request,
    };
    let payload = Payload::new();
    let respond = Responder::new(1, move |head, _| send.send(head.reply).unwrap());
    server.serve(&caller, net::Request { head, payload }, respond);
    receive
}

fn ask(server: &Server, term: u64, request: LayoutRequest) -> Result<LayoutReply, Refusal> {
    match asked_by(Role::Admin, server, term, Request::Layout(request))? {
        Reply::Layout(reply) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

/// The layout of `term`, with `server` as its first layout server.
fn names(server: &Server, term: u64, change: &str) -> Layout {
    let mut layout = layout(term, change);
    layout.layout_servers[0].identity = server.identity();
    layout
}

fn initialise(server: &Server) {
    let layout = Box::new(names(server, 0, "init"));
    let reply = ask(server, 0, LayoutRequest::Genesis { layout });
    assert_eq!(reply, Ok(LayoutReply::Initialised));
}

fn propose(server: &Server, number: u64) -> Result<LayoutReply, Refusal> {
    let layout = Box::new(names(server, 1, "a"));
    let rank = rank(number);
    ask(server, 1, LayoutRequest::Propose { rank, layout })
}

/// Paxos Made Simple, "Implementing a State Machine": what was answered survives a crash right behind the answer.
#[test]
fn a_vote_that_was_answered_survives_a_crash() {
    let disk = Handle::new();
    let server = start(Arc::clone(&disk), 1);
    initialise(&server);
    ask(&server, 1, LayoutRequest::Prepare { rank: rank(5) }).unwrap();
    let before = disk.0.crashed(false);
    propose(&server, 5).unwrap();

    let promised = start(before, 2);
    assert_eq!(
        ask(&promised, 1, LayoutRequest::Prepare { rank: rank(4) }),
        Err(Refusal::Outranked { promised: rank(5) })
    );

    let accepted = start(disk.0.crashed(false), 3);
    assert_eq!(accepted.identity(), server.identity());
    assert_ne!(accepted.incarnation(), server.incarnation());
    let reply = ask(&accepted, 1, LayoutRequest::Prepare { rank: rank(6) }).unwrap();
    let LayoutReply::Promised(promise) = reply else {
        panic!("{reply:?}");
    };
    let layout = Box::new(names(&server, 1, "a"));
    assert_eq!(promise.accepted, Some((rank(5), layout)));
    assert!(matches!(
        ask(&accepted, 0, LayoutRequest::Confirm),
        Err(Refusal::StaleTerm { .. })
    ));
}

/// H20: a decision, too.
#[test]
fn a_decision_that_was_answered_survives_a_crash() {
    let disk = Handle::new();
    let server = start(Arc::clone(&disk), 1);
    initialise(&server);
    let mut decision = decided(names(&server, 1, "a"));
    decision.acceptances[0].server = server.identity();
    let learn = LayoutRequest::Learn {
        decided: Box::new(decision.clone()),
    };
    ask(&server, 1, learn).unwrap();

    let again = start(disk.0.crashed(false), 2);

    let decided = Some(Box::new(decision));
    assert_eq!(
        ask(&again, 1, LayoutRequest::At),
        Ok(LayoutReply::At { decided })
    );
    assert_eq!(
        ask(&again, 1, LayoutRequest::Confirm),
        Ok(LayoutReply::Confirmed { term: Term(1) })
    );
}

/// A vote that did not reach the disk is no vote, and neither is any after it; what is decided can still be read.
#[test]
fn after_a_failed_disk_it_never_votes_or_confirms_again() {
    let break_it: [fn(&Handle); 2] = [|disk| disk.0.fail_sync_after(0), |disk| disk.0.fill()];
    for breaks in break_it {
        let disk = Handle::new();
        let server = start(Arc::clone(&disk), 1);
        initialise(&server);
        breaks(&disk);

        let failed = |reply| matches!(reply, Err(Refusal::DiskFailed { .. }));
        assert!(failed(propose(&server, 5)));
        assert!(failed(propose(&server, 6)));
        assert!(failed(ask(&server, 0, LayoutRequest::Confirm)));
        assert!(failed(ask(
            &server,
            1,
            LayoutRequest::Prepare { rank: rank(7) }
        )));
        assert!(server.ready().is_err());
        let newest = ask(&server, 0, LayoutRequest::Newest).unwrap();
        assert!(matches!(
            newest,
            LayoutReply::Newest { decided: Some(_), standing } if standing.accepted.is_none()
        ));

        let again = start(disk.0.crashed(true), 2);
        assert!(ask(&again, 0, LayoutRequest::Confirm).is_ok());
    }
}

#[test]
fn it_says_what_it_is_and_why_it_is_not_ready() {
    let server = start(Handle::new(), 1);
    assert!(server.ready().unwrap_err().contains("blank"));
    let describe = || match asked_by(Role::Reader, &server, 0, Request::Describe).unwrap() {
        Reply::Described(description) => description,
        other => panic!("{other:?}"),
    };
    assert!(describe().blank);
    assert_eq!(describe().state, "blank");

    initialise(&server);

    assert!(!describe().blank);
    assert_eq!((describe().kind, describe().term), (Kind::Layout, Term(0)));
    assert_eq!(server.ready(), Ok(()));
    assert_eq!(server.newest().unwrap().layout, names(&server, 0, "init"));
}

#[test]
fn a_request_for_another_kind_of_server_or_role_is_refused() {
    let server = start(Handle::new(), 1);
    let probe = Request::Sequencer(SequencerRequest::Probe);
    let prepare = Request::Layout(LayoutRequest::Prepare { rank: rank(1) });

    assert!(matches!(
        asked_by(Role::Admin, &server, 0, probe),
        Err(Refusal::WrongKind { .. })
    ));
    assert!(matches!(
        asked_by(Role::Writer, &server, 1, prepare),
        Err(Refusal::WrongRole { .. })
    ));
}

#[test]
fn reports_reach_the_caretaker_with_the_name_of_who_made_them() {
    let server = start(Handle::new(), 1);
    let report = Report::Suspect {
        server: "u-1".parse().unwrap(),
        why: "silent".to_owned(),
    };
    let request = Request::Layout(LayoutRequest::Report(report.clone()));

    let reply = asked_by(Role::Writer, &server, 0, request);

    assert_eq!(reply, Ok(Reply::Layout(LayoutReply::Noted)));
    let taken = server.reports().take();
    assert_eq!(taken.len(), 1);
    assert_eq!((taken[0].by.as_str(), &taken[0].report), ("c", &report));
}

/// A network on which every call stands at a gate, and ends as the next of `ends` says.
struct Gated {
    arrived: Semaphore,
    open: Semaphore,
    ends: Mutex<Vec<Result<Reply, End>>>,
    called: Mutex<Vec<(Peer, net::Request)>>,
    /// Who says at once that it is there.
    there: Mutex<Identity>,
}

/// How a call ends that brings no reply.
#[derive(Clone)]
enum End {
    Breaks,
    Refused(Refusal),
}

impl Gated {
    /// The calls end in this order.
    fn new(ends: &[Result<Reply, End>]) -> Arc<Self> {
        Arc::new(Self {
            arrived: Semaphore::new(0),
            open: Semaphore::new(0),
            ends: Mutex::new(ends.iter().rev().cloned().collect()),
            called: Mutex::default(),
            there: Mutex::new(Identity([0; 16])),
        })
    }

    async fn arrived(&self) {
        self.arrived.acquire().await.unwrap().forget();
    }

    fn called(&self) -> usize {
        self.called.lock().unwrap().len()
    }
}

impl Network for Gated {
    fn call<'a>(
        &'a self,
        peer: &'a Peer,
        request: net::Request,
        within: Duration,
    ) -> BoxFuture<'a, Result<net::Response, CallError>> {
        Box::pin(async move {
            if request.head.request == Request::Describe {
                assert!(within <= Duration::from_millis(500));
                let described = Description {
                    kind: Kind::LogUnit,
                    name: peer.name.clone().unwrap(),
                    identity: *self.there.lock().unwrap(),
                    incarnation: Incarnation(1),
                    term: Term(0),
                    blank: false,
                    end: Position::FIRST,
                    trimmed: Position::FIRST,
                    bytes: 0,
                    reads: 0,
                    state: "serving".to_owned(),
                    version: String::new(),
                    damaged: 0,
                    busy_per_mille: 0,
                };
                let reply = Ok(Reply::Described(described.into()));
                let payload = Payload::new();
                return Ok(net::Response { reply, payload });
            }
            self.called.lock().unwrap().push((peer.clone(), request));
            self.arrived.add_permits(1);
            self.open.acquire().await.unwrap().forget();
            let end = self.ends.lock().unwrap().pop().expect("one call less");
            let reply = match end {
                Ok(reply) => Ok(reply),
                Err(End::Refused(refusal)) => Err(refusal),
                Err(End::Breaks) => {
                    return Err(CallError::Lost {
                        peer: peer.to_string(),
                        why: "no such process".to_owned(),
                    });
                }
            };
            let payload = Payload::new();
            Ok(net::Response { reply, payload })
        })
    }
}

fn opinion(of: &milonga_wire::Server, kind: Kind) -> Request {
    let of = Box::new(of.clone());
    Request::Layout(LayoutRequest::Opinion { of, kind })
}

fn well() -> Reply {
    Reply::Layout(LayoutReply::Opinion { trouble: None })
}

/// E1, E2, H29: one asks, then two more while the probe for the first is under way. Those must not be told what the first
/// probe found, which may be older than their question.
#[tokio::test(start_paused = true)]
async fn an_opinion_comes_from_a_probe_that_began_after_it_was_asked_for() {
    let failed = Refusal::DiskFailed {
        why: "the cable is out".to_owned(),
    };
    let net = Gated::new(&[
        Ok(Reply::Unit(UnitReply::Probed)),
        Err(End::Refused(failed)),
    ]);
    let (server, _tasks) = start_on(net.clone(), Handle::new(), 1);
    initialise(&server);
    let unit = names(&server, 0, "init").units[0].clone();
    *net.there.lock().unwrap() = unit.identity;
    let ask = || sent_by(Role::Control, &server, 0, opinion(&unit, Kind::LogUnit));

    let early = ask();
    net.arrived().await;
    let mut late = [ask(), ask()];
    net.open.add_permits(1);
    assert_eq!(early.await.unwrap(), Ok(well()));
    assert!(late.iter_mut().all(|answer| answer.try_recv().is_err()));
    net.arrived().await;
    net.open.add_permits(1);
    for answer in late {
        let Ok(Reply::Layout(LayoutReply::Opinion {
            trouble: Some(trouble),
        })) = answer.await.unwrap()
        else {
            panic!("no trouble");
        };
        assert!(trouble.contains("the cable is out"), "{trouble}");
    }

    assert_eq!(net.called(), 2);
    let called = net.called.lock().unwrap();
    let (peer, request) = &called[0];
    assert_eq!(
        (peer.name.as_ref(), &peer.address),
        (Some(&unit.name), &unit.address)
    );
    assert_eq!(request.head.request, Request::Unit(UnitRequest::Probe));
    assert_eq!(request.head.to.unwrap().identity, unit.identity);
}

/// H29: the connection to a process that is gone says nothing of the one that took its place.
#[tokio::test(start_paused = true)]
async fn a_probe_that_breaks_is_tried_again_while_there_is_time() {
    let probed = Reply::Sequencer(SequencerReply::Probed { serving: false });
    let net = Gated::new(&[Err(End::Breaks), Ok(probed)]);
    let (server, _tasks) = start_on(net.clone(), Handle::new(), 1);
    initialise(&server);
    let sequencer = names(&server, 0, "init").sequencer;
    let ask = || {
        sent_by(
            Role::Control,
            &server,
            0,
            opinion(&sequencer, Kind::Sequencer),
        )
    };
    net.open.add_permits(2);
    assert_eq!(ask().await.unwrap(), Ok(well()));
    assert_eq!(net.called(), 2);

    let net = Gated::new(&vec![Err(End::Breaks); 100]);
    let (server, _tasks) = start_on(net.clone(), Handle::new(), 1);
    initialise(&server);
    net.open.add_permits(100);
    let ask = || {
        sent_by(
            Role::Control,
            &server,
            0,
            opinion(&sequencer, Kind::Sequencer),
        )
    };
    let reply = ask().await.unwrap();
    assert!(
        matches!(&reply, Ok(Reply::Layout(LayoutReply::Opinion { trouble: Some(why) })) if why.contains("no such process")),
        "{reply:?}"
    );
    assert!((5..=10).contains(&net.called()), "{}", net.called());
}

/// A network whose other end is so far away that an answer takes this long at first.
struct Far {
    answers_after: Duration,
    round_trip: Option<Duration>,
}

impl Network for Far {
    fn call<'a>(
        &'a self,
        peer: &'a Peer,
        _: net::Request,
        within: Duration,
    ) -> BoxFuture<'a, Result<net::Response, CallError>> {
        Box::pin(async move {
            Clock::real().sleep(self.answers_after.min(within)).await;
            if self.answers_after > within {
                let (peer, waited) = (peer.to_string(), within);
                return Err(CallError::Deadline { peer, waited });
            }
            let reply = Ok(Reply::Sequencer(SequencerReply::Probed { serving: true }));
            let payload = Payload::new();
            Ok(net::Response { reply, payload })
        })
    }

    fn round_trip(&self, _: &Peer) -> Option<Duration> {
        self.round_trip
    }
}

/// H29: who is far away is well, as far as the measured round trip explains how long its answer takes.
#[tokio::test(start_paused = true)]
async fn who_is_far_away_is_waited_for_longer() {
    let (near, far) = (Duration::from_millis(1), Duration::from_millis(300));
    for (answers_after, round_trip, is_well) in [
        (far, None, true),
        (far * 3, Some(far), true),
        (far * 3, Some(near), false),
        (far * 3, None, false),
        (far * 8, Some(far), false),
    ] {
        let net = Arc::new(Far {
            answers_after,
            round_trip,
        });
        let (server, _tasks) = start_on(net, Handle::new(), 1);
        initialise(&server);
        let sequencer = names(&server, 0, "init").sequencer;
        let question = opinion(&sequencer, Kind::Sequencer);
        let reply = sent_by(Role::Control, &server, 0, question).await.unwrap();
        assert_eq!(reply == Ok(well()), is_well, "{reply:?}");
    }
}

/// E3: the network of this test panics when it is used.
#[tokio::test(start_paused = true)]
async fn no_packet_goes_to_anybody_whom_the_layout_does_not_list() {
    let server = start(Handle::new(), 1);
    initialise(&server);
    let unit = names(&server, 0, "init").units[0].clone();
    let elsewhere = milonga_wire::Server {
        address: "192.0.2.1:53".parse().unwrap(),
        ..unit.clone()
    };
    let ask = |role, of, kind| asked_by(role, &server, 0, opinion(of, kind));

    for (of, kind) in [(&elsewhere, Kind::LogUnit), (&unit, Kind::Layout)] {
        assert!(matches!(
            ask(Role::Control, of, kind),
            Err(Refusal::Malformed { .. })
        ));
    }
    assert!(matches!(
        ask(Role::Writer, &unit, Kind::LogUnit),
        Err(Refusal::WrongRole { .. })
    ));
}

fn relay(to: &milonga_wire::Server, request: Relayed) -> Request {
    let to = Box::new(to.clone());
    Request::Layout(LayoutRequest::Relay { to, request })
}

fn brought(reply: Result<Reply, Refusal>) -> Brought {
    match reply {
        Ok(Reply::Layout(LayoutReply::Relayed(brought))) => *brought,
        other => panic!("{other:?}"),
    }
}

/// B1, B2: the network of this test panics when it is used.
#[tokio::test(start_paused = true)]
async fn nothing_is_passed_on_for_who_may_not_ask_or_to_who_is_not_listed() {
    let server = start(Handle::new(), 1);
    initialise(&server);
    let layout = names(&server, 0, "init");
    let unit = layout.units[0].clone();
    let elsewhere = milonga_wire::Server {
        address: "192.0.2.1:53".parse().unwrap(),
        ..unit.clone()
    };
    let ask = |role, term, to, request| asked_by(role, &server, term, relay(to, request));
    for role in [
        Role::Reader,
        Role::Writer,
        Role::LogUnit,
        Role::Sequencer,
        Role::Layout,
        Role::Server,
    ] {
        assert!(matches!(
            ask(role, 1, &unit, Relayed::SealUnit),
            Err(Refusal::WrongRole { .. })
        ));
    }
    for (to, request) in [
        (&elsewhere, Relayed::SealUnit),
        (&unit, Relayed::SealSequencer),
        (&layout.layout_servers[0], Relayed::Describe(Kind::Layout)),
    ] {
        // Of that term, another layout may have been proposed; who proposes it learns which was decided.
        let refused = ask(Role::Control, 0, to, request.clone());
        assert!(
            matches!(refused, Err(Refusal::Decided { .. })),
            "{refused:?}"
        );
        let refused = ask(Role::Control, 1, to, request);
        assert!(
            matches!(refused, Err(Refusal::Behind { .. })),
            "{refused:?}"
        );
    }
    let newest = Some(Term(0));
    assert_eq!(
        ask(Role::Control, 2, &unit, Relayed::SealUnit),
        Err(Refusal::Behind { newest })
    );
}

/// B3: an answer, a refusal and silence are three things, and what the server said is its own.
#[tokio::test(start_paused = true)]
async fn what_the_server_said_is_passed_back_as_it_is_and_silence_is_called_so() {
    let refusal = Refusal::WrongIncarnation {
        asked: Incarnation(8),
        here: Incarnation(9),
    };
    let counter = SequencerReply::Sealed {
        counter: Some(Position(7)),
    };
    let net = Gated::new(&[
        Ok(Reply::Sequencer(counter.clone())),
        Err(End::Refused(refusal.clone())),
        Err(End::Breaks),
        Ok(well()),
    ]);
    let (server, _tasks) = start_on(net.clone(), Handle::new(), 1);
    initialise(&server);
    net.open.add_permits(4);
    let layout = names(&server, 0, "init");
    let unit = milonga_wire::Server {
        incarnation: Incarnation(8),
        ..layout.units[0].clone()
    };
    let ask = |to, request| sent_by(Role::Control, &server, 1, relay(to, request));

    let sealed = ask(&layout.sequencer, Relayed::SealSequencer)
        .await
        .unwrap();
    assert_eq!(brought(sealed), Brought::Sequencer(counter));
    let refused = ask(&unit, Relayed::SealUnit).await.unwrap();
    assert_eq!(brought(refused), Brought::Refused(refusal));
    let silent = brought(ask(&unit, Relayed::SealUnit).await.unwrap());
    assert!(
        matches!(&silent, Brought::Silent { why } if why.contains("no such process")),
        "{silent:?}"
    );
    let senseless = brought(ask(&unit, Relayed::SealUnit).await.unwrap());
    assert!(matches!(senseless, Brought::Silent { .. }), "{senseless:?}");

    let called = net.called.lock().unwrap();
    let (peer, request) = &called[1];
    assert_eq!(
        (peer.name.as_ref(), &peer.address),
        (Some(&unit.name), &unit.address)
    );
    assert_eq!(request.head.request, Request::Unit(UnitRequest::Seal));
    assert_eq!(request.head.term, Term(1));
    let to = request.head.to.unwrap();
    assert_eq!(
        (to.identity, to.incarnation),
        (unit.identity, unit.incarnation)
    );
}

/// B4: relays that get no answer fill their own bound and nothing else: the server votes on, and there is room again when
/// one of them ends.
#[tokio::test(start_paused = true)]
async fn relays_are_bounded_and_hold_no_vote_up() {
    let announced = Ok(Reply::Unit(UnitReply::Announced));
    let net = Gated::new(&vec![announced; 100]);
    let (server, _tasks) = start_on(net.clone(), Handle::new(), 1);
    initialise(&server);
    let unit = names(&server, 0, "init").units[0].clone();
    let announce = || Relayed::Announce { start: Position(3) };
    let ask = || sent_by(Role::Control, &server, 0, relay(&unit, announce()));
    let mut waiting = vec![];
    for _ in 0..64 {
        waiting.push(ask());
        net.arrived().await;
    }
    let busy = ask().try_recv().unwrap();
    assert!(matches!(busy, Err(Refusal::Busy { .. })), "{busy:?}");
    assert!(propose(&server, 5).is_ok());
    assert_eq!(net.called(), 64);

    net.open.add_permits(1);
    // Whichever ended: the first that came to the gate.
    let first = waiting.remove(0).await.unwrap();
    assert_eq!(brought(first), Brought::Unit(UnitReply::Announced));
    let mut one_more = ask();
    assert!(one_more.try_recv().is_err());
    net.arrived().await;
    net.open.add_permits(64);
    for answer in waiting.into_iter().chain([one_more]) {
        brought(answer.await.unwrap());
    }
}
