//! The unit's shell: batches, drains and failures, on a paused clock.

use std::collections::BTreeMap;
use std::time::Duration;

use milonga_host::net::{Peer, Response};
use milonga_host::{BoxFuture, CallError, Random, Tasks};
use milonga_wire::{
    Address, Answer, Chain, ClusterId, Decided, Layout, LayoutReply, LayoutRequest, Origin,
    Payload, Piece, Position, ReplyHead, Segment, Session, Settings, Span, Stamp, Standing,
    Stripes, Target, UnitReply, UnitRequest, WriteKind, WriteOutcome,
};
use tokio::sync::oneshot;

use std::task::Poll;

mod care;

use super::*;
use crate::MemoryStore;
use crate::config::Scrub;
use crate::storage::CommitError;

const CLUSTER: ClusterId = ClusterId([1; 16]);

type Answered = Result<Reply, Refusal>;

/// Layout servers, each with the newest term it knows; one without does not answer in time.
struct Layouts {
    newest: BTreeMap<Address, Option<Term>>,
    clock: Clock,
}

impl Network for Layouts {
    fn call<'a>(
        &'a self,
        peer: &'a Peer,
        request: Request,
        within: Duration,
    ) -> BoxFuture<'a, Result<Response, CallError>> {
        Box::pin(async move {
            assert_eq!(request.head.request, Wanted::Layout(LayoutRequest::Newest));
            let Some(term) = self.newest.get(&peer.address).copied().flatten() else {
                self.clock.sleep(within).await;
                return Err(CallError::Deadline {
                    peer: peer.to_string(),
                    waited: within,
                });
            };
            Ok(Response {
                reply: Ok(Reply::Layout(LayoutReply::Newest {
                    decided: Some(Box::new(decided(term))),
                    standing: Standing::default(),
                })),
                payload: Payload::new(),
            })
        })
    }
}

fn server_of(number: u8) -> milonga_wire::Server {
    milonga_wire::Server {
        name: format!("s-{number}").parse().unwrap(),
        address: format!("host:{number}").parse().unwrap(),
        identity: Identity([number; 16]),
        incarnation: Incarnation(1),
    }
}

/// The layout of term 0 lists unit 3, later ones another.
fn decided(term: Term) -> Decided {
    let unit = if term == Term(0) { 3 } else { 4 };
    let layout = Layout {
        cluster: CLUSTER,
        term,
        layout_servers: vec![server_of(1)],
        sequencer: server_of(2),
        standbys: vec![],
        units: vec![server_of(unit)],
        segments: vec![Segment {
            start: Position::FIRST,
            end: None,
            stripe_width: 1,
            chains: vec![Chain::new(vec![Identity([unit; 16])])],
        }],
        spares: vec![],
        lost: vec![],
        left: vec![],
        settings: Settings {
            replicas: 1,
            trust_restarted: true,
        },
        origin: Origin::default(),
    };
    Decided {
        layout,
        acceptances: vec![],
    }
}

struct Node {
    store: MemoryStore,
    server: Arc<Server>,
    host: Host,
}

impl Node {
    fn start() -> Self {
        Self::with(&[], 1 << 20)
    }

    /// With layout servers that know these terms.
    fn with(layouts: &[Option<u64>], queue_bytes_max: usize) -> Self {
        Self::scrubbing(layouts, queue_bytes_max, None)
    }

    fn scrubbing(layouts: &[Option<u64>], queue_bytes_max: usize, scrub: Option<Scrub>) -> Self {
        let address = |number: usize| format!("layout:{number}").parse::<Address>().unwrap();
        let newest = layouts.iter().enumerate();
        let newest: BTreeMap<_, _> = newest
            .map(|(number, term)| (address(number), term.map(Term)))
            .collect();
        let layout_servers = newest.keys().cloned().collect();
        Self::beside(newest, layout_servers, queue_bytes_max, scrub)
    }

