//! Reads a data file from its first batch to its last without its footer: for files that have none, and the inspector.
//!
//! - R1 A batch is believed whole or not at all; the last one too.
//! - R2 What stands before a batch that is believed was synced before that one was written. So where a batch cannot be
//!   read and a later one can, something acknowledged is damaged: its records that still verify are kept, one by one.
//! - R3 What stands behind the last batch that is believed was never acknowledged by an honest disk, and is not believed.
//!   If anything of it verifies, the file is torn and nothing is ever written behind it.

use std::io;

use milonga_wire::{Position, StreamLink};

use super::format::{
    ALIGN, BATCH_HEAD, BatchHead, Digest, Key, Kind, Listed, PAGE, RECORD_HEAD, RecordHead,
    aligned, decode_links, decode_listed,
};
use milonga_host::File;

/// Bytes read at once.
const WINDOW: usize = 1 << 20;

/// A record that verified.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) head: RecordHead,
    pub(super) streams: Vec<StreamLink>,
    /// Where it stands in the file.
    pub(super) at: u64,
    /// The payload of a list of files.
    pub(super) listed: Vec<Listed>,
}

/// What stands next in a file.
#[derive(Debug)]
pub(super) enum Step {
    /// A batch that is believed (R1).
    Batch {
        at: u64,
        head: BatchHead,
        records: Vec<Found>,
    },
    /// Bytes between believed batches that do not verify (R2).
    Damage {
        at: u64,
        end: u64,
        /// The records that do.
        records: Vec<Found>,
        /// Positions whose record's head verifies, and its payload does not.
        damaged: Vec<Position>,
    },
    /// Nothing more is believed.
    End {
        /// Whether something behind verifies (R3).
        torn: bool,
    },
}

/// Goes through one file.
pub(super) struct Scanner<'a> {
    file: &'a dyn File,
    key: Key,
    /// Batches from this number on stand in a later file.
    before: u64,
    window: Vec<u8>,
    window_at: u64,
    /// Reading failed somewhere: those bytes were taken for zeros.
    pub(super) unreadable: bool,
    at: u64,
    last: u64,
    /// The highest number of any batch head that verified.
    pub(super) seen: u64,
    ended: bool,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(file: &'a dyn File, key: Key, before: u64) -> Self {
        Self {
            file,
            key,
            before,
            window: Vec::new(),
            window_at: 0,
            unreadable: false,
            at: PAGE,
            last: 0,
            seen: 0,
            ended: false,
        }
    }

    /// What stands next; none behind the end.
    pub(super) fn step(&mut self) -> Option<Step> {
        if self.ended {
            return None;
        }
        let at = self.at;
        if let Some((head, records)) = self.batch(at) {
            self.at = at + u64::from(head.bytes);
            self.last = head.sequence;
            return Some(Step::Batch { at, head, records });
        }
        let (later, traces) = self.search(at);
        let Some(later) = later else {
            self.ended = true;
            return Some(Step::End { torn: traces });
        };
        self.at = later;
        let (records, damaged) = self.salvage(at, later);
        Some(Step::Damage {
            at,
            end: later,
            records,
            damaged,
        })
    }

    /// Up to `len` bytes from `at`: fewer only where the file ends.
    fn bytes(&mut self, at: u64, len: usize) -> &[u8] {
        let len = len.min(self.file.size().saturating_sub(at) as usize);
        let inside =
            at >= self.window_at && at + len as u64 <= self.window_at + self.window.len() as u64;
        if !inside {
            let more = WINDOW.max(len).min((self.file.size() - at) as usize);
            self.window.resize(more, 0);
            self.window_at = at;
            if self.file.read_at(at, &mut self.window).is_err() {
                self.fill_page_by_page(at);
            }
        }
        let start = (at - self.window_at) as usize;
        &self.window[start..start + len]
    }

    /// What the disk refuses is taken for zeros, which never verify.
    fn fill_page_by_page(&mut self, at: u64) {
        let mut offset = at;
        for page in self.window.chunks_mut(PAGE as usize) {
            if self.file.read_at(offset, page).is_err() {
                page.fill(0);
                self.unreadable = true;
            }
            offset += page.len() as u64;
        }
    }

    fn batch_head(&mut self, at: u64) -> Option<BatchHead> {
        let (key, last, before) = (self.key, self.last, self.before);
        let head = BatchHead::decode(&key, self.bytes(at, BATCH_HEAD))?;
        let fits = at + u64::from(head.bytes) <= self.file.size();
        let expected = fits && head.sequence > last && head.sequence < before;
        if expected {
            self.seen = self.seen.max(head.sequence);
        }
        expected.then_some(head)
    }

    /// The batch at `at`, if all of it verifies (F2).
    fn batch(&mut self, at: u64) -> Option<(BatchHead, Vec<Found>)> {
        let head = self.batch_head(at)?;
        let end = at + u64::from(head.bytes);
        let mut records = Vec::with_capacity((head.count as usize).min(1 << 16));
        let mut digest = Digest::default();
        let mut next = at + BATCH_HEAD as u64;
        for _ in 0..head.count {
            let found = self.record(next).ok()?;
            digest.add(&found.head);
            next = aligned(next + found.head.bytes());
            records.push(found);
        }
        (next == end && digest.finish() == head.digest).then_some((head, records))
    }

    /// The record at `at` if it verifies; else its head, if that does.
    fn record(&mut self, at: u64) -> Result<Found, Option<RecordHead>> {
        let key = self.key;
        if !RecordHead::is_tagged(&key, self.bytes(at, RECORD_HEAD)) {
            return Err(None);
        }
        let most = RECORD_HEAD + usize::from(u16::MAX);
        let bytes = self.bytes(at, most);
        let head = RecordHead::decode(&key, bytes).ok_or(None)?;
        let streams = decode_links(&bytes[RECORD_HEAD..head.payload_at() as usize]);
        let payload = self.bytes(at + head.payload_at(), head.len as usize);
        if !head.verifies(payload) {
            return Err(Some(head));
        }
        let listed = match head.kind {
            Kind::Files => decode_listed(payload),
            Kind::Data(_) | Kind::Junk(_) => Vec::new(),
        };
        Ok(Found {
            head,
            streams: streams.ok_or(Some(head))?,
            at,
            listed,
        })
    }

    /// The next batch head behind `at`, and whether anything at or behind `at` verifies.
    fn search(&mut self, at: u64) -> (Option<u64>, bool) {
        let mut traces = false;
        for offset in (at..self.file.size()).step_by(ALIGN as usize) {
            let key = self.key;
            if !key.is_tag(self.bytes(offset, 4)) {
                continue;
            }
            if self.batch_head(offset).is_some() {
                traces = true;
                if offset > at {
                    return (Some(offset), traces);
                }
            }
            traces = traces || !matches!(self.record(offset), Err(None));
        }
        (None, traces)
    }

    /// The records between `at` and `end`, whatever stands around them (R2).
    fn salvage(&mut self, mut at: u64, end: u64) -> (Vec<Found>, Vec<Position>) {
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        while at < end {
            at = match self.record(at) {
                Ok(found) => {
                    let next = aligned(at + found.head.bytes());
                    records.push(found);
                    next
                }
                Err(Some(head)) => {
                    if matches!(head.kind, Kind::Data(_)) {
                        damaged.push(head.position);
                    }
                    at + aligned(head.payload_at())
                }
                Err(None) => at + ALIGN,
            };
        }
        (records, damaged)
    }
}

/// Reads `len` bytes from `at`.
pub(super) fn read(file: &dyn File, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_at(at, &mut bytes)?;
    Ok(bytes)
}
