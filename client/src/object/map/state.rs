//! What a map is and how it changes: pure (O1).

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_wire::Position;
use serde::{Deserialize, Serialize};

use crate::object::{ImageError, ImageReader, ImageWriter, Keys, Object, Part, Seen};

/// Bytes of the longest key.
pub const KEY_BYTES_MAX: usize = 64 << 10;

/// What changes a map, as it stands in the log. Only ever grows at its end.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Update {
    /// Sets a key.
    Put {
        /// The key.
        key: Bytes,
        /// Its value.
        value: Bytes,
    },
    /// Removes a key.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Sets or removes a key if the expectation holds.
    Cas {
        /// The key.
        key: Bytes,
        /// What must be there.
        expect: Expect,
        /// Its new value; none: it is removed.
        value: Option<Bytes>,
    },
}

impl Update {
    /// The key it is about.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Cas { key, .. } => key,
        }
    }
}

/// What a conditional write expects of its key.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Expect {
    /// It is not there.
    Absent,
    /// It has this value.
    Value(Bytes),
    /// Its last write is at this position.
    Version(Position),
}

impl Expect {
    /// The key has this value.
    pub fn value(value: impl Into<Bytes>) -> Self {
        Self::Value(value.into())
    }

    fn holds(&self, found: Option<&(Bytes, Position)>) -> bool {
        match (self, found) {
            (Self::Absent, found) => found.is_none(),
            (Self::Value(expected), Some((value, _))) => expected == value,
            (Self::Version(expected), Some((_, version))) => expected == version,
            (Self::Value(_) | Self::Version(_), None) => false,
        }
    }
}

/// A value, and the position of the write that set it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Versioned {
    /// The value.
    pub value: Bytes,
    /// The position of the key's last write.
    pub version: Position,
}

impl Versioned {
    fn of((value, version): &(Bytes, Position)) -> Self {
        Self {
            value: value.clone(),
            version: *version,
        }
    }
}

/// What an update brought about.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The key has the new value.
    Put,
    /// The key is not there any more.
    Deleted {
        /// Whether it was.
        existed: bool,
    },
    /// The expectation did not hold: nothing changed.
    Conflict {
        /// What stood in the way.
        found: Option<Versioned>,
    },
}

/// A part of a map, in the order of the keys.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Page {
    /// Keys and what they hold.
    pub entries: Vec<(Bytes, Versioned)>,
    /// Whether more of the keys asked for come behind these.
    pub more: bool,
}

/// The state of a map after some position.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MapState {
    entries: BTreeMap<Bytes, (Bytes, Position)>,
}

impl MapState {
    /// The value of `key`.
    pub fn get(&self, key: &[u8]) -> Option<Versioned> {
        self.entries.get(key).map(Versioned::of)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The first `limit` of `keys`, in order.
    pub fn scan(&self, keys: &Keys, limit: usize) -> Page {
        let Some(bounds) = keys.bounds() else {
            return Page::default();
        };
        let mut rest = self.entries.range::<Bytes, _>(bounds);
        let entries = rest
            .by_ref()
            .take(limit)
            .map(|(key, found)| (key.clone(), Versioned::of(found)))
            .collect();
        Page {
            entries,
            more: rest.next().is_some(),
        }
    }

    /// The keys whose values are others in `new`, with what they are there; none if they are gone.
    pub(super) fn changed_in(&self, new: &Self) -> Vec<(Bytes, Option<Bytes>)> {
        let gone = self
            .entries
            .keys()
            .filter(|key| !new.entries.contains_key(*key));
        let gone = gone.map(|key| (key.clone(), None));
        let old = |key| self.entries.get(key).map(|(value, _)| value);
        let others = new
            .entries
            .iter()
            .filter(|(key, (value, _))| old(*key) != Some(value));
        let others = others.map(|(key, (value, _))| (key.clone(), Some(value.clone())));
        let mut changed: Vec<_> = gone.chain(others).collect();
        changed.sort_unstable();
        changed
    }

    fn put(&mut self, position: Position, key: Bytes, value: Bytes) -> Outcome {
        self.entries.insert(key, (value, position));
        Outcome::Put
    }

    fn delete(&mut self, key: &Bytes) -> Outcome {
        let existed = self.entries.remove(key).is_some();
        Outcome::Deleted { existed }
    }

    fn cas(
        &mut self,
        position: Position,
        key: Bytes,
        expect: &Expect,
        value: Option<Bytes>,
    ) -> Outcome {
        let found = self.entries.get(&key);
        if !expect.holds(found) {
            let found = found.map(Versioned::of);
            return Outcome::Conflict { found };
        }
        match value {
            Some(value) => self.put(position, key, value),
            None => self.delete(&key),
        }
    }
}

impl Object for MapState {
    const KIND: &'static str = "map";
    type Update = Update;
    type Outcome = Outcome;

