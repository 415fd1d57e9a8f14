//! The last positions of every stream, in bounded memory.
//!
//! Pure. What is dropped is remembered as dropped, never as empty.
//!
//! - Q1 A stream is answered with fewer than K positions only if there were never more: whatever the table did not see
//!   from the stream's start is [`Before::Unknown`] until K later positions are known.
//! - Q2 The table never holds more than its limit; the stream used least recently leaves first.
//!
//! Source: Balakrishnan et al., *Tango* (SOSP '13), "Streaming CORFU".

use std::collections::BTreeMap;

use milonga_wire::limits::BACKPOINTERS;
use milonga_wire::{Before, Position, StreamId, StreamTail};

/// Index of the node that ties the ring of nodes together: the newest comes after it, the oldest before it.
const RING: u32 = 0;

/// What is known of one stream.
#[derive(Copy, Clone, Debug)]
struct Last {
    /// Newest first; the first `known` of them count.
    positions: [Position; BACKPOINTERS],
    known: u8,
    /// Whether nothing came before the known ones.
    whole: bool,
}

impl Last {
    fn none(whole: bool) -> Self {
        Self {
            positions: [Position::FIRST; BACKPOINTERS],
            known: 0,
            whole,
        }
    }

    fn before(&self) -> Before {
        let known = usize::from(self.known);
        if known == BACKPOINTERS || self.whole {
            Before::Known(self.positions[..known].to_vec())
        } else {
            Before::Unknown
        }
    }

    /// `count` positions from `first` are the newest now.
    fn advance(&mut self, first: Position, count: u32) {
        let fresh = (count as usize).min(BACKPOINTERS);
        self.positions.rotate_right(fresh);
        let newest = first.0 + u64::from(count) - 1;
        for (back, slot) in self.positions[..fresh].iter_mut().enumerate() {
            *slot = Position(newest - back as u64);
        }
        self.known = (usize::from(self.known) + fresh).min(BACKPOINTERS) as u8;
    }
}

#[derive(Clone, Debug)]
struct Node {
    stream: StreamId,
    last: Last,
    newer: u32,
    older: u32,
}

/// The table.
#[derive(Clone, Debug)]
pub(crate) struct Streams {
    /// The ring's own node, then one per stream.
    nodes: Vec<Node>,
    index: BTreeMap<StreamId, u32>,
    count_max: u32,
    /// Whether a stream that is not in the table has no entries at all.
    complete: bool,
}

impl Streams {
    /// An empty table of at most `count_max` streams (at least 1), which is all there is if `complete`.
    pub(crate) fn new(count_max: u32, complete: bool) -> Self {
        let ring = Node {
            stream: StreamId([0; 16]),
            last: Last::none(false),
            newer: RING,
            older: RING,
        };
        Self {
            nodes: vec![ring],
            index: BTreeMap::new(),
            count_max: count_max.max(1),
            complete,
        }
    }

    /// How many streams it holds.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// From now on, a stream that is not in the table may have entries all the same.
    pub(crate) fn forget_completeness(&mut self) {
        self.complete = false;
    }

    /// What came before the next position in `stream`.
    pub(crate) fn before(&self, stream: StreamId) -> Before {
        match self.index.get(&stream) {
            Some(index) => self.nodes[*index as usize].last.before(),
            None => Last::none(self.complete).before(),
        }
    }

    /// What came before `first` in `stream`; then the `count` positions from `first` belong to it.
    pub(crate) fn take(&mut self, stream: StreamId, first: Position, count: u32) -> Before {
        let index = match self.index.get(&stream) {
            Some(index) => {
                let index = *index;
                self.unlink(index);
                self.link_newest(index);
                index
            }
            None => self.insert(stream, Last::none(self.complete)),
        };
        let last = &mut self.nodes[index as usize].last;
        let before = last.before();
        last.advance(first, count);
        before
    }

    /// Takes a stream over from before; false, changing nothing, if it is in the table already.
    pub(crate) fn restore(&mut self, tail: &StreamTail) -> bool {
        if self.index.contains_key(&tail.stream) {
            return false;
        }
        let last = match &tail.last {
            Before::Unknown => Last::none(false),
            Before::Known(positions) => {
                let mut last = Last::none(true);
                for (slot, position) in last.positions.iter_mut().zip(positions) {
                    *slot = *position;
                    last.known += 1;
                }
                last
            }
        };
        self.insert(tail.stream, last);
        true
    }

    fn insert(&mut self, stream: StreamId, last: Last) -> u32 {
        let node = Node {
            stream,
            last,
            newer: RING,
            older: RING,
        };
        let index = if self.index.len() as u64 >= u64::from(self.count_max) {
            let dropped = self.drop_oldest();
            self.nodes[dropped as usize] = node;
            dropped
        } else {
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        };
        self.index.insert(stream, index);
        self.link_newest(index);
        debug_assert!(self.index.len() as u64 <= u64::from(self.count_max), "Q2");
        index
    }

