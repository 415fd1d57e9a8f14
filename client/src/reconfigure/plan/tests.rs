//! Each planned change on its own, and what no change may do.

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
        left: vec![],
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
        damaged: BTreeSet::new(),
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

/// P8: what a unit held while its chain went on without it would be read, though nobody acknowledged it.
#[test]
fn only_who_holds_nothing_comes_into_the_open_segment() {
    let mut old = old();
    old.spares = vec![server(12), server(13)];
    let join = Change {
        join: vec![(0, server(12))],
        ..Change::default()
    };
    let all = |held| seals(&[(10, 1, 7), (11, 1, 7), (12, 1, held), (13, 1, 0)], None);
    assert!(changed(&old, &join, &all(0)).is_ok());
    let refused = PlanError::NotEmpty("s-12".to_owned());
    assert_eq!(changed(&old, &join, &all(3)), Err(refused));

    let healed = changed(&old, &leave(&[10]), &all(3)).unwrap();
    assert_eq!(chain(&healed, 1), vec![11, 13]);
}

/// P9: by hand, nobody who answers leaves while those who stay know of damage; but one that is gone does.
#[test]
fn who_answers_does_not_leave_to_whom_knows_of_damage() {
    let mut both = seals(&[(10, 1, 7), (11, 1, 7)], None);
    both.damaged.insert(Identity([11; 16]));
    let refused = PlanError::Damaged {
        leaves: "s-10".to_owned(),
        damaged: "s-11".to_owned(),
    };
    assert_eq!(changed(&old(), &leave(&[10]), &both), Err(refused));
    assert!(changed(&old(), &leave(&[11]), &both).is_ok());
    let forced = Change {
        force: BTreeSet::from([Identity([10; 16])]),
        ..leave(&[10])
    };
    assert!(changed(&old(), &forced, &both).is_ok());

    both.units.remove(&Identity([10; 16]));
    assert!(changed(&old(), &leave(&[10]), &both).is_ok());
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

fn forced(units: &[u8]) -> Change {
    let leaving = leave(units);
    Change {
        force: leaving.leave.clone(),
        ..leaving
    }
}

/// A chain of one, closed at 10, and another unit that takes what is new.
fn moved_on() -> Layout {
    let mut old = old();
    old.segments[0].end = Some(Position(10));
    old.segments[0].chains = vec![Chain::new(vec![Identity([10; 16])])];
    old.segments.push(Segment {
        start: Position(10),
        end: None,
        stripe_width: 4,
        chains: vec![Chain::new(vec![Identity([11; 16])])],
    });
    old
}

/// P7: what only the forced unit is sure to hold is recorded; what others hold as well is not.
#[test]
fn what_is_given_up_by_force_is_recorded_and_nothing_else_is() {
    let both = seals(&[(10, 1, 7), (11, 1, 7)], None);
    let none_lost = changed(&old(), &forced(&[10]), &both).unwrap();
    assert_eq!((chain(&none_lost, 0), none_lost.lost), (vec![11], vec![]));

    let mut torn = seals(&[(11, 2, 7)], None);
    torn.units.get_mut(&Identity([11; 16])).unwrap().synced = false;
    assert!(changed(&old(), &leave(&[10]), &torn).is_err());
    let gave_up = changed(&old(), &forced(&[10]), &torn).unwrap();
    assert_eq!(gave_up.lost, [Span::new(Position(0), Position(7))]);

    let alone = seals(&[(11, 1, 12)], None);
    let kept = changed(&moved_on(), &leave(&[10]), &alone).unwrap();
    assert!(
        kept.segments[0].chains[0].unreachable,
        "without force it waits"
    );
    let taken_over = changed(&moved_on(), &forced(&[10]), &alone).unwrap();
    assert_eq!(
        chain(&taken_over, 0),
        vec![11],
        "somebody must answer there"
    );
    assert_eq!(taken_over.lost, [Span::new(Position(0), Position(10))]);
    assert_eq!(taken_over.units.len(), 1);
}

/// P7: another unit than the forced one that is missing is still waited for.
#[test]
fn force_gives_up_no_other_unit() {
    let mut torn = seals(&[(11, 2, 7)], None);
    torn.units.get_mut(&Identity([11; 16])).unwrap().synced = false;
    assert!(changed(&old(), &forced(&[11]), &torn).is_err());
    let mut both = moved_on();
    both.segments[0].chains[0].units.push(Identity([12; 16]));
    both.units.push(server(12));
    let next = changed(&both, &forced(&[10]), &seals(&[(11, 1, 12)], None)).unwrap();
    assert_eq!((chain(&next, 0), next.lost), (vec![12], vec![]));
    assert!(next.segments[0].chains[0].unreachable);
}

/// P7: a declared span is cut out; beside it everything stays as it was, and what was declared stays declared.
#[test]
fn a_span_declared_lost_is_cut_out_and_nothing_beside_it_is_given_up() {
    let declared = Change {
        lost: vec![Span::new(Position(3), Position(6))],
        ..Change::default()
    };
    let alone = seals(&[(11, 1, 12)], None);
    let next = changed(&moved_on(), &declared, &alone).unwrap();
    let closed: Vec<(u64, Vec<u8>, bool)> = (0..3)
        .map(|segment| {
            let one = &next.segments[segment];
            (
                one.start.0,
                chain(&next, segment),
                one.chains[0].unreachable,
            )
        })
        .collect();
    let expected = [
        (0, vec![10], true),
        (3, vec![11], false),
        (6, vec![10], true),
    ];
    assert_eq!(closed, expected);
    assert_eq!(next.lost, declared.lost);
    assert_eq!(next.validate(), Ok(()));

    // Where everybody answers nobody is left out, and nothing is cut in the end.
    let all = seals(&[(10, 1, 10), (11, 1, 12)], None);
    let same = changed(&moved_on(), &declared, &all).unwrap();
    assert_eq!(same.segments.len(), 3);
    assert_eq!(
        (chain(&same, 0), same.lost),
        (vec![10], declared.lost.clone())
    );
    let more = Change {
        lost: vec![Span::new(Position(5), Position(90))],
        ..Change::default()
    };
    let more = changed(&next, &more, &alone).unwrap();
    assert_eq!(more.lost, [Span::new(Position(3), Position(12))]);
    let beyond = Change {
        lost: vec![Span::new(Position(50), Position(90))],
        ..Change::default()
    };
    assert!(matches!(
        changed(&old(), &beyond, &all),
        Err(PlanError::Refused(_))
    ));
}

/// Design 7.5: who stands by is a matter of the layout alone.
#[test]
fn standbys_come_and_go_and_settings_change() {
    let all = seals(&[(10, 1, 7), (11, 1, 7)], None);
    let change = Change {
        standbys: vec![server(5)],
        retire: BTreeSet::from([server(3).name]),
        replicas: Some(3),
        trust_restarted: Some(false),
        layout_servers: Some(vec![server(1), server(6), server(7)]),
        ..Change::default()
    };
    let next = changed(&old(), &change, &all).unwrap();
    assert_eq!(next.standbys, vec![server(5)]);
    assert_eq!(next.layout_servers.len(), 3);
    let settings = (next.settings.replicas, next.settings.trust_restarted);
    assert_eq!(settings, (3, false));
}
