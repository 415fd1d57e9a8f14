//! What a position holds, and how runs of them travel.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identity::{InvalidName, hex_id};
use crate::limits::{BACKPOINTERS, PIECE_BYTES_MAX, RUN_RECORDS_MAX, STREAMS_PER_ENTRY_MAX};
use crate::{Before, Position, Refusal, Span, StreamLink, Term};
use std::str::FromStr;

hex_id!(
    /// One process start of a client: 128 random bits.
    Session,
    "client session"
);

/// Which record of which append: what makes an append exactly one entry however often it is retried.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// The client's process start.
    pub session: Session,
    /// Which append of that session.
    pub request: u64,
    /// Which record of that append.
    pub record: u32,
}

impl Stamp {
    /// The stamp of the record `count` further on in the same append.
    pub fn plus(self, count: u32) -> Self {
        Self {
            record: self.record.saturating_add(count),
            ..self
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.session, self.request, self.record)
    }
}

impl FromStr for Stamp {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let mut parts = text.splitn(3, '-');
        let mut parse = || {
            let session = parts.next()?.parse().ok()?;
            let request = parts.next()?.parse().ok()?;
            let record = parts.next()?.parse().ok()?;
            Some(Self {
                session,
                request,
                record,
            })
        };
        parse().ok_or_else(|| InvalidName {
            text: text.chars().take(80).collect(),
            what: "stamp",
            expected: "session-request-record",
        })
    }
}

/// Who holds a position: what a later write to it is told.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Holder {
    /// A record.
    Data(Stamp),
    /// A fill.
    Junk,
}

/// Everything about a record but its bytes.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct EntryHead {
    /// Where it is.
    pub position: Position,
    /// The term of the write that decided it. Completions and copies keep it.
    pub term: Term,
    /// Whose it is.
    pub stamp: Stamp,
    /// The streams it belongs to, and what came before it in each.
    pub streams: Vec<StreamLink>,
    /// Bytes of its payload.
    pub len: u32,
}

/// Consecutive records of one append that lie in one stripe. All or nothing: if one position is taken, none is written.
///
/// Records of a run belong to the same streams; what came before each is derived, see [`Piece::head`].
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// The position of its first record.
    pub first: Position,
    /// The term of the write that decided these entries: the request's own, but for completions and copies.
    pub term: Term,
    /// The stamp of its first record; the others count on.
    pub stamp: Stamp,
    /// The first position of the run that it is a piece of: what `streams` speaks of.
    pub run: Position,
    /// The streams of every record of the run, and what came before `run` in each.
    pub streams: Vec<StreamLink>,
    /// Bytes of each record, in order; the payload carries them one after the other.
    pub lengths: Vec<u32>,
}

impl Piece {
    /// The piece that holds `head` alone, as completions and copies send it.
    pub fn one(head: EntryHead) -> Self {
        Self {
            first: head.position,
            term: head.term,
            stamp: head.stamp,
            run: head.position,
            streams: head.streams,
            lengths: vec![head.len],
        }
    }

    /// The positions it covers.
    pub fn span(&self) -> Span {
        Span::new(self.first, self.first.plus(self.lengths.len() as u64))
    }

    /// Bytes of payload it covers.
    pub fn payload_bytes(&self) -> u64 {
        self.lengths.iter().map(|len| u64::from(*len)).sum()
    }

    /// The head of record `index`: before it in each stream come the records of its own run, then what the token said.
    pub fn head(&self, index: u32) -> EntryHead {
        let position = self.first.plus(u64::from(index));
        let streams = if position == self.run {
            self.streams.clone()
        } else {
            self.streams
                .iter()
                .map(|link| link_at(link, self.run, position))
                .collect()
        };
        EntryHead {
            position,
            term: self.term,
            stamp: self.stamp.plus(index),
            streams,
            len: self.lengths[index as usize],
        }
    }

