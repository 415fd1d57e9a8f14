//! How a client finds its cluster: a small file that names the layout servers and this client's certificate.
//!
//! The only file here that names the file system.

use std::path::{Path, PathBuf};
use std::time::Duration;

use milonga_wire::Address;
use serde::{Deserialize, Serialize};

use crate::options::Options;

/// What `milonga.toml` says. Relative paths are relative to the file's own folder.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClusterConfig {
    /// Layout servers: as many as there are; a majority must answer.
    pub layout: Vec<Address>,
    /// The cluster's certificate authority (PEM).
    pub ca: PathBuf,
    /// This client's certificate (PEM).
    pub cert: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
    /// How long an operation may take, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// How long one call may take, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_ms: Option<u64>,
    /// How long a log unit that was left out must have answered before this client, if it may, takes it back, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steady_ms: Option<u64>,
}

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(
        "cannot read {path}: {why}; expected a cluster file, as `milonga dev` writes one; try --cluster FILE"
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{path}: {why}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with the key.
        why: String,
    },
}

impl ClusterConfig {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|why| ConfigError::Unreadable {
            path: path.to_owned(),
            why,
        })?;
        let folder = path.parent().unwrap_or_else(|| Path::new("."));
        Self::parse(&text, folder).map_err(|why| ConfigError::Invalid {
            path: path.to_owned(),
            why,
        })
    }

    /// Parses the text of such a file that lies in `folder`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let mut config: Self = toml::from_str(text).map_err(|error| sentence(text, &error))?;
        let waits = [
            ("deadline-ms", config.deadline_ms),
            ("call-ms", config.call_ms),
            ("steady-ms", config.steady_ms),
        ];
        for (key, wait) in waits {
            if wait == Some(0) {
                return Err(format!("key `{key}` is 0; expected at least 1"));
            }
        }
        if config.layout.is_empty() {
            return Err(
                "key `layout` is empty; expected the addresses of the layout servers".to_owned(),
            );
        }
        for path in [&mut config.ca, &mut config.cert, &mut config.key] {
            *path = folder.join(&path);
        }
        Ok(config)
    }

    /// The options it asks for.
    pub fn options(&self) -> Options {
        let mut options = Options::default();
        if let Some(deadline) = self.deadline_ms {
            options.deadline = Duration::from_millis(deadline);
        }
        if let Some(call) = self.call_ms {
            options.call = Duration::from_millis(call);
        }
        if let Some(steady) = self.steady_ms {
            options.steady = Duration::from_millis(steady);
        }
        options
    }
}

/// What a parser found, without the picture that it draws.
fn sentence(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().map(|span| {
        let before = text.get(..span.start).unwrap_or_default();
        before.matches('\n').count() + 1
    });
    let message = error.message().lines().collect::<Vec<_>>().join(", ");
    match line {
        Some(line) => format!("line {line}: {message}"),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_file_is_read_relative_to_its_folder_and_refuses_unknown_keys() {
        let text = "layout = [\"127.0.0.1:7001\"]\nca = \"ca.pem\"\ncert = \"a.pem\"\nkey = \"/k/a.key\"\n";
        let config = ClusterConfig::parse(text, Path::new("/c")).unwrap();
        assert_eq!(
            (config.ca, config.key),
            (PathBuf::from("/c/ca.pem"), PathBuf::from("/k/a.key"))
        );

        let refused = |more: &str| {
            ClusterConfig::parse(&format!("{text}{more}\n"), Path::new("/c")).unwrap_err()
        };
        for (more, named) in [
            ("colour = 1", "line 5: unknown field `colour`"),
            ("deadline_ms = 1", "line 5: unknown field `deadline_ms`"),
            ("deadline-ms = 0", "`deadline-ms` is 0"),
            ("call-ms = 0", "`call-ms` is 0"),
            ("steady-ms = 0", "`steady-ms` is 0"),
            ("call-ms = ", "line 5: "),
        ] {
            let why = refused(more);
            assert!(why.contains(named) && !why.contains('\n'), "{why}");
        }
        assert!(
            ClusterConfig::parse(&text.replace("127.0.0.1:7001", "nowhere"), Path::new("/c"))
                .is_err()
        );
    }
}
