//! The steps of a term change: seal, decide, announce, bootstrap.
//!
//! - One layout is decided for a term, whoever proposes it and however many seal for it.
//! - A sequencer is bootstrapped once, from units that are still what the layout lists.

use super::entry::{Bits, Incarnation, Term, UNITS_MAX, UnitId};
use super::guard::Guard;
use super::layout::{Layout, Policy};
use super::rules::Rules;
use super::scope::Scope;
use super::sequencer::{Phase, Sequencer};
use super::state::{Proposer, State, in_stream};
use super::unit::{Listing, Unit};
use super::witness::Event;

impl State {
    pub(super) fn seal(&mut self, rules: &Rules<'_>, index: usize, unit: UnitId) -> Option<()> {
        let newest = self.newest();
        let spare = !newest.known.contains(unit);
        let back = !rules.guards.hold(Guard::LeaverComesBackEmpty);
        if !(spare || back || newest.listed().contains(unit)) {
            return None;
        }
        let mut proposer = self.proposers[index].unwrap_or(Proposer {
            base: newest.term,
            seals: [None; UNITS_MAX],
            counter: None,
        });
        let seal = &mut proposer.seals[usize::from(unit)];
        if proposer.base != self.newest().term || seal.is_some() {
            return None;
        }
        *seal = Some(self.units[usize::from(unit)].seal(proposer.base + 1)?);
        self.proposers[index] = Some(proposer);
        Some(())
    }

    pub(super) fn seal_sequencer(&mut self, rules: &Rules<'_>, index: usize) -> Option<()> {
        let proposer = self.proposers[index].as_mut()?;
        let sequencer = &mut self.sequencers[usize::from(proposer.base)];
        let sealable = match sequencer.phase {
            Phase::Serving | Phase::Sealed => true,
            Phase::Blank | Phase::Restarted => false,
        };
        if !rules.scope.seal_sequencer || !sealable || proposer.counter.is_some() {
            return None;
        }
        sequencer.phase = Phase::Sealed;
        proposer.counter = Some(sequencer.counter);
        Some(())
    }

    pub(super) fn late_seal(&mut self, unit: UnitId) -> Option<()> {
        let term = self.newest().term;
        self.units[usize::from(unit)].seal(term).map(|_| ())
    }

    pub(super) fn decide(&mut self, rules: &Rules<'_>, index: usize) -> Option<()> {
        let proposer = self.proposers[index]?;
        let base = self.newest();
        if proposer.base != base.term {
            return None;
        }
        let policy = Policy {
            guards: rules.guards,
            trust_restarted: rules.scope.trust_restarted,
            lists: rules.scope.copies > 0,
        };
        let Some(next) = base.next(&proposer.seals, proposer.counter, policy) else {
            rules.witness.saw(Event::ChangeRefused);
            return None;
        };
        self.note_decision(rules, &next);
        self.proposers[index] = None;
        // Who proposed for this term and was late has nothing to go on with.
        if rules.guards.hold(Guard::RestoreFollowsDecision) {
            if self.proposers.iter().any(Option::is_some) {
                rules.witness.saw(Event::ProposerOutrun);
            }
            self.proposers.fill(None);
        }
        self.layouts.push(next);
        self.sequencers.push(Sequencer::BLANK);
        Some(())
    }

    fn note_decision(&self, rules: &Rules<'_>, next: &Layout) {
        let base = self.newest();
        let saw = |happened, event| {
            if happened {
                rules.witness.saw(event);
            }
        };
        for unit in next.listed().iter() {
            let (before, after) = (base.member(unit), next.member(unit));
            if let (Some(before), Some(after)) = (before, after) {
                let restarted = before.incarnation != after.incarnation;
                saw(restarted, Event::RestartedListed);
                saw(
                    !restarted && after.since < before.since,
                    Event::RestartedWhole,
                );
            }
            saw(before.is_none(), Event::SpareListed);
        }
        for segment in &next.closed {
            let before = base.chain(segment.start);
            let listed = segment.start < base.open.start && !before.covers(segment.chain);
            saw(listed, Event::CopyListed);
            let alone = before.and(segment.chain).is_empty();
            saw(alone, Event::CopyAlone);
            saw(
                !before.is_empty() && segment.chain.len() == 1,
                Event::OneLeft,
            );
        }
        saw(!next.unreachable.is_empty(), Event::SilentKept);
        let replaced = next.open.start == base.open.start;
        saw(replaced, Event::SegmentReplaced);
    }

    pub(super) fn announce(&mut self, rules: &Rules<'_>, unit: UnitId) -> Option<()> {
        let layout = self.newest();
        let (term, start) = (layout.term, layout.open.start);
        let member = layout.member(unit)?;
        if layout.unreachable.contains(unit) {
            return None;
        }
        let listing = Listing {
            start,
            since: member.since,
        };
        let unit = &mut self.units[usize::from(unit)];
        let changed = unit.announce(term, member.incarnation, listing, rules.guards);
        changed.then_some(())
    }

    pub(super) fn bootstrap(&mut self, rules: &Rules<'_>, term: Term) -> Option<()> {
        let layout = self.layout(term);
        let answering = layout.listed().minus(layout.unreachable);
        self.bootstrap_with(rules, term, answering)
    }

    pub(super) fn bootstrap_from(
        &mut self,
        rules: &Rules<'_>,
        term: Term,
        unit: UnitId,
    ) -> Option<()> {
        self.bootstrap_with(rules, term, Bits::EMPTY.with(unit))
    }

    /// Starts the sequencer of `term` from the tails of `answering`, if all of them answer.
    fn bootstrap_with(&mut self, rules: &Rules<'_>, term: Term, answering: Bits) -> Option<()> {
        let phase = self.sequencers[usize::from(term)].phase;
        let again = match phase {
            Phase::Blank => false,
            Phase::Restarted if !rules.guards.hold(Guard::SequencerWaitsForTerm) => true,
            Phase::Restarted | Phase::Serving | Phase::Sealed => return None,
        };
        let layout = self.layout(term);
        let mut stream = Bits::EMPTY;
        let mut counter = layout.open.start;
        for unit in answering.iter() {
            let listed: Incarnation = layout.member(unit)?.incarnation;
            let unit = self.unit(unit);
            if unit.term != term || unit.incarnation != listed {
                return None;
            }
            stream = stream.or(stream_index(rules.scope, unit));
            if again {
                counter = counter.max(unit.held().last().map_or(0, |highest| highest + 1));
            }
        }
        let known =
            layout.unreachable.is_empty() || !rules.guards.hold(Guard::BackpointersSayUnknown);
        self.sequencers[usize::from(term)].bootstrap(counter, known.then_some(stream));
        Some(())
    }
}

/// The positions of the stream that `unit` holds.
fn stream_index(scope: &Scope, unit: &Unit) -> Bits {
    let held = unit.held().iter();
    held.filter(|&position| {
        unit.cell(position)
            .is_some_and(|entry| in_stream(scope, entry))
    })
    .collect()
}