    /// Configured with `layout_servers`, in a network of those that know `newest`.
    fn beside(
        newest: BTreeMap<Address, Option<Term>>,
        layout_servers: Vec<Address>,
        queue_bytes_max: usize,
        scrub: Option<Scrub>,
    ) -> Self {
        let clock = Clock::simulated(0, 0);
        let host = Host {
            net: Arc::new(Layouts {
                newest,
                clock: clock.clone(),
            }),
            clock,
            random: Random::seeded(5),
            tasks: Tasks::new(),
        };
        let store = MemoryStore::format(Identity([3; 16]));
        let config = Config {
            cluster: CLUSTER,
            name: "unit-1".parse().unwrap(),
            entry_bytes_max: 1_000,
            queue_bytes_max,
            layout_servers,
            scrub,
            version: "0.1".to_owned(),
        };
        let server = Server::start(&host, Box::new(store.clone()), config);
        Self {
            store,
            server,
            host,
        }
    }

    fn head(&self, term: u64, request: Wanted) -> RequestHead {
        RequestHead {
            id: 9,
            cluster: CLUSTER,
            to: Some(Target {
                identity: self.server.identity(),
                incarnation: self.server.incarnation(),
            }),
            term: Term(term),
            request,
        }
    }

    fn send_as(
        &self,
        role: Role,
        head: RequestHead,
        payload: Payload,
    ) -> oneshot::Receiver<(Answered, Payload)> {
        let (answer, answered) = oneshot::channel();
        let respond = Responder::new(head.id, move |head: ReplyHead, payload| {
            assert_eq!(head.id, 9);
            let _ = answer.send((head.reply, payload));
        });
        let caller = Caller {
            cluster: CLUSTER,
            role,
            name: "someone".parse().unwrap(),
        };
        self.server
            .serve(&caller, Request { head, payload }, respond);
        answered
    }

    fn send(&self, term: u64, request: UnitRequest) -> oneshot::Receiver<(Answered, Payload)> {
        let head = self.head(term, Wanted::Unit(request));
        self.send_as(Role::Control, head, Payload::new())
    }

    async fn ask(&self, term: u64, request: UnitRequest) -> Result<UnitReply, Refusal> {
        unit(self.send(term, request).await.unwrap().0)
    }

    fn write(&self, term: u64, position: u64) -> oneshot::Receiver<(Answered, Payload)> {
        let piece = Piece {
            first: Position(position),
            term: Term(term),
            stamp: Stamp {
                session: Session([8; 16]),
                request: position,
                record: 0,
            },
            run: Position(position),
            streams: vec![],
            lengths: vec![3],
        };
        let request = UnitRequest::Write {
            kind: WriteKind::Decide,
            pieces: vec![piece],
        };
        let head = self.head(term, Wanted::Unit(request));
        self.send_as(Role::Writer, head, Payload::from(vec![position as u8; 3]))
    }

    /// A member of term 0, from 0.
    async fn announced(self) -> Self {
        let start = Position::FIRST;
        let reply = self.ask(0, UnitRequest::Announce { start }).await;
        assert_eq!(reply, Ok(UnitReply::Announced));
        self
    }

    async fn read(&self, term: u64, to: u64) -> Vec<Answer> {
        let spans = vec![Span::new(Position::FIRST, Position(to))];
        let bytes_max = 100;
        match self.ask(term, UnitRequest::Read { spans, bytes_max }).await {
            Ok(UnitReply::Read(answers)) => answers,
            other => panic!("{other:?}"),
        }
    }
}

