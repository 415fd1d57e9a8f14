//! The only file that names the clock: monotonic moments, sleeping, deadlines, and the wall clock for people.
//!
//! Everything is built on tokio's clock, which a simulation pauses and advances by itself. A node whose clock runs
//! fast or slow is a [`Clock`] with a rate.

use std::future::Future;
use std::time::{Duration, SystemTime};

/// A moment of a monotonic clock. Only differences mean anything.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct Moment(tokio::time::Instant);

impl Moment {
    /// `after` later.
    pub fn plus(self, after: Duration) -> Self {
        // Far enough away to be never, near enough for the runtime's timer.
        const FAR: Duration = Duration::from_secs(86_400 * 365);
        Self(self.0.checked_add(after.min(FAR)).unwrap_or(self.0 + FAR))
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}

/// The deadline passed before the future was ready.
#[derive(Copy, Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Elapsed;

/// Where a node gets its time from.
#[derive(Clone, Debug)]
pub struct Clock {
    /// Millionths by which this node's clock runs fast (or slow, if negative).
    rate_ppm: i32,
    /// Milliseconds since 1970 at the moment `wall_from`; none: ask the machine.
    wall: Option<(u64, Moment)>,
}

impl Default for Clock {
    fn default() -> Self {
        Self::real()
    }
}

impl Clock {
    /// The machine's clock.
    pub fn real() -> Self {
        Self {
            rate_ppm: 0,
            wall: None,
        }
    }

    /// A clock that runs `rate_ppm` millionths fast, and whose wall clock stands at `wall_ms` now. For simulations;
    /// must be called inside the runtime whose time it tells.
    #[allow(clippy::disallowed_methods)]
    pub fn simulated(rate_ppm: i32, wall_ms: u64) -> Self {
        Self {
            rate_ppm,
            wall: Some((wall_ms, Moment(tokio::time::Instant::now()))),
        }
    }

    /// Now.
    #[allow(clippy::disallowed_methods)]
    pub fn now(&self) -> Moment {
        Moment(tokio::time::Instant::now())
    }

    /// Waits for `time` by this node's clock.
    #[allow(clippy::disallowed_methods)]
    pub async fn sleep(&self, time: Duration) {
        tokio::time::sleep(self.scaled(time)).await;
    }

    /// Waits until `moment`.
    pub async fn sleep_until(&self, moment: Moment) {
        tokio::time::sleep_until(moment.0).await;
    }

    /// `future`'s outcome, if it comes within `time`.
    ///
    /// # Errors
    /// [`Elapsed`]; the future is dropped then.
    #[allow(clippy::disallowed_methods)]
    pub async fn within<F: Future>(&self, time: Duration, future: F) -> Result<F::Output, Elapsed> {
        tokio::time::timeout(self.scaled(time), future)
            .await
            .map_err(|_| Elapsed)
    }

    /// Milliseconds since 1970. For people and certificates; nothing in the protocol decides by it.
    #[allow(clippy::disallowed_methods)]
    pub fn wall_ms(&self) -> u64 {
        match self.wall {
            Some((start_ms, from)) => start_ms + self.now().since(from).as_millis() as u64,
            None => SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_millis() as u64),
        }
    }

    fn scaled(&self, time: Duration) -> Duration {
        match self.rate_ppm {
            0 => time,
            ppm => time.mul_f64(1_000_000.0 / f64::from(1_000_000 + ppm).max(1.0)),
        }
    }
}
