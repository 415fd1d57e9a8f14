//! Streams: the entries that name a stream, found through the units' indexes and proved complete by their backpointers, else by
//! looking at every position.
//!
//! - C8 What is brought of a stream is complete up to where it goes: entries are left out only where backpointers prove
//!   that there are none, or where every position was looked at.
//! - C9 Trimmed positions are told only if something of the stream may have been trimmed (H26).
//!
//! Source: Tango (SOSP '13), "Streaming CORFU": a reader strides back over the last K positions of the stream.

mod bulk;
mod pick;
mod together;

use milonga_wire::limits::BACKPOINTERS;
use milonga_wire::{Before, Position, Span, StreamId, StreamLink};

use self::bulk::{Top, batch, top_of};
use self::pick::Picker;
pub(crate) use self::together::{Found, Together, Wanted};
use crate::entry::{Entry, Kind};
use crate::log::Log;
use crate::read::ReadError;

/// Spans up to this long are scanned at once: one read brings them.
const SCAN_POSITIONS: u64 = 4_096;

impl Log {
    /// The records of `stream` within `span`, batch by batch: what [`Log::read_stream`] brings, for streams of any length. Nothing
    /// is asked yet.
    pub fn stream_reader(
        &self,
        stream: StreamId,
        span: Span,
        last: Option<&Before>,
    ) -> StreamReader {
        StreamReader::new(self, stream, span, last.cloned())
    }

    /// The records of `stream` within `span`, in order. `last` is what the sequencer says of the stream at `span.end`
    /// ([`Log::end_of`]), if that is known.
    ///
    /// Where records of the stream may be missing, an entry says so: trimmed (one for each range, at its start), lost,
    /// or unwritten if this client does not settle holes. Junk and records of other streams are left out.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_stream(
        &self,
        stream: StreamId,
        span: Span,
        last: Option<&Before>,
    ) -> Result<Vec<Entry>, ReadError> {
        let mut reader = self.stream_reader(stream, span, last);
        let mut entries = vec![];
        while let Some(some) = reader.next().await? {
            entries.extend(some);
        }
        Ok(entries)
    }
}

/// Whether the positions named are all that the stream has from `start` on.
fn reaches(named: &[Position], start: Position) -> bool {
    named.len() < BACKPOINTERS || named.iter().any(|position| *position < start)
}

/// What an entry says of `stream`, if it belongs to it.
fn link(entry: &Entry, stream: StreamId) -> Option<&StreamLink> {
    match &entry.kind {
        Kind::Data { streams, .. } => streams.iter().find(|link| link.stream == stream),
        Kind::Junk { .. } | Kind::Trimmed | Kind::Unwritten | Kind::Unknown => None,
    }
}

/// Brings a part of one stream, batch by batch. Dropping a call to it loses nothing.
///
/// Long parts are found through the indexes of the log units, of all chains at once, and proved complete by backpointers:
/// entries of other streams in between are not read. Memory is that of one batch, whatever the stream's length.
pub struct StreamReader {
    log: Log,
    stream: StreamId,
    rest: Span,
    /// What the sequencer said of the stream at the end.
    last: Option<Before>,
    way: Way,
    /// Spans up to this long are scanned.
    short: u64,
    picker: Picker,
}

/// How it goes about it.
enum Way {
    /// Not chosen yet.
    Open,
    Scan,
    Bulk(Top),
}

impl StreamReader {
    pub(crate) fn new(log: &Log, stream: StreamId, span: Span, last: Option<Before>) -> Self {
        Self {
            log: log.clone(),
            stream,
            rest: span,
            last,
            way: Way::Open,
            short: SCAN_POSITIONS,
            picker: Picker::new([(stream, span.start)]),
        }
    }

    /// The next entries, at least one; none if there are no more.
    ///
    /// # Errors
    /// [`ReadError`]. Call again to go on from there.
    pub async fn next(&mut self) -> Result<Option<Vec<Entry>>, ReadError> {
        if matches!(self.way, Way::Open) {
            self.way = self.choose().await?;
        }
        match &self.way {
            Way::Open | Way::Scan => self.next_scanned().await,
            Way::Bulk(top) => {
                while !self.rest.is_empty() {
                    let (entries, end) =
                        batch(&self.log, self.stream, self.rest.start, top).await?;
                    let limit = self.rest.end;
                    self.rest.start = end;
                    let mut own = entries;
                    own.retain(|entry| entry.position < limit);
                    if !own.is_empty() {
                        return Ok(Some(own));
                    }
                }
                Ok(None)
            }
        }
    }

    /// A scan for what is short, unless all that is new is named already; the indexes for what is long.
    async fn choose(&mut self) -> Result<Way, ReadError> {
        let top = self.rest.end;
        if let Some(Before::Known(named)) = &self.last {
            let newest = named
                .first()
                .map_or(Position::FIRST, |newest| newest.next());
            self.rest.end = newest.clamp(self.rest.start, self.rest.end);
        }
        let is_named = |before: &Before| matches!(before, Before::Known(named) if reaches(named, self.rest.start));
        if self.rest.len() <= self.short && !self.last.as_ref().is_some_and(is_named) {
            return Ok(Way::Scan);
        }
        Ok(Way::Bulk(match &self.last {
            Some(before) => Top {
                position: top,
                before: before.clone(),
            },
            None => top_of(&self.log, self.stream, top).await?,
        }))
    }

    /// Looks at every position.
    async fn next_scanned(&mut self) -> Result<Option<Vec<Entry>>, ReadError> {
        while !self.rest.is_empty() {
            let some = self.log.read_some(self.rest).await?;
            // If there is nothing, a later term has begun: what is left was never written.
            let end = some.last().map(|entry| entry.position.next());
            self.rest.start = end.unwrap_or(self.rest.end);
            let picked = self.picker.pick(some);
            if !picked.is_empty() {
                return Ok(Some(picked.into_iter().map(|found| found.entry).collect()));
            }
        }
        let last = self.last.take().unwrap_or(Before::Unknown);
        let gaps = self.picker.end(&[(self.stream, last)]);
        let gaps: Vec<Entry> = gaps.into_iter().map(|found| found.entry).collect();
        Ok((!gaps.is_empty()).then_some(gaps))
    }
}

#[cfg(test)]
mod tests;
