//! I8: no two units of a chain hold different things at one position: below the head, a position holds what the head
//! holds, byte for byte, or nothing.
//!
//! The one invariant that looks behind the clients, at the units themselves: what no client has read yet may be wrong
//! already (H13, H28).

use std::collections::BTreeMap;

use milonga_wire::{Answer, EntryHead, Payload, Position, ServerName, Term};

/// What one unit holds at one position.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Held {
    /// A record, with its bytes.
    Data(EntryHead, Payload),
    /// Junk.
    Junk(Term),
}

/// What the units of a cluster hold, by position and unit; what a unit lacks or has trimmed does not stand here.
pub type Replicas = BTreeMap<Position, Vec<(ServerName, Held)>>;

/// Adds a unit's answers to a read, with the payload behind them.
pub fn add(replicas: &mut Replicas, unit: &ServerName, answers: &[Answer], mut payload: Payload) {
    for answer in answers {
        let (span, held) = match answer {
            Answer::Data(head) => {
                let bytes = payload.split_to(head.len as usize);
                (answer.span(), Held::Data(head.clone(), bytes))
            }
            Answer::Junk { span, term } => (*span, Held::Junk(*term)),
            Answer::Trimmed(_) | Answer::Unwritten(_) | Answer::Unknown(_) | Answer::Damaged(_) => {
                continue;
            }
        };
        for position in span.positions() {
            let units = replicas.entry(position).or_default();
            units.push((unit.clone(), held.clone()));
        }
    }
}

/// Positions that two units hold differently.
pub fn check(replicas: &Replicas) -> Vec<String> {
    let mut violations = vec![];
    for (position, units) in replicas {
        for pair in units.windows(2) {
            let [(one, held), (other, differently)] = pair else {
                continue;
            };
            if held != differently {
                violations.push(format!(
                    "I8: at position {position} {one} holds {held:?}, {other} {differently:?}"
                ));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use milonga_wire::{Session, Span, Stamp};

    use super::*;

    fn data(position: u64, request: u64, len: u32) -> Answer {
        Answer::Data(EntryHead {
            position: Position(position),
            term: Term(0),
            stamp: Stamp {
                session: Session([1; 16]),
                request,
                record: 0,
            },
            streams: vec![],
            len,
        })
    }

    fn replicas(units: [(&[Answer], &[u8]); 2]) -> Replicas {
        let mut replicas = Replicas::new();
        for (number, (answers, bytes)) in units.iter().enumerate() {
            let unit = format!("u-{number}").parse().unwrap();
            add(&mut replicas, &unit, answers, Payload::from(bytes.to_vec()));
        }
        replicas
    }

    #[test]
    fn units_that_hold_different_things_are_found() {
        let junk = Answer::Junk {
            span: Span::new(Position(4), Position(6)),
            term: Term(1),
        };
        let both = [data(3, 1, 2), junk.clone()];
        let less = [data(3, 1, 2)];
        let found = |one: (&[Answer], &[u8]), other: (&[Answer], &[u8])| {
            check(&replicas([one, other])).len()
        };

        assert_eq!(found((&both, b"ab"), (&both, b"ab")), 0);
        assert_eq!(found((&both, b"ab"), (&less, b"ab")), 0);
        assert_eq!(found((&both, b"ab"), (&less, b"ax")), 1);
        assert_eq!(found((&both, b"ab"), (&[data(3, 2, 2)], b"ab")), 1);
        assert_eq!(found((&both, b"ab"), (&[data(5, 2, 2)], b"ab")), 1);
    }
}
