//! The leases of a map, and which keys are bound to which: pure (O1).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use milonga_wire::Position;

use crate::object::map::Outcome;

/// A lease as it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeaseState {
    ttl_ms: u64,
    renewed: Position,
    keys: BTreeSet<Bytes>,
}

impl LeaseState {
    /// For how long it lives without a renewal.
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }

    /// The position of its last renewal, or of the grant.
    pub fn renewed(&self) -> Position {
        self.renewed
    }

    /// The keys that are bound to it, in order.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &Bytes> {
        self.keys.iter()
    }

    pub(in crate::object::map) fn ttl_ms(&self) -> u64 {
        self.ttl_ms
    }

    pub(in crate::object::map) fn lives(&self, lease: Position) -> Outcome {
        let ttl_ms = self.ttl_ms;
        Outcome::Lives { lease, ttl_ms }
    }
}

/// All leases of a map that live.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(in crate::object::map) struct Leases {
    alive: BTreeMap<Position, LeaseState>,
    /// The other way round: Y1 holds since a key has one place here.
    bound: BTreeMap<Bytes, Position>,
}

impl Leases {
    pub(in crate::object::map) fn get(&self, lease: Position) -> Option<&LeaseState> {
        self.alive.get(&lease)
    }

    pub(in crate::object::map) fn all(&self) -> impl Iterator<Item = (Position, &LeaseState)> {
        self.alive.iter().map(|(lease, found)| (*lease, found))
    }

    pub(in crate::object::map) fn of(&self, key: &[u8]) -> Option<Position> {
        self.bound.get(key).copied()
    }

    /// A transaction that grants two has granted one, for the longer of both times.
    pub(in crate::object::map) fn grant(&mut self, position: Position, ttl_ms: u64) -> Outcome {
        let found = self.alive.entry(position).or_insert_with(|| LeaseState {
            ttl_ms,
            renewed: position,
            keys: BTreeSet::new(),
        });
        found.ttl_ms = found.ttl_ms.max(ttl_ms);
        found.lives(position)
    }

    pub(in crate::object::map) fn renew(&mut self, position: Position, lease: Position) -> Outcome {
        let Some(found) = self.alive.get_mut(&lease) else {
            return Outcome::NoLease { lease };
        };
        found.renewed = position;
        found.lives(lease)
    }

    /// It is no more. The keys that were bound to it; none if there was none.
    pub(in crate::object::map) fn end(&mut self, lease: Position) -> Option<BTreeSet<Bytes>> {
        let keys = self.alive.remove(&lease)?.keys;
        for key in &keys {
            self.bound.remove(key);
        }
        Some(keys)
    }

    /// Binds `key` to `lease`, which lives, and to nothing else; or to none.
    pub(in crate::object::map) fn bind(&mut self, key: &Bytes, lease: Option<Position>) {
        if let Some(before) = self.bound.remove(key)
            && let Some(found) = self.alive.get_mut(&before)
        {
            found.keys.remove(key);
        }
        if let Some(lease) = lease
            && let Some(found) = self.alive.get_mut(&lease)
        {
            found.keys.insert(key.clone());
            self.bound.insert(key.clone(), lease);
        }
    }

    /// No key is bound any more; the leases live on.
    pub(in crate::object::map) fn unbind_all(&mut self) {
        self.bound.clear();
        self.alive.values_mut().for_each(|found| found.keys.clear());
    }

    /// Puts back what a snapshot holds.
    pub(in crate::object::map) fn restore(
        &mut self,
        lease: Position,
        ttl_ms: u64,
        renewed: Position,
    ) {
        let found = LeaseState {
            ttl_ms,
            renewed,
            keys: BTreeSet::new(),
        };
        self.alive.insert(lease, found);
    }
}
