//! Parts of an object, and how they stood: what a transaction checks.

use bytes::Bytes;
use milonga_wire::Position;
use serde::{Deserialize, Serialize};

use super::Keys;

/// What of an object a transaction has read, or writes.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Part {
    /// All of it.
    Whole,
    /// One key.
    Key(Bytes),
    /// A range of keys, those that are not there too.
    Keys(Keys),
    /// That a lease lives.
    Lease(Position),
}

/// How a part of an object stood: two moments at which this is the same have the same content there.
///
/// What is written is newer than all that was there before, and what is removed makes the count smaller until something is
/// written: so the two numbers never come back to what they were with another content.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Seen {
    /// How many keys there were.
    pub count: u64,
    /// The position of the newest write among what was there.
    pub newest: Option<Position>,
}

impl Seen {
    /// One that was written at `version`, or none.
    pub fn one(version: Option<Position>) -> Self {
        Self {
            count: u64::from(version.is_some()),
            newest: version,
        }
    }

    /// Those that were written at these positions.
    pub fn all(versions: impl Iterator<Item = Position>) -> Self {
        versions.fold(Self::default(), |seen, version| Self {
            count: seen.count + 1,
            newest: seen.newest.max(Some(version)),
        })
    }
}
