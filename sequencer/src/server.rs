//! The shell of the sequencer: requests in, answers out, and rounds of questions to the layout servers.
//!
//! Tokens, seals, bootstraps and probes are answered at once, under one lock. Questions for the end wait for a round of
//! confirmations that begins after they arrived; one round serves all that wait when it begins (H43).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Counter as Count, Gauge, Histogram, counter, gauge, histogram};
use milonga_host::{Clock, Host, Peer, Responder, Service, Tasks, net};
use milonga_wire::{
    Address, BootstrapPage, Caller, ClusterId, Description, Identity, Incarnation, Kind, Position,
    Refusal, Reply, Request, SequencerReply, SequencerRequest, ServerName, StreamId, Term, admit,
};
use tokio::sync::Notify;

use crate::confirm::{Asker, Jump, Round, peers_of};
use crate::{Config, Counter, Standing};

/// Seals and bootstraps that may wait for the layout servers at a time.
const JUMPS_MAX: usize = 16;

/// A running sequencer, to be given to a transport as its [`Service`].
pub struct Sequencer {
    shared: Arc<Shared>,
    tasks: Tasks,
}

/// What background tasks share with the service. No [`Tasks`]: a task must not keep itself alive.
struct Shared {
    cluster: ClusterId,
    name: ServerName,
    identity: Identity,
    incarnation: Incarnation,
    layout: Vec<Address>,
    ends_max: usize,
    clock: Clock,
    asker: Asker,
    counter: Mutex<Counter>,
    waiting: Mutex<Vec<Waiting>>,
    arrived: Notify,
    jumps: AtomicUsize,
    metrics: Metrics,
}

/// A question for the end.
struct Waiting {
    term: Term,
    streams: Vec<StreamId>,
    respond: Responder,
}

impl Sequencer {
    /// Starts a sequencer: a new incarnation, which issues nothing until a term names it (H6).
    /// `cluster` is the one its certificate names. Must be called inside a runtime.
    pub fn start(host: Host, cluster: ClusterId, config: &Config) -> Arc<Self> {
        let identity = Identity::of_name(cluster, &config.name);
        let incarnation = Incarnation(host.random.next());
        let counter = Counter::new(cluster, identity, incarnation, config.streams_max);
        let shared = Arc::new(Shared {
            cluster,
            name: config.name.clone(),
            identity,
            incarnation,
            layout: config.layout.clone(),
            ends_max: config.ends_max,
            clock: host.clock,
            asker: Asker {
                net: host.net,
                cluster,
                within: config.confirm,
            },
            counter: Mutex::new(counter),
            waiting: Mutex::default(),
            arrived: Notify::new(),
            jumps: AtomicUsize::new(0),
            metrics: Metrics::new(&config.name),
        });
        host.tasks.spawn(Arc::clone(&shared).run_rounds());
        tracing::info!(name = %config.name, %identity, %incarnation, "sequencer started");
        Arc::new(Self {
            shared,
            tasks: host.tasks,
        })
    }

    /// Its identity.
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }

    /// This process start.
    pub fn incarnation(&self) -> Incarnation {
        self.shared.incarnation
    }

    /// Whether it issues positions.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn ready(&self) -> Result<(), String> {
        let counter = self.shared.counter();
        match counter.standing() {
            Standing::Serving => Ok(()),
            Standing::Blank => Err("standing by: no term has named this process start".to_owned()),
            Standing::Sealed => Err(format!(
                "term {} is sealed; a control client must finish the change of layout",
                counter.term()
            )),
        }
    }

    /// Runs `work` when the layout servers have shown a layout of `needs` or a later term, else refuses.
    fn after_jump(
        &self,
        asked: Term,
        needs: Term,
        respond: Responder,
        work: impl FnOnce(&Shared) -> Result<Reply, Refusal> + Send + 'static,
    ) {
        let shared = Arc::clone(&self.shared);
        if shared.jumps.fetch_add(1, Ordering::Relaxed) >= JUMPS_MAX {
            shared.jumps.fetch_sub(1, Ordering::Relaxed);
            let what = "seals that skip terms".to_owned();
            return respond.send(Err(Refusal::Busy { what }));
        }
        self.tasks.spawn(async move {
            let jump = shared.asker.jump(shared.layout_servers(), needs).await;
            shared.jumps.fetch_sub(1, Ordering::Relaxed);
            let current = shared.counter().term();
            respond.send(match jump {
                Jump::Shown(decided) => {
                    shared.counter().note_decided(&decided);
                    work(&shared)
                }
                Jump::Denied => Err(Refusal::TermJump { asked, current }),
                Jump::Unanswered => Err(Refusal::Unconfirmed { term: asked }),
            });
        });
    }

    fn seal(&self, term: Term, respond: Responder) {
        let sealed = self.shared.seal(term);
        if let Err(Refusal::TermJump { .. }) = sealed {
            // A layout of the term before was decided, or nobody can be proposing this one.
            let needs = Term(term.0 - 1);
            return self.after_jump(term, needs, respond, move |shared| shared.seal(term));
        }
        respond.send(sealed);
    }

    fn bootstrap(&self, term: Term, page: Box<BootstrapPage>, respond: Responder) {
        let jumps = self.shared.counter().jumps(term);
        if jumps {
            let work = move |shared: &Shared| shared.bootstrap(term, &page);
            return self.after_jump(term, term, respond, work);
        }
        respond.send(self.shared.bootstrap(term, &page));
    }
}

