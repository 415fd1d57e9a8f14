//! The shell of a log unit: it admits callers, answers questions at once, and lets commands wait in one queue.
//!
//! ```text
//! connection tasks ── serve ──┬─ question ─▶ answered at once, from what is durable; while the disk is at work, after that
//!                             └─ command ─▶ queue ◀── layout servers asked ◀─┐
//!                                             │                             │
//!                                        commit task ── seal that skips terms
//!                                             │ all that waits: admitted, one commit, all answers
//! ```
//! There is no timer: the next commit starts when the last one ends, with whatever came meanwhile. On a current-thread
//! runtime the connection tasks run in between, so a batch is what they brought. What is decided, `unit.rs` decides.
//!
//! A disk may stand still for seconds, in a sync or while files go. On a runtime of two threads the other one goes on
//! meanwhile: it takes in what comes, acknowledges it, and describes the unit. So nobody waits for the core but tasks that
//! can be left waiting, and whoever gives it back answers the questions that met it at work.
//!
//! The tasks hold what they share and never the node's [`milonga_host::Tasks`], so that dropping those ends the node.

mod confirm;
mod load;
mod metrics;
mod scrub;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milonga_host::net::Request;
use milonga_host::{Clock, Host, Network, Random, Responder, Service};
use milonga_wire::{
    Access, Caller, Description, Identity, Incarnation, Kind, Position, Refusal, Reply,
    Request as Wanted, RequestHead, Role, Term, UnitReply, admit,
};
use tokio::sync::Notify;

use crate::config::Config;
use crate::storage::Storage;
use crate::unit::{Asked, Command, Query, Unit, Work};
use confirm::Confirmations;
use load::Load;
use metrics::Metrics;

/// Bytes of commands that one commit takes; the rest waits for the next.
const COMMIT_BYTES_MAX: usize = 16 << 20;
/// Bytes of waiting probes that the queue takes beyond its bound: a unit that has much to do must not be taken for one
/// that writes no more (H29).
const PROBE_BYTES_MAX: usize = 64 << 10;
/// Between two looks after the store, when it said there is more to do, and when not.
const HOUSEKEEPING_BUSY: Duration = Duration::from_millis(20);
const HOUSEKEEPING_IDLE: Duration = Duration::from_secs(1);
/// How often housekeeping gives way to waiting commands before its turn comes.
const GIVE_WAY_MAX: u32 = 10;

/// Questions that wait while the disk is at work at most.
const LATER_MAX: usize = 65_536;

type CoreGuard<'a> = tokio::sync::MutexGuard<'a, Core>;

/// A running log unit.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    config: Config,
    standing: Mutex<Standing>,
    load: Mutex<Load>,
    net: Arc<dyn Network>,
    clock: Clock,
    random: Random,
    metrics: Metrics,
    reads: AtomicU64,
    disk_bytes: AtomicU64,
    core: tokio::sync::Mutex<Core>,
    /// What met the core at work.
    later: Mutex<Vec<Later>>,
    queue: Mutex<Queue>,
    /// Something waits in the queue.
    work: Notify,
    /// The queue is empty and answered.
    idle: Notify,
    confirmations: Confirmations,
}

/// The server that a request must mean, to be admitted.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Who {
    identity: Identity,
    incarnation: Incarnation,
}

impl Who {
    fn of(unit: &Unit) -> Self {
        Self {
            identity: unit.identity(),
            incarnation: unit.incarnation(),
        }
    }

    /// Whether `unit` is still the one that a request was admitted for (U12).
    fn check(self, unit: &Unit) -> Result<(), Refusal> {
        let here = Self::of(unit);
        if self == here {
            return Ok(());
        }
        Err(Refusal::WrongServer {
            asked: self.identity,
            here: here.identity,
        })
    }
}

/// The unit and its store: one at a time, for as long as the disk takes.
struct Core {
    unit: Unit,
    storage: Box<dyn Storage>,
}

/// How the unit stood when the core was last given back: what is said of it while the disk is at work.
#[derive(Copy, Clone, Debug)]
struct Standing {
    /// Who is served: a reset changes it.
    who: Who,
    term: Term,
    blank: bool,
    end: Position,
    trimmed: Position,
    condition: &'static str,
    has_failed: bool,
    damaged: u64,
}

impl Standing {
    fn of(core: &Core) -> Self {
        let Core { unit, storage } = core;
        Self {
            who: Who::of(unit),
            term: unit.term(),
            blank: unit.is_blank(),
            end: unit.end(),
            trimmed: unit.trimmed(),
            condition: unit.condition(storage.room()),
            has_failed: unit.failure().is_some(),
            damaged: storage.damaged(),
        }
    }
}

