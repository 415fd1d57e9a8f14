//! A plain map that keeps what a log unit's store must keep: what the disk is held against, and what light simulations use.
//!
//! A [`MemoryStore`] is a handle. Its clones show the same store, so a test keeps one while a server owns another: to see
//! what became durable, to break things, and to start the next process on what the last one left ([`MemoryStore::reopen`]).
//!
//! Commits are whole or nothing at once (S1, S2). What a disk can do beside that is asked for by name: [`MemoryStore::damage`],
//! [`MemoryStore::rot`], [`MemoryStore::lose`], [`MemoryStore::fail_next`], [`MemoryStore::stall_next`],
//! [`MemoryStore::set_room`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use milonga_wire::limits::BACKPOINTERS;
use milonga_wire::{
    Before, EntryHead, Held, Holder, Identity, Payload, Position, Span, StreamId, Stripes, Term,
};

use crate::storage::{Change, CommitError, Durable, ReadError, Room, Scrubbed, Slot, Storage};

/// A store in memory; see the module.
#[derive(Clone, Debug)]
pub struct MemoryStore(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    identity: Identity,
    durable: Durable,
    entries: BTreeMap<Position, Kept>,
    /// Per stream the positions held, and of the trimmed ones those that belong to its last K.
    streams: BTreeMap<StreamId, BTreeSet<Position>>,
    room: Room,
    /// What the next commit answers instead.
    fail_next: Option<CommitError>,
    /// Told that the next commit has begun, and what it waits for.
    stall_next: Option<(Sender<()>, Receiver<()>)>,
    failure: Option<String>,
    commits: u64,
    housekept: u64,
    /// Where scrubbing goes on.
    scrub_at: Position,
}

#[derive(Clone, Debug)]
enum Kept {
    Data(EntryHead, Payload),
    Junk(Term),
    /// Damaged, and nobody has noticed yet.
    Rotten,
    Damaged,
}

/// What survives of nothing.
fn blank() -> Durable {
    Durable {
        term: Term::GENESIS,
        trimmed: Position::FIRST,
        end: Position::FIRST,
        settled: Position::FIRST,
        blank: true,
        synced: true,
    }
}

impl Kept {
    fn slot(&self) -> Slot {
        match self {
            Self::Data(..) | Self::Rotten => Slot::Data,
            Self::Junk(term) => Slot::Junk(*term),
            Self::Damaged => Slot::Damaged,
        }
    }
}

