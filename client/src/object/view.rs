//! A view: one process's copy of an object, shared by all who use it there.
//!
//! Reads that wait at the same time share one round: one question for the end, one playback. A reader that comes while
//! a round runs takes part in the next, since its own end must be confirmed after it came (O4, H43).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use milonga_wire::limits::ENTRY_BYTES_MAX;
use milonga_wire::{Position, StreamId};

use super::Object;
use super::codec::encode;
use super::playback::{PlayError, Playback};
use crate::append::AppendError;
use crate::log::{End, Log};
use crate::resume::SavedAppend;
use crate::trouble::Unavailable;

/// Why an update is not known to be in the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpdateError {
    /// Definite: nothing was appended. Something is larger than it may be.
    #[error("{what} of {asked} bytes; the limit is {limit}; split it")]
    TooLarge {
        /// What was measured.
        what: &'static str,
        /// Its size in bytes.
        asked: usize,
        /// The most allowed.
        limit: usize,
    },
    /// Definite: the update is not in the log, and will not be. Try again, or mend what `why` names.
    #[error("not updated: {why}")]
    NotAppended {
        /// What stood in the way.
        why: Unavailable,
    },
    /// The deadline passed. [`Log::resume`] finds out about `saved`, from any process.
    #[error("whether the update is in the log is not known yet ({why}); resume with {saved}")]
    Unknown {
        /// Enough to find out.
        saved: Box<SavedAppend>,
        /// The last trouble.
        why: Unavailable,
    },
}

/// Why what an update brought about is not known.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DecideError {
    /// It is not known to be in the log.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// It is in the log, where its outcome is decided for ever, but could not be played here. [`View::outcome_at`] tells
    /// the outcome once the log can be read again.
    #[error("updated at position {position}, with what outcome is not known yet: {why}")]
    Undecided {
        /// Where it is.
        position: Position,
        /// Why it could not be played.
        why: PlayError,
    },
}

/// Why there is no state as of a position.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AtError {
    /// The log is not that long.
    #[error("position {asked} lies at or above the end {end}; expected a position below it")]
    BeyondEnd {
        /// What was asked.
        asked: Position,
        /// The end.
        end: Position,
    },
    /// It could not be replayed up to there.
    #[error(transparent)]
    Play(#[from] PlayError),
}

/// A copy of an object that follows its stream. Clones share it.
///
/// ```
/// use milonga_client::Position;
/// use milonga_client::object::Object;
///
/// /// Adds up.
/// #[derive(Default)]
/// struct Sum(u64);
///
/// impl Object for Sum {
///     const KIND: &'static str = "sum";
///     type Update = u32;
///     type Outcome = u64;
///
///     fn apply(&mut self, _: Position, update: u32) -> u64 {
///         self.0 += u64::from(update);
///         self.0
///     }
/// }
///
/// # async fn use_it(log: milonga_client::Log) -> Result<(), Box<dyn std::error::Error>> {
/// let sum = milonga_client::object::View::<Sum>::open(&log, "visitors");
/// let (position, total) = sum.update(&3).await?;
/// println!("{total} as of position {position}, {} now", sum.read(|sum| sum.0).await?);
/// # Ok(())
/// # }
/// ```
pub struct View<O: Object> {
    shared: Arc<Shared<O>>,
}

impl<O: Object> Clone for View<O> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

struct Shared<O: Object> {
    log: Log,
    stream: StreamId,
    /// Held by whoever leads a round.
    playback: tokio::sync::Mutex<Playback>,
    held: Mutex<Held<O>>,
}

/// What all users of a view see.
struct Held<O: Object> {
    state: O,
    /// The position of the last update in `state`.
    applied: Option<Position>,
    /// Everything below it is in `state`, but what a later term put where an earlier one had issued in vain.
    played: Position,
    rounds: Rounds,
    waiting: Waiting<O::Outcome>,
}

/// Which rounds have been.
struct Rounds {
    began: u64,
    /// The last round that came to its end, and what came of it.
    ended: u64,
    result: Option<Result<End, PlayError>>,
}

/// The outcomes of this client's own updates that somebody waits for.
struct Waiting<T> {
    number: u64,
    /// Per waiter: its update lies at or above this position.
    from: BTreeMap<u64, Position>,
    outcomes: BTreeMap<Position, T>,
}

