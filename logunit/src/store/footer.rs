//! The index of a closed file, as it stands at the file's end. Pure.
//!
//! ```text
//! … │ room │ footer │ trailer: tag, checksum, where the footer starts, its length, its checksum │ end of file
//! ```
//! Both are under checksums that start from the file's key, so a recycled file's old footer does not verify. A footer
//! that does not verify costs a scan of its file, no more.

use milonga_wire::{Position, Span, Term};

use super::format::{
    Key, LISTED_BYTES, Listed, State, decode_listed, encode_listed, u32_at, u64_at,
};
use super::index::FileIndex;
use super::slots::{self, Slots};
use super::streams::{self, Streams};

pub(super) const TRAILER: usize = 40;
const MAGIC: u64 = 0x7265_7469_6172_746d;
const FIXED: usize = State::BYTES + 48;

/// What a file is, beside its index.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Summary {
    /// What held after its last batch.
    pub(super) state: State,
    /// The batch before its first one.
    pub(super) after: u64,
    /// Its first batch.
    pub(super) first: u64,
    /// Its last batch.
    pub(super) last: u64,
    /// Where its last batch ends.
    pub(super) data_end: u64,
    /// Whether every batch between them stands there undamaged.
    pub(super) whole: bool,
    /// The files there were when it was begun.
    pub(super) listed: Vec<Listed>,
}

/// Bytes that a footer and its trailer take at most.
pub(super) fn bytes_max(index_bytes: u64, files: usize) -> u64 {
    (FIXED + TRAILER + files * LISTED_BYTES + 16) as u64 + index_bytes
}

/// Footer and trailer, to be written so that they end with the file.
pub(super) fn encode(
    key: &Key,
    size: u64,
    summary: &Summary,
    index: &FileIndex,
) -> Option<Vec<u8>> {
    let (Slots::Frozen(slots), Streams::Frozen(streams)) = (&index.slots, &index.streams) else {
        return None;
    };
    let mut out = Vec::new();
    out.extend_from_slice(&summary.state.encode());
    let numbers = [
        summary.first,
        summary.last,
        summary.data_end,
        index.end.0,
        summary.after,
    ];
    put(&mut out, &numbers);
    out.extend_from_slice(&u32::from(summary.whole).to_le_bytes());
    out.extend_from_slice(&(summary.listed.len() as u32).to_le_bytes());
    out.extend_from_slice(&encode_listed(&summary.listed));
    out.extend_from_slice(&(index.junk.len() as u32).to_le_bytes());
    out.extend_from_slice(&(index.damaged.len() as u32).to_le_bytes());
    for (span, term) in index.junk.iter() {
        put(&mut out, &[span.start.0, span.end.0, term.0]);
    }
    for (span, ()) in index.damaged.iter() {
        put(&mut out, &[span.start.0, span.end.0]);
    }
    slots.encode(&mut out);
    streams.encode(&mut out);
    let len = out.len() as u64;
    let start = size.checked_sub(len + TRAILER as u64)?;
    let sum = key.crc(&out);
    let at = out.len();
    out.extend_from_slice(&(MAGIC ^ key.salt).to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&start.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&u64::from(sum).to_le_bytes());
    let trailer_sum = key.crc(&out[at + 16..]);
    out[at + 8..at + 12].copy_from_slice(&trailer_sum.to_le_bytes());
    Some(out)
}

fn put(out: &mut Vec<u8>, numbers: &[u64]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// Where a footer stands.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Trailer {
    pub(super) start: u64,
    pub(super) len: u64,
    sum: u32,
}

impl Trailer {
    /// The trailer that `bytes`, the last of a file of `size`, are.
    pub(super) fn decode(key: &Key, size: u64, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != TRAILER
            || u64_at(bytes, 0) != MAGIC ^ key.salt
            || u32_at(bytes, 8) != key.crc(&bytes[16..])
        {
            return None;
        }
        let trailer = Self {
            start: u64_at(bytes, 16),
            len: u64_at(bytes, 24),
            sum: u32_at(bytes, 32),
        };
        let end = trailer.start.checked_add(trailer.len)?;
        (end.checked_add(TRAILER as u64)? == size).then_some(trailer)
    }

    /// The footer that `bytes` are, if it verifies.
    pub(super) fn footer(&self, key: &Key, bytes: &[u8]) -> Option<(Summary, FileIndex)> {
        if key.crc(bytes) != self.sum {
            return None;
        }
        let fixed = bytes.get(..FIXED)?;
        let numbers = &fixed[State::BYTES..];
        let mut rest = &bytes[FIXED..];
        let mut take = |len: usize| {
            let (taken, behind) = rest.split_at_checked(len)?;
            rest = behind;
            Some(taken)
        };
        let listed = decode_listed(take(u32_at(numbers, 44) as usize * LISTED_BYTES)?);
        let counts = take(8)?;
        let mut index = FileIndex {
            end: Position(u64_at(numbers, 24)),
            ..FileIndex::default()
        };
        for junk in take(u32_at(counts, 0) as usize * 24)?.chunks_exact(24) {
            index.junk.insert(span(junk), Term(u64_at(junk, 16)));
        }
        for damaged in take(u32_at(counts, 4) as usize * 16)?.chunks_exact(16) {
            index.damaged.insert(span(damaged), ());
        }
        let (slots, len) = slots::Frozen::decode(rest)?;
        index.slots = Slots::Frozen(slots);
        index.streams = Streams::Frozen(streams::Frozen::decode(&rest[len..])?);
        let summary = Summary {
            state: State::decode(fixed),
            after: u64_at(numbers, 32),
            first: u64_at(numbers, 0),
            last: u64_at(numbers, 8),
            data_end: u64_at(numbers, 16),
            whole: u32_at(numbers, 40) != 0,
            listed,
        };
        Some((summary, index))
    }
}

fn span(bytes: &[u8]) -> Span {
    Span::new(Position(u64_at(bytes, 0)), Position(u64_at(bytes, 8)))
}
