//! Made-up answers that break what the checkers stand for, and sound ones that do not.

use super::*;

const X: Key = (0, 1);
const Y: Key = (1, 1);

fn change(at: u64, key: Key, value: Option<u64>) -> Change {
    let position = Position(at);
    Change {
        position,
        key,
        value,
    }
}

/// At 2 value 1 is written, at 5 values 2 and 3 together, at 8 the first is removed.
fn changes() -> Vec<Change> {
    vec![
        change(2, X, Some(1)),
        change(5, X, Some(2)),
        change(5, Y, Some(3)),
        change(8, X, None),
    ]
}

fn found(value: u64, at: u64) -> Found {
    Some((value, Position(at)))
}

fn operation(at: u64, what: Asked, told: Told) -> Operation {
    Operation {
        client: 1,
        asked: 2 * at,
        what,
        told: Some((2 * at + 1, told)),
    }
}

fn read(at: u64, reads: Reads) -> Operation {
    operation(at, Asked::Read, Told::Found(reads))
}

fn wrote(at: u64, writes: &[(Key, Option<u64>)], mode: Mode, told: Told) -> Operation {
    let what = Asked::Write {
        writes: writes.to_vec(),
        mode,
        once: None,
    };
    operation(at, what, told)
}

fn done(position: u64, reads: Reads) -> Told {
    Told::Done(Position(position), reads)
}

/// All that was written, each told when the one before was.
fn sound() -> Vec<Operation> {
    let serializable = Mode::Serializable;
    vec![
        wrote(0, &[(X, Some(1))], serializable, done(2, vec![])),
        read(1, vec![(X, found(1, 2)), (Y, None)]),
        wrote(
            2,
            &[(X, Some(2)), (Y, Some(3))],
            serializable,
            done(5, vec![(X, found(1, 2))]),
        ),
        read(3, vec![(X, found(2, 5)), (Y, found(3, 5))]),
        wrote(
            4,
            &[(X, None)],
            serializable,
            done(8, vec![(Y, found(3, 5))]),
        ),
        read(5, vec![(X, None)]),
    ]
}

fn violations(history: &[Operation]) -> usize {
    check(&Truth::new(changes()), history, &[]).len()
}

fn with(more: Operation) -> usize {
    let mut history = sound();
    history.push(more);
    violations(&history)
}

#[test]
fn a_sound_history_is_taken_for_one() {
    assert_eq!(
        check(&Truth::new(changes()), &sound(), &[]),
        Vec::<String>::new()
    );
}

/// O4: it was overwritten by what was acknowledged before the read was asked for.
#[test]
fn a_stale_read_is_found_and_one_that_may_be_stale_is_not() {
    let stale = vec![(X, found(1, 2))];
    assert_eq!(with(read(6, stale.clone())), 1);
    let mut meanwhile = read(6, stale.clone());
    meanwhile.asked = 2;
    assert_eq!(with(meanwhile), 0);
    let own_copy = operation(6, Asked::ReadStale, Told::Found(stale));
    assert_eq!(with(own_copy), 0);
}

/// O4: a value that another had read already is not unread.
#[test]
fn a_read_that_goes_back_behind_another_read_is_found() {
    let mut history = sound();
    history.retain(|operation| operation.asked < 4);
    let what = Asked::Write {
        writes: vec![(X, Some(2)), (Y, Some(3))],
        mode: Mode::Serializable,
        once: None,
    };
    history.push(Operation {
        told: None,
        ..operation(2, what, Told::Open)
    });
    history.push(read(3, vec![(Y, found(3, 5))]));
    assert_eq!(violations(&history), 0);
    history.push(read(4, vec![(Y, None)]));
    assert_eq!(violations(&history), 1);
}

/// X1, O8: half of a transaction is no state.
#[test]
fn a_read_of_half_a_transaction_is_found() {
    let mut torn = read(6, vec![(X, found(1, 2)), (Y, found(3, 5))]);
    torn.asked = 2;
    assert_eq!(with(torn.clone()), 1);
    torn.what = Asked::ReadStale;
    assert_eq!(with(torn), 1);
}

/// X3: it read what was overwritten before its own position.
#[test]
fn a_lost_update_is_found() {
    for (mode, expected) in [
        (Mode::Serializable, 1),
        (Mode::Snapshot, 1),
        (Mode::WriteWrite, 1),
    ] {
        let mut history = sound();
        history[2] = wrote(
            2,
            &[(X, Some(2)), (Y, Some(3))],
            mode,
            done(5, vec![(X, None)]),
        );
        history[2].asked = 0;
        assert_eq!(violations(&history), expected, "{mode:?}");
    }
}

