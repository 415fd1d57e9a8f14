//! The sequencer's shell: rounds of confirmation, on a paused clock and a network in memory.

use std::time::Duration;

use milonga_host::net::PeerKind;
use milonga_host::{BoxFuture, CallError, Network, Random};
use milonga_wire::{
    Decided, LayoutReply, LayoutRequest, Payload, Position, RequestHead, Role, Standing as Votes,
    Target,
};
use tokio::sync::oneshot;

use super::*;
use crate::counter::tests::{CLUSTER, decided, page};

type Answer = Result<net::Response, CallError>;

/// A call that a test answers when it likes.
struct Asked {
    port: String,
    head: RequestHead,
    answer: oneshot::Sender<Answer>,
}

impl Asked {
    fn reply(self, reply: Result<LayoutReply, Refusal>) {
        let response = net::Response {
            reply: reply.map(Reply::Layout),
            payload: Payload::new(),
        };
        let _ = self.answer.send(Ok(response)); // A majority may have done without.
    }

    fn confirm(self) {
        assert_eq!(self.head.request, Request::Layout(LayoutRequest::Confirm));
        let term = self.head.term;
        self.reply(Ok(LayoutReply::Confirmed { term }));
    }

    fn tell_newest(self, decided: Option<Decided>) {
        assert_eq!(self.head.request, Request::Layout(LayoutRequest::Newest));
        self.reply(Ok(LayoutReply::Newest {
            decided: decided.map(Box::new),
            standing: Votes::default(),
        }));
    }
}

/// Layout servers played by the test.
struct Played {
    clock: Clock,
    calls: Mutex<Vec<Asked>>,
}

impl Network for Played {
    fn call<'a>(
        &'a self,
        peer: &'a Peer,
        request: net::Request,
        within: Duration,
    ) -> BoxFuture<'a, Answer> {
        assert_eq!(peer.kind, PeerKind::Layout);
        let (answer, answered) = oneshot::channel();
        self.calls.lock().unwrap().push(Asked {
            port: peer.address.as_str().rsplit(':').next().unwrap().to_owned(),
            head: request.head,
            answer,
        });
        Box::pin(async move {
            let deadline = CallError::Deadline {
                peer: peer.to_string(),
                waited: within,
            };
            match self.clock.within(within, answered).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => Err(deadline),
            }
        })
    }
}

struct Fixture {
    net: Arc<Played>,
    sequencer: Arc<Sequencer>,
}

/// What the sequencer answers.
type Answered = oneshot::Receiver<Result<Reply, Refusal>>;

impl Fixture {
    fn new() -> Self {
        let clock = Clock::real();
        let net = Arc::new(Played {
            clock: clock.clone(),
            calls: Mutex::default(),
        });
        let host = Host {
            net: Arc::clone(&net) as Arc<dyn Network>,
            clock,
            random: Random::seeded(1),
            tasks: Tasks::new(),
        };
        let config = Config {
            name: "s-4".parse().unwrap(),
            listen: "127.0.0.1:7004".parse().unwrap(),
            admin: None,
            layout: (7001..7004)
                .map(|port| format!("127.0.0.1:{port}").parse().unwrap())
                .collect(),
            ca: "ca".into(),
            cert: "cert".into(),
            key: "key".into(),
            streams_max: 100,
            confirm: Config::CONFIRM,
            ends_max: 3,
        };
        let sequencer = Sequencer::start(host, CLUSTER, &config);
        Self { net, sequencer }
    }

    /// Bootstrapped in term 0.
    async fn serving() -> Self {
        let fixture = Self::new();
        let reply = fixture.bootstrap(0).await.unwrap();
        assert_eq!(reply, Ok(bootstrapped()));
        fixture
    }

    fn ask(&self, term: u64, request: SequencerRequest) -> Answered {
        let (send, receive) = oneshot::channel();
        let caller = Caller {
            cluster: CLUSTER,
            role: Role::Control,
            name: "c".parse().unwrap(),
        };
        let head = RequestHead {
            id: 7,
            cluster: CLUSTER,
            to: Some(Target {
                identity: self.sequencer.identity(),
                incarnation: self.sequencer.incarnation(),
            }),
            term: Term(term),
            request: Request::Sequencer(request),
        };
        let payload = Payload::new();
        let respond = Responder::new(7, move |head, _| {
            let _ = send.send(head.reply);
        });
        self.sequencer
            .serve(&caller, net::Request { head, payload }, respond);
        receive
    }

    /// The decided layout of `term`, which names this process start.
    fn names_it(&self, term: u64) -> Decided {
        let mut decided = decided(term, 0);
        decided.layout.sequencer.incarnation = self.sequencer.incarnation();
        decided
    }

    fn bootstrap(&self, term: u64) -> Answered {
        let page = page(self.names_it(term), vec![]);
        self.ask(term, SequencerRequest::Bootstrap(page.into()))
    }

