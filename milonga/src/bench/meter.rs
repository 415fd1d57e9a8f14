//! What one round counts.
//!
//! M2: a round has a window; an operation counts if it ends inside it. In a round of a given number of operations the
//! window ends with the last of them.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use milonga_host::{Clock, Host, Moment};
use tokio::sync::mpsc;

/// The longest latency that is told apart, in nanoseconds.
const NANOS_MAX: u64 = 120_000_000_000;
/// How many operations lie between two looks at the processor time.
const CPU_EVERY: u64 = 256;

/// How long a round is.
#[derive(Copy, Clone, Debug)]
pub(super) struct Plan {
    /// Before the window.
    pub(super) warm_up: Duration,
    /// The window.
    pub(super) lasts: Duration,
    /// Or as long as this many operations take.
    pub(super) operations: Option<u64>,
}

/// What a round counted.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) operations: u64,
    pub(super) errors: u64,
    pub(super) seconds: f64,
    /// Processor time of this process in the window.
    pub(super) cpu: Duration,
    /// Operations that it was spent on.
    pub(super) cpu_ends: u64,
    /// In nanoseconds.
    pub(super) latency: Histogram<u64>,
}

impl Sample {
    /// Processor time of this process for one operation, in microseconds.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.cpu_ends.max(1) as f64
    }

    #[allow(clippy::cast_precision_loss)]
    pub(super) fn per_second(&self) -> f64 {
        if self.seconds > 0.0 {
            self.operations as f64 / self.seconds
        } else {
            0.0
        }
    }
}

/// Counts one round.
#[derive(Debug)]
pub(super) struct Meter {
    clock: Clock,
    from: Moment,
    until: Moment,
    by_count: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Operations that may still begin, in a round by count.
    left: u64,
    last: Moment,
    /// Processor time at the first and the last end inside the window.
    cpu: Option<(Duration, Duration)>,
    ends: u64,
    /// How many ends lie between the two.
    cpu_ends: u64,
    operations: u64,
    errors: u64,
    latency: Histogram<u64>,
}

impl Meter {
    /// A round that begins now.
    pub(super) fn start(clock: &Clock, plan: Plan) -> Arc<Self> {
        const FAR: Duration = Duration::from_secs(86_400);
        let from = clock.now().plus(plan.warm_up);
        let lasts = plan.operations.map_or(plan.lasts, |_| FAR);
        let latency = Histogram::new_with_bounds(1, NANOS_MAX, 3);
        Arc::new(Self {
            clock: clock.clone(),
            from,
            until: from.plus(lasts),
            by_count: plan.operations.is_some(),
            state: Mutex::new(State {
                left: plan.operations.unwrap_or(u64::MAX),
                last: from,
                cpu: None,
                ends: 0,
                cpu_ends: 0,
                operations: 0,
                errors: 0,
                latency: latency.expect("the bounds are in order"),
            }),
        })
    }

    /// When the next operation begins: now, or never if the round is over.
    pub(super) fn begin(&self, now: Moment) -> Option<Moment> {
        if now >= self.until {
            return None;
        }
        if self.by_count && now >= self.from {
            let mut state = self.state();
            state.left = state.left.checked_sub(1)?;
        }
        Some(now)
    }

    /// An operation ended. Returns the moment.
    pub(super) fn end(&self, began: Moment, succeeded: bool) -> Moment {
        let now = self.clock.now();
        let counted = if self.by_count { began } else { now };
        if counted < self.from || now >= self.until {
            return now;
        }
        let mut state = self.state();
        state.last = state.last.max(now);
        // Asking costs as much as a small operation: a few dozen times a second is enough.
        if state.ends.is_multiple_of(CPU_EVERY) {
            let cpu = processor_time();
            state.cpu = Some((state.cpu.map_or(cpu, |(first, _)| first), cpu));
            state.cpu_ends = state.ends;
        }
        state.ends += 1;
        if succeeded {
            state.operations += 1;
            let nanos = now.since(began).as_nanos() as u64;
            state.latency.saturating_record(nanos.max(1));
        } else {
            state.errors += 1;
        }
        now
    }

