//! How the records of an object's stream look as bytes: a version, then a postcard enum that only grows at its end, then what
//! the object itself encodes.
//!
//! Whoever meets a version or a record that it does not know stops that object (O3): skipping it would leave this replica with
//! another state than one that knows it.

use std::collections::BTreeSet;

use bytes::Bytes;
use milonga_wire::limits::ENTRY_BYTES_MAX;
use milonga_wire::{Position, StreamId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::part::{Part, Seen};

/// The first byte of every record written by this program.
pub const FORMAT_VERSION: u8 = 1;

/// What a record says. Its place in this list is its number in the log.
#[derive(Serialize, Deserialize)]
enum Head {
    /// One update of the object whose stream this is; its bytes follow.
    Update,
    /// The same, unless an update with that key took place before.
    Once(Once),
    /// A transaction.
    Commit(Commit),
    /// What became of a transaction, for those who cannot decide it themselves.
    Decision(Decision),
    /// A part of a snapshot; its bytes follow.
    Chunk(Chunk),
    /// A whole snapshot.
    Manifest(Manifest),
    /// A copy of a value that a map refers to; its bytes follow.
    Value,
}

/// A record of an object's stream, in part not decoded yet.
#[derive(Debug)]
pub(crate) enum Record<'a> {
    Update(&'a [u8]),
    Once(Once, &'a [u8]),
    Commit(Commit),
    Decision(Decision),
    Chunk(Chunk, &'a [u8]),
    Manifest(Manifest),
    Value(&'a [u8]),
}

/// An idempotency key, and for how many positions of the log it is remembered.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Once {
    /// The key.
    pub key: Bytes,
    /// It is remembered while the log grows by this many positions.
    pub lives: u64,
}

/// An object as transactions name it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Named {
    /// Its stream.
    pub stream: StreamId,
    /// What it is: several objects may be fed by one stream.
    pub kind: String,
}

/// A transaction: it takes place if all that is checked is as it was seen.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Commit {
    /// The objects that the others name by their place here.
    pub(crate) objects: Vec<Named>,
    pub(crate) checks: Vec<Check>,
    pub(crate) writes: Vec<Write>,
    /// Remembered by the object of the first write.
    pub(crate) once: Option<Once>,
}

/// A part of an object that must be as it was seen.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) object: u32,
    pub(crate) part: Part,
    pub(crate) seen: Seen,
}

/// What a transaction does to one object.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Write {
    pub(crate) object: u32,
    pub(crate) change: Change,
}

#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) enum Change {
    /// An update, as the object encodes it.
    Update(Bytes),
    /// Back to the snapshot whose manifest is at this position.
    Reset(Position),
}

/// What became of the transaction at a position.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Decision {
    pub(crate) of: Position,
    pub(crate) verdict: Verdict,
}

/// Whether a transaction takes place.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) enum Verdict {
    Committed,
    Conflict(Conflict),
}

/// Why a transaction did not take place.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Conflict {
    /// Something that it had read was not as it was seen any more.
    Changed {
        /// The object.
        object: Named,
        /// The part of it.
        part: Part,
        /// How it stood.
        found: Seen,
    },
    /// One with the same idempotency key took place before.
    Repeated {
        /// Where.
        first: Position,
    },
    /// It takes objects back to snapshots that were written for it too far below: they may be gone. Nothing was done.
    Late,
}

/// A part of a snapshot.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Chunk {
    /// Which snapshot.
    pub(crate) id: [u8; 16],
    /// Which part, from 0.
    pub(crate) number: u32,
}

/// What a snapshot consists of.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) object: Named,
    pub(crate) id: [u8; 16],
    /// Everything of the object's stream below it is in the snapshot.
    pub(crate) as_of: Position,
    /// Where its parts are, in order.
    pub(crate) chunks: Vec<Position>,
    pub(crate) bytes: u64,
    /// CRC-32 of all parts, one after the other.
    pub(crate) crc: u32,
    /// It was written to go back to, and is no state to start from.
    pub(crate) is_past: bool,
    /// The lowest position that the object refers to: without what is there it is not whole.
    pub(crate) refers_to: Option<Position>,
}

impl Manifest {
    /// What has to stay in the log for it: from here on.
    pub(crate) fn needs(&self) -> Position {
        let first = self.chunks.iter().chain(&self.refers_to).copied().min();
        if self.is_past {
            first.unwrap_or(Position(u64::MAX))
        } else {
            first.unwrap_or(self.as_of).min(self.as_of)
        }
    }
}

/// Within how many positions after its manifest a snapshot to go back to can be gone back to. Once a later snapshot is as of a
/// position beyond that, nobody needs it (R3).
pub(crate) const BACK_WITHIN: u64 = 1 << 20;

