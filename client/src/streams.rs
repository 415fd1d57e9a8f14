//! Streams: the positions of the entries that name a stream, proved complete by their backpointers, else by scanning.
//!
//! Source: Tango (SOSP '13), "Streaming CORFU": a reader strides back over the last K positions of the stream.

use std::collections::BTreeSet;

use milonga_wire::{Before, Position, Span, StreamId};

use crate::entry::{Entry, Kind};
use crate::log::Log;
use crate::read::ReadError;

/// Spans up to this long are scanned at once: one read brings them.
const SCAN_POSITIONS: u64 = 4_096;
/// Strides before a walk gives way to a scan.
const STRIDES_MAX: usize = 64;

impl Log {
    /// The records of `stream` within `span`, in order. `last` is what the sequencer says of the stream at `span.end`
    /// ([`Log::end_of`]), if that is known.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_stream(
        &self,
        stream: StreamId,
        span: Span,
        last: Option<&Before>,
    ) -> Result<Vec<Entry>, ReadError> {
        if let Some(Before::Known(last)) = last
            && let Some(entries) = self.walk(stream, span, last).await?
        {
            return Ok(entries);
        }
        let mut entries = vec![];
        let mut rest = span;
        while !rest.is_empty() {
            let some = self.read_some(rest).await?;
            let Some(end) = some.last().map(|entry| entry.position.next()) else {
                break;
            };
            entries.extend(
                some.into_iter()
                    .filter(|entry| names(entry, stream) || is_gap(entry)),
            );
            rest.start = end;
        }
        Ok(entries)
    }

    /// Strides back from `last`. Nothing if the way is hidden by junk, foreign entries or an unknown past, or is long.
    async fn walk(
        &self,
        stream: StreamId,
        span: Span,
        last: &[Position],
    ) -> Result<Option<Vec<Entry>>, ReadError> {
        let newest = last.first().copied().filter(|newest| *newest >= span.start);
        let Some(newest) = newest else {
            return Ok(Some(vec![]));
        };
        if newest.since(span.start) <= SCAN_POSITIONS {
            return Ok(None);
        }
        let mut wanted: BTreeSet<Position> = BTreeSet::new();
        let mut before: Vec<Position> = last.to_vec();
        for _ in 0..STRIDES_MAX {
            wanted.extend(before.iter().filter(|position| **position >= span.start));
            let Some(oldest) = before.last().copied() else {
                return self.all(stream, wanted).await.map(Some);
            };
            if before.len() < milonga_wire::limits::BACKPOINTERS || oldest < span.start {
                return self.all(stream, wanted).await.map(Some);
            }
            let entry = self.read(oldest).await?;
            let Kind::Data { streams, .. } = entry.kind else {
                return Ok(None);
            };
            let link = streams.into_iter().find(|link| link.stream == stream);
            let Some(Before::Known(positions)) = link.map(|link| link.before) else {
                return Ok(None);
            };
            before = positions;
        }
        Ok(None)
    }

    async fn all(
        &self,
        stream: StreamId,
        wanted: BTreeSet<Position>,
    ) -> Result<Vec<Entry>, ReadError> {
        let mut entries = vec![];
        for position in wanted {
            let entry = self.read(position).await?;
            if names(&entry, stream) || is_gap(&entry) {
                entries.push(entry);
            }
        }
        Ok(entries)
    }
}

fn names(entry: &Entry, stream: StreamId) -> bool {
    match &entry.kind {
        Kind::Data { streams, .. } => streams.iter().any(|link| link.stream == stream),
        Kind::Junk { .. } | Kind::Trimmed | Kind::Unwritten | Kind::Unknown => false,
    }
}

/// Whether the entry hides what was there: a reader of any stream must be told.
fn is_gap(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::Trimmed | Kind::Unknown)
}
