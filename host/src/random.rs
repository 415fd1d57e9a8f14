//! The only file that makes random numbers: from the operating system, or from a seed in a simulation.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Where a node gets its randomness from. Clones share one sequence.
#[derive(Clone, Debug)]
pub struct Random(Arc<Mutex<StdRng>>);

impl Random {
    /// Seeded by the operating system.
    pub fn real() -> Self {
        Self(Arc::new(Mutex::new(rand::make_rng())))
    }

    /// The sequence of `seed`.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// 64 random bits.
    pub fn next(&self) -> u64 {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next_u64()
    }

    /// 128 random bits.
    pub fn id(&self) -> [u8; 16] {
        let bits = (u128::from(self.next()) << 64) | u128::from(self.next());
        bits.to_be_bytes()
    }

    /// A number below `limit`; 0 if `limit` is 0. (The bias is below one in 2^40 for any limit used here.)
    pub fn below(&self, limit: u64) -> u64 {
        self.next().checked_rem(limit).unwrap_or(0)
    }

    /// Between half of `time` and all of it: what a retry waits, so that many do not come back at once.
    pub fn jittered(&self, time: Duration) -> Duration {
        let half = time / 2;
        half + Duration::from_nanos(self.below(half.as_nanos() as u64 + 1))
    }
}