impl Service for Sequencer {
    fn serve(&self, caller: &Caller, request: net::Request, respond: Responder) {
        let shared = &self.shared;
        let head = request.head;
        let here = Some(shared.incarnation);
        if let Err(refusal) = admit(caller, &head, shared.cluster, shared.identity, here) {
            return respond.send(Err(refusal));
        }
        let term = head.term;
        let request = match head.request {
            Request::Sequencer(request) => request,
            Request::Describe => {
                return respond.send(Ok(Reply::Described(shared.describe().into())));
            }
            Request::Unit(_) => return respond.send(Err(wrong_kind("log unit"))),
            Request::Layout(_) => return respond.send(Err(wrong_kind("layout server"))),
        };
        match request {
            SequencerRequest::Tokens { count, streams } => {
                respond.send(shared.tokens(term, count, &streams));
            }
            SequencerRequest::End { streams } => shared.end_later(Waiting {
                term,
                streams,
                respond,
            }),
            SequencerRequest::Seal => self.seal(term, respond),
            SequencerRequest::Bootstrap(page) => self.bootstrap(term, page, respond),
            SequencerRequest::Probe => {
                let serving = shared.counter().standing() == Standing::Serving;
                respond.send(Ok(Reply::Sequencer(SequencerReply::Probed { serving })));
            }
        }
    }
}

impl Shared {
    fn counter(&self) -> MutexGuard<'_, Counter> {
        self.counter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tokens(&self, term: Term, count: u32, streams: &[StreamId]) -> Result<Reply, Refusal> {
        let token = self.counter().tokens(term, count, streams)?;
        self.metrics.issued(token.first, token.count);
        Ok(Reply::Sequencer(SequencerReply::Token(token)))
    }

    fn seal(&self, term: Term) -> Result<Reply, Refusal> {
        let mut core = self.counter();
        let before = core.term();
        let counter = core.seal(term)?;
        if before != term {
            tracing::info!(name = %self.name, %term, ?counter, "sealed");
        }
        self.metrics.stands(&core);
        Ok(Reply::Sequencer(SequencerReply::Sealed { counter }))
    }

    fn bootstrap(&self, term: Term, page: &BootstrapPage) -> Result<Reply, Refusal> {
        let mut core = self.counter();
        let before = core.standing();
        let serving = core.bootstrap(term, page)?;
        if serving && before != Standing::Serving {
            let (next, streams) = (core.next(), core.streams());
            tracing::info!(name = %self.name, %term, ?next, streams, "bootstrapped");
        }
        self.metrics.stands(&core);
        Ok(Reply::Sequencer(SequencerReply::Bootstrapped { serving }))
    }

    /// Answers later, after a round that begins from now on.
    fn end_later(&self, question: Waiting) {
        if let Err(refusal) = self.counter().check_end(question.term, &question.streams) {
            return question.respond.send(Err(refusal));
        }
        let mut waiting = self.waiting();
        if waiting.len() >= self.ends_max {
            drop(waiting);
            let what = "questions for the end".to_owned();
            return question.respond.send(Err(Refusal::Busy { what }));
        }
        waiting.push(question);
        drop(waiting);
        self.arrived.notify_one();
    }

    /// Round after round, for as long as the node runs.
    async fn run_rounds(self: Arc<Self>) {
        loop {
            self.arrived.notified().await;
            loop {
                // H43: what arrives from here on waits for the next round.
                let served = std::mem::take(&mut *self.waiting());
                if served.is_empty() {
                    break;
                }
                self.run_round(served).await;
            }
        }
    }

    async fn run_round(&self, served: Vec<Waiting>) {
        let layout = self.counter().layout();
        let Some(layout) = layout else {
            return self.answer_all(served, None); // Sealed meanwhile: the counter refuses each.
        };
        let began = self.clock.now();
        let round = self.asker.confirm(&layout.layout).await;
        self.metrics
            .round(self.clock.now().since(began).as_secs_f64());
        let unconfirmed = match round {
            Round::Confirmed => None,
            Round::Newer(newest) => {
                let term = newest.layout.term;
                tracing::info!(name = %self.name, %term, "a later term is decided; issuing ends");
                let mut core = self.counter();
                core.note_decided(&newest);
                self.metrics.stands(&core);
                None
            }
            Round::Unconfirmed => Some(layout.layout.term),
        };
        self.answer_all(served, unconfirmed);
    }

