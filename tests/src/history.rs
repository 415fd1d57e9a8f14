//! What clients asked and were told, and when: all that the invariants may look at.
//!
//! Every record that a client appends carries a number of its own and can be told from any damage, so a position that is
//! read says whose it is. What nobody was told (a call that never returned, an unknown outcome) stays open for ever: it
//! may have happened, at any later time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use milonga_wire::{Position, Span, StreamId, StreamLink, Term};

/// The number of a record, unique in a run.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct Value(pub u64);

impl Value {
    /// The record's bytes: its number, then `filler` bytes that follow from it.
    pub fn record(self, filler: usize) -> Bytes {
        let mut bytes = self.0.to_le_bytes().to_vec();
        bytes.extend((0..filler).map(|index| self.filler(index)));
        bytes.into()
    }

    /// The number that a record carries; none if the bytes are not as they were made.
    pub fn of_record(record: &[u8]) -> Option<Self> {
        let (number, filler) = record.split_first_chunk()?;
        let value = Self(u64::from_le_bytes(*number));
        let whole = filler
            .iter()
            .enumerate()
            .all(|(index, byte)| *byte == value.filler(index));
        whole.then_some(value)
    }

    fn filler(self, index: usize) -> u8 {
        (self.0.wrapping_mul(0x9e37_79b9) >> 8) as u8 ^ index as u8
    }
}

/// What a position was seen to hold.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Seen {
    /// A record.
    Data(Value),
    /// A record that no client made like that.
    Damaged,
    /// Junk.
    Junk,
    /// Trimmed.
    Trimmed,
    /// Nothing yet, at or above the end.
    Unwritten,
    /// No unit could tell.
    Unknown,
}

/// What became of one record of an append.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Fate {
    /// Acknowledged there.
    At(Position),
    /// Not in the log, and never will be.
    Nowhere,
    /// Not known.
    Open,
}

/// What a client asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Call {
    /// Append these records; in the order of one producer, or each for itself.
    Append {
        /// The ordered producer, if it is one.
        producer: Option<u64>,
        /// The streams that each of them belongs to.
        streams: Vec<StreamId>,
        /// The records.
        values: Vec<Value>,
    },
    /// Read a position, or several from it on.
    Read {
        /// The first.
        from: Position,
    },
    /// Read what a stream has in a span, all of it.
    ReadStream {
        /// The stream.
        stream: StreamId,
        /// Where.
        span: Span,
    },
    /// Ask for the end.
    End,
    /// Trim.
    Trim {
        /// The first position to keep.
        to: Position,
    },
}

/// What a client was told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Told {
    /// To an append: per record.
    Fates(Vec<Fate>),
    /// To a read.
    Entries(Vec<(Position, Seen)>),
    /// To a question for the end.
    End {
        /// The end.
        end: Position,
        /// The counter in the term in which it was confirmed.
        counter: Position,
        /// That term.
        term: Term,
    },
    /// To a trim.
    Trimmed(Position),
    /// That it did not work. Of an append, that all is open.
    Failed(String),
}

/// One operation of one client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Operation {
    /// The client's process (a client that starts again is another one).
    pub client: u64,
    /// When it was asked, as a place in the order of all events.
    pub asked: u64,
    /// What.
    pub call: Call,
    /// When the client was told, and what; nothing if it never was.
    pub told: Option<(u64, Told)>,
}

impl Operation {
    /// Whether its outcome was known before `other` was asked.
    pub fn precedes(&self, other: &Self) -> bool {
        self.told
            .as_ref()
            .is_some_and(|(told, _)| *told < other.asked)
    }

    /// Every record that it was told the position of, with the moment it was told.
    pub fn acknowledged(&self) -> impl Iterator<Item = (Value, Position, u64)> + '_ {
        let (values, fates, told) = match (&self.call, &self.told) {
            (Call::Append { values, .. }, Some((told, Told::Fates(fates)))) => {
                (values.as_slice(), fates.as_slice(), *told)
            }
            _ => (&[][..], &[][..], 0),
        };
        values
            .iter()
            .zip(fates)
            .filter_map(move |(value, fate)| match fate {
                Fate::At(position) => Some((*value, *position, told)),
                Fate::Nowhere | Fate::Open => None,
            })
    }

    /// Every position it read, with what was seen there.
    pub fn seen(&self) -> &[(Position, Seen)] {
        match &self.told {
            Some((_, Told::Entries(entries))) => entries,
            Some(_) | None => &[],
        }
    }

    /// When it was told; never, for an operation that did not return.
    pub fn told_at(&self) -> u64 {
        self.told.as_ref().map_or(u64::MAX, |(told, _)| *told)
    }
}

/// The operations of a run, as they happen. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Recorded>>);

#[derive(Debug, Default)]
struct Recorded {
    operations: Vec<Operation>,
    events: u64,
    values: u64,
    links: Links,
}

/// What the records that were read say of the streams they belong to.
pub type Links = BTreeMap<Position, Vec<StreamLink>>;

/// An operation that was asked and not told yet.
#[derive(Debug)]
pub struct Asked(usize);

impl History {
    /// A number for a record that no other record has.
    pub fn value(&self) -> Value {
        let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.values += 1;
        Value(recorded.values)
    }

    /// `client` asks.
    pub fn ask(&self, client: u64, call: Call) -> Asked {
        let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.events += 1;
        let asked = recorded.events;
        recorded.operations.push(Operation {
            client,
            asked,
            call,
            told: None,
        });
        Asked(recorded.operations.len() - 1)
    }

    /// The client is told.
    pub fn tell(&self, asked: &Asked, told: Told) {
        let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.events += 1;
        let now = recorded.events;
        recorded.operations[asked.0].told = Some((now, told));
    }

    /// The record at `position` was read, and says this of its streams.
    pub fn link(&self, position: Position, streams: &[StreamLink]) {
        if !streams.is_empty() {
            let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            recorded.links.insert(position, streams.to_vec());
        }
    }

    /// What all records that were read say of their streams.
    pub fn links(&self) -> Links {
        let recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.links.clone()
    }

    /// All of it.
    pub fn operations(&self) -> Vec<Operation> {
        let recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        recorded.operations.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_with_a_flipped_bit_is_nobodys() {
        let record = Value(77).record(20);
        assert_eq!(Value::of_record(&record), Some(Value(77)));
        for index in 8..record.len() {
            let mut damaged = record.to_vec();
            damaged[index] ^= 1;
            assert_eq!(Value::of_record(&damaged), None);
        }
        assert_eq!(Value::of_record(b"short"), None);
    }
}
