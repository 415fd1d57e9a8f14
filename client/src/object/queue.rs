//! First in, first out: each element is taken by one.

use std::collections::VecDeque;

use bytes::Bytes;
use milonga_wire::Position;
use serde::{Deserialize, Serialize};

use super::error::{DecideError, OpenError, PlayError, UpdateError};
use super::image::{ImageError, ImageReader, ImageWriter};
use super::map::Versioned;
use super::{Object, Objects, View};

/// What changes a queue, as it stands in the log.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Update {
    /// Puts an element at the end.
    Push(Bytes),
    /// Takes the first one.
    Pop,
    /// Takes the first one if it is the one that was put in at this position.
    PopIf(Position),
}

/// A queue after some position.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct QueueState {
    elements: VecDeque<Versioned>,
}

impl QueueState {
    /// The first element, and the position at which it was put in.
    pub fn front(&self) -> Option<&Versioned> {
        self.elements.front()
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }
}

impl Object for QueueState {
    const KIND: &'static str = "queue";
    type Update = Update;
    /// What was taken.
    type Outcome = Option<Versioned>;

    fn apply(&mut self, version: Position, update: Update) -> Option<Versioned> {
        match update {
            Update::Push(value) => {
                self.elements.push_back(Versioned { value, version });
                None
            }
            Update::Pop => self.elements.pop_front(),
            Update::PopIf(expected) => {
                let is_it = self.front().is_some_and(|front| front.version == expected);
                is_it.then(|| self.elements.pop_front()).flatten()
            }
        }
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        self.elements.iter().for_each(|element| to.write(element));
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        let mut elements = VecDeque::new();
        while let Some(element) = from.read()? {
            elements.push_back(element);
        }
        Ok(Self { elements })
    }
}

/// A queue. Clones share one copy of it.
///
/// An element that is taken is gone: who dies over it takes it along. Work that must be done by somebody is taken in a
/// transaction that also writes what came of it: read [`QueueState::front`], and write [`Update::PopIf`].
#[derive(Clone)]
pub struct Queue {
    view: View<QueueState>,
}

impl Queue {
    /// The queue of that name; if there is none, a new one, which is empty.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(objects: &Objects, name: &str) -> Result<Self, OpenError> {
        let view = objects.open(name).await?;
        Ok(Self { view })
    }

    /// The view that it is.
    pub fn view(&self) -> &View<QueueState> {
        &self.view
    }

    /// Puts an element at the end, and returns its position.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn push(&self, value: impl Into<Bytes>) -> Result<Position, UpdateError> {
        self.view.append(&Update::Push(value.into())).await
    }

    /// Takes the first element, if there is one. Nobody else gets it. Nothing is appended for a queue that is empty.
    ///
    /// # Errors
    /// [`DecideError`]; after [`DecideError::Undecided`] an element may have been taken: [`View::outcome_at`] tells which.
    pub async fn pop(&self) -> Result<Option<Versioned>, DecideError> {
        if self
            .view
            .read(QueueState::is_empty)
            .await
            .is_ok_and(|is_empty| is_empty)
        {
            return Ok(None);
        }
        let (_, taken) = self.view.update(&Update::Pop).await?;
        Ok(taken)
    }

    /// How many elements there are once everything acknowledged before this call is known.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn len(&self) -> Result<usize, PlayError> {
        self.view.read(QueueState::len).await
    }

    /// Whether there are none.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn is_empty(&self) -> Result<bool, PlayError> {
        self.view.read(QueueState::is_empty).await
    }
}
