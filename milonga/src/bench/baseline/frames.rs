//! The bare servers' frames: as little as a request can be.
//!
//! ```text
//! request │ u64 id │ u32 bytes behind │ u32 bytes wanted back │ what is behind │
//! answer  │ u64 id │ what is wanted back, the 8 of the id counted │
//! ```

use bytes::{BufMut, BytesMut};

/// Bytes of a request with nothing behind it.
pub(super) const HEAD: usize = 16;
/// Bytes of the shortest answer.
pub(super) const ID: usize = 8;
/// More than this in one frame is a mistake.
const FRAME_MAX: usize = 64 << 20;

/// Appends the head of a request.
pub(super) fn put_head(out: &mut BytesMut, id: u64, behind: usize, answered: u32) {
    out.put_u64_le(id);
    out.put_u32_le(behind as u32);
    out.put_u32_le(answered);
}

/// The `u64` at `at`.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// A request that has come whole.
pub(super) struct Asked<'a> {
    pub(super) id: u64,
    pub(super) answered: u32,
    pub(super) behind: &'a [u8],
}

impl<'a> Asked<'a> {
    pub(super) fn of(frame: &'a [u8]) -> Self {
        Self {
            id: u64_at(frame, 0),
            answered: u32_at(frame, 12),
            behind: &frame[HEAD..],
        }
    }
}

/// How long the request is that starts here; nothing if that has not come yet.
pub(super) fn request_bytes(start: &[u8]) -> Option<usize> {
    (start.len() >= HEAD).then(|| HEAD + u32_at(start, 8) as usize)
}

/// Puts frames together again. What lies whole in a chunk is not copied.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    begun: Vec<u8>,
}

impl Cutter {
    /// Hands every frame that `chunk` completes to `take`.
    ///
    /// # Errors
    /// A frame that is too long.
    pub(super) fn feed(
        &mut self,
        chunk: &[u8],
        length: impl Fn(&[u8]) -> Option<usize>,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), String> {
        let mut begun = std::mem::take(&mut self.begun);
        let mut rest = if begun.is_empty() {
            chunk
        } else {
            begun.extend_from_slice(chunk);
            &begun
        };
        while let Some(bytes) = length(rest) {
            if bytes > FRAME_MAX {
                return Err(format!("a frame of {bytes} bytes"));
            }
            if rest.len() < bytes {
                break;
            }
            let (frame, behind) = rest.split_at(bytes);
            take(frame);
            rest = behind;
        }
        self.begun = rest.to_vec();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame lost or doubled at the seam of two chunks would make the baseline faster or slower than it is.
    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut bytes = BytesMut::new();
        for id in 0..50_u64 {
            put_head(&mut bytes, id, id as usize, 8);
            bytes.put_bytes(id as u8, id as usize);
        }
        for step in [1, 7, 16, 33, 10_000] {
            let mut cutter = Cutter::default();
            let mut ids = vec![];
            for chunk in bytes.chunks(step) {
                let take = |frame: &[u8]| {
                    let asked = Asked::of(frame);
                    assert!(asked.behind.iter().all(|byte| u64::from(*byte) == asked.id));
                    assert_eq!(asked.behind.len() as u64, asked.id);
                    ids.push(asked.id);
                };
                cutter.feed(chunk, request_bytes, take).unwrap();
            }
            assert_eq!(ids, (0..50).collect::<Vec<_>>());
            assert!(cutter.begun.is_empty());
        }
    }
}
