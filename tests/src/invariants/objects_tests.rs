//! Made-up answers that break what the checkers stand for, and sound ones that do not.

use super::*;

const X: Key = (0, 1);
const Y: Key = (1, 1);

fn change(at: u64, key: Key, value: Value) -> Change {
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

fn wrote(at: u64, writes: &[(Key, Value)], mode: Mode, told: Told) -> Operation {
    let what = Asked::Write {
        writes: writes.to_vec(),
        mode,
        once: None,
    };
    operation(at, what, told)
}

fn wrote_once(at: u64, writes: &[(Key, Value)], told: Told) -> Operation {
    let what = Asked::Write {
        writes: writes.to_vec(),
        mode: Mode::Serializable,
        once: Some(7),
    };
    operation(at, what, told)
}

fn done(position: u64, reads: Reads) -> Told {
    Told::Done(Position(position), reads)
}

const BOTH: [(Key, Value); 2] = [(X, Some(2)), (Y, Some(3))];

/// All that was written, each asked for when the one before was told.
fn sound() -> Vec<Operation> {
    let serializable = Mode::Serializable;
    vec![
        wrote(0, &[(X, Some(1))], serializable, done(2, vec![])),
        read(1, vec![(X, Some((1, Position(2)))), (Y, None)]),
        wrote(
            2,
            &BOTH,
            serializable,
            done(5, vec![(X, Some((1, Position(2))))]),
        ),
        read(
            3,
            vec![(X, Some((2, Position(5)))), (Y, Some((3, Position(5))))],
        ),
        wrote(
            4,
            &[(X, None)],
            serializable,
            done(8, vec![(Y, Some((3, Position(5))))]),
        ),
        read(5, vec![(X, None)]),
    ]
}

/// What each violation is of.
fn broken_in(changes: &[Change], history: &[Operation]) -> Vec<String> {
    let found = check(&Truth::new(changes.to_vec()), history, &[]);
    found.into_iter().map(|text| text[..2].to_owned()).collect()
}

fn broken(history: &[Operation]) -> Vec<String> {
    broken_in(&changes(), history)
}

fn with(more: Operation) -> Vec<String> {
    let mut history = sound();
    history.push(more);
    broken(&history)
}

/// The sound history, but that the one who asked for this as number `number` was told otherwise.
fn told(number: usize, told: Told) -> Vec<Operation> {
    let mut history = sound();
    history[number].told = Some((2 * number as u64 + 1, told));
    history
}

const NOTHING: [&str; 0] = [];

#[test]
fn a_sound_history_is_taken_for_one() {
    assert_eq!(broken(&sound()), NOTHING);
}

/// O4: it was overwritten by what was acknowledged before the read was asked for.
#[test]
fn a_stale_read_is_found_and_one_that_may_be_stale_is_not() {
    let stale = vec![(X, Some((1, Position(2))))];
    assert_eq!(with(read(6, stale.clone())), ["O4"]);
    let mut meanwhile = read(6, stale.clone());
    meanwhile.asked = 2;
    assert_eq!(with(meanwhile), NOTHING);
    let own_copy = operation(6, Asked::ReadStale, Told::Found(stale));
    assert_eq!(with(own_copy), NOTHING);
}

/// O4: what another has read already is not unread.
#[test]
fn a_read_that_goes_back_behind_another_read_is_found() {
    let mut history = told(2, Told::Open);
    history.truncate(4);
    history[2].told = None;
    let only = &changes()[..3];
    assert_eq!(broken_in(only, &history), NOTHING);
    history.push(read(4, vec![(Y, None)]));
    assert_eq!(broken_in(only, &history), ["O4"]);
}

/// O4: that the key is absent at some later time is no excuse for a copy that has lost it.
#[test]
fn a_read_of_what_nobody_has_asked_for_yet_is_found() {
    for (what, violation) in [(Asked::Read, "O4"), (Asked::ReadStale, "O2")] {
        let mut early = operation(
            3,
            what,
            Told::Found(vec![(X, None), (Y, Some((3, Position(5))))]),
        );
        let mut history = sound();
        history[3] = early.clone();
        assert_eq!(broken(&history), [violation]);
        early.told = Some((20, Told::Found(vec![(X, None)])));
        history[3] = early;
        assert_eq!(broken(&history), NOTHING);
    }
}

/// X1, O8: half of a transaction is no state.
#[test]
fn a_read_of_half_a_transaction_is_found() {
    let mut torn = read(
        6,
        vec![(X, Some((1, Position(2)))), (Y, Some((3, Position(5))))],
    );
    torn.asked = 2;
    assert_eq!(with(torn.clone()), ["O4"]);
    torn.what = Asked::ReadStale;
    assert_eq!(with(torn), ["O2"]);
}

/// I4.
#[test]
fn a_write_behind_one_that_was_acknowledged_before_is_found() {
    let early = [change(1, Y, Some(9)), change(2, X, Some(1))];
    let first = wrote(0, &[(X, Some(1))], Mode::Serializable, done(2, vec![]));
    for told in [done(1, vec![]), Told::Undecided(Position(1)), Told::Open] {
        let late = wrote(1, &[(Y, Some(9))], Mode::Serializable, told);
        assert_eq!(broken_in(&early, &[first.clone(), late]), ["I4"]);
    }
}

/// X3: it read what was overwritten before its own position.
#[test]
fn a_lost_update_is_found_in_every_isolation() {
    for mode in [Mode::Serializable, Mode::Snapshot, Mode::WriteWrite] {
        let mut history = sound();
        history[2] = wrote(2, &BOTH, mode, done(5, vec![(X, None)]));
        history[2].asked = 0;
        assert_eq!(broken(&history), ["X3"], "{mode:?}");
    }
}

/// X3: only a serializable transaction keeps others from what it only read; a snapshot one from what it only writes.
#[test]
fn what_was_only_read_or_only_written_is_protected_as_the_isolation_says() {
    const Z: Key = (2, 1);
    for (mode, written, expected) in [
        (Mode::Serializable, Z, &["X3"][..]),
        (Mode::Snapshot, Z, &[]),
        (Mode::Snapshot, X, &["X3"]),
        (Mode::WriteWrite, Z, &[]),
        (Mode::WriteWrite, X, &[]),
    ] {
        let changes = [&changes()[..], &[change(9, written, Some(4))]].concat();
        // It read before both were written.
        let reads = vec![(Y, None)];
        let mut late = wrote(6, &[(written, Some(4))], mode, done(9, reads));
        late.asked = 3;
        let history = [&sound()[..], &[late]].concat();
        assert_eq!(broken_in(&changes, &history), expected, "{mode:?}");
    }
}

/// X3: reads of two moments.
#[test]
fn a_transaction_that_read_two_states_is_found_in_every_isolation() {
    for mode in [Mode::Serializable, Mode::Snapshot, Mode::WriteWrite] {
        let mut history = sound();
        let reads = vec![(X, Some((1, Position(2)))), (Y, Some((3, Position(5))))];
        history[4] = wrote(4, &[((2, 1), None)], mode, done(9, reads));
        history[4].asked = 1;
        let others = wrote(4, &[(X, None)], mode, done(8, vec![]));
        history.push(others);
        assert_eq!(broken(&history), ["X3"], "{mode:?}");
    }
}

/// X3.
#[test]
fn an_abort_that_nobody_caused_is_found() {
    let aborted = |mode, reads: Reads| {
        let mut history = sound();
        history.push(wrote(6, &[(Y, Some(9))], mode, Told::Aborted(reads)));
        history
    };
    let last = || vec![(X, None)];
    assert_eq!(broken(&aborted(Mode::Serializable, last())), ["X3"]);
    assert_eq!(broken(&aborted(Mode::Snapshot, last())), ["X3"]);
    let mut meanwhile = aborted(Mode::Serializable, last());
    meanwhile[6].asked = 8;
    assert_eq!(broken(&meanwhile), NOTHING);
    // Whoever reads old copies may be late by any time; but of what it read it writes nothing.
    assert_eq!(broken(&aborted(Mode::WriteWrite, last())), ["X3"]);
    let own = vec![(Y, None)];
    assert_eq!(broken(&aborted(Mode::WriteWrite, own)), NOTHING);
}

/// O8.
#[test]
fn a_transaction_of_which_a_part_took_place_is_found() {
    let half = [change(2, X, Some(1)), change(5, X, Some(2))];
    let history = &sound()[..1];
    let both = |told| wrote(2, &BOTH, Mode::Serializable, told);
    for told in [done(5, vec![]), Told::Undecided(Position(5)), Told::Open] {
        let history = [history, &[both(told)]].concat();
        assert!(broken_in(&half, &history).contains(&"O8".to_owned()));
        let whole = &changes()[..3];
        assert_eq!(broken_in(whole, &history), NOTHING);
    }
    let open = [history, &[both(Told::Open)]].concat();
    assert_eq!(broken_in(&half[..1], &open), NOTHING);
}

/// O8: what was to come together came one after the other, or twice.
#[test]
fn a_transaction_that_took_place_at_two_positions_is_found() {
    let apart = [change(5, X, Some(2)), change(6, Y, Some(3))];
    let twice = [&changes()[1..3], &[change(6, X, Some(2))]].concat();
    for changes in [&apart[..], &twice] {
        for told in [done(5, vec![]), Told::Open] {
            let both = wrote(2, &BOTH, Mode::Serializable, told);
            assert!(broken_in(changes, &[both]).contains(&"O8".to_owned()));
        }
    }
}

/// O8: a dirty one.
#[test]
fn what_was_refused_and_took_place_is_found() {
    for refused in [
        Told::Refused(None),
        Told::Repeated(Position(5)),
        Told::Aborted(vec![]),
    ] {
        assert_eq!(broken(&told(2, refused.clone())), ["O8", "O8"]);
        // A removal has no value that would say whose it is.
        assert!(broken(&told(4, refused)).contains(&"O8".to_owned()));
    }
}

/// O8.
#[test]
fn what_nobody_asked_for_and_what_was_done_and_is_not_there_is_found() {
    let more = [&changes()[..], &[change(9, Y, Some(7))]].concat();
    assert_eq!(broken_in(&more, &sound()), ["O8"]);
    let less = &changes()[..3];
    assert!(broken_in(less, &sound()).contains(&"O8".to_owned()));
}

/// O8: a removal has no value that would say whose it is.
#[test]
fn a_removal_may_be_of_one_who_was_not_told_where_it_is_and_of_nobody_who_was_told_elsewhere() {
    for open in [Told::Open, Told::Undecided(Position(8))] {
        assert_eq!(broken(&told(4, open)), NOTHING);
    }
    assert_eq!(broken(&told(4, Told::Undecided(Position(9)))), ["O8"]);
    let mut another = told(4, Told::Open);
    another[4] = wrote(4, &[(Y, None)], Mode::Serializable, Told::Open);
    assert_eq!(broken(&another), ["O8"]);
}

/// O4, O2: what was found says between which changes; what was not must be absent there, though it is at other times.
#[test]
fn what_was_found_and_what_was_not_must_be_so_at_one_time() {
    let more = [
        &changes()[..],
        &[change(9, X, Some(4)), change(10, X, None)],
    ]
    .concat();
    let others = [
        wrote(6, &[(X, Some(4))], Mode::Serializable, done(9, vec![])),
        wrote(7, &[(X, None)], Mode::Serializable, done(10, vec![])),
    ];
    let y = (Y, Some((3, Position(5))));
    for (at, found, expected) in [
        (9, vec![(X, None), y], &NOTHING[..]),
        (9, vec![(X, Some((4, Position(9)))), y], &NOTHING[..]),
        (9, vec![(X, None), (Y, None)], &NOTHING[..]),
        (9, vec![(X, Some((4, Position(9)))), (Y, None)], &["O2"]),
        (9, vec![(X, Some((2, Position(2))))], &["O2"]),
    ] {
        let stale = operation(at, Asked::ReadStale, Told::Found(found));
        let history = [&sound()[..], &others, &[stale]].concat();
        assert_eq!(broken_in(&more, &history), expected);
    }
}

/// O6.
#[test]
fn a_conflict_that_was_none_is_found() {
    let refused = |found| Told::Refused(Some((Position(9), vec![(Y, found)])));
    let asked = |told| wrote(6, &[(Y, Some(9))], Mode::Serializable, told);
    assert_eq!(with(asked(refused(Some((3, Position(5)))))), NOTHING);
    assert_eq!(with(asked(refused(None))), ["O6"]);
}

/// O9.
#[test]
fn an_idempotency_key_that_counts_twice_is_found() {
    let first = wrote_once(0, &[(X, Some(1))], done(2, vec![]));
    let second = |told| wrote_once(1, &[(X, Some(2))], told);
    let once = &changes()[..1];
    let repeated = |at| second(Told::Repeated(Position(at)));
    assert_eq!(broken_in(once, &[first.clone(), repeated(2)]), NOTHING);
    assert_eq!(broken_in(once, &[first.clone(), repeated(3)]), ["O9", "O9"]);
    let twice = [change(2, X, Some(1)), change(4, X, Some(2))];
    let history = [first, second(done(4, vec![]))];
    assert_eq!(broken_in(&twice, &history), ["O9"]);
}

/// O9: a key of another's.
#[test]
fn a_repetition_of_what_never_was_is_found() {
    let first = wrote(0, &[(X, Some(1))], Mode::Serializable, done(2, vec![]));
    let repeated = wrote_once(1, &[(X, Some(2))], Told::Repeated(Position(2)));
    let once = &changes()[..1];
    assert_eq!(broken_in(once, &[first, repeated]), ["O9"]);
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
    let told = |changes: &[Change], from: u64, caught_up: &[usize]| {
        let watched = Watched {
            map: 0,
            from: Position(from),
            changes: changes.iter().map(|change| (1, change.clone())).collect(),
            caught_up: caught_up.iter().map(|told| (9, *told)).collect(),
        };
        watch(&truth, &watched, |_| Position(9)).is_some()
    };
    let all: Vec<Change> = changes().into_iter().filter(|one| one.key == X).collect();
    assert!(!told(&all, 0, &[3]));
    assert!(!told(&all[1..], 3, &[2]));
    assert!(!told(&all[..2], 0, &[]));
    assert!(told(&all[..2], 0, &[2]));
    // It said so too early, and went on.
    assert!(told(&all, 0, &[2, 3]));
    assert!(told(&all[1..], 0, &[]));
    assert!(told(&[all[1].clone(), all[0].clone()], 0, &[]));
    assert!(told(&[all[0].clone(), all[0].clone()], 0, &[]));
    assert!(told(&[all[0].clone(), all[2].clone()], 0, &[]));
    assert!(told(&changes(), 0, &[]));
    assert!(told(&[change(2, X, Some(7))], 0, &[]));
}

/// O3: of the last position something may still be to come, of no other.
#[test]
fn a_watch_that_tells_a_part_of_a_transaction_is_found() {
    let other = (0, 2);
    let all = [
        change(2, X, Some(1)),
        change(2, other, Some(2)),
        change(4, X, None),
    ];
    let truth = Truth::new(all.clone());
    let told = |changes: &[&Change]| {
        let changes = changes.iter().map(|change| (1, (*change).clone()));
        let watched = Watched {
            map: 0,
            from: Position::FIRST,
            changes: changes.collect(),
            caught_up: vec![],
        };
        watch(&truth, &watched, |_| END).is_some()
    };
    assert!(!told(&[&all[1]]));
    assert!(!told(&[&all[1], &all[0], &all[2]]));
    assert!(told(&[&all[0], &all[2]]));
    assert!(told(&[&all[0], &all[2], &all[1]]));
}
