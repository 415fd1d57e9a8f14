//! What a history holds, and what the checker says of it.

#![allow(clippy::cast_precision_loss)] // Figures for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use milonga_host::{Clock, Random};
use serde::Serialize;

use super::file::{Kind, Recording};
use super::plant::{Plant, plant};
use crate::invariants::objects::{Truth, check};
use crate::object_history::{Asked, Change, Operation, Told};

/// How many violations people are shown.
const SHOWN: usize = 10;

/// What became of operations of one kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Outcomes {
    /// It did what it was asked.
    pub ok: u64,
    /// Under its idempotency key something had taken place before.
    pub repeated: u64,
    /// Something else was there than was expected, or was read.
    pub conflict: u64,
    /// It was told that nothing was done, because of trouble.
    pub refused: u64,
    /// Not known: the client was killed, or could not find out.
    pub unknown: u64,
}

impl Outcomes {
    fn count(&mut self, operation: &Operation) {
        let told = operation.told.as_ref().map(|(_, told)| told);
        *match told {
            Some(Told::Found(_) | Told::Contents(_) | Told::Done(..)) => &mut self.ok,
            Some(Told::Repeated(_)) => &mut self.repeated,
            Some(Told::Refused(Some(_)) | Told::Aborted(_)) => &mut self.conflict,
            Some(Told::Refused(None)) => &mut self.refused,
            Some(Told::Open | Told::Undecided(_)) | None => &mut self.unknown,
        } += 1;
    }

    fn of(&self) -> [u64; 5] {
        let Self {
            ok,
            repeated,
            conflict,
            refused,
            unknown,
        } = *self;
        [ok, repeated, conflict, refused, unknown]
    }
}

/// What was checked.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Checked {
    /// Single keys, scans and transactions that only read.
    pub reads: u64,
    /// Of them, those that promise everything acknowledged before.
    pub linearizable_reads: u64,
    /// Everything that writes.
    pub writes: u64,
    /// Of them, those that depend on nothing, or on all that they read.
    pub serializable_writes: u64,
    /// Watches.
    pub watches: u64,
    /// What they told.
    pub watched_changes: u64,
    /// What a replay of the log told.
    pub changes: u64,
}

/// All there is to say.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What is drawn is drawn from this.
    pub seed: u64,
    /// How many.
    pub operations: u64,
    /// Of a hundred.
    pub writes_percent: f64,
    /// By kind.
    pub by_kind: BTreeMap<Kind, Outcomes>,
    /// Of all kinds.
    pub outcomes: Outcomes,
    /// What was broken, and how often.
    pub faults: BTreeMap<String, u64>,
    /// How many client processes there were, one after another.
    pub client_processes: u64,
    /// For how long nobody was answered at all.
    pub longest_stall_ms: f64,
    /// For how long one client waited for one answer.
    pub longest_operation_ms: f64,
    /// For how long clients went on.
    pub seconds: f64,
    /// Of all clients.
    pub operations_per_second: f64,
    /// What was checked.
    pub checked: Checked,
    /// How long that took.
    pub check_seconds: f64,
    /// What was changed before it.
    pub planted: Option<String>,
    /// What cannot be.
    pub violations: Vec<String>,
}

impl Report {
    /// Checks what was recorded, one answer of it changed if that is asked for.
    ///
    /// # Errors
    /// If nothing can be changed so.
    pub fn of(
        mut recording: Recording,
        changes: Vec<Change>,
        change: Option<Plant>,
        seed: u64,
    ) -> anyhow::Result<Self> {
        let (clock, count) = (Clock::real(), changes.len() as u64);
        let began = clock.now();
        let truth = Truth::new(changes);
        let mut report = Self {
            seed,
            ..Self::default()
        };
        report.count(&recording);
        report.checked.changes = count;
        if let Some(change) = change {
            let random = Random::seeded(seed);
            report.planted = Some(plant(change, &mut recording, &truth, &random)?);
        }
        report.violations = check(&truth, &recording.operations, &recording.watches);
        report.check_seconds = clock.now().since(began).as_secs_f64();
        Ok(report)
    }

