//! What a transaction reads and writes, and the record that it becomes. Pure.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use milonga_wire::limits::{ENTRY_BYTES_MAX, STREAMS_PER_ENTRY_MAX};
use milonga_wire::{Position, StreamId};

use super::codec::{self, Change, Check, Commit, Named, Once, Write, bytes_of};
use super::error::{PlayError, UpdateError};
use super::map::in_log::Wanted;
use super::map::value::Digest;
use super::world::World;
use super::{Object, Part, Seen, View};

/// How much a transaction is protected from others.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Isolation {
    /// It takes place as if alone: whatever it read is what it was where the transaction comes to lie in the log.
    #[default]
    Serializable,
    /// It reads one state, and what it writes was not written by others since. Two that each read what the other writes may both
    /// take place.
    Snapshot,
    /// It reads this process's copies as they are, however old, and asks nobody; of what it both read and wrote, nothing was
    /// written by others since.
    WriteWrite,
}

/// Writes to several objects that take place together, or not at all.
#[derive(Clone, Debug, Default)]
pub struct Writes {
    objects: Vec<Named>,
    numbers: BTreeMap<Named, u32>,
    all: Vec<Write>,
    pub(crate) refused: Option<UpdateError>,
}

impl Writes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Updates `object`.
    pub fn update<O: Object>(&mut self, object: &View<O>, update: &O::Update) {
        let number = self.number(object.named());
        let change = Change::Update(Bytes::from(bytes_of(update)));
        self.all.push(Write {
            object: number,
            change,
        });
    }

    /// Takes `object` back to the snapshot whose manifest is at `manifest`.
    pub(crate) fn reset(&mut self, object: &Named, manifest: Position) {
        let number = self.number(object);
        self.all.push(Write {
            object: number,
            change: Change::Reset(manifest),
        });
    }

    fn object(&self, number: u32) -> Named {
        self.objects[number as usize].clone()
    }

    fn number(&mut self, object: &Named) -> u32 {
        if let Some(number) = self.numbers.get(object) {
            return *number;
        }
        let number = self.objects.len() as u32;
        self.objects.push(object.clone());
        self.numbers.insert(object.clone(), number);
        number
    }

    /// Updates an object of which there is no view.
    #[cfg(test)]
    pub(crate) fn push_for_test<U: serde::Serialize>(
        &mut self,
        stream: StreamId,
        kind: &str,
        update: &U,
    ) {
        let kind = kind.to_owned();
        let object = self.number(&Named { stream, kind });
        let change = Change::Update(Bytes::from(bytes_of(update)));
        self.all.push(Write { object, change });
    }

    #[cfg(test)]
    pub(crate) fn number_of(&mut self, object: &Named) -> u32 {
        self.number(object)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The record, and the streams that it belongs to.
    pub(crate) fn sealed(
        self,
        checks: Vec<Check>,
        once: Option<Once>,
    ) -> Result<Sealed, UpdateError> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        let written = self.all.iter().map(|write| write.object as usize);
        let streams: BTreeSet<StreamId> = written.map(|it| self.objects[it].stream).collect();
        let (asked, limit) = (streams.len(), STREAMS_PER_ENTRY_MAX);
        if asked > limit {
            return Err(UpdateError::TooMany { asked, limit });
        }
        let commit = Commit {
            objects: self.objects,
            checks,
            writes: self.all,
            once,
        };
        let needs_decision = !commit.needs_no_decision();
        let record = codec::commit(commit);
        let record = record.map_err(UpdateError::too_large("a transaction", ENTRY_BYTES_MAX))?;
        Ok(Sealed {
            record,
            streams: streams.into_iter().collect(),
            needs_decision,
        })
    }
}

/// A transaction that is ready to be appended.
pub(crate) struct Sealed {
    pub(crate) record: Bytes,
    pub(crate) streams: Vec<StreamId>,
    /// Whether some who play what it writes may not be able to decide it.
    pub(crate) needs_decision: bool,
}

