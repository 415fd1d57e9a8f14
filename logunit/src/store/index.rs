//! What every position holds, and in which file it stands. Pure: no disk is touched for a look-up.
//!
//! - I1 Of two records of a position the one in the newer file counts. (There are two only where the older was damaged.)
//! - I2 Junk and damage are spans over all files and hide records; what is put later takes their place.
//! - I3 The directory of pages names, for every stretch of positions, the files that hold records in it, oldest first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use milonga_wire::{Before, Position, Span, StreamId, StreamLink, Term};
use smallvec::SmallVec;

use super::slots::{self, Slots};
use super::spans::SpanMap;
use super::streams::{self, Streams, Tails};
use crate::storage::Slot;

/// Positions per page of the directory, as a power of two.
const PAGE_BITS: u32 = 16;

/// Everything the index keeps of one file.
#[derive(Debug)]
pub(super) struct FileIndex {
    pub(super) slots: Slots,
    pub(super) streams: Streams,
    /// Junk that stands in this file.
    pub(super) junk: SpanMap<Term>,
    /// What was found damaged here when it was scanned, and stands nowhere later in this file.
    pub(super) damaged: SpanMap<()>,
    /// The first position above all that stands here.
    pub(super) end: Position,
}

impl Default for FileIndex {
    fn default() -> Self {
        Self {
            slots: Slots::Growing(slots::Growing::default()),
            streams: Streams::Growing(streams::Growing::default()),
            junk: SpanMap::default(),
            damaged: SpanMap::default(),
            end: Position::FIRST,
        }
    }
}

impl FileIndex {
    fn growing(&mut self) -> (&mut slots::Growing, &mut streams::Growing) {
        match (&mut self.slots, &mut self.streams) {
            (Slots::Growing(slots), Streams::Growing(streams)) => (slots, streams),
            (Slots::Frozen(_), _) | (_, Streams::Frozen(_)) => {
                unreachable!("only the file that is written grows")
            }
        }
    }

    pub(super) fn put_record(&mut self, position: Position, slot: u32, links: &[StreamLink]) {
        self.end = self.end.max(position.next());
        self.junk.remove(Span::one(position));
        self.damaged.remove(Span::one(position));
        let (slots, streams) = self.growing();
        slots.put(position, slot);
        for link in links {
            streams.put(link.stream, position, &link.before);
        }
    }

    pub(super) fn put_junk(&mut self, span: Span, term: Term) {
        self.end = self.end.max(span.end);
        self.growing().0.remove(span);
        self.damaged.remove(span);
        self.junk.insert(span, term);
    }

    pub(super) fn put_damaged(&mut self, span: Span) {
        self.end = self.end.max(span.end);
        self.damaged.insert(span, ());
    }

    /// Bytes that its footer takes at most.
    pub(super) fn bytes_max(&self) -> u64 {
        let spans = 24 * (self.junk.len() + self.damaged.len()) as u64;
        match (&self.slots, &self.streams) {
            (Slots::Growing(slots), Streams::Growing(streams)) => {
                spans + slots.bytes_max() + streams.bytes_max()
            }
            (Slots::Frozen(_), _) | (_, Streams::Frozen(_)) => spans,
        }
    }

    /// The same, frozen: smaller, and never to change.
    pub(super) fn freeze(&self) -> Self {
        let slots = match &self.slots {
            Slots::Growing(growing) => growing.freeze(),
            Slots::Frozen(frozen) => frozen.clone(),
        };
        let streams = match &self.streams {
            Streams::Growing(growing) => growing.freeze(),
            Streams::Frozen(frozen) => frozen.clone(),
        };
        Self {
            slots: Slots::Frozen(slots),
            streams: Streams::Frozen(streams),
            junk: self.junk.clone(),
            damaged: self.damaged.clone(),
            end: self.end,
        }
    }

