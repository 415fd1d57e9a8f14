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
    /// Positions that were met and are trimmed, in order.
    trimmed: Vec<Span>,
}

impl Picker {
    /// For these streams, each from its position on.
    pub(super) fn new(streams: impl IntoIterator<Item = (StreamId, Position)>) -> Self {
        Self {
            streams: streams.into_iter().collect(),
            trimmed: vec![],
        }
    }

    /// What of `entries`, the next ones of the log, the readers must see: the streams' records, what is lost, and where
    /// something of a stream may have been trimmed.
    pub(super) fn pick(&mut self, entries: Vec<Entry>) -> Vec<Found> {
        let mut picked = vec![];
        for entry in entries {
            match &entry.kind {
                Kind::Trimmed => {
                    let next = Span::one(entry.position);
                    match self.trimmed.last_mut() {
                        Some(last) if last.end == next.start => last.end = next.end,
                        Some(_) | None => self.trimmed.push(next),
                    }
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
        let end = self.trimmed.last().map_or(Position::FIRST, |last| last.end);
        let gaps = last.iter();
        gaps.filter_map(|(stream, before)| self.gap(*stream, before, end))
            .collect()
    }

    /// The trimmed positions met since the last record of `stream`, unless its next record at `at`, or its end, says that none
    /// of them was its own (C9). A burnt position of the stream among them cannot be told from a record: it counts as one.
    fn gap(&mut self, stream: StreamId, before: &Before, at: Position) -> Option<Found> {
        let known = self.streams.get_mut(&stream)?;
        let from = *known;
        *known = from.max(at.next());
        let mut unseen = self.trimmed.iter().filter(|span| span.end > from);
        let doubted = Span::new(unseen.next()?.start.max(from), self.trimmed.last()?.end);
        if self.streams.len() == 1 {
            self.trimmed.clear();
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

#[cfg(test)]
mod tests {
    use milonga_wire::{Session, Stamp, StreamLink, Term};

    use super::*;

    const OWN: StreamId = StreamId([1; 16]);
    const OTHER: StreamId = StreamId([2; 16]);

    fn entry(position: u64, of: Option<(StreamId, Before)>) -> Entry {
        let kind = match of {
            None => Kind::Trimmed,
            Some((stream, before)) => Kind::Data {
                term: Term::GENESIS,
                stamp: Stamp {
                    session: Session([0; 16]),
                    request: 0,
                    record: 0,
                },
                streams: vec![StreamLink { stream, before }],
                payload: bytes::Bytes::new(),
            },
        };
        let position = Position(position);
        Entry { position, kind }
    }

    /// C9: chains are trimmed one after the other, so what is trimmed may lie between what is not. Each gap is told once, where
    /// it begins, and nothing comes out of order.
    #[test]
    fn trimmed_positions_between_records_are_told_in_order() {
        let own = || Some((OWN, Before::Unknown));
        let other = || Some((OTHER, Before::Unknown));
        for streams in [vec![OWN], vec![OWN, StreamId([3; 16])]] {
            let mut picker =
                Picker::new(streams.into_iter().map(|stream| (stream, Position::FIRST)));
            let found = picker.pick(vec![
                entry(0, None),
                entry(1, None),
                entry(2, own()),
                entry(3, other()),
                entry(4, None),
                entry(5, own()),
                entry(6, own()),
            ]);
            let told: Vec<_> = found
                .iter()
                .map(|found| (found.entry.position.0, found.of))
                .collect();
            let expected = [
                (0, Some(OWN)),
                (2, None),
                (4, Some(OWN)),
                (5, None),
                (6, None),
            ];
            assert_eq!(told, expected);
            assert_eq!(picker.end(&[(OWN, Before::Unknown)]), []);
        }
    }
}
