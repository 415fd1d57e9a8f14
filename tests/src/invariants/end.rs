//! I5: the end lies above every append acknowledged, and every record seen, before it was asked for; a client is never
//! told a lower one than before.
//!
//! H2, H43: a replaced sequencer, or a confirmation that had begun too early, told an old end.

use std::collections::BTreeMap;

use milonga_wire::Position;

use crate::history::{Operation, Seen, Told};

/// Ends that are too low.
pub fn check(history: &[Operation]) -> Vec<String> {
    // What is known to be below the end, by the moment when it is known.
    let mut known: Vec<(u64, Position)> = history
        .iter()
        .flat_map(Operation::acknowledged)
        .map(|(_, position, told)| (told, position))
        .collect();
    for read in history {
        let data = read.seen().iter();
        let data = data.filter(|(_, seen)| matches!(seen, Seen::Data(_)));
        known.extend(data.map(|(position, _)| (read.told_at(), *position)));
    }
    known.sort_unstable();
    let mut violations = vec![];
    let mut last: BTreeMap<u64, (u64, Position)> = BTreeMap::new();
    for operation in history {
        let Some((told, Told::End { end, .. })) = operation.told else {
            continue;
        };
        let before = known.partition_point(|(told, _)| *told < operation.asked);
        let highest = known[..before].iter().map(|(_, position)| *position).max();
        if let Some(position) = highest.filter(|position| *position >= end) {
            violations.push(format!(
                "I5: an end of {end} was told after position {position} was known to hold a record"
            ));
        }
        let (earlier, seen) = last.entry(operation.client).or_insert((told, end));
        if *earlier < operation.asked && *seen > end {
            violations.push(format!(
                "I5: client {} was told an end of {seen}, then of {end}",
                operation.client
            ));
        }
        if end >= *seen {
            (*earlier, *seen) = (told, end);
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Value;
    use crate::invariants::made_up::{append, at, end, read};

    #[test]
    fn an_end_at_or_below_an_acknowledged_append_is_found() {
        assert_eq!(check(&[append(0, 1, at(5)), end(1, 5)]).len(), 1);
        assert_eq!(
            check(&[append(0, 1, at(5)), end(1, 6)]),
            Vec::<String>::new()
        );
        assert_eq!(
            check(&[end(0, 5), append(1, 1, at(5))]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn an_end_below_what_was_read_or_told_is_found() {
        assert_eq!(
            check(&[read(0, 5, Seen::Data(Value(1))), end(1, 2)]).len(),
            1
        );
        assert_eq!(check(&[end(0, 5), end(1, 4)]).len(), 1);
    }
}
