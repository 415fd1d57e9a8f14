//! A snapshot as bytes: items one after the other, cut into parts that fit a record each. Pure.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::bytes_of;

/// Bytes of one part.
pub(crate) const PART_BYTES: usize = 512 << 10;

/// Takes the items of a snapshot.
#[derive(Debug, Default)]
pub struct ImageWriter {
    parts: Vec<Bytes>,
    open: Vec<u8>,
    bytes: u64,
}

impl ImageWriter {
    /// Adds an item. It is read back by the same type, in the same order.
    pub fn write<T: Serialize>(&mut self, item: &T) {
        self.write_bytes(&bytes_of(item));
    }

    pub(crate) fn write_bytes(&mut self, item: &[u8]) {
        let length =
            u32::try_from(item.len()).expect("an item is in memory at once, and far smaller");
        self.push(&length.to_le_bytes());
        self.push(item);
    }

    fn push(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = PART_BYTES - self.open.len();
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.open.extend_from_slice(now);
            bytes = rest;
            if self.open.len() == PART_BYTES {
                let full = std::mem::replace(&mut self.open, Vec::with_capacity(PART_BYTES));
                self.parts.push(Bytes::from(full));
            }
        }
    }

    /// The parts, and how many bytes they have in all.
    pub(crate) fn finish(mut self) -> (Vec<Bytes>, u64) {
        if !self.open.is_empty() {
            self.parts.push(Bytes::from(self.open));
        }
        (self.parts, self.bytes)
    }
}

/// Gives the items of a snapshot back.
#[derive(Debug)]
pub struct ImageReader {
    parts: std::vec::IntoIter<Bytes>,
    open: Bytes,
}

/// A snapshot does not hold what this program expects: a newer one wrote it, or other code of the object.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a snapshot that this program cannot read ({why}); use the program that wrote it, or a newer one"
)]
pub struct ImageError {
    /// What is wrong.
    pub why: String,
}

impl ImageReader {
    pub(crate) fn new(parts: Vec<Bytes>) -> Self {
        Self {
            parts: parts.into_iter(),
            open: Bytes::new(),
        }
    }

    /// The next item; none at the end.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn read<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ImageError> {
        let Some(item) = self.read_bytes()? else {
            return Ok(None);
        };
        let wrong = |why: String| ImageError { why };
        let (item, rest) =
            postcard::take_from_bytes(&item).map_err(|why| wrong(why.to_string()))?;
        if !rest.is_empty() {
            return Err(wrong(format!("{} bytes too many", rest.len())));
        }
        Ok(Some(item))
    }

    pub(crate) fn read_bytes(&mut self) -> Result<Option<Bytes>, ImageError> {
        let Some(length) = self.take(4)? else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(length.as_ref().try_into().expect("four bytes were taken"));
        let cut = || ImageError {
            why: "its end is missing".to_owned(),
        };
        self.take(length as usize)?.ok_or_else(cut).map(Some)
    }

    /// The next `count` bytes; none at the end.
    fn take(&mut self, count: usize) -> Result<Option<Bytes>, ImageError> {
        if self.open.len() >= count {
            return Ok(Some(self.open.split_to(count)));
        }
        let mut taken = self.open.to_vec();
        self.open = Bytes::new();
        while taken.len() < count {
            let Some(mut part) = self.parts.next() else {
                return match taken.len() {
                    0 => Ok(None),
                    _ => Err(ImageError {
                        why: "its end is missing".to_owned(),
                    }),
                };
            };
            let now = part.split_to(part.len().min(count - taken.len()));
            taken.extend_from_slice(&now);
            self.open = part;
        }
        Ok(Some(Bytes::from(taken)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Items come back as they were, wherever the parts were cut.
        #[test]
        fn items_come_back_as_they_were(lengths in prop::collection::vec(0_usize..700_000, 0..8)) {
            let items: Vec<Vec<u8>> = (1_u8..).zip(&lengths).map(|(fill, length)| vec![fill; *length]).collect();
            let mut writer = ImageWriter::default();
            items.iter().for_each(|item| writer.write(item));
            let (parts, bytes) = writer.finish();
            prop_assert!(parts.iter().rev().skip(1).all(|part| part.len() == PART_BYTES));
            prop_assert_eq!(parts.iter().map(|part| part.len() as u64).sum::<u64>(), bytes);

            let mut reader = ImageReader::new(parts.clone());
            for item in items {
                prop_assert_eq!(reader.read::<Vec<u8>>().unwrap(), Some(item));
            }
            prop_assert_eq!(reader.read::<Vec<u8>>().unwrap(), None);
        }

        /// Whatever the bytes are: an item, the end, or an error.
        #[test]
        fn random_bytes_never_panic(parts in prop::collection::vec(prop::collection::vec(0_u8..4, 0..9), 0..4)) {
            let mut reader = ImageReader::new(parts.into_iter().map(Bytes::from).collect());
            while let Ok(Some(_)) = reader.read::<(u64, Vec<u8>)>() {}
        }
    }

    #[test]
    fn a_snapshot_that_is_cut_off_is_an_error() {
        let mut writer = ImageWriter::default();
        writer.write(&"item");
        let (parts, _) = writer.finish();
        for end in 1..parts[0].len() {
            let mut reader = ImageReader::new(vec![parts[0].slice(..end)]);
            assert!(reader.read::<String>().is_err(), "{end}");
        }
    }
}
