//! How a data file looks as bytes. Pure: no file is touched here.
//!
//! ```text
//! file    header (one page) │ batch │ batch │ … │ room │ footer │ trailer          (footer and trailer: see `footer.rs`)
//! batch   head │ record │ record │ …                                                 each starts at a multiple of 8
//! record  head │ streams │ payload
//! ```
//! - F1 Every head is under a checksum that starts from the cluster, the server, the file's number and its salt. What
//!   belongs elsewhere, or to an earlier life of a recycled file, does not verify.
//! - F2 A record's head holds the checksum of its payload, a batch's head one of all its records' heads: a batch
//!   verifies only if every byte of every record of it does.
//! - F3 The salt is random, made with the file and never told: no payload can contain a head that verifies.
//! - F4 Each batch head carries all that survives a restart beside entries, so the newest batch tells it.
//!
//! Numbers are little-endian.

use crc32fast::Hasher;
use milonga_wire::limits::{BACKPOINTERS, STREAMS_PER_ENTRY_MAX};
use milonga_wire::{
    Before, ClusterId, EntryHead, Identity, Payload, Position, Session, Span, Stamp, StreamId,
    StreamLink, Term,
};

/// The version of everything in a directory.
pub const FORMAT_VERSION: u32 = 1;

/// Bytes of a file's header, and what writes are rounded up to.
pub(super) const PAGE: u64 = 4_096;
/// Every batch and record starts at a multiple of this.
pub(super) const ALIGN: u64 = 8;
pub(super) const BATCH_HEAD: usize = 80;
pub(super) const RECORD_HEAD: usize = 64;

const FILE_MAGIC: [u8; 8] = *b"mlngdata";
const BATCH_TAG: u32 = 0x4241_5443;

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

/// `N` bytes from `at`; callers have checked the length.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(super) fn aligned(len: u64) -> u64 {
    len.next_multiple_of(ALIGN)
}

fn crc(start: u32, bytes: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(start);
    hasher.update(bytes);
    hasher.finalize()
}

/// The checksum of a payload by itself.
pub(super) fn payload_crc(payload: &Payload) -> u32 {
    let mut hasher = Hasher::new();
    for chunk in payload.chunks() {
        hasher.update(chunk);
    }
    hasher.finalize()
}

/// Whose directory it is.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Owner {
    pub(super) cluster: ClusterId,
    pub(super) identity: Identity,
}

/// What the checksums of one data file start from (F1).
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Key {
    pub(super) number: u64,
    pub(super) salt: u64,
    seed: u32,
    tag: u32,
}

impl Key {
    pub(super) fn new(owner: Owner, number: u64, salt: u64) -> Self {
        let mut bytes = Vec::with_capacity(48);
        bytes.extend_from_slice(&owner.cluster.0);
        bytes.extend_from_slice(&owner.identity.0);
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&salt.to_le_bytes());
        Self {
            number,
            salt,
            seed: crc(0, &bytes),
            tag: (salt >> 32) as u32 ^ salt as u32,
        }
    }

    /// The checksum that `bytes` carry in this file.
    pub(super) fn crc(&self, bytes: &[u8]) -> u32 {
        crc(self.seed, bytes)
    }

    /// Whether four bytes may start a head of this file: a cheap test.
    pub(super) fn is_tag(&self, bytes: &[u8]) -> bool {
        bytes.len() >= 4 && matches!(u32_at(bytes, 0) ^ self.tag, 0 | BATCH_TAG)
    }

    fn crc_of_two(&self, first: &[u8], second: &[u8]) -> u32 {
        let mut hasher = Hasher::new_with_initial(self.seed);
        hasher.update(first);
        hasher.update(second);
        hasher.finalize()
    }
}

/// A file's header: one page, written and synced before its first batch.
pub(super) fn file_header(owner: Owner, key: &Key, size: u64) -> Vec<u8> {
    let mut page = vec![0; PAGE as usize];
    page[0..8].copy_from_slice(&FILE_MAGIC);
    page[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    page[16..32].copy_from_slice(&owner.cluster.0);
    page[32..48].copy_from_slice(&owner.identity.0);
    page[48..56].copy_from_slice(&key.number.to_le_bytes());
    page[56..64].copy_from_slice(&key.salt.to_le_bytes());
    page[64..72].copy_from_slice(&size.to_le_bytes());
    let sum = crc(0, &page[..72]);
    page[72..76].copy_from_slice(&sum.to_le_bytes());
    page
}

/// Why a page is no header of a file of this directory.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum BadFile {
    #[error("its header is damaged")]
    Damaged,
    #[error("it has format version {0}")]
    Version(u32),
    #[error("it belongs to server {} of cluster {}", .0.identity, .0.cluster)]
    Foreign(Owner),
    #[error("its header says it is file {0}")]
    Number(u64),
}

