//! The real stack on loopback sockets, and once over a simulated one.

use std::collections::VecDeque;
use std::net::UdpSocket;
use std::task::Waker;

use milonga_wire::{ClusterId, Frame, Reply, Request as Asked, Role, Term, UnitReply, UnitRequest};
use proptest::prelude::*;

use super::*;
use crate::certificates::{Pair, Validity, new_authority, sign};
use crate::tls::CredentialTexts;
use crate::{PeerKind, Responder};

const LONG: Duration = Duration::from_secs(20);
const DAY_MS: u64 = 86_400_000;

/// A cluster's authority, and what it is good for.
struct Cluster {
    id: ClusterId,
    authority: Pair,
    valid: Validity,
}

impl Cluster {
    fn new(id: u8) -> Self {
        let id = ClusterId([id; 16]);
        let from_ms = Clock::real().wall_ms();
        let valid = Validity { from_ms, days: 30 };
        let authority = new_authority(id, valid).unwrap();
        Self {
            id,
            authority,
            valid,
        }
    }

    fn leaf(&self, role: Role, name: &str) -> Pair {
        let (cluster, name) = (self.id, name.parse().unwrap());
        let caller = Caller {
            cluster,
            role,
            name,
        };
        sign(&self.authority, &caller, &[], self.valid).unwrap()
    }

    fn credentials(&self, role: Role, name: &str) -> Credentials {
        credentials(
            &self.leaf(role, name),
            &self.authority.certificate,
            &Clock::real(),
        )
    }

    fn node(&self, role: Role, name: &str) -> Node {
        Node::new(TransportOptions::default(), self.credentials(role, name))
    }
}

fn credentials(leaf: &Pair, authorities: &str, clock: &Clock) -> Credentials {
    let texts = CredentialTexts {
        certificate: &leaf.certificate,
        key: &leaf.key,
        authorities,
    };
    Credentials::from_pem(texts, clock).unwrap()
}

struct Node {
    transport: Transport,
    tasks: Tasks,
}

impl Node {
    fn new(options: TransportOptions, credentials: Credentials) -> Self {
        let tasks = Tasks::new();
        let (clock, random) = (Clock::real(), Random::real());
        let transport = Transport::bind(options, credentials, clock, random, &tasks).unwrap();
        Self { transport, tasks }
    }

    async fn serve(&self, service: Arc<dyn Service>) -> ServerHandle {
        let listen = "127.0.0.1:0".parse().unwrap();
        self.transport.serve(&listen, service).await.unwrap()
    }

    async fn probe(&self, peer: &Peer, payload: Payload) -> Result<Response, CallError> {
        self.transport.call(peer, probe(payload), LONG).await
    }

    async fn refused(&self, peer: &Peer) -> String {
        match self.probe(peer, Payload::new()).await {
            Err(CallError::NotSent { why, .. }) => why,
            other => panic!("expected NotSent, got {other:?}"),
        }
    }
}

fn peer(server: &ServerHandle, name: Option<&str>, kind: PeerKind) -> Peer {
    Peer {
        name: name.map(|name| name.parse().unwrap()),
        address: server.local_address().to_string().parse().unwrap(),
        kind,
    }
}

fn probe(payload: Payload) -> Request {
    Request {
        head: RequestHead {
            id: 0,
            cluster: ClusterId([1; 16]),
            to: None,
            term: Term(0),
            request: Asked::Unit(UnitRequest::Probe),
        },
        payload,
    }
}

fn number(n: u64) -> Payload {
    n.to_le_bytes().to_vec().into()
}

/// Answers at once with the payload that came.
struct Echo;

impl Service for Echo {
    fn serve(&self, _: &Caller, request: Request, respond: Responder) {
        respond.send_with(Ok(Reply::Unit(UnitReply::Probed)), request.payload);
    }
}

/// Keeps what it is asked until the test lets it answer.
#[derive(Default)]
struct Held {
    requests: Mutex<VecDeque<(Caller, Request, Responder)>>,
    came: tokio::sync::Notify,
}

impl Service for Held {
    fn serve(&self, caller: &Caller, request: Request, respond: Responder) {
        let mut requests = self.requests.lock().unwrap();
        requests.push_back((caller.clone(), request, respond));
        self.came.notify_one();
    }
}

impl Held {
    async fn next(&self) -> (Caller, Request, Responder) {
        loop {
            if let Some(next) = self.requests.lock().unwrap().pop_front() {
                return next;
            }
            self.came.notified().await;
        }
    }

