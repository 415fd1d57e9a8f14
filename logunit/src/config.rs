//! What a log unit is told at its start, checked before anything is opened.
//!
//! ```text
//! flags ─┐
//!        ├─ or ─▶ Settings ─ check ─▶ Node (paths, addresses, sizes) ─ config ─▶ Config (what the server itself needs)
//! file ──┘
//! ```

use std::path::PathBuf;
use std::time::Duration;

use milonga_wire::limits::{ENTRY_BYTES_MAX, FRAME_BYTES_MAX};
use milonga_wire::{Address, ClusterId, InvalidName, ServerName};
use serde::Deserialize;

const QUEUE_BYTES: u64 = 64 << 20;
const QUEUE_BYTES_MIN: u64 = FRAME_BYTES_MAX as u64;
const QUEUE_BYTES_MAX: u64 = 4 << 30;
const FILE_BYTES: u64 = 256 << 20;
const FILE_BYTES_MIN: u64 = 2 * FRAME_BYTES_MAX as u64;
const FILE_BYTES_MAX: u64 = 4 << 30;
const SCRUB_EVERY_SECONDS: u64 = 7 * 24 * 3_600;
const SCRUB_EVERY_SECONDS_MAX: u64 = 365 * 24 * 3_600;
const SCRUB_BYTES_PER_SECOND: u64 = 8 << 20;
const SCRUB_BYTES_PER_SECOND_MAX: u64 = 16 << 30;

/// What [`crate::Server::start`] needs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// The cluster, as the unit's certificate names it.
    pub cluster: ClusterId,
    /// Its name, as its certificate has it.
    pub name: ServerName,
    /// Bytes of the largest record it takes.
    pub entry_bytes_max: u32,
    /// Bytes of requests that may wait for a commit.
    pub queue_bytes_max: usize,
    /// Whom to ask whether terms were really skipped. With none, a seal that skips terms is refused.
    pub layout_servers: Vec<Address>,
    /// How what is held is verified from time to time. None: not at all.
    pub scrub: Option<Scrub>,
    /// The version of the program.
    pub version: String,
}

/// How often and how fast everything held is read again.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Scrub {
    /// From the start of one round to the next.
    pub every: Duration,
    /// Bytes of records read in a second.
    pub bytes_per_second: u64,
}

/// The configuration file of a log unit; every key is also a flag.
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Settings {
    /// Its name, as its certificate has it.
    pub name: Option<String>,
    /// Where it listens, `host:port`.
    pub listen: Option<String>,
    /// Where `/metrics`, `/livez` and `/readyz` are served; not at all if left out.
    pub admin: Option<String>,
    /// Its directory.
    pub dir: Option<PathBuf>,
    /// The layout servers, `host:port` each.
    pub layout: Option<Vec<String>>,
    /// The certificate authority of the cluster.
    pub ca: Option<PathBuf>,
    /// The unit's certificate.
    pub cert: Option<PathBuf>,
    /// The key of that certificate.
    pub key: Option<PathBuf>,
    /// Bytes of the largest record it takes.
    pub entry_bytes_max: Option<u64>,
    /// Bytes of requests that may wait for a commit.
    pub queue_bytes_max: Option<u64>,
    /// Bytes of each of its files.
    pub file_bytes: Option<u64>,
    /// Whether closed files are read through a memory map.
    pub map: Option<bool>,
    /// Seconds from one round of verifying all records to the next; 0 for none.
    pub scrub_every: Option<u64>,
    /// Bytes of records verified in a second; 0 for none.
    pub scrub_bytes_per_second: Option<u64>,
}

/// Settings that were checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: ServerName,
    /// Where it listens.
    pub listen: Address,
    /// Where metrics and health are served.
    pub admin: Option<Address>,
    /// Its directory.
    pub dir: PathBuf,
    /// The layout servers.
    pub layout: Vec<Address>,
    /// The certificate authority of the cluster.
    pub ca: PathBuf,
    /// The unit's certificate.
    pub cert: PathBuf,
    /// The key of that certificate.
    pub key: PathBuf,
    /// Bytes of the largest record it takes.
    pub entry_bytes_max: u32,
    /// Bytes of requests that may wait for a commit.
    pub queue_bytes_max: usize,
    /// Bytes of each of its files.
    pub file_bytes: u64,
    /// Whether closed files are read through a memory map.
    pub map: bool,
    /// How what is held is verified from time to time.
    pub scrub: Option<Scrub>,
}

/// Why settings are refused. Nothing was opened.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidConfig {
    /// A key that has no default.
    #[error("`{key}` is missing; expected it in the configuration file or as --{key}")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value that is none.
    #[error("`{key}`: {why}")]
    Name {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        why: InvalidName,
    },
    /// A number out of its range.
    #[error("`{key}` is {value}; expected {least} to {most}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// What was given.
        value: u64,
        /// The least allowed.
        least: u64,
        /// The most allowed.
        most: u64,
    },
}

