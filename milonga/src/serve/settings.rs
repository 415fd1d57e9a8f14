//! Where a server's settings come from: its file, and flags, which come first.
//!
//! Keys are written with hyphens, in the file as on the command line; underscores do too. Paths in a file are relative
//! to the file's own folder. `certs = DIR` stands for `ca`, `cert` and `key` as `milonga certs` lays them out.

use std::path::{Path, PathBuf};

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

/// How a service's own settings write their keys.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Keys {
    Hyphens,
    Underscores,
}

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
        settings.spread_certs();
        settings.complete_admin();
        Ok(settings)
    }

    /// Takes a path out that the service itself does not know.
    pub(crate) fn take_path(&mut self, key: &str) -> Option<PathBuf> {
        self.table.remove(key)?.as_str().map(PathBuf::from)
    }

    /// A key's text, left where it is.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.table.get(key)?.as_str()
    }

    /// As the service reads them.
    pub(crate) fn read<T: DeserializeOwned>(self, keys: Keys) -> Outcome<T> {
        let table: Table = self
            .table
            .into_iter()
            .map(|(key, value)| match keys {
                Keys::Hyphens => (key, value),
                Keys::Underscores => (key.replace('-', "_"), value),
            })
            .collect();
        table.try_into().map_err(|error: toml::de::Error| {
            let failure = Failure::failed(one_line(&error.to_string()));
            match self.file {
                Some(file) => failure.about(file.display()),
                None => failure,
            }
        })
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

    fn spread_certs(&mut self) {
        let Some(certs) = self.take_path("certs") else {
            return;
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
    }
}

/// A configuration file, its keys hyphenated and its paths no longer relative to it.
fn read(file: &Path) -> Outcome<Table> {
    let text = std::fs::read_to_string(file).map_err(|why| Failure::file(file, why))?;
    let parsed: Table = text.parse().map_err(|error: toml::de::Error| {
        Failure::failed(one_line(&error.to_string())).about(file.display())
    })?;
    let folder = file.parent().unwrap_or_else(|| Path::new(""));
    let mut table = Table::new();
    for (key, value) in parsed {
        let key = key.replace('_', "-");
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
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.toml");
        std::fs::write(&file, text).unwrap();
        Settings::gather(Some(&file), flags).unwrap()
    }

    #[test]
    fn certs_stand_for_three_files_unless_one_is_named() {
        let text = "name = \"u-1\"\ncerts = \"/c\"\nkey = \"/k\"\nfile_bytes = 1\n";
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
    fn an_unknown_key_is_named_with_its_file() {
        let unknown = gather("colour = 1", Table::new());
        let error = unknown
            .read::<milonga_sequencer::Settings>(Keys::Underscores)
            .unwrap_err();
        assert!(error.to_string().contains("colour"), "{error}");
        assert!(error.to_string().contains("s.toml"), "{error}");
    }
}
