//! A set of byte strings, in order.

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_wire::Position;
use serde::{Deserialize, Serialize};

use super::error::{DecideError, OpenError, PlayError, UpdateError};
use super::image::{ImageError, ImageReader, ImageWriter};
use super::{Keys, Object, Objects, Part, Seen, View};

/// What changes a set, as it stands in the log.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Update {
    /// Puts an element in.
    Add(Bytes),
    /// Takes it out.
    Remove(Bytes),
}

/// A set after some position.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SetState {
    /// Each with the position at which it came in.
    elements: BTreeMap<Bytes, Position>,
}

impl SetState {
    /// Whether it holds `element`.
    pub fn contains(&self, element: &[u8]) -> bool {
        self.elements.contains_key(element)
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// Those of its elements that are among `keys`, in order.
    pub fn range<'a>(&'a self, keys: &'a Keys) -> impl Iterator<Item = &'a Bytes> {
        self.within(keys).map(|(element, _)| element)
    }

    fn within<'a>(&'a self, keys: &'a Keys) -> impl Iterator<Item = (&'a Bytes, &'a Position)> {
        let range = keys
            .bounds()
            .map(|bounds| self.elements.range::<Bytes, _>(bounds));
        range.into_iter().flatten()
    }
}

impl Object for SetState {
    const KIND: &'static str = "set";
    type Update = Update;
    /// Whether it changed anything.
    type Outcome = bool;

    fn apply(&mut self, position: Position, update: Update) -> bool {
        match update {
            Update::Add(element) => {
                let is_new = !self.elements.contains_key(&element);
                if is_new {
                    self.elements.insert(element, position);
                }
                is_new
            }
            Update::Remove(element) => self.elements.remove(&element).is_some(),
        }
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        self.elements.iter().for_each(|element| to.write(&element));
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        let mut items = vec![];
        while let Some(item) = from.read()? {
            items.push(item);
        }
        let elements = items.into_iter().collect();
        Ok(Self { elements })
    }

    fn part(update: &Update) -> Part {
        let (Update::Add(element) | Update::Remove(element)) = update;
        Part::Key(element.clone())
    }

    fn seen(&self, part: &Part) -> Option<Seen> {
        Keys::seen(part, |keys| {
            Seen::all(self.within(keys).map(|(_, position)| *position))
        })
    }

    fn reset(&mut self, position: Position, to: Self) {
        let mut elements = to.elements;
        for (element, since) in &mut elements {
            *since = self.elements.get(element).copied().unwrap_or(position);
        }
        self.elements = elements;
    }
}

/// A set. Clones share one copy of it.
#[derive(Clone)]
pub struct Set {
    view: View<SetState>,
}

impl Set {
    /// The set of that name; if there is none, a new one, which is empty.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(objects: &Objects, name: &str) -> Result<Self, OpenError> {
        let view = objects.open(name).await?;
        Ok(Self { view })
    }

    /// The view that it is.
    pub fn view(&self) -> &View<SetState> {
        &self.view
    }

    /// Puts `element` in. Whether it was there is not waited for.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn add(&self, element: impl Into<Bytes>) -> Result<Position, UpdateError> {
        self.view.append(&Update::Add(element.into())).await
    }

    /// Takes `element` out, if it is there.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn remove(&self, element: impl Into<Bytes>) -> Result<Position, UpdateError> {
        self.view.append(&Update::Remove(element.into())).await
    }

    /// Puts `element` in, and says whether it was not there before: of many that do so at once, one is told so.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn insert(&self, element: impl Into<Bytes>) -> Result<bool, DecideError> {
        let (_, is_new) = self.view.update(&Update::Add(element.into())).await?;
        Ok(is_new)
    }

    /// Takes `element` out, and says whether it was there.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn take(&self, element: impl Into<Bytes>) -> Result<bool, DecideError> {
        let (_, was_there) = self.view.update(&Update::Remove(element.into())).await?;
        Ok(was_there)
    }

    /// Whether `element` is in it once everything acknowledged before this call is known.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn contains(&self, element: &[u8]) -> Result<bool, PlayError> {
        self.view.read(|state| state.contains(element)).await
    }
}
