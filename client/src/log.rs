//! A client's hold on the log: what all its operations share, and how it carries on after trouble.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use milonga_host::{BoxFuture, Host, Moment};
use milonga_wire::limits::TEXT_BYTES_MAX;
use milonga_wire::{
    Address, Caller, Chain, ConfirmedEnd, Decided, Layout, LayoutRequest, Position, Report, Role,
    SequencerReply, SequencerRequest, Session, Span, StreamId, StreamLink, Term,
};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::calls::{Calls, Failure, unexpected};
use crate::chain::OneChain;
use crate::full::FullUnits;
use crate::gather::Gathering;
use crate::layouts::Layouts;
use crate::marks::Marks;
use crate::options::Options;
use crate::reconfigure;
use crate::trouble::{Next, Patience, Trouble, Unavailable};

/// A term that was sealed is looked for this often before it is taken for half done, and this long after the first time,
/// then twice as long each time.
const DECISION: Duration = Duration::from_millis(8);
const DECISION_STEPS: u32 = 5;

fn is_of_a_later_term(refusal: &milonga_wire::Refusal) -> bool {
    matches!(refusal, milonga_wire::Refusal::StaleTerm { .. })
}

/// The end of the log, and where some streams end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct End {
    /// At or above every append acknowledged before the call, by anyone. Never lower than this client was told before.
    pub position: Position,
    /// The sequencer's counter in `term`: positions from here to `position` were issued in an earlier term and vanished.
    pub counter: Position,
    /// The term in which it was confirmed.
    pub term: Term,
    /// Per stream asked for, in order: its last positions below the counter.
    pub streams: Vec<StreamLink>,
}

/// A client of one cluster. Clones share everything; dropping the last one ends its background work.
#[derive(Clone)]
pub struct Log {
    pub(crate) shared: Arc<Shared>,
    pub(crate) options: Arc<Options>,
    /// None in background work, which ends when nobody else is left.
    _user: Option<Arc<DropGuard>>,
}

/// What all clones share.
pub(crate) struct Shared {
    pub(crate) host: Host,
    /// Cancelled when nobody uses this client any more.
    unused: CancellationToken,
    pub(crate) caller: Caller,
    pub(crate) calls: Calls,
    pub(crate) layouts: Layouts,
    pub(crate) session: Session,
    requests: AtomicU64,
    /// The highest end this session was told (design: a session never reports a lower one).
    end_seen: AtomicU64,
    /// The newest confirmed end: what fills are based on.
    confirmed: Mutex<Option<ConfirmedEnd>>,
    pub(crate) marks: Marks,
    /// A moving average of what an append or read takes, in microseconds: how long a hole is left to its writer.
    latency_us: AtomicU64,
    /// One mend at a time.
    mending: Arc<tokio::sync::Mutex<()>>,
    /// How many attempts to mend have ended.
    mended: AtomicU64,
    pub(crate) changes: reconfigure::Changes,
    /// How many relays this client may have under way.
    pub(crate) relays: tokio::sync::Semaphore,
    /// The term whose layout was last looked at for what it lacks.
    looked_after: AtomicU64,
    /// Whether this client brings the cluster back to full strength.
    attending: AtomicBool,
    /// When this client last reported a server it suspects.
    suspected: Mutex<Option<Moment>>,
    /// When it last told of damage.
    pub(crate) damage_told: Mutex<Option<Moment>>,
    pub(crate) turns: AtomicU64,
    pub(crate) gathering: Gathering,
    pub(crate) full: FullUnits,
}