/// The key of the file that `page` heads, if it is file `number` of `owner`.
pub(super) fn read_file_header(page: &[u8], owner: Owner, number: u64) -> Result<Key, BadFile> {
    if page.len() < 76 || page[0..8] != FILE_MAGIC {
        return Err(BadFile::Damaged);
    }
    // The checksum stands where it stands in every version, so that damage is not taken for the future.
    if u32_at(page, 72) != crc(0, &page[..72]) {
        return Err(BadFile::Damaged);
    }
    let version = u32_at(page, 8);
    if version > FORMAT_VERSION {
        return Err(BadFile::Version(version));
    }
    let found = Owner {
        cluster: ClusterId(array(page, 16)),
        identity: Identity(array(page, 32)),
    };
    if found != owner {
        return Err(BadFile::Foreign(found));
    }
    match u64_at(page, 48) {
        same if same == number => Ok(Key::new(owner, number, u64_at(page, 56))),
        other => Err(BadFile::Number(other)),
    }
}

/// What survives a restart beside entries.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct State {
    pub(super) term: Term,
    pub(super) trimmed: Position,
    pub(super) settled: Position,
    pub(super) end: Position,
    pub(super) listed: bool,
}

impl State {
    pub(super) const BYTES: usize = 36;

    /// The later of both: none of it ever falls.
    pub(super) fn merge(self, other: Self) -> Self {
        Self {
            term: self.term.max(other.term),
            trimmed: self.trimmed.max(other.trimmed),
            settled: self.settled.max(other.settled),
            end: self.end.max(other.end),
            listed: self.listed || other.listed,
        }
    }

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[0..4].copy_from_slice(&u32::from(self.listed).to_le_bytes());
        let numbers = [self.term.0, self.trimmed.0, self.settled.0, self.end.0];
        for (slot, number) in out[4..].chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        Self {
            listed: u32_at(bytes, 0) != 0,
            term: Term(u64_at(bytes, 4)),
            trimmed: Position(u64_at(bytes, 12)),
            settled: Position(u64_at(bytes, 20)),
            end: Position(u64_at(bytes, 28)),
        }
    }
}

/// A batch's head.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct BatchHead {
    /// Rises over all files. A number once seen, even in a torn batch, is not given again.
    pub(super) sequence: u64,
    /// The batch before it, which was synced when this one was written.
    pub(super) synced: u64,
    /// Bytes of the whole batch.
    pub(super) bytes: u32,
    /// Records in it.
    pub(super) count: u32,
    /// The checksum of its records' checksums.
    pub(super) digest: u32,
    /// What holds once it is durable.
    pub(super) state: State,
}

impl BatchHead {
    pub(super) fn encode(&self, key: &Key, out: &mut [u8]) {
        out[0..4].copy_from_slice(&(key.tag ^ BATCH_TAG).to_le_bytes());
        out[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        out[16..24].copy_from_slice(&self.synced.to_le_bytes());
        out[24..28].copy_from_slice(&self.bytes.to_le_bytes());
        out[28..32].copy_from_slice(&self.count.to_le_bytes());
        out[32..36].copy_from_slice(&self.digest.to_le_bytes());
        out[36..72].copy_from_slice(&self.state.encode());
        out[72..80].copy_from_slice(&key.number.to_le_bytes());
        let sum = key.crc(&out[8..BATCH_HEAD]);
        out[4..8].copy_from_slice(&sum.to_le_bytes());
    }

    /// The head at the start of `bytes`, if one of this file is there.
    pub(super) fn decode(key: &Key, bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..BATCH_HEAD)?;
        if u32_at(bytes, 0) != key.tag ^ BATCH_TAG || u32_at(bytes, 4) != key.crc(&bytes[8..]) {
            return None;
        }
        let head = Self {
            sequence: u64_at(bytes, 8),
            synced: u64_at(bytes, 16),
            bytes: u32_at(bytes, 24),
            count: u32_at(bytes, 28),
            digest: u32_at(bytes, 32),
            state: State::decode(&bytes[36..]),
        };
        let sane = head.bytes as usize >= BATCH_HEAD && u64::from(head.bytes) % ALIGN == 0;
        sane.then_some(head)
    }
}