fn unit(reply: Answered) -> Result<UnitReply, Refusal> {
    match reply? {
        Reply::Unit(reply) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

#[allow(clippy::unnecessary_wraps)] // It is compared with what is wrapped.
fn stored() -> Answered {
    Ok(Reply::Unit(UnitReply::Written(vec![WriteOutcome::Stored])))
}

/// U1: one write and one sync for all that waits; the answers come after it.
#[tokio::test(start_paused = true)]
async fn what_arrives_together_is_committed_together() {
    let node = Node::start().announced().await;
    let commits = node.store.commits();
    let mut answers: Vec<_> = (0..100).map(|position| node.write(0, position)).collect();
    assert!(answers[0].try_recv().is_err(), "nothing is durable yet");

    for answer in answers {
        assert_eq!(answer.await.unwrap().0, stored());
    }
    assert_eq!(node.store.commits(), commits + 1);
    assert_eq!(node.read(0, 100).await.len(), 100 / 3, "cut at 100 bytes");
}

/// A drain that looks while a commit runs on another thread must not take the empty queue for the end of it.
#[test]
fn a_queue_is_idle_only_once_its_last_batch_is_answered() {
    let mut queue = Queue::default();
    assert!(queue.is_idle());
    for _ in 0..2 {
        queue.bytes += COMMIT_BYTES_MAX;
        queue.waiting.push_back(Waiting {
            who: Who {
                identity: Identity([3; 16]),
                incarnation: Incarnation(1),
            },
            asked: Asked {
                term: Term(0),
                command: Command::Probe,
                payload: Payload::new(),
                confirmed: false,
            },
            respond: Responder::new(0, |_, _| {}),
            bytes: COMMIT_BYTES_MAX,
        });
    }
    assert_eq!(
        queue.take().len(),
        1,
        "one commit takes so much and no more"
    );
    assert_eq!(queue.take().len(), 1);
    assert!(!queue.is_idle(), "taken, and not yet answered");
    assert_eq!(queue.take().len(), 0);
    assert!(queue.is_idle() && queue.bytes == 0);
}

/// U4, H22: an entry is readable once durable, not once received.
#[tokio::test(start_paused = true)]
async fn a_write_that_waits_is_not_read() {
    let node = Node::start().announced().await;
    let waits = node.write(0, 0);
    let unwritten = Answer::Unwritten(Span::new(Position(0), Position(1)));
    let spans = vec![Span::one(Position(0))];
    let read = UnitRequest::Read {
        spans,
        bytes_max: 9,
    };
    let answer = node.send(0, read).try_recv().unwrap();

    assert_eq!(
        unit(answer.0),
        Ok(UnitReply::Read(vec![unwritten])),
        "answered at once"
    );
    assert_eq!(waits.await.unwrap().0, stored());
    assert!(matches!(node.read(0, 1).await[0], Answer::Data(_)));
}

/// H29: who is called while the disk stands still says so at once, and goes on listening; else a unit that is there is taken
/// for one that is gone. The one worker here is in the disk, so whatever else waited for it would wait for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn while_the_disk_stands_still_nobody_who_serves_waits_for_it() {
    let node = Node::start().announced().await;
    let (has_begun, go_on) = node.store.stall_next();
    let stands_still = node.write(0, 0);
    has_begun.recv().unwrap();

    assert_eq!(node.server.describe().state, "serving");
    assert!(node.server.is_ready());
    let next = node.write(0, 1);
    let spans = vec![Span::new(Position(0), Position(2))];
    let bytes_max = 9;
    let mut read = node.send(0, UnitRequest::Read { spans, bytes_max });
    assert!(read.try_recv().is_err(), "what is durable is not known yet");
    drop(go_on);

    assert_eq!(stands_still.await.unwrap().0, stored());
    let Ok(UnitReply::Read(answers)) = unit(read.await.unwrap().0) else {
        panic!("not answered")
    };
    assert!(matches!(answers[0], Answer::Data(_)));
    assert_eq!(next.await.unwrap().0, stored());
    assert_eq!(node.server.describe().end, Position(2));
}

/// Bounded, like all that waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn too_many_questions_to_a_disk_that_stands_still_are_refused() {
    let node = Node::start().announced().await;
    let (has_begun, go_on) = node.store.stall_next();
    let _stands_still = node.write(0, 0);
    has_begun.recv().unwrap();
    let ask = || {
        let spans = vec![Span::one(Position(0))];
        let bytes_max = 9;
        node.send(0, UnitRequest::Read { spans, bytes_max })
    };
    let waiting: Vec<_> = (0..LATER_MAX).map(|_| ask()).collect();

    let refused = unit(ask().await.unwrap().0);
    assert!(matches!(refused, Err(Refusal::Busy { .. })), "{refused:?}");
    drop(go_on);
    for answer in waiting {
        unit(answer.await.unwrap().0).unwrap();
    }
}

