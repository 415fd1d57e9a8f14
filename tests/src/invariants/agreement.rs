//! I1: a position holds one thing for ever: whoever reads it sees the same record, or the same junk.
//!
//! Trimming ends a position without changing what it held. Source: CORFU (NSDI '12), "Design and Implementation"
//! (write-once address space).

use std::collections::BTreeMap;

use milonga_wire::Position;

use crate::history::{Operation, Seen};

/// Two reads of one position that saw different things, and records that no client made.
pub fn check(history: &[Operation]) -> Vec<String> {
    let mut held: BTreeMap<Position, Seen> = BTreeMap::new();
    let mut violations = vec![];
    for (position, seen) in history.iter().flat_map(Operation::seen) {
        match seen {
            Seen::Data(_) | Seen::Junk => {
                let first = *held.entry(*position).or_insert(*seen);
                if first != *seen {
                    violations.push(format!(
                        "I1: position {position} held {first:?}, then {seen:?}"
                    ));
                }
            }
            Seen::Damaged => {
                violations.push(format!(
                    "I1: position {position} was read as bytes nobody appended"
                ));
            }
            Seen::Trimmed | Seen::Unwritten | Seen::Unknown => {}
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Value;
    use crate::invariants::made_up::{read, sound};

    #[test]
    fn a_position_that_changes_is_found() {
        for second in [Seen::Data(Value(9)), Seen::Junk, Seen::Damaged] {
            let mut history = sound();
            history.push(read(20, 3, second));
            assert_eq!(check(&history).len(), 1, "{second:?}");
        }
    }
}
