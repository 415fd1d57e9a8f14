//! Reports: what is printed of a measurement, in the keys that scripts rely on.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::meter::Sample;

/// One measurement.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Which: `append`, `read`, `token` or `baseline`.
    pub bench: &'static str,
    /// Operations that succeeded, over all rounds.
    pub ops: u64,
    /// How long that took.
    pub seconds: f64,
    /// Operations a second.
    pub ops_per_s: f64,
    /// Payload bytes a second, in millions.
    pub mb_per_s: f64,
    /// From the start of an operation to its end.
    pub latency_us: Latency,
    /// Processor time of the client process for one operation.
    pub client_cpu_us: f64,
    /// Operations that failed.
    pub errors: u64,
    /// The median of the rounds' `ops_per_s`, to that of the baseline's rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Processor time of the client process for one operation of the baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline_client_cpu_us: Option<f64>,
    /// The baseline's latencies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline_latency_us: Option<Latency>,
    /// Chains of the open segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chains: Option<usize>,
    /// Units of a chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<usize>,
    /// When data is durable: before each answer.
    pub fsync: &'static str,
    /// Bytes of a record.
    pub size: u32,
    /// Operations in flight.
    pub concurrency: u32,
    /// Records of one operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<u32>,
    /// Streams that appends took turns in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub streams: Option<u32>,
    /// Each round.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<Round>,
    /// Reads that each unit answered meanwhile: how far they spread over the replicas.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub units: Vec<UnitReads>,
    /// What the machine does by itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<Line>,
}

/// One round.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Operations a second.
    pub ops_per_s: f64,
    /// The same of the baseline's round before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline_ops_per_s: Option<f64>,
}

/// One unit's share of the reads.
#[derive(Clone, Debug, Serialize)]
pub struct UnitReads {
    /// The unit.
    pub name: String,
    /// Requests to read that it answered during the measurement.
    pub reads: u64,
}

/// One figure of the machine.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// `ping`, `echo`, `echo-tasks`, `sync`, `path` or `path-tasks`.
    pub what: &'static str,
    /// Bytes of a request or record.
    pub size: u32,
    /// Operations in flight, or records of one sync.
    pub concurrency: u32,
    /// Operations a second.
    pub ops_per_s: f64,
    /// Processor time of the client process for one operation (of a sync: for the whole group).
    pub client_cpu_us: f64,
    /// From start to end; of a sync, that of the whole group.
    pub latency_us: Latency,
}

/// Percentiles, in microseconds.
#[derive(Copy, Clone, Debug, Default, Serialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// 90 of 100 take no longer.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Latency {
    pub(super) fn of(sample: &Sample) -> Self {
        let at = |quantile| micros(sample.latency.value_at_quantile(quantile));
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(sample.latency.max()),
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn micros(nanos: u64) -> f64 {
    (nanos / 100) as f64 / 10.0
}

impl Report {
    pub(super) fn of(sample: &Sample) -> Self {
        Self {
            ops: sample.operations,
            seconds: sample.seconds,
            ops_per_s: sample.per_second(),
            latency_us: Latency::of(sample),
            client_cpu_us: sample.cpu_us(),
            errors: sample.errors,
            fsync: "every commit",
            ..Self::default()
        }
    }

    /// Notes how much payload one operation moves.
    pub(super) fn sized(mut self, size: u32, records: u32) -> Self {
        self.size = size;
        self.mb_per_s = self.ops_per_s * f64::from(size) * f64::from(records) / 1e6;
        self
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut lines = vec![];
        if self.ops > 0 {
            let latency = &self.latency_us;
            lines.push(format!(
                "{}: {:.0} ops/s, {:.1} MB/s; p50 {} µs, p90 {}, p99 {}, p99.9 {}, max {}; {} ops in {:.1} s, {} errors; client CPU {:.2} µs/op",
                self.bench, self.ops_per_s, self.mb_per_s, latency.p50, latency.p90, latency.p99, latency.p999,
                latency.max, self.ops, self.seconds, self.errors, self.client_cpu_us
            ));
        }
        if let (Some(ratio), Some(base)) = (self.ratio, &self.baseline_latency_us) {
            lines.push(format!(
                "{ratio:.2} of the baseline: p50 {} µs, client CPU {:.2} µs/op",
                base.p50,
                self.baseline_client_cpu_us.unwrap_or(0.0)
            ));
        }
        for unit in &self.units {
            lines.push(format!("{}: {} reads", unit.name, unit.reads));
        }
        for line in &self.lines {
            lines.push(format!(
                "{:<11} {:>6} B  c={:<5} {:>10.0} /s   p50 {:>8} µs   p99 {:>8} µs   CPU {:>7.2} µs",
                line.what, line.size, line.concurrency, line.ops_per_s, line.latency_us.p50, line.latency_us.p99,
                line.client_cpu_us
            ));
        }
        lines.join("\n")
    }
}

/// All rounds as one.
pub(super) fn merged(samples: Vec<Sample>) -> Sample {
    let empty = Sample {
        operations: 0,
        errors: 0,
        seconds: 0.0,
        cpu: Duration::ZERO,
        cpu_ends: 0,
        latency: Histogram::new(3).expect("three digits are allowed"),
    };
    samples.into_iter().fold(empty, |mut all, sample| {
        all.operations += sample.operations;
        all.errors += sample.errors;
        all.seconds += sample.seconds;
        all.cpu += sample.cpu;
        all.cpu_ends += sample.cpu_ends;
        all.latency
            .add(&sample.latency)
            .expect("a histogram without bounds grows");
        all
    })
}

/// The middle one, or the mean of the two in the middle.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One round that a neighbour disturbed must not decide a ratio.
    #[test]
    fn the_median_ignores_an_outlier_on_either_side() {
        assert_eq!(median(&[]).to_bits(), 0.0_f64.to_bits());
        assert!((median(&[1000.0, 2.0, 3.0]) - 3.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 2.0, 3.0, 0.1]) - 2.5).abs() < f64::EPSILON);
    }

    #[test]
    fn rounds_add_up_and_keep_their_percentiles() {
        let round = |nanos: u64| {
            let mut latency = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
            latency.record_n(nanos, 100).unwrap();
            Sample {
                operations: 100,
                errors: 1,
                seconds: 2.0,
                cpu: Duration::from_micros(200),
                cpu_ends: 100,
                latency,
            }
        };
        let report = Report::of(&merged(vec![round(1_000_000), round(3_000_000)])).sized(100, 2);

        assert_eq!((report.ops, report.errors), (200, 2));
        assert!((report.client_cpu_us - 2.0).abs() < 1e-9);
        assert!((report.ops_per_s - 50.0).abs() < 1e-9);
        assert!((report.mb_per_s - 0.01).abs() < 1e-9);
        assert!((report.latency_us.p50 - 1_000.0).abs() < 2.0);
        assert!((report.latency_us.p99 - 3_000.0).abs() < 5.0);
    }
}
