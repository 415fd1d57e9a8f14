//! Units below a head that have no room for more.
//!
//! A head whose disk is full refuses a record before anybody has it. A unit below it learns of the record when the head has it
//! already: it takes it from its reserve and says so, and refuses it once that is used up, which ends the append unknown.
//! So a client that heard either asks such a unit first from then on, until it has room for new records again; what it
//! refuses then is proved to be nowhere.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use milonga_wire::{Identity, Kind, Refusal, Server, WriteOutcome};

use crate::calls::peer;
use crate::chain::{ChainError, OneChain};
use crate::log::Log;
use crate::trouble::Unavailable;

/// What one client knows of them.
#[derive(Debug, Default)]
pub(crate) struct FullUnits {
    any: AtomicBool,
    units: Mutex<BTreeSet<Identity>>,
}

impl FullUnits {
    fn units(&self) -> MutexGuard<'_, BTreeSet<Identity>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, unit: &Server, is_full: bool) {
        let mut units = self.units();
        if is_full {
            units.insert(unit.identity);
        } else {
            units.remove(&unit.identity);
        }
        self.any.store(!units.is_empty(), Ordering::Relaxed);
    }

    /// Remembers `unit`, which is not a head, if what it said to a write shows that it has no room for more.
    pub(crate) fn note(&self, unit: &Server, said: &Result<Vec<WriteOutcome>, ChainError>) {
        let is_full = match said {
            Ok(outcomes) => outcomes.contains(&WriteOutcome::InReserve),
            Err(ChainError::Unit(failure)) => failure.refusal() == Some(&Refusal::DiskFull),
            Err(_) => false,
        };
        if is_full {
            self.set(unit, true);
        }
    }

    /// Whether there are any.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    fn has(&self, unit: &Server) -> bool {
        self.units().contains(&unit.identity)
    }
}

impl Log {
    /// Why nothing should be decided on `chain` now: a unit below its head has no room, and still says so. Whoever says
    /// anything else, or nothing, is left to the write itself.
    pub(crate) async fn full_below_head(&self, chain: &OneChain<'_>) -> Option<Unavailable> {
        let full = &self.shared.full;
        for unit in chain.below_head().filter(|unit| full.has(unit)) {
            let said = self
                .shared
                .calls
                .describe(&peer(unit, Kind::LogUnit))
                .await
                .ok();
            let is_full = |said: &milonga_wire::Description| {
                (said.identity, said.state.as_str()) == (unit.identity, "full")
            };
            if said.as_ref().is_some_and(is_full) {
                return Some(Unavailable::Refused {
                    server: peer(unit, Kind::LogUnit).to_string(),
                    refusal: Refusal::DiskFull,
                });
            }
            full.set(unit, false);
        }
        None
    }
}