    /// Whether both say the same of every position. Damage that was repaired later does not count.
    pub(super) fn same_records(&self, other: &Self) -> bool {
        let records = match (&self.slots, &other.slots) {
            (Slots::Frozen(own), Slots::Frozen(others)) => own == others,
            (Slots::Growing(_), _) | (_, Slots::Growing(_)) => false,
        };
        let streams = match (&self.streams, &other.streams) {
            (Streams::Frozen(own), Streams::Frozen(others)) => own == others,
            (Streams::Growing(_), _) | (_, Streams::Growing(_)) => false,
        };
        records && streams && self.junk.iter().eq(other.junk.iter()) && self.end == other.end
    }

    fn memory_bytes(&self) -> usize {
        let slots = match &self.slots {
            Slots::Growing(growing) => growing.bytes_max() as usize,
            Slots::Frozen(frozen) => frozen.memory_bytes(),
        };
        let streams = match &self.streams {
            Streams::Growing(growing) => growing.bytes_max() as usize,
            Streams::Frozen(frozen) => frozen.memory_bytes(),
        };
        slots + streams + 40 * self.junk.len()
    }
}

/// Where a record stands.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) file: u64,
    /// In units of the alignment.
    pub(super) slot: u32,
}

/// What a position holds, and up to where that is one run in the index.
type Step = (Slot, Position);

#[derive(Debug, Default)]
pub(super) struct Index {
    files: BTreeMap<u64, FileIndex>,
    pages: BTreeMap<u64, SmallVec<[u64; 2]>>,
    junk: SpanMap<Term>,
    damaged: SpanMap<()>,
    tails: Tails,
    trimmed: Position,
    /// The page that was entered last, with its file: records mostly rise.
    entered: Option<(u64, u64)>,
}

impl Index {
    /// A file found at opening. Files come oldest first.
    pub(super) fn load(&mut self, number: u64, file: FileIndex) {
        debug_assert!(self.files.keys().all(|older| *older < number), "I1");
        let spans: Vec<Span> = file.slots.runs().collect();
        for span in spans {
            self.enter_span(number, span);
        }
        let bounds = Span::new(Position::FIRST, file.end);
        let hiding: Vec<Span> = {
            let junk = self.junk.overlapping(bounds).map(|(span, _)| span);
            let damaged = self.damaged.overlapping(bounds).map(|(span, ())| span);
            junk.chain(damaged).collect()
        };
        for span in hiding {
            self.uncover(&file, span);
        }
        for (span, term) in file.junk.iter() {
            self.cover_with_junk(span, term);
        }
        for (span, ()) in file.damaged.iter() {
            self.damaged.insert(span, ());
        }
        file.streams.tell(&mut self.tails);
        self.files.insert(number, file);
    }

    /// Takes away junk and damage where the newer `file` has records (I2).
    fn uncover(&mut self, file: &FileIndex, span: Span) {
        let mut from = span.start;
        while let Some(start) = file
            .slots
            .first_from(from)
            .filter(|start| span.contains(*start))
        {
            let end = file.slots.run_end(start).unwrap_or(start.next());
            let part = Span::new(start, end).intersect(span);
            self.junk.remove(part);
            self.damaged.remove(part);
            from = end;
        }
    }

    /// All files are there, and this is the trim point.
    pub(super) fn loaded(&mut self, trimmed: Position) {
        self.tails.loaded();
        self.trim(trimmed);
    }

    /// The last positions of every stream.
    pub(super) fn tails(&mut self) -> &mut Tails {
        &mut self.tails
    }

    /// A file that will be written.
    pub(super) fn begin(&mut self, number: u64) {
        self.files.insert(number, FileIndex::default());
    }

    pub(super) fn file(&self, number: u64) -> Option<&FileIndex> {
        self.files.get(&number)
    }

    fn growing(&mut self, number: u64) -> &mut FileIndex {
        self.files
            .get_mut(&number)
            .expect("the file written was begun")
    }

    pub(super) fn put_record(&mut self, place: Place, position: Position, links: &[StreamLink]) {
        self.enter(place.file, position.0 >> PAGE_BITS);
        self.growing(place.file)
            .put_record(position, place.slot, links);
        for link in links {
            self.tails.put(link.stream, position, &link.before);
        }
        if !self.junk.is_empty() {
            self.junk.remove(Span::one(position));
        }
        if !self.damaged.is_empty() {
            self.damaged.remove(Span::one(position));
        }
    }

