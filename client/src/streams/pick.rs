//! Which of the log's entries the readers of some streams must see. Pure.

use std::collections::BTreeMap;

use milonga_wire::limits::BACKPOINTERS;
use milonga_wire::{Before, Position, Span, StreamId};

use super::together::Found;
use crate::entry::{Entry, Kind};

/// Goes along the log with an eye on some streams.
pub(super) struct Picker {
    /// Of each stream: up to where it is known that nothing was missed.
    streams: BTreeMap<StreamId, Position>,
    /// Positions that were met and are trimmed: all of them lie within.
    trimmed: Option<Span>,
}

impl Picker {
    /// For these streams, each from its position on.
    pub(super) fn new(streams: impl IntoIterator<Item = (StreamId, Position)>) -> Self {
        Self {
            streams: streams.into_iter().collect(),
            trimmed: None,
        }
    }

    /// What of `entries`, the next ones of the log, the readers must see: the streams' records, what is lost, and where
    /// something of a stream may have been trimmed.
    pub(super) fn pick(&mut self, entries: Vec<Entry>) -> Vec<Found> {
        let mut picked = vec![];
        for entry in entries {
            match &entry.kind {
                Kind::Trimmed => {
                    let end = entry.position.next();
                    let span = self.trimmed.get_or_insert(Span::one(entry.position));
                    span.end = end;
                }
                Kind::Unknown | Kind::Unwritten => {
                    let all: Vec<_> = self.streams.keys().copied().collect();
                    for stream in all {
                        picked.extend(self.gap(stream, &Before::Unknown, entry.position));
                    }
                    picked.push(Found { of: None, entry });
                }
                Kind::Junk { .. } => {}
                Kind::Data { streams, .. } => {
                    let mut own = false;
                    for link in streams {
                        let Some(from) = self.streams.get(&link.stream) else {
                            continue;
                        };
                        if *from <= entry.position {
                            own = true;
                            picked.extend(self.gap(link.stream, &link.before, entry.position));
                        }
                    }
                    if own {
                        picked.push(Found { of: None, entry });
                    }
                }
            }
        }
        picked
    }

    /// What the end of each stream, as `last` says it, proves to be missing.
    pub(super) fn end(&mut self, last: &[(StreamId, Before)]) -> Vec<Found> {
        let end = self.trimmed.map_or(Position::FIRST, |trimmed| trimmed.end);
        let gaps = last.iter();
        gaps.filter_map(|(stream, before)| self.gap(*stream, before, end))
            .collect()
    }

    /// The trimmed positions met since the last record of `stream`, unless its next record at `at`, or its end, says that none
    /// of them was its own (C9). A burnt position of the stream among them cannot be told from a record: it counts as one.
    fn gap(&mut self, stream: StreamId, before: &Before, at: Position) -> Option<Found> {
        let trimmed = self.trimmed?;
        let known = self.streams.get_mut(&stream)?;
        let doubted = Span::new((*known).max(trimmed.start), trimmed.end);
        *known = (*known).max(at);
        if doubted.is_empty() {
            return None;
        }
        let proved = match before {
            Before::Known(before) => {
                let reaches = before.iter().any(|position| *position < doubted.start);
                (reaches || before.len() < BACKPOINTERS)
                    && !before.iter().any(|position| doubted.contains(*position))
            }
            Before::Unknown => false,
        };
        (!proved).then_some(Found {
            of: Some(stream),
            entry: Entry {
                position: doubted.start,
                kind: Kind::Trimmed,
            },
        })
    }
}
