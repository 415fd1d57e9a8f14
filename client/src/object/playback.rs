//! Moves along one stream: reads what is new, hands it on in order, and stops where something is missing.

use milonga_wire::{Before, Position, Span, Stamp, StreamId, Term};
use serde::de::DeserializeOwned;

use super::codec::{OperationError, decode};
use crate::entry::{Entry, Kind};
use crate::log::{End, Log};
use crate::options::Options;
use crate::read::ReadError;
use crate::streams::StreamReader;
use crate::trouble::Unavailable;

/// Why a view could not be moved on. It stays at the position it has reached; what it holds there is right.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PlayError {
    /// The log could not be read in time. Try again.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Updates from this position on were trimmed before they were played here. The log alone cannot bring them back.
    #[error("updates from position {0} on were trimmed; the object cannot be replayed from there")]
    Trimmed(Position),
    /// Every log unit that answered has lost what this position held. Nothing behind it is applied before a unit that
    /// still holds it comes back, or an administrator declares it lost.
    #[error("what position {0} held is lost on the log units that answered; bring back the others")]
    Lost(Position),
    /// The record at this position is no operation that this program knows. Every replica of this version stops there.
    #[error("position {position}: {why}")]
    Operation {
        /// Where.
        position: Position,
        /// Why.
        why: OperationError,
    },
}

impl From<ReadError> for PlayError {
    fn from(ReadError::Unavailable(error): ReadError) -> Self {
        Self::Unavailable(error)
    }
}

/// A place in an object's stream: everything before it was handed on, once and in order (O3).
pub(crate) struct Playback {
    log: Log,
    stream: StreamId,
    /// Everything of the stream below it that was issued up to `term` was handed on.
    played: Position,
    term: Term,
    /// The position of the last update handed on.
    applied: Option<Position>,
    /// What is being read, and up to where.
    reading: Option<(StreamReader, Position, Term)>,
}

impl Playback {
    /// The place behind the update at `applied`; if there is none, before the first entry of `stream`.
    pub(crate) fn behind(log: &Log, stream: StreamId, applied: Option<Position>) -> Self {
        // A hole must be settled before anybody may pass it, whatever else this client's reads do.
        let options = Options {
            settle: true,
            ..log.options().clone()
        };
        Self {
            log: log.with_options(options),
            stream,
            played: Position::FIRST,
            term: Term::GENESIS,
            applied,
            reading: None,
        }
    }

    /// The position of the last update handed on.
    pub(crate) fn applied(&self) -> Option<Position> {
        self.applied
    }

    /// Plays up to `end`, which was confirmed, and hands every update on to `apply`.
    pub(crate) async fn play<U: DeserializeOwned>(
        &mut self,
        end: &End,
        mut apply: impl FnMut(Position, Stamp, U),
    ) -> Result<(), PlayError> {
        self.begin(end);
        while !self.play_some(&mut apply).await? {}
        Ok(())
    }

    /// Gets ready to play up to `end`: up to the counter, since what lies above it was never issued in its term (O5).
    pub(crate) fn begin(&mut self, end: &End) {
        let link = end.streams.iter().find(|link| link.stream == self.stream);
        let last = link.map(|link| link.before.clone());
        self.begin_to(end.counter, end.term, last);
    }

    /// Gets ready to play up to `end`, of which `last` says where the stream ends.
    pub(crate) fn begin_to(&mut self, end: Position, term: Term, last: Option<Before>) {
        let span = Span::new(self.next(term), end);
        let reader = StreamReader::new(&self.log, self.stream, span, last);
        self.reading = Some((reader, end, term));
    }

    /// Whether something is ready to be played.
    pub(crate) fn has_begun(&self) -> bool {
        self.reading.is_some()
    }

    /// Plays one batch. True once it has come to the end that it was begun for.
    ///
    /// After an error it must be begun again: the updates before the one in trouble have been handed on. A call that is
    /// dropped loses nothing and repeats nothing.
    pub(crate) async fn play_some<U: DeserializeOwned>(
        &mut self,
        apply: &mut impl FnMut(Position, Stamp, U),
    ) -> Result<bool, PlayError> {
        let Some((reader, end, term)) = &mut self.reading else {
            return Ok(true);
        };
        let (end, term) = (*end, *term);
        let result = match reader.next().await {
            Ok(Some(entries)) => self.hand_on(entries, apply).map(|()| false),
            Ok(None) => {
                (self.played, self.term) = (end, term);
                Ok(true)
            }
            Err(error) => Err(error.into()),
        };
        if !matches!(result, Ok(false)) {
            self.reading = None;
        }
        result
    }

    /// Where the next update can be, as far as a sequencer of `term` may have issued (O5).
    ///
    /// What was held when a term ended lies below the next one's open segment, so what was handed on stays. But positions
    /// that were issued in vain are issued again, to entries that nobody has seen.
    fn next(&self, term: Term) -> Position {
        let behind = self.applied.map_or(Position::FIRST, Position::next);
        if term == self.term {
            behind.max(self.played)
        } else {
            behind
        }
    }

    fn hand_on<U: DeserializeOwned>(
        &mut self,
        entries: Vec<Entry>,
        apply: &mut impl FnMut(Position, Stamp, U),
    ) -> Result<(), PlayError> {
        for entry in entries {
            let position = entry.position;
            let (stamp, payload) = match entry.kind {
                Kind::Data { stamp, payload, .. } => (stamp, payload),
                Kind::Trimmed => return Err(PlayError::Trimmed(position)),
                Kind::Unknown | Kind::Unwritten => return Err(PlayError::Lost(position)),
                Kind::Junk { .. } => continue,
            };
            let update = decode(&payload).map_err(|why| PlayError::Operation { position, why })?;
            assert!(
                self.applied.is_none_or(|applied| applied < position),
                "O3: {position} comes behind {:?}",
                self.applied
            );
            self.applied = Some(position);
            apply(position, stamp, update);
        }
        Ok(())
    }
}
