//! I2: an acknowledged record is at its position and readable, until trimmed. Always.
//!
//! Every read of that position that was asked after the acknowledgement has to bring it. I1 compares what different
//! reads saw; this compares reads with what the writer was told.

use std::collections::BTreeMap;

use milonga_wire::Position;

use crate::history::{Operation, Seen, Value};

/// Acknowledged records that a later read did not find, and two records acknowledged at one position.
pub fn check(history: &[Operation]) -> Vec<String> {
    let mut acknowledged: BTreeMap<Position, (Value, u64)> = BTreeMap::new();
    let mut violations = vec![];
    for (value, position, told) in history.iter().flat_map(Operation::acknowledged) {
        if let Some((other, _)) = acknowledged.insert(position, (value, told))
            && other != value
        {
            violations.push(format!(
                "I2: {other:?} and {value:?} were both acknowledged at position {position}"
            ));
        }
    }
    for read in history {
        for (position, seen) in read.seen() {
            let Some((value, told)) = acknowledged.get(position) else {
                continue;
            };
            let wrong = match seen {
                Seen::Data(found) => found != value,
                Seen::Junk => true,
                Seen::Unwritten => *told < read.asked,
                // Trims are asked for; bytes of nobody are I1's; that no unit could tell in time takes nothing back, an
                // audit in calm has to find it.
                Seen::Trimmed | Seen::Damaged | Seen::Unknown => false,
            };
            if wrong {
                violations.push(format!(
                    "I2: {value:?} was acknowledged at position {position}, where {seen:?} was read"
                ));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::made_up::{append, at, read, sound};

    /// H15, H16, H22: the ways in which an acknowledged record was lost, as a reader sees them.
    #[test]
    fn an_acknowledged_record_that_is_gone_is_found() {
        for seen in [Seen::Junk, Seen::Unwritten, Seen::Data(Value(9))] {
            let history = [append(0, 7, at(5)), read(1, 5, seen)];
            assert_eq!(check(&history).len(), 1, "{seen:?}");
        }
    }

    #[test]
    fn two_records_acknowledged_at_one_position_are_found() {
        let mut history = sound();
        history.push(append(20, 9, at(3)));
        assert_eq!(check(&history).len(), 2); // The second, and the read of the first.
    }

    /// A read that was under way when the record was acknowledged may miss it.
    #[test]
    fn a_read_from_before_the_acknowledgement_may_see_nothing() {
        let mut early = read(0, 5, Seen::Unwritten);
        early.told = early.told.map(|(_, told)| (100, told));
        assert_eq!(check(&[early, append(1, 7, at(5))]), Vec::<String>::new());
    }
}
