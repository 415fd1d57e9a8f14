//! The shell of the layout server: requests in, answers out, and the disk in between.
//!
//! Everything happens under one lock and at once: a request that changes something waits for the disk, and what comes
//! behind it waits too. Changes of layout are rare, and between them nothing touches the disk. Only requests for an
//! opinion and for a relay are answered later, outside that lock: by `probe.rs` and `relay.rs`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use metrics::{Counter as Count, Gauge, Histogram, counter, gauge, histogram};
use milonga_host::{Clock, Disk, Host, Responder, Service, net};
use milonga_wire::{
    Caller, ClusterId, Decided, Description, Identity, Incarnation, Kind, LayoutReply,
    LayoutRequest, Position, Refusal, Reply, Request, ServerName, Term, admit,
};

use crate::acceptor::{Acceptor, Change, Step};
use crate::opinion::Suspect;
use crate::probe::Opinions;
use crate::relay::{Errand, Relays};
use crate::store::{OpenError, Store};
use crate::{Config, Reports};

/// A running layout server, to be given to a transport as its [`Service`].
pub struct Server {
    cluster: ClusterId,
    name: ServerName,
    identity: Identity,
    incarnation: Incarnation,
    clock: Clock,
    state: Mutex<State>,
    reports: Arc<Reports>,
    opinions: Opinions,
    relays: Relays,
    metrics: Metrics,
}

struct State {
    acceptor: Acceptor,
    store: Store,
}

/// What follows from a request.
enum Answer {
    /// It is answered at once.
    Now(LayoutReply),
    /// It is answered after a probe of this suspect.
    AfterProbe(Suspect),
    /// It is answered with what another server says to this.
    AfterRelay(Box<Errand>),
}

impl From<LayoutReply> for Answer {
    fn from(reply: LayoutReply) -> Self {
        Self::Now(reply)
    }
}

impl Server {
    /// Starts a layout server on its directory; a blank one is formatted. `cluster` is the one its certificate names.
    ///
    /// # Errors
    /// [`OpenError`] if the directory is another's, damaged or in use.
    pub fn start(
        host: &Host,
        disk: Arc<dyn Disk>,
        cluster: ClusterId,
        config: &Config,
    ) -> Result<Arc<Self>, OpenError> {
        let fresh = Identity(host.random.id());
        let (store, found) = Store::open(disk, cluster, &config.name, fresh)?;
        let identity = found.format.identity;
        let acceptor = Acceptor::recover(cluster, identity, found.decided, found.vote)?;
        let metrics = Metrics::new(&config.name);
        metrics.stands(&acceptor);
        let newest = acceptor.newest().map(|newest| newest.layout.term);
        tracing::info!(name = %config.name, %identity, ?newest, "layout server started");
        Ok(Arc::new(Self {
            cluster,
            name: config.name.clone(),
            identity,
            incarnation: Incarnation(host.random.next()),
            clock: host.clock.clone(),
            state: Mutex::new(State { acceptor, store }),
            reports: Arc::new(Reports::new(config.reports_max)),
            opinions: Opinions::new(host, cluster, config),
            relays: Relays::new(host, cluster, &config.name),
            metrics,
        }))
    }

    /// Its identity.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// This process start.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// What clients reported, for the caretaker beside it.
    pub fn reports(&self) -> Arc<Reports> {
        Arc::clone(&self.reports)
    }

    /// The newest decided layout it knows.
    pub fn newest(&self) -> Option<Arc<Decided>> {
        self.state().acceptor.newest().cloned()
    }

