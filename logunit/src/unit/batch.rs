//! Changes that wait for one commit, and what every position will hold after it.

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_wire::{Holder, Payload, Position, Refusal, Span, Term, UnitReply};

use super::{Command, State};
use crate::storage::{Change, CommitError, Slot, Storage};

/// Commands admitted and not committed. Dropping it undoes them.
#[derive(Debug)]
pub struct Batch {
    /// The unit's state once this is durable.
    pub(super) state: State,
    /// The end of what is durable: nothing is held above it but by this batch.
    held_end: Position,
    changes: Vec<Change>,
    /// What the changes put where, by first position. They never overlap.
    waiting: BTreeMap<Position, Waiting>,
    drafts: Vec<Draft>,
    small: Vec<Small>,
}

/// A run of positions that a change of this batch takes.
#[derive(Copy, Clone, Debug)]
struct Waiting {
    end: Position,
    /// Of its first position; the stamps of the others count on.
    holder: Holder,
}

/// An answer that waits for the commit.
#[derive(Debug)]
pub(super) enum Draft {
    /// Known already.
    Ready(Result<UnitReply, Refusal>),
    /// What the unit holds once the batch is durable.
    Sealed,
}

/// A command that stores nothing, kept to be decided again if the batch finds no room.
#[derive(Debug)]
pub(super) struct Small {
    pub(super) index: usize,
    pub(super) term: Term,
    pub(super) command: Command,
    pub(super) confirmed: bool,
}

/// What a position holds.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum View {
    /// Given back.
    Trimmed,
    /// A record, on the disk.
    Data,
    /// Junk, on the disk.
    Junk(Term),
    /// What this batch puts there.
    Waiting(Holder),
    /// Provably never written.
    Absent,
    /// Absent, where that says nothing (U6).
    Unknown,
    /// Held once, and not readable any more (U5).
    Damaged,
}

/// Where a request found the batch, to undo it there.
#[derive(Debug)]
pub(super) struct Mark {
    state: State,
    changes: usize,
}

impl State {
    /// What is durable at `span.start`, and for how many positions of `span`. `held_end` saves the index from
    /// walking to the end of the number range.
    pub(super) fn look(
        &self,
        storage: &dyn Storage,
        held_end: Position,
        span: Span,
    ) -> (View, Span) {
        debug_assert!(!span.is_empty(), "a look at nothing");
        if span.start < self.trimmed {
            let end = span.end.min(self.trimmed);
            return (View::Trimmed, Span::new(span.start, end));
        }
        if span.start >= held_end {
            return self.absent(span);
        }
        let (slot, run) = storage.run(Span::new(span.start, span.end.min(held_end)));
        match slot {
            Slot::Data => (View::Data, run),
            Slot::Junk(term) => (View::Junk(term), run),
            Slot::Trimmed => (View::Trimmed, run),
            Slot::Damaged => (View::Damaged, run),
            Slot::Absent if run.end == held_end => self.absent(span),
            Slot::Absent => self.absent(run),
        }
    }

    fn absent(&self, span: Span) -> (View, Span) {
        let known_from = self.member_from.unwrap_or(Position(u64::MAX));
        if span.start < known_from {
            let end = span.end.min(known_from);
            (View::Unknown, Span::new(span.start, end))
        } else {
            (View::Absent, span)
        }
    }
}

/// Who holds the position `count` behind one that `holder` holds, in the same run.
fn holder_at(holder: Holder, count: u64) -> Holder {
    match holder {
        Holder::Data(stamp) => Holder::Data(stamp.plus(count as u32)),
        Holder::Junk => Holder::Junk,
    }
}

impl Batch {
    pub(super) fn new(state: State) -> Self {
        Self {
            state,
            held_end: state.end,
            changes: Vec::new(),
            waiting: BTreeMap::new(),
            drafts: Vec::new(),
            small: Vec::new(),
        }
    }

    /// How many entries it stores.
    pub fn entries(&self) -> usize {
        let entry = |change: &&Change| matches!(change, Change::Entry { .. });
        self.changes.iter().filter(entry).count()
    }

