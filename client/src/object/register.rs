//! One value.

use bytes::Bytes;
use milonga_wire::Position;
use serde::{Deserialize, Serialize};

use super::error::{DecideError, OpenError, PlayError, UpdateError};
use super::image::{ImageError, ImageReader, ImageWriter};
use super::map::Versioned;
use super::{Object, Objects, View};

/// What changes a register, as it stands in the log.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Update {
    /// Sets it.
    Set(Bytes),
    /// Sets it if its last write is at this position; none: if it was never written.
    SetIf(Option<Position>, Bytes),
}

/// A register after some position.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RegisterState {
    held: Option<Versioned>,
}

impl RegisterState {
    /// The value, and where it was written; none if it never was.
    pub fn get(&self) -> Option<&Versioned> {
        self.held.as_ref()
    }
}

impl Object for RegisterState {
    const KIND: &'static str = "register";
    type Update = Update;
    /// What stood in the way of a conditional write, if something did.
    type Outcome = Result<(), Option<Versioned>>;

    fn apply(&mut self, version: Position, update: Update) -> Self::Outcome {
        let value = match update {
            Update::Set(value) => value,
            Update::SetIf(expected, value) => {
                if self.held.as_ref().map(|held| held.version) != expected {
                    return Err(self.held.clone());
                }
                value
            }
        };
        self.held = Some(Versioned { value, version });
        Ok(())
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        to.write(&self.held);
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        let held = from.read()?.unwrap_or_default();
        Ok(Self { held })
    }

    fn reset(&mut self, version: Position, to: Self) {
        let value = |held: &Option<Versioned>| held.as_ref().map(|held| held.value.clone());
        if value(&self.held) != value(&to.held) {
            self.held = value(&to.held).map(|value| Versioned { value, version });
        }
    }
}

/// A register. Clones share one copy of it.
#[derive(Clone)]
pub struct Register {
    view: View<RegisterState>,
}

impl Register {
    /// The register of that name; if there is none, a new one.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(objects: &Objects, name: &str) -> Result<Self, OpenError> {
        let view = objects.open(name).await?;
        Ok(Self { view })
    }

    /// The view that it is.
    pub fn view(&self) -> &View<RegisterState> {
        &self.view
    }

    /// Sets it, and returns the position of the write: its version from there on.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn set(&self, value: impl Into<Bytes>) -> Result<Position, UpdateError> {
        self.view.append(&Update::Set(value.into())).await
    }

    /// Sets it if its last write is at `expected` (none: if it was never written) where this one comes to lie in the log. If not,
    /// tells what is there.
    ///
    /// # Errors
    /// [`DecideError`]. A conflict is no error.
    pub async fn set_if(
        &self,
        expected: Option<Position>,
        value: impl Into<Bytes>,
    ) -> Result<Result<Position, Option<Versioned>>, DecideError> {
        let update = Update::SetIf(expected, value.into());
        let (position, outcome) = self.view.update(&update).await?;
        Ok(outcome.map(|()| position))
    }

    /// The value once everything acknowledged before this call is known; none if it was never written.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn get(&self) -> Result<Option<Versioned>, PlayError> {
        self.view.read(|state| state.held.clone()).await
    }
}