/// U9, H30.
#[tokio::test(start_paused = true)]
async fn a_failed_commit_is_told_to_all_who_waited_and_reads_go_on() {
    let node = Node::start().announced().await;
    assert_eq!(node.write(0, 0).await.unwrap().0, stored());
    let error = CommitError::Failed("the cable is out".to_owned());
    node.store.fail_next(error);
    assert!(node.server.is_ready());

    let waiting = [node.write(0, 1), node.write(0, 2), node.write(0, 0)];
    for answer in waiting {
        let refused = answer.await.unwrap().0.unwrap_err();
        assert!(matches!(refused, Refusal::DiskFailed { .. }), "{refused}");
    }
    assert!(matches!(
        node.ask(0, UnitRequest::Probe).await,
        Err(Refusal::DiskFailed { .. })
    ));
    assert!(matches!(node.read(0, 1).await[0], Answer::Data(_)));
    assert!(!node.server.is_ready());
    assert_eq!(node.server.describe().state, "failed");
}

/// U2: any layout server that knows the layout before the sealed one will do; the others may be away.
#[tokio::test(start_paused = true)]
async fn a_seal_that_skips_terms_waits_for_a_layout_servers_word_and_holds_nobody_up() {
    let node = Node::with(&[None, Some(2), Some(6)], 1 << 20)
        .announced()
        .await;
    let seal = node.send(7, UnitRequest::Seal);
    let write = node.write(0, 0);

    assert_eq!(write.await.unwrap().0, stored());
    let Ok(UnitReply::Sealed(sealed)) = unit(seal.await.unwrap().0) else {
        panic!("not sealed")
    };
    assert_eq!(sealed.end, Position(1));
    assert_eq!(node.store.durable().term, Term(7));
}

/// Layout servers are replaced while a unit is away: those that it was configured with name the ones that know more.
#[tokio::test(start_paused = true)]
async fn a_seal_is_confirmed_by_those_who_took_over_from_the_configured_layout_servers() {
    let [old, new] = ["layout:0", "host:1"].map(|text| text.parse::<Address>().unwrap());
    let newest = BTreeMap::from([(old.clone(), Some(Term(3))), (new, Some(Term(6)))]);
    let node = Node::beside(newest, vec![old], 1 << 20, None)
        .announced()
        .await;

    let sealed = node.ask(7, UnitRequest::Seal).await;
    assert!(matches!(sealed, Ok(UnitReply::Sealed(_))), "{sealed:?}");
    let too_far = node.ask(9, UnitRequest::Seal).await;
    assert!(
        matches!(too_far, Err(Refusal::TermJump { .. })),
        "{too_far:?}"
    );
}

/// U2: a seal of the largest term must not end the unit for ever.
#[tokio::test(start_paused = true)]
async fn a_seal_that_no_layout_server_confirms_is_refused() {
    for layouts in [&[][..], &[None, Some(5)][..], &[None][..]] {
        let node = Node::with(layouts, 1 << 20).announced().await;
        for term in [7, u64::MAX] {
            assert_eq!(
                node.ask(term, UnitRequest::Seal).await,
                Err(Refusal::TermJump {
                    asked: Term(term),
                    current: Term(0)
                })
            );
        }
        assert_eq!(node.write(0, 0).await.unwrap().0, stored());
        let next = node.ask(1, UnitRequest::Seal).await;
        assert!(matches!(next, Ok(UnitReply::Sealed(_))));
    }
}

