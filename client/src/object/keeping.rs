//! What of the log is still needed, and giving back the rest.
//!
//! ```text
//!  0 ──────────────── lowest need ────────────── end of what may go by age and size ───────── end
//!      may be trimmed              is kept, since something needs it
//! ```
//! An object that has a name needs its history from its newest snapshot on, a cursor what lies at and above it, a reader that
//! loads a large snapshot what it reads (a pin). What no policy gives up is kept though nobody needs it.
//!
//! - R1 Nothing at or above the lowest need is trimmed by [`Keeping::trim`].
//! - R2 Who comes while something is given up finds a part of a snapshot missing, looks again, and starts from a later one.
//! - R3 A snapshot to go back to is needed until a later one is as of a position at which nobody may go back to it any more.
//! - R4 Who plays an object on from its newest snapshot may have to decide transactions that it takes part in, and replays what
//!   they checked for that. So it needs of every other object a snapshot as of no later position, or that object's start.
//! - R5 What became of a transaction below a snapshot was told before that, so nobody who replays what lies below it has to decide it.
//!
//! The same object knows at what time the log was how long, if it was asked to: whoever does the work notes it now and then.

mod keeper;
mod needs;
mod pin;

use std::collections::BTreeMap;
use std::time::Duration;

use milonga_wire::{Position, StreamId};
use serde::{Deserialize, Serialize};

pub use keeper::{Keeper, MEMORY};
pub use needs::{KeepError, Kept, Need};
pub(crate) use pin::Pinned;

use super::error::{DecideError, PlayError};
use super::image::{ImageError, ImageReader, ImageWriter};
use super::{Object, Objects, View};

/// Marks of time that are kept: beyond it every second of the older half goes.
const MARKS_MAX: usize = 4_096;

/// How much of the log is kept though nobody needs it. With nothing set, all of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Retention {
    /// What is older may go.
    pub age_ms: Option<u64>,
    /// What lies further from the end than this may go, in bytes of one copy of each record.
    pub bytes: Option<u64>,
}

impl Retention {
    /// Whether anything may go.
    pub fn gives_up(self) -> bool {
        self != Self::default()
    }
}

/// After how much an object gets another snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Every {
    /// After this many updates.
    pub updates: u64,
    /// After so many bytes of updates.
    pub bytes: u64,
}

impl Default for Every {
    /// 100,000 updates, or 64 MiB of them: what is played within a second.
    fn default() -> Self {
        Self {
            updates: 100_000,
            bytes: 64 << 20,
        }
    }
}

/// When the log was how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// By the clock of who noted it, in milliseconds since 1970.
    pub wall_ms: u64,
    /// The end of the log then.
    pub end: Position,
    /// Bytes of one copy of all records below it that were ever appended.
    pub bytes: u64,
}

/// A reader that needs what lies at and above a position until it says otherwise, or is gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Pin {
    /// What it needs.
    pub from: Position,
    /// How long it needs it without saying so again.
    pub lease_ms: u64,
}

/// What changes what is known, as it stands in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Update {
    /// From now on this much is kept.
    Retain(Retention),
    /// The log is this long now.
    Mark(Mark),
    /// A pin, which the position of this record names.
    Pin(Pin),
    /// The pin of that name is not needed any more.
    Unpin(Position),
    /// From now on objects get snapshots after so much.
    Snapshots(Every),
    /// From now on the time is noted, or not any more.
    Times(bool),
}

/// What is known after some position.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeepingState {
    retention: Retention,
    every: Every,
    times: bool,
    marks: Vec<Mark>,
    pins: BTreeMap<Position, Pin>,
}

impl KeepingState {
    /// How much is kept.
    pub fn retention(&self) -> Retention {
        self.retention
    }

    /// After how much objects get snapshots.
    pub fn every(&self) -> Every {
        self.every
    }

    /// Whether the time is noted: it is asked for, or needed to give up what is old.
    pub fn notes_times(&self) -> bool {
        self.times || self.retention.gives_up()
    }

    /// The oldest mark that is left.
    pub fn first_mark(&self) -> Option<Mark> {
        self.marks.first().copied()
    }

    /// The newest mark.
    pub fn newest_mark(&self) -> Option<Mark> {
        self.marks.last().copied()
    }

    /// All pins, by name.
    pub fn pins(&self) -> impl Iterator<Item = (Position, Pin)> {
        self.pins.iter().map(|(name, pin)| (*name, *pin))
    }

    /// The position below which everything was appended before `wall_ms`, as far as was noted: at most one mark too low.
    pub fn position_at(&self, wall_ms: u64) -> Position {
        let after = self.marks.partition_point(|mark| mark.wall_ms <= wall_ms);
        let before = after.checked_sub(1).map(|index| self.marks[index].end);
        before.unwrap_or(Position::FIRST)
    }

