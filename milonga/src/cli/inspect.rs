//! `milonga inspect`: prints and checks a log unit's directory while nothing runs on it.

use std::fmt::Write;
use std::path::PathBuf;

use milonga_host::fs::FsDisk;
use milonga_logunit::store::inspect::{self, FileReport, Report, Violation};

use super::Context;
use crate::failure::{Code, Failure, Outcome};
use crate::output::{bytes, json, line, table};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  milonga inspect milonga-dev/unit-1
  milonga inspect --records -o json /var/lib/milonga/unit-1")]
pub(super) struct Inspect {
    /// The directory.
    dir: PathBuf,
    /// Prints every record's position, kind, stamp and length too.
    #[arg(long)]
    records: bool,
    /// Cuts off what a crash left half written, as a start would. Never by default.
    #[arg(long, conflicts_with = "records")]
    repair: bool,
}

impl Inspect {
    pub(super) fn run(&self, context: &Context) -> Outcome {
        let disk = FsDisk::existing(&self.dir).map_err(|why| Failure::file(&self.dir, why))?;
        let about = |error| Failure::from(error).about(self.dir.display());
        let report = if self.records {
            let mut printed = Ok(());
            let mut show = |shown: &inspect::Shown| {
                if printed.is_ok() {
                    printed = line(&json(shown));
                }
            };
            let report = inspect::walk(&disk, &mut show).map_err(about)?;
            printed?;
            report
        } else {
            inspect::inspect(&disk, self.repair).map_err(about)?
        };
        context.output.one(&report, || text(&report))?;
        match report.violations.len() {
            0 => Ok(()),
            count => Err(Failure::new(
                Code::Damage,
                format!(
                    "{count} violations in {}; restore the unit from its peers",
                    self.dir.display()
                ),
            )),
        }
    }
}

fn text(report: &Report) -> String {
    let head = format!(
        "{} of cluster {}\nterm {}   trimmed {}   end {}   settled {}   {} records checked   {} spare files\n\n",
        report.name,
        report.cluster,
        report.term,
        report.trimmed,
        report.end,
        report.settled,
        report.checked,
        report.spares
    );
    let columns = [
        "FILE",
        "BYTES",
        "USED",
        "BATCHES",
        "RECORDS",
        "JUNK",
        "POSITIONS",
        "FOOTER",
    ];
    let mut text = head + &table(&columns, report.files.iter().map(row));
    for (word, found) in [("violation", &report.violations), ("note", &report.notes)] {
        for Violation { file, offset, what } in found {
            let _ = write!(text, "\n{word}: {file} at {offset}: {what}");
        }
    }
    text
}

fn row(file: &FileReport) -> Vec<String> {
    vec![
        file.number.to_string(),
        bytes(file.bytes),
        bytes(file.data_bytes),
        file.batches.to_string(),
        file.records.to_string(),
        file.junk.to_string(),
        file.span.map_or("-".to_owned(), |span| span.to_string()),
        file.footer.to_owned(),
    ]
}
