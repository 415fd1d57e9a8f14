//! What a map is and how it changes: pure (O1).

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use milonga_wire::Position;
use serde::{Deserialize, Serialize};

use super::lease::{LeaseState, Leases};
use super::value::{Held, Moved, Stored, Value};
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
    /// Grants a lease: its position here names it from then on.
    Grant {
        /// For how long it lives without a renewal, in milliseconds.
        ttl_ms: u64,
    },
    /// A lease that lives goes on to.
    Renew {
        /// The lease.
        lease: Position,
    },
    /// Ends a lease: all keys bound to it are removed.
    Revoke {
        /// The lease.
        lease: Position,
    },
    /// The same, if it was renewed last there: somebody saw no renewal for as long as it lives.
    Expire {
        /// The lease.
        lease: Position,
        /// The last renewal that was seen, or the grant.
        renewed: Position,
    },
    /// Sets a key and binds it to a lease, if that lives, and if the expectation holds.
    PutLeased {
        /// The key.
        key: Bytes,
        /// Its value.
        value: Bytes,
        /// The lease.
        lease: Position,
        /// What must be there; none: whatever is.
        expect: Option<Expect>,
    },
    /// From here on values of at least so many bytes stay in the log; none: all are in memory.
    KeepInLog {
        /// So many.
        from_bytes: Option<u64>,
    },
    /// There are copies of these values further on in the log.
    Moved {
        /// Which, and where.
        values: Vec<Moved>,
    },
}

impl Update {
    /// The key that it writes; none if it is about a lease.
    pub fn key(&self) -> Option<&Bytes> {
        match self {
            Self::Put { key, .. }
            | Self::Delete { key }
            | Self::Cas { key, .. }
            | Self::PutLeased { key, .. } => Some(key),
            Self::Grant { .. }
            | Self::Renew { .. }
            | Self::Revoke { .. }
            | Self::Expire { .. }
            | Self::KeepInLog { .. }
            | Self::Moved { .. } => None,
        }
    }

    /// The value that it sets a key to, if it does.
    pub fn into_value(self) -> Option<Bytes> {
        match self {
            Self::Put { value, .. } | Self::PutLeased { value, .. } => Some(value),
            Self::Cas { value, .. } => value,
            Self::Delete { .. }
            | Self::Grant { .. }
            | Self::Renew { .. }
            | Self::Revoke { .. }
            | Self::Expire { .. }
            | Self::KeepInLog { .. }
            | Self::Moved { .. } => None,
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

    fn holds(&self, found: Option<&(Value, Position)>) -> bool {
        match (self, found) {
            (Self::Absent, found) => found.is_none(),
            (Self::Value(expected), Some((value, _))) => value.is(expected),
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
        found: Option<Held>,
    },
    /// The lease lives: it was granted, or renewed, or had been before somebody wanted it expired.
    Lives {
        /// The lease.
        lease: Position,
        /// For how long without a renewal, in milliseconds.
        ttl_ms: u64,
    },
    /// The lease has ended here.
    Ended {
        /// How many keys were bound to it, and are removed.
        keys: u64,
    },
    /// There is no such lease, or not any more: nothing changed.
    NoLease {
        /// The lease.
        lease: Position,
    },
    /// Where the map keeps values is as it says; nothing else changed.
    Kept,
}

/// A part of a map, in the order of the keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page<T = Versioned> {
    /// Keys and what they hold.
    pub entries: Vec<(Bytes, T)>,
    /// Whether more of the keys asked for come behind these.
    pub more: bool,
}

impl<T> Default for Page<T> {
    fn default() -> Self {
        Self {
            entries: vec![],
            more: false,
        }
    }
}

/// The state of a map after some position.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MapState {
    entries: BTreeMap<Bytes, (Value, Position)>,
    leases: Leases,
    /// Values of at least so many bytes stay in the log.
    in_log_from: Option<u64>,
}

/// What a snapshot consists of: the leases, then the keys in order. Only ever grows at its end.
#[derive(Serialize, Deserialize)]
enum Item {
    Lease {
        lease: Position,
        ttl_ms: u64,
        renewed: Position,
    },
    Key {
        key: Bytes,
        value: Bytes,
        version: Position,
        lease: Option<Position>,
    },
    KeepInLog {
        from_bytes: u64,
    },
    InLog {
        key: Bytes,
        stored: Stored,
        version: Position,
        lease: Option<Position>,
    },
}

impl MapState {
    /// What `key` holds. [`Map::get`](super::Map::get) has the value in any case.
    pub fn get(&self, key: &[u8]) -> Option<Held> {
        self.entries.get(key).map(Held::of)
    }

    /// Values of at least so many bytes stay in the log when they are put; none: all are in memory.
    pub fn in_log_from(&self) -> Option<u64> {
        self.in_log_from
    }

