//! Streams: the entries that name a stream id, tied together by backpointers.
//!
//! Source: Balakrishnan et al., *Tango* (SOSP '13), "Streaming CORFU".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Position;
use crate::identity::{InvalidName, fnv128, hex_id};

hex_id!(
    /// A stream's name on the wire and on disk.
    StreamId,
    "stream id"
);

impl StreamId {
    /// The stream that a name stands for on the command line, before any directory gives names to streams.
    pub fn of_name(name: &str) -> Self {
        Self(fnv128(name.as_bytes().iter()))
    }
}

/// What a stream's reader must expect before an entry: the last positions of the stream, newest first.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Before {
    /// At most [`crate::limits::BACKPOINTERS`] positions; fewer only where the stream starts.
    Known(Vec<Position>),
    /// Whoever issued the position did not know: scan. Never read as "nothing came before".
    Unknown,
}

/// One stream that an entry belongs to.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct StreamLink {
    /// The stream.
    pub stream: StreamId,
    /// What came before in it.
    pub before: Before,
}
