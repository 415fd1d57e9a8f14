//! I4: positions follow the order in which appends happened.
//!
//! An append that was asked after another was acknowledged lies behind it; the records of one append, and all records of
//! an ordered producer, lie in the order in which they were given.

use std::collections::BTreeMap;

use milonga_wire::Position;

use crate::history::{Call, Operation, Seen, Value};

/// Records in front of what came earlier.
pub fn check(history: &[Operation]) -> Vec<String> {
    let mut violations = real_time(history);
    violations.extend(as_given(history));
    violations
}

fn real_time(history: &[Operation]) -> Vec<String> {
    let mut acknowledged: Vec<(u64, Position)> = history
        .iter()
        .flat_map(Operation::acknowledged)
        .map(|(_, position, told)| (told, position))
        .collect();
    acknowledged.sort_unstable();
    // The highest position acknowledged up to each moment.
    let mut highest = Position::FIRST;
    let highest: Vec<(u64, Position)> = acknowledged
        .into_iter()
        .map(|(told, position)| {
            highest = highest.max(position);
            (told, highest)
        })
        .collect();
    let mut violations = vec![];
    for append in history {
        let before = highest.partition_point(|(told, _)| *told < append.asked);
        let Some((_, earlier)) = before.checked_sub(1).map(|index| highest[index]) else {
            continue;
        };
        for (value, position, _) in append.acknowledged().filter(|(_, at, _)| *at <= earlier) {
            violations.push(format!(
                "I4: {value:?} is at position {position}; a record acknowledged before it was asked for is at {earlier}"
            ));
        }
    }
    violations
}

fn as_given(history: &[Operation]) -> Vec<String> {
    let mut found: BTreeMap<Value, Position> = BTreeMap::new();
    for operation in history {
        found.extend(operation.acknowledged().map(|(value, at, _)| (value, at)));
        for (position, seen) in operation.seen() {
            if let Seen::Data(value) = seen {
                found.insert(*value, *position);
            }
        }
    }
    let mut violations = vec![];
    let mut last: BTreeMap<u64, (Value, Position)> = BTreeMap::new();
    for operation in history {
        let Call::Append {
            producer: Some(producer),
            values,
            ..
        } = &operation.call
        else {
            continue;
        };
        for (value, at) in values
            .iter()
            .filter_map(|value| Some((value, *found.get(value)?)))
        {
            if let Some((earlier, before)) = last.insert(*producer, (*value, at))
                && before >= at
            {
                violations.push(format!(
                    "I4: a producer gave {earlier:?}, then {value:?}; they are at positions {before} and {at}"
                ));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Fate;
    use crate::invariants::made_up::{append, at, ordered, read};

    #[test]
    fn an_append_in_front_of_an_earlier_one_is_found() {
        let history = [append(0, 1, at(5)), append(1, 2, at(4))];
        assert_eq!(check(&history).len(), 1);

        let mut meanwhile = append(1, 2, at(4));
        meanwhile.asked = 0;
        assert_eq!(
            check(&[append(0, 1, at(5)), meanwhile]),
            Vec::<String>::new()
        );
    }

    /// Also where the writer itself was never told where its record is.
    #[test]
    fn a_producers_records_out_of_order_are_found() {
        let history = [
            ordered(0, &[1, 2], &[Fate::Open, Fate::Open]),
            read(1, 3, Seen::Data(Value(2))),
            read(2, 4, Seen::Data(Value(1))),
        ];
        assert_eq!(check(&history).len(), 1);
    }
}