    fn end(&self, term: u64) -> Answered {
        self.ask(term, SequencerRequest::End { streams: vec![] })
    }

    fn take_token(&self, term: u64) -> Position {
        let mut reply = self.ask(
            term,
            SequencerRequest::Tokens {
                count: 1,
                streams: vec![],
            },
        );
        match reply.try_recv().unwrap() {
            Ok(Reply::Sequencer(SequencerReply::Token(token))) => token.first,
            other => panic!("{other:?}"),
        }
    }

    /// Lets every task run as far as it can, and says which calls came of it.
    async fn calls(&self) -> Vec<Asked> {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        std::mem::take(&mut *self.net.calls.lock().unwrap())
    }
}

fn bootstrapped() -> Reply {
    Reply::Sequencer(SequencerReply::Bootstrapped { serving: true })
}

fn end_at(end: u64) -> Reply {
    Reply::Sequencer(SequencerReply::End {
        end: Position(end),
        term: Term(0),
        streams: vec![],
    })
}

/// H2: an end needs a majority's word that the term still stands, and no more than that.
#[tokio::test(start_paused = true)]
async fn the_end_is_told_once_a_majority_confirmed_the_term() {
    let fixture = Fixture::serving().await;
    fixture.take_token(0);
    let mut end = fixture.end(0);

    let mut calls = fixture.calls().await;
    let to: Vec<&str> = calls.iter().map(|asked| asked.port.as_str()).collect();
    assert_eq!(to, ["7001", "7002", "7003"], "every layout server is asked");
    calls.remove(0).confirm();
    assert!(fixture.calls().await.is_empty());
    assert!(end.try_recv().is_err(), "one of three is no majority");

    calls.remove(1).confirm();
    assert!(fixture.calls().await.is_empty());
    assert_eq!(end.try_recv().unwrap(), Ok(end_at(1)));
}

/// H43: whoever asks while a round runs waits for the next; who waits together is served together.
#[tokio::test(start_paused = true)]
async fn a_round_serves_only_those_who_asked_before_it_began() {
    let fixture = Fixture::serving().await;
    let mut first = fixture.end(0);
    let round = fixture.calls().await;

    let mut second = fixture.end(0);
    let mut third = fixture.end(0);
    assert!(fixture.calls().await.is_empty(), "one round at a time");
    round.into_iter().for_each(Asked::confirm);
    let next = fixture.calls().await;

    assert_eq!(first.try_recv().unwrap(), Ok(end_at(0)));
    assert!(second.try_recv().is_err() && third.try_recv().is_err());
    assert_eq!(next.len(), 3, "one round for both");
    next.into_iter().for_each(Asked::confirm);
    assert!(fixture.calls().await.is_empty());
    assert_eq!(second.try_recv().unwrap(), Ok(end_at(0)));
    assert_eq!(third.try_recv().unwrap(), Ok(end_at(0)));
}

/// The counter is read after the round: positions issued meanwhile lie below the end.
#[tokio::test(start_paused = true)]
async fn the_end_is_at_or_above_what_was_issued_while_it_was_confirmed() {
    let fixture = Fixture::serving().await;
    let end = fixture.end(0);
    let round = fixture.calls().await;
    fixture.take_token(0);
    fixture.take_token(0);
    round.into_iter().for_each(Asked::confirm);

    assert_eq!(end.await.unwrap(), Ok(end_at(2)));
}

/// H2: a layout server that accepted a later layout does not confirm; without a majority nothing is told.
#[tokio::test(start_paused = true)]
async fn an_accepted_later_layout_denies_the_end_without_a_wait() {
    let fixture = Fixture::serving().await;
    let mut end = fixture.end(0);
    let mut calls = fixture.calls().await;
    let stale = || Refusal::StaleTerm {
        asked: Term(0),
        current: Term(1),
        newest: Some(Box::new(decided(0, 0))),
    };
    calls.remove(0).reply(Err(stale()));
    calls.remove(0).reply(Err(stale()));
    assert!(fixture.calls().await.is_empty());

    assert_eq!(
        end.try_recv().unwrap(),
        Err(Refusal::Unconfirmed { term: Term(0) })
    );
}

/// H2: a partitioned sequencer learns of the later term from a single layout server, passes it on, and stops.
#[tokio::test(start_paused = true)]
async fn a_decided_later_layout_is_passed_on_and_ends_issuing() {
    let fixture = Fixture::serving().await;
    let end = fixture.end(0);
    let mut calls = fixture.calls().await;
    let newest = Box::new(decided(1, 0));
    calls.remove(2).reply(Err(Refusal::Decided {
        newest: newest.clone(),
    }));

    let refusal = end.await.unwrap().unwrap_err();

    assert_eq!(
        refusal,
        Refusal::StaleTerm {
            asked: Term(0),
            current: Term(1),
            newest: Some(newest)
        }
    );
    let token = fixture.ask(
        0,
        SequencerRequest::Tokens {
            count: 1,
            streams: vec![],
        },
    );
    assert!(matches!(
        token.await.unwrap(),
        Err(Refusal::StaleTerm { .. })
    ));
}

