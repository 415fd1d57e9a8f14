//! Which layout follows: pure functions from the old layout, what is to change, and what the seals answered.
//!
//! - P1 The open segment starts at the highest of: any sealed unit's end, any trim point, the start of the previous open
//!   segment, the sealed sequencer's counter. Nothing of an older term lies at or above it.
//! - P2 Every unit of the new open segment is sealed in its term.
//! - P3 A unit leaves a chain only if another that stays, and was sealed, is complete there.
//! - P4 An open segment in which nothing was written is replaced, not closed; no segment is empty.
//! - P5 Merging closed segments moves no position: width, and number and order of chains and of units are equal.
//! - P6 A unit is listed for a closed segment only if it holds all of it.

use std::collections::{BTreeMap, BTreeSet};

use milonga_wire::{
    Chain, Identity, Incarnation, Layout, Origin, Position, Sealed, Segment, Server, ServerName,
};

/// What the next layout is to change besides the term. What must change anyway (process starts, a sequencer that does not
/// answer) changes in every case.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Change {
    /// Units that leave every chain where they are not needed, and the spares.
    pub leave: BTreeSet<Identity>,
    /// Units that take the place of others in the open segment: who leaves, who comes.
    pub replace: BTreeMap<Identity, Server>,
    /// Units that join the open segment at the end of a chain, by its number.
    pub join: Vec<(usize, Server)>,
    /// Chains that the open segment gets.
    pub chains: Vec<Vec<Server>>,
    /// Chains that the open segment loses, by number.
    pub without: BTreeSet<usize>,
    /// Units that stand ready from now on.
    pub spares: Vec<Server>,
    /// Whether chains below their target take spares.
    pub heal: bool,
    /// Units that hold all of a closed chain and are to be listed there: the segment's start, the chain's number.
    pub list: Vec<(Position, usize, Identity)>,
    /// Positions per stripe of the open segment.
    pub stripe_width: Option<u32>,
    /// Which sequencer issues positions, if it answers.
    pub sequencer: Option<ServerName>,
    /// The layout servers.
    pub layout_servers: Option<Vec<Server>>,
}

/// What the servers answered when the term was sealed.
#[derive(Clone, Debug, Default)]
pub struct Seals {
    /// By unit.
    pub units: BTreeMap<Identity, Sealed>,
    /// The sequencer's counter, if it was sealed and had one.
    pub counter: Option<Position>,
    /// Which units were found to hold every position of a closed chain: the segment's start, the chain's number.
    pub whole: BTreeSet<(Position, usize, Identity)>,
}

/// Why there is no next layout.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Units that must be in the next layout were not sealed.
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
    /// What is asked for makes no sense with this layout.
    #[error("{0}")]
    Refused(String),
    /// The layout has as many segments as it may have.
    #[error("the layout has too many segments; trim the log")]
    TooManySegments,
}

/// The next layout: `old` with `change`, as far as the seals allow, with `sequencer` issuing positions.
///
/// Units that were not sealed leave the open segment; they stay listed where nobody else is complete.
///
/// # Errors
/// [`PlanError`]: nothing may be proposed.
pub fn next(
    old: &Layout,
    change: &Change,
    seals: &Seals,
    sequencer: &Server,
    origin: Origin,
) -> Result<Layout, PlanError> {
    let known = known(old, change);
    let start = start(old, seals);
    let open = open_chains(old, change, seals)?;
    let segments = segments(old, change, seals, start, open)?;
    let named: BTreeSet<Identity> = segments
        .iter()
        .flat_map(|segment| &segment.chains)
        .flat_map(|chain| chain.units.iter().copied())
        .collect();
    let present = |server: &Server| Server {
        incarnation: incarnation(&seals.units, server),
        ..server.clone()
    };
    let units = named.iter().filter_map(|unit| known.get(unit));
    let spares = known.values().filter(|server| {
        let stands_ready = old.spares.iter().chain(&change.spares);
        let mut stands_ready = stands_ready.map(|spare| spare.identity);
        stands_ready.any(|spare| spare == server.identity)
            && !named.contains(&server.identity)
            && !change.leave.contains(&server.identity)
    });
    let mut layout = Layout {
        term: old.term.next(),
        units: units.map(present).collect(),
        spares: spares.map(present).collect(),
        standbys: standbys(old, sequencer),
        sequencer: sequencer.clone(),
        segments,
        origin,
        ..old.clone()
    };
    if let Some(servers) = &change.layout_servers {
        layout.layout_servers.clone_from(servers);
    }
    layout
        .validate()
        .map_err(|invalid| PlanError::Refused(invalid.why))?;
    Ok(layout)
}