/// What a record is.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// A user's record.
    Data(Stamp),
    /// Junk, from the record's position to this one.
    Junk(Position),
    /// The data files that there are, and where each ends: the first batch of a file carries it.
    Files,
}

const KIND_DATA: u8 = 1;
const KIND_JUNK: u8 = 2;
const KIND_FILES: u8 = 3;

/// A record's head, without its streams.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct RecordHead {
    pub(super) kind: Kind,
    pub(super) position: Position,
    pub(super) term: Term,
    pub(super) len: u32,
    pub(super) payload_crc: u32,
    pub(super) streams_bytes: u16,
    /// Its checksum: what the batch's digest is made of.
    pub(super) crc: u32,
}

impl RecordHead {
    /// Bytes of the whole record, without what aligns the next one.
    pub(super) fn bytes(&self) -> u64 {
        self.payload_at() + u64::from(self.len)
    }

    /// Where the payload starts in the record.
    pub(super) fn payload_at(&self) -> u64 {
        RECORD_HEAD as u64 + u64::from(self.streams_bytes)
    }

    /// The positions it covers.
    pub(super) fn span(&self) -> Span {
        match self.kind {
            Kind::Data(_) => Span::one(self.position),
            Kind::Junk(end) => Span::new(self.position, end),
            Kind::Files => Span::default(),
        }
    }

    /// Whether `bytes` start with a head's tag of this file: a cheap test before [`RecordHead::decode`].
    pub(super) fn is_tagged(key: &Key, bytes: &[u8]) -> bool {
        bytes.len() >= RECORD_HEAD && u32_at(bytes, 0) == key.tag
    }

    /// The head at the start of `bytes`, which hold the streams too, if one of this file is there.
    pub(super) fn decode(key: &Key, bytes: &[u8]) -> Option<Self> {
        if !Self::is_tagged(key, bytes) {
            return None;
        }
        let streams_bytes = u16_at(bytes, 60);
        let whole = bytes.get(8..RECORD_HEAD + usize::from(streams_bytes))?;
        let crc = u32_at(bytes, 4);
        if crc != key.crc(whole) {
            return None;
        }
        let kind = match bytes[62] {
            KIND_DATA => Kind::Data(Stamp {
                session: Session(array(bytes, 24)),
                request: u64_at(bytes, 40),
                record: u32_at(bytes, 48),
            }),
            KIND_JUNK => Kind::Junk(Position(u64_at(bytes, 24))),
            KIND_FILES => Kind::Files,
            _ => return None,
        };
        Some(Self {
            kind,
            position: Position(u64_at(bytes, 8)),
            term: Term(u64_at(bytes, 16)),
            len: u32_at(bytes, 52),
            payload_crc: u32_at(bytes, 56),
            streams_bytes,
            crc,
        })
    }

    /// Whether `payload` is the record's.
    pub(super) fn verifies(&self, payload: &[u8]) -> bool {
        payload.len() == self.len as usize && crc(0, payload) == self.payload_crc
    }

    /// The same with its streams, as the wire knows it.
    pub(super) fn entry(&self, stamp: Stamp, streams: Vec<StreamLink>) -> EntryHead {
        EntryHead {
            position: self.position,
            term: self.term,
            stamp,
            streams,
            len: self.len,
        }
    }

    /// Bytes of the record whose head, not yet verified, `bytes` start with; with its payload or without.
    pub(super) fn bytes_at(bytes: &[u8], whole: bool) -> u64 {
        let payload = if whole { u32_at(bytes, 52) } else { 0 };
        RECORD_HEAD as u64 + u64::from(u16_at(bytes, 60)) + u64::from(payload)
    }

    /// Bytes that [`Draft::entry`] will take for a record, alignment included.
    pub(super) fn bytes_for(head: &EntryHead, payload: &Payload) -> u64 {
        let streams: usize = head.streams.iter().map(link_bytes).sum();
        aligned((RECORD_HEAD + streams + payload.len()) as u64)
    }
}

const UNKNOWN: u8 = 0xff;

