//! What a layout server is told at its start: a file or flags ([`Settings`]), checked into a [`Config`].

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use milonga_wire::{Address, ServerName};
use serde::Deserialize;

/// The keys of a layout server's configuration, as they are written. Every one is a flag too; flags come first
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
    /// Its directory.
    pub dir: Option<PathBuf>,
    /// Addresses of layout servers, `host:port`, for the caretaker beside it.
    pub layout: Option<Vec<String>>,
    /// The file of the cluster's certificate authority.
    pub ca: Option<PathBuf>,
    /// The file of its certificate.
    pub cert: Option<PathBuf>,
    /// The file of its private key.
    pub key: Option<PathBuf>,
    /// Whether a caretaker runs beside it.
    pub caretaker: Option<bool>,
    /// How many reports of clients are kept for the caretaker.
    pub reports_max: Option<usize>,
    /// How long it waits for a suspect's answer to a probe, in milliseconds.
    pub opinion_ms: Option<u64>,
}

impl Settings {
    /// What is set here, else what is set in `below`.
    pub fn or(self, below: Self) -> Self {
        Self {
            name: self.name.or(below.name),
            listen: self.listen.or(below.listen),
            admin: self.admin.or(below.admin),
            dir: self.dir.or(below.dir),
            layout: self.layout.or(below.layout),
            ca: self.ca.or(below.ca),
            cert: self.cert.or(below.cert),
            key: self.key.or(below.key),
            caretaker: self.caretaker.or(below.caretaker),
            reports_max: self.reports_max.or(below.reports_max),
            opinion_ms: self.opinion_ms.or(below.opinion_ms),
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
    /// Its directory.
    pub dir: PathBuf,
    /// Layout servers for the caretaker beside it to ask; if empty, only its own.
    pub layout: Vec<Address>,
    /// The file of the cluster's certificate authority.
    pub ca: PathBuf,
    /// The file of its certificate.
    pub cert: PathBuf,
    /// The file of its private key.
    pub key: PathBuf,
    /// Whether a caretaker runs beside it.
    pub caretaker: bool,
    /// How many reports of clients are kept for the caretaker.
    pub reports_max: usize,
    /// How long it waits for a suspect's answer to a probe.
    pub opinion: Duration,
}

impl Config {
    /// Reports kept unless the key `reports-max` says otherwise.
    pub const REPORTS_MAX: usize = 1_024;
    /// Waiting for a suspect's sign of life unless the key `opinion-ms` says otherwise.
    pub const OPINION: Duration = Duration::from_millis(400);
}

impl TryFrom<Settings> for Config {
    type Error = ConfigError;

    fn try_from(settings: Settings) -> Result<Self, ConfigError> {
        let layout = settings.layout.unwrap_or_default();
        let layout = layout.into_iter().map(|text| address("layout", text));
        let reports_max = settings.reports_max.unwrap_or(Self::REPORTS_MAX);
        if reports_max == 0 {
            return Err(ConfigError::Invalid {
                key: "reports-max",
                text: reports_max.to_string(),
                expected: "at least 1",
            });
        }
        let default_ms = Self::OPINION.as_millis() as u64;
        let opinion_ms = settings.opinion_ms.unwrap_or(default_ms);
        if !(1..=60_000).contains(&opinion_ms) {
            return Err(ConfigError::Invalid {
                key: "opinion-ms",
                text: opinion_ms.to_string(),
                expected: "1 to 60000 (milliseconds)",
            });
        }
        Ok(Self {
            name: name(settings.name)?,
            listen: address("listen", given("listen", settings.listen, "host:port")?)?,
            admin: settings.admin.map(admin).transpose()?,
            dir: given("dir", settings.dir, "a directory")?,
            layout: layout.collect::<Result<_, _>>()?,
            ca: given("ca", settings.ca, "a file of PEM certificates")?,
            cert: given("cert", settings.cert, "a file of PEM certificates")?,
            key: given("key", settings.key, "a file with a PEM private key")?,
            caretaker: settings.caretaker.unwrap_or(true),
            reports_max,
            opinion: Duration::from_millis(opinion_ms),
        })
    }
}

fn given<T>(key: &'static str, value: Option<T>, expected: &'static str) -> Result<T, ConfigError> {
    value.ok_or(ConfigError::Missing { key, expected })
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
        name = "l-1"
        listen = "127.0.0.1:7001"
        dir = "l-1"
        ca = "ca.pem"
        cert = "l-1.pem"
        key = "l-1.key"
    "#;

    fn config(text: &str) -> Result<Config, ConfigError> {
        toml::from_str::<Settings>(text).unwrap().try_into()
    }

    #[test]
    fn what_is_not_said_has_a_default_or_is_asked_for_by_its_key() {
        let whole = config(WHOLE).unwrap();

        assert_eq!(whole.reports_max, Config::REPORTS_MAX);
        assert_eq!(whole.opinion, Config::OPINION);
        assert!(whole.caretaker && whole.layout.is_empty());
        assert_eq!(whole.admin, None);
        for key in ["name", "listen", "dir", "ca", "cert", "key"] {
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
        let misspelt = toml::from_str::<Settings>("reports_max = 1").unwrap_err();
        assert!(misspelt.to_string().contains("reports_max"));
        for (line, key) in [
            ("reports-max = 0", "reports-max"),
            ("opinion-ms = 0", "opinion-ms"),
            ("opinion-ms = 60001", "opinion-ms"),
            ("layout = [\"nowhere\"]", "layout"),
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
