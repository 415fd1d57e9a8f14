//! Which positions belong to which stream: per file, and the last ones of each over all files. Pure.
//!
//! - X1 A stream's tail holds the last K positions of it that this store was given, trimmed or not (T5). Where some were
//!   forgotten all the same (T6), what its lowest entry says came before it takes their place; where that is not known
//!   either, the tail says so.

use std::collections::BTreeMap;

use milonga_wire::limits::BACKPOINTERS;
use milonga_wire::{Before, Position, Span, StreamId};
use smallvec::SmallVec;

use super::format::{array, decode_before, encode_before, u32_at, u64_at};

/// Positions of one stream that stand together in a frozen file.
const CHUNK: usize = 256;

/// A file's streams while it grows.
#[derive(Debug, Default)]
pub(super) struct Growing {
    streams: BTreeMap<StreamId, GrowingStream>,
    links: usize,
    chunks: usize,
}

#[derive(Debug)]
struct GrowingStream {
    /// Rising.
    positions: Vec<Position>,
    /// What came before the first of them.
    before: Before,
}

impl Growing {
    /// Notes that `position` belongs to `stream`; a second time is no second link.
    pub(super) fn put(&mut self, stream: StreamId, position: Position, before: &Before) {
        let known = self.streams.entry(stream);
        let known = known.or_insert_with(|| GrowingStream {
            positions: Vec::new(),
            before: before.clone(),
        });
        let positions = &mut known.positions;
        let at = match positions.last() {
            Some(last) if *last >= position => positions.partition_point(|other| *other < position),
            _ => positions.len(),
        };
        if positions.get(at) == Some(&position) {
            return;
        }
        self.chunks += usize::from(positions.len().is_multiple_of(CHUNK));
        self.links += 1;
        if at == 0 {
            known.before = before.clone();
        }
        positions.insert(at, position);
    }

    /// Bytes that the frozen form takes at most (but for gaps of more than 2^32 positions).
    pub(super) fn bytes_max(&self) -> u64 {
        let befores = self.streams.len() * 8 * BACKPOINTERS;
        (8 + self.links * 5 + self.chunks * (CHUNK_BYTES + 6) + befores) as u64
    }

    pub(super) fn freeze(&self) -> Frozen {
        let mut chunks = Vec::with_capacity(self.chunks);
        let mut blob = Vec::new();
        for (stream, known) in &self.streams {
            for (index, positions) in known.positions.chunks(CHUNK).enumerate() {
                chunks.push(Chunk {
                    stream: *stream,
                    first: positions[0],
                    at: blob.len() as u32,
                });
                // Only the first chunk of a stream is asked what came before it.
                let before = if index == 0 {
                    &known.before
                } else {
                    &Before::Unknown
                };
                encode_before(before, &mut blob);
                put_varint(&mut blob, positions.len() as u64);
                for pair in positions.windows(2) {
                    put_varint(&mut blob, pair[1].since(pair[0]));
                }
            }
        }
        Frozen {
            chunks,
            blob: blob.into_boxed_slice(),
        }
    }

    fn from(&self, stream: StreamId, from: Position) -> &[Position] {
        let known = self.streams.get(&stream);
        let positions = known.map_or(&[][..], |known| known.positions.as_slice());
        &positions[positions.partition_point(|position| *position < from)..]
    }
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct Chunk {
    stream: StreamId,
    first: Position,
    at: u32,
}

const CHUNK_BYTES: usize = 28;

/// A file's streams once it is closed: chunks sorted by stream and first position, each with what came before it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Frozen {
    chunks: Vec<Chunk>,
    blob: Box<[u8]>,
}

impl Frozen {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.chunks.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.blob.len() as u32).to_le_bytes());
        for chunk in &self.chunks {
            out.extend_from_slice(&chunk.stream.0);
            out.extend_from_slice(&chunk.first.0.to_le_bytes());
            out.extend_from_slice(&chunk.at.to_le_bytes());
        }
        out.extend_from_slice(&self.blob);
    }

    /// What [`Frozen::encode`] wrote, if it makes sense throughout: nothing later needs to check.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..8)?;
        let (count, blob) = (u32_at(head, 0) as usize, u32_at(head, 4) as usize);
        let table = bytes.get(8..8 + count.checked_mul(CHUNK_BYTES)?)?;
        let blob = bytes.get(8 + table.len()..)?.get(..blob)?;
        let chunks: Vec<Chunk> = table
            .chunks_exact(CHUNK_BYTES)
            .map(|chunk| Chunk {
                stream: StreamId(array(chunk, 0)),
                first: Position(u64_at(chunk, 16)),
                at: u32_at(chunk, 24),
            })
            .collect();
        let frozen = Self {
            chunks,
            blob: blob.into(),
        };
        frozen
            .chunks
            .iter()
            .all(|chunk| frozen.is_sound(chunk))
            .then_some(frozen)
    }

    fn is_sound(&self, chunk: &Chunk) -> bool {
        let Some((_, mut list)) = self.open(chunk) else {
            return false;
        };
        let count = list.left;
        count > 0 && (&mut list).count() as u64 == count
    }

    fn open(&self, chunk: &Chunk) -> Option<(Before, List<'_>)> {
        let bytes = self.blob.get(chunk.at as usize..)?;
        let (before, len) = decode_before(bytes)?;
        let mut bytes = &bytes[len..];
        let left = take_varint(&mut bytes)?;
        let next = Some(chunk.first);
        Some((before, List { bytes, left, next }))
    }

    fn chunks_of(&self, stream: StreamId) -> &[Chunk] {
        let start = self.chunks.partition_point(|chunk| chunk.stream < stream);
        let chunks = &self.chunks[start..];
        &chunks[..chunks.partition_point(|chunk| chunk.stream == stream)]
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.chunks.capacity() * size_of::<Chunk>() + self.blob.len()
    }
}

