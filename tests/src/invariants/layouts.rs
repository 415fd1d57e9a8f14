//! I12: from one layout to the next no position moves to units that have nothing of it. I13: who left every chain does not
//! come back as who it was.
//!
//! What is closed stays on the chain where it was written: from term to term some unit stays listed for it, whatever joins
//! or leaves, and where the open segment starts never falls. H7, H13, H14. Source: CORFU (NSDI '12), "Mapping in CORFU".

use std::collections::{BTreeMap, BTreeSet};

use milonga_wire::{Decided, Identity, Layout, Position, Term};

/// What is wrong with the layouts of consecutive terms.
pub fn check(history: &[Decided]) -> Vec<String> {
    let mut violations = vec![];
    let mut left: BTreeMap<Identity, Term> = BTreeMap::new();
    for pair in history.windows(2) {
        let (old, new) = (&pair[0].layout, &pair[1].layout);
        let term = new.term;
        if term != old.term.next() {
            violations.push(format!(
                "I12: no layout is known between terms {} and {term}",
                old.term
            ));
            continue;
        }
        if let Err(invalid) = pair[1].check(old) {
            violations.push(format!("I12: {invalid}"));
        }
        if new.open_segment().start < old.open_segment().start {
            violations.push(format!(
                "I12: the open segment of term {term} starts below the one before"
            ));
        }
        violations.extend(moved(old, new).map(|position| {
            format!("I12: in term {term} nobody who had position {position} is listed for it")
        }));
        let listed = listed(new);
        for (unit, since) in &left {
            if listed.contains(unit) {
                violations.push(format!(
                    "I13: {unit}, gone since term {since}, is back in term {term}"
                ));
            }
        }
        left.extend(
            self::listed(old)
                .difference(&listed)
                .map(|unit| (*unit, term)),
        );
    }
    violations
}

/// The first positions of pieces below the open segment of `new` for which nobody listed in `old` stays listed.
fn moved(old: &Layout, new: &Layout) -> impl Iterator<Item = Position> {
    let below = (0..new.open_segment().start.0).map(Position);
    below.filter(|position| {
        let before = &old.chain_of(*position).0.units;
        let after = &new.chain_of(*position).0.units;
        !after.iter().any(|unit| before.contains(unit))
    })
}

fn listed(layout: &Layout) -> BTreeSet<Identity> {
    let chains = layout.segments.iter().flat_map(|segment| &segment.chains);
    chains
        .flat_map(|chain| chain.units.iter().copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use milonga_wire::{
        Acceptance, Chain, ClusterId, Incarnation, Origin, Rank, Segment, Server, Settings,
    };

    use super::*;

    fn server(number: u8) -> Server {
        Server {
            name: format!("s-{number}").parse().unwrap(),
            address: format!("s-{number}:7000").parse().unwrap(),
            identity: Identity([number; 16]),
            incarnation: Incarnation(1),
        }
    }

    /// Segments by where they start, each with its chains.
    fn decided(term: u64, segments: &[(u64, &[&[u8]])]) -> Decided {
        let ends = segments
            .iter()
            .skip(1)
            .map(|(start, _)| Some(Position(*start)));
        let each = segments.iter().zip(ends.chain([None]));
        let segments: Vec<Segment> = each
            .map(|((start, chains), end)| Segment {
                start: Position(*start),
                end,
                stripe_width: 1,
                chains: chains
                    .iter()
                    .map(|units| {
                        Chain::new(units.iter().map(|unit| Identity([*unit; 16])).collect())
                    })
                    .collect(),
            })
            .collect();
        let named: BTreeSet<u8> = segments
            .iter()
            .flat_map(|segment| &segment.chains)
            .flat_map(|chain| chain.units.iter().map(|unit| unit.0[0]))
            .collect();
        let layout = Layout {
            cluster: ClusterId([9; 16]),
            term: Term(term),
            layout_servers: vec![server(200)],
            sequencer: server(201),
            standbys: vec![],
            units: named.into_iter().map(server).collect(),
            segments,
            spares: vec![],
            lost: vec![],
            left: vec![],
            settings: Settings {
                replicas: 2,
                trust_restarted: true,
            },
            origin: Origin::default(),
        };
        let acceptances = vec![Acceptance {
            server: Identity([200; 16]),
            rank: Rank::default(),
        }];
        Decided {
            layout,
            acceptances,
        }
    }

    #[test]
    fn units_that_leave_and_join_move_nothing() {
        let history = [
            decided(0, &[(0, &[&[1, 2]])]),
            decided(1, &[(0, &[&[2]]), (5, &[&[2, 3]])]),
            decided(2, &[(0, &[&[2, 3]]), (9, &[&[3, 2], &[4]])]),
        ];
        assert_eq!(check(&history), Vec::<String>::new());
    }

    /// H13: the stripes of a closed range are those it was written with.
    #[test]
    fn a_position_that_moves_is_found() {
        let two = decided(0, &[(0, &[&[1], &[2]])]);
        let turned = decided(1, &[(0, &[&[2], &[1]]), (2, &[&[1]])]);
        assert_eq!(check(&[two.clone(), turned]).len(), 2);
        let one = decided(1, &[(0, &[&[1]]), (4, &[&[1]])]);
        assert_eq!(check(&[two, one]).len(), 2 + 2 - 2);
    }

    /// H7, H14.
    #[test]
    fn a_unit_that_comes_back_is_found() {
        let history = [
            decided(0, &[(0, &[&[1, 2]])]),
            decided(1, &[(0, &[&[2]]), (5, &[&[2]])]),
            decided(2, &[(0, &[&[2]]), (9, &[&[2, 1]])]),
        ];
        assert_eq!(check(&history).len(), 1);
        assert_eq!(
            check(&[history[0].clone(), history[2].clone()]).len(),
            1,
            "a gap"
        );
    }

    #[test]
    fn an_open_segment_that_starts_lower_is_found() {
        let history = [
            decided(0, &[(0, &[&[1]]), (5, &[&[1]])]),
            decided(1, &[(0, &[&[1]]), (3, &[&[1]])]),
        ];
        assert_eq!(check(&history).len(), 1);
    }
}