fn link_bytes(link: &StreamLink) -> usize {
    17 + match &link.before {
        Before::Known(positions) => 8 * positions.len(),
        Before::Unknown => 0,
    }
}

/// Appends what came before in a stream: a count and positions, or that it is unknown.
pub(super) fn encode_before(before: &Before, out: &mut Vec<u8>) {
    match before {
        Before::Known(positions) => {
            assert!(
                positions.len() <= BACKPOINTERS,
                "admission bounds backpointers"
            );
            out.push(positions.len() as u8);
            for position in positions {
                out.extend_from_slice(&position.0.to_le_bytes());
            }
        }
        Before::Unknown => out.push(UNKNOWN),
    }
}

/// What [`encode_before`] wrote, and how many bytes it took.
pub(super) fn decode_before(bytes: &[u8]) -> Option<(Before, usize)> {
    match *bytes.first()? {
        UNKNOWN => Some((Before::Unknown, 1)),
        count if usize::from(count) <= BACKPOINTERS => {
            let end = 1 + 8 * usize::from(count);
            let numbers = bytes.get(1..end)?.chunks_exact(8);
            let positions = numbers.map(|number| Position(u64_at(number, 0))).collect();
            Some((Before::Known(positions), end))
        }
        _ => None,
    }
}

fn encode_links(links: &[StreamLink], out: &mut Vec<u8>) {
    for link in links {
        out.extend_from_slice(&link.stream.0);
        encode_before(&link.before, out);
    }
}

/// The streams of a record whose head verified.
pub(super) fn decode_links(mut bytes: &[u8]) -> Option<Vec<StreamLink>> {
    let mut links = Vec::new();
    while !bytes.is_empty() {
        let stream = StreamId(array(bytes.get(..16)?, 0));
        let (before, len) = decode_before(&bytes[16..])?;
        bytes = &bytes[16 + len..];
        links.push(StreamLink { stream, before });
    }
    Some(links)
}

/// A data file and the first position above all that it holds, as [`Kind::Files`] lists it.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Listed {
    pub(super) number: u64,
    pub(super) end: Position,
}

pub(super) const LISTED_BYTES: usize = 16;

pub(super) fn encode_listed(files: &[Listed]) -> Vec<u8> {
    let mut out = Vec::with_capacity(files.len() * LISTED_BYTES);
    for file in files {
        out.extend_from_slice(&file.number.to_le_bytes());
        out.extend_from_slice(&file.end.0.to_le_bytes());
    }
    out
}

pub(super) fn decode_listed(bytes: &[u8]) -> Vec<Listed> {
    let entries = bytes.chunks_exact(LISTED_BYTES);
    entries
        .map(|entry| Listed {
            number: u64_at(entry, 0),
            end: Position(u64_at(entry, 8)),
        })
        .collect()
}

/// A batch being put together: heads and small payloads in one buffer that is used again, large payloads left where
/// they are.
#[derive(Debug, Default)]
pub(super) struct Draft {
    buffer: Vec<u8>,
    /// Where in the buffer the payload of which change goes.
    cuts: Vec<(usize, usize)>,
    /// Where each record starts, from the batch's start.
    starts: Vec<u32>,
    bytes: u64,
    digest: Hasher,
}

/// Up to here a payload is copied beside its head: cheaper than one more part for the system to gather.
const COPY_BYTES_MAX: usize = 512;

impl Draft {
    pub(super) fn clear(&mut self) {
        self.buffer.clear();
        self.buffer.resize(BATCH_HEAD, 0);
        self.cuts.clear();
        self.starts.clear();
        self.bytes = BATCH_HEAD as u64;
        self.digest = Hasher::new();
    }

    /// Adds the record of change number `change`.
    pub(super) fn entry(&mut self, key: &Key, change: usize, head: &EntryHead, payload: &Payload) {
        assert_eq!(head.len as usize, payload.len(), "a head is its payload's");
        assert!(
            head.streams.len() <= STREAMS_PER_ENTRY_MAX,
            "admission bounds streams"
        );
        let at = self.start();
        self.buffer[at + 24..at + 40].copy_from_slice(&head.stamp.session.0);
        self.buffer[at + 40..at + 48].copy_from_slice(&head.stamp.request.to_le_bytes());
        self.buffer[at + 48..at + 52].copy_from_slice(&head.stamp.record.to_le_bytes());
        encode_links(&head.streams, &mut self.buffer);
        let crc = payload_crc(payload);
        self.seal(
            key,
            at,
            KIND_DATA,
            (head.position, head.term),
            (head.len, crc),
        );
        self.bytes += payload.len() as u64;
        if payload.len() > COPY_BYTES_MAX {
            self.cuts.push((self.buffer.len(), change));
        } else {
            for chunk in payload.chunks() {
                self.buffer.extend_from_slice(chunk);
            }
        }
    }

