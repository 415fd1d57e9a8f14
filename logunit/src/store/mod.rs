//! A log unit's store on a disk: append-only data files, written a batch at a time, and an index of them in memory.
//!
//! ```text
//! commit ──▶ one write, one sync, of the current file ──▶ index ──▶ visible
//! housekeep ─▶ next file prepared, footers, freed files, scrubbing                  (nobody waits for it)
//! ```
//! - D1 to D3 are what `host::Disk` promises; S1 to S3 what this store does (see [`crate::storage`]).
//! - T1 A batch is one write and one sync of one file, and the one before it was synced. After a write or sync that
//!   failed nothing is ever written again.
//! - T2 Every data file is durable by header and name before its first batch, and begins with a list of those there are.
//! - T3 A file is freed when all its positions are trimmed and a newer one has a batch.
//! - T4 The reserve is files that exist already: `room` tells deciding data to stop before it is touched.
//!
//! What it is not: it knows no terms to compare, no chains, and never refuses for what a request says. That is `unit.rs`.

mod directory;
mod file;
mod footer;
mod format;
mod index;
pub mod inspect;
mod kept;
mod recovery;
mod scan;
mod slots;
mod space;
mod spans;
mod streams;
pub mod view;

pub use directory::OpenError;
pub use format::FORMAT_VERSION;

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use milonga_host::{Disk, Random};
use milonga_wire::limits::STREAMS_MAX;
use milonga_wire::{
    Before, ClusterId, EntryHead, Held, Holder, Identity, Payload, Position, ServerName, Span,
    StreamId, Stripes,
};

use crate::storage::{Change, CommitError, Durable, ReadError, Room, Scrubbed, Slot, Storage};
use file::{DataFile, Window, zeros};
use format::{ALIGN, Draft, Key, Kind, Listed, Owner, PAGE, RECORD_HEAD, RecordHead, State};
use index::{Index, Place};
use kept::Kept;
use recovery::Access;
use space::Space;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster that the directory belongs to.
    pub cluster: ClusterId,
    /// The server that it belongs to.
    pub name: ServerName,
    /// Bytes of a new data file: a multiple of 4,096, from 16 KiB to 16 GiB.
    pub file_bytes: u64,
    /// Files kept back for what is decided already, fills, seals and trims. Larger together than what is in flight.
    pub reserve_files: usize,
    /// Streams remembered at least, though all of their entries were trimmed (T6). More than any sequencer remembers.
    pub streams_kept: usize,
    /// Whether closed files are read through maps. (After a process that had maps died, they are read for damage first.)
    pub map: bool,
    /// Records that one call of [`Storage::housekeep`] verifies, while it is not known whether files may be mapped.
    pub scrub_records: usize,
}

impl Options {
    /// The defaults: 64 MiB files, two of them in reserve, mapped.
    pub fn new(cluster: ClusterId, name: ServerName) -> Self {
        Self {
            cluster,
            name,
            file_bytes: 64 << 20,
            reserve_files: 2,
            streams_kept: STREAMS_MAX as usize + 1,
            map: true,
            scrub_records: 64,
        }
    }

    fn check(&self) -> Result<(), OpenError> {
        let sizes = 16 << 10..=16 << 30;
        if !sizes.contains(&self.file_bytes) || !self.file_bytes.is_multiple_of(PAGE) {
            return Err(OpenError::Option {
                what: "the size of a data file",
                found: self.file_bytes,
                expected: "a multiple of 4096 from 16 KiB to 16 GiB",
            });
        }
        if self.reserve_files == 0 {
            return Err(OpenError::Option {
                what: "the number of reserve files",
                found: 0,
                expected: "at least 1",
            });
        }
        Ok(())
    }
}

