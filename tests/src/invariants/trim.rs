//! I7: only what a trim named is trimmed; once a trim was told done, everything below what it achieved is.
//!
//! H23, H24: a trim used a position that nobody had named, or said done and did nothing.

use milonga_wire::Position;

use crate::history::{Call, Operation, Seen, Told};

/// Positions trimmed without a trim, trims that did not trim, and trims that went further than asked.
pub fn check(history: &[Operation]) -> Vec<String> {
    let asked_before = |moment: u64| -> Position {
        let trims = history.iter().filter(|operation| operation.asked < moment);
        let points = trims.filter_map(|operation| match operation.call {
            Call::Trim { to } => Some(to),
            Call::Append { .. } | Call::Read { .. } | Call::ReadStream { .. } | Call::End => None,
        });
        points.max().unwrap_or_default()
    };
    let mut violations = vec![];
    let mut done: Vec<(u64, Position)> = vec![];
    for operation in history {
        let Some((told, Told::Trimmed(point))) = operation.told else {
            continue;
        };
        done.push((told, point));
        let most = asked_before(told);
        if point > most {
            violations.push(format!(
                "I7: a trim achieved {point}, where {most} was the most asked for"
            ));
        }
    }
    for read in history {
        let achieved = done.iter().filter(|(told, _)| *told < read.asked);
        let achieved = achieved.map(|(_, point)| *point).max().unwrap_or_default();
        let most = asked_before(read.told_at());
        for (position, seen) in read.seen() {
            if *seen == Seen::Trimmed && *position >= most {
                violations.push(format!(
                    "I7: position {position} is trimmed, and no trim named it"
                ));
            }
            if *seen != Seen::Trimmed && *position < achieved {
                violations.push(format!(
                    "I7: position {position} lies below a trim to {achieved} and was read as {seen:?}"
                ));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Value;
    use crate::invariants::made_up::{read, trim};

    #[test]
    fn a_trim_that_did_nothing_is_found() {
        let history = [trim(0, 5, 5), read(1, 4, Seen::Data(Value(1)))];
        assert_eq!(check(&history).len(), 1);
    }

    #[test]
    fn what_nobody_trimmed_and_is_gone_is_found() {
        assert_eq!(check(&[read(0, 4, Seen::Trimmed)]).len(), 1);
        assert_eq!(check(&[trim(0, 4, 4), read(1, 4, Seen::Trimmed)]).len(), 1);
        assert_eq!(check(&[trim(0, 4, 9)]).len(), 1);
    }
}
