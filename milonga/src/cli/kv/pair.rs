//! Keys and values as they are printed and read: text as it is, other bytes in base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use milonga_client::Position;
use milonga_client::object::map::Versioned;
use serde::{Deserialize, Serialize};

/// A key and its value, as they are printed and imported.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Pair {
    pub(super) key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key_encoding: Option<Encoding>,
    pub(super) value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) encoding: Option<Encoding>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) position: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lease: Option<u64>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Encoding {
    Base64,
}

impl Pair {
    pub(super) fn new(key: &[u8], value: Option<&[u8]>) -> Self {
        let (key, key_encoding) = encode(key);
        let (value, encoding) = value.map(encode).unzip();
        Self {
            key,
            key_encoding,
            value,
            encoding: encoding.flatten(),
            version: None,
            position: None,
            lease: None,
        }
    }

    pub(super) fn of(key: &[u8], found: &Versioned) -> Self {
        Self {
            version: Some(found.version.0),
            ..Self::new(key, Some(&found.value))
        }
    }

    pub(super) fn bound_to(self, lease: Option<Position>) -> Self {
        Self {
            lease: lease.map(|lease| lease.0),
            ..self
        }
    }

    pub(super) fn text(&self) -> String {
        match &self.value {
            Some(value) => format!("{}\t{value}", self.key),
            None => format!("{}\t(deleted)", self.key),
        }
    }

    /// Key and value, decoded.
    pub(super) fn bytes(&self) -> Result<(Bytes, Bytes), String> {
        let value = self.value.as_ref().ok_or("it has no value")?;
        Ok((
            decode(&self.key, self.key_encoding)?,
            decode(value, self.encoding)?,
        ))
    }
}

/// Text as it is; bytes that are none in base64.
pub(super) fn encode(bytes: &[u8]) -> (String, Option<Encoding>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (STANDARD.encode(bytes), Some(Encoding::Base64)),
    }
}

pub(super) fn decode(text: &str, encoding: Option<Encoding>) -> Result<Bytes, String> {
    match encoding {
        None => Ok(Bytes::from(text.to_owned())),
        Some(Encoding::Base64) => {
            let decoded = STANDARD.decode(text).map_err(|why| why.to_string())?;
            Ok(Bytes::from(decoded))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::json;

    /// What `export` prints, `import` reads.
    #[test]
    fn pairs_read_back_what_they_print_whatever_the_bytes() {
        for value in [&b"text"[..], b"", b"\xff\x00", "grün".as_bytes()] {
            let pair = Pair::new(value, Some(value));
            let read: Pair = serde_json::from_str(&json(&pair)).unwrap();
            let expected = Bytes::copy_from_slice(value);
            assert_eq!(read.bytes(), Ok((expected.clone(), expected)));
        }
    }
}
