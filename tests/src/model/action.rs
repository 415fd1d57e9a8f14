//! The steps that lead from one state to another, and which of them may be possible.
//!
//! Every step is one request executed by one unit (with its answer), one decision, one restart, or
//! one client's change of mind. A step that would change nothing does not exist: [`State::step`]
//! says so, and what is listed here may be more than what is possible.
//!
//! ```text
//! proposer      units          layouts        sequencer(t+1)    writer
//!    | seal t+1    |               |                 |             |
//!    |------------>|               |                 |             |
//!    | decide t+1  |               |                 |             |
//!    |-------------|-------------->|                 |             |
//!    |   announce  |               |                 |             |
//!    |------------>|  tails        |                 |             |
//!    |             |---------------|---------------->|             |
//!    |             |               |                 |    token    |
//!    |             |               |                 |<------------|
//!    |             |  head, then down                |             |
//!    |             |<--------------|-----------------|-------------|
//! ```

use super::append::append_of;
use super::client::{Settle, Settling, Step};
use super::entry::{Bits, Position, Term, UnitId};
use super::guard::Guard;
use super::rules::Rules;
use super::state::State;

/// Who takes a step of settling.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Party {
    /// The writer with this index, for its own stale token.
    Writer(usize),
    /// The settler.
    Settler,
}

/// One step.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Action {
    /// A writer gets a token from the sequencer of its term.
    Token(usize),
    /// The next unit of its chain executes a writer's write.
    Write(usize),
    /// A writer learns the newest layout and judges its token by it.
    Refresh(usize),
    /// A writer's write is duplicated by the network.
    Duplicate(usize),
    /// The duplicate arrives.
    Arrive,
    /// Somebody begins to settle a position.
    BeginSettle(Position),
    /// A unit executes a fill, a completion or a restore.
    Settle(Party),
    /// A unit is asked what it holds, so that it can be restored elsewhere.
    Ask(Party, UnitId),
    /// The settler gives up.
    GiveUp,
    /// Somebody reads a closed position to copy it to a unit that joined later.
    ReadToCopy(Position, UnitId),
    /// The unit executes the copy.
    Copy,
    /// The copier learns that its term is over.
    DropCopy,
    /// A unit executes a proposer's seal.
    Seal(usize, UnitId),
    /// A proposer seals the sequencer.
    SealSequencer(usize),
    /// A seal of the newest term reaches a unit after the decision.
    LateSeal(UnitId),
    /// A proposer's layout is decided.
    Decide(usize),
    /// A unit hears of the decided layout of its term.
    Announce(UnitId),
    /// The sequencer of a term starts from the tails that the units answered.
    Bootstrap(Term),
    /// The naive sequencer starts from the tails of one unit.
    BootstrapFrom(Term, UnitId),
    /// A unit restarts and lacks these entries.
    Restart(UnitId, Bits),
    /// The sequencer of a term restarts.
    RestartSequencer(Term),
    /// A unit trims what every reader could have read.
    Trim(UnitId),
    /// The naive proposer restores a position before its layout is decided.
    EarlyRestore {
        /// Which proposer.
        proposer: usize,
        /// Which position.
        position: Position,
        /// Who holds it.
        from: UnitId,
        /// Who gets it.
        to: UnitId,
    },
}

impl State {
    /// The steps that may be possible from here.
    pub fn actions(&self, rules: &Rules<'_>, actions: &mut Vec<Action>) {
        self.writer_actions(rules, actions);
        self.settler_actions(rules, actions);
        self.copy_actions(actions);
        self.layout_actions(rules, actions);
        self.fault_actions(rules, actions);
    }

    fn writer_actions(&self, rules: &Rules<'_>, actions: &mut Vec<Action>) {
        for (index, writer) in self.writers.iter().enumerate() {
            if append_of(rules.scope, index, writer).is_none() {
                continue;
            }
            match writer.step {
                Step::Token => actions.push(Action::Token(index)),
                Step::Write { .. } => {
                    actions.push(Action::Write(index));
                    if self.budget.duplicates > 0 && self.in_flight.is_none() {
                        actions.push(Action::Duplicate(index));
                    }
                }
                Step::Resolve { settle, .. } => {
                    self.settle_actions(rules, Party::Writer(index), &settle, actions);
                }
                Step::Stopped => continue,
            }
            if writer.view < self.newest().term {
                actions.push(Action::Refresh(index));
            }
        }
        if self.in_flight.is_some() {
            actions.push(Action::Arrive);
        }
    }

    fn settler_actions(&self, rules: &Rules<'_>, actions: &mut Vec<Action>) {
        if let Some(settle) = &self.settler {
            self.settle_actions(rules, Party::Settler, settle, actions);
            if settle.view < self.newest().term {
                actions.push(Action::GiveUp);
            }
        } else if self.budget.settles > 0 {
            let end = self.sequencers[self.sequencers.len() - 1].counter;
            let end = end.max(self.newest().open.start);
            actions.extend((0..end).map(Action::BeginSettle));
        }
    }

