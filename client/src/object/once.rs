//! Idempotency keys: which updates took place already. Part of every object's state.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use milonga_wire::Position;
use serde::{Deserialize, Serialize};

use super::codec::Once;

/// Bytes of the longest key.
pub const ONCE_BYTES_MAX: usize = 1 << 10;
/// For how many positions a key is remembered unless something else is asked for.
pub const ONCE_LIVES: u64 = 1 << 20;
/// Bytes of the longest outcome that is remembered with it.
const OUTCOME_BYTES_MAX: usize = 1 << 10;

/// The keys seen, each until the log has grown by what its update asked for. Only positions decide when one is forgotten, so all
/// replicas forget it at the same place.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Table {
    keys: BTreeMap<Bytes, Noted>,
    ends: BTreeSet<(Position, Bytes)>,
}

/// An update that took place.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct Noted {
    pub(crate) position: Position,
    until: Position,
    /// What it brought about, unless that was too long.
    pub(crate) outcome: Option<Bytes>,
}

impl Table {
    /// The update with this key that took place before `position`, if it is not forgotten there.
    pub(crate) fn first(&self, position: Position, key: &[u8]) -> Option<&Noted> {
        let noted = self.keys.get(key);
        noted.filter(|noted| noted.until > position)
    }

    /// Remembers that an update with this key took place at `position`, and forgets what is over.
    pub(crate) fn note(&mut self, position: Position, once: &Once, outcome: Option<Vec<u8>>) {
        while let Some((end, _)) = self.ends.first()
            && *end <= position
        {
            if let Some((_, key)) = self.ends.pop_first() {
                self.keys.remove(&key);
            }
        }
        let until = position.plus(once.lives);
        let outcome = outcome.filter(|outcome| outcome.len() <= OUTCOME_BYTES_MAX);
        let noted = Noted {
            position,
            until,
            outcome: outcome.map(Bytes::from),
        };
        self.insert(once.key.clone(), noted);
    }

    /// What it holds, for a snapshot.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Bytes, &Noted)> {
        self.keys.iter()
    }

    /// Puts back what a snapshot holds.
    pub(crate) fn insert(&mut self, key: Bytes, noted: Noted) {
        self.ends.insert((noted.until, key.clone()));
        self.keys.insert(key, noted);
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn once(key: &'static str, lives: u64) -> Once {
        let key = Bytes::from(key);
        Once { key, lives }
    }

    /// Only the log's growth makes a key forgotten, and then its place is given back.
    #[test]
    fn a_key_is_remembered_for_as_many_positions_as_it_asked_for() {
        let mut table = Table::default();
        table.note(Position(10), &once("a", 5), Some(vec![1]));
        let first = |table: &Table, at| {
            table
                .first(Position(at), b"a")
                .map(|noted| noted.position.0)
        };
        assert_eq!(first(&table, 14), Some(10));
        assert_eq!(first(&table, 15), None);

        table.note(Position(20), &once("b", u64::MAX), None);
        assert_eq!(table.len(), 1);
        table.note(
            Position(21),
            &once("a", 5),
            Some(vec![0; OUTCOME_BYTES_MAX + 1]),
        );
        assert_eq!(first(&table, 25), Some(21));
        assert_eq!(table.first(Position(22), b"a").unwrap().outcome, None);
        assert_eq!(
            table.first(Position(u64::MAX - 1), b"b").unwrap().position,
            Position(20)
        );
    }
}
