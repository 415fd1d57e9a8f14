//! Which layout follows: pure functions from the old layout and what the seals answered.
//!
//! - P1 The open segment starts at the highest of: any sealed unit's end, any trim point, the start of the previous open
//!   segment, the sealed sequencer's counter. Nothing of an older term lies at or above it.
//! - P2 Every unit of the new layout is sealed in its term.
//! - P3 Every chain of the open segment has at least one complete unit.
//! - P4 An open segment in which nothing was written is replaced, not closed; no segment is empty.
//! - P5 Merging closed segments moves no position: width, and number and order of chains and of units are equal.

use std::collections::BTreeMap;

use milonga_wire::{Identity, Incarnation, Layout, Origin, Position, Sealed, Segment, Server};

/// What the servers answered when the term was sealed.
#[derive(Clone, Debug, Default)]
pub struct Seals {
    /// By unit.
    pub units: BTreeMap<Identity, Sealed>,
    /// The sequencer's counter, if it was sealed and had one.
    pub counter: Option<Position>,
}

/// Why there is no next layout.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Units that must be in the next layout were not sealed. They must come back, or be evicted.
    #[error("these log units did not answer: {}; start them again", .0.join(", "))]
    Missing(Vec<String>),
    /// No unit of a chain can vouch for what the chain acknowledged.
    #[error("no unit of the chain {} can vouch for its entries; bring back {}", chain.join(" "), missing.join(", "))]
    NoCompleteUnit {
        /// The chain's units.
        chain: Vec<String>,
        /// Those that must answer.
        missing: Vec<String>,
    },
    /// The layout has as many segments as it may have.
    #[error("the layout has too many segments; trim the log")]
    TooManySegments,
}

/// The next layout for the same servers in new process starts, with `sequencer` issuing positions.
///
/// # Errors
/// [`PlanError`]: nothing may be proposed.
pub fn restarted(
    old: &Layout,
    seals: &Seals,
    sequencer: &Server,
    origin: Origin,
) -> Result<Layout, PlanError> {
    let missing: Vec<String> = old
        .units
        .iter()
        .filter(|unit| !seals.units.contains_key(&unit.identity))
        .map(|unit| unit.name.to_string())
        .collect();
    if !missing.is_empty() {
        return Err(PlanError::Missing(missing));
    }
    complete(old, seals)?;
    let mut next = old.clone();
    next.term = old.term.next();
    next.origin = origin;
    for unit in &mut next.units {
        unit.incarnation = incarnation(&seals.units, unit);
    }
    next.standbys = standbys(old, sequencer);
    next.sequencer = sequencer.clone();
    next.segments = segments(old, start(old, seals))?;
    Ok(next)
}

/// P1.
fn start(old: &Layout, seals: &Seals) -> Position {
    let held = seals
        .units
        .values()
        .flat_map(|sealed| [sealed.end, sealed.trimmed]);
    held.chain([old.open_segment().start])
        .chain(seals.counter)
        .max()
        .unwrap_or(Position::FIRST)
}

/// P4, P5.
fn segments(old: &Layout, start: Position) -> Result<Vec<Segment>, PlanError> {
    let mut closed: Vec<Segment> = vec![];
    for segment in &old.segments {
        let segment = Segment {
            end: Some(segment.end.unwrap_or(start)),
            ..segment.clone()
        };
        match closed.last_mut() {
            Some(last)
                if last.stripe_width == segment.stripe_width && last.chains == segment.chains =>
            {
                last.end = segment.end;
            }
            Some(_) | None if segment.span().is_empty() => {}
            Some(_) | None => closed.push(segment),
        }
    }
    closed.push(Segment {
        start,
        end: None,
        ..old.open_segment().clone()
    });
    if closed.len() > milonga_wire::limits::SEGMENTS_MAX {
        return Err(PlanError::TooManySegments);
    }
    Ok(closed)
}

/// P3. A unit is complete if it ran all the time, if every unit of its chain answered, or if its store shows every batch
/// synced and the cluster trusts that.
fn complete(old: &Layout, seals: &Seals) -> Result<(), PlanError> {
    for chain in &old.open_segment().chains {
        let answered = |unit: &&Identity| seals.units.contains_key(unit);
        let vouches = |unit: &Identity| {
            seals.units.get(unit).is_some_and(|sealed| {
                let ran_on = old
                    .unit(*unit)
                    .is_some_and(|listed| listed.incarnation == sealed.incarnation);
                ran_on || (old.settings.trust_restarted && sealed.synced)
            })
        };
        if chain.units.iter().all(|unit| answered(&unit)) || chain.units.iter().any(vouches) {
            continue;
        }
        let name = |unit: &Identity| {
            old.unit(*unit)
                .map_or_else(|| unit.to_string(), |unit| unit.name.to_string())
        };
        return Err(PlanError::NoCompleteUnit {
            chain: chain.units.iter().map(name).collect(),
            missing: chain
                .units
                .iter()
                .filter(|unit| !answered(unit))
                .map(name)
                .collect(),
        });
    }
    Ok(())
}

