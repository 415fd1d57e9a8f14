//! What a sequencer is told at its start: a file or flags ([`Settings`]), checked into a [`Config`].

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use milonga_wire::limits::{STREAMS_MAX, STREAMS_PER_ENTRY_MAX};
use milonga_wire::{Address, ServerName};
use serde::Deserialize;

/// The keys of a sequencer's configuration, as they are written. Every one is a flag too; flags come first
/// ([`Settings::or`]).
#[derive(Clone, Debug, Default, Eq, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Its name, which its certificate must carry.
    pub name: Option<String>,
    /// Where it listens, `host:port`.
    pub listen: Option<String>,
    /// Where metrics and health are served: `ip:port`, or a port of the loopback address. Nowhere if absent.
    pub admin: Option<String>,
    /// Addresses of layout servers, `host:port`.
    pub layout: Option<Vec<String>>,
    /// The file of the cluster's certificate authority.
    pub ca: Option<PathBuf>,
    /// The file of its certificate.
    pub cert: Option<PathBuf>,
    /// The file of its private key.
    pub key: Option<PathBuf>,
    /// How many streams it remembers; the others are answered with "unknown, scan".
    pub streams_max: Option<u32>,
    /// How long it waits for the layout servers, in milliseconds.
    pub confirm_ms: Option<u64>,
    /// How many questions for the end may wait at a time.
    pub ends_max: Option<usize>,
}

impl Settings {
    /// What is set here, else what is set in `below`.
    pub fn or(self, below: Self) -> Self {
        Self {
            name: self.name.or(below.name),
            listen: self.listen.or(below.listen),
            admin: self.admin.or(below.admin),
            layout: self.layout.or(below.layout),
            ca: self.ca.or(below.ca),
            cert: self.cert.or(below.cert),
            key: self.key.or(below.key),
            streams_max: self.streams_max.or(below.streams_max),
            confirm_ms: self.confirm_ms.or(below.confirm_ms),
            ends_max: self.ends_max.or(below.ends_max),
        }
    }
}

/// Why a configuration is none. The key is named as it is written.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A key that has no default is absent.
    #[error("the key `{key}` is missing; expected {expected}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What it should say.
        expected: &'static str,
    },
    /// A key says something that it cannot.
    #[error("the key `{key}` says `{text}`; expected {expected}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What it says.
        text: String,
        /// What it should say.
        expected: &'static str,
    },
}

/// A checked configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Its name.
    pub name: ServerName,
    /// Where it listens.
    pub listen: Address,
    /// Where metrics and health are served.
    pub admin: Option<SocketAddr>,
    /// Layout servers to ask before any layout is known; not empty.
    pub layout: Vec<Address>,
    /// The file of the cluster's certificate authority.
    pub ca: PathBuf,
    /// The file of its certificate.
    pub cert: PathBuf,
    /// The file of its private key.
    pub key: PathBuf,
    /// How many streams it remembers.
    pub streams_max: u32,
    /// How long it waits for the layout servers.
    pub confirm: Duration,
    /// How many questions for the end may wait at a time.
    pub ends_max: usize,
}

impl Config {
    /// Streams remembered unless the key `streams-max` says otherwise.
    pub const STREAMS_MAX: u32 = 1_000_000;
    /// Waiting for layout servers unless the key `confirm-ms` says otherwise.
    pub const CONFIRM: Duration = Duration::from_secs(1);
    /// Waiting questions for the end unless the key `ends-max` says otherwise.
    pub const ENDS_MAX: usize = 65_536;
}

impl TryFrom<Settings> for Config {
    type Error = ConfigError;

    fn try_from(settings: Settings) -> Result<Self, ConfigError> {
        let layout = settings.layout.unwrap_or_default();
        if layout.is_empty() {
            return Err(ConfigError::Missing {
                key: "layout",
                expected: "the addresses of the layout servers",
            });
        }
        let layout = layout.into_iter().map(|text| address("layout", text));
        let streams_max = settings.streams_max.unwrap_or(Self::STREAMS_MAX);
        let streams = (STREAMS_PER_ENTRY_MAX as u32)..=STREAMS_MAX;
        within(
            "streams-max",
            streams.contains(&streams_max),
            &streams_max,
            "64 to 1048576",
        )?;
        let confirm_ms = settings
            .confirm_ms
            .unwrap_or(Self::CONFIRM.as_millis() as u64);
        let expected = "1 to 60000 (milliseconds)";
        within(
            "confirm-ms",
            (1..=60_000).contains(&confirm_ms),
            &confirm_ms,
            expected,
        )?;
        let ends_max = settings.ends_max.unwrap_or(Self::ENDS_MAX);
        within("ends-max", ends_max > 0, &ends_max, "at least 1")?;
        Ok(Self {
            name: name(settings.name)?,
            listen: address("listen", given("listen", settings.listen, "host:port")?)?,
            admin: settings.admin.map(admin).transpose()?,
            layout: layout.collect::<Result<_, _>>()?,
            ca: given("ca", settings.ca, "a file of PEM certificates")?,
            cert: given("cert", settings.cert, "a file of PEM certificates")?,
            key: given("key", settings.key, "a file with a PEM private key")?,
            streams_max,
            confirm: Duration::from_millis(confirm_ms),
            ends_max,
        })
    }
}

