//! I9: a stream is whole. Who reads it is brought every record of it that was known before, and no other; and of two
//! records of a stream the later names the earlier among those before it, or says that it does not know.
//!
//! H4, H6, H39: a sequencer that started with other tails than the units hold, or issued again what was in flight, leaves
//! records that no backpointer leads to. Source: Tango (SOSP '13), "Streaming CORFU".

use std::collections::BTreeMap;

use milonga_wire::limits::BACKPOINTERS;
use milonga_wire::{Before, Position, StreamId};

use crate::history::{Call, Links, Operation, Seen, Told, Value};

/// What reads of streams left out or brought in excess.
pub fn check(history: &[Operation]) -> Vec<String> {
    let mut streams: BTreeMap<Value, &[StreamId]> = BTreeMap::new();
    for operation in history {
        if let Call::Append {
            streams: of,
            values,
            ..
        } = &operation.call
        {
            streams.extend(values.iter().map(|value| (*value, of.as_slice())));
        }
    }
    let belongs = |value: Value, stream: StreamId| {
        let of = streams.get(&value).copied().unwrap_or_default();
        of.contains(&stream)
    };
    let known = known(history);
    let mut violations = vec![];
    for read in history {
        let Call::ReadStream { stream, span } = &read.call else {
            continue;
        };
        let Some((told, Told::Entries(entries))) = &read.told else {
            continue;
        };
        for (position, seen) in entries {
            if let Seen::Data(value) = seen
                && !belongs(*value, *stream)
            {
                violations.push(format!(
                    "I9: a read of stream {stream} brought {value:?} at position {position}, which is not of it"
                ));
            }
        }
        if entries.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
            violations.push(format!("I9: stream {stream} was read out of order"));
        }
        let brought: BTreeMap<Position, Seen> = entries.iter().copied().collect();
        let trimmed = trimmed(history, *told);
        for (position, (value, since)) in known.range(span.start..span.end) {
            let wanted = *since < read.asked && belongs(*value, *stream);
            // One entry tells of all that was trimmed between it and the next.
            let gap = brought.range(..=*position).next_back();
            let gap = gap.is_some_and(|(_, seen)| *seen == Seen::Trimmed);
            let excused = brought.contains_key(position) || gap && *position < trimmed;
            if wanted && !excused {
                violations.push(format!(
                    "I9: a read of stream {stream} left out {value:?} at position {position}"
                ));
            }
        }
    }
    violations
}

/// Where which record is, and since when that is known to somebody.
fn known(history: &[Operation]) -> BTreeMap<Position, (Value, u64)> {
    let mut known: BTreeMap<Position, (Value, u64)> = BTreeMap::new();
    let mut learn = |position: Position, value: Value, told: u64| {
        let (_, since) = known.entry(position).or_insert((value, told));
        *since = told.min(*since);
    };
    for operation in history {
        for (value, position, told) in operation.acknowledged() {
            learn(position, value, told);
        }
        for (position, seen) in operation.seen() {
            if let Seen::Data(value) = seen {
                learn(*position, *value, operation.told_at());
            }
        }
    }
    known
}

/// How far anybody had asked to trim before `moment`.
fn trimmed(history: &[Operation], moment: u64) -> Position {
    let asked = history.iter().filter(|operation| operation.asked < moment);
    let points = asked.filter_map(|operation| match operation.call {
        Call::Trim { to } => Some(to),
        Call::Append { .. } | Call::Read { .. } | Call::ReadStream { .. } | Call::End => None,
    });
    points.max().unwrap_or_default()
}

/// Records that an earlier record of their stream is missing in.
pub fn check_links(links: &Links) -> Vec<String> {
    let mut streams: BTreeMap<StreamId, Vec<Position>> = BTreeMap::new();
    let mut violations = vec![];
    for (position, of) in links {
        for link in of {
            let earlier = streams.entry(link.stream).or_default();
            if let Before::Known(before) = &link.before {
                let reaches = match before.iter().min() {
                    Some(oldest) if before.len() >= BACKPOINTERS => *oldest,
                    Some(_) | None => Position::FIRST,
                };
                let expected = earlier.iter().rev().take_while(|at| **at >= reaches);
                for missing in expected.filter(|at| !before.contains(at)) {
                    violations.push(format!(
                        "I9: the record at position {position} names {before:?} before it in stream {}, and not {missing}",
                        link.stream
                    ));
                }
            }
            earlier.push(*position);
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use milonga_wire::StreamLink;

    use super::*;
    use crate::invariants::made_up::{at, in_stream, read_stream, trim};

    #[test]
    fn a_record_that_a_stream_lacks_is_found() {
        let append = in_stream(0, 1, at(3));
        let whole = read_stream(1, 9, &[(3, Seen::Data(Value(1)))]);
        assert_eq!(check(&[append.clone(), whole]), Vec::<String>::new());
        assert_eq!(check(&[append.clone(), read_stream(1, 9, &[])]).len(), 1);
        // What lies behind the part that was asked for is not missing, nor what was appended later.
        assert_eq!(
            check(&[append, read_stream(1, 3, &[])]),
            Vec::<String>::new()
        );
        assert_eq!(
            check(&[read_stream(0, 9, &[]), in_stream(1, 1, at(3))]),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_record_of_another_stream_or_out_of_order_is_found() {
        let others = crate::invariants::made_up::append(0, 2, at(4));
        let read = read_stream(1, 9, &[(4, Seen::Data(Value(2)))]);
        assert_eq!(check(&[others, read]).len(), 1);

        let both = [(4, Seen::Junk), (3, Seen::Junk)];
        assert_eq!(check(&[read_stream(1, 9, &both)]).len(), 1);
    }

    /// A gap that a trim left has to be told, at its start.
    #[test]
    fn a_trimmed_record_is_missing_unless_the_gap_is_told() {
        let history = |entries: &[(u64, Seen)]| {
            vec![
                in_stream(0, 1, at(3)),
                trim(1, 4, 4),
                read_stream(2, 9, entries),
            ]
        };
        assert_eq!(check(&history(&[(0, Seen::Trimmed)])), Vec::<String>::new());
        assert_eq!(check(&history(&[])).len(), 1);
        let passed = [(0, Seen::Trimmed), (2, Seen::Junk)];
        assert_eq!(check(&history(&passed)).len(), 1);
    }

    #[test]
    fn a_backpointer_that_skips_a_record_is_found() {
        let links = |before: &[&[u64]]| -> Links {
            let linked = before.iter().enumerate().map(|(index, before)| {
                let before = before.iter().map(|at| Position(*at)).collect();
                let link = StreamLink {
                    stream: StreamId::of_name("a"),
                    before: Before::Known(before),
                };
                (Position(10 * index as u64), vec![link])
            });
            linked.collect()
        };
        assert_eq!(
            check_links(&links(&[&[], &[0], &[15, 10, 0]])),
            Vec::<String>::new()
        );
        // Four in all: what lies before the oldest of them is that one's to name.
        assert_eq!(
            check_links(&links(&[&[], &[0], &[18, 17, 15, 10]])),
            Vec::<String>::new()
        );
        assert_eq!(check_links(&links(&[&[], &[0], &[]])).len(), 2);
        assert_eq!(check_links(&links(&[&[], &[0], &[10]])).len(), 1);

        let mut unknown = links(&[&[], &[0], &[]]);
        unknown.entry(Position(20)).or_default()[0].before = Before::Unknown;
        assert_eq!(check_links(&unknown), Vec::<String>::new());
    }
}