    pub(super) fn junk(&mut self, key: &Key, span: Span, term: Term) {
        let at = self.start();
        self.buffer[at + 24..at + 32].copy_from_slice(&span.end.0.to_le_bytes());
        self.seal(key, at, KIND_JUNK, (span.start, term), (0, 0));
    }

    pub(super) fn files(&mut self, key: &Key, files: &[Listed]) {
        let payload = encode_listed(files);
        let at = self.start();
        let (len, crc) = (payload.len() as u32, crc(0, &payload));
        self.seal(
            key,
            at,
            KIND_FILES,
            (Position::FIRST, Term::GENESIS),
            (len, crc),
        );
        self.bytes += payload.len() as u64;
        self.buffer.extend_from_slice(&payload);
    }

    /// Aligns, and makes room for a head; where it is in the buffer.
    fn start(&mut self) -> usize {
        let pad = aligned(self.bytes) - self.bytes;
        self.bytes += pad;
        self.starts.push(self.bytes as u32);
        let at = self.buffer.len() + pad as usize;
        self.buffer.resize(at + RECORD_HEAD, 0);
        at
    }

    /// Completes the head at `at`, behind which its streams stand.
    fn seal(
        &mut self,
        key: &Key,
        at: usize,
        kind: u8,
        (position, term): (Position, Term),
        (len, payload_crc): (u32, u32),
    ) {
        let whole = self.buffer.len() - at;
        let streams = u16::try_from(whole - RECORD_HEAD).expect("64 streams take 3,136 bytes");
        let head = &mut self.buffer[at..];
        head[0..4].copy_from_slice(&key.tag.to_le_bytes());
        head[8..16].copy_from_slice(&position.0.to_le_bytes());
        head[16..24].copy_from_slice(&term.0.to_le_bytes());
        head[52..56].copy_from_slice(&len.to_le_bytes());
        head[56..60].copy_from_slice(&payload_crc.to_le_bytes());
        head[60..62].copy_from_slice(&streams.to_le_bytes());
        head[62] = kind;
        let sum = key.crc_of_two(&head[8..RECORD_HEAD], &head[RECORD_HEAD..]);
        head[4..8].copy_from_slice(&sum.to_le_bytes());
        self.digest.update(&sum.to_le_bytes());
        self.bytes += whole as u64;
    }

    /// Ends the batch. Returns its bytes.
    pub(super) fn finish(&mut self, key: &Key, sequence: u64, synced: u64, state: State) -> u64 {
        let bytes = aligned(self.bytes);
        let pad = (bytes - self.bytes) as usize;
        self.buffer.resize(self.buffer.len() + pad, 0);
        self.bytes = bytes;
        let head = BatchHead {
            sequence,
            synced,
            bytes: u32::try_from(bytes).expect("a batch is far below 4 GiB"),
            count: self.starts.len() as u32,
            digest: self.digest.clone().finalize(),
            state,
        };
        head.encode(key, &mut self.buffer[..BATCH_HEAD]);
        bytes
    }

    /// Where each record starts, from the batch's start.
    pub(super) fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// Pieces of the buffer, each followed by the payload of the change named, if any.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&[u8], Option<usize>)> {
        let mut from = 0;
        let cuts = self.cuts.iter().map(|(cut, change)| (*cut, Some(*change)));
        cuts.chain([(self.buffer.len(), None)])
            .map(move |(cut, change)| {
                let piece = &self.buffer[from..cut];
                from = cut;
                (piece, change)
            })
    }
}

/// The checksum over records' checksums that a batch's head carries.
#[derive(Debug, Default)]
pub(super) struct Digest(Hasher);

impl Digest {
    pub(super) fn add(&mut self, head: &RecordHead) {
        self.0.update(&head.crc.to_le_bytes());
    }

    pub(super) fn finish(self) -> u32 {
        self.0.finalize()
    }
}