/// A question, or a reset, and where its answer goes.
struct Later {
    wanted: Now,
    term: Term,
    /// Whom it was admitted for.
    who: Who,
    respond: Responder,
}

/// What does not wait for a commit.
enum Now {
    /// Asked by somebody who may see what is not announced, or not.
    Answer {
        query: Query,
        trusted: bool,
    },
    Reset(Identity),
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    /// A batch was taken out and is not answered yet.
    committing: bool,
    draining: bool,
}

/// A command and where its answer goes.
struct Waiting {
    asked: Asked,
    /// Whom it was admitted for.
    who: Who,
    respond: Responder,
    bytes: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    /// Starts a log unit on `storage`, as a process start of its own. Must be called inside the runtime that is to run it.
    pub fn start(host: &Host, storage: Box<dyn Storage>, config: Config) -> Arc<Self> {
        let incarnation = Incarnation(host.random.next());
        let unit = Unit::new(&*storage, incarnation, config.entry_bytes_max);
        let core = Core { unit, storage };
        let shared = Arc::new(Shared {
            standing: Mutex::new(Standing::of(&core)),
            load: Mutex::new(Load::new(host.clock.now())),
            net: Arc::clone(&host.net),
            clock: host.clock.clone(),
            random: host.random.clone(),
            metrics: Metrics::new(&config.name),
            reads: AtomicU64::new(0),
            disk_bytes: AtomicU64::new(0),
            core: tokio::sync::Mutex::new(core),
            later: Mutex::default(),
            queue: Mutex::default(),
            work: Notify::new(),
            idle: Notify::new(),
            confirmations: Confirmations::default(),
            config,
        });
        host.tasks.spawn(Arc::clone(&shared).commit_for_ever());
        host.tasks.spawn(Arc::clone(&shared).confirm_for_ever());
        host.tasks.spawn(Arc::clone(&shared).housekeep_for_ever());
        host.tasks.spawn(Arc::clone(&shared).scrub_for_ever());
        Arc::new(Self(shared))
    }

    /// Which server it is.
    pub fn identity(&self) -> Identity {
        lock(&self.0.standing).who.identity
    }

    /// Which process start.
    pub fn incarnation(&self) -> Incarnation {
        lock(&self.0.standing).who.incarnation
    }

    /// Its word about itself.
    pub fn describe(&self) -> Description {
        self.0.describe()
    }

    /// Whether it takes commands: its disk has not failed, and it is not draining.
    pub fn is_ready(&self) -> bool {
        !lock(&self.0.standing).has_failed && !lock(&self.0.queue).draining
    }

    /// Refuses new commands, and returns once all that waited are committed and answered. Reads go on.
    pub async fn drain(&self) {
        lock(&self.0.queue).draining = true;
        loop {
            let idle = self.0.idle.notified();
            if lock(&self.0.queue).is_idle() {
                return;
            }
            idle.await;
        }
    }
}

impl Service for Server {
    fn serve(&self, caller: &Caller, request: Request, respond: Responder) {
        self.0.serve(caller, request, respond);
    }
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && !self.committing
    }

    /// The next batch: all that waits, up to a bound, and at least one.
    fn take(&mut self) -> Vec<Waiting> {
        let mut taken = Vec::with_capacity(self.waiting.len());
        let mut bytes = 0;
        while bytes < COMMIT_BYTES_MAX
            && let Some(waiting) = self.waiting.pop_front()
        {
            bytes += waiting.bytes;
            taken.push(waiting);
        }
        self.bytes -= bytes;
        self.committing = !taken.is_empty();
        taken
    }
}

impl Shared {
    fn serve(&self, caller: &Caller, request: Request, respond: Responder) {
        let Request { head, payload } = request;
        let who = lock(&self.standing).who;
        let (cluster, incarnation) = (self.config.cluster, Some(who.incarnation));
        if let Err(refusal) = admit(caller, &head, cluster, who.identity, incarnation) {
            return respond.send(Err(refusal));
        }
        let RequestHead { term, request, .. } = head;
        match request {
            Wanted::Describe => respond.send(Ok(Reply::Described(self.describe().into()))),
            Wanted::Unit(request) => match Work::from(request) {
                Work::Command(command) => {
                    let asked = Asked {
                        term,
                        command,
                        payload,
                        confirmed: false,
                    };
                    let bytes = asked.payload.len() + asked.command.head_bytes();
                    self.enqueue(Waiting {
                        asked,
                        who,
                        respond,
                        bytes,
                    });
                }
                Work::Query(query) => {
                    let trusted = Access::AtLeastOrServer(Role::Control).allows(caller.role);
                    let wanted = Now::Answer { query, trusted };
                    self.do_now(Later {
                        wanted,
                        term,
                        who,
                        respond,
                    });
                }
                Work::Reset(of) => {
                    let wanted = Now::Reset(of);
                    self.confirmations.push_reset(Later {
                        wanted,
                        term,
                        who,
                        respond,
                    });
                }
            },
            Wanted::Sequencer(_) => respond.send(Err(wrong_kind("sequencer"))),
            Wanted::Layout(_) => respond.send(Err(wrong_kind("layout server"))),
        }
    }