    fn count(&mut self, recording: &Recording) {
        let Recording {
            operations,
            kinds,
            watches,
        } = recording;
        let mut answers = vec![];
        for (operation, kind) in operations.iter().zip(kinds) {
            self.by_kind.entry(*kind).or_default().count(operation);
            self.outcomes.count(operation);
            let checked = &mut self.checked;
            match operation.what {
                Asked::Write { mode, .. } => {
                    checked.writes += 1;
                    let is_so = mode == crate::object_history::Mode::Serializable;
                    checked.serializable_writes += u64::from(is_so);
                }
                Asked::Read => {
                    checked.reads += 1;
                    checked.linearizable_reads += 1;
                }
                Asked::ReadStale | Asked::At { .. } => checked.reads += 1,
            }
            if let Some((told, _)) = &operation.told {
                answers.push(*told);
                let waited = ms(told.saturating_sub(operation.asked));
                self.longest_operation_ms = self.longest_operation_ms.max(waited);
            }
        }
        answers.sort_unstable();
        let stalls = answers.windows(2).map(|pair| pair[1] - pair[0]);
        self.longest_stall_ms = ms(stalls.max().unwrap_or(0));
        let first = operations.iter().map(|operation| operation.asked).min();
        let took = answers.last().copied().zip(first);
        self.seconds = took.map_or(0.0, |(last, first)| ms(last.saturating_sub(first)) / 1e3);
        self.operations = operations.len() as u64;
        let all = self.operations.max(1) as f64;
        self.operations_per_second = self.operations as f64 / self.seconds.max(1e-9);
        self.writes_percent = 100.0 * self.checked.writes as f64 / all;
        self.checked.watches = watches.len() as u64;
        let told = watches.iter().map(|watch| watch.changes.len() as u64);
        self.checked.watched_changes = told.sum();
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{:14} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
            "OPERATIONS", "OK", "REPEATED", "CONFLICT", "REFUSED", "UNKNOWN"
        );
        let mut row = |name: &str, outcomes: &Outcomes| {
            let [ok, repeated, conflict, refused, unknown] = outcomes.of();
            text.push_str(&format!(
                "{name:14} {ok:>9} {repeated:>9} {conflict:>9} {refused:>9} {unknown:>9}\n"
            ));
        };
        for (kind, outcomes) in &self.by_kind {
            row(&format!("{kind:?}").to_lowercase(), outcomes);
        }
        row("all", &self.outcomes);
        let Checked {
            reads,
            linearizable_reads,
            writes,
            serializable_writes,
            watches,
            watched_changes,
            changes,
        } = &self.checked;
        let mut line = |line: String| {
            // Text takes whatever comes.
            let _ = writeln!(text, "{line}");
        };
        line(format!(
            "{} operations in {:.1} s ({:.0} each second), {:.0} % of them writes; seed {}",
            self.operations,
            self.seconds,
            self.operations_per_second,
            self.writes_percent,
            self.seed
        ));
        let faults = self.faults.iter();
        let faults: Vec<String> = faults
            .map(|(what, times)| format!("{what} {times}"))
            .collect();
        line(format!("faults: {}", faults.join(", ")));
        line(format!(
            "longest stall of everybody {:.0} ms, longest operation {:.0} ms, {} client processes",
            self.longest_stall_ms, self.longest_operation_ms, self.client_processes
        ));
        line(format!(
            "checked against {changes} changes of a replay in {:.1} s: {reads} reads ({linearizable_reads} linearizable), \
             {writes} writes ({serializable_writes} serializable), {watches} watches with {watched_changes} changes",
            self.check_seconds
        ));
        if let Some(planted) = &self.planted {
            line(format!("planted: {planted}"));
        }
        for violation in self.violations.iter().take(SHOWN) {
            line(format!("VIOLATION: {violation}"));
        }
        match self.violations.len() {
            0 => line("no violation".to_owned()),
            count => line(format!("{count} violations")),
        }
        text
    }
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}
