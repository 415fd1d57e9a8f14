//! What the unit asks of its store: one durable batch at a time, and look-ups in between.
//!
//! Two things implement it: `store::Store` on a disk, and a plain map that the tests hold it against.
//!
//! - S1 After [`Storage::commit`] returns `Ok`, everything in the batch is durable and visible; before, nothing of it is visible.
//! - S2 After it returns `Err`, nothing of the batch is visible, every later commit fails, and reads go on.
//! - S3 A position that holds an entry holds the same one until trimmed, through any crash, unless the disk lies; where it
//!   lied and it shows, the position is [`Slot::Damaged`] or [`Slot::Absent`], never another entry.
//!
//! All calls block, and are made by one thread at a time.

use milonga_wire::{
    Before, EntryHead, Held, Holder, Identity, Payload, Position, Span, Stamp, StreamId, Stripes,
    Term,
};

/// One durable change. A batch of them is applied in order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// A record. Its position holds nothing, or is damaged: admission has seen to it.
    Entry {
        /// What and where; `len` is the payload's.
        head: EntryHead,
        /// Its bytes.
        payload: Payload,
    },
    /// Junk, at positions that hold nothing or are damaged.
    Junk {
        /// The positions.
        span: Span,
        /// The term of the fill that decided it.
        term: Term,
    },
    /// All lower terms are over.
    Term(Term),
    /// Everything below is given back. Never falls.
    Trim(Position),
    /// A settled mark, worth remembering for the next seal. Never falls.
    Settled(Position),
    /// A layout named this unit: the directory is no longer blank.
    Listed,
    /// A durable write that changes nothing: a probe.
    Probe,
}

/// What the index says of a position. No disk is touched for it.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Slot {
    /// Nothing is held.
    Absent,
    /// A record.
    Data,
    /// Junk of that term.
    Junk(Term),
    /// Below the trim point.
    Trimmed,
    /// Something was held and cannot be read: bad checksum, or the disk refuses.
    Damaged,
}

/// What survives a restart, beside entries.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Durable {
    /// The highest term sealed.
    pub term: Term,
    /// The first position kept.
    pub trimmed: Position,
    /// The first position above everything ever held (trimmed positions count).
    pub end: Position,
    /// The last settled mark committed.
    pub settled: Position,
    /// Never listed, sealed or written: `cluster init` may take it.
    pub blank: bool,
    /// Whether every batch found at opening shows that the one before it was synced, and nothing after the last is torn.
    pub synced: bool,
}

/// How much room the disk has left.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub enum Room {
    /// Nothing more can be written.
    None,
    /// The end of the reserve: for fills, seals and trims. A position that ends as junk holds up nobody.
    Little,
    /// Only the reserve: for what is decided already, too.
    Reserve,
    /// Enough.
    Plenty,
}

/// Why a batch was not committed. The unit refuses writes from then on, until it is restarted (but for [`CommitError::Full`]).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CommitError {
    /// No room; nothing was written, and later batches may succeed when space returns.
    #[error("no space left")]
    Full,
    /// A write or sync failed, now or earlier; nothing is known about the batch. Never retried.
    #[error("the disk failed: {0}")]
    Failed(String),
}

/// Why an entry cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReadError {
    /// The slot is not [`Slot::Data`].
    #[error("no record there")]
    NotData,
    /// Its bytes are damaged or the disk refuses them; the slot is [`Slot::Damaged`] from now on.
    #[error("damaged: {0}")]
    Damaged(String),
}

/// What one step of verifying old records brought.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct Scrubbed {
    /// Bytes read.
    pub bytes: u64,
    /// Records found damaged that were believed before.
    pub damaged: u64,
    /// Whether the step ended a round over all records.
    pub done: bool,
}

/// A log unit's store.
pub trait Storage: Send + 'static {
    /// Which server this directory makes.
    fn identity(&self) -> Identity;

    /// What survives a restart.
    fn durable(&self) -> Durable;

    /// What the index says of a position.
    fn slot(&self, position: Position) -> Slot;

    /// The longest run of positions from `span.start`, within `span`, whose slots are the same kind (and, for junk, term).
    /// `span` must not be empty. Costs no more than a few index steps per thousand positions.
    fn run(&self, span: Span) -> (Slot, Span);

    /// Whose record or junk is there; none if the slot is neither.
    ///
    /// # Errors
    /// [`ReadError::Damaged`].
    fn holder(&mut self, position: Position) -> Result<Option<Holder>, ReadError>;

    /// The record at `position`, its checksum verified.
    ///
    /// # Errors
    /// [`ReadError`].
    fn read(&mut self, position: Position) -> Result<(EntryHead, Payload), ReadError>;

    /// Makes a batch durable with one write and one sync, then visible (S1, S2).
    ///
    /// # Errors
    /// [`CommitError`].
    fn commit(&mut self, batch: &[Change]) -> Result<(), CommitError>;

    /// The first position of `stripes` at or above `from` (and the trim point) that holds nothing or is damaged; the
    /// end of their span (or `from`, above it) if there is none.
    fn first_lacking(&self, stripes: &Stripes, from: Position) -> Position;

    /// Ranges of positions held at or above `from`, lowest first, at most `count_max`; neighbours are merged.
    fn held(&self, from: Position, count_max: usize) -> Vec<Held>;

    /// The last positions of each stream after `after`, in the order of ids, at most `count_max`; and whether there are more.
    /// A stream whose entries were trimmed is [`Before::Known`] with what is left only if it is certain that K or more are
    /// left or none was ever trimmed; else the trimmed positions' last known values are kept, or it is [`Before::Unknown`].
    fn stream_tails(
        &self,
        after: Option<StreamId>,
        count_max: usize,
    ) -> (Vec<(StreamId, Before)>, bool);

    /// Positions of `stream` held within `span`, rising, at most `count_max`; and where to go on if that cut it short.
    fn stream_positions(
        &self,
        stream: StreamId,
        span: Span,
        count_max: usize,
    ) -> (Vec<Position>, Option<Position>);

    /// How much room is left.
    fn room(&self) -> Room;

    /// Bytes on disk.
    fn bytes(&self) -> u64;

    /// Does a little of what need not be done while a client waits: prepares the next file, frees trimmed ones,
    /// verifies some old entries. Returns whether there is more to do soon.
    fn housekeep(&mut self) -> bool;

    /// Positions whose slot is [`Slot::Damaged`].
    fn damaged(&self) -> u64;

    /// Reads and verifies records, in the order of positions, from where the last step ended: about `bytes_max` bytes, and
    /// at least one record. What cannot be read is [`Slot::Damaged`] from now on.
    fn scrub(&mut self, bytes_max: u64) -> Scrubbed;

    /// Forgets everything and becomes the blank store of `identity`. Durable when it returns. A crash meanwhile leaves the
    /// old identity with a note that makes the next opening finish it, or the new one; never what was held.
    ///
    /// # Errors
    /// [`CommitError::Failed`]; nothing may be asked of the store any more.
    fn reset(&mut self, identity: Identity) -> Result<(), CommitError>;

    /// The stamps of the records at `positions`, where they are data: for checks in bulk.
    fn stamp(&mut self, position: Position) -> Option<Stamp> {
        match self.holder(position) {
            Ok(Some(Holder::Data(stamp))) => Some(stamp),
            Ok(Some(Holder::Junk) | None) | Err(_) => None,
        }
    }
}