/// H17: every request names cluster, server and process start, and comes from somebody who may.
#[tokio::test(start_paused = true)]
async fn a_request_meant_for_another_or_by_nobody_who_may_is_refused() {
    let node = Node::start();
    let seal = node.head(0, Wanted::Unit(UnitRequest::Seal));
    let mut old = seal.clone();
    old.to.as_mut().unwrap().incarnation = Incarnation(0);
    let refused = |role, head| {
        let mut answer = node.send_as(role, head, Payload::new());
        answer.try_recv().unwrap().0.unwrap_err()
    };

    assert!(matches!(
        refused(Role::Control, old),
        Refusal::WrongIncarnation { .. }
    ));
    assert!(matches!(
        refused(Role::Writer, seal),
        Refusal::WrongRole { .. }
    ));
    let layout = node.head(0, Wanted::Layout(LayoutRequest::Newest));
    assert!(matches!(
        refused(Role::Reader, layout),
        Refusal::WrongKind { .. }
    ));
}

/// H29: a probe is a durable write in whatever term and for whichever process start, even where everything else has to
/// wait for its turn outside; but only a disk that works answers it, and probes are bounded like everything else.
#[tokio::test(start_paused = true)]
async fn a_probe_is_answered_by_a_restarted_or_busy_unit_and_by_no_broken_one() {
    let node = Node::with(&[], 2_000).announced().await;
    let writes: Vec<_> = (0..20).map(|position| node.write(0, position)).collect();
    let commits = node.store.commits();
    let mut head = node.head(7, Wanted::Unit(UnitRequest::Probe));
    head.to.as_mut().unwrap().incarnation = Incarnation(0);
    let probe = || node.send_as(Role::Layout, head.clone(), Payload::new());

    let probes: Vec<_> = (0..1_000).map(|_| probe()).collect();
    let mut answers = vec![];
    for answer in probes {
        answers.push(answer.await.unwrap().0);
    }
    let busy = |answer: &Answered| matches!(answer, Err(Refusal::Busy { .. }));
    let (too_many, answered): (Vec<_>, Vec<_>) = answers.into_iter().partition(busy);
    assert!(!too_many.is_empty() && answered.len() >= PROBE_BYTES_MAX / 1_000);
    assert!(
        answered
            .iter()
            .all(|answer| *answer == Ok(Reply::Unit(UnitReply::Probed)))
    );
    assert!(node.store.commits() > commits, "durable, with the writes");
    drop(writes);

    node.store
        .fail_next(CommitError::Failed("the cable is out".to_owned()));
    for _ in 0..2 {
        let refused = probe().await.unwrap().0;
        assert!(matches!(refused, Err(Refusal::DiskFailed { .. })));
    }
}

/// Bounded, whoever asks: what waits is memory.
#[tokio::test(start_paused = true)]
async fn a_full_queue_says_busy_and_empties() {
    let node = Node::with(&[], 2_000).announced().await;
    let answers: Vec<_> = (0..10).map(|position| node.write(0, position)).collect();
    let mut busy = 0;
    for answer in answers {
        match answer.await.unwrap().0 {
            Err(Refusal::Busy { .. }) => busy += 1,
            other => assert_eq!(other, stored()),
        }
    }
    assert!((1..10).contains(&busy), "{busy}");
    assert_eq!(node.write(0, 50).await.unwrap().0, stored());
}

/// A stop loses nothing that was taken.
#[tokio::test(start_paused = true)]
async fn draining_answers_what_waits_and_refuses_what_comes() {
    let node = Node::start().announced().await;
    let mut waits = node.write(0, 0);
    let drained = node.server.drain();
    let mut drained = std::pin::pin!(drained);
    let first = std::future::poll_fn(|cx| Poll::Ready(drained.as_mut().poll(cx))).await;
    assert!(first.is_pending());
    assert_eq!(
        node.write(0, 1).try_recv().unwrap().0,
        Err(Refusal::Draining)
    );

    drained.await;
    assert_eq!(waits.try_recv().unwrap().0, stored());
    assert!(matches!(node.read(0, 1).await[0], Answer::Data(_)));
    assert!(!node.server.is_ready());
    node.server.drain().await;
}