/// The log units that the next layout may name: those there are, and those that come.
fn known(old: &Layout, change: &Change) -> BTreeMap<Identity, Server> {
    let new = change.join.iter().map(|(_, unit)| unit);
    old.units
        .iter()
        .chain(&old.spares)
        .chain(change.replace.values())
        .chain(new)
        .chain(change.chains.iter().flatten())
        .chain(&change.spares)
        .map(|server| (server.identity, server.clone()))
        .collect()
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

/// The chains of the next open segment (P2).
fn open_chains(old: &Layout, change: &Change, seals: &Seals) -> Result<Vec<Chain>, PlanError> {
    let is_sealed = |unit: &Identity| seals.units.contains_key(unit);
    let stays = |unit: &Identity| is_sealed(unit) && !change.leave.contains(unit);
    let new = |unit: &Server| {
        let missing = || PlanError::Missing(vec![unit.name.to_string()]);
        is_sealed(&unit.identity)
            .then_some(unit.identity)
            .ok_or_else(missing)
    };
    let mut chains: Vec<Vec<Identity>> = vec![];
    for (number, chain) in old.open_segment().chains.iter().enumerate() {
        if change.without.contains(&number) {
            continue;
        }
        let mut units: Vec<Identity> = vec![];
        for unit in &chain.units {
            match change.replace.get(unit) {
                Some(successor) => units.push(new(successor)?),
                None if stays(unit) => units.push(*unit),
                None => {}
            }
        }
        for (_, unit) in change.join.iter().filter(|(at, _)| *at == number) {
            units.push(new(unit)?);
        }
        chains.push(units);
    }
    for (at, unit) in &change.join {
        if *at >= old.open_segment().chains.len() || change.without.contains(at) {
            let why = format!("there is no chain {at} for {} to join", unit.name);
            return Err(PlanError::Refused(why));
        }
    }
    for chain in &change.chains {
        chains.push(chain.iter().map(new).collect::<Result<_, _>>()?);
    }
    if change.heal {
        take_spares(old, change, &mut chains, stays);
    }
    let names = |units: &[Identity]| units.iter().map(|unit| name(old, *unit)).collect();
    if let Some(empty) = chains.iter().position(Vec::is_empty) {
        let before = &old.open_segment().chains[empty.min(old.open_segment().chains.len() - 1)];
        return Err(PlanError::NoCompleteUnit {
            chain: names(&before.units),
            missing: names(&before.units),
        });
    }
    if chains.is_empty() {
        let why = "a log needs at least one chain".to_owned();
        return Err(PlanError::Refused(why));
    }
    Ok(chains.into_iter().map(Chain::new).collect())
}

/// Gives each chain below its target a spare that was sealed, the shortest first.
fn take_spares(
    old: &Layout,
    change: &Change,
    chains: &mut [Vec<Identity>],
    stays: impl Fn(&Identity) -> bool,
) {
    let ready = old.spares.iter().chain(&change.spares);
    let taken: BTreeSet<Identity> = chains.iter().flatten().copied().collect();
    let ready = ready.map(|spare| spare.identity);
    for spare in ready.filter(|spare| stays(spare) && !taken.contains(spare)) {
        let shortest = chains.iter_mut().min_by_key(|chain| chain.len());
        let Some(chain) = shortest else { return };
        if chain.len() >= usize::from(old.settings.replicas) {
            return;
        }
        chain.push(spare);
    }
}

/// P3 to P6: what is closed, and the open segment behind it.
fn segments(
    old: &Layout,
    change: &Change,
    seals: &Seals,
    start: Position,
    open: Vec<Chain>,
) -> Result<Vec<Segment>, PlanError> {
    let mut segments: Vec<Segment> = vec![];
    for before in &old.segments {
        let was_open = before.end.is_none();
        let mut segment = Segment {
            end: Some(before.end.unwrap_or(start)),
            ..before.clone()
        };
        if segment.span().is_empty() {
            // P4. What nobody wrote to needs nobody to vouch for it, but a unit that did not answer may hold something.
            for chain in &before.chains {
                remaining(old, change, seals, before, chain, None)?;
            }
            continue;
        }
        for (number, chain) in segment.chains.iter_mut().enumerate() {
            let closed = (!was_open).then_some(number);
            *chain = remaining(old, change, seals, before, chain, closed)?;
            let listed = change.list.iter();
            for (_, _, unit) in listed.filter(|(at, of, _)| (*at, *of) == (segment.start, number)) {
                let holds_all = seals.whole.contains(&(segment.start, number, *unit));
                if holds_all && !chain.units.contains(unit) {
                    chain.units.push(*unit);
                }
            }
        }
        match segments.last_mut() {
            Some(last)
                if last.stripe_width == segment.stripe_width && last.chains == segment.chains =>
            {
                last.end = segment.end;
            }
            Some(_) | None => segments.push(segment),
        }
    }
    segments.push(Segment {
        start,
        end: None,
        stripe_width: change
            .stripe_width
            .unwrap_or(old.open_segment().stripe_width),
        chains: open,
    });
    if segments.len() > milonga_wire::limits::SEGMENTS_MAX {
        return Err(PlanError::TooManySegments);
    }
    Ok(segments)
}

/// Who stays listed for what `chain` held in `segment` (P3). `closed` is the chain's number if the segment was closed
/// before: then, where nobody is complete, nobody leaves, and where nobody answered, the chain is out of reach.
fn remaining(
    old: &Layout,
    change: &Change,
    seals: &Seals,
    segment: &Segment,
    chain: &Chain,
    closed: Option<usize>,
) -> Result<Chain, PlanError> {
    let answered = |unit: &Identity| seals.units.contains_key(unit);
    let leaves = |unit: &Identity| change.leave.contains(unit) || change.replace.contains_key(unit);
    let staying: Vec<Identity> = chain
        .units
        .iter()
        .copied()
        .filter(|unit| answered(unit) && !leaves(unit))
        .collect();
    let vouches = |unit: &Identity| {
        let whole =
            closed.is_some_and(|number| seals.whole.contains(&(segment.start, number, *unit)));
        whole || is_complete(old, seals, segment, *unit)
    };
    if staying.len() == chain.units.len() || staying.iter().any(vouches) {
        return Ok(Chain::new(staying));
    }
    let names = |units: &mut dyn Iterator<Item = &Identity>| {
        units.map(|unit| name(old, *unit)).collect::<Vec<_>>()
    };
    // Whoever answered keeps a chain that is short of others from being lost.
    if closed.is_some()
        && !chain
            .units
            .iter()
            .any(|unit| leaves(unit) && answered(unit))
    {
        return Ok(Chain {
            unreachable: !chain.units.iter().any(answered),
            ..chain.clone()
        });
    }
    Err(PlanError::NoCompleteUnit {
        chain: names(&mut chain.units.iter()),
        missing: names(
            &mut chain
                .units
                .iter()
                .filter(|unit| !answered(unit) || leaves(unit)),
        ),
    })
}

/// Whether a unit that was sealed has everything that was acknowledged in `segment`: it was a member all the time and ran on,
/// or its store shows every batch synced and the cluster trusts that.
fn is_complete(old: &Layout, seals: &Seals, segment: &Segment, unit: Identity) -> bool {
    let Some(sealed) = seals.units.get(&unit) else {
        return false;
    };
    let ran_on = old
        .unit(unit)
        .is_some_and(|listed| listed.incarnation == sealed.incarnation);
    let was_member = sealed.member_from.is_some_and(|from| from <= segment.start);
    (ran_on && was_member) || (old.settings.trust_restarted && sealed.synced)
}

fn name(old: &Layout, unit: Identity) -> String {
    old.unit(unit)
        .map_or_else(|| unit.to_string(), |unit| unit.name.to_string())
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
            member_from: (incarnation == 1).then_some(Position::FIRST),
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
            whole: BTreeSet::new(),
        }
    }

    fn plan(old: &Layout, seals: &Seals) -> Result<Layout, PlanError> {
        next(
            old,
            &Change::default(),
            seals,
            &server(2),
            Origin::default(),
        )
    }

    fn changed(old: &Layout, change: &Change, seals: &Seals) -> Result<Layout, PlanError> {
        next(old, change, seals, &server(2), Origin::default())
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

    /// P1: nor below what was trimmed, or below where it started; units that hold nothing there say nothing of it.
    #[test]
    fn the_open_segment_never_starts_lower_or_below_a_trim_point() {
        let mut old = old();
        old.segments[0].end = Some(Position(5));
        let mut open = old.segments[0].clone();
        (open.start, open.end) = (Position(5), None);
        old.segments.push(open);
        let mut answers = seals(&[(10, 1, 0), (11, 1, 0)], None);
        let next = plan(&old, &answers).unwrap();
        assert_eq!(next.open_segment().start, Position(5));

        let one = answers.units.get_mut(&Identity([10; 16])).unwrap();
        one.trimmed = Position(9);
        let next = plan(&old, &answers).unwrap();
        assert_eq!(next.open_segment().start, Position(9));
    }

    fn chain(layout: &Layout, segment: usize) -> Vec<u8> {
        let units = &layout.segments[segment].chains[0].units;
        units.iter().map(|unit| unit.0[0]).collect()
    }

    fn leave(units: &[u8]) -> Change {
        Change {
            leave: units.iter().map(|number| Identity([*number; 16])).collect(),
            heal: true,
            ..Change::default()
        }
    }

    /// P2, P3: a unit that was not sealed is not listed; the others ran on, so they have all that was acknowledged.
    #[test]
    fn a_unit_that_was_not_sealed_leaves() {
        let next = plan(&old(), &seals(&[(10, 1, 7)], None)).unwrap();
        assert_eq!((chain(&next, 0), chain(&next, 1)), (vec![10], vec![10]));
        assert_eq!(next.units.len(), 1);
    }

    /// P3; H36: a unit that was restarted cannot vouch for the chain by itself, unless its disk is trusted.
    #[test]
    fn a_restarted_unit_alone_is_no_survivor_unless_its_store_is_trusted() {
        let mut old = old();
        let mut seals = seals(&[(10, 2, 7)], None);
        assert!(plan(&old, &seals).is_ok());

        old.settings.trust_restarted = false;
        let refused = PlanError::NoCompleteUnit {
            chain: vec!["s-10".to_owned(), "s-11".to_owned()],
            missing: vec!["s-11".to_owned()],
        };
        assert_eq!(plan(&old, &seals), Err(refused.clone()));
        old.settings.trust_restarted = true;
        let torn = seals.units.get_mut(&Identity([10; 16])).unwrap();
        torn.synced = false;
        assert_eq!(plan(&old, &seals), Err(refused));
    }

    /// P3: nothing is left of a chain whose last unit leaves.
    #[test]
    fn the_last_complete_unit_of_a_chain_does_not_leave() {
        let both = seals(&[(10, 1, 7), (11, 1, 7)], None);
        let refused = changed(&old(), &leave(&[10, 11]), &both);
        assert!(matches!(refused, Err(PlanError::NoCompleteUnit { .. })));
        let one = changed(&old(), &leave(&[10]), &both).unwrap();
        assert_eq!((chain(&one, 0), chain(&one, 1)), (vec![11], vec![11]));
    }

    /// A spare takes the place of a unit that leaves in the open segment, where it needs no past (P6).
    #[test]
    fn a_spare_joins_the_open_segment_and_no_closed_one() {
        let mut old = old();
        old.spares = vec![server(12), server(13)];
        let all = seals(&[(11, 1, 7), (12, 4, 0), (13, 4, 0)], None);
        let next = changed(&old, &leave(&[10]), &all).unwrap();
        assert_eq!((chain(&next, 0), chain(&next, 1)), (vec![11], vec![11, 12]));
        assert_eq!(next.spares.len(), 1);
        assert_eq!(
            next.unit(Identity([12; 16])).unwrap().incarnation,
            Incarnation(4)
        );

        let silent = seals(&[(11, 1, 7), (13, 4, 0)], None);
        let next = changed(&old, &leave(&[10]), &silent).unwrap();
        assert_eq!(chain(&next, 1), vec![11, 13]);
    }

    /// P3, and the rule that dropping silent units of a closed range needs one that is complete for it. Model.
    #[test]
    fn a_silent_unit_stays_listed_for_a_closed_range_of_which_nobody_else_is_sure() {
        let mut old = old();
        old.segments[0].end = Some(Position(5));
        old.segments.push(Segment {
            start: Position(5),
            end: None,
            stripe_width: 4,
            chains: vec![Chain::new(vec![Identity([10; 16])])],
        });
        old.settings.trust_restarted = false;
        let mut one = seals(&[(10, 1, 7)], None);
        one.units.get_mut(&Identity([10; 16])).unwrap().member_from = Some(Position(5));
        let next = plan(&old, &one).unwrap();
        assert_eq!(chain(&next, 0), vec![10, 11]);
        assert!(!next.segments[0].chains[0].unreachable);

        one.whole.insert((Position(0), 0, Identity([10; 16])));
        let next = plan(&old, &one).unwrap();
        assert_eq!(chain(&next, 0), vec![10]);

        // Somebody who leaves by hand, and is needed, is named.
        one.whole.clear();
        let mut both = one.clone();
        both.units.extend([sealed(11, 1, 5)]);
        let refused = changed(&old, &leave(&[11]), &both);
        assert!(matches!(refused, Err(PlanError::NoCompleteUnit { .. })));
    }

    /// A closed chain of which nobody answers is out of reach, and stays listed until somebody comes back.
    #[test]
    fn a_closed_chain_of_which_nobody_answers_is_out_of_reach() {
        let mut old = old();
        old.segments[0].end = Some(Position(5));
        old.units.push(server(12));
        old.segments.push(Segment {
            start: Position(5),
            end: None,
            stripe_width: 4,
            chains: vec![Chain::new(vec![Identity([12; 16])])],
        });
        let next = plan(&old, &seals(&[(12, 1, 7)], None)).unwrap();
        assert!(next.segments[0].chains[0].unreachable);
        let back = plan(&next, &seals(&[(10, 2, 5), (12, 1, 7)], None)).unwrap();
        assert!(!back.segments[0].chains[0].unreachable);
        assert_eq!(chain(&back, 0), vec![10]);
    }

    /// P6.
    #[test]
    fn a_unit_is_listed_for_a_closed_range_only_if_it_was_found_to_hold_all_of_it() {
        let mut old = old();
        old.segments[0].end = Some(Position(5));
        old.units.push(server(12));
        let mut open = old.segments[0].clone();
        (open.start, open.end) = (Position(5), None);
        open.chains[0].units.push(Identity([12; 16]));
        old.segments.push(open);
        let listed = Change {
            list: vec![(Position(0), 0, Identity([12; 16]))],
            ..Change::default()
        };
        let mut all = seals(&[(10, 1, 7), (11, 1, 7), (12, 1, 7)], None);
        let next = changed(&old, &listed, &all).unwrap();
        assert_eq!(chain(&next, 0), vec![10, 11]);

        all.whole.insert((Position(0), 0, Identity([12; 16])));
        let next = changed(&old, &listed, &all).unwrap();
        assert_eq!(chain(&next, 0), vec![10, 11, 12]);
        assert_eq!(next.segments.len(), 2, "P5: now they are one");
    }

    /// Each planned change, on its own.
    #[test]
    fn chains_units_and_widths_change_in_the_open_segment_only() {
        let old = old();
        let all = seals(&[(10, 1, 7), (11, 1, 7), (12, 1, 0), (13, 1, 0)], None);
        let identity = |number: u8| Identity([number; 16]);
        let change = Change {
            replace: BTreeMap::from([(identity(11), server(12))]),
            chains: vec![vec![server(13)]],
            stripe_width: Some(8),
            ..Change::default()
        };
        let next = changed(&old, &change, &all).unwrap();
        assert_eq!((chain(&next, 0), chain(&next, 1)), (vec![10], vec![10, 12]));
        assert_eq!(next.segments[1].chains.len(), 2);
        assert_eq!(next.segments[1].stripe_width, 8);

        let join = Change {
            join: vec![(0, server(12))],
            ..Change::default()
        };
        assert_eq!(
            chain(&changed(&old, &join, &all).unwrap(), 1),
            vec![10, 11, 12]
        );
        let unsealed = seals(&[(10, 1, 7), (11, 1, 7)], None);
        assert!(matches!(
            changed(&old, &join, &unsealed),
            Err(PlanError::Missing(_))
        ));
        let nowhere = Change {
            join: vec![(3, server(12))],
            ..Change::default()
        };
        assert!(matches!(
            changed(&old, &nowhere, &all),
            Err(PlanError::Refused(_))
        ));
        let none = Change {
            without: BTreeSet::from([0]),
            ..Change::default()
        };
        assert!(matches!(
            changed(&old, &none, &all),
            Err(PlanError::Refused(_))
        ));
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
        let next = next(
            &old(),
            &Change::default(),
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
