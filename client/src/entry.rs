//! What a reader gets.

use bytes::Bytes;
use milonga_wire::{Position, Stamp, StreamLink, Term};

/// What a position holds, on the whole chain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Where.
    pub position: Position,
    /// What.
    pub kind: Kind,
}

/// What an entry is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A record.
    Data {
        /// The term of the write that decided it.
        term: Term,
        /// Whose it is.
        stamp: Stamp,
        /// The streams it belongs to, with what came before it in each.
        streams: Vec<StreamLink>,
        /// Its bytes.
        payload: Bytes,
    },
    /// A hole, ended for ever.
    Junk {
        /// The term of the fill that decided it.
        term: Term,
    },
    /// Given back.
    Trimmed,
    /// At or above the end of the log, or (if reads do not settle) a hole.
    Unwritten,
    /// Lost or damaged on the units that answered; a control client restores it if any of them still holds it.
    Unknown,
}

impl Entry {
    /// The record's bytes, if it is one.
    pub fn payload(&self) -> Option<&Bytes> {
        match &self.kind {
            Kind::Data { payload, .. } => Some(payload),
            Kind::Junk { .. } | Kind::Trimmed | Kind::Unwritten | Kind::Unknown => None,
        }
    }
}
