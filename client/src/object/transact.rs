//! Runs transactions: reads, appends one record, plays up to it, and tells what became of it.
//!
//! ```text
//!        sync       body (reads one state)      append the record        play up to it
//!  ─────▶ end ─────▶ what it saw, what it writes ─────▶ log ─────▶ what it saw is as it was? ─▶ committed
//!            ▲                                                            │ no
//!            └───────────────────── a pause, and again ───────────────────┘
//! ```
//!
//! - X1 A transaction that reads only appends nothing: what it read was one state, confirmed after it began.
//! - X2 One that only writes plays nothing, and takes place where it lies.
//! - X3 Every other one is decided where it lies, by what it checked and nothing else: alike by all who can decide.
//! - X4 Who cannot decide waits to be told. If the writer does not tell, whoever can decides in its place, and never guesses.
//!
//! Source: Tango (SOSP '13), "Transactions", "Read/Write Transactions" with decision records.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use milonga_wire::{Position, Span, Stamp};

use super::codec::{Change, Conflict, Decision, Named, Once, Record, Verdict};
use super::error::{PlayError, UpdateError};
use super::group::tell;
use super::map::in_log::{self, Wanted};
use super::map::value::Digest;
use super::objects::Objects;
use super::transaction::{Isolation, Sealed, Transaction, Writes};
use super::view::checked_once;
use super::{Part, Seen};
use crate::entry::Kind;
use crate::log::Log;

/// Between two attempts: from the first to the longest, doubling.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(100));

/// What became of a transaction that took place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Committed<T> {
    /// What its body returned, the time it counted.
    pub value: T,
    /// Where it is in the log; none if it wrote nothing.
    pub position: Option<Position>,
    /// How often it was tried.
    pub attempts: u32,
    /// It had taken place before, at this position, under the same idempotency key: this time nothing was done, and `value` is of
    /// this time.
    pub repeats: Option<Position>,
}

/// Why a transaction did not take place: something else was written first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Abort {
    /// The object that was in the way.
    pub object: Named,
    /// What of it.
    pub part: Part,
    /// The write that was in the way; none if it could not be found, as of a key that went with its lease.
    pub position: Option<Position>,
    /// Whose it was.
    pub by: Option<Stamp>,
    /// How often it was tried.
    pub attempts: u32,
}

impl std::fmt::Display for Abort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.part {
            Part::Whole => write!(f, "the {}", self.object)?,
            Part::Key(key) => write!(f, "`{}` of the {}", key.escape_ascii(), self.object)?,
            Part::Keys(_) => write!(f, "a key of those read of the {}", self.object)?,
            Part::Lease(lease) => {
                let attempts = self.attempts;
                return write!(
                    f,
                    "there is no lease {lease} of the {} (any more), grant another ({attempts} attempts)",
                    self.object
                );
            }
        }
        match (self.position, self.by) {
            (Some(position), Some(by)) => write!(f, " was written at {position} by {by}"),
            (Some(position), None) => write!(f, " was written at {position}"),
            (None, _) => write!(f, " was written by another"),
        }?;
        write!(f, " ({} attempts)", self.attempts)
    }
}

/// Why a transaction did not take place, or is not known to have.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransactError<E> {
    /// Definite: its body gave up. Nothing was appended.
    #[error(transparent)]
    Body(E),
    /// Definite: others wrote what it had read, each time it was tried.
    #[error("not committed: {0}; try again")]
    Conflict(Box<Abort>),
    /// Definite: what it wanted to read could not be played. Nothing was appended.
    #[error(transparent)]
    Play(PlayError),
    /// Whether it is in the log: one of the three outcomes of an append.
    #[error(transparent)]
    Update(UpdateError),
    /// It is in the log, where its outcome is decided for ever, but could not be played here.
    #[error("the transaction at position {position}, with what outcome is not known yet: {why}")]
    Undecided {
        /// Where it is.
        position: Position,
        /// Why it could not be played.
        why: PlayError,
    },
}

/// A transaction to be run, and how.
#[derive(Clone)]
pub struct Transact {
    objects: Objects,
    isolation: Isolation,
    once: Option<Once>,
    attempts: u32,
}