fn incarnation(units: &BTreeMap<Identity, Sealed>, unit: &Server) -> Incarnation {
    units
        .get(&unit.identity)
        .map_or(unit.incarnation, |sealed| sealed.incarnation)
}

/// The other sequencers: whoever issues next leaves the standbys, whoever issued joins them at the end.
fn standbys(old: &Layout, sequencer: &Server) -> Vec<Server> {
    let mut standbys: Vec<Server> = old
        .standbys
        .iter()
        .filter(|standby| standby.name != sequencer.name)
        .cloned()
        .collect();
    if old.sequencer.name != sequencer.name {
        standbys.push(old.sequencer.clone());
    }
    standbys
}

#[cfg(test)]
mod tests {
    use milonga_wire::{Chain, ClusterId, Settings, Span, Term};

    use super::*;

    fn server(number: u8) -> Server {
        Server {
            name: format!("s-{number}").parse().unwrap(),
            address: format!("127.0.0.1:{}", 7000 + u16::from(number))
                .parse()
                .unwrap(),
            identity: Identity([number; 16]),
            incarnation: Incarnation(1),
        }
    }

    fn old() -> Layout {
        Layout {
            cluster: ClusterId([9; 16]),
            term: Term(4),
            layout_servers: vec![server(1)],
            sequencer: server(2),
            standbys: vec![server(3)],
            units: vec![server(10), server(11)],
            segments: vec![Segment {
                start: Position::FIRST,
                end: None,
                stripe_width: 4,
                chains: vec![Chain::new(vec![Identity([10; 16]), Identity([11; 16])])],
            }],
            spares: vec![],
            lost: vec![],
            settings: Settings {
                replicas: 2,
                trust_restarted: true,
            },
            origin: Origin::default(),
        }
    }

    fn sealed(number: u8, incarnation: u64, end: u64) -> (Identity, Sealed) {
        let sealed = Sealed {
            identity: Identity([number; 16]),
            incarnation: Incarnation(incarnation),
            end: Position(end),
            trimmed: Position::FIRST,
            member_from: None,
            synced: true,
            settled: Position::FIRST,
            held: vec![],
            announced: None,
        };
        (sealed.identity, sealed)
    }

    fn seals(units: &[(u8, u64, u64)], counter: Option<u64>) -> Seals {
        Seals {
            units: units
                .iter()
                .map(|(n, incarnation, end)| sealed(*n, *incarnation, *end))
                .collect(),
            counter: counter.map(Position),
        }
    }

    fn plan(old: &Layout, seals: &Seals) -> Result<Layout, PlanError> {
        restarted(old, seals, &server(2), Origin::default())
    }

    /// P1; H1: a partial write that only the head holds counts, and so does an empty counter further on.
    #[test]
    fn the_open_segment_starts_above_everything_that_any_server_knows() {
        let next = plan(&old(), &seals(&[(10, 1, 7), (11, 2, 5)], None)).unwrap();
        assert_eq!(next.open_segment().start, Position(7));
        assert_eq!(next.segments[0].span(), Span::new(Position(0), Position(7)));
        let next = plan(&old(), &seals(&[(10, 1, 7), (11, 2, 5)], Some(9))).unwrap();
        assert_eq!(next.open_segment().start, Position(9));
        assert_eq!(next.validate(), Ok(()));
    }

    /// P2.
    #[test]
    fn a_unit_that_was_not_sealed_is_named() {
        assert_eq!(
            plan(&old(), &seals(&[(10, 1, 7)], None)),
            Err(PlanError::Missing(vec!["s-11".to_owned()]))
        );
    }

    /// P4.
    #[test]
    fn an_open_segment_in_which_nothing_was_written_is_replaced() {
        let next = plan(&old(), &seals(&[(10, 2, 0), (11, 2, 0)], None)).unwrap();
        assert_eq!(next.segments.len(), 1);
        assert_eq!(
            next.unit(Identity([10; 16])).unwrap().incarnation,
            Incarnation(2)
        );
        assert_eq!(next.term, Term(5));
    }

    /// P5; H13.
    #[test]
    fn closed_segments_merge_only_if_no_position_moves() {
        let one = plan(&old(), &seals(&[(10, 2, 7), (11, 2, 7)], None)).unwrap();
        let two = plan(&one, &seals(&[(10, 2, 9), (11, 2, 9)], None)).unwrap();
        assert_eq!(two.segments.len(), 2);
        assert_eq!(two.segments[0].span(), Span::new(Position(0), Position(9)));

        let mut turned = one;
        turned.segments[1].chains[0].units.reverse();
        let three = plan(&turned, &seals(&[(10, 2, 9), (11, 2, 9)], None)).unwrap();
        assert_eq!(three.segments.len(), 3);
        assert_eq!(three.validate(), Ok(()));
    }

    #[test]
    fn a_standby_that_takes_over_changes_places() {
        let next = restarted(
            &old(),
            &seals(&[(10, 1, 7), (11, 1, 7)], None),
            &server(3),
            Origin::default(),
        )
        .unwrap();
        assert_eq!(next.sequencer.name, server(3).name);
        assert_eq!(next.standbys, vec![server(2)]);
        assert_eq!(next.validate(), Ok(()));
    }
}