    pub(super) fn put_junk(&mut self, number: u64, span: Span, term: Term) {
        self.growing(number).put_junk(span, term);
        self.cover_with_junk(span, term);
    }

    fn cover_with_junk(&mut self, span: Span, term: Term) {
        self.damaged.remove(span);
        self.junk.insert(span, term);
    }

    /// A record turned out not to be readable.
    pub(super) fn put_damaged(&mut self, position: Position) {
        self.damaged.insert(Span::one(position), ());
    }

    /// How many positions cannot be read.
    pub(super) fn damaged(&self) -> u64 {
        self.damaged.iter().map(|(span, ())| span.len()).sum()
    }

    pub(super) fn trim(&mut self, to: Position) {
        self.trimmed = self.trimmed.max(to);
        let below = Span::new(Position::FIRST, self.trimmed);
        self.junk.remove(below);
        self.damaged.remove(below);
        self.pages = self.pages.split_off(&(self.trimmed.0 >> PAGE_BITS));
        self.entered = None;
    }

    /// Puts a frozen file in the place of a growing one.
    pub(super) fn replace(&mut self, number: u64, frozen: FileIndex) {
        self.files.insert(number, frozen);
    }

    /// A file all of whose positions are trimmed goes.
    pub(super) fn remove(&mut self, number: u64) {
        self.files.remove(&number);
        for files in self.pages.values_mut() {
            files.retain(|file| *file != number);
        }
        self.pages.retain(|_, files| !files.is_empty());
        self.entered = None;
    }

    fn enter_span(&mut self, number: u64, span: Span) {
        for page in span.start.0 >> PAGE_BITS..=(span.end.0 - 1) >> PAGE_BITS {
            self.enter(number, page);
        }
    }

    fn enter(&mut self, number: u64, page: u64) {
        if self.entered == Some((page, number)) {
            return;
        }
        self.entered = Some((page, number));
        let files = self.pages.entry(page).or_default();
        if files.last() != Some(&number) {
            debug_assert!(files.last().is_none_or(|last| *last < number), "I3");
            files.push(number);
        }
    }

    /// The files that hold records around `position`, newest first.
    fn around(&self, position: Position) -> impl Iterator<Item = (u64, &FileIndex)> {
        let files = self
            .pages
            .get(&(position.0 >> PAGE_BITS))
            .into_iter()
            .flatten();
        files
            .rev()
            .filter_map(|number| Some((*number, self.files.get(number)?)))
    }

    /// Where the record of `position` stands, whatever hides it.
    fn find(&self, position: Position) -> Option<Place> {
        self.around(position).find_map(|(file, index)| {
            let slot = index.slots.find(position)?;
            Some(Place { file, slot })
        })
    }

    pub(super) fn slot(&self, position: Position) -> Slot {
        self.locate(position).0
    }

    /// What `position` holds, and where its record stands if it can be read.
    pub(super) fn locate(&self, position: Position) -> (Slot, Option<Place>) {
        if position < self.trimmed {
            return (Slot::Trimmed, None);
        }
        if self.damaged.at(position).is_some() {
            return (Slot::Damaged, None);
        }
        if let Some((_, term)) = self.junk.at(position) {
            return (Slot::Junk(term), None);
        }
        match self.find(position) {
            Some(place) => (Slot::Data, Some(place)),
            None => (Slot::Absent, None),
        }
    }

    /// What `position` holds, and a position up to which everything behind it is the same; not always the last such.
    fn step(&self, position: Position) -> Step {
        if position < self.trimmed {
            return (Slot::Trimmed, self.trimmed);
        }
        if let Some((span, ())) = self.damaged.at(position) {
            return (Slot::Damaged, span.end);
        }
        let damage = self.damaged.first_from(position);
        let hidden = damage.unwrap_or(Position(u64::MAX));
        if let Some((span, term)) = self.junk.at(position) {
            return (Slot::Junk(term), span.end.min(hidden));
        }
        let hidden = self
            .junk
            .first_from(position)
            .map_or(hidden, |junk| junk.min(hidden));
        let run = self
            .around(position)
            .filter_map(|(_, index)| index.slots.run_end(position))
            .max();
        if let Some(end) = run {
            return (Slot::Data, end.min(hidden));
        }
        let next = self.next_record(position);
        (Slot::Absent, next.map_or(hidden, |next| next.min(hidden)))
    }