/// A directory, opened.
pub struct Store {
    disk: Arc<dyn Disk>,
    options: Options,
    owner: Owner,
    random: Random,
    index: Index,
    files: BTreeMap<u64, DataFile>,
    /// The file that is written.
    current: Option<u64>,
    state: State,
    /// The last batch that is durable.
    last: u64,
    /// The number of the last batch, or of what is left of one that was never acknowledged.
    sequence: u64,
    synced: bool,
    /// The first failure (T1).
    failed: Option<String>,
    space: Space,
    kept: Kept,
    draft: Draft,
    window: Window,
    scrub: Scrub,
    /// The directory is another store's, of the same process.
    is_replaced: bool,
}

/// How far old records have been verified.
#[derive(Debug, Default)]
struct Scrub {
    at: Position,
    window: Window,
    /// Whether all that this round has read so far could be read.
    clean: bool,
    /// Whether closed files may be mapped.
    map: bool,
}

impl Store {
    /// Opens the directory, or formats it if it is empty.
    ///
    /// # Errors
    /// [`OpenError`]; nothing in the directory was changed then, but for one that was being formatted.
    pub fn open(disk: Arc<dyn Disk>, options: Options, random: &Random) -> Result<Self, OpenError> {
        options.check()?;
        disk.lock().map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => OpenError::InUse,
            _ => OpenError::Io {
                what: "lock the directory",
                error,
            },
        })?;
        Self::open_locked(disk, options, random)
    }

    /// The same of a directory that is this process's already.
    fn open_locked(
        disk: Arc<dyn Disk>,
        options: Options,
        random: &Random,
    ) -> Result<Self, OpenError> {
        let list = || disk.list().map_err(OpenError::io("list the directory"));
        let (cluster, name) = (options.cluster, &options.name);
        let identity = directory::identify(&*disk, &list()?, cluster, name, random)?;
        let names = list()?;
        let owner = Owner { cluster, identity };
        let mut found = recovery::recover(&*disk, owner, &names, Access::Change)?;
        let space = Space::found(&*disk, &options, &names, &mut found)
            .map_err(OpenError::io("prepare files"))?;
        let died_mapping = names.iter().any(|name| name == directory::MAPPING);
        if options.map && !died_mapping {
            disk.create(directory::MAPPING, PAGE)
                .and_then(|_| disk.sync_names())
                .map_err(OpenError::io("note that files are mapped"))?;
        }
        Ok(Self {
            scrub: Scrub {
                map: options.map && !died_mapping,
                clean: true,
                ..Scrub::default()
            },
            is_replaced: false,
            disk,
            options,
            owner,
            random: random.clone(),
            index: found.index,
            files: found.files,
            current: found.current,
            state: found.state,
            last: found.last,
            sequence: found.sequence,
            synced: found.synced,
            failed: None,
            space,
            kept: found.kept,
            draft: Draft::default(),
            window: Window::default(),
        })
    }

    /// Memory that the index takes, and records it speaks of.
    pub fn index_size(&self) -> (usize, usize) {
        (self.index.memory_bytes(), self.index.records())
    }

    /// Notes the first failure of a write or sync (T1).
    fn fail(&mut self, error: &io::Error) -> CommitError {
        let why = self.failed.get_or_insert_with(|| error.to_string());
        CommitError::Failed(why.clone())
    }

    fn state_after(&self, batch: &[Change]) -> State {
        let mut state = self.state;
        for change in batch {
            match change {
                Change::Entry { head, .. } => state.end = state.end.max(head.position.next()),
                Change::Junk { span, .. } => state.end = state.end.max(span.end),
                Change::Term(term) => state.term = state.term.max(*term),
                Change::Trim(to) => {
                    state.trimmed = state.trimmed.max(*to);
                    state.end = state.end.max(*to);
                }
                Change::Settled(to) => state.settled = state.settled.max(*to),
                Change::Listed => state.listed = true,
                Change::Probe => {}
            }
        }
        state
    }

    /// Lays the batch out for `key`'s file. Returns its bytes.
    fn lay_out(&mut self, key: &Key, batch: &[Change], listed: &[Listed], state: State) -> u64 {
        self.draft.clear();
        if !listed.is_empty() {
            self.draft.files(key, listed);
        }
        for (number, change) in batch.iter().enumerate() {
            match change {
                Change::Entry { head, payload } => self.draft.entry(key, number, head, payload),
                Change::Junk { span, term } => self.draft.junk(key, *span, *term),
                Change::Term(_)
                | Change::Trim(_)
                | Change::Settled(_)
                | Change::Listed
                | Change::Probe => {}
            }
        }
        self.draft.finish(key, self.sequence + 1, self.last, state)
    }

    /// One write and one sync (T1).
    fn write(&mut self, number: u64, batch: &[Change]) -> io::Result<()> {
        let file = &self.files[&number];
        let at = file.summary.data_end;
        let mut parts = Vec::new();
        let mut bytes = 0;
        for (piece, change) in self.draft.parts() {
            parts.push(IoSlice::new(piece));
            bytes += piece.len() as u64;
            if let Some(Change::Entry { payload, .. }) = change.map(|number| &batch[number]) {
                parts.extend(payload.chunks().iter().map(|chunk| IoSlice::new(chunk)));
                bytes += payload.len() as u64;
            }
        }
        // Whole pages are written, so that the machine need not read the last one first.
        let end = at + bytes;
        parts.push(zeros(
            end.next_multiple_of(PAGE).min(file.file.size()) - end,
        ));
        file.file.write_at(at, &parts)?;
        file.file.sync()
    }

    /// The batch is durable: it becomes visible.
    fn apply(
        &mut self,
        number: u64,
        batch: &[Change],
        listed: Vec<Listed>,
        bytes: u64,
        state: State,
    ) {
        let file = self.files.get_mut(&number).expect("it was just written");
        let summary = &mut file.summary;
        let at = summary.data_end;
        self.sequence += 1;
        if summary.first == 0 {
            summary.after = self.last;
            summary.first = self.sequence;
            summary.listed = listed;
        }
        let skipped = usize::from(summary.first == self.sequence && !summary.listed.is_empty());
        self.last = self.sequence;
        summary.last = self.sequence;
        summary.data_end += bytes;
        summary.state = state;
        let mut starts = self.draft.starts()[skipped..].iter();
        for change in batch {
            match change {
                Change::Entry { head, .. } => {
                    let start = starts.next().expect("every record has a start");
                    let slot = ((at + u64::from(*start)) / ALIGN) as u32;
                    let place = Place { file: number, slot };
                    self.index.put_record(place, head.position, &head.streams);
                }
                Change::Junk { span, term } => {
                    starts.next();
                    self.index.put_junk(number, *span, *term);
                }
                Change::Term(_)
                | Change::Trim(_)
                | Change::Settled(_)
                | Change::Listed
                | Change::Probe => {}
            }
        }
        if state.trimmed > self.state.trimmed {
            self.index.trim(state.trimmed);
        }
        self.state = state;
    }

    /// Bytes of the batch, and what it may add to its file's footer.
    fn size_of(batch: &[Change]) -> (u64, u64) {
        let (mut bytes, mut footer) = (format::BATCH_HEAD as u64, 0);
        for change in batch {
            match change {
                Change::Entry { head, payload } => {
                    bytes += RecordHead::bytes_for(head, payload);
                    footer += 16 + 80 * head.streams.len() as u64;
                }
                Change::Junk { .. } => {
                    bytes += RECORD_HEAD as u64;
                    footer += 48;
                }
                Change::Term(_)
                | Change::Trim(_)
                | Change::Settled(_)
                | Change::Listed
                | Change::Probe => {}
            }
        }
        (bytes, footer)
    }

    /// What of the current file is free, its footer's room set aside.
    fn remaining(&self) -> u64 {
        let Some(number) = self.current else {
            return 0;
        };
        let (Some(file), Some(index)) = (self.files.get(&number), self.index.file(number)) else {
            return 0;
        };
        let footer = footer::bytes_max(index.bytes_max(), file.summary.listed.len());
        let free = file.file.size() - file.summary.data_end;
        free.saturating_sub(footer)
    }

    /// The record at `position`, or why there is none; a damaged one is remembered.
    fn fetch_data(
        &mut self,
        position: Position,
        whole: bool,
        scrub: bool,
    ) -> Result<(RecordHead, Bytes), ReadError> {
        let place = match self.index.locate(position) {
            (Slot::Data, Some(place)) => place,
            (Slot::Damaged, _) => return Err(ReadError::Damaged("found before".to_owned())),
            (Slot::Data | Slot::Absent | Slot::Junk(_) | Slot::Trimmed, _) => {
                return Err(ReadError::NotData);
            }
        };
        let window = if scrub {
            &mut self.scrub.window
        } else {
            &mut self.window
        };
        let fetched = file::fetch(
            &mut self.files,
            window,
            self.scrub.map,
            place,
            position,
            whole,
        );
        fetched.map_err(|why| {
            tracing::warn!(%position, file = place.file, %why, "a record cannot be read");
            self.index.put_damaged(position);
            ReadError::Damaged(why)
        })
    }

    /// Verifies some old records. At the end of a round that could read everything, closed files may be mapped.
    fn verify_some(&mut self, records_max: usize, bytes_max: u64) -> Scrubbed {
        let mut scrubbed = Scrubbed::default();
        for _ in 0..records_max {
            let Some(position) = self.index.next_data(self.scrub.at) else {
                self.scrub.map |= self.options.map && self.scrub.clean;
                self.scrub.at = Position::FIRST;
                self.scrub.clean = true;
                scrubbed.done = true;
                break;
            };
            if let Ok((_, bytes)) = self.fetch_data(position, true, true) {
                scrubbed.bytes += bytes.len() as u64;
            } else {
                scrubbed.bytes += RECORD_HEAD as u64;
                scrubbed.damaged += 1;
                self.scrub.clean = false;
            }
            self.scrub.at = position.next();
            if scrubbed.bytes >= bytes_max {
                break;
            }
        }
        scrubbed
    }

    /// Empties the directory, and opens it as `identity`'s.
    fn replace(&mut self, identity: Identity) -> Result<(), OpenError> {
        let names = self
            .disk
            .list()
            .map_err(OpenError::io("list the directory"))?;
        let owned = directory::Owned {
            cluster: self.owner.cluster,
            identity,
            name: self.options.name.as_str().to_owned(),
        };
        directory::reset(&*self.disk, &names, &owned)
            .map_err(OpenError::io("empty the directory"))?;
        let disk = Arc::clone(&self.disk);
        let new = Self::open_locked(disk, self.options.clone(), &self.random.clone())?;
        self.is_replaced = true;
        *self = new;
        Ok(())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.is_replaced {
            return;
        }
        // A failure to remove it costs maps until the next round of scrubbing, no more.
        let _ = self
            .disk
            .remove(directory::MAPPING)
            .and_then(|()| self.disk.sync_names());
    }
}