impl MemoryStore {
    /// A blank store of that identity.
    pub fn format(identity: Identity) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            identity,
            durable: blank(),
            entries: BTreeMap::new(),
            streams: BTreeMap::new(),
            room: Room::Plenty,
            fail_next: None,
            stall_next: None,
            failure: None,
            commits: 0,
            housekept: 0,
            scrub_at: Position::FIRST,
        })))
    }

    /// The same store as the next process start finds it: a disk that failed works again.
    pub fn reopen(&self) -> Self {
        let mut inner = self.lock();
        inner.failure = None;
        inner.fail_next = None;
        drop(inner);
        self.clone()
    }

    /// The next commit fails with `error`; after [`CommitError::Failed`] so do all later ones, until the store is reopened.
    pub fn fail_next(&self, error: CommitError) {
        self.lock().fail_next = Some(error);
    }

    /// The next commit blocks its thread, as a disk does that stands still: the first end hears when it has begun, the
    /// second lets it go on when it is dropped.
    pub fn stall_next(&self) -> (Receiver<()>, Sender<()>) {
        let (begun, has_begun) = channel();
        let (go_on, may_go_on) = channel();
        self.lock().stall_next = Some((begun, may_go_on));
        (has_begun, go_on)
    }

    /// Says how much room there is. At [`Room::None`] a commit with entries or junk fails.
    pub fn set_room(&self, room: Room) {
        self.lock().room = room;
    }

    /// Whether the store shows every batch synced.
    pub fn set_synced(&self, synced: bool) {
        self.lock().durable.synced = synced;
    }

    /// Makes the record at `position` unreadable; its slot says so only after somebody tried.
    pub fn rot(&self, position: Position) {
        if let Some(kept @ Kept::Data(..)) = self.lock().entries.get_mut(&position) {
            *kept = Kept::Rotten;
        }
    }

    /// Makes what `position` holds unreadable.
    pub fn damage(&self, position: Position) {
        if let Some(kept) = self.lock().entries.get_mut(&position) {
            *kept = Kept::Damaged;
        }
    }

    /// Forgets what `span` held, as a disk does that said it had synced.
    pub fn lose(&self, span: Span) {
        let mut inner = self.lock();
        inner
            .entries
            .retain(|position, _| !span.contains(*position));
        for positions in inner.streams.values_mut() {
            positions.retain(|position| !span.contains(*position));
        }
        inner.streams.retain(|_, positions| !positions.is_empty());
    }

    /// How many batches were committed.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    /// How often the store was asked to keep house.
    pub fn housekept(&self) -> u64 {
        self.lock().housekept
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn slot(&self, position: Position) -> Slot {
        if position < self.durable.trimmed {
            return Slot::Trimmed;
        }
        self.entries.get(&position).map_or(Slot::Absent, Kept::slot)
    }

    fn run(&self, span: Span) -> (Slot, Span) {
        debug_assert!(!span.is_empty(), "a run of nothing");
        let first = self.slot(span.start);
        let end = match first {
            Slot::Trimmed => span.end.min(self.durable.trimmed),
            Slot::Absent => self
                .entries
                .range(span.start..span.end)
                .next()
                .map_or(span.end, |(position, _)| *position),
            Slot::Data | Slot::Junk(_) | Slot::Damaged => {
                let mut end = span.start;
                for (position, kept) in self.entries.range(span.start..span.end) {
                    if *position != end || kept.slot() != first {
                        break;
                    }
                    end = end.next();
                }
                end
            }
        };
        (first, Span::new(span.start, end))
    }

    /// What is read at `position`, its checksum verified.
    fn touch(&mut self, position: Position) -> Result<Option<&Kept>, ReadError> {
        match self.entries.get_mut(&position) {
            Some(kept @ (Kept::Rotten | Kept::Damaged)) => {
                *kept = Kept::Damaged;
                Err(ReadError::Damaged("its checksum is wrong".to_owned()))
            }
            Some(kept) => Ok(Some(kept)),
            None => Ok(None),
        }
    }

    fn apply(&mut self, change: &Change) {
        let blank = self.durable.blank;
        self.durable.blank = false;
        match change {
            Change::Entry { head, payload } => {
                for link in &head.streams {
                    let positions = self.streams.entry(link.stream).or_default();
                    positions.insert(head.position);
                }
                self.hold(head.position, Kept::Data(head.clone(), payload.clone()));
            }
            Change::Junk { span, term } => {
                for position in span.positions() {
                    self.hold(position, Kept::Junk(*term));
                }
            }
            Change::Term(term) => self.durable.term = self.durable.term.max(*term),
            Change::Trim(to) => self.trim(*to),
            Change::Settled(mark) => self.durable.settled = self.durable.settled.max(*mark),
            Change::Listed => {}
            Change::Probe => self.durable.blank = blank,
        }
    }

    fn hold(&mut self, position: Position, kept: Kept) {
        let before = self.slot(position);
        assert!(
            matches!(before, Slot::Absent | Slot::Damaged),
            "S3: {position} is {before:?} and written again"
        );
        self.entries.insert(position, kept);
        self.durable.end = self.durable.end.max(position.next());
    }

    fn trim(&mut self, to: Position) {
        if to <= self.durable.trimmed {
            return;
        }
        self.durable.trimmed = to;
        self.entries = self.entries.split_off(&to);
        for positions in self.streams.values_mut() {
            let newest: Vec<Position> =
                positions.iter().rev().take(BACKPOINTERS).copied().collect();
            positions.retain(|position| *position >= to || newest.contains(position));
        }
    }
}

impl Storage for MemoryStore {
    fn identity(&self) -> Identity {
        self.lock().identity
    }

    fn durable(&self) -> Durable {
        self.lock().durable.clone()
    }

    fn slot(&self, position: Position) -> Slot {
        self.lock().slot(position)
    }

    fn run(&self, span: Span) -> (Slot, Span) {
        self.lock().run(span)
    }

    fn holder(&mut self, position: Position) -> Result<Option<Holder>, ReadError> {
        match self.lock().touch(position)? {
            Some(Kept::Data(head, _)) => Ok(Some(Holder::Data(head.stamp))),
            Some(Kept::Junk(_)) => Ok(Some(Holder::Junk)),
            Some(Kept::Rotten | Kept::Damaged) | None => Ok(None),
        }
    }

    fn read(&mut self, position: Position) -> Result<(EntryHead, Payload), ReadError> {
        match self.lock().touch(position)? {
            Some(Kept::Data(head, payload)) => Ok((head.clone(), payload.clone())),
            Some(Kept::Junk(_) | Kept::Rotten | Kept::Damaged) | None => Err(ReadError::NotData),
        }
    }