fn given<T>(key: &'static str, value: Option<T>, expected: &'static str) -> Result<T, ConfigError> {
    value.ok_or(ConfigError::Missing { key, expected })
}

fn within(
    key: &'static str,
    holds: bool,
    value: &impl ToString,
    expected: &'static str,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Invalid {
        key,
        text: value.to_string(),
        expected,
    })
}

fn name(text: Option<String>) -> Result<ServerName, ConfigError> {
    let expected = "1 to 63 of a-z, 0-9, `-` and `.`, as in its certificate";
    let text = given("name", text, expected)?;
    text.parse().map_err(|_| ConfigError::Invalid {
        key: "name",
        text,
        expected,
    })
}

fn address(key: &'static str, text: String) -> Result<Address, ConfigError> {
    text.parse().map_err(|_| ConfigError::Invalid {
        key,
        text,
        expected: "host:port",
    })
}

/// An address, or a port of the loopback address: what an admin endpoint tells is nobody else's business by default.
fn admin(text: String) -> Result<SocketAddr, ConfigError> {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let parsed = text
        .parse()
        .ok()
        .or_else(|| text.parse().ok().map(loopback));
    parsed.ok_or(ConfigError::Invalid {
        key: "admin",
        text,
        expected: "ip:port, or a port",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        name = "s-1"
        listen = "127.0.0.1:7001"
        layout = ["127.0.0.1:7101"]
        ca = "ca.pem"
        cert = "s-1.pem"
        key = "s-1.key"
    "#;

    fn config(text: &str) -> Result<Config, ConfigError> {
        toml::from_str::<Settings>(text).unwrap().try_into()
    }

    #[test]
    fn what_is_not_said_has_a_default_or_is_asked_for_by_its_key() {
        let whole = config(WHOLE).unwrap();

        assert_eq!(whole.streams_max, Config::STREAMS_MAX);
        assert_eq!(whole.confirm, Config::CONFIRM);
        assert_eq!(whole.admin, None);
        for key in ["name", "listen", "layout", "ca", "cert", "key"] {
            let without: String = WHOLE
                .lines()
                .filter(|line| !line.trim_start().starts_with(&format!("{key} =")))
                .flat_map(|line| [line, "\n"])
                .collect();
            let missing = config(&without).unwrap_err();
            assert!(matches!(missing, ConfigError::Missing { key: named, .. } if named == key));
        }
    }

    #[test]
    fn a_key_that_is_unknown_or_wrong_is_named() {
        let misspelt = toml::from_str::<Settings>("streams_most = 1").unwrap_err();
        assert!(misspelt.to_string().contains("streams_most"));
        for (line, key) in [
            ("streams-max = 3", "streams-max"),
            ("confirm-ms = 0", "confirm-ms"),
            ("ends-max = 0", "ends-max"),
            ("admin = \"nowhere\"", "admin"),
        ] {
            let wrong = config(&format!("{WHOLE}{line}\n")).unwrap_err();
            assert!(
                matches!(wrong, ConfigError::Invalid { key: named, .. } if named == key),
                "{line}"
            );
        }
    }

    #[test]
    fn a_bare_admin_port_is_one_of_the_loopback_address() {
        let config = config(&format!("{WHOLE}admin = \"9640\"\n")).unwrap();

        assert_eq!(config.admin, Some("127.0.0.1:9640".parse().unwrap()));
    }

    #[test]
    fn flags_come_before_the_file() {
        let flags = Settings {
            name: Some("s-2".to_owned()),
            ..Settings::default()
        };
        let both = flags.or(toml::from_str(WHOLE).unwrap());

        assert_eq!(both.name.as_deref(), Some("s-2"));
        assert_eq!(both.listen.as_deref(), Some("127.0.0.1:7001"));
    }
}