impl<O: Object> View<O> {
    /// The object of that name, of this kind. Nothing is asked yet: the first read plays the stream from its start.
    pub fn open(log: &Log, name: &str) -> Self {
        let stream = Self::stream_of(name);
        let held = Held {
            state: O::default(),
            applied: None,
            played: Position::FIRST,
            rounds: Rounds {
                began: 0,
                ended: 0,
                result: None,
            },
            waiting: Waiting {
                number: 0,
                from: BTreeMap::new(),
                outcomes: BTreeMap::new(),
            },
        };
        let shared = Shared {
            playback: tokio::sync::Mutex::new(Playback::behind(log, stream, None)),
            log: log.clone(),
            stream,
            held: Mutex::new(held),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The stream of the object of that name: objects of different kinds never share one by accident.
    pub fn stream_of(name: &str) -> StreamId {
        StreamId::of_name(&format!("{}/{name}", O::KIND))
    }

    /// The stream that feeds it.
    pub fn stream(&self) -> StreamId {
        self.shared.stream
    }

    /// The client it plays with.
    pub fn log(&self) -> &Log {
        &self.shared.log
    }

    /// Everything below this position has been played here.
    pub fn played(&self) -> Position {
        self.held().played
    }

    /// The position of the last update that this copy has applied.
    pub fn applied(&self) -> Option<Position> {
        self.held().applied
    }

    /// Plays up to an end that is confirmed after this call: whatever was acknowledged before it is applied then (O4).
    ///
    /// # Errors
    /// [`PlayError`]: the view stays where it is, or where the trouble begins.
    pub async fn sync(&self) -> Result<(), PlayError> {
        self.synced().await.map(drop)
    }

    /// The same, and the end that was played to.
    pub(crate) async fn synced(&self) -> Result<End, PlayError> {
        // The first round that begins from here on.
        let mine = self.held().rounds.began + 1;
        let mut playback = self.shared.playback.lock().await;
        {
            let mut held = self.held();
            if held.rounds.ended >= mine
                && let Some(result) = &held.rounds.result
            {
                return result.clone();
            }
            held.rounds.began += 1;
        }
        let result = self.round(&mut playback).await;
        let mut held = self.held();
        held.rounds.ended = held.rounds.began;
        held.rounds.result = Some(result.clone());
        result
    }

    /// One round: the confirmed end, and everything up to it.
    async fn round(&self, playback: &mut Playback) -> Result<End, PlayError> {
        let session = self.shared.log.session();
        let end = self.shared.log.end_of(&[self.shared.stream]).await?;
        playback
            .play(&end, |position, stamp, update: O::Update| {
                let mut held = self.held();
                let outcome = held.state.apply(position, update);
                held.applied = Some(position);
                held.played = held.played.max(position.next());
                if stamp.session == session {
                    held.waiting.note(position, outcome);
                }
            })
            .await?;
        self.held().played = end.counter;
        Ok(end)
    }

    /// Reads the state as it is once everything acknowledged before this call is in it.
    ///
    /// `read` runs under a lock: it must be short.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn read<T>(&self, read: impl FnOnce(&O) -> T) -> Result<T, PlayError> {
        self.sync().await?;
        Ok(self.read_stale(read))
    }

    /// Reads the state as this copy has it now, however old: nothing is asked of any server. Before the first
    /// [`View::sync`] that is the empty state.
    pub fn read_stale<T>(&self, read: impl FnOnce(&O) -> T) -> T {
        read(&self.held().state)
    }

    /// Appends an update and returns its position, without waiting for its outcome.
    ///
    /// # Errors
    /// [`UpdateError`]: one of the three outcomes of an append, never a guess.
    pub async fn append(&self, update: &O::Update) -> Result<Position, UpdateError> {
        let record = encode(update).map_err(|too_large| UpdateError::TooLarge {
            what: "an update",
            asked: too_large.asked,
            limit: ENTRY_BYTES_MAX,
        })?;
        self.append_record(record).await
    }

    async fn append_record(&self, record: Bytes) -> Result<Position, UpdateError> {
        let appended = self.shared.log.append(record, &[self.shared.stream]).await;
        appended.map_err(|error| match error {
            // One record has no part.
            AppendError::NotAppended { why } | AppendError::Partly { why, .. } => {
                UpdateError::NotAppended { why }
            }
            AppendError::Unknown { saved, why, .. } => UpdateError::Unknown { saved, why },
        })
    }

    /// Appends an update, plays up to it, and returns its position and what it brought about there (O6).
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn update(&self, update: &O::Update) -> Result<(Position, O::Outcome), DecideError> {
        let waiter = Waiter::new(self);
        let position = self.append(update).await?;
        let undecided = |why| DecideError::Undecided { position, why };
        // Whoever led the last round may have played it already.
        let mut outcome = waiter.take(position);
        if outcome.is_none() {
            self.sync().await.map_err(undecided)?;
            outcome = waiter.take(position);
        }
        match outcome {
            Some(outcome) => Ok((position, outcome)),
            None => match self.outcome_at(position).await {
                Ok(Some(outcome)) => Ok((position, outcome)),
                Ok(None) | Err(AtError::BeyondEnd { .. }) => {
                    Err(undecided(PlayError::Lost(position)))
                }
                Err(AtError::Play(why)) => Err(undecided(why)),
            },
        }
    }

    /// What the update at `position` brought about; nothing if there is none of this object there.
    ///
    /// Replays the object up to there, as [`View::at`] does.
    ///
    /// # Errors
    /// [`AtError`].
    pub async fn outcome_at(&self, position: Position) -> Result<Option<O::Outcome>, AtError> {
        let mut found = None;
        self.replay(position, |at, outcome| {
            if at == position {
                found = Some(outcome);
            }
        })
        .await?;
        Ok(found)
    }

    /// The state once everything up to and including `position` had been applied.
    ///
    /// It replays the object from its start, and reads the log up to `position` for that: the cost is the log's length
    /// up to there, whatever the object's size.
    ///
    /// # Errors
    /// [`AtError::BeyondEnd`] if nothing can be there yet.
    pub async fn at(&self, position: Position) -> Result<O, AtError> {
        self.replay(position, |_, _| {}).await
    }

    async fn replay(
        &self,
        position: Position,
        mut each: impl FnMut(Position, O::Outcome),
    ) -> Result<O, AtError> {
        let log = &self.shared.log;
        let end = log.end().await.map_err(PlayError::from)?;
        if position >= end.counter {
            return Err(AtError::BeyondEnd {
                asked: position,
                end: end.counter,
            });
        }
        let mut state = O::default();
        let mut playback = Playback::behind(log, self.shared.stream, None);
        playback.begin_to(position.next(), end.term, None);
        let mut apply = |at, _, update: O::Update| each(at, state.apply(at, update));
        while !playback.play_some(&mut apply).await? {}
        Ok(state)
    }

    /// A copy of the state, and where it stands, if everything in it lies below `position`.
    pub(crate) fn copy_below(&self, position: Position) -> Option<(O, Playback)>
    where
        O: Clone,
    {
        let held = self.held();
        let applied = held.applied.filter(|applied| *applied < position)?;
        let playback = Playback::behind(&self.shared.log, self.shared.stream, Some(applied));
        Some((held.state.clone(), playback))
    }

    fn held(&self) -> MutexGuard<'_, Held<O>> {
        self.shared
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Waiting<T> {
    /// Keeps an outcome for as long as somebody may come for it.
    fn note(&mut self, position: Position, outcome: T) {
        if self.lowest().is_some_and(|lowest| lowest <= position) {
            self.outcomes.insert(position, outcome);
        }
    }

    /// Forgets outcomes that nobody can come for any more.
    fn forget(&mut self, number: u64) {
        self.from.remove(&number);
        match self.lowest() {
            Some(lowest) => self.outcomes = self.outcomes.split_off(&lowest),
            None => self.outcomes.clear(),
        }
    }

    /// Where the updates of all waiters lie: who came first waits for the lowest, since views only move on.
    fn lowest(&self) -> Option<Position> {
        self.from.first_key_value().map(|(_, from)| *from)
    }
}

/// One who is about to append an update and wants its outcome: from now on the view keeps those of this client.
struct Waiter<'a, O: Object> {
    view: &'a View<O>,
    number: u64,
}

impl<'a, O: Object> Waiter<'a, O> {
    fn new(view: &'a View<O>) -> Self {
        let mut held = view.held();
        // The update is not appended yet, so it will lie behind everything that was applied.
        let from = held.applied.map_or(Position::FIRST, Position::next);
        held.waiting.number += 1;
        let number = held.waiting.number;
        held.waiting.from.insert(number, from);
        Self { view, number }
    }

    fn take(&self, position: Position) -> Option<O::Outcome> {
        self.view.held().waiting.outcomes.remove(&position)
    }
}

impl<O: Object> Drop for Waiter<'_, O> {
    fn drop(&mut self) {
        self.view.held().waiting.forget(self.number);
    }
}