impl Storage for Store {
    fn identity(&self) -> Identity {
        self.owner.identity
    }

    fn durable(&self) -> Durable {
        let State {
            term,
            trimmed,
            settled,
            end,
            listed,
        } = self.state;
        let untouched = State {
            listed,
            ..State::default()
        };
        Durable {
            term,
            trimmed,
            end,
            settled,
            blank: !listed && self.state == untouched,
            synced: self.synced,
        }
    }

    fn slot(&self, position: Position) -> Slot {
        self.index.slot(position)
    }

    fn run(&self, span: Span) -> (Slot, Span) {
        self.index.run(span)
    }

    fn holder(&mut self, position: Position) -> Result<Option<Holder>, ReadError> {
        match self.index.slot(position) {
            Slot::Junk(_) => return Ok(Some(Holder::Junk)),
            Slot::Absent | Slot::Trimmed => return Ok(None),
            Slot::Data | Slot::Damaged => {}
        }
        let (head, _) = self.fetch_data(position, false, false)?;
        match head.kind {
            Kind::Data(stamp) => Ok(Some(Holder::Data(stamp))),
            Kind::Junk(_) | Kind::Files => Ok(None),
        }
    }

    fn read(&mut self, position: Position) -> Result<(EntryHead, Payload), ReadError> {
        let (head, bytes) = self.fetch_data(position, true, false)?;
        let Kind::Data(stamp) = head.kind else {
            return Err(ReadError::NotData);
        };
        let at = head.payload_at() as usize;
        let links = format::decode_links(&bytes[RECORD_HEAD..at]);
        let links =
            links.ok_or_else(|| ReadError::Damaged("its streams make no sense".to_owned()))?;
        Ok((head.entry(stamp, links), bytes.slice(at..).into()))
    }

