//! What commands print: tables for people, JSON for programs. Data goes to stdout, talk to stderr.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::failure::{Failure, Outcome};

/// How results are printed.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON object, or one per line for lists.
    Json,
}

/// Stdout, and how to print there.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    /// Prints in `format`.
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether a program reads it.
    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// One result: `object` as JSON, or `text` for people.
    ///
    /// # Errors
    /// If stdout is gone.
    pub(crate) fn one(self, object: &impl Serialize, text: impl FnOnce() -> String) -> Outcome {
        match self.format {
            Format::Json => line(&json(object)),
            Format::Table => line(&text()),
        }
    }

    /// A list: each of `objects` as a line of JSON, or `rows` under `head` for people.
    ///
    /// # Errors
    /// If stdout is gone.
    pub(crate) fn list<T: Serialize>(
        self,
        objects: &[T],
        head: &[&str],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Outcome {
        match self.format {
            Format::Json => objects.iter().try_for_each(|object| line(&json(object))),
            Format::Table => line(&table(head, objects.iter().map(row))),
        }
    }
}

/// A table without lines between its rows.
pub(crate) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(head.to_vec());
    rows.for_each(|row| {
        table.add_row(row);
    });
    table.trim_fmt()
}

/// `object` as one line of JSON.
pub(crate) fn json(object: &impl Serialize) -> String {
    serde_json::to_string(object).expect("results have string keys and finite numbers")
}

/// One line to stdout.
///
/// # Errors
/// If stdout is gone.
pub(crate) fn line(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
        .or_else(ended)
}

/// Bytes as they are, and nothing else.
///
/// # Errors
/// If stdout is gone.
pub(crate) fn raw(bytes: &[u8]) -> Outcome {
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.or_else(ended)
}

/// A reader that has seen enough (`| head`) is no failure of ours.
///
/// # Errors
/// If stdout failed for another reason.
#[allow(clippy::needless_pass_by_value)] // Fits `or_else`.
pub(crate) fn ended(error: io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::BrokenPipe => std::process::exit(0),
        _ => Err(Failure::failed(format!("cannot write to stdout: {error}"))),
    }
}

/// One line to stderr, for people.
pub(crate) fn say(text: impl std::fmt::Display) {
    // Nobody is left to be told that stderr is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A bar on stderr, hidden unless someone watches.
pub(crate) fn progress(total: Option<u64>, unit: &str) -> indicatif::ProgressBar {
    if !io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    let template = match total {
        Some(_) => format!("{{bar:30}} {{pos}}/{{len}} {unit} ({{per_sec}}, {{eta}} left)"),
        None => format!("{{spinner}} {{pos}} {unit} ({{per_sec}})"),
    };
    let style = indicatif::ProgressStyle::with_template(&template)
        .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
    let bar = match total {
        Some(total) => indicatif::ProgressBar::new(total),
        None => indicatif::ProgressBar::no_length(),
    };
    bar.with_style(style)
}

/// Bytes as people write them.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_with_the_largest_unit_that_fits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
    }
}
