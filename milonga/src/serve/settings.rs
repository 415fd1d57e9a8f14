//! Where a server's settings come from: its file, and flags, which come first.
//!
//! Keys are written with hyphens, in the file as on the command line. Paths in a file are relative to the file's own
//! folder. `certs = DIR` stands for `ca`, `cert` and `key` as `milonga certs` lays them out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::failure::{Failure, Outcome};

/// Keys that name files or folders.
const PATHS: [&str; 7] = [
    "dir",
    "ca",
    "cert",
    "key",
    "certs",
    "caretaker-cert",
    "caretaker-key",
];

/// Settings before the service itself has seen them.
#[derive(Debug)]
pub(crate) struct Settings {
    table: Table,
    file: Option<PathBuf>,
}

impl Settings {
    /// What `flags` say, else what `file` says.
    pub(crate) fn gather(file: Option<&Path>, flags: Table) -> Outcome<Self> {
        let mut table = match file {
            Some(file) => read(file)?,
            None => Table::new(),
        };
        table.extend(flags);
        let mut settings = Self {
            table,
            file: file.map(Path::to_owned),
        };
        settings.spread_certs()?;
        settings.complete_admin();
        Ok(settings)
    }

    /// Takes a path out that the service itself does not know.
    pub(crate) fn take_path(&mut self, key: &str) -> Outcome<Option<PathBuf>> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::String(path)) => Ok(Some(path.into())),
            Some(other) => {
                Err(self.wrong(format!("`{key}` is {other}; expected a path in quotes")))
            }
        }
    }

    /// Takes milliseconds out that the service itself does not know.
    pub(crate) fn take_millis(&mut self, key: &str) -> Outcome<Option<Duration>> {
        match self.table.remove(key) {
            None => Ok(None),
            Some(Value::Integer(count @ 1..)) => {
                Ok(Some(Duration::from_millis(count.unsigned_abs())))
            }
            Some(other) => Err(self.wrong(format!(
                "`{key}` is {other}; expected at least 1 (milliseconds)"
            ))),
        }
    }

    /// A key's text, left where it is.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.table.get(key)?.as_str()
    }

    /// As the service reads them.
    pub(crate) fn read<T: DeserializeOwned>(mut self) -> Outcome<T> {
        let read = std::mem::take(&mut self.table).try_into();
        read.map_err(|error: toml::de::Error| self.wrong(one_line(&error.to_string())))
    }

    /// What is wrong, with the file if there is one.
    fn wrong(&self, what: String) -> Failure {
        let failure = Failure::failed(what);
        match &self.file {
            Some(file) => failure.about(file.display()),
            None => failure,
        }
    }

    /// A port alone is one of the loopback address, whichever service reads it.
    fn complete_admin(&mut self) {
        let port = match self.table.get("admin") {
            Some(Value::String(text)) => text.parse::<u16>().ok(),
            Some(Value::Integer(port)) => u16::try_from(*port).ok(),
            Some(_) | None => None,
        };
        if let Some(port) = port {
            let address = Value::String(format!("127.0.0.1:{port}"));
            self.table.insert("admin".to_owned(), address);
        }
    }

    fn spread_certs(&mut self) -> Outcome {
        let Some(certs) = self.take_path("certs")? else {
            return Ok(());
        };
        let name = self.text("name").unwrap_or("server").to_owned();
        let files = [
            ("ca", "ca.pem".to_owned()),
            ("cert", format!("{name}.pem")),
            ("key", format!("{name}.key")),
        ];
        for (key, file) in files {
            let path = certs.join(file).to_string_lossy().into_owned();
            self.table.entry(key).or_insert_with(|| Value::String(path));
        }
        Ok(())
    }
}