    fn commit(&mut self, batch: &[Change]) -> Result<(), CommitError> {
        if let Some(why) = &self.failed {
            return Err(CommitError::Failed(why.clone()));
        }
        if batch.is_empty() {
            return Ok(());
        }
        let (bytes, footer) = Self::size_of(batch);
        if self.remaining() < bytes + footer {
            self.roll(bytes + footer)?;
        }
        let number = self.current.expect("rolling opens a file");
        let state = self.state_after(batch);
        let file = &self.files[&number];
        let (key, fresh) = (file.key, file.summary.first == 0);
        let listed = if fresh {
            self.listed(number)
        } else {
            Vec::new()
        };
        let bytes = self.lay_out(&key, batch, &listed, state);
        self.write(number, batch)
            .map_err(|error| self.fail(&error))?;
        self.apply(number, batch, listed, bytes, state);
        Ok(())
    }

    fn first_lacking(&self, stripes: &Stripes, from: Position) -> Position {
        let mut at = from.max(self.state.trimmed).max(stripes.span.start);
        while let Some(run) = stripes.run_from(at) {
            let held = self.index.held_until(run.start, Position(u64::MAX));
            if held < run.end {
                return held;
            }
            at = held;
        }
        stripes.span.end.max(from)
    }

    fn held(&self, from: Position, count_max: usize) -> Vec<Held> {
        let limit = self.state.end;
        let mut held = Vec::new();
        let mut at = from;
        while held.len() < count_max
            && let Some(start) = self.index.next_held(at, limit)
        {
            at = self.index.held_until(start, limit);
            held.push(Held {
                span: Span::new(start, at),
            });
        }
        held
    }

