//! The steps of whoever copies a closed range to a unit that joined later, while appends go on.
//!
//! - What is copied was read at the tail: the whole chain holds it.
//! - The unit admits a copy in its own term only, below its open segment.
//!
//! That a unit is listed once it holds all of a range is the planner's (`layout.rs`).

use super::entry::{Entry, Position, UnitId};
use super::guard::Guard;
use super::rules::Rules;
use super::state::{Copy, State};
use super::unit::{Kind, Putting, Reading};
use super::witness::Event;

impl State {
    pub(super) fn read_to_copy(
        &mut self,
        rules: &Rules<'_>,
        position: Position,
        to: UnitId,
    ) -> Option<()> {
        let view = self.newest().term;
        let settles = rules.guards.hold(Guard::CopyFollowsSettling);
        let entry = match self.tail_answer(view, position, rules.guards) {
            Reading::Holds(entry) => entry,
            // The naive copier takes a position for empty, and copies that.
            Reading::Unwritten | Reading::Unknown if !settles => Entry::junk(view),
            Reading::Unwritten | Reading::Unknown | Reading::Trimmed | Reading::Refused => {
                return None;
            }
        };
        if self.unit(to).cell(position) == Some(entry) {
            return None;
        }
        self.copy = Some(Copy {
            view,
            position,
            entry,
            to,
        });
        self.budget.copies -= 1;
        Some(())
    }

    pub(super) fn copy(&mut self, rules: &Rules<'_>) -> Option<()> {
        let Copy {
            view,
            position,
            entry,
            to,
        } = self.copy?;
        let put = self.world(rules, view).put(to, position, entry, Kind::Copy);
        match put {
            Putting::Stored => rules.witness.saw(Event::Copied),
            Putting::Same | Putting::Trimmed => {}
            Putting::Taken(_) => self.diverged = true,
            Putting::Unknown | Putting::Refused => return None,
        }
        self.copy = None;
        Some(())
    }
}