/// A confirmation of another term, a layout server that is behind, silence: none of them counts.
#[tokio::test(start_paused = true)]
async fn too_few_answers_in_time_leave_the_end_unconfirmed() {
    let fixture = Fixture::serving().await;
    let end = fixture.end(0);
    let mut calls = fixture.calls().await;
    calls.remove(0).confirm();
    calls
        .remove(0)
        .reply(Ok(LayoutReply::Confirmed { term: Term(9) }));

    assert_eq!(
        end.await.unwrap(),
        Err(Refusal::Unconfirmed { term: Term(0) })
    );

    let again = fixture.end(0);
    fixture.calls().await.into_iter().for_each(Asked::confirm);
    assert_eq!(
        again.await.unwrap(),
        Ok(end_at(0)),
        "the next round is a new one"
    );
}

/// The term may end while its confirmation is under way: what was confirmed then is no longer told.
#[tokio::test(start_paused = true)]
async fn a_seal_during_a_round_refuses_those_who_waited_for_it() {
    let fixture = Fixture::serving().await;
    let end = fixture.end(0);
    let round = fixture.calls().await;
    let sealed = fixture.ask(1, SequencerRequest::Seal);
    round.into_iter().for_each(Asked::confirm);

    assert!(sealed.await.unwrap().is_ok());
    assert!(matches!(end.await.unwrap(), Err(Refusal::StaleTerm { .. })));
}

#[tokio::test(start_paused = true)]
async fn questions_for_the_end_are_bounded() {
    let fixture = Fixture::serving().await;
    let _waiting: Vec<Answered> = (0..3).map(|_| fixture.end(0)).collect();

    let refusal = fixture.end(0).await.unwrap().unwrap_err();

    assert!(matches!(refusal, Refusal::Busy { .. }));
}

/// Q6: the layout servers of the configuration are asked first, then those that they name.
#[tokio::test(start_paused = true)]
async fn a_seal_that_skips_terms_waits_for_the_layout_servers() {
    let fixture = Fixture::new();
    let sealed = fixture.ask(9, SequencerRequest::Seal);
    let mut moved = decided(3, 0);
    moved.layout.layout_servers[0].address = "127.0.0.1:7099".parse().unwrap();
    for asked in fixture.calls().await {
        asked.tell_newest(Some(moved.clone()));
    }
    let mut calls = fixture.calls().await;
    assert_eq!(calls[0].port, "7099", "moved since");
    calls.remove(0).tell_newest(Some(decided(8, 0)));

    let reply = sealed.await.unwrap();
    assert_eq!(
        reply,
        Ok(Reply::Sequencer(SequencerReply::Sealed { counter: None }))
    );
    assert_eq!(fixture.sequencer.shared.counter().term(), Term(9));
}

/// Q6: the largest term cannot be sealed into a fresh sequencer, and one that cannot be checked can be tried again.
#[tokio::test(start_paused = true)]
async fn a_seal_that_skips_terms_nobody_decided_changes_nothing() {
    let fixture = Fixture::new();
    let denied = fixture.ask(u64::MAX, SequencerRequest::Seal);
    for asked in fixture.calls().await {
        asked.tell_newest(Some(decided(3, 0)));
    }
    assert_eq!(
        denied.await.unwrap(),
        Err(Refusal::TermJump {
            asked: Term(u64::MAX),
            current: Term(0)
        })
    );

    let unanswered = fixture.ask(4, SequencerRequest::Seal).await.unwrap();
    assert_eq!(unanswered, Err(Refusal::Unconfirmed { term: Term(4) }));

    let real = fixture.bootstrap(3);
    for asked in fixture.calls().await {
        asked.tell_newest(Some(fixture.names_it(3)));
    }
    assert_eq!(real.await.unwrap(), Ok(bootstrapped()));
}

/// H6: a second start under the same name has the same identity and another incarnation.
#[tokio::test(start_paused = true)]
async fn a_restart_is_another_process_start_of_the_same_server() {
    let fixture = Fixture::serving().await;
    let again = Sequencer::start(
        Host {
            net: Arc::clone(&fixture.net) as Arc<dyn Network>,
            clock: Clock::real(),
            random: Random::seeded(2),
            tasks: Tasks::new(),
        },
        CLUSTER,
        &Config {
            name: "s-4".parse().unwrap(),
            listen: "127.0.0.1:7004".parse().unwrap(),
            admin: None,
            layout: vec![],
            ca: "ca".into(),
            cert: "cert".into(),
            key: "key".into(),
            streams_max: 100,
            confirm: Config::CONFIRM,
            ends_max: 3,
        },
    );

    assert_eq!(again.identity(), fixture.sequencer.identity());
    assert_ne!(again.incarnation(), fixture.sequencer.incarnation());
    assert!(again.ready().is_err() && fixture.sequencer.ready().is_ok());
}
