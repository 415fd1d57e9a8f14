//! What clients of replicated maps asked and were told, and when.
//!
//! Every value that is written carries a number of its own, so one that is read says whose it is. What nobody was told stays
//! open for ever.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use milonga_wire::Position;
use serde::{Deserialize, Serialize};

/// A key of a map: the map's number and its own.
pub type Key = (u64, u64);

/// What is written to a key; none: it is removed.
pub type Value = Option<u64>;

/// What a key holds: a value, and the position of the write that set it. None: it is absent.
pub type Found = Option<(u64, Position)>;

/// The keys of one map.
pub type Contents = BTreeMap<u64, (u64, Position)>;

/// What was read, and what of each key was found.
pub type Reads = Vec<(Key, Found)>;

/// How the reads of a transaction relate to where it lies.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Mode {
    /// All reads hold where it lies.
    Serializable,
    /// All reads hold at one place at or above what was acknowledged before, and nobody wrote what it writes since.
    Snapshot,
    /// All reads hold at one place, however old, and nobody wrote since what it both read and writes.
    WriteWrite,
}

/// What a client asked.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Asked {
    /// Reads of one state that holds everything acknowledged before.
    Read,
    /// Reads of this process's copy, however old.
    ReadStale,
    /// The state of a map as of a position.
    At {
        /// The map.
        map: u64,
        /// The position.
        position: Position,
    },
    /// Writes that take place together or not at all.
    Write {
        /// Each key once, in order.
        writes: Vec<(Key, Value)>,
        /// How it is protected.
        mode: Mode,
        /// Its idempotency key.
        once: Option<u64>,
    },
}

/// What a client was told.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Told {
    /// What it read.
    Found(Reads),
    /// The state of a map.
    Contents(Contents),
    /// The writes took place at this position; what they depended on.
    Done(Position, Reads),
    /// The writes did not take place: under their idempotency key others had, at this position.
    Repeated(Position),
    /// The writes did not take place. Where that was decided, and what was found there, if that was told.
    Refused(Option<(Position, Reads)>),
    /// The writes did not take place: somebody had changed this, or what else the transaction depended on, since it was read.
    Aborted(Reads),
    /// Not known: nothing can be said.
    Open,
    /// It is in the log at this position, with what outcome is not known.
    Undecided(Position),
}

/// One operation of one client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Operation {
    /// The client's process.
    pub client: u64,
    /// When it was asked, as a place in the order of all events.
    pub asked: u64,
    /// What.
    pub what: Asked,
    /// When the client was told, and what; nothing if it never was.
    pub told: Option<(u64, Told)>,
}

/// What a watch told: a change of a key.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Where.
    pub position: Position,
    /// Which key.
    pub key: Key,
    /// What it holds since.
    pub value: Value,
}

/// All that one watch told, or one copy of all changes there ever were.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Watched {
    /// The map.
    pub map: u64,
    /// From where on.
    pub from: Position,
    /// The changes, with the moment at which each was told.
    pub changes: Vec<(u64, Change)>,
    /// Each time it said that there is no more: when it was asked, and how many it had told.
    pub caught_up: Vec<(u64, usize)>,
}

impl Watched {
    /// All changes of a map, told at once.
    pub fn listed(map: u64, asked: u64, told: u64, changes: Vec<Change>) -> Self {
        let caught_up = vec![(asked, changes.len())];
        let changes = changes.into_iter();
        Self {
            map,
            from: Position::FIRST,
            changes: changes.map(|change| (told, change)).collect(),
            caught_up,
        }
    }
}

/// Shared by all clients of a run.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    events: u64,
    values: u64,
    operations: Vec<Operation>,
    watches: Vec<Watched>,
}

impl History {
    fn with<T>(&self, what: impl FnOnce(&mut Recorded, u64) -> T) -> T {
        let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.events += 1;
        let now = recorded.events;
        what(&mut recorded, now)
    }

    /// A value that nobody else writes.
    pub fn value(&self) -> u64 {
        self.with(|recorded, _| {
            recorded.values += 1;
            recorded.values
        })
    }

    /// This moment.
    pub fn now(&self) -> u64 {
        self.with(|_, now| now)
    }

    /// A client asks.
    pub fn ask(&self, client: u64, what: Asked) -> usize {
        self.with(|recorded, asked| {
            recorded.operations.push(Operation {
                client,
                asked,
                what,
                told: None,
            });
            recorded.operations.len() - 1
        })
    }

    /// The client is told.
    pub fn tell(&self, asked: usize, told: Told) {
        self.with(|recorded, now| recorded.operations[asked].told = Some((now, told)));
    }

    /// A watch begins.
    pub fn watch(&self, map: u64, from: Position) -> usize {
        self.with(|recorded, _| {
            recorded.watches.push(Watched {
                map,
                from,
                changes: vec![],
                caught_up: vec![],
            });
            recorded.watches.len() - 1
        })
    }

    /// A watch tells a change.
    pub fn changed(&self, watch: usize, change: Change) {
        self.with(|recorded, now| recorded.watches[watch].changes.push((now, change)));
    }

    /// A watch that was asked at `asked` says that there is nothing more.
    pub fn caught_up(&self, watch: usize, asked: u64) {
        self.with(|recorded, _| {
            let watch = &mut recorded.watches[watch];
            watch.caught_up.push((asked, watch.changes.len()));
        });
    }

    /// Somebody who asked at `asked` was told all changes of a map at once.
    pub fn listed(&self, map: u64, asked: u64, changes: Vec<Change>) {
        self.with(|recorded, now| {
            let listed = Watched::listed(map, asked, now, changes);
            recorded.watches.push(listed);
        });
    }

    /// All operations, in the order in which they were asked.
    pub fn operations(&self) -> Vec<Operation> {
        self.with(|recorded, _| recorded.operations.clone())
    }

    /// All watches.
    pub fn watches(&self) -> Vec<Watched> {
        self.with(|recorded, _| recorded.watches.clone())
    }
}
