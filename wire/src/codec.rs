//! Frames: a postcard head and a raw payload that is never copied.
//!
//! ```text
//! u32 length of what follows │ u32 length of the head │ version │ head (postcard) │ payload
//! ```
//! Numbers are little-endian. The version is the head's first byte and is counted in its length.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postcard::ser_flavors::{Flavor, Size};
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;

use crate::limits::{FRAME_BYTES_MAX, HEAD_BYTES_MAX};

/// The first byte of every head. A reader that meets another one refuses the frame.
pub const FORMAT_VERSION: u8 = 1;

/// Bytes before the head.
const PREFIX: usize = 8;

/// Why bytes are no frame.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// A frame over the limit.
    #[error("a frame of {asked} bytes; the limit is {FRAME_BYTES_MAX}")]
    TooLarge {
        /// Its length.
        asked: u64,
    },
    /// Another format version.
    #[error("format version {found}; this program speaks {FORMAT_VERSION}")]
    Version {
        /// The version found.
        found: u8,
    },
    /// Bytes that are no message.
    #[error("not a message: {why}")]
    Malformed {
        /// What is wrong.
        why: String,
    },
}

/// The raw bytes behind a head, in as many chunks as they arrived in.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    chunks: SmallVec<[Bytes; 2]>,
    len: usize,
}

impl Payload {
    /// No bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.len += chunk.len();
            self.chunks.push(chunk);
        }
    }

    /// Adds all of `other` at the end.
    pub fn append(&mut self, other: Self) {
        self.len += other.len;
        self.chunks.extend(other.chunks);
    }

    /// The chunks, in order; none is empty.
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// Takes the first `count` bytes out, sharing their memory; all there are if there are fewer.
    pub fn split_to(&mut self, count: usize) -> Self {
        let mut taken = Self::new();
        let mut whole = 0;
        for chunk in &mut self.chunks {
            let missing = count - taken.len;
            if missing == 0 {
                break;
            }
            if chunk.len() <= missing {
                taken.push(std::mem::take(chunk));
                whole += 1;
            } else {
                taken.push(chunk.split_to(missing));
            }
        }
        self.chunks.drain(..whole);
        self.len -= taken.len;
        taken
    }

    /// All bytes in one piece: shared if there is one chunk, else copied.
    pub fn into_bytes(self) -> Bytes {
        let Self { mut chunks, len } = self;
        match chunks.len() {
            0 => Bytes::new(),
            1 => chunks.remove(0),
            _ => {
                let mut joined = BytesMut::with_capacity(len);
                for chunk in chunks {
                    joined.put(chunk);
                }
                joined.freeze()
            }
        }
    }
}

impl From<Bytes> for Payload {
    fn from(chunk: Bytes) -> Self {
        let mut payload = Self::new();
        payload.push(chunk);
        payload
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len
            && self
                .chunks
                .iter()
                .flatten()
                .eq(other.chunks.iter().flatten())
    }
}

impl Eq for Payload {}

/// One message: its head as bytes (version and postcard), and its payload.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// Version and postcard.
    pub head: Bytes,
    /// Raw bytes.
    pub payload: Payload,
}

impl Frame {
    /// A frame of `head` and `payload`.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] if it would be over the limits.
    pub fn new<T: Serialize>(head: &T, payload: Payload) -> Result<Self, DecodeError> {
        let bytes =
            postcard::to_extend(head, vec![FORMAT_VERSION]).map_err(|error| not_a_head(&error))?;
        let asked = (PREFIX + bytes.len() + payload.len()) as u64;
        if bytes.len() > HEAD_BYTES_MAX || asked > FRAME_BYTES_MAX as u64 {
            return Err(DecodeError::TooLarge { asked });
        }
        Ok(Self {
            head: Bytes::from(bytes),
            payload,
        })
    }

