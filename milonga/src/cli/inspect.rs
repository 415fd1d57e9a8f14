//! `milonga inspect`: prints and checks a server's directory while nothing runs on it.

use std::fmt::Write;
use std::io::ErrorKind;
use std::path::PathBuf;

use milonga_host::fs::FsDisk;
use milonga_layout::{Acceptor, Format, OpenError as Refused, Store};
use milonga_logunit::store::OpenError;
use milonga_logunit::store::inspect::{self, FileReport, Report, Violation};
use milonga_wire::{ClusterId, Identity, Term};
use serde::Serialize;

use super::Context;
use crate::failure::{Code, Failure, Outcome};
use crate::output::{bytes, json, line, table};
use crate::serve::Role;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  milonga inspect milonga-dev/unit-1
  milonga inspect --records -o json /var/lib/milonga/unit-1")]
pub(super) struct Inspect {
    /// The directory.
    dir: PathBuf,
    /// Prints every record's position, kind, stamp and length too (of a log unit).
    #[arg(long)]
    records: bool,
    /// Cuts off what a crash left half written, as a start would. Never by default.
    #[arg(long, conflicts_with = "records")]
    repair: bool,
}

/// A log unit's directory, as it is printed.
#[derive(Serialize)]
struct Unit<'a> {
    role: Role,
    #[serde(flatten)]
    report: &'a Report,
}

/// A layout server's directory, as it is printed.
#[derive(Serialize)]
struct LayoutServer {
    role: Role,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<ClusterId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<Identity>,
    /// Decided layouts, from term 0 on.
    layouts: usize,
    /// The newest decided term.
    term: Option<Term>,
    /// The term of its last vote.
    vote: Option<Term>,
    bytes: u64,
    violations: Vec<Violation>,
}

impl Inspect {
    pub(super) fn run(&self, context: &Context) -> Outcome {
        let disk = FsDisk::existing(&self.dir).map_err(|why| {
            let text = format!(
                "cannot use {}: {why}; expected a server's directory",
                self.dir.display()
            );
            match why.kind() {
                ErrorKind::NotFound => Failure::new(Code::NotFound, text),
                _ => Failure::failed(text),
            }
        })?;
        let found = match self.log_unit(&disk)? {
            Err(OpenError::OtherKind) => return self.layout_server(context, &disk),
            found => found,
        };
        let report = found.map_err(|error| {
            let code = match &error {
                OpenError::DamagedIdentity => Code::Damage,
                OpenError::Empty => Code::NotFound,
                _ => Code::Failed,
            };
            Failure::new(code, error).about(self.dir.display())
        })?;
        let unit = Unit {
            role: Role::LogUnit,
            report: &report,
        };
        context.output.one(&unit, || text(&report))?;
        self.verdict(report.violations.len(), "restore the unit from its peers")
    }

    fn log_unit(&self, disk: &FsDisk) -> Outcome<Result<Report, OpenError>> {
        if !self.records {
            return Ok(inspect::inspect(disk, self.repair));
        }
        let mut printed = Ok(());
        let mut show = |shown: &inspect::Shown| {
            if printed.is_ok() {
                printed = line(&json(shown));
            }
        };
        let report = inspect::walk(disk, &mut show);
        printed.map(|()| report)
    }

    /// The directory is locked already: a log unit's inspection was tried on it.
    fn layout_server(&self, context: &Context, disk: &FsDisk) -> Outcome {
        let about = |error| Failure::from(error).about(self.dir.display());
        let report = match layout_server(disk) {
            Ok(report) => report,
            Err(error @ (Refused::Damaged { .. } | Refused::History(_))) => {
                LayoutServer::damaged(&error)
            }
            Err(error) => return Err(about(error)),
        };
        context.output.one(&report, || report.text())?;
        let hint = "move the directory away, and give the cluster another layout server";
        self.verdict(report.violations.len(), hint)
    }

    fn verdict(&self, violations: usize, hint: &str) -> Outcome {
        let dir = self.dir.display();
        match violations {
            0 => Ok(()),
            count => Err(Failure::new(
                Code::Damage,
                format!("{count} violations in {dir}; {hint}"),
            )),
        }
    }
}

/// Reads every file, and checks that each decision follows from the one before it.
fn layout_server(disk: &FsDisk) -> Result<LayoutServer, Refused> {
    let found = Store::read(disk)?.ok_or_else(|| Refused::Foreign {
        file: "identity".to_owned(),
    })?;
    let Format {
        cluster,
        name,
        identity,
    } = found.format;
    let vote = found.vote.as_ref().map(|vote| vote.term);
    let layouts = found.decided.len();
    Acceptor::recover(cluster, identity, found.decided, found.vote)?;
    Ok(LayoutServer {
        role: Role::Layout,
        name: Some(name.to_string()),
        cluster: Some(cluster),
        identity: Some(identity),
        layouts,
        term: (layouts as u64).checked_sub(1).map(Term),
        vote,
        bytes: found.bytes,
        violations: vec![],
    })
}

impl LayoutServer {
    fn damaged(error: &Refused) -> Self {
        let file = match error {
            Refused::Damaged { file, .. } => file.clone(),
            _ => String::new(),
        };
        let violation = Violation {
            file,
            offset: 0,
            what: error.to_string(),
        };
        Self {
            role: Role::Layout,
            name: None,
            cluster: None,
            identity: None,
            layouts: 0,
            term: None,
            vote: None,
            bytes: 0,
            violations: vec![violation],
        }
    }

    fn text(&self) -> String {
        let number = |term: Option<Term>| term.map_or("-".to_owned(), |term| term.to_string());
        let mut text = match (&self.name, self.cluster) {
            (Some(name), Some(cluster)) => format!(
                "{name} of cluster {cluster}, a layout server\nterm {}   voted in {}   {} layouts   {}",
                number(self.term),
                number(self.vote),
                self.layouts,
                bytes(self.bytes)
            ),
            _ => "a layout server".to_owned(),
        };
        for violation in &self.violations {
            let _ = write!(text, "\nviolation: {}", violation.what);
        }
        text
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
