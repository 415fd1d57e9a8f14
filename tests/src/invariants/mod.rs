//! What must hold of every history, one file each: plain functions from what clients saw to what was violated.
//!
//! - I1 A position holds one thing for ever ([`agreement`]).
//! - I2 What was acknowledged is there, until trimmed ([`durability`]).
//! - I3 A record is in the log at most once, and what was proved not to be in it is not ([`exactly_once`]).
//! - I4 Positions follow the order in which appends happened ([`order`]).
//! - I5 The end lies above everything acknowledged or seen before, and never falls for a client ([`end`]).
//! - I6 What was seen settled never becomes unwritten again ([`settled`]).
//! - I7 Only what a trim named is trimmed, and after a trim it is ([`trim`]).
//! - I8 Units of one chain hold the same ([`replicas`]; this one looks at the units, not at a history).
//! - I9 A stream is whole: reads bring all of it, and each record names those before it ([`streams`]).
//! - I10 No position at or above the end holds anything (`scenarios/inspection.rs`: it asks the units of a quiet cluster).
//! - I11 No server has to refuse what no correct client asks for (`sim/network.rs`: it sees every reply).
//! - I12 From layout to layout every position keeps somebody who had it ([`layouts`]: it looks at the layouts decided).
//! - I13 A unit that left every chain does not come back as who it was ([`layouts`]).
//! - I14 Who is listed for a closed range holds all of it (`scenarios/inspection.rs`, when all is quiet and healed; P6).
//!
//! Of objects, [`objects`] holds what clients were told against all changes that a replay found.
//!
//! They judge by real time: an operation that was asked after another was told has to see it. What is open binds nobody.

pub mod agreement;
pub mod durability;
pub mod end;
pub mod exactly_once;
pub mod layouts;
pub mod objects;
pub mod order;
pub mod replicas;
pub mod settled;
pub mod streams;
pub mod trim;

use crate::history::Operation;

/// An invariant: what is wrong with a history, if anything.
pub type Invariant = fn(&[Operation]) -> Vec<String>;

/// All of them.
pub const ALL: [Invariant; 8] = [
    agreement::check,
    durability::check,
    exactly_once::check,
    order::check,
    end::check,
    settled::check,
    streams::check,
    trim::check,
];

/// What violates any of them.
pub fn check(history: &[Operation]) -> Vec<String> {
    ALL.iter()
        .flat_map(|invariant| invariant(history))
        .collect()
}

#[cfg(test)]
pub(crate) mod made_up {
    //! Histories by hand: each operation is asked when the one before was told, unless it says otherwise.

    use milonga_wire::{Position, Span, StreamId, Term};

    use crate::history::{Call, Fate, Operation, Seen, Told, Value};

    fn operation(at: u64, call: Call, told: Told) -> Operation {
        Operation {
            client: 1,
            asked: 2 * at,
            call,
            told: Some((2 * at + 1, told)),
        }
    }

    /// Appends `value` as operation number `at`.
    pub(crate) fn append(at: u64, value: u64, fate: Fate) -> Operation {
        let call = Call::Append {
            producer: None,
            streams: vec![],
            values: vec![Value(value)],
        };
        operation(at, call, Told::Fates(vec![fate]))
    }

    /// Appends by an ordered producer.
    pub(crate) fn ordered(at: u64, values: &[u64], fates: &[Fate]) -> Operation {
        let call = Call::Append {
            producer: Some(1),
            streams: vec![],
            values: values.iter().map(|value| Value(*value)).collect(),
        };
        operation(at, call, Told::Fates(fates.to_vec()))
    }

    /// Appends `value` in stream `a`.
    pub(crate) fn in_stream(at: u64, value: u64, fate: Fate) -> Operation {
        let call = Call::Append {
            producer: None,
            streams: vec![StreamId::of_name("a")],
            values: vec![Value(value)],
        };
        operation(at, call, Told::Fates(vec![fate]))
    }

    /// Reads stream `a` below `end`.
    pub(crate) fn read_stream(at: u64, end: u64, entries: &[(u64, Seen)]) -> Operation {
        let call = Call::ReadStream {
            stream: StreamId::of_name("a"),
            span: Span::new(Position::FIRST, Position(end)),
        };
        let entries = entries.iter().map(|(at, seen)| (Position(*at), *seen));
        operation(at, call, Told::Entries(entries.collect()))
    }

    /// Reads `position`.
    pub(crate) fn read(at: u64, position: u64, seen: Seen) -> Operation {
        let position = Position(position);
        operation(
            at,
            Call::Read { from: position },
            Told::Entries(vec![(position, seen)]),
        )
    }

    /// Asks for the end.
    pub(crate) fn end(at: u64, end: u64) -> Operation {
        let told = Told::End {
            end: Position(end),
            counter: Position(end),
            term: Term(0),
        };
        operation(at, Call::End, told)
    }

    /// Trims.
    pub(crate) fn trim(at: u64, to: u64, achieved: u64) -> Operation {
        let call = Call::Trim { to: Position(to) };
        operation(at, call, Told::Trimmed(Position(achieved)))
    }

    /// The position that a record was acknowledged at.
    pub(crate) fn at(position: u64) -> Fate {
        Fate::At(Position(position))
    }

    /// A history in which nothing is wrong: all of it has to pass every invariant.
    pub(crate) fn sound() -> Vec<Operation> {
        vec![
            end(0, 0),
            read(1, 0, Seen::Unwritten),
            append(2, 1, at(0)),
            ordered(3, &[2, 3], &[at(2), at(3)]),
            read(4, 1, Seen::Junk),
            append(5, 4, Fate::Open),
            append(6, 5, Fate::Nowhere),
            read(7, 0, Seen::Data(Value(1))),
            read(8, 4, Seen::Data(Value(4))),
            end(9, 5),
            trim(10, 2, 2),
            read(11, 0, Seen::Trimmed),
            read(12, 3, Seen::Data(Value(3))),
            read(13, 5, Seen::Unwritten),
            in_stream(14, 6, at(5)),
            read_stream(15, 6, &[(5, Seen::Data(Value(6)))]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A checker that cries wolf is switched off by the second week.
    #[test]
    fn nothing_is_found_where_nothing_is_wrong() {
        assert_eq!(check(&made_up::sound()), Vec::<String>::new());
    }
}
