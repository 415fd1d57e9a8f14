//! I6: what was seen settled stays settled: a position that held a record or junk, or was trimmed, is never again read
//! as unwritten by a read that was asked later. (Unknown is no answer about the log: it takes nothing back.)
//!
//! H40: a unit left behind by a change of layout said "unwritten" of an acknowledged position. What survives one reader
//! and not the next was read before it was durable (H22).

use std::collections::BTreeMap;

use milonga_wire::Position;

use crate::history::{Operation, Seen};

/// Reads that took back what an earlier one had seen.
pub fn check(history: &[Operation]) -> Vec<String> {
    let mut settled: BTreeMap<Position, u64> = BTreeMap::new();
    for read in history {
        for (position, seen) in read.seen() {
            if is_settled(*seen) {
                let first = settled.entry(*position).or_insert(u64::MAX);
                *first = read.told_at().min(*first);
            }
        }
    }
    let mut violations = vec![];
    for read in history {
        for (position, seen) in read.seen() {
            let before = settled.get(position).is_some_and(|told| *told < read.asked);
            if before && *seen == Seen::Unwritten {
                violations.push(format!(
                    "I6: position {position} was settled, then read as {seen:?}"
                ));
            }
        }
    }
    violations
}

fn is_settled(seen: Seen) -> bool {
    match seen {
        Seen::Data(_) | Seen::Damaged | Seen::Junk | Seen::Trimmed => true,
        Seen::Unwritten | Seen::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Value;
    use crate::invariants::made_up::read;

    #[test]
    fn a_position_that_becomes_open_again_is_found() {
        for first in [Seen::Data(Value(1)), Seen::Junk, Seen::Trimmed] {
            let open = Seen::Unwritten;
            assert_eq!(check(&[read(0, 5, first), read(1, 5, open)]).len(), 1);
            assert_eq!(
                check(&[read(0, 5, open), read(1, 5, first)]),
                Vec::<String>::new()
            );
        }
    }
}
