//! The steps that nobody wants: restarts, losses, and a naive proposer's early restore.
//!
//! Which entries a restart may lose is bounded by the limits that the protocol names, and by nothing
//! else: any subset goes, in any order.

use super::entry::{Bits, Position, Term, UnitId};
use super::rules::Rules;
use super::sequencer::Phase;
use super::state::State;
use super::unit::{Kind, Put, Putting};
use super::witness::Event;

impl State {
    pub(super) fn restart(&mut self, rules: &Rules<'_>, unit: UnitId, lost: Bits) -> Option<()> {
        if lost.iter().any(|position| !self.may_lose(unit, position)) {
            return None;
        }
        let acknowledged = self.acknowledged.iter().flatten();
        for _ in acknowledged.filter(|&&position| lost.contains(position)) {
            rules.witness.saw(Event::AcknowledgedLost);
        }
        self.budget.restarts -= 1;
        if !lost.is_empty() {
            self.budget.losses -= 1;
        }
        self.units[usize::from(unit)].restart(lost, rules.guards);
        Some(())
    }

    /// The limits that the protocol names: no entry is lost on all units of its chain together,
    /// whether that is the chain of the newest layout or the one that a proposer is about to make.
    fn may_lose(&self, unit: UnitId, position: Position) -> bool {
        let chain = self.newest().chain(position);
        let holds = |other: UnitId| other != unit && self.unit(other).cell(position).is_some();
        let proposed = self.proposers.iter().flatten().all(|proposer| {
            let answer = |unit: UnitId| proposer.seals[usize::from(unit)];
            let counts = answer(unit).is_some_and(|seal| seal.held.contains(position));
            !counts
                || chain
                    .iter()
                    .any(|other| answer(other).is_some() && holds(other))
        });
        // Below the open segment an entry that nobody read may yet be acknowledged: by its writer,
        // in an older term, at a unit that was left out unsealed.
        let open = position >= self.newest().open.start;
        let unread = self.read[usize::from(position)].is_none();
        proposed && ((open && unread) || chain.iter().any(holds))
    }

    pub(super) fn restart_sequencer(&mut self, rules: &Rules<'_>, term: Term) -> Option<()> {
        let sequencer = &mut self.sequencers[usize::from(term)];
        if sequencer.phase != Phase::Serving {
            return None;
        }
        rules.witness.saw(Event::SequencerRestarted);
        sequencer.phase = Phase::Restarted;
        self.budget.sequencer_restarts -= 1;
        Some(())
    }

    pub(super) fn trim(&mut self, unit: UnitId) -> Option<()> {
        let settled = self.read.iter().take_while(|entry| entry.is_some()).count() as Position;
        let unit = &mut self.units[usize::from(unit)];
        if unit.listing.is_none() || unit.trim >= settled {
            return None;
        }
        unit.trim(settled);
        self.budget.trims -= 1;
        Some(())
    }

    pub(super) fn early_restore(
        &mut self,
        rules: &Rules<'_>,
        proposer: usize,
        position: Position,
        (from, to): (UnitId, UnitId),
    ) -> Option<()> {
        let proposer = self.proposers[proposer]?;
        proposer.seals[usize::from(from)]?;
        let sealed = proposer.seals[usize::from(to)]?;
        let put = Put {
            term: proposer.base + 1,
            incarnation: sealed.incarnation,
            position,
            entry: self.unit(from).cell(position)?,
            kind: Kind::Copy,
        };
        match self.units[usize::from(to)].put(&put, rules.guards) {
            Putting::Stored => Some(()),
            Putting::Same
            | Putting::Taken(_)
            | Putting::Trimmed
            | Putting::Unknown
            | Putting::Refused => None,
        }
    }
}
