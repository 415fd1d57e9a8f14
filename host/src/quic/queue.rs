//! Frames on their way to a stream: everything that is ready goes in one write.

use bytes::{BufMut, Bytes, BytesMut};
use milonga_wire::{DecodeError, Frame, Payload};
use serde::Serialize;

/// Payload chunks below this are laid beside their heads: a few bytes are copied faster than they are passed on by
/// reference. Larger ones are never copied here.
const SMALL_BYTES: usize = 512;
/// How much is set aside for heads at once.
const OPEN_BYTES: usize = 16 << 10;

/// Bytes that wait for a writer.
#[derive(Debug, Default)]
pub(super) struct Queue {
    parts: Vec<Bytes>,
    open: BytesMut,
    queued: u64,
    taken: u64,
}

impl Queue {
    /// Adds one frame and returns how many bytes it has.
    ///
    /// # Errors
    /// If it is over the limits; nothing is added then.
    pub(super) fn push<T: Serialize>(
        &mut self,
        head: &T,
        payload: &Payload,
    ) -> Result<usize, DecodeError> {
        if self.open.capacity() == 0 {
            self.open.reserve(OPEN_BYTES);
        }
        let bytes = Frame::encode_into(&mut self.open, head, payload.len())?;
        for chunk in payload.chunks() {
            if chunk.len() < SMALL_BYTES {
                self.open.put_slice(chunk);
            } else {
                self.parts.push(self.open.split().freeze());
                self.parts.push(chunk.clone());
            }
        }
        self.queued += bytes as u64;
        Ok(bytes)
    }

    /// Moves everything to `out`, and returns how many bytes that is.
    pub(super) fn take(&mut self, out: &mut Vec<Bytes>) -> u64 {
        out.append(&mut self.parts);
        if !self.open.is_empty() {
            out.push(self.open.split().freeze());
        }
        let bytes = self.queued - self.taken;
        self.taken = self.queued;
        bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queued == self.taken
    }

    /// How many bytes were ever added.
    pub(super) fn queued(&self) -> u64 {
        self.queued
    }

    /// How many bytes were ever taken: always a whole number of frames.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A large payload that is copied on its way costs a core at a few gigabytes a second.
    #[test]
    fn frames_come_out_in_order_and_large_payloads_are_not_copied() {
        let mut queue = Queue::default();
        let large = Bytes::from(vec![7; SMALL_BYTES]);
        let frames: Vec<(u64, Payload)> = vec![
            (1, Payload::new()),
            (2, large.clone().into()),
            (3, vec![1, 2, 3].into()),
        ];
        let mut sizes = 0;
        for (head, payload) in &frames {
            sizes += queue.push(head, payload).unwrap() as u64;
        }
        let mut parts = vec![];
        assert_eq!(queue.take(&mut parts), sizes);
        assert!(queue.is_empty() && queue.taken() == sizes);
        assert!(parts.iter().any(|part| part.as_ptr() == large.as_ptr()));

        let mut arrived = Payload::new();
        for part in parts {
            arrived.push(part);
        }
        for (head, payload) in frames {
            let frame = Frame::take_from(&mut arrived).unwrap().unwrap();
            assert_eq!(frame.decode::<u64>().unwrap(), head);
            assert_eq!(frame.payload, payload);
        }
        assert!(arrived.is_empty());
    }
}
