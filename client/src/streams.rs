//! Streams: the entries that name a stream, proved complete by their backpointers, else by scanning.
//!
//! - C8 What is brought of a stream is complete up to where it goes: entries are left out only where backpointers prove
//!   that there are none, or where every position was looked at.
//! - C9 Trimmed positions are told only if something of the stream may have been trimmed (H26).
//!
//! Source: Tango (SOSP '13), "Streaming CORFU": a reader strides back over the last K positions of the stream.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use milonga_wire::limits::BACKPOINTERS;
use milonga_wire::{Before, Position, Span, StreamId, StreamLink};

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
        let mut reader = StreamReader::new(self, stream, span, last.cloned());
        let mut entries = vec![];
        while let Some(some) = reader.next().await? {
            entries.extend(some);
        }
        Ok(entries)
    }

    /// Strides back from `last` to `start` (C8). Nothing if the way is hidden by junk, trimmed or lost entries or an unknown
    /// past, is short enough to be scanned at once, or too long.
    async fn walk(
        &self,
        stream: StreamId,
        start: Position,
        last: &[Position],
    ) -> Result<Option<Vec<Entry>>, ReadError> {
        let newest = last.first().copied().unwrap_or(Position::FIRST);
        if newest.since(start) <= SCAN_POSITIONS {
            return Ok(None);
        }
        let mut found: BTreeMap<Position, Entry> = BTreeMap::new();
        let mut expected = last.to_vec();
        for _ in 0..STRIDES_MAX {
            let wanted = expected
                .iter()
                .filter(|position| **position >= start && !found.contains_key(position));
            for entry in join_all(wanted.map(|position| self.read(*position))).await {
                let entry = entry?;
                match entry.kind {
                    Kind::Data { .. } | Kind::Junk { .. } => found.insert(entry.position, entry),
                    Kind::Trimmed | Kind::Unknown | Kind::Unwritten => return Ok(None),
                };
            }
            let reached = expected.iter().any(|position| *position < start);
            if reached || expected.len() < BACKPOINTERS {
                return Ok(whole(stream, start, found));
            }
            // What came before the oldest record of these; if all of them are junk, the way is hidden.
            let oldest = expected
                .iter()
                .rev()
                .find_map(|position| link(found.get(position)?, stream));
            let Some(Before::Known(before)) = oldest.map(|link| &link.before) else {
                return Ok(None);
            };
            expected.clone_from(before);
        }
        Ok(None)
    }
}

/// The records of `stream` in `found`, if each of them has its predecessors there: positions may have been issued again, to
/// other records, since the sequencer was asked.
fn whole(
    stream: StreamId,
    start: Position,
    found: BTreeMap<Position, Entry>,
) -> Option<Vec<Entry>> {
    let links = found.values().filter_map(|entry| link(entry, stream));
    for link in links {
        let Before::Known(before) = &link.before else {
            return None;
        };
        let mut expected = before.iter().filter(|position| **position >= start);
        if !expected.all(|position| found.contains_key(position)) {
            return None;
        }
    }
    let own = found
        .into_values()
        .filter(|entry| link(entry, stream).is_some());
    Some(own.collect())
}

/// What an entry says of `stream`, if it belongs to it.
fn link(entry: &Entry, stream: StreamId) -> Option<&StreamLink> {
    match &entry.kind {
        Kind::Data { streams, .. } => streams.iter().find(|link| link.stream == stream),
        Kind::Junk { .. } | Kind::Trimmed | Kind::Unwritten | Kind::Unknown => None,
    }
}

/// Brings a part of one stream, batch by batch. Dropping a call to it loses nothing.
pub(crate) struct StreamReader {
    log: Log,
    stream: StreamId,
    rest: Span,
    /// What the sequencer said of the stream at the end.
    last: Option<Before>,
    has_walked: bool,
    /// Trimmed positions of which it is not known yet whether the stream had any.
    trimmed: Option<Span>,
}

impl StreamReader {
    pub(crate) fn new(log: &Log, stream: StreamId, span: Span, last: Option<Before>) -> Self {
        Self {
            log: log.clone(),
            stream,
            rest: span,
            last,
            has_walked: false,
            trimmed: None,
        }
    }

    /// The next entries, at least one; none if there are no more.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Entry>>, ReadError> {
        if !self.has_walked {
            let walked = self.walk().await?;
            self.has_walked = true;
            if let Some(entries) = walked {
                self.rest.start = self.rest.end;
                return Ok((!entries.is_empty()).then_some(entries));
            }
        }
        while !self.rest.is_empty() {
            let some = self.log.read_some(self.rest).await?;
            // If there is nothing, a later term has begun: what is left was never written.
            let end = some.last().map(|entry| entry.position.next());
            self.rest.start = end.unwrap_or(self.rest.end);
            let picked = self.pick(some);
            if !picked.is_empty() {
                return Ok(Some(picked));
            }
        }
        let last = self.last.take().unwrap_or(Before::Unknown);
        Ok(self.gap(&last).map(|gap| vec![gap]))
    }

    async fn walk(&mut self) -> Result<Option<Vec<Entry>>, ReadError> {
        let Some(Before::Known(last)) = &self.last else {
            return Ok(None);
        };
        let newest = last.first().filter(|newest| **newest >= self.rest.start);
        let Some(newest) = newest else {
            return Ok(Some(vec![]));
        };
        self.rest.end = self.rest.end.min(newest.next());
        self.log.walk(self.stream, self.rest.start, last).await
    }

    /// What of `entries` a reader of the stream must see.
    fn pick(&mut self, entries: Vec<Entry>) -> Vec<Entry> {
        let mut picked = vec![];
        for entry in entries {
            match &entry.kind {
                Kind::Trimmed => {
                    let span = self.trimmed.get_or_insert(Span::one(entry.position));
                    span.end = entry.position.next();
                }
                Kind::Unknown | Kind::Unwritten => {
                    picked.extend(self.gap(&Before::Unknown));
                    picked.push(entry);
                }
                Kind::Junk { .. } => {}
                Kind::Data { .. } => {
                    if let Some(link) = link(&entry, self.stream) {
                        picked.extend(self.gap(&link.before));
                        picked.push(entry);
                    }
                }
            }
        }
        picked
    }

    /// The trimmed positions met so far, unless the stream's next record, or its end, says that none of them was its
    /// own (C9). A burnt position of the stream among them cannot be told from a record: it counts as one.
    fn gap(&mut self, before: &Before) -> Option<Entry> {
        let trimmed = self.trimmed.take()?;
        let proved = match before {
            Before::Known(before) => {
                let reaches = before.iter().any(|position| *position < trimmed.start);
                (reaches || before.len() < BACKPOINTERS)
                    && !before.iter().any(|position| trimmed.contains(*position))
            }
            Before::Unknown => false,
        };
        (!proved).then_some(Entry {
            position: trimmed.start,
            kind: Kind::Trimmed,
        })
    }
}

#[cfg(test)]
mod tests;
