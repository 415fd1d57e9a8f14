//! A number that many add to at once.

use milonga_wire::Position;
use serde::{Deserialize, Serialize};

use super::error::{DecideError, OpenError, PlayError, UpdateError};
use super::image::{ImageError, ImageReader, ImageWriter};
use super::{Object, Objects, View};

/// What changes a counter, as it stands in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Update {
    /// Adds to it; it stays within what 64 bits hold.
    Add(i64),
    /// Sets it.
    Set(i64),
}

/// A counter after some position.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CounterState(i64);

impl CounterState {
    /// The number.
    pub fn value(self) -> i64 {
        self.0
    }
}

impl Object for CounterState {
    const KIND: &'static str = "counter";
    type Update = Update;
    type Outcome = i64;

    fn apply(&mut self, _: Position, update: Update) -> i64 {
        self.0 = match update {
            Update::Add(by) => self.0.saturating_add(by),
            Update::Set(to) => to,
        };
        self.0
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        to.write(&self.0);
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        Ok(Self(from.read()?.unwrap_or_default()))
    }
}

/// A counter. Clones share one copy of it.
#[derive(Clone)]
pub struct Counter {
    view: View<CounterState>,
}

impl Counter {
    /// The counter of that name; if there is none, a new one, at 0.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(objects: &Objects, name: &str) -> Result<Self, OpenError> {
        let view = objects.open(name).await?;
        Ok(Self { view })
    }

    /// The view that it is.
    pub fn view(&self) -> &View<CounterState> {
        &self.view
    }

    /// Adds `by`, and returns the position of the update. What it comes to is not waited for.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn add(&self, by: i64) -> Result<Position, UpdateError> {
        self.view.append(&Update::Add(by)).await
    }

    /// Adds `by`, and returns what it came to there.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn add_and_get(&self, by: i64) -> Result<i64, DecideError> {
        let (_, value) = self.view.update(&Update::Add(by)).await?;
        Ok(value)
    }

    /// Sets it.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn set(&self, to: i64) -> Result<Position, UpdateError> {
        self.view.append(&Update::Set(to)).await
    }

    /// What it is once everything acknowledged before this call is counted.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn get(&self) -> Result<i64, PlayError> {
        self.view.read(|counter| counter.value()).await
    }
}