    /// All keys, in order, with how many bytes their values have and where they are.
    pub fn values(&self) -> impl Iterator<Item = (&Bytes, &Value)> {
        self.entries.iter().map(|(key, (value, _))| (key, value))
    }

    /// The values that stay in the log below `to`, of the keys behind `after`.
    pub(super) fn stored_below(
        &self,
        to: Position,
        after: Option<&Bytes>,
    ) -> impl Iterator<Item = (Bytes, Stored)> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.entries.range::<Bytes, _>((start, Bound::Unbounded));
        let stored = behind.filter_map(|(key, (value, _))| Some((key.clone(), *value.stored()?)));
        stored.filter(move |(_, stored)| stored.at < to && !stored.is_gone)
    }

    /// Z3.
    pub(super) fn moved(&mut self, values: Vec<Moved>) {
        for Moved { key, from, to } in values {
            if let Some((Value::InLog(stored), _)) = self.entries.get_mut(&key)
                && stored.at == from
            {
                stored.is_gone = to.is_none();
                stored.at = to.unwrap_or(from);
            }
        }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The lease that `key` is bound to.
    pub fn lease_of(&self, key: &[u8]) -> Option<Position> {
        self.leases.of(key)
    }

    /// The lease of that name, if it lives.
    pub fn lease(&self, lease: Position) -> Option<&LeaseState> {
        self.leases.get(lease)
    }

    /// All leases that live, the oldest first.
    pub fn leases(&self) -> impl Iterator<Item = (Position, &LeaseState)> {
        self.leases.all()
    }

    pub(in crate::object) fn has_leases(&self) -> bool {
        self.leases.all().next().is_some()
    }

    /// The first `limit` of `keys`, in order.
    pub fn scan(&self, keys: &Keys, limit: usize) -> Page<Held> {
        let Some(bounds) = keys.bounds() else {
            return Page::default();
        };
        let mut rest = self.entries.range::<Bytes, _>(bounds);
        let entries = rest
            .by_ref()
            .take(limit)
            .map(|(key, found)| (key.clone(), Held::of(found)))
            .collect();
        Page {
            entries,
            more: rest.next().is_some(),
        }
    }

    /// The keys that were written anew in `new`, with what they are there; none if they are gone.
    pub(super) fn changed_in(&self, new: &Self) -> Vec<(Bytes, Option<Value>)> {
        let gone = self
            .entries
            .keys()
            .filter(|key| !new.entries.contains_key(*key));
        let gone = gone.map(|key| (key.clone(), None));
        let old = |key| self.entries.get(key).map(|(_, version)| version);
        let others = new
            .entries
            .iter()
            .filter(|(key, (_, version))| old(*key) != Some(version));
        let others = others.map(|(key, (value, _))| (key.clone(), Some(value.clone())));
        let mut changed: Vec<_> = gone.chain(others).collect();
        changed.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        changed
    }

    /// Applies an update. Keys that go with a lease are added to `gone`, in order.
    pub(super) fn change(
        &mut self,
        position: Position,
        update: Update,
        gone: &mut Vec<Bytes>,
    ) -> Outcome {
        match update {
            Update::Put { key, value } => self.put(position, key, value, None),
            Update::Delete { key } => self.delete(&key),
            Update::Cas { key, expect, value } => match self.conflict(&key, &expect) {
                Some(conflict) => conflict,
                None => match value {
                    Some(value) => self.put(position, key, value, None),
                    None => self.delete(&key),
                },
            },
            Update::Grant { ttl_ms } => self.leases.grant(position, ttl_ms),
            Update::Renew { lease } => self.leases.renew(position, lease),
            Update::Revoke { lease } => self.end(lease, gone),
            Update::Expire { lease, renewed } => match self.leases.get(lease) {
                // Y3.
                Some(found) if found.renewed() != renewed => found.lives(lease),
                Some(_) | None => self.end(lease, gone),
            },
            Update::PutLeased {
                key,
                value,
                lease,
                expect,
            } => {
                if self.leases.get(lease).is_none() {
                    return Outcome::NoLease { lease };
                }
                let conflict = expect.and_then(|expect| self.conflict(&key, &expect));
                conflict.unwrap_or_else(|| self.put(position, key, value, Some(lease)))
            }
            Update::KeepInLog { from_bytes } => {
                self.in_log_from = from_bytes;
                Outcome::Kept
            }
            Update::Moved { values } => {
                self.moved(values);
                Outcome::Kept
            }
        }
    }

    fn put(
        &mut self,
        position: Position,
        key: Bytes,
        value: Bytes,
        lease: Option<Position>,
    ) -> Outcome {
        self.leases.bind(&key, lease);
        let value = Value::put(position, value, self.in_log_from);
        self.entries.insert(key, (value, position));
        Outcome::Put
    }

    fn delete(&mut self, key: &Bytes) -> Outcome {
        self.leases.bind(key, None);
        let existed = self.entries.remove(key).is_some();
        Outcome::Deleted { existed }
    }

    fn conflict(&self, key: &Bytes, expect: &Expect) -> Option<Outcome> {
        let found = self.entries.get(key);
        (!expect.holds(found)).then(|| Outcome::Conflict {
            found: found.map(Held::of),
        })
    }

    /// Y4.
    fn end(&mut self, lease: Position, gone: &mut Vec<Bytes>) -> Outcome {
        let Some(keys) = self.leases.end(lease) else {
            return Outcome::NoLease { lease };
        };
        let before = gone.len();
        for key in keys {
            self.entries.remove(&key);
            gone.push(key);
        }
        Outcome::Ended {
            keys: (gone.len() - before) as u64,
        }
    }
}

impl Object for MapState {
    const KIND: &'static str = "map";
    type Update = Update;
    type Outcome = Outcome;