/// The positions of a chunk.
struct List<'a> {
    bytes: &'a [u8],
    left: u64,
    next: Option<Position>,
}

impl Iterator for List<'_> {
    type Item = Position;

    fn next(&mut self) -> Option<Position> {
        if self.left == 0 {
            return None;
        }
        let position = self.next?;
        self.left -= 1;
        if self.left > 0 {
            let step = take_varint(&mut self.bytes);
            self.next = step.map(|step| position.plus(step));
        }
        Some(position)
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A file's streams.
#[derive(Debug)]
pub(super) enum Streams {
    Growing(Growing),
    Frozen(Frozen),
}

impl Streams {
    /// The positions of `stream` at or after `from`, rising.
    pub(super) fn positions(
        &self,
        stream: StreamId,
        from: Position,
    ) -> Box<dyn Iterator<Item = Position> + '_> {
        match self {
            Self::Growing(growing) => Box::new(growing.from(stream, from).iter().copied()),
            Self::Frozen(frozen) => {
                let chunks = frozen.chunks_of(stream);
                let first = chunks.partition_point(|chunk| chunk.first <= from);
                let lists = chunks[first.saturating_sub(1)..].iter();
                let positions = lists
                    .filter_map(|chunk| frozen.open(chunk))
                    .flat_map(|(_, list)| list);
                Box::new(positions.skip_while(move |position| *position < from))
            }
        }
    }

    /// Tells `tails` of every stream here: its last positions, and its lowest with what came before.
    pub(super) fn tell(&self, tails: &mut Tails) {
        match self {
            Self::Growing(growing) => {
                for (stream, known) in &growing.streams {
                    tails.load(*stream, known.positions[0], Some(&known.before));
                    for position in known.positions.iter().rev().take(BACKPOINTERS) {
                        tails.load(*stream, *position, None);
                    }
                }
            }
            Self::Frozen(frozen) => {
                for chunks in frozen.chunks.chunk_by(|a, b| a.stream == b.stream) {
                    let stream = chunks[0].stream;
                    if let Some((before, _)) = frozen.open(&chunks[0]) {
                        tails.load(stream, chunks[0].first, Some(&before));
                    }
                    let ends = &chunks[chunks.len().saturating_sub(2)..];
                    let lists = ends.iter().filter_map(|chunk| frozen.open(chunk));
                    for position in lists.flat_map(|(_, list)| list) {
                        tails.load(stream, position, None);
                    }
                }
            }
        }
    }
}

/// The flag of a tail whose past is unknown, where tails are written.
const UNKNOWN: u8 = 0x80;

/// The last positions of one stream, newest first; at least one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Tail {
    positions: SmallVec<[Position; BACKPOINTERS]>,
    /// Something before them was forgotten, and nobody says what.
    unknown: bool,
}

impl Tail {
    fn put(&mut self, position: Position) {
        let at = self.positions.partition_point(|other| *other > position);
        if at < BACKPOINTERS && self.positions.get(at) != Some(&position) {
            self.positions
                .truncate(BACKPOINTERS - 1 + usize::from(self.positions.len() < BACKPOINTERS));
            self.positions.insert(at, position);
        }
        self.unknown &= self.positions.len() < BACKPOINTERS;
    }

    /// Fills up with what came before the lowest entry that is known.
    fn extend(&mut self, before: &Before) {
        if self.positions.len() == BACKPOINTERS {
            return;
        }
        match before {
            Before::Known(positions) => {
                for position in positions {
                    self.put(*position);
                }
                // Fewer than K stand there only if there never were more (8.1).
                self.unknown = false;
            }
            Before::Unknown => self.unknown = true,
        }
    }

    fn newest(&self) -> Position {
        let newest = self.positions.first();
        *newest.expect("a tail begins with a position")
    }

    fn before(&self) -> Before {
        if self.unknown {
            Before::Unknown
        } else {
            Before::Known(self.positions.to_vec())
        }
    }
}

