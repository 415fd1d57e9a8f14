//! What the phases of a change of layout took: for people who ask how long their appends stood still, and why.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milonga_host::Moment;
use milonga_wire::Term;

/// Changes remembered.
const CHANGES_MAX: usize = 64;

/// One change of layout that this client brought about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Phases {
    /// The term that it began.
    pub term: Term,
    /// When it was known that there has to be one: service stops soon after, if it had not before.
    pub began: Moment,
    /// Promises of the layout servers, and the seals.
    pub seal: Duration,
    /// The vote.
    pub decide: Duration,
    /// The announcement to the units, and the stream tails for the sequencer, up to its first token.
    pub bootstrap: Duration,
}

/// The last changes, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Changes(Mutex<VecDeque<Phases>>);

impl Changes {
    pub(crate) fn note(&self, phases: Phases) {
        for (phase, took) in [
            ("seal", phases.seal),
            ("decide", phases.decide),
            ("bootstrap", phases.bootstrap),
        ] {
            metrics::histogram!("milonga_client_change_seconds", "phase" => phase)
                .record(took.as_secs_f64());
        }
        let mut changes = self.changes();
        if changes.len() == CHANGES_MAX {
            changes.pop_front();
        }
        changes.push_back(phases);
    }

    pub(crate) fn all(&self) -> Vec<Phases> {
        self.changes().iter().copied().collect()
    }

    fn changes(&self) -> MutexGuard<'_, VecDeque<Phases>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