    /// Bytes of the entries it stores.
    pub fn bytes(&self) -> u64 {
        let bytes = |change: &Change| match change {
            Change::Entry { payload, .. } => payload.len() as u64,
            _ => 0,
        };
        self.changes.iter().map(bytes).sum()
    }

    /// Whether it would change nothing on the disk.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether it stores entries or junk.
    pub(super) fn stores(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How many commands were admitted.
    pub(super) fn answers(&self) -> usize {
        self.drafts.len()
    }

    pub(super) fn answer(&mut self, draft: Draft) {
        self.drafts.push(draft);
    }

    pub(super) fn keep(&mut self, small: Small) {
        self.small.push(small);
    }

    pub(super) fn push(&mut self, change: Change) {
        self.changes.push(change);
    }

    pub(super) fn into_drafts(self) -> impl Iterator<Item = Draft> {
        self.drafts.into_iter()
    }

    pub(super) fn into_small(self) -> Vec<Small> {
        self.small
    }

    pub(super) fn commit_to(&self, storage: &mut dyn Storage) -> Result<(), CommitError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        storage.commit(&self.changes)
    }

    /// What `span.start` holds once the batch is durable, and for how many positions of `span`.
    pub(super) fn look(&self, storage: &dyn Storage, span: Span) -> (View, Span) {
        if span.start < self.state.trimmed || self.waiting.is_empty() {
            return self.state.look(storage, self.held_end, span);
        }
        if let Some((first, waiting)) = self.waiting.range(..=span.start).next_back()
            && span.start < waiting.end
        {
            let holder = holder_at(waiting.holder, span.start.since(*first));
            let run = Span::new(span.start, span.end.min(waiting.end));
            return (View::Waiting(holder), run);
        }
        let free = self.waiting.range(span.start..span.end).next();
        let end = free.map_or(span.end, |(first, _)| *first);
        self.state
            .look(storage, self.held_end, Span::new(span.start, end))
    }

    /// Takes `span` for what `holder`, of its first position, begins.
    pub(super) fn take(&mut self, span: Span, holder: Holder) {
        let end = span.end;
        self.waiting.insert(span.start, Waiting { end, holder });
        self.state.end = self.state.end.max(end);
        self.state.blank = false;
    }

    pub(super) fn mark(&self) -> Mark {
        Mark {
            state: self.state,
            changes: self.changes.len(),
        }
    }

    /// Takes back all that came after `mark` (U3).
    pub(super) fn undo(&mut self, mark: &Mark) {
        for change in self.changes.drain(mark.changes..) {
            match change {
                Change::Entry { head, .. } => self.waiting.remove(&head.position),
                Change::Junk { span, .. } => self.waiting.remove(&span.start),
                Change::Term(_)
                | Change::Trim(_)
                | Change::Settled(_)
                | Change::Listed
                | Change::Probe => None,
            };
        }
        self.state = mark.state;
    }
}

/// Cuts the bytes of entries out of a payload, sharing its memory. Each chunk is looked at once.
#[derive(Debug)]
pub(super) struct Cutter<'a> {
    chunks: &'a [Bytes],
    /// Bytes of the first chunk that are gone.
    offset: usize,
}

impl<'a> Cutter<'a> {
    pub(super) fn new(payload: &'a Payload) -> Self {
        Self {
            chunks: payload.chunks(),
            offset: 0,
        }
    }

    pub(super) fn take(&mut self, count: usize) -> Payload {
        let mut taken = Payload::new();
        self.walk(count, |part| taken.push(part));
        taken
    }

    pub(super) fn skip(&mut self, count: usize) {
        self.walk(count, drop);
    }

    fn walk(&mut self, count: usize, mut part: impl FnMut(Bytes)) {
        let mut missing = count;
        while missing > 0 {
            let (first, rest) = self
                .chunks
                .split_first()
                .expect("admission compared the lengths with the payload");
            let step = missing.min(first.len() - self.offset);
            part(first.slice(self.offset..self.offset + step));
            missing -= step;
            self.offset += step;
            if self.offset == first.len() {
                (self.chunks, self.offset) = (rest, 0);
            }
        }
    }
}
