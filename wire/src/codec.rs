//! Frames: a postcard head and a raw payload that is never copied.
//!
//! ```text
//! u32 length of what follows │ u32 length of the head │ version │ head (postcard) │ payload
//! ```
//! Numbers are little-endian. The version is the head's first byte and is counted in its length.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

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
///
/// Small, because it is moved along with every request and reply: nearly all of them have one chunk or none.
#[derive(Clone, Debug)]
pub struct Payload(Chunks);

#[derive(Clone, Debug)]
enum Chunks {
    /// Empty if there are no bytes at all.
    One(Bytes),
    Many(Box<Many>),
}

#[derive(Clone, Debug, Default)]
struct Many {
    chunks: Vec<Bytes>,
    len: usize,
}

impl Payload {
    /// No bytes.
    pub const fn new() -> Self {
        Self(Chunks::One(Bytes::new()))
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        match &self.0 {
            Chunks::One(only) => only.len(),
            Chunks::Many(many) => many.len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, chunk: Bytes) {
        if chunk.is_empty() {
            return;
        }
        match &mut self.0 {
            Chunks::One(only) if only.is_empty() => *only = chunk,
            Chunks::One(only) => {
                let len = only.len() + chunk.len();
                let chunks = vec![std::mem::take(only), chunk];
                self.0 = Chunks::Many(Box::new(Many { chunks, len }));
            }
            Chunks::Many(many) => {
                many.len += chunk.len();
                many.chunks.push(chunk);
            }
        }
    }

    /// Adds all of `other` at the end.
    pub fn append(&mut self, other: Self) {
        match other.0 {
            Chunks::One(only) => self.push(only),
            Chunks::Many(many) => many.chunks.into_iter().for_each(|chunk| self.push(chunk)),
        }
    }

    /// The chunks, in order; none is empty.
    pub fn chunks(&self) -> &[Bytes] {
        match &self.0 {
            Chunks::One(only) if only.is_empty() => &[],
            Chunks::One(only) => std::slice::from_ref(only),
            Chunks::Many(many) => &many.chunks,
        }
    }

    /// Takes the first `count` bytes out, sharing their memory; all there are if there are fewer.
    pub fn split_to(&mut self, count: usize) -> Self {
        let many = match &mut self.0 {
            Chunks::One(only) => return only.split_to(count.min(only.len())).into(),
            Chunks::Many(many) => many,
        };
        let mut taken = Self::new();
        let mut missing = count.min(many.len);
        many.len -= missing;
        let mut whole = 0;
        for chunk in &mut many.chunks {
            if chunk.len() > missing {
                taken.push(chunk.split_to(missing));
                break;
            }
            missing -= chunk.len();
            taken.push(std::mem::take(chunk));
            whole += 1;
        }
        many.chunks.drain(..whole);
        if let [last] = many.chunks.as_mut_slice() {
            *self = std::mem::take(last).into();
        }
        taken
    }

    /// All bytes in one piece: shared if there is one chunk, else copied.
    pub fn into_bytes(self) -> Bytes {
        let mut many = match self.0 {
            Chunks::One(only) => return only,
            Chunks::Many(many) => many,
        };
        match many.chunks.len() {
            0 => Bytes::new(),
            1 => many.chunks.remove(0),
            _ => {
                let mut joined = BytesMut::with_capacity(many.len);
                for chunk in many.chunks {
                    joined.put(chunk);
                }
                joined.freeze()
            }
        }
    }

    fn bytes(&self) -> impl Iterator<Item = &u8> {
        self.chunks().iter().flatten()
    }
}

impl Default for Payload {
    fn default() -> Self {
        Self::new()
    }
}

impl From<Bytes> for Payload {
    fn from(chunk: Bytes) -> Self {
        Self(Chunks::One(chunk))
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.bytes().eq(other.bytes())
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
        decode_head(&self.head)
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
        let taken = next_frame(arrived, Bytes::copy_from_slice)?;
        Ok(taken.map(|(head, payload)| Self { head, payload }))
    }
}

/// Takes the first whole frame out of what arrived, and gives what `read` makes of its head, and its payload; nothing if
/// more bytes are needed. Nearly always, nothing is copied.
///
/// # Errors
/// If the next frame is over the limits or its lengths contradict each other: the connection is of no use any more.
pub fn next_frame<T>(
    arrived: &mut Payload,
    read: impl FnOnce(&[u8]) -> T,
) -> Result<Option<(T, Payload)>, DecodeError> {
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
    let behind = PREFIX + head as usize;
    let payload_bytes = whole as usize - behind;
    if let Chunks::One(only) = &mut arrived.0 {
        // Most frames are small and lie in one chunk with many others.
        let made = read(&only[PREFIX..behind]);
        only.advance(behind);
        let payload = if payload_bytes == 0 {
            Payload::new()
        } else {
            only.split_to(payload_bytes).into()
        };
        return Ok(Some((made, payload)));
    }
    let made = match arrived.chunks() {
        [first, ..] if first.len() >= behind => {
            let made = read(&first[PREFIX..behind]);
            drop(arrived.split_to(behind));
            made
        }
        _ => read(&arrived.split_to(behind).into_bytes()[PREFIX..]),
    };
    Ok(Some((made, arrived.split_to(payload_bytes))))
}

/// The value of a head.
///
/// # Errors
/// If it is of another version, or no `T` and nothing but a `T` (W1).
pub fn decode_head<T: DeserializeOwned>(head: &[u8]) -> Result<T, DecodeError> {
    let (version, head) = head.split_first().ok_or_else(|| DecodeError::Malformed {
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
    if let Some(whole) = arrived
        .chunks()
        .first()
        .and_then(|chunk| chunk.first_chunk())
    {
        prefix = *whole;
    } else {
        let slots = prefix.iter_mut().zip(arrived.bytes());
        slots.for_each(|(slot, byte)| *slot = *byte);
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