    /// The highest mark with at least `bytes` appended since.
    fn position_before(&self, bytes: u64) -> Position {
        let newest = self.marks.last().map_or(0, |mark| mark.bytes);
        let after = self
            .marks
            .partition_point(|mark| newest.saturating_sub(mark.bytes) >= bytes);
        let before = after.checked_sub(1).map(|index| self.marks[index].end);
        before.unwrap_or(Position::FIRST)
    }

    /// The first position that is kept though nobody needs it, at the time `now_ms`.
    pub fn retained_from(&self, now_ms: u64) -> Position {
        let Retention { age_ms, bytes } = self.retention;
        let by_age = age_ms.map(|age| self.position_at(now_ms.saturating_sub(age)));
        let by_size = bytes.map(|bytes| self.position_before(bytes));
        by_age.max(by_size).unwrap_or(Position::FIRST)
    }

    fn note(&mut self, mark: Mark) {
        // Clocks differ, and whoever notes may be late: what goes back says nothing.
        let is_newer = self.marks.last().is_none_or(|last| {
            last.wall_ms < mark.wall_ms && last.end <= mark.end && last.bytes <= mark.bytes
        });
        if !is_newer {
            return;
        }
        self.marks.push(mark);
        if self.marks.len() > MARKS_MAX {
            let half = self.marks.len() / 2;
            let mut number = 0;
            self.marks.retain(|_| {
                number += 1;
                number > half || number % 2 == 0
            });
        }
    }
}

impl Object for KeepingState {
    const KIND: &'static str = "keeping";
    type Update = Update;
    type Outcome = ();

    fn apply(&mut self, position: Position, update: Update) {
        match update {
            Update::Retain(retention) => self.retention = retention,
            Update::Mark(mark) => self.note(mark),
            Update::Pin(pin) => drop(self.pins.insert(position, pin)),
            Update::Unpin(name) => drop(self.pins.remove(&name)),
            Update::Snapshots(every) => self.every = every,
            Update::Times(times) => self.times = times,
        }
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        to.write(&(self.retention, self.every, self.times));
        to.write(&(self.marks.len() as u64));
        self.marks.iter().for_each(|mark| to.write(mark));
        self.pins.iter().for_each(|pin| to.write(&pin));
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        let (retention, every, times) = from.read()?.unwrap_or_default();
        let mut state = Self {
            retention,
            every,
            times,
            ..Self::default()
        };
        for _ in 0..from.read::<u64>()?.unwrap_or_default() {
            state.marks.extend(from.read::<Mark>()?);
        }
        while let Some((name, pin)) = from.read()? {
            state.pins.insert(name, pin);
        }
        Ok(state)
    }
}

/// What is kept of a log, and who needs it. Clones share one copy of it.
#[derive(Clone)]
pub struct Keeping {
    view: View<KeepingState>,
}

impl Keeping {
    /// Of this log.
    pub fn open(objects: &Objects) -> Self {
        Self {
            view: objects.host(StreamId::of_name(KeepingState::KIND)),
        }
    }

    /// The view that it is.
    pub fn view(&self) -> &View<KeepingState> {
        &self.view
    }

    /// From now on this much of the log is kept though nobody needs it.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn retain(&self, retention: Retention) -> Result<Position, DecideError> {
        let (position, ()) = self.view.update(&Update::Retain(retention)).await?;
        Ok(position)
    }

    /// The position below which everything was appended before that time, as far as was noted: it is noted about every ten
    /// seconds, while somebody appends.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn position_at(&self, wall_ms: u64) -> Result<Position, PlayError> {
        self.view.read(|state| state.position_at(wall_ms)).await
    }

    /// From now on objects get a snapshot after so many updates, from whichever [`Keeper`] comes first.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn snapshot_every(&self, every: Every) -> Result<Position, DecideError> {
        let (position, ()) = self.view.update(&Update::Snapshots(every)).await?;
        Ok(position)
    }

    /// From now on the time is noted, or, if nothing is to go by age, not any more: see [`Keeping::position_at`].
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn note_times(&self, is_noted: bool) -> Result<Position, DecideError> {
        let (position, ()) = self.view.update(&Update::Times(is_noted)).await?;
        Ok(position)
    }

    /// Keeps what lies at and above `from` for `lease`: before it is over, pin again and unpin this one.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn pin(&self, from: Position, lease: Duration) -> Result<Position, DecideError> {
        let lease_ms = lease.as_millis() as u64;
        let pin = Update::Pin(Pin { from, lease_ms });
        let (name, ()) = self.view.update(&pin).await?;
        Ok(name)
    }

    /// Gives up what the pin of that name keeps.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn unpin(&self, name: Position) -> Result<(), DecideError> {
        self.view.update(&Update::Unpin(name)).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