    /// Whether it votes.
    ///
    /// # Errors
    /// Why not, for people.
    pub fn ready(&self) -> Result<(), String> {
        let state = self.state();
        if let Some(why) = state.store.failed() {
            return Err(format!("its disk failed ({why}); check it, then restart"));
        }
        if state.acceptor.newest().is_none() {
            return Err("blank: `cluster init` has not named it".to_owned());
        }
        if !state.acceptor.is_listed() {
            return Err("the newest layout does not name it".to_owned());
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(
        &self,
        caller: &Caller,
        term: Term,
        request: LayoutRequest,
    ) -> Result<Answer, Refusal> {
        let mut state = self.state();
        let acceptor = &state.acceptor;
        let step = match request {
            LayoutRequest::Newest => return Ok(acceptor.standing().into()),
            LayoutRequest::At => return Ok(acceptor.at(term).into()),
            LayoutRequest::Report(report) => {
                drop(state);
                self.reports.note(caller.name.clone(), report)?;
                self.metrics.reports.increment(1);
                return Ok(LayoutReply::Noted.into());
            }
            LayoutRequest::Confirm => {
                state.check_disk()?; // What failed to become durable may have been accepted.
                return state.acceptor.confirm(term).map(Answer::from);
            }
            LayoutRequest::Opinion { of, kind } => {
                let newest = acceptor.newest().map(Arc::as_ref);
                return Suspect::find(newest, term, &of, kind)
                    .map(Answer::AfterProbe)
                    .inspect_err(|_| self.opinions.refused());
            }
            LayoutRequest::Relay { to, request } => {
                let newest = acceptor.newest().map(Arc::as_ref);
                return Errand::find(newest, term, *to, request)
                    .map(|errand| Answer::AfterRelay(Box::new(errand)))
                    .inspect_err(|_| self.relays.refused());
            }
            LayoutRequest::Prepare { rank } => acceptor.prepare(term, rank),
            LayoutRequest::Propose { rank, layout } => acceptor.propose(term, rank, *layout),
            LayoutRequest::Learn { decided } => self.learn(acceptor, *decided),
            LayoutRequest::Genesis { layout } => acceptor.genesis(*layout),
        };
        let step = step.inspect_err(|refusal| self.metrics.refused(refusal))?;
        self.make_durable(&mut state, step).map(Answer::from)
    }

    fn learn(&self, acceptor: &Acceptor, decided: Decided) -> Result<Step, Refusal> {
        let term = decided.layout.term;
        let learnt = acceptor.learn(decided);
        if let Err(Refusal::Malformed { why }) = &learnt {
            tracing::error!(name = %self.name, %term, why, "told of a decision that cannot be one");
        }
        learnt
    }

    /// Durable, then applied, then answered (Paxos Made Simple, "Implementing a State Machine": stable storage first).
    fn make_durable(&self, state: &mut State, step: Step) -> Result<LayoutReply, Refusal> {
        state.check_disk()?;
        let Step { durable, reply } = step;
        if let Some(change) = durable {
            let began = self.clock.now();
            if let Err(why) = state.store.commit(&change) {
                tracing::error!(name = %self.name, why, "the disk failed; no more votes until a restart");
                return Err(Refusal::DiskFailed { why });
            }
            let took = self.clock.now().since(began);
            self.metrics.commits.record(took.as_secs_f64());
            self.metrics.voted(&change);
            if let Change::Decided(decided) = &change {
                let (term, origin) = (decided.layout.term, &decided.layout.origin);
                tracing::info!(name = %self.name, %term, by = origin.by, change = origin.change, "layout decided");
                self.opinions.decided(decided);
            }
            state.acceptor.apply(change);
            self.metrics.stands(&state.acceptor);
        }
        Ok(reply)
    }

    fn describe(&self) -> Description {
        let state = self.state();
        let newest = state.acceptor.newest();
        let in_one_word = match (state.store.failed(), newest) {
            (Some(_), _) => "failed",
            (None, None) => "blank",
            (None, Some(_)) => "serving",
        };
        Description {
            kind: Kind::Layout,
            name: self.name.clone(),
            identity: self.identity,
            incarnation: self.incarnation,
            term: newest.map_or(Term::GENESIS, |newest| newest.layout.term),
            blank: newest.is_none(),
            end: Position::FIRST,
            trimmed: Position::FIRST,
            bytes: state.store.bytes(),
            reads: 0,
            state: in_one_word.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            damaged: 0,
            busy_per_mille: 0,
        }
    }
}

impl State {
    fn check_disk(&self) -> Result<(), Refusal> {
        match self.store.failed() {
            None => Ok(()),
            Some(why) => Err(Refusal::DiskFailed {
                why: why.to_owned(),
            }),
        }
    }
}

impl Service for Server {
    fn serve(&self, caller: &Caller, request: net::Request, respond: Responder) {
        let head = request.head;
        if let Err(refusal) = admit(caller, &head, self.cluster, self.identity, None) {
            return respond.send(Err(refusal));
        }
        let reply = match head.request {
            Request::Layout(request) => match self.answer(caller, head.term, request) {
                Ok(Answer::Now(reply)) => Ok(Reply::Layout(reply)),
                Ok(Answer::AfterProbe(suspect)) => {
                    return self.opinions.give(suspect, head.term, respond);
                }
                Ok(Answer::AfterRelay(errand)) => return self.relays.make(*errand, respond),
                Err(refusal) => Err(refusal),
            },
            Request::Describe => Ok(Reply::Described(self.describe().into())),
            Request::Unit(_) => Err(wrong_kind("log unit")),
            Request::Sequencer(_) => Err(wrong_kind("sequencer")),
        };
        respond.send(reply);
    }
}

fn wrong_kind(needs: &str) -> Refusal {
    Refusal::WrongKind {
        needs: needs.to_owned(),
    }
}

/// Handles kept.
struct Metrics {
    promised: Count,
    accepted: Count,
    decided: Count,
    outranked: Count,
    reports: Count,
    term: Gauge,
    commits: Histogram,
}

impl Metrics {
    fn new(name: &ServerName) -> Self {
        let server = name.to_string();
        metrics::describe_counter!(
            "milonga_layout_ballots_total",
            "Steps of the decision on a layout, by their result here."
        );
        metrics::describe_counter!(
            "milonga_layout_reports_total",
            "Reports of holes and suspicions that were noted."
        );
        metrics::describe_gauge!("milonga_term", "The term of this server.");
        metrics::describe_histogram!(
            "milonga_layout_commit_duration_seconds",
            "How long it took to make a vote or a decision durable."
        );
        let ballots = |result: &'static str| counter!("milonga_layout_ballots_total", "server" => server.clone(), "result" => result);
        Self {
            promised: ballots("promised"),
            accepted: ballots("accepted"),
            decided: ballots("decided"),
            outranked: ballots("outranked"),
            reports: counter!("milonga_layout_reports_total", "server" => server.clone()),
            term: gauge!("milonga_term", "server" => server.clone()),
            commits: histogram!("milonga_layout_commit_duration_seconds", "server" => server),
        }
    }

    fn voted(&self, change: &Change) {
        match change {
            Change::Vote(vote) => {
                let accepts = vote.accepted.as_ref().map(|(rank, _)| *rank);
                if accepts == Some(vote.promised) {
                    self.accepted.increment(1);
                } else {
                    self.promised.increment(1);
                }
            }
            Change::Decided(_) => self.decided.increment(1),
        }
    }

    fn refused(&self, refusal: &Refusal) {
        if matches!(refusal, Refusal::Outranked { .. }) {
            self.outranked.increment(1);
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn stands(&self, acceptor: &Acceptor) {
        if let Some(newest) = acceptor.newest() {
            self.term.set(newest.layout.term.0 as f64);
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
