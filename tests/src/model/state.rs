//! One state of the world, and what readers see in it.
//!
//! Plain reads are no steps, for they change nothing: after every step, every reader of every term
//! is taken to have read every position. See [`State::observe`].

use super::client::{Settle, Step, Surroundings, Writer};
use super::entry::{Bits, Entry, POSITIONS_MAX, Position, Term, UnitId, Value};
use super::guard::Guards;
use super::layout::{Layout, Seals};
use super::rules::Rules;
use super::scope::{Append, Scope};
use super::sequencer::Sequencer;
use super::unit::{Listing, Put, Reading, Unit};

/// A control client that wants a new term.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Proposer {
    /// The newest layout when it began.
    pub base: Term,
    /// What the units answered to its seals.
    pub seals: Seals,
    /// Where the sequencer of `base` stood when it sealed it.
    pub counter: Option<Position>,
}

/// A write that arrives apart from its sender.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct InFlight {
    /// To whom.
    pub unit: UnitId,
    /// What.
    pub put: Put,
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Budget {
    /// Restarts of units.
    pub restarts: u8,
    /// Restarts that lose entries.
    pub losses: u8,
    /// Restarts of sequencers.
    pub sequencer_restarts: u8,
    /// Duplicates.
    pub duplicates: u8,
    /// Positions settled by others.
    pub settles: u8,
    /// Trims.
    pub trims: u8,
    /// Copies.
    pub copies: u8,
}

/// A position of a closed range on its way to a unit that joined later.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Copy {
    /// The term that the copier believes in.
    pub view: Term,
    /// Which position.
    pub position: Position,
    /// What it found there.
    pub entry: Entry,
    /// To whom.
    pub to: UnitId,
}

/// The whole world.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct State {
    /// Every unit.
    pub units: Vec<Unit>,
    /// The decided layouts, by term.
    pub layouts: Vec<Layout>,
    /// The sequencers, by term.
    pub sequencers: Vec<Sequencer>,
    /// Every proposer; `None` is idle.
    pub proposers: Vec<Option<Proposer>>,
    /// Every writer.
    pub writers: Vec<Writer>,
    /// Whoever settles positions that he did not write, as reader or as control.
    pub settler: Option<Settle>,
    /// What is being copied.
    pub copy: Option<Copy>,
    /// A write whose sender does not wait for it.
    pub in_flight: Option<InFlight>,
    /// What may still go wrong.
    pub budget: Budget,
    /// The first entry that any reader got at each position.
    pub read: [Option<Entry>; POSITIONS_MAX],
    /// Where each append was acknowledged.
    pub acknowledged: Vec<Option<Position>>,
    /// Two readers got two values at one position.
    pub two_values: bool,
    /// A client met a unit below the head with something else than the head.
    pub diverged: bool,
}

impl State {
    /// Term 0: the chain is announced, the sequencer serves, nothing is written.
    pub fn first(scope: &Scope) -> State {
        let chain = Bits::range(0, scope.chain);
        let mut units = vec![Unit::blank(); usize::from(scope.chain + scope.spares)];
        for unit in chain.iter() {
            units[usize::from(unit)].listing = Some(Listing { start: 0, since: 0 });
        }
        let mut sequencer = Sequencer::BLANK;
        sequencer.bootstrap(0, Some(Bits::EMPTY));
        let writer = Writer {
            view: 0,
            done: 0,
            step: Step::Token,
        };
        State {
            units,
            layouts: vec![Layout::genesis(chain)],
            sequencers: vec![sequencer],
            proposers: vec![None; usize::from(scope.proposers)],
            writers: vec![writer; scope.writers.len()],
            settler: None,
            copy: None,
            in_flight: None,
            budget: Budget {
                restarts: scope.restarts,
                losses: scope.losses,
                sequencer_restarts: scope.sequencer_restarts,
                duplicates: scope.duplicates,
                settles: scope.settles,
                trims: scope.trims,
                copies: scope.copies,
            },
            read: [None; POSITIONS_MAX],
            acknowledged: vec![None; scope.appends().count()],
            two_values: false,
            diverged: false,
        }
    }

    /// The newest decided layout.
    pub fn newest(&self) -> &Layout {
        &self.layouts[self.layouts.len() - 1]
    }

    /// The layout of `term`.
    pub fn layout(&self, term: Term) -> &Layout {
        &self.layouts[usize::from(term)]
    }

    /// What a reader of `term` gets at the tail.
    pub fn tail_answer(&self, term: Term, position: Position, guards: Guards) -> Reading {
        let layout = self.layout(term);
        let Some(tail) = layout.chain(position).last() else {
            return Reading::Refused;
        };
        let Some(member) = layout.member(tail) else {
            return Reading::Refused;
        };
        self.unit(tail)
            .read(term, member.incarnation, position, guards)
    }

    /// Lets every reader of every term read every position.
    pub fn observe(&mut self, guards: Guards) {
        for term in 0..self.layouts.len() as Term {
            for position in 0..POSITIONS_MAX as Position {
                if let Reading::Holds(entry) = self.tail_answer(term, position, guards) {
                    let first = self.read[usize::from(position)].get_or_insert(entry);
                    self.two_values |= first.value != entry.value;
                }
            }
        }
    }

    /// One unit.
    pub fn unit(&self, unit: UnitId) -> &Unit {
        &self.units[usize::from(unit)]
    }

    pub(super) fn world<'a>(&'a mut self, rules: &Rules<'a>, view: Term) -> Surroundings<'a> {
        Surroundings {
            units: &mut self.units,
            layout: &self.layouts[usize::from(view)],
            guards: rules.guards,
            witness: rules.witness,
        }
    }
}

/// Whether `entry` is a record of the stream.
pub fn in_stream(scope: &Scope, entry: Entry) -> bool {
    match entry.value {
        Value::Junk => false,
        Value::Record(id) => scope
            .appends()
            .nth(usize::from(id))
            .is_some_and(|(_, append)| append == Append::InStream),
    }
}