    /// Answers those of term `unconfirmed` with that, and lets the counter decide about the others: it refuses whatever
    /// is not of the term it serves, and that term is the one just confirmed, or a later one that began meanwhile,
    /// which no question that waited here names.
    fn answer_all(&self, served: Vec<Waiting>, unconfirmed: Option<Term>) {
        for Waiting {
            term,
            streams,
            respond,
        } in served
        {
            let answer = self.counter().end(term, &streams);
            respond.send(match answer {
                Ok(_) if unconfirmed == Some(term) => Err(Refusal::Unconfirmed { term }),
                Ok(end) => Ok(Reply::Sequencer(end)),
                Err(refusal) => Err(refusal),
            });
        }
    }

    /// Whom to ask for the newest layout: those of the newest one known, else those of the configuration.
    fn layout_servers(&self) -> Vec<Peer> {
        match self.counter().newest() {
            Some(newest) => peers_of(&newest.layout),
            None => self
                .layout
                .iter()
                .map(|address| Peer {
                    name: None,
                    address: address.clone(),
                    kind: Kind::Layout.into(),
                })
                .collect(),
        }
    }

    fn describe(&self) -> Description {
        let core = self.counter();
        let state = match core.standing() {
            Standing::Blank => "blank",
            Standing::Sealed => "sealed",
            Standing::Serving => "serving",
        };
        Description {
            kind: Kind::Sequencer,
            name: self.name.clone(),
            identity: self.identity,
            incarnation: self.incarnation,
            term: core.term(),
            blank: core.standing() == Standing::Blank,
            end: core.next().unwrap_or_default(),
            trimmed: Position::FIRST,
            bytes: 0,
            reads: 0,
            state: state.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            damaged: 0,
            busy_per_mille: 0,
        }
    }
}

fn wrong_kind(needs: &str) -> Refusal {
    Refusal::WrongKind {
        needs: needs.to_owned(),
    }
}

/// Handles kept, because a look-up per token would cost more than the token.
struct Metrics {
    tokens: Count,
    requests: Count,
    tail: Gauge,
    term: Gauge,
    serving: Gauge,
    streams: Gauge,
    rounds: Histogram,
}

impl Metrics {
    fn new(name: &ServerName) -> Self {
        let server = name.to_string();
        metrics::describe_counter!("milonga_sequencer_tokens_total", "Positions issued.");
        metrics::describe_counter!(
            "milonga_sequencer_token_requests_total",
            "Requests that were issued positions."
        );
        metrics::describe_gauge!("milonga_sequencer_tail", "The next position to be issued.");
        metrics::describe_gauge!("milonga_term", "The term of this server.");
        metrics::describe_gauge!(
            "milonga_sequencer_serving",
            "1 if the sequencer issues positions."
        );
        metrics::describe_gauge!(
            "milonga_sequencer_streams",
            "Streams remembered at the last change of term."
        );
        metrics::describe_histogram!(
            "milonga_sequencer_confirm_duration_seconds",
            "How long a round of confirmations by the layout servers took."
        );
        Self {
            tokens: counter!("milonga_sequencer_tokens_total", "server" => server.clone()),
            requests: counter!("milonga_sequencer_token_requests_total", "server" => server.clone()),
            tail: gauge!("milonga_sequencer_tail", "server" => server.clone()),
            term: gauge!("milonga_term", "server" => server.clone()),
            serving: gauge!("milonga_sequencer_serving", "server" => server.clone()),
            streams: gauge!("milonga_sequencer_streams", "server" => server.clone()),
            rounds: histogram!("milonga_sequencer_confirm_duration_seconds", "server" => server),
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn issued(&self, first: Position, count: u32) {
        self.tokens.increment(u64::from(count));
        self.requests.increment(1);
        self.tail.set(first.plus(u64::from(count)).0 as f64);
    }

    #[allow(clippy::cast_precision_loss)]
    fn stands(&self, core: &Counter) {
        let serving = core.standing() == Standing::Serving;
        self.term.set(core.term().0 as f64);
        self.serving.set(if serving { 1.0 } else { 0.0 });
        self.streams.set(core.streams() as f64);
        if let Some(next) = core.next() {
            self.tail.set(next.0 as f64);
        }
    }

    fn round(&self, seconds: f64) {
        self.rounds.record(seconds);
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