    /// The head.
    ///
    /// # Errors
    /// If it is of another version, or no `T` and nothing but a `T` (W1).
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        let (version, head) = self
            .head
            .split_first()
            .ok_or_else(|| DecodeError::Malformed {
                why: "an empty head".to_owned(),
            })?;
        if *version != FORMAT_VERSION {
            return Err(DecodeError::Version { found: *version });
        }
        let (value, rest) = postcard::take_from_bytes(head).map_err(|error| not_a_head(&error))?;
        if rest.is_empty() {
            Ok(value)
        } else {
            Err(DecodeError::Malformed {
                why: format!("{} bytes behind the head", rest.len()),
            })
        }
    }

    /// Bytes on the wire.
    pub fn wire_bytes(&self) -> usize {
        PREFIX + self.head.len() + self.payload.len()
    }

    /// Appends prefix and head to `out`; the payload's chunks follow on their own.
    pub fn encode_head(&self, out: &mut BytesMut) {
        let length = 4 + self.head.len() + self.payload.len();
        out.reserve(PREFIX + self.head.len());
        out.put_u32_le(length as u32);
        out.put_u32_le(self.head.len() as u32);
        out.put_slice(&self.head);
    }

    /// How many bytes a frame of `head` and a payload of `payload_bytes` has on the wire.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] if it would be over the limits.
    pub fn measure<T: Serialize>(head: &T, payload_bytes: usize) -> Result<usize, DecodeError> {
        let bytes = postcard::serialize_with_flavor(head, Size::default());
        let head_bytes = 1 + bytes.map_err(|error| not_a_head(&error))?;
        let asked = PREFIX + head_bytes + payload_bytes;
        if head_bytes > HEAD_BYTES_MAX || asked > FRAME_BYTES_MAX {
            let asked = asked as u64;
            return Err(DecodeError::TooLarge { asked });
        }
        Ok(asked)
    }

    /// Appends prefix and head of a frame to `out` without building it first; `payload_bytes` bytes of payload must
    /// follow. Returns how many bytes the whole frame has.
    ///
    /// # Errors
    /// [`DecodeError::TooLarge`] if it would be over the limits; `out` is as it was then.
    pub fn encode_into<T: Serialize>(
        out: &mut BytesMut,
        head: &T,
        payload_bytes: usize,
    ) -> Result<usize, DecodeError> {
        let start = out.len();
        out.put_bytes(0, PREFIX);
        out.put_u8(FORMAT_VERSION);
        let written = postcard::serialize_with_flavor(head, Tail::new(out))
            .map_err(|error| not_a_head(&error));
        let whole = out.len() - start + payload_bytes;
        let head_bytes = out.len() - start - PREFIX;
        let fits = head_bytes <= HEAD_BYTES_MAX && whole <= FRAME_BYTES_MAX;
        if written.is_err() || !fits {
            out.truncate(start);
            written?;
            return Err(DecodeError::TooLarge {
                asked: whole as u64,
            });
        }
        let lengths = ((head_bytes as u64) << 32) | (whole as u64 - 4);
        out[start..start + PREFIX].copy_from_slice(&lengths.to_le_bytes());
        Ok(whole)
    }

    /// Takes the first whole frame out of what arrived; nothing if more bytes are needed.
    ///
    /// # Errors
    /// If the next frame is over the limits or its lengths contradict each other: the connection is of no use any more.
    pub fn take_from(arrived: &mut Payload) -> Result<Option<Self>, DecodeError> {
        let Some([length, head]) = peek_prefix(arrived) else {
            return Ok(None);
        };
        let whole = u64::from(length) + 4;
        if whole > FRAME_BYTES_MAX as u64 {
            return Err(DecodeError::TooLarge { asked: whole });
        }
        if head as usize > HEAD_BYTES_MAX || u64::from(head) + 4 > u64::from(length) {
            return Err(DecodeError::Malformed {
                why: format!("a head of {head} bytes in {length}"),
            });
        }
        if (arrived.len() as u64) < whole {
            return Ok(None);
        }
        if let Some(first) = arrived.chunks.first_mut()
            && first.len() as u64 > whole
        {
            // Most frames are small and lie in one chunk with many others.
            let mut frame = first.split_to(whole as usize);
            arrived.len -= whole as usize;
            frame.advance(PREFIX);
            if head as usize == frame.len() {
                let payload = Payload::new();
                return Ok(Some(Self {
                    head: frame,
                    payload,
                }));
            }
            let head = frame.split_to(head as usize);
            let payload = frame.into();
            return Ok(Some(Self { head, payload }));
        }
        drop(arrived.split_to(PREFIX));
        let head_bytes = arrived.split_to(head as usize).into_bytes();
        let payload = arrived.split_to(length as usize - 4 - head as usize);
        Ok(Some(Self {
            head: head_bytes,
            payload,
        }))
    }
}

/// Where postcard writes when a head goes straight behind what is in a buffer. Ids come byte by byte, so bytes are
/// gathered here before they go there.
struct Tail<'a> {
    out: &'a mut BytesMut,
    gathered: [u8; GATHERED],
    len: usize,
}

/// Most heads fit.
const GATHERED: usize = 192;

impl<'a> Tail<'a> {
    fn new(out: &'a mut BytesMut) -> Self {
        Self {
            out,
            gathered: [0; GATHERED],
            len: 0,
        }
    }

    fn flush(&mut self) {
        self.out.extend_from_slice(&self.gathered[..self.len]);
        self.len = 0;
    }
}

