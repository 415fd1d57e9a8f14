//! The steps of a writer: token, write down the chain, and what to do with a stale token.
//!
//! - Nothing is acknowledged before the tail has it.
//! - A new token is taken only after the one before is proven not appended.

use super::client::{Settle, Step, Token, Writer};
use super::entry::{AppendId, Entry, Position, Term, Value};
use super::guard::Guard;
use super::layout::Layout;
use super::rules::Rules;
use super::scope::{Append, Scope};
use super::sequencer::Phase;
use super::state::{InFlight, State};
use super::unit::{Kind, Put, Putting};
use super::witness::Event;

impl State {
    pub(super) fn token(&mut self, rules: &Rules<'_>, index: usize) -> Option<()> {
        let writer = &mut self.writers[index];
        let (id, append) = append_of(rules.scope, index, writer)?;
        let sequencer = &mut self.sequencers[usize::from(writer.view)];
        if sequencer.phase != Phase::Serving || sequencer.counter >= rules.scope.positions {
            return None;
        }
        let (position, expect) = sequencer.issue(append == Append::InStream);
        if expect.is_none() {
            rules.witness.saw(Event::BackpointersUnknown);
        }
        let token = Token {
            term: writer.view,
            position,
            expect,
        };
        writer.step = write_step(&self.layouts[usize::from(writer.view)], token, id)?;
        Some(())
    }

    pub(super) fn write(&mut self, rules: &Rules<'_>, index: usize) -> Option<()> {
        let Step::Write { token, entry, unit } = self.writers[index].step else {
            return None;
        };
        let view = self.writers[index].view;
        let chain = self.layout(view).chain(token.position);
        let head = chain.first() == Some(unit);
        let kind = if head { Kind::Decide } else { Kind::Follow };
        let put = self
            .world(rules, view)
            .put(unit, token.position, entry, kind);
        let entry = match put {
            Putting::Stored | Putting::Same => entry,
            // A retry met what an earlier try left: that goes on down.
            Putting::Taken(there) if head && there.value == entry.value => there,
            Putting::Taken(_) if head => {
                self.writers[index].step = Step::Token;
                return Some(());
            }
            Putting::Taken(_) => {
                self.diverged = true;
                self.writers[index].step = Step::Stopped;
                return Some(());
            }
            Putting::Refused => {
                if view < self.unit(unit).term {
                    rules.witness.saw(Event::StaleWriteRefused);
                }
                return None;
            }
            Putting::Unknown | Putting::Trimmed => return None,
        };
        match chain.after(unit) {
            Some(unit) => self.writers[index].step = Step::Write { token, entry, unit },
            None => self.acknowledge(rules, index, token.position),
        }
        Some(())
    }

    pub(super) fn acknowledge(&mut self, rules: &Rules<'_>, index: usize, position: Position) {
        let writer = &mut self.writers[index];
        let Some((id, _)) = append_of(rules.scope, index, writer) else {
            return;
        };
        self.acknowledged[usize::from(id)] = Some(position);
        if writer.view > 0 {
            rules.witness.saw(Event::AcknowledgedInLaterTerm);
        }
        writer.done += 1;
        writer.step = Step::Token;
    }

    pub(super) fn refresh(&mut self, rules: &Rules<'_>, index: usize) -> Option<()> {
        let view = self.newest().term;
        let (id, _) = append_of(rules.scope, index, &self.writers[index])?;
        let step = match self.writers[index].step {
            Step::Token => Step::Token,
            Step::Write { token, .. } | Step::Resolve { token, .. } => {
                self.judge(rules, token, id, view)?
            }
            Step::Stopped => return None,
        };
        self.writers[index].view = view;
        self.writers[index].step = step;
        Some(())
    }

    /// What a stale token means in the term of `view`.
    fn judge(&self, rules: &Rules<'_>, token: Token, id: AppendId, view: Term) -> Option<Step> {
        if !rules.guards.hold(Guard::TokenInOwnTerm) {
            return write_step(self.layout(view), token, id);
        }
        let opened = if !rules.guards.hold(Guard::StartOfNextTerm) {
            token.term
        } else if !rules.guards.hold(Guard::NextNotNewest) {
            view
        } else {
            token.term + 1
        };
        if token.position >= self.layout(opened).open.start {
            rules.witness.saw(Event::StaleTokenNotAppended);
            return Some(Step::Token);
        }
        let settle = Settle::new(view, token.position);
        Some(Step::Resolve { token, settle })
    }

    pub(super) fn duplicate(&mut self, index: usize) -> Option<()> {
        let Step::Write { token, entry, unit } = self.writers[index].step else {
            return None;
        };
        let layout = self.layout(self.writers[index].view);
        let head = layout.chain(token.position).first() == Some(unit);
        let put = Put {
            term: layout.term,
            incarnation: layout.member(unit)?.incarnation,
            position: token.position,
            entry,
            kind: if head { Kind::Decide } else { Kind::Follow },
        };
        self.in_flight = Some(InFlight { unit, put });
        self.budget.duplicates -= 1;
        Some(())
    }

    pub(super) fn arrive(&mut self, rules: &Rules<'_>) -> Option<()> {
        let InFlight { unit, put } = self.in_flight?;
        match self.units[usize::from(unit)].put(&put, rules.guards) {
            Putting::Stored => rules.witness.saw(Event::DuplicateArrived),
            Putting::Same
            | Putting::Taken(_)
            | Putting::Trimmed
            | Putting::Unknown
            | Putting::Refused => {}
        }
        self.in_flight = None;
        Some(())
    }
}

/// The append that `writer` is at, and its id.
pub(super) fn append_of(
    scope: &Scope,
    index: usize,
    writer: &Writer,
) -> Option<(AppendId, Append)> {
    let append = *scope.writers[index].get(usize::from(writer.done))?;
    let before: usize = scope.writers[..index].iter().map(Vec::len).sum();
    Some((before as AppendId + writer.done, append))
}

/// The first write under `token`, at the head of its chain.
fn write_step(layout: &Layout, token: Token, id: AppendId) -> Option<Step> {
    let entry = Entry {
        value: Value::Record(id),
        term: layout.term,
        expect: token.expect,
    };
    let unit = layout.chain(token.position).first()?;
    Some(Step::Write { token, entry, unit })
}