impl Settings {
    /// These settings, and those of `other` where these say nothing: flags before the file.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            name: self.name.or(other.name),
            listen: self.listen.or(other.listen),
            admin: self.admin.or(other.admin),
            dir: self.dir.or(other.dir),
            layout: self.layout.or(other.layout),
            ca: self.ca.or(other.ca),
            cert: self.cert.or(other.cert),
            key: self.key.or(other.key),
            entry_bytes_max: self.entry_bytes_max.or(other.entry_bytes_max),
            queue_bytes_max: self.queue_bytes_max.or(other.queue_bytes_max),
            file_bytes: self.file_bytes.or(other.file_bytes),
            map: self.map.or(other.map),
            scrub_every: self.scrub_every.or(other.scrub_every),
            scrub_bytes_per_second: self.scrub_bytes_per_second.or(other.scrub_bytes_per_second),
        }
    }

    /// Checks every key.
    ///
    /// # Errors
    /// The first key that is missing or wrong.
    pub fn check(self) -> Result<Node, InvalidConfig> {
        let layout = self.layout.unwrap_or_default();
        let entry_bytes = self.entry_bytes_max.unwrap_or(ENTRY_BYTES_MAX as u64);
        let queue_bytes = self.queue_bytes_max.unwrap_or(QUEUE_BYTES);
        let file_bytes = self.file_bytes.unwrap_or(FILE_BYTES);
        check_range("entry-bytes-max", entry_bytes, 1, ENTRY_BYTES_MAX as u64)?;
        check_range(
            "queue-bytes-max",
            queue_bytes,
            QUEUE_BYTES_MIN,
            QUEUE_BYTES_MAX,
        )?;
        check_range("file-bytes", file_bytes, FILE_BYTES_MIN, FILE_BYTES_MAX)?;
        let scrub_every = self.scrub_every.unwrap_or(SCRUB_EVERY_SECONDS);
        check_range("scrub-every", scrub_every, 0, SCRUB_EVERY_SECONDS_MAX)?;
        let scrub_bytes = self.scrub_bytes_per_second;
        let scrub_bytes = scrub_bytes.unwrap_or(SCRUB_BYTES_PER_SECOND);
        let most = SCRUB_BYTES_PER_SECOND_MAX;
        check_range("scrub-bytes-per-second", scrub_bytes, 0, most)?;
        let scrub = Scrub {
            every: Duration::from_secs(scrub_every),
            bytes_per_second: scrub_bytes,
        };
        Ok(Node {
            name: parse("name", &present("name", self.name)?)?,
            listen: parse("listen", &present("listen", self.listen)?)?,
            admin: self.admin.map(|text| parse("admin", &text)).transpose()?,
            dir: present("dir", self.dir)?,
            layout: layout
                .iter()
                .map(|text| parse("layout", text))
                .collect::<Result<_, _>>()?,
            ca: present("ca", self.ca)?,
            cert: present("cert", self.cert)?,
            key: present("key", self.key)?,
            entry_bytes_max: entry_bytes as u32,
            queue_bytes_max: queue_bytes as usize,
            file_bytes,
            map: self.map.unwrap_or(true),
            scrub: (scrub_every > 0 && scrub_bytes > 0).then_some(scrub),
        })
    }
}

impl Node {
    /// What the server itself needs; the cluster is the one that the certificate names.
    pub fn config(&self, cluster: ClusterId, version: impl Into<String>) -> Config {
        Config {
            cluster,
            name: self.name.clone(),
            entry_bytes_max: self.entry_bytes_max,
            queue_bytes_max: self.queue_bytes_max,
            layout_servers: self.layout.clone(),
            scrub: self.scrub,
            version: version.into(),
        }
    }
}

fn present<T>(key: &'static str, value: Option<T>) -> Result<T, InvalidConfig> {
    value.ok_or(InvalidConfig::Missing { key })
}

fn parse<T>(key: &'static str, text: &str) -> Result<T, InvalidConfig>
where
    T: std::str::FromStr<Err = InvalidName>,
{
    text.parse().map_err(|why| InvalidConfig::Name { key, why })
}

fn check_range(key: &'static str, value: u64, least: u64, most: u64) -> Result<(), InvalidConfig> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(InvalidConfig::OutOfRange {
        key,
        value,
        least,
        most,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        name = "unit-1"
        listen = "127.0.0.1:7011"
        dir = "data"
        layout = ["127.0.0.1:7001", "127.0.0.1:7002"]
        ca = "ca.pem"
        cert = "unit-1.pem"
        key = "unit-1.key"
    "#;

    fn file() -> Settings {
        toml::from_str(FILE).unwrap()
    }

    #[test]
    fn a_flag_goes_before_the_file_and_defaults_fill_the_rest() {
        let flags = Settings {
            listen: Some("[::1]:9".to_owned()),
            map: Some(false),
            ..Settings::default()
        };
        let node = flags.or(file()).check().unwrap();

        assert_eq!(node.listen.as_str(), "[::1]:9");
        assert_eq!(node.name.as_str(), "unit-1");
        assert_eq!(node.layout.len(), 2);
        assert_eq!((node.map, node.admin.clone()), (false, None));
        let config = node.config(ClusterId([1; 16]), "0.1");
        assert_eq!(config.entry_bytes_max as usize, ENTRY_BYTES_MAX);
        assert_eq!(config.layout_servers, node.layout);
    }

    /// Bad configuration is refused at the start, in one sentence that names the key.
    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let refused = |change: fn(&mut Settings)| {
            let mut settings = file();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert!(refused(|s| s.dir = None).starts_with("`dir` is missing"));
        assert!(refused(|s| s.name = Some("Ü".to_owned())).starts_with("`name`: "));
        assert!(refused(|s| s.layout = Some(vec!["x".to_owned()])).starts_with("`layout`: "));
        assert!(refused(|s| s.entry_bytes_max = Some(0)).starts_with("`entry-bytes-max` is 0"));
        assert!(refused(|s| s.file_bytes = Some(1)).starts_with("`file-bytes` is 1;"));
        let unknown = toml::from_str::<Settings>("nmae = 'x'").unwrap_err();
        assert!(unknown.to_string().contains("nmae"));
    }
}
