//! Who is who: clusters, servers, and the process that a server is right now.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a name, id or address is not one.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is no {what}; expected {expected}")]
pub struct InvalidName {
    /// What was given.
    pub text: String,
    /// What it should have been.
    pub what: &'static str,
    /// The form it should have had.
    pub expected: &'static str,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash)]
        pub struct $name(pub [u8; 16]);

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
                if out.is_human_readable() {
                    out.collect_str(self)
                } else {
                    self.0.serialize(out)
                }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                if from.is_human_readable() {
                    let text = String::deserialize(from)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 16]>::deserialize(from).map(Self)
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", u128::from_be_bytes(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let hex = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                hex.then(|| u128::from_str_radix(text, 16).ok())
                    .flatten()
                    .map(|value| Self(value.to_be_bytes()))
                    .ok_or_else(|| InvalidName {
                        text: text.chars().take(80).collect(),
                        what: $what,
                        expected: "32 lower-case hexadecimal digits",
                    })
            }
        }
    };
}
pub(crate) use hex_id;

hex_id!(
    /// Which cluster. Made with its certificate authority, and carried in every certificate and request.
    ClusterId,
    "cluster id"
);
hex_id!(
    /// Which server: a random number written when its directory is formatted. A wiped directory is another server.
    Identity,
    "server identity"
);

impl Identity {
    /// The identity of a server without a directory (a sequencer): the same at every start under the same name.
    pub fn of_name(cluster: ClusterId, name: &ServerName) -> Self {
        Self(fnv128(cluster.0.iter().chain(name.as_str().as_bytes())))
    }
}

/// FNV-1a of 128 bits: names are few and chosen by the operator, so no stronger hash is needed.
pub(crate) fn fnv128<'a>(bytes: impl Iterator<Item = &'a u8>) -> [u8; 16] {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes
        .fold(BASIS, |hash, byte| {
            (hash ^ u128::from(*byte)).wrapping_mul(PRIME)
        })
        .to_be_bytes()
}

/// One process start of a server: random, never a counter on its disk.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What people call a server: 1 to 63 of `a-z`, `0-9`, `-` and `.`; it stands in its certificate. Clones share the text.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerName(Arc<str>);

impl ServerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServerName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
        if (1..=63).contains(&text.len()) && text.bytes().all(allowed) {
            return Ok(Self(text.into()));
        }
        Err(InvalidName {
            text: text.chars().take(80).collect(),
            what: "name",
            expected: "1 to 63 of a-z, 0-9, `-` and `.`",
        })
    }
}

impl TryFrom<String> for ServerName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<ServerName> for String {
    fn from(name: ServerName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a server listens: `host:port`, the host a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(Arc<str>);

impl Address {
    /// The address as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Address {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let parts = text.rsplit_once(':');
        let valid = parts.is_some_and(|(host, port)| {
            (1..=255).contains(&host.len())
                && host.bytes().all(|b| b.is_ascii_graphic())
                && port.parse::<u16>().is_ok()
        });
        if valid {
            return Ok(Self(text.into()));
        }
        Err(InvalidName {
            text: text.chars().take(80).collect(),
            what: "address",
            expected: "host:port",
        })
    }
}

impl TryFrom<String> for Address {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.as_str().to_owned()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_refuse_what_they_are_not() {
        assert!("u-1.example".parse::<ServerName>().is_ok());
        for bad in ["", "U1", "a b", "a/b", &"x".repeat(64)] {
            assert!(bad.parse::<ServerName>().is_err(), "{bad}");
        }
        for bad in ["host", "host:", ":1", "host:70000", "ho st:1"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        let id = ClusterId([7; 16]);
        assert_eq!(id.to_string().parse::<ClusterId>(), Ok(id));
        assert!(
            "+7070707070707070707070707070707"
                .parse::<ClusterId>()
                .is_err()
        );
    }

    /// People read ids as text; the wire carries their 16 bytes, and nothing else.
    #[test]
    fn an_id_is_sixteen_bytes_on_the_wire() {
        let id = ClusterId([7; 16]);
        let bytes = postcard::to_stdvec(&id).unwrap();

        assert_eq!(bytes, [7; 16]);
        assert_eq!(postcard::from_bytes(&bytes), Ok(id));
    }
}