    fn describe(&self) -> Description {
        let Standing {
            who,
            term,
            blank,
            end,
            trimmed,
            condition,
            has_failed: _,
            damaged,
        } = *lock(&self.standing);
        Description {
            kind: Kind::LogUnit,
            name: self.config.name.clone(),
            identity: who.identity,
            incarnation: who.incarnation,
            term,
            blank,
            end,
            trimmed,
            bytes: self.disk_bytes(),
            reads: self.reads.load(Ordering::Relaxed),
            state: condition.to_owned(),
            version: self.config.version.clone(),
            damaged,
            busy_per_mille: lock(&self.load).per_mille(self.clock.now()),
        }
    }

    /// Counted anew unless the disk is at work.
    fn disk_bytes(&self) -> u64 {
        if let Ok(core) = self.core.try_lock() {
            let bytes = self.with(core, |core| core.storage.bytes());
            self.disk_bytes.store(bytes, Ordering::Relaxed);
        }
        self.disk_bytes.load(Ordering::Relaxed)
    }

    /// Uses the core and gives it back: what met it at work has its turn at once.
    fn with<T>(&self, mut core: CoreGuard<'_>, work: impl FnOnce(&mut Core) -> T) -> T {
        let done = work(&mut core);
        *lock(&self.standing) = Standing::of(&core);
        drop(core);
        self.do_what_waits();
        done
    }

    /// [`Shared::with`], for what keeps the disk busy.
    fn at_work<T>(&self, core: CoreGuard<'_>, work: impl FnOnce(&mut Core) -> T) -> T {
        self.with(core, |core| {
            let began = self.clock.now();
            let done = work(core);
            let now = self.clock.now();
            lock(&self.load).note(now, now.since(began));
            done
        })
    }

    /// Does what needs no commit, or leaves it to whoever has the core.
    fn do_now(&self, wanted: Later) {
        if let Ok(core) = self.core.try_lock() {
            self.with(core, |core| self.serve_one(core, wanted));
            return;
        }
        let mut later = lock(&self.later);
        if later.len() >= LATER_MAX {
            drop(later);
            return wanted
                .respond
                .send(Err(busy("questions that wait for the disk")));
        }
        later.push(wanted);
        drop(later);
        // The core may have been given back before this was there to be seen.
        self.do_what_waits();
    }

    fn do_what_waits(&self) {
        while !lock(&self.later).is_empty() {
            let Ok(mut core) = self.core.try_lock() else {
                return;
            };
            let waiting = std::mem::take(&mut *lock(&self.later));
            for wanted in waiting {
                self.serve_one(&mut core, wanted);
            }
            *lock(&self.standing) = Standing::of(&core);
        }
    }

    fn serve_one(&self, core: &mut Core, wanted: Later) {
        let Later {
            wanted,
            term,
            who,
            respond,
        } = wanted;
        match wanted {
            Now::Answer { query, trusted } => {
                self.answer(core, who, (term, query, trusted), respond);
            }
            Now::Reset(of) => {
                let reset = self.reset(core, who, term, of);
                // Whoever hears of it asks the new one next.
                *lock(&self.standing) = Standing::of(core);
                respond.send(reset.map(Reply::Unit));
            }
        }
    }

    /// Ends the server that `of` names and becomes another, all at once: whatever waits is refused in its turn (U12).
    fn reset(
        &self,
        core: &mut Core,
        who: Who,
        term: Term,
        of: Identity,
    ) -> Result<UnitReply, Refusal> {
        let Core { unit, storage } = core;
        who.check(unit)?;
        unit.may_reset(term, of)?;
        let (identity, incarnation) = (Identity(self.random.id()), Incarnation(self.random.next()));
        let (server, old) = (&self.config.name, unit.identity());
        let reset = unit.reset(&mut **storage, identity, incarnation);
        match &reset {
            Ok(_) => {
                self.metrics.state(unit);
                tracing::info!(%server, %old, new = %identity, "everything was given up; the directory is another server's");
            }
            Err(why) => {
                tracing::error!(%server, %why, "giving everything up failed; the next start finishes it");
            }
        }
        reset
    }

