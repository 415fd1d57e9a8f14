//! Streams: what a scan finds of each, against the backpointers of its records and the indexes of the units. Pure.
//!
//! Of each stream the last K records met are kept, and per unit how many there were, with a sum over where: bounded by the
//! number of streams, whatever the log's length. Where a unit's index does not sum up to the same, the streams in doubt are
//! scanned once more, their positions kept one by one.
//!
//! Source: Tango (SOSP '13), "Streaming CORFU".

use std::collections::{BTreeMap, BTreeSet};

use milonga_wire::limits::{BACKPOINTERS, STREAMS_MAX};
use milonga_wire::{Before, Position, StreamId, StreamLink};

use super::compare::Findings;

/// How many positions, and a sum over which, whatever the order.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct Sum {
    count: u64,
    mixed: u64,
}

impl Sum {
    /// Takes one more position in.
    pub fn add(&mut self, position: Position) {
        // The finalizer of splitmix64: neighbours do not cancel each other out.
        let mut mixed = position.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.count += 1;
        self.mixed = self.mixed.wrapping_add(mixed ^ (mixed >> 31));
    }
}

/// What a scan has met of one stream.
#[derive(Clone, Debug, Default)]
struct Trail {
    /// The last records, oldest first.
    last: Vec<Position>,
    /// Per unit, by number.
    units: BTreeMap<u16, Sum>,
}

/// What a scan has met of all streams. Positions come in order.
#[derive(Clone, Debug, Default)]
pub struct Trails {
    met: BTreeMap<StreamId, Trail>,
    /// Streams beyond the bound were left out.
    is_partial: bool,
    /// Of these streams, the positions on each unit are kept one by one.
    exact: BTreeMap<(StreamId, u16), BTreeSet<Position>>,
    doubted: BTreeSet<StreamId>,
}

impl Trails {
    /// Keeps the positions of `doubted` streams one by one.
    pub fn of_doubted(doubted: BTreeSet<StreamId>) -> Self {
        Self {
            doubted,
            ..Self::default()
        }
    }

    /// A record with `links`, held by `units`.
    pub fn note(
        &mut self,
        position: Position,
        links: &[StreamLink],
        units: impl Iterator<Item = u16> + Clone,
        findings: &mut Findings,
    ) {
        for link in links {
            let is_new = !self.met.contains_key(&link.stream);
            if is_new && self.met.len() >= STREAMS_MAX as usize {
                self.is_partial = true;
                continue;
            }
            let trail = self.met.entry(link.stream).or_default();
            if let Some(missing) = missing(&link.before, &trail.last) {
                let text = format!(
                    "the record at {position} of stream {} does not lead to the one at {missing}, before it",
                    link.stream
                );
                findings.violate("stream", position, String::new(), text);
            }
            if trail.last.len() == BACKPOINTERS {
                trail.last.remove(0);
            }
            trail.last.push(position);
            for unit in units.clone() {
                trail.units.entry(unit).or_default().add(position);
                if self.doubted.contains(&link.stream) {
                    let exact = self.exact.entry((link.stream, unit)).or_default();
                    exact.insert(position);
                }
            }
        }
    }

    /// Every stream that was met.
    pub fn streams(&self) -> impl Iterator<Item = StreamId> + '_ {
        self.met.keys().copied()
    }

    /// How many streams were met.
    pub fn len(&self) -> usize {
        self.met.len()
    }

    /// Whether none was met.
    pub fn is_empty(&self) -> bool {
        self.met.is_empty()
    }

    /// Whether some were left out.
    pub fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// What the scan met of `stream` on `unit`.
    pub fn sum(&self, stream: StreamId, unit: u16) -> Sum {
        let trail = self.met.get(&stream);
        let sum = trail.and_then(|trail| trail.units.get(&unit));
        sum.copied().unwrap_or_default()
    }

    /// What the scan met of a doubted `stream` on `unit`, one by one.
    pub fn exact(&self, stream: StreamId, unit: u16) -> BTreeSet<Position> {
        let exact = self.exact.get(&(stream, unit));
        exact.cloned().unwrap_or_default()
    }
}

/// The newest of `last` that `before` should name and does not.
fn missing(before: &Before, last: &[Position]) -> Option<Position> {
    let Before::Known(before) = before else {
        return None;
    };
    let reaches = match before.iter().min() {
        Some(oldest) if before.len() >= BACKPOINTERS => *oldest,
        Some(_) | None => Position::FIRST,
    };
    let mut expected = last.iter().rev().take_while(|at| **at >= reaches);
    expected.find(|at| !before.contains(at)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(before: Before) -> Vec<StreamLink> {
        vec![StreamLink {
            stream: StreamId([1; 16]),
            before,
        }]
    }

    fn known(positions: &[u64]) -> Before {
        Before::Known(positions.iter().map(|at| Position(*at)).collect())
    }

    fn violations(records: &[(u64, Before)]) -> u64 {
        let (mut trails, mut findings) = (Trails::default(), Findings::default());
        for (position, before) in records {
            let links = link(before.clone());
            trails.note(Position(*position), &links, [0].into_iter(), &mut findings);
        }
        findings.violations_total
    }

    /// 8.1, 8.2, H39: scan = walk. What a walk would pass by is a violation; an unknown past, junk in between and records that
    /// were trimmed are none.
    #[test]
    fn a_record_that_no_backpointer_leads_to_is_found() {
        let whole = [
            (3, known(&[])),
            (5, known(&[3])),
            (6, known(&[5, 3])),
            (9, known(&[7, 6, 5, 3])),
            (11, known(&[9, 8, 7, 6])),
        ];
        assert_eq!(violations(&whole), 0);
        assert_eq!(violations(&whole[2..]), 0, "trimmed before");
        let mut unknown = whole.clone();
        unknown[3].1 = Before::Unknown;
        assert_eq!(violations(&unknown), 0);
        let mut forgot = whole.clone();
        forgot[2].1 = known(&[3]);
        assert_eq!(violations(&forgot), 1);
        forgot = whole.clone();
        forgot[4].1 = known(&[]);
        assert_eq!(violations(&forgot), 1);
        forgot[4].1 = known(&[8, 7, 6, 5]);
        assert_eq!(violations(&forgot), 1);
    }

    #[test]
    fn sums_tell_sets_of_positions_apart() {
        let sum = |positions: &[u64]| {
            let mut sum = Sum::default();
            positions.iter().for_each(|at| sum.add(Position(*at)));
            sum
        };
        assert_eq!(sum(&[1, 2, 9]), sum(&[9, 1, 2]));
        assert_ne!(sum(&[1, 2, 9]), sum(&[1, 3, 8]));
        assert_ne!(sum(&[0]), sum(&[]));
    }
}