    fn apply(&mut self, position: Position, update: Update) -> Outcome {
        match update {
            Update::Put { key, value } => self.put(position, key, value),
            Update::Delete { key } => self.delete(&key),
            Update::Cas { key, expect, value } => self.cas(position, key, &expect, value),
        }
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        self.entries.iter().for_each(|entry| to.write(&entry));
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        let mut items = vec![];
        while let Some(item) = from.read()? {
            items.push(item);
        }
        // They come in order, which is the fast way to make a tree.
        let entries = items.into_iter().collect();
        Ok(Self { entries })
    }

    fn part(update: &Update) -> Part {
        Part::Key(update.key().clone())
    }

    fn seen(&self, part: &Part) -> Option<Seen> {
        match part {
            Part::Whole => None,
            Part::Key(key) => Some(Seen::one(
                self.entries.get(key).map(|(_, version)| *version),
            )),
            Part::Keys(keys) => {
                let range = keys
                    .bounds()
                    .map(|bounds| self.entries.range::<Bytes, _>(bounds));
                let versions = range
                    .into_iter()
                    .flatten()
                    .map(|(_, (_, version))| *version);
                Some(Seen::all(versions))
            }
        }
    }

    fn reset(&mut self, position: Position, to: Self) {
        let mut entries = to.entries;
        for (key, (value, version)) in &mut entries {
            *version = match self.entries.get(key) {
                Some((same, current)) if same == value => *current,
                Some(_) | None => position,
            };
        }
        self.entries = entries;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn update() -> impl Strategy<Value = Update> {
        let bytes = |range| prop::collection::vec(0_u8..3, range).prop_map(Bytes::from);
        let expect = prop_oneof![
            Just(Expect::Absent),
            bytes(0..2).prop_map(Expect::Value),
            (0_u64..40).prop_map(|position| Expect::Version(Position(position))),
        ];
        prop_oneof![
            (bytes(0..2), bytes(0..2)).prop_map(|(key, value)| Update::Put { key, value }),
            bytes(0..2).prop_map(|key| Update::Delete { key }),
            (bytes(0..2), expect, prop::option::of(bytes(0..2)))
                .prop_map(|(key, expect, value)| Update::Cas { key, expect, value }),
        ]
    }

    /// The plainest map that could be meant.
    fn model(entries: &mut Vec<(Bytes, Bytes, Position)>, position: Position, update: Update) {
        let key = update.key().clone();
        let found = entries.iter().find(|entry| entry.0 == key).cloned();
        let value = match update {
            Update::Put { value, .. } => Some(value),
            Update::Delete { .. } => None,
            Update::Cas { expect, value, .. } => {
                let holds = match (&found, expect) {
                    (None, Expect::Absent) => true,
                    (Some(found), Expect::Value(value)) => found.1 == value,
                    (Some(found), Expect::Version(version)) => found.2 == version,
                    _ => false,
                };
                if !holds {
                    return;
                }
                value
            }
        };
        entries.retain(|entry| entry.0 != key);
        entries.extend(value.map(|value| (key, value, position)));
        entries.sort();
    }

    proptest! {
        /// O1.
        #[test]
        fn a_map_is_what_its_updates_say(updates in prop::collection::vec(update(), 0..60)) {
            let (mut state, mut entries) = (MapState::default(), vec![]);
            for (position, update) in (0..).map(Position).zip(updates) {
                state.apply(position, update.clone());
                model(&mut entries, position, update);
            }
            let page = state.scan(&Keys::all(), usize::MAX);
            let listed: Vec<_> = page
                .entries
                .into_iter()
                .map(|(key, found)| (key, found.value, found.version))
                .collect();
            prop_assert_eq!(listed, entries);
        }
    }

    #[test]
    fn a_scan_goes_page_by_page_and_says_when_it_is_done() {
        let mut state = MapState::default();
        for (position, key) in (0..).map(Position).zip(["a", "b1", "b2", "b3", "c"]) {
            let (key, value) = (Bytes::from(key), Bytes::from("v"));
            state.apply(position, Update::Put { key, value });
        }
        let names = |page: &Page| -> Vec<Bytes> {
            page.entries.iter().map(|(key, _)| key.clone()).collect()
        };

        let first = state.scan(&Keys::prefix("b"), 2);
        let second = state.scan(&Keys::prefix("b").after("b2"), 2);

        assert_eq!(
            (names(&first), first.more),
            (vec!["b1".into(), "b2".into()], true)
        );
        assert_eq!((names(&second), second.more), (vec!["b3".into()], false));
        assert_eq!(
            state.scan(&Keys::prefix("b").after("b3"), 2),
            Page::default()
        );
        assert!(state.scan(&Keys::all(), 0).more);
    }
}