    fn answer(
        &self,
        core: &mut Core,
        who: Who,
        (term, query, trusted): (Term, Query, bool),
        respond: Responder,
    ) {
        let is_read = matches!(query, Query::Read { .. });
        let Core { unit, storage } = core;
        let damages = unit.damages();
        let answer = who
            .check(unit)
            .and_then(|()| unit.answer(&mut **storage, term, query, trusted));
        self.metrics.damaged(unit.damages().saturating_sub(damages));
        if let (true, Ok((_, payload))) = (is_read, &answer) {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.metrics.read(payload.len());
        }
        match answer {
            Ok((reply, payload)) => respond.send_with(Ok(Reply::Unit(reply)), payload),
            Err(refusal) => respond.send(Err(refusal)),
        }
    }

    fn enqueue(&self, waiting: Waiting) {
        let bytes_max = match waiting.asked.command {
            Command::Probe => self.config.queue_bytes_max + PROBE_BYTES_MAX,
            Command::Write { .. }
            | Command::Fill(_)
            | Command::Seal
            | Command::Announce { .. }
            | Command::Trim { .. } => self.config.queue_bytes_max,
        };
        let mut queue = lock(&self.queue);
        let refusal = if queue.draining {
            Some(Refusal::Draining)
        } else if queue.bytes + waiting.bytes > bytes_max {
            Some(busy("bytes that wait for a commit"))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            drop(queue);
            return waiting.respond.send(Err(refusal));
        }
        queue.bytes += waiting.bytes;
        queue.waiting.push_back(waiting);
        drop(queue);
        self.work.notify_one();
    }

    async fn commit_for_ever(self: Arc<Self>) {
        loop {
            let batch = lock(&self.queue).take();
            if batch.is_empty() {
                self.idle.notify_waiters();
                self.work.notified().await;
            } else {
                let core = self.core.lock().await;
                self.commit(core, batch);
                // Connection tasks bring what arrived meanwhile: that is the next batch.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Decides, commits and answers a batch (U1). Seals that skip terms are put aside first, to be confirmed.
    fn commit(&self, core: CoreGuard<'_>, waiting: Vec<Waiting>) {
        let mut answers = Vec::with_capacity(waiting.len());
        let replies = self.at_work(core, |core| {
            let Core { unit, storage } = core;
            let (damages, failed) = (unit.damages(), unit.failure().is_some());
            let mut batch = unit.batch();
            for waiting in waiting {
                let Asked { term, command, confirmed, .. } = &waiting.asked;
                if !confirmed && let Some(least) = unit.to_confirm(*term, command) {
                    self.confirmations.push(waiting, least);
                    continue;
                }
                let Waiting {
                    asked,
                    who,
                    respond,
                    ..
                } = waiting;
                if let Err(refusal) = who.check(unit) {
                    respond.send(Err(refusal));
                    continue;
                }
                let is_write = matches!(asked.command, Command::Write { .. });
                answers.push((respond, is_write));
                unit.admit(&mut **storage, &mut batch, asked);
            }
            let changes = !batch.is_empty();
            if changes {
                self.metrics.batch(&batch);
            }
            let before = self.clock.now();
            let replies = unit.commit(&mut **storage, batch);
            if changes {
                self.metrics.committed(self.clock.now().since(before));
            }
            self.metrics.damaged(unit.damages() - damages);
            self.metrics.state(unit);
            if let (Some(why), false) = (unit.failure(), failed) {
                let server = &self.config.name;
                tracing::error!(%server, why, "the disk failed; no command is taken until a restart");
            }
            replies
        });
        debug_assert_eq!(
            replies.len(),
            answers.len(),
            "U1: every command is answered"
        );
        for ((respond, is_write), reply) in answers.into_iter().zip(replies) {
            if is_write {
                self.metrics.wrote(&reply);
            }
            respond.send(reply.map(Reply::Unit));
        }
    }

    async fn housekeep_for_ever(self: Arc<Self>) {
        let mut pause = HOUSEKEEPING_IDLE;
        let mut gave_way = 0;
        loop {
            self.clock.sleep(pause).await;
            let busy = !lock(&self.queue).is_idle();
            if busy && gave_way < GIVE_WAY_MAX {
                gave_way += 1;
                continue;
            }
            gave_way = 0;
            let core = self.core.lock().await;
            pause = if self.housekeep(core) {
                HOUSEKEEPING_BUSY
            } else {
                HOUSEKEEPING_IDLE
            };
        }
    }

    fn housekeep(&self, core: CoreGuard<'_>) -> bool {
        self.at_work(core, |core| {
            let Core { unit, storage } = core;
            let more = unit.failure().is_none() && storage.housekeep();
            unit.forget_marks();
            self.metrics.disk(storage.bytes());
            more
        })
    }
}

fn wrong_kind(needs: &str) -> Refusal {
    Refusal::WrongKind {
        needs: needs.to_owned(),
    }
}

fn busy(what: &str) -> Refusal {
    Refusal::Busy {
        what: what.to_owned(),
    }
}
