//! What a map holds of a value: all of it, or where in the log it stays and what it must be. Pure.
//!
//! ```text
//!  … put k (1 MB) … snapshot: k is at ▲ … put k again …            a map without the values themselves: an index over the log
//!        └──────────────────────┘
//! ```
//! - Z1 Whether a value stays in the log is decided by the map's own history, where it was put: alike in all replicas.
//! - Z2 What a map refers to is not trimmed: a snapshot needs what it refers to, and later puts lie behind it.
//! - Z3 A value that is brought forward in the log stays what it is: the same bytes, under the same version.
//! - Z4 What is read is what was put: the map holds its SHA-256.

use bytes::Bytes;
use milonga_wire::Position;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::{Update, Versioned};
use crate::object::codec::{Change, Record, decode};

/// SHA-256 of a value.
pub(crate) type Digest = [u8; 32];

/// A value that stays in the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// The record that holds it: what put it, or a copy further on.
    pub at: Position,
    /// Its size.
    pub bytes: u32,
    pub(crate) digest: Digest,
    /// It was found to be not there any more: somebody trimmed by force.
    pub is_gone: bool,
}

impl Stored {
    fn of(at: Position, value: &[u8]) -> Self {
        Self {
            at,
            bytes: u32::try_from(value.len()).expect("a record is far smaller"),
            digest: digest_of(value),
            is_gone: false,
        }
    }

    /// Z4.
    fn is(&self, value: &[u8]) -> bool {
        value.len() == self.bytes as usize && digest_of(value) == self.digest
    }

    /// This value of `key`, if the record at its place holds it.
    pub(crate) fn find_in(&self, record: &[u8], key: &Bytes) -> Option<Bytes> {
        let put = |update: &[u8]| {
            let update: Update = decode(update).ok()?;
            (update.key() == Some(key)).then(|| update.into_value())?
        };
        let is_it = |value: &Bytes| self.is(value);
        match Record::parse(record).ok()? {
            Record::Value(value) => Some(Bytes::copy_from_slice(value)).filter(is_it),
            Record::Update(update) | Record::Once(_, update) => put(update).filter(is_it),
            Record::Commit(commit) => commit.writes.iter().find_map(|write| match &write.change {
                Change::Update(update) => put(update).filter(is_it),
                Change::Reset(_) => None,
            }),
            Record::Decision(_) | Record::Chunk(..) | Record::Manifest(_) => None,
        }
    }
}

fn digest_of(value: &[u8]) -> Digest {
    let mut all = Digest::default();
    all.copy_from_slice(digest(&SHA256, value).as_ref());
    all
}

/// A value, or where it is.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// It is in memory.
    Here(Bytes),
    /// It stays in the log.
    InLog(Box<Stored>),
}

impl Value {
    /// A value that is put by the record at `at`, which it stays in if it has at least `from` bytes.
    pub(super) fn put(at: Position, value: Bytes, from: Option<u64>) -> Self {
        if from.is_some_and(|from| value.len() as u64 >= from) {
            Self::InLog(Box::new(Stored::of(at, &value)))
        } else {
            Self::Here(value)
        }
    }

    /// Whether it is `value`.
    pub fn is(&self, value: &[u8]) -> bool {
        match self {
            Self::Here(own) => own == value,
            Self::InLog(stored) => stored.is(value),
        }
    }

    /// Whether both are the same, wherever they are.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Here(value), other) | (other, Self::Here(value)) => other.is(value),
            (Self::InLog(one), Self::InLog(other)) => {
                (one.bytes, one.digest) == (other.bytes, other.digest)
            }
        }
    }

    /// Where it is, if it stays in the log.
    pub fn stored(&self) -> Option<&Stored> {
        match self {
            Self::Here(_) => None,
            Self::InLog(stored) => Some(stored),
        }
    }
}

/// What a map holds under a key.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The value, or where it is.
    pub value: Value,
    /// The position of the key's last write.
    pub version: Position,
}

impl Held {
    pub(super) fn of((value, version): &(Value, Position)) -> Self {
        Self {
            value: value.clone(),
            version: *version,
        }
    }

    /// With the value; none if that stays in the log.
    pub fn here(self) -> Option<Versioned> {
        match self.value {
            Value::Here(value) => Some(Versioned {
                value,
                version: self.version,
            }),
            Value::InLog(_) => None,
        }
    }
}

impl From<Versioned> for Held {
    fn from(Versioned { value, version }: Versioned) -> Self {
        let value = Value::Here(value);
        Self { value, version }
    }
}

/// A copy of a value that stays in the log.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// Its key.
    pub key: Bytes,
    /// The record that the map refers to.
    pub from: Position,
    /// The record that it refers to from now on; none: the value is not there any more.
    pub to: Option<Position>,
}