impl Objects {
    /// Runs `body` as a transaction: serializable, tried again until it takes place or the client's deadline has passed.
    ///
    /// The body reads and writes any objects that are open here. It runs under the lock that readers take, so it must be short,
    /// must not wait, and must neither drop objects nor use them but through its [`Transaction`]; and it may run more than once, so it must do nothing else that counts. If it returns an error, nothing
    /// is done.
    ///
    /// # Errors
    /// [`TransactError`].
    pub async fn transact<T, E>(
        &self,
        body: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<Committed<T>, TransactError<E>> {
        self.transaction().run(body).await
    }

    /// A transaction to be run with other settings.
    pub fn transaction(&self) -> Transact {
        Transact {
            objects: self.clone(),
            isolation: Isolation::default(),
            once: None,
            attempts: u32::MAX,
        }
    }

    /// Appends writes to several objects as one record: they take place together, whatever else happened. Nothing is played.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn append(&self, writes: Writes) -> Result<Position, UpdateError> {
        let sealed = writes.sealed(vec![], None)?;
        Ok(self.log().append(sealed.record, &sealed.streams).await?)
    }
}

impl Transact {
    /// How much it is protected from others.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// It takes place once however often it is run with this key, by this process or others, until the log has grown by
    /// `once.lives` positions. The object that it writes first remembers the key: that must be the same each time.
    #[must_use]
    pub fn once(mut self, once: Once) -> Self {
        self.once = Some(once);
        self
    }

    /// How often it is tried at most.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Runs `body`: see [`Objects::transact`].
    ///
    /// # Errors
    /// [`TransactError`].
    pub async fn run<T, E>(
        &self,
        mut body: impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
    ) -> Result<Committed<T>, TransactError<E>> {
        let host = self.objects.log().host().clone();
        let began = host.clock.now();
        let mut pause = PAUSES.0;
        for attempts in 1.. {
            let mut values = Values::default();
            let synced = match self.isolation {
                Isolation::Serializable | Isolation::Snapshot => {
                    self.objects.sync().await.map(drop)
                }
                Isolation::WriteWrite => self.objects.join(None).await,
            };
            synced.map_err(TransactError::Play)?;
            let mut attempt = self.attempt_fetched(&mut body, &mut values).await;
            // It may have failed because what an object missed was trimmed: then that starts again from a snapshot.
            if matches!(attempt, Err(TransactError::Body(_))) {
                let reloaded = self.objects.reload(None).await;
                if reloaded.map_err(TransactError::Play)? {
                    attempt = self.attempt_fetched(&mut body, &mut values).await;
                }
            }
            let (value, attempt) = attempt?;
            let Some(attempt) = attempt else {
                return Ok(Committed {
                    value,
                    position: None,
                    attempts,
                    repeats: None,
                });
            };
            let (position, verdict) = Box::pin(self.decide(&attempt.sealed))
                .await
                .map_err(TransactError::of)?;
            let repeats = match verdict {
                Verdict::Committed => None,
                Verdict::Conflict(Conflict::Repeated { first }) => Some(first),
                Verdict::Conflict(Conflict::Late) => unreachable!("it takes nothing back"),
                Verdict::Conflict(Conflict::Changed {
                    object,
                    part,
                    found,
                }) => {
                    let is_over =
                        host.clock.now().since(began) >= self.objects.log().options().deadline;
                    let is_vain = attempt
                        .expected
                        .iter()
                        .any(|(named, other)| (named, other) == (&object, &part));
                    if is_vain || attempts >= self.attempts || is_over {
                        // What was expected without a look may have been otherwise long before.
                        let start = if is_vain {
                            Position::FIRST
                        } else {
                            attempt.as_of
                        };
                        let between = Span::new(start, position);
                        let abort =
                            Box::pin(self.explain(object, part, found, between, attempts)).await;
                        return Err(TransactError::Conflict(Box::new(abort)));
                    }
                    host.clock.sleep(host.random.jittered(pause)).await;
                    pause = (pause * 2).min(PAUSES.1);
                    continue;
                }
            };
            return Ok(Committed {
                value,
                position: Some(position),
                attempts,
                repeats,
            });
        }
        unreachable!("attempts are counted up to more than anybody lives to see")
    }

