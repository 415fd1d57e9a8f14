//! Several streams at once, as one sequence in the order of the log.
//!
//! Short parts of the log are scanned once for all of them; of long ones each stream is brought by itself, and what is
//! brought is merged.

use std::collections::VecDeque;

use futures_util::future::join_all;
use milonga_wire::{Before, Position, Span, StreamId};

use super::pick::Picker;
use super::{SCAN_POSITIONS, StreamReader};
use crate::entry::{Entry, Kind};
use crate::log::Log;
use crate::read::ReadError;

/// A stream, where its reader goes on, and what the sequencer says of its end.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) stream: StreamId,
    pub(crate) from: Position,
    pub(crate) last: Option<Before>,
}

impl Wanted {
    /// Whether there may be something at or above `from`.
    fn has_news(&self) -> bool {
        match &self.last {
            Some(Before::Known(named)) => named.first().is_some_and(|last| *last >= self.from),
            Some(Before::Unknown) | None => true,
        }
    }
}

/// What the reader of some streams must see.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Found {
    /// The stream that a trimmed entry speaks of; none: any.
    pub(crate) of: Option<StreamId>,
    /// A record of at least one of the streams, something lost, or trimmed.
    pub(crate) entry: Entry,
}

/// Brings some streams up to one end. Dropping a call to it loses nothing.
pub(crate) struct Together {
    log: Log,
    way: Way,
}

enum Way {
    /// Every position, once.
    Scan {
        rest: Span,
        picker: Picker,
        last: Vec<(StreamId, Before)>,
    },
    /// Each stream by itself.
    Lanes(Vec<Lane>),
}

struct Lane {
    stream: StreamId,
    reader: StreamReader,
    ready: VecDeque<Entry>,
    is_done: bool,
}

impl Together {
    /// Everything of the streams that are wanted below `end`. Nothing is asked yet.
    pub(crate) fn new(log: &Log, wanted: Vec<Wanted>, end: Position) -> Self {
        let mut news = wanted;
        news.retain(Wanted::has_news);
        let from = news.iter().map(|wanted| wanted.from).min();
        let span = Span::new(from.unwrap_or(end), end);
        let way =
            if news.len() > 1 && span.len() <= SCAN_POSITIONS.saturating_mul(news.len() as u64) {
                let streams = news.iter().map(|wanted| (wanted.stream, wanted.from));
                Way::Scan {
                    rest: span,
                    picker: Picker::new(streams),
                    last: news
                        .into_iter()
                        .map(|wanted| (wanted.stream, wanted.last.unwrap_or(Before::Unknown)))
                        .collect(),
                }
            } else {
                let lane = |wanted: Wanted| Lane {
                    stream: wanted.stream,
                    reader: StreamReader::new(
                        log,
                        wanted.stream,
                        Span::new(wanted.from, end),
                        wanted.last,
                    ),
                    ready: VecDeque::new(),
                    is_done: false,
                };
                Way::Lanes(news.into_iter().map(lane).collect())
            };
        Self {
            log: log.clone(),
            way,
        }
    }

    /// What comes next, at least one; none if there is no more.
    ///
    /// # Errors
    /// [`ReadError`]. Call again to go on from there.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Found>>, ReadError> {
        match &mut self.way {
            Way::Scan { rest, picker, last } => {
                while !rest.is_empty() {
                    let some = self.log.read_some(*rest).await?;
                    // If there is nothing, a later term has begun: what is left was never written.
                    let end = some.last().map(|entry| entry.position.next());
                    rest.start = end.unwrap_or(rest.end);
                    let picked = picker.pick(some);
                    if !picked.is_empty() {
                        return Ok(Some(picked));
                    }
                }
                let gaps = picker.end(&std::mem::take(last));
                Ok((!gaps.is_empty()).then_some(gaps))
            }
            Way::Lanes(lanes) => {
                let filled = join_all(lanes.iter_mut().map(Lane::fill)).await;
                filled.into_iter().collect::<Result<(), _>>()?;
                let merged = merge(lanes);
                Ok((!merged.is_empty()).then_some(merged))
            }
        }
    }
}

impl Lane {
    async fn fill(&mut self) -> Result<(), ReadError> {
        if self.ready.is_empty() && !self.is_done {
            match self.reader.next().await? {
                Some(entries) => self.ready = entries.into(),
                None => self.is_done = true,
            }
        }
        Ok(())
    }

    fn next_at(&self) -> Option<Position> {
        self.ready.front().map(|entry| entry.position)
    }
}

