//! Load in a closed loop: so many tasks, each with one operation under way, and what they saw.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use futures_util::future::join_all;
use hdrhistogram::Histogram;
use milonga_host::{Clock, Moment};
use serde::Serialize;

use crate::failure::Outcome;

/// The longest latency told apart, in microseconds.
const LATENCY_MAX_US: u64 = 60_000_000;

/// How much load.
#[derive(Copy, Clone, Debug)]
pub(super) struct Load {
    /// Operations that count.
    pub(super) count: u64,
    /// Operations before them that do not.
    pub(super) warm_up: u64,
    /// Operations under way at once.
    pub(super) concurrency: usize,
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measured {
    pub(super) ops: u64,
    pub(super) seconds: f64,
    pub(super) ops_per_s: f64,
    pub(super) mb_per_s: f64,
    pub(super) latency_us: Latency,
    pub(super) errors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_error: Option<String>,
}

/// Of one operation, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) p50: u64,
    pub(super) p90: u64,
    pub(super) p99: u64,
    pub(super) p999: u64,
    pub(super) max: u64,
}

/// What all tasks share.
struct Tally {
    clock: Clock,
    load: Load,
    next: Cell<u64>,
    began: Cell<Option<Moment>>,
    histogram: RefCell<Histogram<u64>>,
    errors: Cell<u64>,
    first_error: RefCell<Option<String>>,
}

/// Runs operations until all have ended. Each stands for `records` of `bytes` bytes.
pub(super) async fn run<F, Fut>(
    clock: &Clock,
    load: Load,
    records: u64,
    bytes: u64,
    operation: F,
) -> Measured
where
    F: Fn(u64) -> Fut,
    Fut: Future<Output = Outcome>,
{
    let histogram = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)
        .expect("the bounds are in order and three digits are allowed");
    let tally = Rc::new(Tally {
        clock: clock.clone(),
        load,
        next: Cell::new(0),
        began: Cell::new(None),
        histogram: RefCell::new(histogram),
        errors: Cell::new(0),
        first_error: RefCell::new(None),
    });
    let workers = (0..load.concurrency).map(|_| tally.work(&operation));
    join_all(workers).await;
    tally.measured(records, bytes)
}

impl Tally {
    async fn work<F, Fut>(&self, operation: &F)
    where
        F: Fn(u64) -> Fut,
        Fut: Future<Output = Outcome>,
    {
        loop {
            let number = self.next.get();
            if number >= self.load.warm_up + self.load.count {
                return;
            }
            self.next.set(number + 1);
            let start = self.clock.now();
            let counts = number >= self.load.warm_up;
            if counts && self.began.get().is_none() {
                self.began.set(Some(start));
            }
            let outcome = operation(number).await;
            let took = self.clock.now().since(start).as_micros() as u64;
            match outcome {
                Ok(()) if counts => {
                    self.histogram.borrow_mut().saturating_record(took.max(1));
                }
                Ok(()) => {}
                Err(failure) => {
                    self.errors.set(self.errors.get() + 1);
                    self.first_error
                        .borrow_mut()
                        .get_or_insert_with(|| failure.to_string());
                }
            }
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn measured(&self, records: u64, bytes: u64) -> Measured {
        let began = self.began.get();
        let seconds = began.map_or(0.0, |began| self.clock.now().since(began).as_secs_f64());
        let histogram = self.histogram.borrow();
        let ops = histogram.len() * records;
        let per_s = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        let at = |quantile| histogram.value_at_quantile(quantile);
        Measured {
            ops,
            seconds,
            ops_per_s: per_s(ops as f64),
            mb_per_s: per_s((ops * bytes) as f64 / 1e6),
            latency_us: Latency {
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: histogram.max(),
            },
            errors: self.errors.get(),
            first_error: self.first_error.borrow().clone(),
        }
    }
}