/// X3: with weaker isolation, what was only read may have been written since.
#[test]
fn what_was_read_only_is_protected_by_serializable_transactions() {
    for (mode, expected) in [
        (Mode::Serializable, 1),
        (Mode::Snapshot, 0),
        (Mode::WriteWrite, 0),
    ] {
        let mut history = sound();
        history[4] = wrote(4, &[(X, None)], mode, done(8, vec![(Y, None)]));
        history[4].asked = 3;
        assert_eq!(violations(&history), expected, "{mode:?}");
    }
}

/// O8.
#[test]
fn a_transaction_of_which_a_part_took_place_is_found() {
    let mut half = changes();
    half.remove(2);
    assert!(!check(&Truth::new(half.clone()), &sound()[..3], &[]).is_empty());
    let mut open = sound();
    open[2].told = None;
    let open = &open[2..3];
    half.remove(0);
    half.truncate(1);
    assert_eq!(check(&Truth::new(half), open, &[]).len(), 1);
    assert_eq!(check(&Truth::new(vec![]), open, &[]).len(), 0);
}

/// O8: a dirty one.
#[test]
fn what_was_refused_and_took_place_is_found() {
    for told in [Told::Refused(None), Told::Repeated(Position(1))] {
        let mut history = sound();
        history[2].told = Some((5, told));
        assert_eq!(violations(&history), 1);
    }
}

/// O6.
#[test]
fn a_conflict_that_was_none_is_found() {
    let refused = |found| Told::Refused(Some((Position(9), vec![(Y, found)])));
    let asked = |told| wrote(6, &[(Y, Some(9))], Mode::Serializable, told);
    assert_eq!(with(asked(refused(found(3, 5)))), 0);
    assert_eq!(with(asked(refused(None))), 1);
}

/// O9.
#[test]
fn an_idempotency_key_that_counts_twice_is_found() {
    let once = |at: u64, value: u64, told: Told| {
        let what = Asked::Write {
            writes: vec![(X, Some(value))],
            mode: Mode::Serializable,
            once: Some(7),
        };
        operation(at, what, told)
    };
    let truth = Truth::new([change(2, X, Some(1))]);
    let first = once(0, 1, done(2, vec![]));
    let told = |told| check(&truth, &[first.clone(), once(1, 2, told)], &[]).len();
    assert_eq!(told(Told::Repeated(Position(2))), 0);
    assert_eq!(told(Told::Repeated(Position(3))), 1);
    let twice = Truth::new([change(2, X, Some(1)), change(4, X, Some(2))]);
    let second = once(1, 2, done(4, vec![]));
    assert_eq!(check(&twice, &[first, second], &[]).len(), 2);
}

/// O2.
#[test]
fn a_replica_that_differs_is_found() {
    let truth = Truth::new(changes());
    let mut state = Contents::from([(1, (2, Position(5)))]);
    assert_eq!(contents(&truth, 0, Position(8), &state), None);
    assert!(contents(&truth, 0, Position(9), &state).is_some());
    state.insert(1, (2, Position(6)));
    assert!(contents(&truth, 0, Position(8), &state).is_some());
}

/// O3.
#[test]
fn a_watch_that_reorders_repeats_or_leaves_out_is_found() {
    let truth = Truth::new(changes());
    let told = |changes: &[Change], from: u64, caught_up: bool| {
        let watched = Watched {
            map: 0,
            from: Position(from),
            changes: changes.iter().map(|change| (1, change.clone())).collect(),
            caught_up: caught_up.then_some(9),
        };
        watch(&truth, &watched, Position(9)).is_some()
    };
    let all: Vec<Change> = changes().into_iter().filter(|one| one.key == X).collect();
    assert!(!told(&all, 0, true));
    assert!(!told(&all[1..], 3, true));
    assert!(!told(&all[..2], 0, false));
    assert!(told(&all[..2], 0, true));
    assert!(told(&all[1..], 0, false));
    assert!(told(&[all[1].clone(), all[0].clone()], 0, false));
    assert!(told(&[all[0].clone(), all[0].clone()], 0, false));
    assert!(told(&[all[0].clone(), all[2].clone()], 0, false));
    assert!(told(&changes(), 0, false));
    assert!(told(&[change(2, X, Some(7))], 0, false));
}