/// What all lanes have up to where the first of them has to be filled again, in order and each record once.
fn merge(lanes: &mut [Lane]) -> Vec<Found> {
    if let [lane] = lanes {
        let stream = lane.stream;
        let entries = lane.ready.drain(..);
        return entries.map(|entry| found(stream, entry)).collect();
    }
    let mut merged = vec![];
    loop {
        if lanes
            .iter()
            .any(|lane| lane.ready.is_empty() && !lane.is_done)
        {
            return merged;
        }
        let Some(next) = lanes.iter().filter_map(Lane::next_at).min() else {
            return merged;
        };
        let mut is_told = false;
        for lane in lanes.iter_mut().filter(|lane| lane.next_at() == Some(next)) {
            let Some(entry) = lane.ready.pop_front() else {
                continue;
            };
            let is_data = matches!(entry.kind, Kind::Data { .. });
            if !(is_data && is_told) {
                merged.push(found(lane.stream, entry));
            }
            is_told |= is_data;
        }
    }
}

fn found(stream: StreamId, entry: Entry) -> Found {
    let of = matches!(entry.kind, Kind::Trimmed).then_some(stream);
    Found { of, entry }
}

#[cfg(test)]
mod tests {
    use milonga_wire::Role;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::Cluster;

    fn stream(number: u8) -> StreamId {
        StreamId([number; 16])
    }

    async fn all(mut together: Together) -> Vec<u64> {
        let mut positions = vec![];
        while let Some(some) = together.next().await.unwrap() {
            positions.extend(some.into_iter().map(|found| found.entry.position.0));
        }
        positions
    }

    /// Each record once, in order, whether the log is scanned or streams are brought one by one.
    #[tokio::test(start_paused = true)]
    async fn several_streams_come_as_one_sequence_and_nothing_twice() {
        for gap in [0, 9_000] {
            let cluster = Cluster::new(2, 2, 4);
            let log = cluster.client(Role::Writer);
            let mut expected = vec![];
            for number in 0..24_u8 {
                let streams: Vec<_> = (1..4).filter(|s| number % 4 >= s - 1).map(stream).collect();
                let position = log.append("a", &streams).await.unwrap();
                if streams.contains(&stream(2)) || streams.contains(&stream(3)) {
                    expected.push(position.0);
                }
            }
            cluster.burn(&log, gap, &[]).await;
            let end = log.end_of(&[stream(2), stream(3)]).await.unwrap();
            let wanted = end.streams.iter().map(|link| Wanted {
                stream: link.stream,
                from: Position::FIRST,
                last: Some(link.before.clone()),
            });
            let together = Together::new(&log, wanted.collect(), end.counter);
            assert_eq!(matches!(together.way, Way::Scan { .. }), gap == 0);
            assert_eq!(all(together).await, expected);
        }
    }

    /// C9: of two streams, the one that lost nothing to the trim is not told so.
    #[tokio::test(start_paused = true)]
    async fn a_trim_is_told_to_the_stream_that_it_touched() {
        let cluster = Cluster::new(2, 2, 4);
        let log = cluster.client(Role::Control);
        log.append("a", &[stream(1)]).await.unwrap();
        log.append("a", &[stream(2)]).await.unwrap();
        for _ in 0..4 {
            log.append("a", &[stream(1)]).await.unwrap();
        }
        log.trim(Position(1)).await.unwrap();
        let end = log.end_of(&[stream(1), stream(2)]).await.unwrap();
        let wanted = end.streams.iter().map(|link| Wanted {
            stream: link.stream,
            from: Position::FIRST,
            last: Some(link.before.clone()),
        });
        let mut together = Together::new(&log, wanted.collect(), end.counter);
        let mut told = vec![];
        while let Some(some) = together.next().await.unwrap() {
            told.extend(
                some.into_iter()
                    .map(|found| (found.of, found.entry.position.0)),
            );
        }
        let own = (2..6).map(|position| (None, position));
        let mut expected = vec![(None, 1), (Some(stream(1)), 0)];
        expected.extend(own);
        assert_eq!(told, expected);
    }

    proptest! {
        /// Whatever the lanes hold: merged in order, no record twice, none left out.
        #[test]
        fn merging_keeps_order_and_loses_nothing(lanes in prop::collection::vec(prop::collection::btree_set(0_u64..30, 0..12), 1..4)) {
            let cluster = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
            let log = cluster.block_on(async { Cluster::new(1, 1, 4).client(Role::Writer) });
            let entry = |position: &u64| Entry {
                position: Position(*position),
                kind: Kind::Data { term: milonga_wire::Term::GENESIS, stamp: milonga_wire::Stamp { session: milonga_wire::Session([0; 16]), request: 0, record: 0 }, streams: vec![], payload: bytes::Bytes::new() },
            };
            let mut made: Vec<Lane> = (0_u8..).zip(&lanes).map(|(number, positions)| Lane {
                stream: stream(number),
                reader: StreamReader::new(&log, stream(number), Span::new(Position(0), Position(0)), None),
                ready: positions.iter().map(entry).collect(),
                is_done: true,
            }).collect();
            let all: std::collections::BTreeSet<u64> = lanes.into_iter().flatten().collect();
            let merged: Vec<u64> = merge(&mut made).iter().map(|found| found.entry.position.0).collect();
            prop_assert_eq!(merged, all.into_iter().collect::<Vec<_>>());
        }
    }
}
