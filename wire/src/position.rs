//! Positions, terms, and the arithmetic of stripes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An address in the log, from 0. Each record has its own.
#[derive(
    Copy, Clone, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize,
)]
pub struct Position(pub u64);

impl Position {
    /// The first position of every log.
    pub const FIRST: Self = Self(0);

    /// The position `count` further on, stopping at the largest.
    pub fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// The position after this one.
    pub fn next(self) -> Self {
        self.plus(1)
    }

    /// How many positions lie from `start` up to this one; 0 if it lies before `start`.
    pub fn since(self, start: Self) -> u64 {
        self.0.saturating_sub(start.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a layout. Every request carries the term its sender believes in.
#[derive(
    Copy, Clone, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize,
)]
pub struct Term(pub u64);

impl Term {
    /// The term that `cluster init` opens.
    pub const GENESIS: Self = Self(0);

    /// The term after this one, stopping at the largest.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A half-open range of positions, `start..end`. Empty if `end <= start`.
#[derive(
    Copy, Clone, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize,
)]
pub struct Span {
    /// The first position in it.
    pub start: Position,
    /// The first position after it.
    pub end: Position,
}

impl Span {
    /// `start..end`.
    pub fn new(start: Position, end: Position) -> Self {
        Self { start, end }
    }

    /// The span of `position` alone.
    pub fn one(position: Position) -> Self {
        Self::new(position, position.next())
    }

    /// How many positions lie in it.
    pub fn len(self) -> u64 {
        self.end.since(self.start)
    }

    /// Whether no position lies in it.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Whether `position` lies in it.
    pub fn contains(self, position: Position) -> bool {
        self.start <= position && position < self.end
    }

    /// What lies in both spans; empty if nothing does.
    pub fn intersect(self, other: Self) -> Self {
        Self::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// Its positions, in order.
    pub fn positions(self) -> impl DoubleEndedIterator<Item = Position> + Clone {
        (self.start.0..self.end.0.max(self.start.0)).map(Position)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// The positions of one chain in one segment: every `chains`-th stripe of `width` positions, from `span.start`.
///
/// Stripes are counted from position 0 of the *log*, whatever segment they lie in.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Serialize, Deserialize)]
pub struct Stripes {
    /// The segment; open-ended segments end at the largest position.
    pub span: Span,
    /// Positions per stripe, at least 1.
    pub width: u32,
    /// How many chains the segment has, at least 1.
    pub chains: u16,
    /// Which of them this is, below `chains`.
    pub index: u16,
}

impl Stripes {
    /// Whether the numbers make sense: `width` and `chains` at least 1, `index` below `chains`.
    pub fn is_valid(&self) -> bool {
        self.width > 0 && self.chains > 0 && self.index < self.chains
    }

    /// Whether `position` belongs to these stripes.
    pub fn contains(&self, position: Position) -> bool {
        self.span.contains(position)
            && (position.0 / u64::from(self.width)) % u64::from(self.chains)
                == u64::from(self.index)
    }

    /// The first run of consecutive positions of these stripes at or after `from`: the rest of its stripe.
    pub fn run_from(&self, from: Position) -> Option<Span> {
        let (width, chains) = (u64::from(self.width), u64::from(self.chains));
        let from = from.max(self.span.start);
        let stripe = from.0 / width;
        let ahead = (u64::from(self.index) + chains - stripe % chains) % chains;
        let stripe = stripe.checked_add(ahead)?;
        let start = stripe.checked_mul(width)?.max(from.0);
        let end = stripe.checked_add(1)?.saturating_mul(width);
        let run = Span::new(Position(start), Position(end)).intersect(self.span);
        (!run.is_empty()).then_some(run)
    }

    /// All runs at or after `from`, in order.
    pub fn runs_from(&self, from: Position) -> impl Iterator<Item = Span> + use<> {
        let stripes = *self;
        std::iter::successors(stripes.run_from(from), move |run| stripes.run_from(run.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// W2: stripes are counted from the log's start, so a segment that begins inside one keeps its chain.
    #[test]
    fn stripes_lie_where_the_log_counts_them() {
        let stripes = Stripes {
            span: Span::new(Position(5), Position(21)),
            width: 4,
            chains: 2,
            index: 1,
        };
        let runs: Vec<Span> = stripes.runs_from(Position::FIRST).collect();
        let expected: Vec<Position> = Span::new(Position(5), Position(21))
            .positions()
            .filter(|p| (p.0 / 4) % 2 == 1)
            .collect();

        assert_eq!(
            runs.iter()
                .flat_map(|run| run.positions())
                .collect::<Vec<_>>(),
            expected
        );
        assert!(expected.iter().all(|p| stripes.contains(*p)));
    }

    #[test]
    fn stripes_at_the_largest_position_end_instead_of_overflowing() {
        let stripes = Stripes {
            span: Span::new(Position(0), Position(u64::MAX)),
            width: 3,
            chains: 2,
            index: 0,
        };

        assert!(stripes.runs_from(Position(u64::MAX - 8)).count() < 4);
    }
}