    /// Appends writes that check nothing, and plays up to them.
    pub(super) async fn commit(&self, writes: Writes) -> Result<(Position, Verdict), Undone> {
        let sealed = writes.sealed(vec![], None).map_err(Undone::Update)?;
        let synced = self.objects.sync().await;
        synced.map_err(Undone::Play)?;
        self.decide(&sealed).await
    }

    /// The same again until all values are here that it wants.
    async fn attempt_fetched<T, E>(
        &self,
        body: &mut impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
        values: &mut Values,
    ) -> Result<(T, Option<Attempt>), TransactError<E>> {
        loop {
            let attempt = self.attempt(body, values);
            if values.wanted.is_empty() {
                return attempt;
            }
            let fetched = values.fetch(&self.objects).await;
            fetched.map_err(TransactError::Play)?;
        }
    }

    /// What the body returns, and what it wants to be appended.
    fn attempt<T, E>(
        &self,
        body: &mut impl FnMut(&mut Transaction<'_>) -> Result<T, E>,
        values: &mut Values,
    ) -> Result<(T, Option<Attempt>), TransactError<E>> {
        let world = self.objects.world();
        let mut transaction = Transaction::new(&world, self.isolation);
        transaction.values = std::mem::take(&mut values.here);
        let as_of = transaction.as_of();
        let value = body(&mut transaction);
        values.here = std::mem::take(&mut transaction.values);
        values.wanted = std::mem::take(&mut transaction.wanted);
        let value = value.map_err(TransactError::Body)?;
        let expected = transaction.expected();
        let Some((checks, writes)) = transaction.finish() else {
            return Ok((value, None));
        };
        drop(world);
        if let Some(once) = &self.once {
            checked_once(once).map_err(TransactError::Update)?;
        }
        let sealed = writes.sealed(checks, self.once.clone());
        let sealed = sealed.map_err(TransactError::Update)?;
        let attempt = Attempt {
            sealed,
            as_of,
            expected,
        };
        Ok((value, Some(attempt)))
    }

    /// Appends it and plays up to it; tells others what became of it if they might not know.
    async fn decide(&self, sealed: &Sealed) -> Result<(Position, Verdict), Undone> {
        let log = self.objects.log();
        let waiter = CommitWaiter::new(&self.objects);
        let appended = log.append(sealed.record.clone(), &sealed.streams).await;
        let position = appended.map_err(|error| Undone::Update(error.into()))?;
        let undecided = |why| Undone::Undecided(position, why);
        let mut verdict = waiter.take(position);
        if verdict.is_none() {
            self.objects.sync().await.map_err(undecided)?;
            verdict = waiter.take(position);
        }
        let unknown = || {
            let why = "the objects that it writes could not be played".to_owned();
            Undone::Undecided(position, PlayError::Undecided { position, why })
        };
        let verdict = verdict.ok_or_else(unknown)?;
        if sealed.needs_decision {
            let decision = Decision {
                of: position,
                verdict: verdict.clone(),
            };
            tell(log, &sealed.streams, decision).await;
        }
        Ok((position, verdict))
    }

    /// Which write was in the way, and whose it was.
    async fn explain(
        &self,
        object: Named,
        part: Part,
        found: Seen,
        between: Span,
        attempts: u32,
    ) -> Abort {
        let newer = found.newest.filter(|newest| *newest >= between.start);
        let written = match newer {
            // It leaves no trace.
            None if matches!(part, Part::Lease(_)) => None,
            Some(position) => stamp_at(self.objects.log(), position).await,
            None => self.last_write(&object, &part, between).await,
        };
        Abort {
            object,
            part,
            position: written.map(|(position, _)| position).or(newer),
            by: written.map(|(_, by)| by),
            attempts,
        }
    }

    /// The last write to a part of an object within a span: what removed it leaves no other trace.
    async fn last_write(
        &self,
        object: &Named,
        part: &Part,
        span: Span,
    ) -> Option<(Position, Stamp)> {
        let read = self.objects.log().read_stream(object.stream, span, None);
        let entries = read.await.ok()?;
        let world = self.objects.world();
        let hosted = world.object(object)?;
        let mut entries = entries.iter().rev();
        entries.find_map(|entry| {
            let Kind::Data { stamp, payload, .. } = &entry.kind else {
                return None;
            };
            let touches = match Record::parse(payload).ok()? {
                Record::Update(update) | Record::Once(_, update) => hosted.touches(update, part),
                Record::Commit(commit) => commit.writes.iter().any(|write| {
                    let is_own = commit.object(write.object) == object;
                    is_own
                        && match &write.change {
                            Change::Update(update) => hosted.touches(update, part),
                            Change::Reset(_) => true,
                        }
                }),
                Record::Decision(_)
                | Record::Chunk(..)
                | Record::Manifest(_)
                | Record::Value(_) => false,
            };
            touches.then_some((entry.position, *stamp))
        })
    }
}

async fn stamp_at(log: &Log, position: Position) -> Option<(Position, Stamp)> {
    match log.read(position).await.ok()?.kind {
        Kind::Data { stamp, .. } => Some((position, stamp)),
        Kind::Junk { .. } | Kind::Trimmed | Kind::Unwritten | Kind::Unknown => None,
    }
}

struct Attempt {
    sealed: Sealed,
    as_of: Position,
    /// What another attempt would not find changed.
    expected: Vec<(Named, Part)>,
}

/// Values that stay in the log: those that were fetched for a transaction, and those that it wants.
#[derive(Default)]
struct Values {
    here: BTreeMap<Digest, Bytes>,
    wanted: Vec<Wanted>,
    gone: Option<Position>,
}

impl Values {
    async fn fetch(&mut self, objects: &Objects) -> Result<(), PlayError> {
        let wanted = std::mem::take(&mut self.wanted);
        let here = self.here.values().map(|value| value.len() as u64);
        let more: BTreeMap<Digest, u64> = wanted
            .iter()
            .map(|(_, stored)| (stored.digest, u64::from(stored.bytes)))
            .collect();
        let asked = here.chain(more.into_values()).sum();
        let limit = objects.cache().bytes_max();
        if asked > limit {
            return Err(PlayError::TooMuch { asked, limit });
        }
        match Box::pin(in_log::fetch(objects, &wanted)).await {
            Ok(values) => {
                self.here.extend(values);
                Ok(())
            }
            // It was brought forward: its new place is played.
            Err(PlayError::Gone(position)) if self.gone != Some(position) => {
                self.gone = Some(position);
                objects.sync().await.map(drop)
            }
            Err(why) => Err(why),
        }
    }
}

/// Why what became of an attempt is not known.
pub(super) enum Undone {
    Play(PlayError),
    Update(UpdateError),
    Undecided(Position, PlayError),
}

impl<E> TransactError<E> {
    fn of(undone: Undone) -> Self {
        match undone {
            Undone::Play(error) => Self::Play(error),
            Undone::Update(error) => Self::Update(error),
            Undone::Undecided(position, why) => Self::Undecided { position, why },
        }
    }
}

/// One who is about to append a transaction, and wants to know what becomes of it.
struct CommitWaiter<'a> {
    objects: &'a Objects,
    number: u64,
}

impl<'a> CommitWaiter<'a> {
    fn new(objects: &'a Objects) -> Self {
        let mut world = objects.world();
        // It is not appended yet, so it will lie behind everything that was applied.
        let from = world.applied.map_or(Position::FIRST, Position::next);
        let number = world.commits.enter(from);
        drop(world);
        Self { objects, number }
    }

    fn take(&self, position: Position) -> Option<Verdict> {
        self.objects.world().commits.take(position)
    }
}

impl Drop for CommitWaiter<'_> {
    fn drop(&mut self) {
        self.objects.world().commits.leave(self.number);
    }
}

#[cfg(test)]
pub(super) mod tests;