/// Old files are freed and checked while nobody waits.
#[tokio::test(start_paused = true)]
async fn the_store_keeps_house_when_the_unit_is_idle() {
    let node = Node::start().announced().await;
    assert_eq!(node.store.housekept(), 0);
    node.host.clock.sleep(10 * HOUSEKEEPING_IDLE).await;
    assert!((9..=10).contains(&node.store.housekept()));

    node.store.fail_next(CommitError::Failed(String::new()));
    assert!(node.ask(0, UnitRequest::Probe).await.is_err());
    let before = node.store.housekept();
    node.host.clock.sleep(10 * HOUSEKEEPING_IDLE).await;
    assert_eq!(
        node.store.housekept(),
        before,
        "nobody touches a failed disk"
    );
}

/// A reader may ask for a settled mark, but what the unit remembers of it is control's to say.
#[tokio::test(start_paused = true)]
async fn only_a_trusted_caller_makes_the_unit_remember_a_settled_mark() {
    let node = Node::start().announced().await;
    node.write(0, 0).await.unwrap().0.unwrap();
    let stripes = Stripes {
        span: Span::new(Position(0), Position(u64::MAX)),
        width: 1,
        chains: 1,
        index: 0,
    };
    for (role, remembered) in [(Role::Reader, 0), (Role::Control, 1)] {
        let settled = node.head(0, Wanted::Unit(UnitRequest::Settled { stripes }));
        let answer = node.send_as(role, settled, Payload::new()).await.unwrap().0;
        assert_eq!(unit(answer), Ok(UnitReply::Settled(Position(1))));
        node.ask(0, UnitRequest::Probe).await.unwrap();
        assert_eq!(node.store.durable().settled, Position(remembered));
    }
}

/// What `cluster init` and `cluster status` look at.
#[tokio::test(start_paused = true)]
async fn a_unit_describes_itself_to_any_certificate_of_its_cluster() {
    let node = Node::start();
    let head = RequestHead {
        to: None,
        ..node.head(0, Wanted::Describe)
    };
    let describe = || {
        let mut answer = node.send_as(Role::Reader, head.clone(), Payload::new());
        match answer.try_recv().unwrap().0 {
            Ok(Reply::Described(description)) => description,
            other => panic!("{other:?}"),
        }
    };
    let blank = describe();
    assert!(blank.blank && blank.kind == Kind::LogUnit);
    assert_eq!((blank.state.as_str(), blank.reads), ("blank", 0));
    assert_eq!(blank.incarnation, node.server.incarnation());

    let start = Position::FIRST;
    node.ask(0, UnitRequest::Announce { start }).await.unwrap();
    node.write(0, 4).await.unwrap().0.unwrap();
    node.read(0, 1).await;
    let serving = describe();
    assert_eq!(
        (serving.state.as_str(), serving.reads, serving.end),
        ("serving", 1, Position(5))
    );
    assert!(!serving.blank);
}

/// A simulated crash: the tasks end, and whoever waits is left to its deadline.
#[tokio::test(start_paused = true)]
async fn dropping_the_nodes_tasks_ends_it_with_nothing_half_done() {
    let node = Node::start().announced().await;
    let commits = node.store.commits();
    let waits = node.write(0, 0);
    let Node {
        store,
        server,
        host,
    } = node;
    host.tasks.abort_all();
    host.clock.sleep(Duration::from_secs(5)).await;
    assert_eq!(store.commits(), commits);
    assert_eq!(Arc::strong_count(&server.0), 1, "no task holds it");
    drop(server);
    assert!(waits.await.is_err());
}