/// Why a record of an object's stream is none that can be played.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OperationError {
    /// A newer program wrote it.
    #[error("format version {found}; this program reads up to {FORMAT_VERSION}; use a newer one")]
    Newer {
        /// Its version.
        found: u8,
    },
    /// It is none that this program knows: of a newer one, damaged by its writer, or not an object's.
    #[error("not an operation that this program knows ({why}); use a newer one, or another stream")]
    Malformed {
        /// What is wrong.
        why: String,
    },
    /// The object's own code gave up on it, on every replica of this version.
    #[error("the object's code panicked when it applied it: {why}; mend the code")]
    Panicked {
        /// What it said.
        why: String,
    },
}

impl OperationError {
    pub(crate) fn malformed(why: impl ToString) -> Self {
        let why = why.to_string();
        Self::Malformed { why }
    }
}

/// Something is larger than it may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TooLarge {
    pub(crate) asked: usize,
}

impl Record<'_> {
    /// The record that `bytes` hold. Total: any bytes give a record or an error.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Record<'_>, OperationError> {
        let (version, rest) = bytes
            .split_first()
            .ok_or_else(|| OperationError::malformed("an empty record"))?;
        if *version > FORMAT_VERSION {
            return Err(OperationError::Newer { found: *version });
        }
        if *version == 0 {
            return Err(OperationError::malformed("format version 0"));
        }
        let (head, rest) = postcard::take_from_bytes(rest).map_err(OperationError::malformed)?;
        let record = match head {
            Head::Update => return Ok(Record::Update(rest)),
            Head::Once(once) => return Ok(Record::Once(once, rest)),
            Head::Chunk(chunk) => return Ok(Record::Chunk(chunk, rest)),
            Head::Value => return Ok(Record::Value(rest)),
            Head::Commit(commit) => Record::Commit(commit.checked()?),
            Head::Decision(decision) => Record::Decision(decision),
            Head::Manifest(manifest) => Record::Manifest(manifest),
        };
        end(rest).map(|()| record)
    }
}

fn end(rest: &[u8]) -> Result<(), OperationError> {
    match rest.len() {
        0 => Ok(()),
        len => Err(OperationError::malformed(format!("{len} bytes too many"))),
    }
}

impl Commit {
    /// Every object that it names by number is one of its list, so that nobody meets an index out of bounds later.
    fn checked(self) -> Result<Self, OperationError> {
        let checked = self.checks.iter().map(|check| check.object);
        let mut all = checked.chain(self.writes.iter().map(|write| write.object));
        let known = self.objects.len() as u64;
        if all.any(|object| u64::from(object) >= known) || self.writes.is_empty() {
            return Err(OperationError::malformed(
                "a transaction that names no object",
            ));
        }
        Ok(self)
    }

    /// What has to be at hand to decide it.
    pub(crate) fn decided_by(&self) -> BTreeSet<&Named> {
        let keeper = self.once.as_ref().and(self.writes.first());
        let numbers = self.checks.iter().map(|check| check.object);
        let numbers = numbers.chain(keeper.map(|write| write.object));
        numbers.map(|number| self.object(number)).collect()
    }

    /// The one object that it writes, if it checks that and nothing else: then nobody tells what became of it, since everybody who
    /// plays that object can decide.
    pub(crate) fn alone(&self) -> Option<&Named> {
        let mut decided_by = self.decided_by().into_iter();
        let only = decided_by.next().filter(|_| decided_by.next().is_none())?;
        let mut written = self.writes.iter().map(|write| self.object(write.object));
        written.all(|object| object == only).then_some(only)
    }

    /// Whether everybody who plays what it writes can decide it.
    pub(crate) fn needs_no_decision(&self) -> bool {
        self.decided_by().is_empty() || self.alone().is_some()
    }

    /// Whether it goes back to what need not be there any more where it lies.
    pub(crate) fn is_late(&self, position: Position) -> bool {
        self.writes.iter().any(|write| match write.change {
            Change::Reset(manifest) => manifest.plus(BACK_WITHIN) < position,
            Change::Update(_) => false,
        })
    }

    pub(crate) fn object(&self, number: u32) -> &Named {
        &self.objects[number as usize]
    }
}

/// The update that `bytes` hold. Total.
pub(crate) fn decode<U: DeserializeOwned>(bytes: &[u8]) -> Result<U, OperationError> {
    let (update, rest) = postcard::take_from_bytes(bytes).map_err(OperationError::malformed)?;
    end(rest).map(|()| update)
}

/// The bytes of an update by itself, as a transaction carries it.
pub(crate) fn bytes_of<T: Serialize>(plain: &T) -> Vec<u8> {
    postcard::to_allocvec(plain).expect(PLAIN)
}

const PLAIN: &str = "it is plain data, and memory is all that a vector needs";

/// The record of an update.
pub(crate) fn update<U: Serialize>(update: &U) -> Result<Bytes, TooLarge> {
    with(&Head::Update, |bytes| {
        postcard::to_extend(update, bytes).expect(PLAIN)
    })
}