    /// The first position at or after `from` that has a record in any file.
    fn next_record(&self, from: Position) -> Option<Position> {
        self.pages
            .range(from.0 >> PAGE_BITS..)
            .find_map(|(_, files)| {
                let files = files.iter().filter_map(|number| self.files.get(number));
                files.filter_map(|file| file.slots.first_from(from)).min()
            })
    }

    pub(super) fn run(&self, span: Span) -> (Slot, Span) {
        let (slot, mut end) = self.step(span.start);
        while end < span.end {
            let (next, further) = self.step(end);
            if next != slot {
                break;
            }
            end = further;
        }
        (slot, Span::new(span.start, end.min(span.end)))
    }

    /// The first position at or after `from` that does not hold an entry.
    pub(super) fn held_until(&self, from: Position, limit: Position) -> Position {
        let mut at = from;
        while at < limit {
            match self.step(at) {
                (Slot::Data | Slot::Junk(_), end) => at = end,
                (Slot::Absent | Slot::Trimmed | Slot::Damaged, _) => break,
            }
        }
        at.min(limit)
    }

    /// The first position at or after `from`, below `limit`, that holds an entry.
    pub(super) fn next_held(&self, from: Position, limit: Position) -> Option<Position> {
        let mut at = from.max(self.trimmed);
        while at < limit {
            match self.step(at) {
                (Slot::Data | Slot::Junk(_), _) => return Some(at),
                (Slot::Absent | Slot::Trimmed | Slot::Damaged, end) => at = end,
            }
        }
        None
    }

    /// The first position at or after `from` that has a readable record.
    pub(super) fn next_data(&self, from: Position) -> Option<Position> {
        let mut at = self.next_record(from.max(self.trimmed))?;
        loop {
            match self.step(at) {
                (Slot::Data, _) => return Some(at),
                (Slot::Junk(_) | Slot::Absent | Slot::Trimmed | Slot::Damaged, end) => {
                    at = self.next_record(end)?;
                }
            }
        }
    }

    pub(super) fn stream_tails(
        &self,
        after: Option<StreamId>,
        count_max: usize,
    ) -> (Vec<(StreamId, Before)>, bool) {
        self.tails.page(after, count_max)
    }

    pub(super) fn stream_positions(
        &self,
        stream: StreamId,
        span: Span,
        count_max: usize,
    ) -> (Vec<Position>, Option<Position>) {
        let from = span.start.max(self.trimmed);
        let files = self.files.values().filter(|file| file.end > from);
        let mut sources: Vec<_> = files
            .map(|file| file.streams.positions(stream, from))
            .collect();
        let firsts = sources.iter_mut().enumerate();
        let mut next: BinaryHeap<Reverse<(Position, usize)>> = firsts
            .filter_map(|(index, source)| Some(Reverse((source.next()?, index))))
            .collect();
        let mut positions = Vec::new();
        while let Some(Reverse((position, source))) = next.pop()
            && position < span.end
        {
            if positions.last() != Some(&position) && self.slot(position) == Slot::Data {
                if positions.len() == count_max {
                    return (positions, Some(position));
                }
                positions.push(position);
            }
            if let Some(later) = sources[source].next() {
                next.push(Reverse((later, source)));
            }
        }
        (positions, None)
    }

    /// Records that stand in all files, trimmed ones in files not yet freed included.
    pub(super) fn records(&self) -> usize {
        self.files.values().map(|file| file.slots.count()).sum()
    }

    /// Memory that the index takes, roughly.
    pub(super) fn memory_bytes(&self) -> usize {
        let files: usize = self.files.values().map(FileIndex::memory_bytes).sum();
        let spans = 40 * (self.junk.len() + self.damaged.len());
        files + spans + self.pages.len() * 64 + self.tails.len() * 80
    }
}