/// The last positions of every stream (X1).
#[derive(Debug, Default)]
pub(super) struct Tails {
    last: BTreeMap<StreamId, Tail>,
    /// Whether any was dropped, or what was kept of trimmed streams is lost.
    forgetful: bool,
    /// While loading: the lowest position of each stream, and what came before it.
    lowest: BTreeMap<StreamId, (Position, Before)>,
}

impl Tails {
    /// One position, told by a file at opening; `before` with the lowest of the file.
    fn load(&mut self, stream: StreamId, position: Position, before: Option<&Before>) {
        self.last.entry(stream).or_default().put(position);
        if let Some(before) = before {
            let lowest = self.lowest.entry(stream);
            let lowest = lowest.or_insert_with(|| (position, before.clone()));
            if position < lowest.0 {
                *lowest = (position, before.clone());
            }
        }
    }

    /// All files have told what they hold: what was forgotten is made up for.
    pub(super) fn loaded(&mut self) {
        for (stream, (_, before)) in std::mem::take(&mut self.lowest) {
            if self.forgetful
                && let Some(tail) = self.last.get_mut(&stream)
            {
                tail.extend(&before);
            }
        }
    }

    /// Whether a stream may have been forgotten.
    pub(super) fn is_forgetful(&self) -> bool {
        self.forgetful
    }

    /// Streams may have been forgotten.
    pub(super) fn forget(&mut self) {
        self.forgetful = true;
    }

    /// A new entry's link.
    pub(super) fn put(&mut self, stream: StreamId, position: Position, before: &Before) {
        let fresh = !self.last.contains_key(&stream);
        let tail = self.last.entry(stream).or_default();
        tail.put(position);
        if fresh && self.forgetful {
            tail.extend(before);
        }
    }

    /// Whether any of the last positions of any stream lies within `span`.
    pub(super) fn any_within(&self, span: Span) -> bool {
        let mut positions = self.last.values().flat_map(|tail| &tail.positions);
        positions.any(|position| span.contains(*position))
    }

    /// Drops streams that end below `trimmed`, the lowest first, until there are no more than `count_max` in all (T6).
    pub(super) fn shed(&mut self, trimmed: Position, count_max: usize) {
        let excess = self.last.len().saturating_sub(count_max);
        if excess == 0 {
            return;
        }
        let ends = self
            .last
            .iter()
            .map(|(stream, tail)| (tail.newest(), *stream));
        let mut ended: Vec<(Position, StreamId)> =
            ends.filter(|(newest, _)| *newest < trimmed).collect();
        ended.sort_unstable();
        for (_, stream) in ended.iter().take(excess) {
            self.last.remove(stream);
            self.forgetful = true;
        }
    }

    /// Appends the tails that reach below `upto`. Returns how many.
    pub(super) fn encode_below(&self, upto: Position, out: &mut Vec<u8>) -> u64 {
        let mut count = 0;
        let reaches = |tail: &Tail| tail.unknown || tail.positions.iter().any(|at| *at < upto);
        for (stream, tail) in self.last.iter().filter(|(_, tail)| reaches(tail)) {
            out.extend_from_slice(&stream.0);
            let unknown = if tail.unknown { UNKNOWN } else { 0 };
            out.push(tail.positions.len() as u8 | unknown);
            put_varint(out, tail.newest().0);
            for pair in tail.positions.windows(2) {
                put_varint(out, pair[0].since(pair[1]));
            }
            count += 1;
        }
        count
    }

    /// Takes over `count` tails that [`Tails::encode_below`] wrote; none if they make no sense. Files have told before
    /// what they hold.
    pub(super) fn decode_below(&mut self, mut bytes: &[u8], count: u64) -> Option<()> {
        for _ in 0..count {
            let stream = StreamId(array(bytes.get(..16)?, 0));
            let flags = *bytes.get(16)?;
            bytes = &bytes[17..];
            let held = usize::from(flags & !UNKNOWN);
            if held == 0 || held > BACKPOINTERS {
                return None;
            }
            let mut position = take_varint(&mut bytes)?;
            let tail = self.last.entry(stream).or_default();
            tail.put(Position(position));
            for _ in 1..held {
                position = position.checked_sub(take_varint(&mut bytes)?)?;
                tail.put(Position(position));
            }
            tail.unknown |= flags & UNKNOWN != 0 && tail.positions.len() < BACKPOINTERS;
        }
        bytes.is_empty().then_some(())
    }

    /// A page of them, in the order of ids; and whether there are more.
    pub(super) fn page(
        &self,
        after: Option<StreamId>,
        count_max: usize,
    ) -> (Vec<(StreamId, Before)>, bool) {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let mut kept = self.last.range((from, Unbounded));
        let page = kept
            .by_ref()
            .take(count_max)
            .map(|(stream, tail)| (*stream, tail.before()))
            .collect();
        (page, kept.next().is_some())
    }

    pub(super) fn len(&self) -> usize {
        self.last.len()
    }
}