    /// The heads of all its records.
    pub fn heads(&self) -> impl Iterator<Item = EntryHead> + '_ {
        (0..self.lengths.len() as u32).map(|index| self.head(index))
    }

    /// Checks every bound that does not depend on state.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] or [`Refusal::Malformed`], naming the bound.
    pub fn check(&self, entry_bytes_max: u32) -> Result<(), Refusal> {
        let records = self.lengths.len();
        if records == 0 || records > RUN_RECORDS_MAX as usize {
            return Err(Refusal::too_large(
                "records in a piece",
                records,
                RUN_RECORDS_MAX,
            ));
        }
        if let Some(len) = self.lengths.iter().find(|len| **len > entry_bytes_max) {
            return Err(Refusal::too_large(
                "bytes in a record",
                *len as usize,
                entry_bytes_max,
            ));
        }
        if self.payload_bytes() > PIECE_BYTES_MAX as u64 {
            let asked = self.payload_bytes() as usize;
            return Err(Refusal::too_large(
                "bytes in a piece",
                asked,
                PIECE_BYTES_MAX as u32,
            ));
        }
        if self.streams.len() > STREAMS_PER_ENTRY_MAX {
            let asked = self.streams.len();
            return Err(Refusal::too_large(
                "streams of a record",
                asked,
                STREAMS_PER_ENTRY_MAX as u32,
            ));
        }
        if self.first < self.run || self.first.since(self.run) > u64::from(RUN_RECORDS_MAX) {
            return Err(Refusal::malformed("a piece lies outside its run"));
        }
        if self.first.0.checked_add(records as u64).is_none() {
            return Err(Refusal::malformed("a piece passes the largest position"));
        }
        if self.stamp.record.checked_add(records as u32).is_none() {
            return Err(Refusal::malformed(
                "a piece passes the largest record number",
            ));
        }
        for (index, link) in self.streams.iter().enumerate() {
            if self.streams[..index]
                .iter()
                .any(|other| other.stream == link.stream)
            {
                return Err(Refusal::malformed("a record names a stream twice"));
            }
            if let Before::Known(positions) = &link.before {
                let falling = positions.windows(2).all(|pair| pair[0] > pair[1]);
                let below = positions.first().is_none_or(|newest| *newest < self.run);
                if positions.len() > BACKPOINTERS || !falling || !below {
                    return Err(Refusal::malformed(
                        "backpointers must fall, from below their run",
                    ));
                }
            }
        }
        Ok(())
    }
}

/// `link`, which speaks of `run`, as it stands for the record at `position` of that run.
fn link_at(link: &StreamLink, run: Position, position: Position) -> StreamLink {
    let own = position.since(run).min(BACKPOINTERS as u64);
    let within = (1..=own).map(|back| Position(position.0 - back));
    let before = match &link.before {
        Before::Known(earlier) => Before::Known(
            within
                .chain(earlier.iter().copied())
                .take(BACKPOINTERS)
                .collect(),
        ),
        Before::Unknown if own == BACKPOINTERS as u64 => Before::Known(within.collect()),
        Before::Unknown => Before::Unknown,
    };
    StreamLink {
        stream: link.stream,
        before,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StreamId;

    fn piece(before: Before) -> Piece {
        Piece {
            first: Position(12),
            term: Term(3),
            stamp: Stamp {
                session: Session([1; 16]),
                request: 7,
                record: 2,
            },
            run: Position(10),
            streams: vec![StreamLink {
                stream: StreamId([9; 16]),
                before,
            }],
            lengths: vec![1, 2, 3],
        }
    }

    /// Tango (SOSP '13), "Streaming CORFU": an entry's backpointers name the last K entries of its stream.
    #[test]
    fn records_of_a_run_come_before_what_the_token_named() {
        let piece = piece(Before::Known(vec![Position(8), Position(3)]));
        let before: Vec<Before> = piece
            .heads()
            .map(|head| head.streams[0].before.clone())
            .collect();
        let known =
            |positions: &[u64]| Before::Known(positions.iter().map(|p| Position(*p)).collect());

        assert_eq!(
            before,
            [
                known(&[11, 10, 8, 3]),
                known(&[12, 11, 10, 8]),
                known(&[13, 12, 11, 10])
            ]
        );
        assert_eq!(piece.head(1).stamp.record, 3);
    }

    /// H39: what the sequencer did not know is never turned into "the stream starts here".
    #[test]
    fn an_unknown_past_stays_unknown_until_the_run_itself_covers_it() {
        let piece = Piece {
            lengths: vec![1, 1, 1],
            ..piece(Before::Unknown)
        };
        let before: Vec<Before> = piece
            .heads()
            .map(|head| head.streams[0].before.clone())
            .collect();

        assert_eq!(before[..2], [Before::Unknown, Before::Unknown]);
        assert_eq!(piece.check(10), Ok(()));
    }

    #[test]
    fn a_piece_over_a_bound_names_the_bound() {
        let ok = piece(Before::Unknown);
        assert!(matches!(ok.check(2), Err(Refusal::TooLarge { .. })));
        let empty = Piece {
            lengths: vec![],
            ..ok.clone()
        };
        assert!(matches!(empty.check(10), Err(Refusal::TooLarge { .. })));
        let outside = Piece {
            run: Position(13),
            ..ok.clone()
        };
        assert!(matches!(outside.check(10), Err(Refusal::Malformed { .. })));
        let rising = Piece {
            streams: vec![StreamLink {
                stream: StreamId([9; 16]),
                before: Before::Known(vec![Position(3), Position(8)]),
            }],
            ..ok
        };
        assert!(matches!(rising.check(10), Err(Refusal::Malformed { .. })));
    }

    #[test]
    fn a_stamp_reads_back_what_it_prints() {
        let stamp = piece(Before::Unknown).stamp;
        assert_eq!(stamp.to_string().parse::<Stamp>(), Ok(stamp));
    }
}