    fn apply(&mut self, position: Position, update: Update) -> Outcome {
        self.change(position, update, &mut vec![])
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        for (lease, found) in self.leases.all() {
            to.write(&Item::Lease {
                lease,
                ttl_ms: found.ttl_ms(),
                renewed: found.renewed(),
            });
        }
        if let Some(from_bytes) = self.in_log_from {
            to.write(&Item::KeepInLog { from_bytes });
        }
        for (key, (value, version)) in &self.entries {
            let (key, version, lease) = (key.clone(), *version, self.leases.of(key));
            to.write(&match value {
                Value::Here(value) => Item::Key {
                    key,
                    value: value.clone(),
                    version,
                    lease,
                },
                Value::InLog(stored) => Item::InLog {
                    key,
                    stored: **stored,
                    version,
                    lease,
                },
            });
        }
    }

    fn refers_to(&self) -> Option<Position> {
        let stored = self.values().filter_map(|(_, value)| value.stored());
        let there = stored.filter(|stored| !stored.is_gone);
        there.map(|stored| stored.at).min()
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        let mut items = vec![];
        let mut leases = Leases::default();
        let mut in_log_from = None;
        while let Some(item) = from.read()? {
            let (key, value, version, lease) = match item {
                Item::Lease {
                    lease,
                    ttl_ms,
                    renewed,
                } => {
                    leases.restore(lease, ttl_ms, renewed);
                    continue;
                }
                Item::KeepInLog { from_bytes } => {
                    in_log_from = Some(from_bytes);
                    continue;
                }
                Item::Key {
                    key,
                    value,
                    version,
                    lease,
                } => (key, Value::Here(value), version, lease),
                Item::InLog {
                    key,
                    stored,
                    version,
                    lease,
                } => (key, Value::InLog(Box::new(stored)), version, lease),
            };
            if lease.is_some_and(|lease| leases.get(lease).is_none()) {
                return Err(ImageError {
                    why: "a key is bound to a lease that it does not hold".to_owned(),
                });
            }
            leases.bind(&key, lease);
            items.push((key, (value, version)));
        }
        // They come in order, which is the fast way to make a tree.
        let entries = items.into_iter().collect();
        Ok(Self {
            entries,
            leases,
            in_log_from,
        })
    }

    fn part(update: &Update) -> Part {
        match update {
            Update::Put { key, .. }
            | Update::Delete { key }
            | Update::Cas { key, .. }
            | Update::PutLeased { key, .. } => Part::Key(key.clone()),
            // A new lease has no key yet, and nobody can know of it; where values are is nothing that can be read.
            Update::Grant { .. } | Update::KeepInLog { .. } | Update::Moved { .. } => {
                Part::Keys(Keys::none())
            }
            Update::Renew { lease } | Update::Revoke { lease } | Update::Expire { lease, .. } => {
                Part::Lease(*lease)
            }
        }
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
            // That it lives; renewals leave it as it is.
            Part::Lease(lease) => Some(Seen::one(self.leases.get(*lease).map(|_| *lease))),
        }
    }

    /// Who lives is a matter of the present: the leases stay as they are (Y2). Keys of the past that were bound to one that has
    /// ended since are gone with it, and those that are bound to one that lives are bound to it again. Which values stay in the log when
    /// they are put is of the present, too.
    fn reset(&mut self, position: Position, to: Self) {
        let (mut entries, bound) = (to.entries, to.leases);
        entries.retain(|key, _| {
            let lease = bound.of(key);
            lease.is_none_or(|lease| self.leases.get(lease).is_some())
        });
        for (key, (value, version)) in &mut entries {
            *version = match self.entries.get(key) {
                Some((same, current))
                    if same.is_same(value) && self.leases.of(key) == bound.of(key) =>
                {
                    *current
                }
                Some(_) | None => position,
            };
        }
        self.leases.unbind_all();
        for key in entries.keys() {
            self.leases.bind(key, bound.of(key));
        }
        self.entries = entries;
    }
}

#[cfg(test)]
pub(super) mod tests;