    /// Drops the stream used least recently; its node is free then.
    fn drop_oldest(&mut self) -> u32 {
        let oldest = self.nodes[RING as usize].newer;
        debug_assert_ne!(oldest, RING, "a full table has an oldest stream");
        self.unlink(oldest);
        self.index.remove(&self.nodes[oldest as usize].stream);
        self.complete = false; // Q1: what is dropped is not empty.
        oldest
    }

    fn unlink(&mut self, index: u32) {
        let Node { newer, older, .. } = self.nodes[index as usize];
        self.nodes[newer as usize].older = older;
        self.nodes[older as usize].newer = newer;
    }

    /// The ring's `older` is the newest stream, its `newer` the oldest: following `newer` walks from old to new.
    fn link_newest(&mut self, index: u32) {
        let newest = self.nodes[RING as usize].older;
        self.nodes[newest as usize].newer = index;
        self.nodes[RING as usize].older = index;
        let node = &mut self.nodes[index as usize];
        (node.older, node.newer) = (newest, RING);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(number: u8) -> StreamId {
        StreamId([number; 16])
    }

    fn known(positions: &[u64]) -> Before {
        Before::Known(positions.iter().map(|p| Position(*p)).collect())
    }

    /// Q1, for a stream seen from its start.
    #[test]
    fn a_stream_remembers_its_last_positions_newest_first() {
        let mut streams = Streams::new(10, true);

        assert_eq!(streams.take(stream(1), Position(0), 1), known(&[]));
        assert_eq!(streams.take(stream(1), Position(5), 2), known(&[0]));
        assert_eq!(streams.take(stream(1), Position(9), 1), known(&[6, 5, 0]));
        assert_eq!(
            streams.take(stream(1), Position(20), 100),
            known(&[9, 6, 5, 0])
        );
        assert_eq!(streams.before(stream(1)), known(&[119, 118, 117, 116]));
    }

    /// Q1, H39: two positions known after an unknown past do not make a stream of two entries.
    #[test]
    fn an_unknown_past_stays_unknown_until_k_later_positions_are_known() {
        let mut streams = Streams::new(10, false);

        for position in 0..4 {
            assert_eq!(
                streams.take(stream(1), Position(position), 1),
                Before::Unknown
            );
        }
        assert_eq!(streams.before(stream(1)), known(&[3, 2, 1, 0]));
        assert_eq!(streams.take(stream(2), Position(4), 4), Before::Unknown);
        assert_eq!(streams.before(stream(2)), known(&[7, 6, 5, 4]));
    }

    /// Q1, Q2: a stream dropped from the table is unknown, and so is every one that was never in it.
    #[test]
    fn the_stream_used_least_recently_is_dropped_and_unknown_from_then_on() {
        let mut streams = Streams::new(2, true);
        streams.take(stream(1), Position(0), 1);
        streams.take(stream(2), Position(1), 1);
        streams.take(stream(1), Position(2), 1);

        assert_eq!(streams.take(stream(3), Position(3), 1), known(&[]));

        assert_eq!(streams.before(stream(2)), Before::Unknown);
        assert_eq!(streams.before(stream(9)), Before::Unknown);
        assert_eq!(streams.before(stream(1)), known(&[2, 0]));
        assert_eq!(streams.take(stream(2), Position(4), 1), Before::Unknown);
        assert_eq!(streams.before(stream(2)), Before::Unknown);
    }

    #[test]
    fn a_restored_stream_goes_on_from_its_tail() {
        let mut streams = Streams::new(10, true);
        let tail = |number, last| StreamTail {
            stream: stream(number),
            last,
        };

        assert!(streams.restore(&tail(1, known(&[8, 3]))));
        assert!(streams.restore(&tail(2, Before::Unknown)));
        assert!(!streams.restore(&tail(1, known(&[]))));

        assert_eq!(streams.take(stream(1), Position(9), 1), known(&[8, 3]));
        assert_eq!(streams.before(stream(1)), known(&[9, 8, 3]));
        assert_eq!(streams.take(stream(2), Position(10), 1), Before::Unknown);
        assert_eq!(streams.before(stream(2)), Before::Unknown);
    }

    proptest! {
        /// Q1, Q2, against the full history of every stream: an answer is the true one, or unknown.
        #[test]
        fn an_answer_is_the_whole_truth_or_unknown(
            takes in prop::collection::vec((0_u8..8, 1_u32..7), 1..200),
            count_max in 1_u32..6,
            complete: bool,
        ) {
            let mut streams = Streams::new(count_max, complete);
            let mut truth: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
            let mut next = 100;
            if !complete {
                (0..8).for_each(|number| { truth.insert(number, vec![u64::from(number)]); });
            }
            for (number, count) in takes {
                let history = truth.entry(number).or_default();
                let expected: Vec<u64> = history.iter().rev().take(BACKPOINTERS).copied().collect();
                let said = streams.take(stream(number), Position(next), count);
                if said != Before::Unknown {
                    prop_assert_eq!(said, known(&expected));
                }
                history.extend(next..next + u64::from(count));
                next += u64::from(count);
                prop_assert!(streams.len() <= count_max as usize);
            }
        }
    }
}