impl Flavor for Tail<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        if let Some(room) = self.gathered.get_mut(self.len..self.len + data.len()) {
            room.copy_from_slice(data);
            self.len += data.len();
        } else {
            self.flush();
            self.out.extend_from_slice(data);
        }
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        if self.len == GATHERED {
            self.flush();
        }
        self.gathered[self.len] = byte;
        self.len += 1;
        Ok(())
    }

    fn finalize(mut self) -> postcard::Result<()> {
        self.flush();
        Ok(())
    }
}

fn not_a_head(error: &postcard::Error) -> DecodeError {
    DecodeError::Malformed {
        why: error.to_string(),
    }
}

/// The two lengths, if they have arrived.
fn peek_prefix(arrived: &Payload) -> Option<[u32; 2]> {
    if arrived.len() < PREFIX {
        return None;
    }
    let mut prefix = [0; PREFIX];
    if let Some(whole) = arrived.chunks.first().and_then(|chunk| chunk.first_chunk()) {
        prefix = *whole;
    } else {
        let bytes = arrived.chunks.iter().flatten();
        prefix
            .iter_mut()
            .zip(bytes)
            .for_each(|(slot, byte)| *slot = *byte);
    }
    let both = u64::from_le_bytes(prefix);
    Some([both as u32, (both >> 32) as u32])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ReplyHead, RequestHead};

    fn wire(frame: &Frame) -> Vec<u8> {
        let mut out = BytesMut::new();
        frame.encode_head(&mut out);
        let mut bytes = out.to_vec();
        frame
            .payload
            .chunks()
            .iter()
            .for_each(|chunk| bytes.extend_from_slice(chunk));
        bytes
    }

    proptest! {
        /// W1: however the bytes are cut on their way, the frames come out as they went in.
        #[test]
        fn frames_survive_any_chunking(
            bodies in prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 0..50)), 1..5),
            cut in 1_usize..40,
        ) {
            let frames: Vec<Frame> =
                bodies.iter().map(|(head, body)| Frame::new(head, body.clone().into()).unwrap()).collect();
            let bytes: Vec<u8> = frames.iter().flat_map(wire).collect();
            let mut direct = BytesMut::new();
            for (head, body) in &bodies {
                let before = direct.len();
                let whole = Frame::encode_into(&mut direct, head, body.len()).unwrap();
                direct.put_slice(body);
                prop_assert_eq!(direct.len() - before, whole);
                prop_assert_eq!(Frame::measure(head, body.len()), Ok(whole));
            }
            prop_assert_eq!(&direct[..], &bytes[..]);

            let mut arrived = Payload::new();
            let mut out = vec![];
            for chunk in bytes.chunks(cut) {
                arrived.push(Bytes::copy_from_slice(chunk));
                while let Some(frame) = Frame::take_from(&mut arrived).unwrap() {
                    out.push(frame);
                }
            }
            prop_assert_eq!(out, frames);
            prop_assert!(arrived.is_empty());
        }

        /// W1.
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut arrived = Payload::from(bytes.clone());
            while let Ok(Some(frame)) = Frame::take_from(&mut arrived) {
                let _ = frame.decode::<RequestHead>();
            }
            let mut head = vec![FORMAT_VERSION];
            head.extend(bytes);
            let frame = Frame { head: head.into(), payload: Payload::new() };
            let _ = frame.decode::<RequestHead>();
            let _ = frame.decode::<ReplyHead>();
        }
    }

    #[test]
    fn a_frame_length_of_4_gib_is_refused_before_any_memory_is_set_aside() {
        let mut arrived = Payload::from(vec![0xff; 8]);
        assert!(matches!(
            Frame::take_from(&mut arrived),
            Err(DecodeError::TooLarge { .. })
        ));
        let mut arrived = Payload::from(vec![16, 0, 0, 0, 0xff, 0xff, 0, 0]);
        assert!(matches!(
            Frame::take_from(&mut arrived),
            Err(DecodeError::Malformed { .. })
        ));
    }

    #[test]
    fn a_frame_over_the_limit_is_not_begun() {
        let mut out = BytesMut::from(&b"before"[..]);
        let refused = Frame::encode_into(&mut out, &7_u64, FRAME_BYTES_MAX);
        assert!(matches!(refused, Err(DecodeError::TooLarge { .. })));
        assert_eq!(Frame::measure(&7_u64, FRAME_BYTES_MAX).err(), refused.err());
        assert_eq!(&out[..], b"before");
    }

    #[test]
    fn another_version_is_named() {
        let frame = Frame {
            head: Bytes::from_static(&[9, 0]),
            payload: Payload::new(),
        };
        assert_eq!(
            frame.decode::<u64>(),
            Err(DecodeError::Version { found: 9 })
        );
    }
}