impl Log {
    /// A client of the cluster whose layout servers listen at `layout_servers`. Nothing is asked yet.
    ///
    /// `caller` is what this process's certificate says: its role decides what this client tries by itself.
    pub fn new(host: Host, caller: Caller, layout_servers: Vec<Address>, options: Options) -> Self {
        let calls = Calls::new(host.clone(), caller.cluster, options.call);
        let layouts = Layouts::new(calls.clone(), layout_servers);
        let session = Session(host.random.id());
        let unused = CancellationToken::new();
        let user = Arc::new(unused.clone().drop_guard());
        let shared = Shared {
            host,
            unused,
            caller,
            calls,
            layouts,
            session,
            requests: AtomicU64::new(0),
            end_seen: AtomicU64::new(0),
            confirmed: Mutex::new(None),
            marks: Marks::default(),
            latency_us: AtomicU64::new(2_000),
            mending: Arc::default(),
            mended: AtomicU64::new(0),
            changes: reconfigure::Changes::default(),
            relays: tokio::sync::Semaphore::new(reconfigure::RELAYS_MAX),
            looked_after: AtomicU64::new(u64::MAX),
            attending: AtomicBool::new(false),
            suspected: Mutex::new(None),
            damage_told: Mutex::new(None),
            turns: AtomicU64::new(0),
            gathering: Gathering::default(),
            full: FullUnits::default(),
        };
        Self {
            shared: Arc::new(shared),
            options: Arc::new(options),
            _user: Some(user),
        }
    }

    /// The same client with other waits and bounds.
    pub fn with_options(&self, options: Options) -> Self {
        Self {
            options: Arc::new(options),
            ..self.clone()
        }
    }

