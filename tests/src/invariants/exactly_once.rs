//! I3: one append yields exactly one entry, however often it is retried.
//!
//! A record whose outcome is open may be in the log or not, but not twice. One that was proved not to be in it is never
//! found. Nothing is found that nobody had asked to append by then.

use std::collections::BTreeMap;

use milonga_wire::Position;

use crate::history::{Call, Fate, Operation, Seen, Told, Value};

/// Records found twice, or where they cannot be.
pub fn check(history: &[Operation]) -> Vec<String> {
    let mut asked: BTreeMap<Value, u64> = BTreeMap::new();
    let mut nowhere: BTreeMap<Value, u64> = BTreeMap::new();
    for operation in history {
        let Call::Append { values, .. } = &operation.call else {
            continue;
        };
        asked.extend(values.iter().map(|value| (*value, operation.asked)));
        if let Some((told, Told::Fates(fates))) = &operation.told {
            let proved = values.iter().zip(fates);
            let proved = proved.filter(|(_, fate)| **fate == Fate::Nowhere);
            nowhere.extend(proved.map(|(value, _)| (*value, *told)));
        }
    }
    let mut violations = vec![];
    let mut found: BTreeMap<Value, Position> = BTreeMap::new();
    let mut find = |value: Value, position: Position| {
        let first = *found.entry(value).or_insert(position);
        (first != position)
            .then(|| format!("I3: {value:?} is at position {first} and at position {position}"))
    };
    for (value, position, _) in history.iter().flat_map(Operation::acknowledged) {
        violations.extend(find(value, position));
    }
    for read in history {
        for (position, seen) in read.seen() {
            let Seen::Data(value) = seen else { continue };
            violations.extend(find(*value, *position));
            if nowhere.contains_key(value) {
                violations.push(format!(
                    "I3: {value:?}, proved not to be in the log, is at position {position}"
                ));
            }
            if asked.get(value).is_none_or(|asked| *asked > read.told_at()) {
                violations.push(format!(
                    "I3: {value:?}, at position {position}, was read before anybody appended it"
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

    /// H41: after a change of term a writer appended again what was in the log already.
    #[test]
    fn a_record_at_two_positions_is_found() {
        let mut history = sound();
        history.push(read(20, 6, Seen::Data(Value(1))));
        assert_eq!(check(&history).len(), 1);
        let twice = [append(0, 7, at(5)), append(1, 7, at(6))];
        assert_eq!(check(&twice).len(), 1);
    }

    #[test]
    fn a_record_that_cannot_be_there_is_found() {
        let history = [
            append(0, 7, Fate::Nowhere),
            read(1, 5, Seen::Data(Value(7))),
        ];
        assert_eq!(check(&history).len(), 1);
        let early = [read(0, 5, Seen::Data(Value(7))), append(1, 7, at(5))];
        assert_eq!(check(&early).len(), 1);
    }
}