    fn len(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

fn answer(request: Request, respond: Responder) {
    respond.send_with(Ok(Reply::Unit(UnitReply::Probed)), request.payload);
}

#[tokio::test]
async fn a_call_is_answered_and_the_service_knows_who_asked() {
    let cluster = Cluster::new(1);
    let (server, client) = (
        cluster.node(Role::Server, "s"),
        cluster.node(Role::Writer, "w"),
    );
    let held = Arc::new(Held::default());
    let handle = server.serve(held.clone()).await;
    let to = peer(&handle, Some("s"), PeerKind::LogUnit);
    let large: Payload = vec![7; 5 << 20].into();

    let (response, caller) = tokio::join!(client.probe(&to, large.clone()), async {
        let (caller, request, respond) = held.next().await;
        answer(request, respond);
        caller
    });
    let response = response.unwrap();
    assert_eq!(response.reply, Ok(Reply::Unit(UnitReply::Probed)));
    assert_eq!(response.payload, large);
    assert_eq!(
        (caller.cluster, caller.role, caller.name.as_str()),
        (cluster.id, Role::Writer, "w")
    );
    assert_eq!(handle.connections(), 1);
}

/// N1, N3.
#[tokio::test]
async fn thousands_of_calls_share_a_connection_and_each_gets_its_own_reply() {
    let cluster = Cluster::new(1);
    let (server, client) = (
        cluster.node(Role::Server, "s"),
        cluster.node(Role::Reader, "r"),
    );
    let handle = server.serve(Arc::new(Echo)).await;
    let to = Arc::new(peer(&handle, None, PeerKind::Any));
    let mut calls = JoinSet::new();
    for n in 0..5_000_u64 {
        let (transport, to) = (client.transport.clone(), to.clone());
        calls.spawn(async move {
            let response = transport.call(&to, probe(number(n)), LONG).await.unwrap();
            assert_eq!(response.payload, number(n));
        });
    }
    calls.join_all().await;
    assert_eq!(handle.connections(), 1);
}

/// N1, N3: a slow disk must not hold back what is in memory.
#[tokio::test]
async fn replies_may_overtake_each_other_and_requests_do_not() {
    let cluster = Cluster::new(1);
    let (server, client) = (
        cluster.node(Role::LogUnit, "u"),
        cluster.node(Role::Reader, "r"),
    );
    let held = Arc::new(Held::default());
    let handle = server.serve(held.clone()).await;
    let to = peer(&handle, Some("u"), PeerKind::LogUnit);
    let (first, second, third, ()) = tokio::join!(
        biased;
        client.probe(&to, number(1)),
        client.probe(&to, number(2)),
        client.probe(&to, number(3)),
        async {
            let mut asked = vec![];
            for _ in 0..3 {
                asked.push(held.next().await);
            }
            for (index, (_, request, _)) in asked.iter().enumerate() {
                assert_eq!(request.payload, number(index as u64 + 1));
            }
            for (_, request, respond) in asked.into_iter().rev() {
                answer(request, respond);
            }
        }
    );
    for (n, response) in [(1, first), (2, second), (3, third)] {
        assert_eq!(response.unwrap().payload, number(n));
    }
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_the_connection_goes_on() {
    let cluster = Cluster::new(1);
    let (server, client) = (
        cluster.node(Role::Server, "s"),
        cluster.node(Role::Reader, "r"),
    );
    let held = Arc::new(Held::default());
    let handle = server.serve(held.clone()).await;
    let to = peer(&handle, None, PeerKind::Any);
    let (first, ()) = tokio::join!(client.probe(&to, number(0)), async {
        let (_, request, respond) = held.next().await;
        answer(request, respond);
    });
    first.unwrap();

    let short = Duration::from_millis(30);
    let late = client.transport.call(&to, probe(number(1)), short).await;
    assert_eq!(
        late.unwrap_err(),
        CallError::Deadline {
            peer: to.to_string(),
            waited: short
        }
    );
    let (response, ()) = tokio::join!(client.probe(&to, number(2)), async {
        for _ in 0..2 {
            let (_, request, respond) = held.next().await;
            answer(request, respond);
        }
    });
    assert_eq!(response.unwrap().payload, number(2));
    assert_eq!(handle.connections(), 1);
}

/// N2: what was under way is "lost", never "not sent"; and nobody waits for a timeout to find the new process.
#[tokio::test]
async fn a_server_that_was_killed_is_found_again_when_it_is_back() {
    let cluster = Cluster::new(1);
    let client = cluster.node(Role::Reader, "r");
    let credentials = cluster.credentials(Role::Server, "s");
    let first = Node::new(TransportOptions::default(), credentials.clone());
    let held = Arc::new(Held::default());
    let handle = first.serve(held.clone()).await;
    let to = peer(&handle, None, PeerKind::Any);
    let (transport, at) = (client.transport.clone(), to.clone());
    let pending = tokio::spawn(async move { transport.call(&at, probe(number(1)), LONG).await });
    let kept = held.next().await;
    first.tasks.abort_all();
    drop((first, handle));

    let second = Node::new(TransportOptions::default(), credentials);
    let handle = loop {
        match second.transport.serve(&to.address, Arc::new(Echo)).await {
            Ok(handle) => break handle,
            Err(BindError::Occupied { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    // The first call's packet is what the new process answers with a reset.
    let again = client.probe(&to, number(2)).await;
    assert!(matches!(again, Err(CallError::Lost { .. })), "{again:?}");
    let lost = pending.await.unwrap();
    assert!(matches!(lost, Err(CallError::Lost { .. })), "{lost:?}");
    let response = loop {
        match client.probe(&to, number(3)).await {
            Ok(response) => break response,
            Err(CallError::NotSent { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(response.payload, number(3));
    assert_eq!(handle.connections(), 1);
    drop(kept);
}

/// Q4: a machine that vanished answers nothing, not even that it does not know the connection. What calls for it is told
/// long before its deadline.
#[tokio::test]
async fn a_connection_that_fell_silent_is_given_up_long_before_deadlines() {
    let cluster = Cluster::new(1);
    let patient = || TransportOptions {
        silence_max: Duration::from_secs(3_600),
        ..TransportOptions::default()
    };
    let client = Node::new(patient(), cluster.credentials(Role::Reader, "r"));
    let server = Node::new(patient(), cluster.credentials(Role::Server, "s"));
    let handle = server.serve(Arc::new(Echo)).await;
    let to = peer(&handle, None, PeerKind::Any);
    client.probe(&to, number(1)).await.unwrap();
    server.tasks.abort_all();

    let hour = Duration::from_secs(3_600);
    let outcome = client.transport.call(&to, probe(number(2)), hour).await;
    assert!(
        matches!(outcome, Err(CallError::Lost { .. })),
        "{outcome:?}"
    );
}

/// Q4: a server that takes its time says, by its acknowledgements, that it is there.
#[tokio::test]
async fn a_server_that_takes_its_time_is_not_silent() {
    let cluster = Cluster::new(1);
    let server = cluster.node(Role::Server, "s");
    let options = TransportOptions {
        silence_of_asked: LISTEN * 2,
        ..TransportOptions::default()
    };
    let client = Node::new(options, cluster.credentials(Role::Reader, "r"));
    let held = Arc::new(Held::default());
    let handle = server.serve(held.clone()).await;
    let to = peer(&handle, None, PeerKind::Any);
    let clock = Clock::real();
    let (response, ()) = tokio::join!(client.probe(&to, number(0)), async {
        let (_, request, respond) = held.next().await;
        clock.sleep(LISTEN * 8).await;
        answer(request, respond);
    });
    response.unwrap();
    assert_eq!(handle.connections(), 1);
}

/// Q4: what is not asked need not answer, and a process that was stopped itself has not listened.
#[test]
fn only_looks_while_calls_wait_count_as_silence() {
    let (start, mut listened) = (Clock::real().now(), Listened::default());
    let at = |ms| start.plus(Duration::from_millis(ms));
    let ms = Duration::from_millis;
    for (now, waiting, datagrams, quiet) in [
        (0, false, 7, 0),
        (9_000, true, 7, 50),
        (9_030, true, 7, 80),
        (9_080, true, 8, 0),
        (9_130, true, 8, 50),
        (39_130, true, 8, 100),
        (39_180, false, 8, 0),
    ] {
        assert_eq!(
            listened.quiet(at(now), waiting, datagrams),
            ms(quiet),
            "at {now}"
        );
    }
}

/// B1.
#[tokio::test]
async fn a_caller_of_a_slow_server_is_held_back_instead_of_filling_memory() {
    let cluster = Cluster::new(1);
    let server = cluster.node(Role::Server, "s");
    let options = TransportOptions {
        call_bytes_max: 10_000,
        ..TransportOptions::default()
    };
    let client = Node::new(options, cluster.credentials(Role::Writer, "w"));
    let held = Arc::new(Held::default());
    let handle = server.serve(held.clone()).await;
    let to = Arc::new(peer(&handle, None, PeerKind::Any));
    let mut calls = JoinSet::new();
    for _ in 0..40 {
        let (transport, to) = (client.transport.clone(), to.clone());
        calls.spawn(async move {
            let request = probe(vec![0; 1_900].into());
            transport.call(&to, request, LONG).await.unwrap();
        });
    }
    for _ in 0..40 {
        let (_, request, respond) = held.next().await;
        assert!(held.len() < 5, "{} more came", held.len());
        answer(request, respond);
    }
    calls.join_all().await;

    let short = Duration::from_millis(30);
    let first = client
        .transport
        .call(&to, probe(vec![0; 9_900].into()), short);
    let second = client
        .transport
        .call(&to, probe(vec![0; 9_900].into()), short);
    let (first, second) = tokio::join!(biased; first, second);
    assert!(
        matches!(first, Err(CallError::Deadline { .. })),
        "{first:?}"
    );
    assert!(
        matches!(second, Err(CallError::NotSent { .. })),
        "{second:?}"
    );
}

/// B2.
#[tokio::test]
async fn a_server_stops_reading_a_connection_that_asks_for_too_much_at_once() {
    let cluster = Cluster::new(1);
    let options = TransportOptions {
        serve_bytes_max: 10_000,
        ..TransportOptions::default()
    };
    let server = Node::new(options, cluster.credentials(Role::Server, "s"));
    let client = cluster.node(Role::Writer, "w");
    let held = Arc::new(Held::default());
    let handle = server.serve(held.clone()).await;
    let to = Arc::new(peer(&handle, None, PeerKind::Any));
    let mut calls = JoinSet::new();
    for _ in 0..40 {
        let (transport, to) = (client.transport.clone(), to.clone());
        calls.spawn(async move {
            let request = probe(vec![0; 1_900].into());
            transport.call(&to, request, LONG).await.unwrap();
        });
    }
    for _ in 0..40 {
        let (_, request, respond) = held.next().await;
        assert!(held.len() <= 6, "{} more came", held.len());
        answer(request, respond);
    }
    calls.join_all().await;
}

/// T1, from both sides: whoever finds the fault, the caller reads what to do.
#[tokio::test]
async fn strangers_are_refused_and_told_why() {
    let (ours, theirs) = (Cluster::new(1), Cluster::new(2));
    let server = ours.node(Role::Server, "s");
    let handle = server.serve(Arc::new(Echo)).await;
    let to = peer(&handle, None, PeerKind::Any);

    let stranger = theirs.node(Role::Admin, "a");
    let why = stranger.refused(&to).await;
    assert!(
        why.contains("the server's certificate") && why.contains("ca.pem"),
        "{why}"
    );

    let both = format!(
        "{}{}",
        ours.authority.certificate, theirs.authority.certificate
    );
    let trusting = credentials(&theirs.leaf(Role::Admin, "a"), &both, &Clock::real());
    let why = Node::new(TransportOptions::default(), trusting)
        .refused(&to)
        .await;
    assert!(why.contains("cluster"), "{why}");

    // The server trusts both authorities, the caller's certificate names the other cluster.
    let open = Cluster {
        id: ours.id,
        authority: Pair {
            certificate: both.clone(),
            key: ours.authority.key.clone(),
        },
        valid: ours.valid,
    };
    let server = open.node(Role::Server, "s2");
    let handle = server.serve(Arc::new(Echo)).await;
    let to = peer(&handle, None, PeerKind::Any);
    let (id, name) = (theirs.id, "x".parse().unwrap());
    let caller = Caller {
        cluster: id,
        role: Role::Admin,
        name,
    };
    let forged = sign(&ours.authority, &caller, &[], ours.valid).unwrap();
    let liar = credentials(&forged, &ours.authority.certificate, &Clock::real());
    let why = Node::new(TransportOptions::default(), liar)
        .refused(&to)
        .await;
    assert!(
        why.contains("of cluster") && why.contains("one cluster"),
        "{why}"
    );
}

/// T1: the server alone finds this fault, after the caller thinks that it is connected (Q1).
#[tokio::test]
async fn a_caller_that_the_server_does_not_trust_is_told_so_before_it_asks() {
    let (ours, theirs) = (Cluster::new(1), Cluster::new(1));
    let server = ours.node(Role::Server, "s");
    let handle = server.serve(Arc::new(Echo)).await;
    let to = peer(&handle, None, PeerKind::Any);
    let both = format!(
        "{}{}",
        ours.authority.certificate, theirs.authority.certificate
    );
    let stranger = credentials(&theirs.leaf(Role::Admin, "a"), &both, &Clock::real());
    let why = Node::new(TransportOptions::default(), stranger)
        .refused(&to)
        .await;
    assert!(
        why.contains("this node's certificate") && why.contains("ca.pem"),
        "{why}"
    );
}

/// T1: by the judging node's own clock.
#[tokio::test]
async fn expired_certificates_are_refused_on_either_side() {
    let cluster = Cluster::new(1);
    let bundle = &cluster.authority.certificate;
    let from_ms = cluster.valid.from_ms;
    let brief = Validity { from_ms, days: 1 };
    let leaf = |role, name: &str| {
        let caller = Caller {
            cluster: cluster.id,
            role,
            name: name.parse().unwrap(),
        };
        sign(&cluster.authority, &caller, &[], brief).unwrap()
    };
    let late = Clock::simulated(0, from_ms + 2 * DAY_MS);
    let late_node = |role, name| {
        let credentials = credentials(&cluster.leaf(role, name), bundle, &late);
        let tasks = Tasks::new();
        let options = TransportOptions::default();
        let random = Random::real();
        let transport =
            Transport::bind(options, credentials, late.clone(), random, &tasks).unwrap();
        Node { transport, tasks }
    };
    let brief_node = |role, name| {
        let credentials = credentials(&leaf(role, name), bundle, &Clock::real());
        Node::new(TransportOptions::default(), credentials)
    };

    let (server, client) = (late_node(Role::Server, "s"), brief_node(Role::Reader, "r"));
    let handle = server.serve(Arc::new(Echo)).await;
    let why = client.refused(&peer(&handle, None, PeerKind::Any)).await;
    assert!(why.contains("this node's certificate has expired"), "{why}");

    let (server, client) = (brief_node(Role::Server, "s"), late_node(Role::Reader, "r"));
    let handle = server.serve(Arc::new(Echo)).await;
    let why = client.refused(&peer(&handle, None, PeerKind::Any)).await;
    assert!(
        why.contains("the server's certificate has expired"),
        "{why}"
    );
}

/// T2: a stolen log unit's certificate must not make a sequencer.
#[tokio::test]
async fn a_server_serves_only_as_its_role_and_under_its_name() {
    let cluster = Cluster::new(1);
    let unit = cluster.node(Role::LogUnit, "u-1");
    let client = cluster.node(Role::Writer, "w");
    let handle = unit.serve(Arc::new(Echo)).await;
    for kind in [PeerKind::Sequencer, PeerKind::Layout] {
        let why = client.refused(&peer(&handle, Some("u-1"), kind)).await;
        assert!(why.contains("role logunit may not serve"), "{why}");
    }
    let why = client
        .refused(&peer(&handle, Some("u-2"), PeerKind::LogUnit))
        .await;
    assert!(why.contains("it is of u-1, expected u-2"), "{why}");
    for kind in [PeerKind::LogUnit, PeerKind::Any] {
        let right = peer(&handle, Some("u-1"), kind);
        client.probe(&right, Payload::new()).await.unwrap();
    }

    let listen = "127.0.0.1:0".parse().unwrap();
    let refused = client.transport.serve(&listen, Arc::new(Echo)).await;
    assert!(matches!(refused, Err(BindError::ClientCertificate { .. })));
}

/// T4.
#[tokio::test]
async fn new_credentials_are_used_by_new_connections_and_old_ones_live_on() {
    let cluster = Cluster::new(1);
    let next = Cluster::new(1);
    let leaf = cluster.leaf(Role::Server, "s");
    let shown = credentials(&leaf, &cluster.authority.certificate, &Clock::real());
    let server = Node::new(TransportOptions::default(), shown.clone());
    let (old, late) = (
        cluster.node(Role::Reader, "r"),
        next.node(Role::Reader, "r"),
    );
    let handle = server.serve(Arc::new(Echo)).await;
    let to = peer(&handle, None, PeerKind::Any);
    old.probe(&to, number(1)).await.unwrap();
    late.refused(&to).await;

    let renewed = next.leaf(Role::Server, "s");
    shown
        .reload_pem(CredentialTexts {
            certificate: &renewed.certificate,
            key: &renewed.key,
            authorities: &next.authority.certificate,
        })
        .unwrap();
    old.probe(&to, number(2)).await.unwrap();
    while late.probe(&to, number(3)).await.is_err() {
        tokio::task::yield_now().await;
    }
    let why = cluster.node(Role::Reader, "r2").refused(&to).await;
    assert!(why.contains("ca.pem"), "{why}");
}

/// Q2.
#[tokio::test]
async fn random_datagrams_hurt_nobody() {
    let cluster = Cluster::new(1);
    let (server, client) = (
        cluster.node(Role::Server, "s"),
        cluster.node(Role::Reader, "r"),
    );
    let handle = server.serve(Arc::new(Echo)).await;
    let to = peer(&handle, None, PeerKind::Any);
    client.probe(&to, number(0)).await.unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let random = Random::seeded(7);
    for n in 0..500 {
        let bytes: Vec<u8> = (0..random.below(1_500))
            .map(|_| random.next() as u8)
            .collect();
        socket.send_to(&bytes, handle.local_address()).unwrap();
        let mut initial = vec![0xc3, 0, 0, 0, 1, 8];
        initial.extend(bytes);
        initial.resize(1_200, n as u8);
        socket.send_to(&initial, handle.local_address()).unwrap();
        if n % 50 == 0 {
            client.probe(&to, number(n)).await.unwrap();
        }
    }
    cluster
        .node(Role::Reader, "r2")
        .probe(&to, number(1))
        .await
        .unwrap();
}

/// Bytes straight onto a stream, as a hostile member would send them; why the connection ended, or what was answered.
async fn send_raw(client: &Node, to: &Peer, bytes: &[u8]) -> Result<Frame, String> {
    let address = to.address.as_str().parse().unwrap();
    let (connection, mut streams) = client
        .transport
        .0
        .attempt(to, address, Arc::default())
        .await
        .unwrap();
    let (mut send, mut receive) = streams.remove(0);
    send.write_all(bytes).await.unwrap();
    let mut arrived = Payload::new();
    loop {
        if let Some(frame) = Frame::take_from(&mut arrived).unwrap() {
            return Ok(frame);
        }
        match receive.read_chunk(1 << 16, true).await {
            Ok(Some(chunk)) => arrived.push(chunk.bytes),
            Ok(None) | Err(_) => return Err(why(&connection.closed().await)),
        }
    }
}

/// Q2: the bytes of one member of the cluster, in all the ways that they can be wrong.
#[tokio::test]
async fn hostile_bytes_cost_the_sender_its_connection_and_nobody_else_anything() {
    let cluster = Cluster::new(1);
    let (server, client) = (
        cluster.node(Role::Server, "s"),
        cluster.node(Role::Reader, "r"),
    );
    let handle = server.serve(Arc::new(Echo)).await;
    let to = peer(&handle, None, PeerKind::Any);
    client.probe(&to, number(0)).await.unwrap();

    let why = send_raw(&client, &to, &[0xff; 8]).await.unwrap_err();
    assert!(why.contains("4294967299 bytes; the limit is"), "{why}");
    let contradiction = [16, 0, 0, 0, 0xff, 0xff, 0, 0];
    let why = send_raw(&client, &to, &contradiction).await.unwrap_err();
    assert!(why.contains("a head of 65535 bytes in 16"), "{why}");
    let other_version = [6, 0, 0, 0, 2, 0, 0, 0, 9, 5];
    let why = send_raw(&client, &to, &other_version).await.unwrap_err();
    assert!(why.contains("format version 9"), "{why}");

    // An id and then nonsense: the asker learns it, and the connection lives.
    let nonsense = [7, 0, 0, 0, 3, 0, 0, 0, FORMAT_VERSION, 0x85, 0x01];
    let frame = send_raw(&client, &to, &nonsense).await.unwrap();
    let head: ReplyHead = frame.decode().unwrap();
    assert_eq!(head.id, 0x85);
    assert!(matches!(head.reply, Err(Refusal::Malformed { .. })));

    client.probe(&to, number(1)).await.unwrap();
}

proptest! {
    /// The id is read by hand where the rest cannot be: it must be the id that postcard wrote.
    #[test]
    fn the_id_of_a_head_is_the_one_that_was_written(id: u64, rest: Vec<u8>) {
        let head = Frame::new(&id, Payload::new()).unwrap().head;
        let bytes = [&head[..], &rest].concat();
        prop_assert_eq!(id_of(&bytes), Some(id));
        let _ = id_of(&rest);
    }
}

/// Q2: a connection is a scarce thing, and one that says nothing gives it back.
#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed_and_others_go_on() {
    let cluster = Cluster::new(1);
    let options = TransportOptions {
        handshake_within: Duration::from_millis(200),
        ..TransportOptions::default()
    };
    let server = Node::new(options, cluster.credentials(Role::Server, "s"));
    let client = cluster.node(Role::Reader, "r");
    let handle = server.serve(Arc::new(Echo)).await;
    let to = peer(&handle, None, PeerKind::Any);
    let address = handle.local_address();
    let (silent, _streams) = client
        .transport
        .0
        .attempt(&to, address, Arc::default())
        .await
        .unwrap();
    let (empty, mut streams) = client
        .transport
        .0
        .attempt(&to, address, Arc::default())
        .await
        .unwrap();
    streams[0].0.finish().unwrap();
    client.probe(&to, number(1)).await.unwrap();
    for connection in [silent, empty] {
        let why = why(&connection.closed().await);
        assert!(why.contains("asked nothing"), "{why}");
    }
    client.probe(&to, number(2)).await.unwrap();
}

/// Q2: half a frame holds memory, and must not hold it for ever.
#[tokio::test]
async fn half_a_frame_costs_its_connection_after_a_while() {
    let cluster = Cluster::new(1);
    let options = TransportOptions {
        frame_within: Duration::from_millis(200),
        ..TransportOptions::default()
    };
    let server = Node::new(options, cluster.credentials(Role::Server, "s"));
    let client = cluster.node(Role::Reader, "r");
    let handle = server.serve(Arc::new(Echo)).await;
    let to = peer(&handle, None, PeerKind::Any);
    let whole = Frame::new(&probe(number(1)).head, number(1)).unwrap();
    let mut bytes = ::bytes::BytesMut::new();
    whole.encode_head(&mut bytes);

    let ended = send_raw(&client, &to, &bytes).await.unwrap_err();
    assert!(ended.contains("half a frame"), "{ended}");
    client.probe(&to, number(2)).await.unwrap();
}

#[tokio::test]
async fn a_server_refuses_more_connections_than_it_may_have() {
    let cluster = Cluster::new(1);
    let options = TransportOptions {
        connections_max: 2,
        ..TransportOptions::default()
    };
    let server = Node::new(options, cluster.credentials(Role::Server, "s"));
    let handle = server.serve(Arc::new(Echo)).await;
    let to = peer(&handle, None, PeerKind::Any);
    let nodes = ["a", "b", "c"].map(|name| cluster.node(Role::Reader, name));
    for node in &nodes[..2] {
        node.probe(&to, number(1)).await.unwrap();
    }
    let why = nodes[2].refused(&to).await;
    assert!(why.contains("no more connections"), "{why}");
    let [first, second, third] = nodes;
    first.transport.close().await;
    while third.probe(&to, number(2)).await.is_err() {
        tokio::task::yield_now().await;
    }
    second.probe(&to, number(3)).await.unwrap();
}

#[tokio::test]
async fn a_drained_server_finishes_what_it_has_begun_and_takes_nothing_new() {
    let cluster = Cluster::new(1);
    let (server, client) = (
        cluster.node(Role::Server, "s"),
        cluster.node(Role::Reader, "r"),
    );
    let held = Arc::new(Held::default());
    let handle = server.serve(held.clone()).await;
    let to = peer(&handle, None, PeerKind::Any);
    let (transport, at) = (client.transport.clone(), to.clone());
    let begun = tokio::spawn(async move { transport.call(&at, probe(number(1)), LONG).await });
    let (_, request, respond) = held.next().await;

    let drain = tokio::spawn(handle.drain(LONG));
    let refused = client.probe(&to, number(2)).await.unwrap().reply;
    assert_eq!(refused, Err(Refusal::Draining));
    let late = cluster.node(Role::Reader, "late").refused(&to).await;
    assert!(late.contains("shutting down"), "{late}");

    answer(request, respond);
    assert_eq!(begun.await.unwrap().unwrap().payload, number(1));
    drain.await.unwrap();
    let after = client.probe(&to, number(3)).await;
    assert!(
        matches!(
            &after,
            Err(CallError::NotSent { .. } | CallError::Lost { .. })
        ),
        "{after:?}"
    );
}

/// A service that never answers must not keep a server from stopping.
#[tokio::test]
async fn a_drain_ends_at_its_deadline() {
    let cluster = Cluster::new(1);
    let (server, client) = (
        cluster.node(Role::Server, "s"),
        cluster.node(Role::Reader, "r"),
    );
    let held = Arc::new(Held::default());
    let handle = server.serve(held.clone()).await;
    let to = peer(&handle, None, PeerKind::Any);
    let (lost, ()) = tokio::join!(client.probe(&to, number(1)), async {
        let kept = held.next().await;
        handle.drain(Duration::from_millis(50)).await;
        drop(kept);
    });
    let Err(CallError::Lost { why, .. }) = lost else {
        panic!("{lost:?}");
    };
    assert!(why.contains("shutting down"), "{why}");
}

#[tokio::test]
async fn an_occupied_port_is_one_clear_error() {
    let cluster = Cluster::new(1);
    let server = cluster.node(Role::Server, "s");
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen: Address = taken.local_addr().unwrap().to_string().parse().unwrap();
    let error = server
        .transport
        .serve(&listen, Arc::new(Echo))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{listen} is in use by another program; stop it, or choose another port")
    );
    let foreign: Address = "203.0.113.7:80".parse().unwrap();
    let error = server.transport.serve(&foreign, Arc::new(Echo)).await;
    assert!(matches!(error, Err(BindError::Address { .. })));
}

/// Q3.
#[tokio::test]
async fn while_a_server_is_away_calls_fail_at_once_with_the_last_reason() {
    let cluster = Cluster::new(1);
    let options = TransportOptions {
        connect_within: Duration::from_millis(100),
        back_off_min: LONG,
        back_off_max: LONG,
        ..TransportOptions::default()
    };
    let client = Node::new(options, cluster.credentials(Role::Reader, "r"));
    let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = Peer {
        name: None,
        address: deaf.local_addr().unwrap().to_string().parse().unwrap(),
        kind: PeerKind::Any,
    };
    let (first, second) = tokio::join!(client.refused(&to), client.refused(&to));
    assert!(first.contains("no answer within 100 ms"), "{first}");
    assert_eq!(first, second);
    let Found::Down(why) = client.transport.0.find(&to) else {
        panic!("tried again during back-off");
    };
    assert_eq!(*why, *first);
    let unknown = Peer {
        address: "no-such-host.invalid:1".parse().unwrap(),
        ..to
    };
    let why = client.refused(&unknown).await;
    assert!(!why.is_empty());
}

#[tokio::test]
async fn a_request_over_the_frame_limit_is_not_sent() {
    let cluster = Cluster::new(1);
    let (server, client) = (
        cluster.node(Role::Server, "s"),
        cluster.node(Role::Reader, "r"),
    );
    let handle = server.serve(Arc::new(Echo)).await;
    let to = peer(&handle, None, PeerKind::Any);
    let refused = client.probe(&to, vec![0; 16 << 20].into()).await;
    assert!(matches!(refused, Err(CallError::Protocol { .. })));
    client.probe(&to, number(1)).await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_opened_again_when_needed() {
    let cluster = Cluster::new(1);
    let server = cluster.node(Role::Server, "s");
    let options = TransportOptions {
        close_idle_after: Duration::from_millis(20),
        ..TransportOptions::default()
    };
    let client = Node::new(options, cluster.credentials(Role::Reader, "r"));
    let handle = server.serve(Arc::new(Echo)).await;
    let to = peer(&handle, None, PeerKind::Any);
    client.probe(&to, number(1)).await.unwrap();
    while handle.connections() > 0 {
        tokio::task::yield_now().await;
    }
    client.transport.0.peers().clear();
    client.probe(&to, number(2)).await.unwrap();
}

// ---- Over a simulated socket ----

/// Datagrams between sockets in memory, with a log of their sizes.
#[derive(Debug, Default)]
struct Ether {
    boxes: Mutex<BTreeMap<SocketAddr, Inbox>>,
    log: Mutex<Vec<(SocketAddr, SocketAddr, usize)>>,
}

#[derive(Debug, Default)]
struct Inbox {
    waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    reader: Option<Waker>,
}

#[derive(Debug)]
struct Plug(SocketAddr, Arc<Ether>);

impl DatagramSocket for Plug {
    fn send(&self, to: SocketAddr, datagram: &[u8]) {
        self.1
            .log
            .lock()
            .unwrap()
            .push((self.0, to, datagram.len()));
        let mut boxes = self.1.boxes.lock().unwrap();
        let inbox = boxes.entry(to).or_default();
        inbox.waiting.push_back((self.0, datagram.to_vec()));
        if let Some(reader) = inbox.reader.take() {
            reader.wake();
        }
    }

    fn poll_receive(
        &self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<(usize, SocketAddr)> {
        let mut boxes = self.1.boxes.lock().unwrap();
        let inbox = boxes.entry(self.0).or_default();
        let Some((from, datagram)) = inbox.waiting.pop_front() else {
            inbox.reader = Some(context.waker().clone());
            return Poll::Pending;
        };
        buffer[..datagram.len()].copy_from_slice(&datagram);
        Poll::Ready((datagram.len(), from))
    }

    fn local_address(&self) -> SocketAddr {
        self.0
    }
}

/// Two nodes, one serving, five calls and a drain; every datagram's way and size.
fn simulated(cluster: &Cluster) -> Vec<(SocketAddr, SocketAddr, usize)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let ether = Arc::new(Ether::default());
        let clock = Clock::simulated(0, cluster.valid.from_ms + DAY_MS);
        let node = |host: u8, role, name: &str| {
            let address = SocketAddr::from(([10, 0, 0, host], 7_000));
            let credentials = credentials(
                &cluster.leaf(role, name),
                &cluster.authority.certificate,
                &clock,
            );
            let tasks = Tasks::new();
            let socket = Arc::new(Plug(address, ether.clone()));
            let options = TransportOptions::default();
            let random = Random::seeded(u64::from(host));
            let transport =
                Transport::over_socket(socket, options, credentials, clock.clone(), random, &tasks);
            Node {
                transport: transport.unwrap(),
                tasks,
            }
        };
        let (server, client) = (node(1, Role::Server, "s"), node(2, Role::Writer, "w"));
        let handle = server.serve(Arc::new(Echo)).await;
        let to = peer(&handle, Some("s"), PeerKind::Sequencer);
        for n in 1..=5_u64 {
            let payload: Payload = vec![n as u8; 700 * n as usize].into();
            let response = client.probe(&to, payload.clone()).await.unwrap();
            assert_eq!(response.payload, payload);
            clock.sleep(Duration::from_secs(n)).await;
        }
        handle.drain(Duration::from_secs(5)).await;
        server.tasks.abort_all();
        ether.log.lock().unwrap().clone()
    })
}

/// The simulator's worth hangs on this: one seed, one run, packet for packet, with other keys even.
#[test]
fn the_whole_stack_runs_over_a_simulated_socket_and_repeats() {
    let cluster = Cluster::new(1);
    let first = simulated(&cluster);
    assert!(first.len() > 20, "{} datagrams", first.len());
    assert_eq!(first, simulated(&cluster));
}

/// A newer server may answer what an older client cannot read: that call fails, and no other.
#[test]
fn a_reply_that_cannot_be_read_fails_its_own_call() {
    let unknown = Frame::new(&(3_u64, 9_u8), Payload::new()).unwrap();
    assert!(matches!(
        read_reply(&unknown.head),
        Some(Err(Unreadable { id: 3, .. }))
    ));
    assert!(read_reply(&[]).is_none());
}