/// The record of an update that takes place once.
pub(crate) fn once<U: Serialize>(once: Once, update: &U) -> Result<Bytes, TooLarge> {
    with(&Head::Once(once), |bytes| {
        postcard::to_extend(update, bytes).expect(PLAIN)
    })
}

pub(crate) fn commit(commit: Commit) -> Result<Bytes, TooLarge> {
    with(&Head::Commit(commit), |bytes| bytes)
}

pub(crate) fn decision(decision: Decision) -> Result<Bytes, TooLarge> {
    with(&Head::Decision(decision), |bytes| bytes)
}

pub(crate) fn manifest(manifest: Manifest) -> Result<Bytes, TooLarge> {
    with(&Head::Manifest(manifest), |bytes| bytes)
}

pub(crate) fn value(value: &[u8]) -> Result<Bytes, TooLarge> {
    with(&Head::Value, |mut bytes| {
        bytes.extend_from_slice(value);
        bytes
    })
}

pub(crate) fn chunk(chunk: Chunk, part: &[u8]) -> Result<Bytes, TooLarge> {
    with(&Head::Chunk(chunk), |mut bytes| {
        bytes.extend_from_slice(part);
        bytes
    })
}

fn with(head: &Head, rest: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<Bytes, TooLarge> {
    let bytes = rest(postcard::to_extend(head, vec![FORMAT_VERSION]).expect(PLAIN));
    if bytes.len() > ENTRY_BYTES_MAX {
        return Err(TooLarge { asked: bytes.len() });
    }
    Ok(Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::object::map::Update;

    fn put() -> Update {
        Update::Put {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
        }
    }

    fn update_in(bytes: &[u8]) -> Result<Update, OperationError> {
        match Record::parse(bytes)? {
            Record::Update(update) => decode(update),
            other => panic!("{other:?}"),
        }
    }

    /// What is in some log must be read for ever: these bytes never change.
    #[test]
    fn records_look_the_same_for_ever() {
        let bytes = update(&put()).unwrap();
        assert_eq!(bytes.as_ref(), [1, 0, 0, 1, b'k', 1, b'v']);
        assert_eq!(update_in(&bytes), Ok(put()));

        let key = Once {
            key: Bytes::from_static(b"i"),
            lives: 5,
        };
        let bytes = once(key.clone(), &put()).unwrap();
        assert_eq!(bytes.as_ref(), [1, 1, 1, b'i', 5, 0, 1, b'k', 1, b'v']);

        let named = Named {
            stream: StreamId([9; 16]),
            kind: "m".to_owned(),
        };
        let seen = Seen {
            count: 1,
            newest: Some(Position(7)),
        };
        let part = Part::Key(Bytes::from_static(b"k"));
        let whole = Commit {
            objects: vec![named.clone()],
            checks: vec![Check {
                object: 0,
                part: part.clone(),
                seen,
            }],
            writes: vec![Write {
                object: 0,
                change: Change::Update(Bytes::from_static(b"u")),
            }],
            once: Some(key),
        };
        let bytes = commit(whole.clone()).unwrap();
        let mut expected = vec![1, 2, 1, 16];
        expected.extend([9; 16]);
        expected.extend([
            1, b'm', 1, 0, 1, 1, b'k', 1, 1, 7, 1, 0, 0, 1, b'u', 1, 1, b'i', 5,
        ]);
        assert_eq!(bytes.as_ref(), expected);
        assert!(matches!(Record::parse(&bytes), Ok(Record::Commit(read)) if read == whole));

        let changed = Conflict::Changed {
            object: named,
            part,
            found: seen,
        };
        let bytes = decision(Decision {
            of: Position(300),
            verdict: Verdict::Conflict(changed),
        })
        .unwrap();
        let mut expected = vec![1, 3, 172, 2, 1, 0, 16];
        expected.extend([9; 16]);
        expected.extend([1, b'm', 1, 1, b'k', 1, 1, 7]);
        assert_eq!(bytes.as_ref(), expected);
    }

    /// O3: what a newer program wrote stops an older one, and says so.
    #[test]
    fn a_newer_version_and_an_unknown_record_are_typed_errors() {
        assert_eq!(
            update_in(&[2, 0, 0]),
            Err(OperationError::Newer { found: 2 })
        );
        let nothing_written = [1, 2, 0, 0, 0, 0];
        let no_such_object = [1, 2, 0, 0, 1, 0, 0, 0, 0];
        for unknown in [
            &[1, 99, 0][..],
            &[1, 0, 99],
            &[0],
            &[],
            &[1, 0, 1, 1, b'k', 0],
            &nothing_written,
            &no_such_object,
        ] {
            let error = update_in(unknown);
            assert!(
                matches!(error, Err(OperationError::Malformed { .. })),
                "{unknown:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), head in 0_u8..7) {
            let _ = Record::parse(&bytes);
            let _ = decode::<Update>(&bytes);
            let mut versioned = vec![FORMAT_VERSION, head];
            versioned.extend(bytes);
            let _ = Record::parse(&versioned);
        }
    }
}