    fn stream_tails(
        &self,
        after: Option<StreamId>,
        count_max: usize,
    ) -> (Vec<(StreamId, Before)>, bool) {
        self.index.stream_tails(after, count_max)
    }

    fn stream_positions(
        &self,
        stream: StreamId,
        span: Span,
        count_max: usize,
    ) -> (Vec<Position>, Option<Position>) {
        self.index.stream_positions(stream, span, count_max)
    }

    fn room(&self) -> Room {
        self.space.room(&self.options, self.remaining())
    }

    fn bytes(&self) -> u64 {
        let files: u64 = self.files.values().map(|file| file.file.size()).sum();
        files + self.space.bytes()
    }

    fn housekeep(&mut self) -> bool {
        if self.failed.is_some() {
            return false;
        }
        match self.tidy() {
            Ok(true) => true,
            Ok(false) => {
                // What may not be mapped yet is read in any case: only a whole round shows that it can be.
                if self.options.map && !self.scrub.map {
                    self.verify_some(self.options.scrub_records, u64::MAX);
                }
                false
            }
            Err(error) => {
                self.fail(&error);
                false
            }
        }
    }

    fn damaged(&self) -> u64 {
        self.index.damaged()
    }

    fn scrub(&mut self, bytes_max: u64) -> Scrubbed {
        self.verify_some(usize::MAX, bytes_max)
    }

    fn reset(&mut self, identity: Identity) -> Result<(), CommitError> {
        if let Some(why) = &self.failed {
            return Err(CommitError::Failed(why.clone()));
        }
        self.replace(identity).map_err(|error| {
            let why = self.failed.get_or_insert_with(|| error.to_string());
            CommitError::Failed(why.clone())
        })
    }
}
