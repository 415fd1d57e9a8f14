//! The steps of whoever settles a position: a reader, control, or a writer with a stale token.

use super::action::Party;
use super::append::append_of;
use super::client::{Progress, Settle, Step, Surroundings};
use super::entry::{Position, Value};
use super::rules::Rules;
use super::state::State;
use super::witness::Event;

impl State {
    pub(super) fn begin_settle(&mut self, position: Position) {
        self.settler = Some(Settle::new(self.newest().term, position));
        self.budget.settles -= 1;
    }

    pub(super) fn give_up(&mut self) -> Option<()> {
        self.settler.take().map(|_| ())
    }

    pub(super) fn settle(
        &mut self,
        rules: &Rules<'_>,
        party: Party,
        step: impl Fn(&mut Settle, &mut Surroundings<'_>) -> Progress,
    ) -> Option<()> {
        let mut settle = match party {
            Party::Settler => self.settler?,
            Party::Writer(index) => match self.writers[index].step {
                Step::Resolve { settle, .. } => settle,
                Step::Token | Step::Write { .. } | Step::Stopped => return None,
            },
        };
        let mut world = self.world(rules, settle.view);
        let progress = step(&mut settle, &mut world);
        self.diverged |= progress == Progress::Diverged;
        match (party, progress) {
            (_, Progress::Blocked) => return None,
            (Party::Settler, Progress::Going) => self.settler = Some(settle),
            (Party::Settler, Progress::Settled(_) | Progress::Trimmed | Progress::Diverged) => {
                self.settler = None;
            }
            (Party::Writer(index), progress) => self.resolved(rules, index, settle, progress),
        }
        Some(())
    }

    fn resolved(&mut self, rules: &Rules<'_>, index: usize, now: Settle, progress: Progress) {
        let own = append_of(rules.scope, index, &self.writers[index]).map(|(id, _)| id);
        let step = &mut self.writers[index].step;
        match progress {
            Progress::Blocked => {}
            Progress::Going => {
                if let Step::Resolve { settle, .. } = step {
                    *settle = now;
                }
            }
            Progress::Settled(entry) if own.map(Value::Record) == Some(entry.value) => {
                rules.witness.saw(Event::StaleTokenAppended);
                self.acknowledge(rules, index, now.position);
            }
            Progress::Settled(_) => {
                rules.witness.saw(Event::StaleTokenLost);
                *step = Step::Token;
            }
            Progress::Trimmed | Progress::Diverged => *step = Step::Stopped,
        }
    }
}