    /// What was counted.
    pub(super) fn sample(&self) -> Sample {
        let state = self.state();
        let until = if self.by_count {
            state.last
        } else {
            self.until
        };
        Sample {
            operations: state.operations,
            errors: state.errors,
            seconds: until.since(self.from).as_secs_f64(),
            cpu: state
                .cpu
                .map_or(Duration::ZERO, |(first, last)| last.saturating_sub(first)),
            cpu_ends: state.cpu_ends,
            latency: state.latency.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// M1: `concurrency` tasks, each of which does `operation` again and again until the round is over.
///
/// `operation` gets the number of its task, and says whether it succeeded.
pub(super) async fn closed_loop<F, O>(
    host: &Host,
    concurrency: u32,
    plan: Plan,
    operation: O,
) -> Sample
where
    F: Future<Output = bool> + Send + 'static,
    O: Fn(u32) -> F + Clone + Send + 'static,
{
    // A cluster that refuses at once must not be asked as fast as it can refuse.
    const AFTER_ERROR: Duration = Duration::from_millis(5);
    let meter = Meter::start(&host.clock, plan);
    let (running, mut ended) = mpsc::channel::<()>(1);
    for number in 0..concurrency {
        let (meter, running, operation) = (meter.clone(), running.clone(), operation.clone());
        let clock = host.clock.clone();
        host.tasks.spawn(async move {
            let mut now = clock.now();
            while let Some(began) = meter.begin(now) {
                let succeeded = operation(number).await;
                now = meter.end(began, succeeded);
                if !succeeded {
                    clock.sleep(AFTER_ERROR).await;
                    now = clock.now();
                }
            }
            drop(running);
        });
    }
    drop(running);
    // Nothing is ever sent: this returns when the last task is gone.
    ended.recv().await;
    meter.sample()
}

/// What all threads of this process have used.
pub(super) fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = Duration::from_secs(time.tv_sec.unsigned_abs());
    seconds.saturating_add(Duration::from_nanos(time.tv_nsec.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use milonga_host::{Random, Tasks};

    use super::*;

    struct Nowhere;

    impl milonga_host::Network for Nowhere {
        fn call<'a>(
            &'a self,
            _: &'a milonga_host::Peer,
            _: milonga_host::net::Request,
            _: Duration,
        ) -> milonga_host::BoxFuture<'a, Result<milonga_host::net::Response, milonga_host::CallError>>
        {
            unreachable!("no call is made")
        }
    }

    fn host() -> Host {
        Host {
            net: Arc::new(Nowhere),
            clock: Clock::real(),
            random: Random::seeded(1),
            tasks: Tasks::new(),
        }
    }

    async fn loop_of(host: &Host, plan: Plan, milliseconds: u64) -> (Sample, u64) {
        let begun = Arc::new(AtomicU64::new(0));
        let (clock, count) = (host.clock.clone(), begun.clone());
        let sample = closed_loop(host, 4, plan, move |_| {
            let (clock, count) = (clock.clone(), count.clone());
            async move {
                count.fetch_add(1, Ordering::Relaxed);
                clock.sleep(Duration::from_millis(milliseconds)).await;
                true
            }
        })
        .await;
        (sample, begun.load(Ordering::Relaxed))
    }

    /// M2: what ends in the warm-up or after the window would make a short round look like a long one.
    #[tokio::test(start_paused = true)]
    async fn only_what_ends_inside_the_window_counts() {
        let plan = Plan {
            warm_up: Duration::from_millis(95),
            lasts: Duration::from_secs(1),
            operations: None,
        };
        let (sample, begun) = loop_of(&host(), plan, 10).await;

        assert_eq!(sample.operations, 4 * 100);
        assert_eq!(begun, 4 * 110);
        assert!((sample.per_second() - 400.0).abs() < 1.0);
        assert!(
            sample.latency.min() >= 9_900_000,
            "{}",
            sample.latency.min()
        );
    }

    /// M2.
    #[tokio::test(start_paused = true)]
    async fn a_round_by_count_ends_with_the_last_of_them() {
        let plan = Plan {
            warm_up: Duration::from_millis(95),
            lasts: Duration::ZERO,
            operations: Some(50),
        };
        let (sample, _) = loop_of(&host(), plan, 10).await;

        assert_eq!(sample.operations, 50);
        assert!(
            sample.seconds > 0.12 && sample.seconds < 0.15,
            "{}",
            sample.seconds
        );
    }

    /// M2: a cluster that fails fast must not look fast.
    #[tokio::test(start_paused = true)]
    async fn what_fails_is_an_error_and_no_operation() {
        let plan = Plan {
            warm_up: Duration::ZERO,
            lasts: Duration::from_millis(100),
            operations: None,
        };
        let sample = closed_loop(&host(), 1, plan, |_| async { false }).await;

        assert_eq!(sample.operations, 0);
        assert!(
            sample.errors > 1 && sample.errors < 100,
            "{}",
            sample.errors
        );
    }
}