    fn commit(&mut self, batch: &[Change]) -> Result<(), CommitError> {
        let stall = self.lock().stall_next.take();
        if let Some((begun, may_go_on)) = stall {
            // Whoever dropped its end of either waits for nothing.
            let _ = begun.send(());
            let _ = may_go_on.recv();
        }
        let mut inner = self.lock();
        let data = |change: &Change| matches!(change, Change::Entry { .. } | Change::Junk { .. });
        if let Some(why) = &inner.failure {
            return Err(CommitError::Failed(why.clone()));
        }
        if let Some(error) = inner.fail_next.take() {
            if let CommitError::Failed(why) = &error {
                inner.failure = Some(why.clone());
            }
            return Err(error);
        }
        if inner.room == Room::None && batch.iter().any(data) {
            return Err(CommitError::Full);
        }
        for change in batch {
            inner.apply(change);
        }
        inner.commits += 1;
        Ok(())
    }

    fn first_lacking(&self, stripes: &Stripes, from: Position) -> Position {
        let inner = self.lock();
        let from = from.max(inner.durable.trimmed);
        for run in stripes.runs_from(from) {
            let mut rest = run;
            while !rest.is_empty() {
                let (slot, held) = inner.run(rest);
                if matches!(slot, Slot::Absent | Slot::Damaged) {
                    return rest.start;
                }
                rest.start = held.end;
            }
        }
        stripes.span.end.max(from)
    }

    fn held(&self, from: Position, count_max: usize) -> Vec<Held> {
        let inner = self.lock();
        let mut held: Vec<Held> = Vec::new();
        let readable = inner
            .entries
            .range(from..)
            .filter(|(_, kept)| !matches!(kept, Kept::Damaged));
        for (position, _) in readable {
            if let Some(last) = held.last_mut()
                && last.span.end == *position
            {
                last.span.end = position.next();
            } else if held.len() < count_max {
                held.push(Held {
                    span: Span::one(*position),
                });
            } else {
                break;
            }
        }
        held
    }

    fn stream_tails(
        &self,
        after: Option<StreamId>,
        count_max: usize,
    ) -> (Vec<(StreamId, Before)>, bool) {
        use std::ops::Bound::{Excluded, Unbounded};
        let inner = self.lock();
        let mut streams = inner
            .streams
            .range((after.map_or(Unbounded, Excluded), Unbounded));
        let tails = streams
            .by_ref()
            .take(count_max)
            .map(|(stream, positions)| {
                let last = positions.iter().rev().take(BACKPOINTERS).copied();
                (*stream, Before::Known(last.collect()))
            })
            .collect();
        (tails, streams.next().is_some())
    }

    fn stream_positions(
        &self,
        stream: StreamId,
        span: Span,
        count_max: usize,
    ) -> (Vec<Position>, Option<Position>) {
        let inner = self.lock();
        let start = span.start.max(inner.durable.trimmed);
        let Some(held) = inner.streams.get(&stream).filter(|_| start < span.end) else {
            return (Vec::new(), None);
        };
        let mut rest = held.range(start..span.end).copied();
        let positions = rest.by_ref().take(count_max).collect();
        (positions, rest.next())
    }

    fn room(&self) -> Room {
        self.lock().room
    }

    fn bytes(&self) -> u64 {
        let size = |kept: &Kept| match kept {
            Kept::Data(head, _) => u64::from(head.len),
            Kept::Junk(_) | Kept::Rotten | Kept::Damaged => 0,
        };
        self.lock().entries.values().map(size).sum()
    }

    fn housekeep(&mut self) -> bool {
        self.lock().housekept += 1;
        false
    }

    fn damaged(&self) -> u64 {
        let inner = self.lock();
        let damaged = inner.entries.values();
        damaged.filter(|kept| matches!(kept, Kept::Damaged)).count() as u64
    }

    fn scrub(&mut self, bytes_max: u64) -> Scrubbed {
        let mut inner = self.lock();
        let mut scrubbed = Scrubbed::default();
        while scrubbed.bytes < bytes_max.max(1) {
            let at = inner.scrub_at;
            let next = inner.entries.range(at..).next();
            let Some(position) = next.map(|(position, _)| *position) else {
                inner.scrub_at = Position::FIRST;
                scrubbed.done = true;
                break;
            };
            let was_damaged = matches!(inner.entries[&position], Kept::Damaged);
            let is_damaged = inner.touch(position).is_err();
            scrubbed.damaged += u64::from(is_damaged && !was_damaged);
            scrubbed.bytes += match &inner.entries[&position] {
                Kept::Data(head, _) => u64::from(head.len) + 1,
                Kept::Junk(_) | Kept::Rotten | Kept::Damaged => 1,
            };
            inner.scrub_at = position.next();
        }
        scrubbed
    }

    fn reset(&mut self, identity: Identity) -> Result<(), CommitError> {
        let mut inner = self.lock();
        if let Some(error) = inner.fail_next.take() {
            inner.failure = Some(error.to_string());
            return Err(error);
        }
        inner.identity = identity;
        inner.durable = blank();
        inner.entries.clear();
        inner.streams.clear();
        inner.scrub_at = Position::FIRST;
        Ok(())
    }
}
