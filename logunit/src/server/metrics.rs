//! What a log unit counts. Handles are made once: naming a metric costs more than counting.

use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use milonga_wire::{Refusal, ServerName, UnitReply, WriteOutcome};

use crate::storage::Scrubbed;
use crate::unit::{Batch, Unit};

/// The handles of one unit, which stands in the label `server`.
pub(super) struct Metrics {
    stored: Counter,
    taken: Counter,
    wrong_term: Counter,
    trimmed: Counter,
    unknown: Counter,
    full: Counter,
    failed: Counter,
    refused: Counter,
    write_bytes: Counter,
    reads: Counter,
    read_bytes: Counter,
    crc_errors: Counter,
    scrubbed_bytes: Counter,
    damaged: Gauge,
    fsync_duration: Histogram,
    fsync_entries: Histogram,
    trim_mark: Gauge,
    end: Gauge,
    term: Gauge,
    disk_bytes: Gauge,
}

/// What each metric means, for whoever reads `/metrics`.
fn describe() {
    describe_counter!(
        "milonga_logunit_writes_total",
        "Pieces written, and writes and fills refused, by their result."
    );
    describe_counter!(
        "milonga_logunit_write_bytes_total",
        "Bytes of records made durable."
    );
    describe_counter!("milonga_logunit_reads_total", "Requests to read answered.");
    describe_counter!(
        "milonga_logunit_read_bytes_total",
        "Bytes of records read for callers."
    );
    describe_counter!(
        "milonga_logunit_crc_errors_total",
        "Records found damaged when they were read."
    );
    describe_counter!(
        "milonga_logunit_scrubbed_bytes_total",
        "Bytes of records read again to verify them."
    );
    describe_gauge!(
        "milonga_logunit_damaged_positions",
        "Positions whose records are damaged, and not restored yet."
    );
    describe_histogram!(
        "milonga_logunit_fsync_duration_seconds",
        "How long it took to make a batch durable."
    );
    describe_histogram!(
        "milonga_logunit_fsync_batch_entries",
        "Entries made durable together."
    );
    describe_gauge!("milonga_logunit_trim_mark", "The first position kept.");
    describe_gauge!(
        "milonga_logunit_end",
        "The first position above everything held."
    );
    describe_gauge!("milonga_term", "The term of this server.");
    describe_gauge!("milonga_logunit_disk_bytes", "Bytes of its files.");
}

impl Metrics {
    pub(super) fn new(name: &ServerName) -> Self {
        describe();
        let server = name.to_string();
        let label = || server.clone();
        let writes = |result: &'static str| counter!("milonga_logunit_writes_total", "server" => label(), "result" => result);
        Self {
            stored: writes("ok"),
            taken: writes("written"),
            wrong_term: writes("wrong_term"),
            trimmed: writes("trimmed"),
            unknown: writes("unknown"),
            full: writes("full"),
            failed: writes("failed"),
            refused: writes("refused"),
            write_bytes: counter!("milonga_logunit_write_bytes_total", "server" => label()),
            reads: counter!("milonga_logunit_reads_total", "server" => label()),
            read_bytes: counter!("milonga_logunit_read_bytes_total", "server" => label()),
            crc_errors: counter!("milonga_logunit_crc_errors_total", "server" => label()),
            scrubbed_bytes: counter!("milonga_logunit_scrubbed_bytes_total", "server" => label()),
            damaged: gauge!("milonga_logunit_damaged_positions", "server" => label()),
            fsync_duration: histogram!("milonga_logunit_fsync_duration_seconds", "server" => label()),
            fsync_entries: histogram!("milonga_logunit_fsync_batch_entries", "server" => label()),
            trim_mark: gauge!("milonga_logunit_trim_mark", "server" => label()),
            end: gauge!("milonga_logunit_end", "server" => label()),
            term: gauge!("milonga_term", "server" => label()),
            disk_bytes: gauge!("milonga_logunit_disk_bytes", "server" => label()),
        }
    }

    /// One answer to a write.
    pub(super) fn wrote(&self, reply: &Result<UnitReply, Refusal>) {
        match reply {
            Ok(UnitReply::Written(outcomes)) => {
                for outcome in outcomes {
                    match outcome {
                        WriteOutcome::Stored | WriteOutcome::InReserve => self.stored.increment(1),
                        WriteOutcome::Taken { .. } => self.taken.increment(1),
                    }
                }
            }
            Ok(_) => {}
            Err(refusal) => self.refusal(refusal).increment(1),
        }
    }

    fn refusal(&self, refusal: &Refusal) -> &Counter {
        match refusal {
            Refusal::StaleTerm { .. } | Refusal::FutureTerm { .. } => &self.wrong_term,
            Refusal::Trimmed { .. } => &self.trimmed,
            Refusal::Unknown { .. } => &self.unknown,
            Refusal::DiskFull => &self.full,
            Refusal::DiskFailed { .. } => &self.failed,
            _ => &self.refused, // Many reasons, one label: a metric is no log.
        }
    }

    /// A batch about to be committed.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn batch(&self, batch: &Batch) {
        self.fsync_entries.record(batch.entries() as f64);
        self.write_bytes.increment(batch.bytes());
    }

    /// A commit that took so long.
    pub(super) fn committed(&self, took: Duration) {
        self.fsync_duration.record(took.as_secs_f64());
    }

    /// A read answered with so many bytes.
    pub(super) fn read(&self, bytes: usize) {
        self.reads.increment(1);
        self.read_bytes.increment(bytes as u64);
    }

    /// Positions found damaged.
    pub(super) fn damaged(&self, count: u64) {
        self.crc_errors.increment(count);
    }

    /// A step of scrubbing, after which so many positions are damaged.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn scrubbed(&self, scrubbed: &Scrubbed, damaged: u64) {
        self.scrubbed_bytes.increment(scrubbed.bytes);
        self.crc_errors.increment(scrubbed.damaged);
        self.damaged.set(damaged as f64);
    }

    /// Where the unit stands.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn state(&self, unit: &Unit) {
        self.trim_mark.set(unit.trimmed().0 as f64);
        self.end.set(unit.end().0 as f64);
        self.term.set(unit.term().0 as f64);
    }

    /// Bytes on its disk.
    #[allow(clippy::cast_precision_loss)]
    pub(super) fn disk(&self, bytes: u64) {
        self.disk_bytes.set(bytes as f64);
    }
}