/// What the body of a transaction reads and writes: all reads are of one position.
pub struct Transaction<'a> {
    world: &'a World,
    isolation: Isolation,
    /// Per object, what was read of it.
    keys: BTreeMap<(u32, Bytes), Seen>,
    others: Vec<Check>,
    /// What must be so though it was not read.
    expected: Vec<Check>,
    /// What is written, and may be checked for that.
    touched: Vec<(u32, Part, Seen)>,
    writes: Writes,
    /// Keys of maps that are written, for reads that follow.
    pub(crate) own: BTreeMap<StreamId, BTreeMap<Bytes, Option<Bytes>>>,
    /// Values that stay in the log and were fetched for it, and those that it wants beside them.
    pub(crate) values: BTreeMap<Digest, Bytes>,
    pub(crate) wanted: Vec<Wanted>,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(world: &'a World, isolation: Isolation) -> Self {
        Self {
            world,
            isolation,
            keys: BTreeMap::new(),
            others: vec![],
            expected: vec![],
            touched: vec![],
            writes: Writes::default(),
            own: BTreeMap::new(),
            values: BTreeMap::new(),
            wanted: vec![],
        }
    }

    /// Everything below this position, as far as the objects go, is what this transaction sees.
    pub fn as_of(&self) -> Position {
        self.world.applied.map_or(Position::FIRST, Position::next)
    }

    /// Reads all of an object, as it was before this transaction: its own writes do not show.
    ///
    /// # Errors
    /// [`PlayError`] if the object cannot be played on.
    pub fn read<O: Object, T>(
        &mut self,
        object: &View<O>,
        read: impl FnOnce(&O) -> T,
    ) -> Result<T, PlayError> {
        self.read_part(object, Part::Whole, read)
    }

    /// Reads a part of an object, as it was before this transaction: `read` must look at nothing else.
    ///
    /// # Errors
    /// [`PlayError`] if the object cannot be played on.
    pub fn read_part<O: Object, T>(
        &mut self,
        object: &View<O>,
        part: Part,
        read: impl FnOnce(&O) -> T,
    ) -> Result<T, PlayError> {
        let world = self.world;
        let cell = world.playable::<O>(object.named())?;
        let seen = self.seen(object.named(), &part);
        let number = self.writes.number(object.named());
        match part {
            Part::Key(key) => drop(self.keys.insert((number, key), seen)),
            part @ (Part::Whole | Part::Keys(_) | Part::Lease(_)) => self.others.push(Check {
                object: number,
                part,
                seen,
            }),
        }
        Ok(read(&cell.state))
    }

    /// The transaction takes place only if a part of an object is as `seen`, whatever it is now and in every isolation.
    pub(crate) fn expect<O: Object>(&mut self, object: &View<O>, part: Part, seen: Seen) {
        let object = self.writes.number(object.named());
        self.expected.push(Check { object, part, seen });
    }

    /// Looks at an object without noting that it was read.
    pub(crate) fn peek<O: Object, T>(
        &self,
        object: &View<O>,
        read: impl FnOnce(&O) -> T,
    ) -> Result<T, PlayError> {
        Ok(read(&self.world.playable::<O>(object.named())?.state))
    }

    fn seen(&self, object: &Named, part: &Part) -> Seen {
        let found = self.world.object(object);
        found.map(|object| object.seen(part)).unwrap_or_default()
    }

    /// Updates an object, if the transaction takes place.
    pub fn update<O: Object>(&mut self, object: &View<O>, update: &O::Update) {
        let part = O::part(update);
        let seen = self.seen(object.named(), &part);
        let number = self.writes.number(object.named());
        self.touched.push((number, part, seen));
        self.writes.update(object, update);
    }

    /// Something that it was asked to write cannot be written: it will not take place.
    pub(crate) fn refuse(&mut self, why: UpdateError) {
        self.writes.refused.get_or_insert(why);
    }

    /// What must be so though it was not read: trying again does not change it.
    pub(crate) fn expected(&self) -> Vec<(Named, Part)> {
        let all = self.expected.iter();
        all.map(|check| (self.writes.object(check.object), check.part.clone()))
            .collect()
    }

    /// What is to be appended; nothing if nothing is written.
    pub(crate) fn finish(mut self) -> Option<(Vec<Check>, Writes)> {
        if self.writes.is_empty() && self.writes.refused.is_none() {
            return None;
        }
        let mut keys = self.keys;
        let is_read = |number: u32, part: &Part| match part {
            Part::Key(key) => {
                let covers = |other: &Check| {
                    other.object == number
                        && match &other.part {
                            Part::Whole => true,
                            Part::Key(read) => read == key,
                            Part::Keys(read) => read.contains(key),
                            Part::Lease(_) => false,
                        }
                };
                keys.contains_key(&(number, key.clone())) || self.others.iter().any(covers)
            }
            Part::Lease(_) => false,
            Part::Whole | Part::Keys(_) => {
                keys.keys().any(|(read, _)| *read == number)
                    || self.others.iter().any(|other| other.object == number)
            }
        };
        let protected: Vec<(u32, Part, Seen)> = match self.isolation {
            Isolation::Serializable => vec![],
            Isolation::Snapshot => self.touched,
            Isolation::WriteWrite => {
                let touched = self.touched.into_iter();
                touched
                    .filter(|(number, part, _)| is_read(*number, part))
                    .collect()
            }
        };
        let mut checks = match self.isolation {
            Isolation::Serializable => self.others,
            Isolation::Snapshot | Isolation::WriteWrite => {
                keys.clear();
                vec![]
            }
        };
        for (object, part, seen) in protected {
            match part {
                Part::Key(key) => drop(keys.insert((object, key), seen)),
                part @ (Part::Whole | Part::Keys(_) | Part::Lease(_)) => {
                    let check = Check { object, part, seen };
                    if !checks.contains(&check) {
                        checks.push(check);
                    }
                }
            }
        }
        let keys = keys.into_iter().map(|((object, key), seen)| Check {
            object,
            part: Part::Key(key),
            seen,
        });
        checks.extend(keys);
        // In front: of several conflicts the first is told.
        self.expected.extend(checks);
        Some((self.expected, self.writes))
    }
}
