//! The nouns of the model: positions, terms, units, sets of them, and entries.
//!
//! Small on purpose: every number is a byte and every set a byte of bits, because the checker keeps
//! millions of states. Nothing here decides anything.

/// An address in the log, from 0.
pub type Position = u8;
/// The number of a layout.
pub type Term = u8;
/// Which log unit. Units stand in a chain in the order of their ids.
pub type UnitId = u8;
/// Which process start of a unit. Only compared for equality: the real one is random.
pub type Incarnation = u8;
/// Which append of a run, whoever does it and however often it is retried: the stamp of its record.
pub type AppendId = u8;

/// One past the highest position a model may use.
pub const POSITIONS_MAX: usize = 4;
/// One past the highest unit a model may use.
pub const UNITS_MAX: usize = 4;

/// A set of positions or of units.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Bits(u8);

impl Bits {
    /// The set without members.
    pub const EMPTY: Bits = Bits(0);

    /// Everything from `start` up to, but without, `end`.
    pub fn range(start: u8, end: u8) -> Bits {
        (start..end).collect()
    }

    /// Whether `member` is in it.
    pub fn contains(self, member: u8) -> bool {
        self.0 & (1 << member) != 0
    }

    /// This set and `member`.
    pub fn with(self, member: u8) -> Bits {
        Bits(self.0 | (1 << member))
    }

    /// What is in both.
    pub fn and(self, other: Bits) -> Bits {
        Bits(self.0 & other.0)
    }

    /// What is in either.
    pub fn or(self, other: Bits) -> Bits {
        Bits(self.0 | other.0)
    }

    /// What is here and not in `other`.
    pub fn minus(self, other: Bits) -> Bits {
        Bits(self.0 & !other.0)
    }

    /// How many are in it.
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether nothing is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether every member of `other` is in it.
    pub fn covers(self, other: Bits) -> bool {
        other.minus(self).is_empty()
    }

    /// The lowest member: of a chain, its head.
    pub fn first(self) -> Option<u8> {
        self.iter().next()
    }

    /// The highest member: of a chain, its tail.
    pub fn last(self) -> Option<u8> {
        self.iter().last()
    }

    /// The lowest member above `member`: of a chain, the next unit down.
    pub fn after(self, member: u8) -> Option<u8> {
        self.iter().find(|&other| other > member)
    }

    /// Its members, from the lowest.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..8).filter(move |&member| self.contains(member))
    }

    /// Every subset, the empty one and itself among them.
    pub fn subsets(self) -> impl Iterator<Item = Bits> {
        (0..=self.0)
            .map(Bits)
            .filter(move |&part| self.covers(part))
    }
}

impl FromIterator<u8> for Bits {
    fn from_iter<I: IntoIterator<Item = u8>>(members: I) -> Bits {
        members.into_iter().fold(Bits::EMPTY, Bits::with)
    }
}

/// What a position can hold.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Value {
    /// A filled hole.
    Junk,
    /// The record of an append.
    Record(AppendId),
}

/// What a position holds, with what stands beside it under the checksum.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Entry {
    /// Data or junk.
    pub value: Value,
    /// The term of the write that decided it. Completions, copies and restores keep it.
    pub term: Term,
    /// The earlier positions of its stream that a reader must expect; `None` is *unknown*.
    pub expect: Option<Bits>,
}

impl Entry {
    /// What a fill of `term` writes.
    pub fn junk(term: Term) -> Entry {
        Entry {
            value: Value::Junk,
            term,
            expect: Some(Bits::EMPTY),
        }
    }
}
