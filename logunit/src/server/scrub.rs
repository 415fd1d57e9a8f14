//! Verifying what is held: every record is read again from time to time, slowly, so that damage is found while a peer
//! still holds what was damaged.
//!
//! One step at a time, each with the store to itself for no longer than a read takes. A round begins when the process
//! does and then every [`Scrub::every`]; a round that takes longer is followed by the next at once.

use std::sync::Arc;
use std::time::Duration;

use super::{Core, CoreGuard, Shared};
use crate::config::Scrub;

/// Between two steps at least, and between two rounds.
const STEP_PAUSE: Duration = Duration::from_millis(1);
const ROUND_PAUSE: Duration = Duration::from_secs(1);
/// Steps in a second, where they may be as large as it takes.
const STEPS_PER_SECOND: u64 = 10;
/// Bytes of one step at most; faster scrubbing takes more steps.
const STEP_BYTES_MAX: u64 = 256 << 10;

impl Shared {
    /// Scrubs for ever, if it is to.
    pub(super) async fn scrub_for_ever(self: Arc<Self>) {
        let Some(Scrub {
            every,
            bytes_per_second,
        }) = self.config.scrub
        else {
            return;
        };
        let step = (bytes_per_second / STEPS_PER_SECOND).clamp(1, STEP_BYTES_MAX);
        loop {
            let began = self.clock.now();
            loop {
                let core = self.core.lock().await;
                let (read, done) = self.scrub(core, step);
                if done {
                    break;
                }
                // A large record takes its time as well.
                let micros = read.saturating_mul(1_000_000) / bytes_per_second.max(1);
                let pause = Duration::from_micros(micros);
                self.clock.sleep(pause.max(STEP_PAUSE)).await;
            }
            let took = self.clock.now().since(began);
            let rest = every.saturating_sub(took);
            self.clock.sleep(rest.max(ROUND_PAUSE)).await;
        }
    }

    /// One step. How many bytes it read, and whether it ended a round.
    fn scrub(&self, core: CoreGuard<'_>, bytes_max: u64) -> (u64, bool) {
        let (scrubbed, damaged) = self.at_work(core, |core| {
            let Core { unit, storage } = core;
            let scrubbed = storage.scrub(bytes_max);
            unit.scrubbed(scrubbed.damaged);
            (scrubbed, storage.damaged())
        });
        self.metrics.scrubbed(&scrubbed, damaged);
        (scrubbed.bytes, scrubbed.done)
    }
}
