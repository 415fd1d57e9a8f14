//! The layout server's shell: durable before answered.

use std::time::Duration;

use milonga_host::{BoxFuture, CallError, Network, Peer, Random, Tasks};
use milonga_wire::{Layout, Payload, Report, RequestHead, Role, SequencerRequest, Target};

use super::*;
use crate::acceptor::tests::{CLUSTER, decided, layout, rank};
use crate::store::tests::Handle;

/// A layout server calls nobody.
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
    let host = Host {
        net: Arc::new(Nobody),
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
    };
    Server::start(&host, disk, CLUSTER, &config).unwrap()
}

fn asked_by(role: Role, server: &Server, term: u64, request: Request) -> Result<Reply, Refusal> {
    let (send, receive) = std::sync::mpsc::channel();
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
    receive.try_recv().unwrap()
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