    fn copy_actions(&self, actions: &mut Vec<Action>) {
        let layout = self.newest();
        if let Some(copy) = &self.copy {
            actions.push(Action::Copy);
            if copy.view < layout.term {
                actions.push(Action::DropCopy);
            }
        } else if self.budget.copies > 0 {
            for position in 0..layout.open.start {
                let joined = layout.open.chain.minus(layout.chain(position));
                actions.extend(joined.iter().map(|unit| Action::ReadToCopy(position, unit)));
            }
        }
    }

    fn settle_actions(
        &self,
        rules: &Rules<'_>,
        party: Party,
        settle: &Settle,
        actions: &mut Vec<Action>,
    ) {
        let chain = self.layout(settle.view).chain(settle.position);
        let may_ask = match settle.phase {
            Settling::Fill => !rules.guards.hold(Guard::RestoreHeadFirst),
            Settling::Ask { .. } => true,
            Settling::Push { .. } => false,
        };
        if may_ask {
            actions.extend(chain.iter().map(|unit| Action::Ask(party, unit)));
        }
        actions.push(Action::Settle(party));
    }

    fn layout_actions(&self, rules: &Rules<'_>, actions: &mut Vec<Action>) {
        let last = usize::from(rules.scope.terms) == self.layouts.len();
        for (index, proposer) in self.proposers.iter().enumerate() {
            if !last {
                let units = rules.scope.units().iter();
                actions.extend(units.map(|unit| Action::Seal(index, unit)));
            }
            if proposer.is_some() && !last {
                actions.push(Action::SealSequencer(index));
                actions.push(Action::Decide(index));
            }
            if proposer.is_some() && !rules.guards.hold(Guard::RestoreFollowsDecision) {
                self.early_restores(rules, index, actions);
            }
        }
        for unit in rules.scope.units().iter() {
            if self.newest().listed().contains(unit) {
                actions.push(Action::Announce(unit));
            }
            if rules.scope.late_seals && self.unit(unit).term < self.newest().term {
                actions.push(Action::LateSeal(unit));
            }
        }
        let term = self.newest().term;
        if !rules.guards.hold(Guard::BootstrapAsksEveryUnit) {
            let units = self.newest().listed().iter();
            actions.extend(units.map(|unit| Action::BootstrapFrom(term, unit)));
        }
        actions.push(Action::Bootstrap(term));
    }

    fn early_restores(&self, rules: &Rules<'_>, proposer: usize, actions: &mut Vec<Action>) {
        for position in 0..rules.scope.positions {
            for from in rules.scope.units().iter() {
                for to in rules.scope.units().iter() {
                    if self.unit(from).cell(position).is_some()
                        && self.unit(to).cell(position).is_none()
                    {
                        actions.push(Action::EarlyRestore {
                            proposer,
                            position,
                            from,
                            to,
                        });
                    }
                }
            }
        }
    }

    fn fault_actions(&self, rules: &Rules<'_>, actions: &mut Vec<Action>) {
        if self.budget.restarts > 0 {
            for unit in rules.scope.units().iter() {
                let held = self.unit(unit).held();
                let losses = self.budget.losses > 0;
                let lost = held.subsets().filter(|lost| losses || lost.is_empty());
                actions.extend(lost.map(|lost| Action::Restart(unit, lost)));
            }
        }
        if self.budget.sequencer_restarts > 0 {
            actions.push(Action::RestartSequencer(self.newest().term));
        }
        if self.budget.trims > 0 {
            actions.extend(rules.scope.units().iter().map(Action::Trim));
        }
    }

    /// Takes one step; `None` if it is not possible, or changes nothing.
    pub fn step(&mut self, rules: &Rules<'_>, action: Action) -> Option<()> {
        match action {
            Action::Token(writer) => self.token(rules, writer),
            Action::Write(writer) => self.write(rules, writer),
            Action::Refresh(writer) => self.refresh(rules, writer),
            Action::Duplicate(writer) => self.duplicate(writer),
            Action::Arrive => self.arrive(rules),
            Action::BeginSettle(position) => {
                self.begin_settle(position);
                Some(())
            }
            Action::Settle(party) => self.settle(rules, party, Settle::step),
            Action::Ask(party, unit) => {
                self.settle(rules, party, |settle, world| settle.ask(world, unit))
            }
            Action::GiveUp => self.give_up(),
            Action::ReadToCopy(position, unit) => self.read_to_copy(rules, position, unit),
            Action::Copy => self.copy(rules),
            Action::DropCopy => {
                self.copy = None;
                Some(())
            }
            Action::Seal(proposer, unit) => self.seal(rules, proposer, unit),
            Action::SealSequencer(proposer) => self.seal_sequencer(rules, proposer),
            Action::LateSeal(unit) => self.late_seal(unit),
            Action::Decide(proposer) => self.decide(rules, proposer),
            Action::Announce(unit) => self.announce(rules, unit),
            Action::Bootstrap(term) => self.bootstrap(rules, term),
            Action::BootstrapFrom(term, unit) => self.bootstrap_from(rules, term, unit),
            Action::Restart(unit, lost) => self.restart(rules, unit, lost),
            Action::RestartSequencer(term) => self.restart_sequencer(rules, term),
            Action::Trim(unit) => self.trim(unit),
            Action::EarlyRestore {
                proposer,
                position,
                from,
                to,
            } => self.early_restore(rules, proposer, position, (from, to)),
        }
    }
}