    /// Starts `work` in the background. It ends where it waits next when this client's users have all dropped it.
    pub(crate) fn background<F: Future<Output = ()> + Send + 'static>(
        &self,
        work: impl FnOnce(Self) -> F,
    ) {
        let log = Self {
            _user: None,
            ..self.clone()
        };
        let unused = self.shared.unused.clone();
        let work = work(log);
        let tasks = &self.shared.host.tasks;
        tasks.spawn(async move {
            unused.run_until_cancelled(work).await;
        });
    }

    /// The same client with another deadline for each operation.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        self.with_options(Options {
            deadline,
            ..(*self.options).clone()
        })
    }

    /// What this client was told to wait and bound.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What this client runs on.
    pub fn host(&self) -> &Host {
        &self.shared.host
    }

    /// Who this client is.
    pub fn caller(&self) -> &Caller {
        &self.shared.caller
    }

    /// The session of every stamp this client makes.
    pub fn session(&self) -> Session {
        self.shared.session
    }

    /// The newest decided layout this client knows; it asks a majority of the layout servers the first time.
    ///
    /// # Errors
    /// [`Unavailable`] if the deadline passes without a majority.
    pub async fn layout(&self) -> Result<Arc<Decided>, Unavailable> {
        let decided = match self.shared.layouts.known() {
            Some(known) => known,
            None => Box::pin(self.first_layout()).await?,
        };
        let (looked, term) = (&self.shared.looked_after, decided.layout.term.0);
        if looked.load(Ordering::Relaxed) != term {
            looked.store(term, Ordering::Relaxed);
            self.attend_unasked();
        }
        Ok(decided)
    }

    async fn first_layout(&self) -> Result<Arc<Decided>, Unavailable> {
        let mut patience = self.patience();
        loop {
            match self.shared.layouts.current().await {
                Ok(decided) => return Ok(decided),
                Err(error @ crate::layouts::LayoutsError::Blank) => {
                    return Err(Unavailable::Protocol {
                        why: error.to_string(),
                    });
                }
                Err(error) => patience.pause(|| error.to_string()).await?,
            }
        }
    }

    /// The newest decided layout, read from a majority of the layout servers now.
    ///
    /// # Errors
    /// [`Unavailable`] if the deadline passes without a majority.
    pub async fn newest_layout(&self) -> Result<Arc<Decided>, Unavailable> {
        let mut patience = self.patience();
        while let Err(error) = self.shared.layouts.read().await {
            self.after(&mut patience, Term::GENESIS, error.into())
                .await?;
        }
        self.layout().await
    }

    /// The end of the log: at or above every append acknowledged before this call.
    ///
    /// Confirmed by a majority of the layout servers in a round that began after the sequencer got the request, so a
    /// sequencer that was replaced cannot make anyone believe an old end (H2, H43).
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn end(&self) -> Result<End, Unavailable> {
        self.end_of(&[]).await
    }

    /// The end of the log, and the last positions of `streams`.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn end_of(&self, streams: &[StreamId]) -> Result<End, Unavailable> {
        let mut patience = self.patience();
        loop {
            let decided = self.layout().await?;
            let layout = &decided.layout;
            let request = SequencerRequest::End {
                streams: streams.to_vec(),
            };
            match self
                .shared
                .calls
                .sequencer(&layout.sequencer, layout.term, request)
                .await
            {
                Ok(SequencerReply::End { end, term, streams }) => {
                    return Ok(self.told(end, term, streams));
                }
                Ok(_) => {
                    self.after(
                        &mut patience,
                        layout.term,
                        unexpected("the sequencer").into(),
                    )
                    .await?;
                }
                Err(failure) => {
                    self.after(&mut patience, layout.term, failure.into())
                        .await?;
                }
            }
        }
    }

    fn told(&self, counter: Position, term: Term, streams: Vec<StreamLink>) -> End {
        let seen = self
            .shared
            .end_seen
            .fetch_max(counter.0, Ordering::Relaxed)
            .max(counter.0);
        let mut confirmed = self
            .shared
            .confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let newer = ConfirmedEnd { end: counter, term };
        if confirmed.is_none_or(|known| (known.term, known.end) < (newer.term, newer.end)) {
            *confirmed = Some(newer);
        }
        End {
            position: Position(seen),
            counter,
            term,
            streams,
        }
    }

    /// The newest confirmed end of `term`, if there is one: what a fill in that term may be based on (C5).
    pub(crate) fn confirmed(&self, term: Term) -> Option<ConfirmedEnd> {
        let confirmed = self
            .shared
            .confirmed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        confirmed.filter(|known| known.term == term)
    }

    /// The number of this session's next append.
    pub(crate) fn next_request(&self) -> u64 {
        self.shared.requests.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn patience(&self) -> Patience {
        Patience::new(
            &self.shared.host.clock,
            &self.shared.host.random,
            self.options.deadline,
        )
    }

    /// How much longer than its deadline an operation may take, to end what it has begun or to look what became of it.
    pub(crate) fn grace(&self) -> Duration {
        self.options.call.min(self.options.deadline / 4)
    }

    /// `future`'s outcome, if it comes within `limit`.
    ///
    /// # Errors
    /// [`Unavailable::Deadline`]; the future is dropped then.
    pub(crate) async fn within<F: Future>(
        &self,
        limit: Duration,
        future: F,
    ) -> Result<F::Output, Unavailable> {
        let clock = &self.shared.host.clock;
        clock
            .within(limit, future)
            .await
            .map_err(|_| Unavailable::Deadline {
                waited: limit,
                last: "no answer".to_owned(),
            })
    }

    pub(crate) fn chain<'a>(&'a self, layout: &'a Layout, chain: &'a Chain) -> OneChain<'a> {
        OneChain {
            calls: &self.shared.calls,
            layout,
            chain,
            full: &self.shared.full,
        }
    }

    /// Does what `trouble`, met in `term`, asks for; after `Ok` the caller tries again under the newest layout.
    ///
    /// # Errors
    /// [`Unavailable`] if trying again does not help or the deadline has passed.
    pub(crate) fn after<'a>(
        &'a self,
        patience: &'a mut Patience,
        term: Term,
        trouble: Trouble,
    ) -> BoxFuture<'a, Result<(), Unavailable>> {
        // In a box: trouble is rare, and what mending it takes must not make every append's future large.
        Box::pin(self.mind(patience, term, trouble))
    }

    async fn mind(
        &self,
        patience: &mut Patience,
        term: Term,
        trouble: Trouble,
    ) -> Result<(), Unavailable> {
        let failure = match trouble {
            Trouble::Diverged(why) => return Err(Unavailable::Diverged { why }),
            Trouble::GaveUp(error) => return Err(error),
            Trouble::Unknown { span, .. } => {
                let text = trouble.to_string();
                self.recover(patience, term, span).await;
                return patience.pause(|| text).await;
            }
            Trouble::Layouts(error) => return patience.pause(|| error.to_string()).await,
            Trouble::Server(failure) => failure,
        };
        tracing::debug!(%term, %failure, "trouble");
        match (Next::after(&failure), failure.refusal()) {
            (Next::GiveUp, Some(refusal)) => {
                let Failure::Refused { server, .. } = &failure else {
                    unreachable!("a refusal names its server")
                };
                return Err(Unavailable::Refused {
                    server: server.clone(),
                    refusal: refusal.clone(),
                });
            }
            (Next::GiveUp, None) => {
                return Err(Unavailable::Protocol {
                    why: failure.to_string(),
                });
            }
            (Next::Refresh, refusal) => {
                if let Some(
                    milonga_wire::Refusal::StaleTerm {
                        newest: Some(newest),
                        ..
                    }
                    | milonga_wire::Refusal::Decided { newest },
                ) = refusal
                {
                    self.shared.layouts.offer(newest);
                }
                if self.is_newer_than(term) {
                    return Ok(());
                }
                // The server is in a term that nobody has decided yet, or whose decision has not reached us.
                self.mend(patience, term, &failure).await;
            }
            (Next::Mend | Next::Restore | Next::Look, _) => {
                self.mend(patience, term, &failure).await;
            }
            (Next::Again, _) => {
                if patience.waited() > self.options.call {
                    self.mend(patience, term, &failure).await;
                }
            }
        }
        if self.is_newer_than(term) {
            return if patience.is_over() {
                patience.pause(|| failure.to_string()).await
            } else {
                Ok(())
            };
        }
        patience.pause(|| failure.to_string()).await
    }

    pub(crate) fn is_newer_than(&self, term: Term) -> bool {
        self.shared
            .layouts
            .known()
            .is_some_and(|known| known.layout.term > term)
    }

    /// Reads the newest layout; if it is still that of `term`, and this client may, finishes or replaces it.
    async fn mend(&self, patience: &Patience, term: Term, failure: &Failure) {
        let failure = failure.clone();
        let attempt = move |log: Self| async move {
            if let Err(error) = log.look_and_mend(term, &failure).await {
                tracing::debug!(%error, "could not mend");
            }
            log.attend_unasked();
        };
        self.attempt(patience, term, attempt).await;
    }

    /// Makes `attempt` at a change of the layout of `term`. One at a time: who waited for another's attempt tries its own
    /// operation again first. It is waited for until `patience` ends, and goes on then: a term that was sealed and not
    /// decided stops everybody, whatever became of the operation that began it.
    async fn attempt<F: Future<Output = ()> + Send + 'static>(
        &self,
        patience: &Patience,
        term: Term,
        attempt: impl FnOnce(Self) -> F + Send + 'static,
    ) {
        let shared = &self.shared;
        let limit = patience.left().max(self.grace());
        let made = shared.mended.load(Ordering::Relaxed);
        let waited = shared.host.clock.within(limit, async {
            let alone = shared.mending.clone().lock_owned().await;
            if self.is_newer_than(term) || shared.mended.load(Ordering::Relaxed) != made {
                return;
            }
            let (done, ended) = oneshot::channel::<()>();
            self.background(|log| async move {
                attempt(log.clone()).await;
                log.shared.mended.fetch_add(1, Ordering::Relaxed);
                drop((alone, done));
            });
            let _ = ended.await;
        });
        if waited.await.is_err() {
            tracing::debug!(%term, "the attempt takes longer than the operation may, and goes on");
        }
    }

    /// Who may not mend reports the server that gave `failure`.
    async fn look_and_mend(
        &self,
        term: Term,
        failure: &Failure,
    ) -> Result<(), reconfigure::ChangeError> {
        self.shared.layouts.read().await?;
        if self.is_newer_than(term) {
            return Ok(());
        }
        if !self.options.mend || !self.may(Role::Control) {
            self.suspect(failure).await;
            return Ok(());
        }
        let Host { clock, random, .. } = self.host();
        if failure.refusal().is_some_and(is_of_a_later_term) {
            // Whoever seals a term is about to decide it: that takes a moment.
            for step in 0..DECISION_STEPS {
                clock.sleep(random.jittered(DECISION * (1 << step))).await;
                self.shared.layouts.read().await?;
                if self.is_newer_than(term) {
                    return Ok(());
                }
            }
        }
        let suspect = failure.server().filter(|_| {
            let refusal = failure.refusal();
            refusal
                .is_none_or(|refusal| matches!(refusal, milonga_wire::Refusal::DiskFailed { .. }))
        });
        reconfigure::mend(self, &failure.to_string(), suspect.as_ref()).await?;
        Ok(())
    }

    /// The last changes of layout that this client brought about, oldest first.
    pub fn changes(&self) -> Vec<reconfigure::Phases> {
        self.shared.changes.all()
    }

    fn attend_unasked(&self) {
        if self.options.mend && self.options.attend {
            self.attend();
        }
    }

    /// Brings the cluster back to full strength in the background, if it lacks something that can be had: spares take the
    /// places of units that left and get what was closed before, and units that left and answer again come back. For control
    /// clients; once at a time.
    pub fn attend(&self) {
        let known = self.shared.layouts.known();
        if !self.may(Role::Control)
            || !known.is_some_and(|known| reconfigure::needs_attention(&known.layout))
            || self.shared.attending.swap(true, Ordering::Relaxed)
        {
            return;
        }
        self.background(|log| async move {
            reconfigure::attend(&log).await;
            log.shared.attending.store(false, Ordering::Relaxed);
        });
    }

    /// Puts back what any unit holds of `span`, or asks others to: damage in the open segment needs a later term first.
    async fn recover(&self, patience: &Patience, term: Term, span: Span) {
        if self.restore(span).await {
            return;
        }
        let known = self.shared.layouts.known();
        let open = known.filter(|known| known.layout.open_segment().start <= span.start);
        if self.options.mend
            && self.may(Role::Control)
            && open.is_some_and(|known| known.layout.term == term)
        {
            let change = move |log: Self| async move {
                let why = "an entry of the open segment is damaged";
                let same = reconfigure::Change::default();
                let changed = reconfigure::make(&log, term, &same, why).await;
                tracing::debug!(?changed, %span, "a later term restores what is damaged");
            };
            self.attempt(patience, term, change).await;
            return;
        }
        self.report(Report::Holes {
            spans: vec![span],
            end: span.end,
        })
        .await;
    }

    /// Whether this client's certificate is good for what `role` may do.
    pub(crate) fn may(&self, role: Role) -> bool {
        let has = self.shared.caller.role;
        !has.is_server() && has >= role
    }

    /// Reports the server that gave `failure`, at most once in the time of a call: the caretakers look for themselves.
    async fn suspect(&self, failure: &Failure) {
        let now = self.shared.host.clock.now();
        let Some(server) = failure.server().filter(|_| self.may(Role::Writer)) else {
            return;
        };
        {
            let mut suspected = self
                .shared
                .suspected
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if suspected.is_some_and(|last| now.since(last) < self.options.call) {
                return;
            }
            *suspected = Some(now);
        }
        let mut why = failure.to_string();
        while why.len() > TEXT_BYTES_MAX {
            why.pop();
        }
        self.report(Report::Suspect { server, why }).await;
    }

    /// Tells the layout servers what this client saw and may not mend; nobody waits for it to be believed.
    pub(crate) async fn report(&self, report: Report) {
        let Some(decided) = self.shared.layouts.known() else {
            return;
        };
        for server in &decided.layout.layout_servers {
            let request = LayoutRequest::Report(report.clone());
            if self
                .shared
                .calls
                .layout(server, decided.layout.term, request)
                .await
                .is_ok()
            {
                return;
            }
        }
    }

    /// Notes how long an append or a read took.
    pub(crate) fn took(&self, time: Duration) {
        let sample = time.as_micros() as u64;
        let old = self.shared.latency_us.load(Ordering::Relaxed);
        self.shared
            .latency_us
            .store(old - old / 8 + sample / 8, Ordering::Relaxed);
    }

    /// How long a hole is left to its writer: a small multiple of what operations take.
    pub(crate) fn hole_wait(&self) -> Duration {
        let usual = Duration::from_micros(self.shared.latency_us.load(Ordering::Relaxed));
        let most = self.options.hole_wait_max;
        (usual * 8).clamp(self.options.hole_wait_min.min(most), most)
    }

    /// Spans below the newest known end: for messages.
    pub(crate) fn clip(span: Span, end: Position) -> Span {
        span.intersect(Span::new(Position::FIRST, end))
    }
}

#[cfg(test)]
mod tests;