/// A configuration file, its paths no longer relative to it.
fn read(file: &Path) -> Outcome<Table> {
    let text = std::fs::read_to_string(file).map_err(|why| Failure::file(file, why))?;
    let parsed: Table = text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.unwrap_or_default().matches('\n').count() + 1;
        let why = one_line(error.message());
        Failure::failed(format!("line {line}: {why}")).about(file.display())
    })?;
    let folder = file.parent().unwrap_or_else(|| Path::new(""));
    let mut table = Table::new();
    for (key, value) in parsed {
        if key.contains('_') {
            let hyphened = key.replace('_', "-");
            let text = format!("unknown key `{key}`; expected hyphens in keys; try `{hyphened}`");
            return Err(Failure::failed(text).about(file.display()));
        }
        let value = match value {
            Value::String(path) if PATHS.contains(&key.as_str()) => {
                Value::String(folder.join(path).to_string_lossy().into_owned())
            }
            other => other,
        };
        table.insert(key, value);
    }
    Ok(table)
}

/// Parsers draw pictures; an error is one sentence.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    lines.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(text: &str, flags: Table) -> Settings {
        try_gather(text, flags).unwrap()
    }

    fn try_gather(text: &str, flags: Table) -> Outcome<Settings> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.toml");
        std::fs::write(&file, text).unwrap();
        Settings::gather(Some(&file), flags)
    }

    #[test]
    fn certs_stand_for_three_files_unless_one_is_named() {
        let text = "name = \"u-1\"\ncerts = \"/c\"\nkey = \"/k\"\nfile-bytes = 1\n";
        let flags: Table = "file-bytes = 2".parse().unwrap();
        let settings = gather(text, flags);

        assert_eq!(settings.text("ca"), Some("/c/ca.pem"));
        assert_eq!(settings.text("cert"), Some("/c/u-1.pem"));
        assert_eq!(settings.text("key"), Some("/k"));
        assert_eq!(settings.table["file-bytes"].as_integer(), Some(2));
    }

    #[test]
    fn an_admin_port_alone_is_one_of_the_loopback_address() {
        for text in [
            "admin = \"9701\"",
            "admin = 9701",
            "admin = \"127.0.0.1:9701\"",
        ] {
            let settings = gather(text, Table::new());
            assert_eq!(settings.text("admin"), Some("127.0.0.1:9701"), "{text}");
        }
    }

    #[test]
    fn milliseconds_are_taken_out_and_are_at_least_one() {
        let mut settings = gather("steady-ms = 2000", Table::new());
        let taken = settings.take_millis("steady-ms").unwrap();
        assert_eq!(taken, Some(Duration::from_secs(2)));
        assert_eq!(settings.take_millis("steady-ms").unwrap(), None);
        for text in ["steady-ms = 0", "steady-ms = \"soon\""] {
            let refused = gather(text, Table::new()).take_millis("steady-ms");
            let error = refused.unwrap_err().to_string();
            assert!(
                error.contains("`steady-ms` is ") && error.contains("s.toml"),
                "{error}"
            );
        }
    }

    /// One way to write a key, the flags' way, and every mistake in one sentence that names key and file.
    #[test]
    fn a_key_that_is_unknown_misspelt_or_wrong_is_named_with_its_file() {
        let refused = |text: &str| {
            let settings = try_gather(text, Table::new());
            let read = settings.and_then(Settings::read::<milonga_sequencer::Settings>);
            read.unwrap_err().to_string()
        };
        for (text, word) in [
            ("colour = 1", "unknown field `colour`"),
            ("colour = 1", "`streams-max`"),
            ("streams_max = 100", "try `streams-max`"),
            ("streams-max = \"many\"", "`streams-max`"),
            ("certs = 7", "`certs` is 7"),
            ("\nname = \"u\n", "line 2: "),
        ] {
            let error = refused(text);
            assert!(error.contains(word) && error.contains("s.toml"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let read = gather("streams-max = 100", Table::new())
            .read::<milonga_sequencer::Settings>()
            .unwrap();
        assert_eq!(read.streams_max, Some(100));
    }
}
