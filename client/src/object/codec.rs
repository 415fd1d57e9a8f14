//! How an operation of an object looks as bytes: a version, then a postcard enum that only grows at its end.
//!
//! Whoever meets a version or an operation that it does not know stops that object (O3): skipping it would leave this
//! replica with another state than one that knows it.

use bytes::Bytes;
use milonga_wire::limits::ENTRY_BYTES_MAX;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The first byte of every operation written by this program.
pub const FORMAT_VERSION: u8 = 1;

/// What a record of an object's stream says. What later kinds (commits, decisions, snapshots) mean is fixed by their
/// place in this list.
#[derive(Serialize, Deserialize)]
enum Operation<U> {
    /// One update of the object whose stream this is.
    Update(U),
}

/// Why a record of an object's stream is no operation.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OperationError {
    /// A newer program wrote it.
    #[error("format version {found}; this program reads up to {FORMAT_VERSION}; use a newer one")]
    Newer {
        /// Its version.
        found: u8,
    },
    /// It is none that this program knows: of a newer one, damaged by its writer, or not an object's.
    #[error("not an operation that this program knows ({why}); use a newer one, or another stream")]
    Malformed {
        /// What is wrong.
        why: String,
    },
}

/// An operation is larger than a record may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TooLarge {
    pub(crate) asked: usize,
}

/// The bytes of an update.
pub(crate) fn encode<U: Serialize>(update: &U) -> Result<Bytes, TooLarge> {
    let bytes = postcard::to_extend(&Operation::Update(update), vec![FORMAT_VERSION])
        .expect("an update is plain data, and memory is all that a vector needs");
    if bytes.len() > ENTRY_BYTES_MAX {
        return Err(TooLarge { asked: bytes.len() });
    }
    Ok(Bytes::from(bytes))
}

/// The update that `bytes` hold. Total: any bytes give an update or an error.
pub(crate) fn decode<U: DeserializeOwned>(bytes: &[u8]) -> Result<U, OperationError> {
    let malformed = |why: String| OperationError::Malformed { why };
    let (version, rest) = bytes
        .split_first()
        .ok_or_else(|| malformed("an empty record".to_owned()))?;
    if *version > FORMAT_VERSION {
        return Err(OperationError::Newer { found: *version });
    }
    if *version == 0 {
        return Err(malformed("format version 0".to_owned()));
    }
    let (operation, rest) =
        postcard::take_from_bytes(rest).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes too many", rest.len())));
    }
    let Operation::Update(update) = operation;
    Ok(update)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::object::map::Update;

    fn put() -> Update {
        Update::Put {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
        }
    }

    /// What is in some log must be read for ever: these bytes never change.
    #[test]
    fn an_operation_looks_the_same_for_ever() {
        let bytes = encode(&put()).unwrap();
        assert_eq!(bytes.as_ref(), [1, 0, 0, 1, b'k', 1, b'v']);
        assert_eq!(decode::<Update>(&bytes), Ok(put()));
    }

    /// O3: what a newer program wrote stops an older one, and says so.
    #[test]
    fn a_newer_version_and_an_unknown_operation_are_typed_errors() {
        assert_eq!(
            decode::<Update>(&[2, 0, 0]),
            Err(OperationError::Newer { found: 2 })
        );
        for unknown in [
            &[1, 9, 0][..],
            &[1, 0, 99],
            &[0],
            &[],
            &[1, 0, 1, 1, b'k', 0],
        ] {
            let error = decode::<Update>(unknown);
            assert!(
                matches!(error, Err(OperationError::Malformed { .. })),
                "{unknown:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode::<Update>(&bytes);
            let mut versioned = vec![FORMAT_VERSION];
            versioned.extend(bytes);
            let _ = decode::<Update>(&versioned);
        }
    }
}
