//! What became of this client's own updates, kept for those who wait for it.

use std::collections::BTreeMap;

use milonga_wire::Position;

/// Outcomes by position, for as long as somebody may come for them.
pub(crate) struct Waiting<T> {
    number: u64,
    /// Per waiter: its update lies at or above this position.
    from: BTreeMap<u64, Position>,
    outcomes: BTreeMap<Position, T>,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self {
            number: 0,
            from: BTreeMap::new(),
            outcomes: BTreeMap::new(),
        }
    }
}

impl<T> Waiting<T> {
    /// From now on outcomes at and above `from` are kept, until [`Waiting::leave`] with the number that this returns.
    pub(crate) fn enter(&mut self, from: Position) -> u64 {
        self.number += 1;
        self.from.insert(self.number, from);
        self.number
    }

    pub(crate) fn leave(&mut self, number: u64) {
        self.from.remove(&number);
        match self.lowest() {
            Some(lowest) => self.outcomes = self.outcomes.split_off(&lowest),
            None => self.outcomes.clear(),
        }
    }

    /// Keeps an outcome if anybody may come for it.
    pub(crate) fn note(&mut self, position: Position, outcome: T) {
        if self.lowest().is_some_and(|lowest| lowest <= position) {
            self.outcomes.insert(position, outcome);
        }
    }

    pub(crate) fn take(&mut self, position: Position) -> Option<T> {
        self.outcomes.remove(&position)
    }

    /// Where the updates of all waiters lie: who came first waits for the lowest, since views only move on.
    fn lowest(&self) -> Option<Position> {
        self.from.first_key_value().map(|(_, from)| *from)
    }
}
