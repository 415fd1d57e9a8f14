//! A directory that is emptied, and one that is only looked at.
#![allow(clippy::unwrap_used)]

mod common;

use std::io;

use common::*;
use milonga_host::memory_disk::{Operation, Outcome};
use milonga_host::{MemoryDisk, Random};
use milonga_logunit::storage::{Change, CommitError, Slot, Storage};
use milonga_logunit::store::inspect::inspect;
use milonga_logunit::store::view::View;
use milonga_logunit::store::{OpenError, Store};
use milonga_wire::{Identity, Position, Term};

const NEW: Identity = Identity([0xee; 16]);

fn used(disk: &MemoryDisk) -> Store {
    let mut store = open(disk);
    store.commit(&[in_stream(0, 1, &[])]).unwrap();
    for position in 1..120 {
        store.commit(&[entry(position, 1, 500)]).unwrap();
        store.housekeep();
    }
    store
        .commit(&[Change::Term(Term(4)), Change::Trim(Position(3))])
        .unwrap();
    store
}

fn is_blank(store: &Store) {
    assert!(store.durable().blank);
    assert_eq!(store.durable().term, Term(0));
    assert_eq!(store.run(span(0, 500)), (Slot::Absent, span(0, 500)));
    assert_eq!(store.stream_tails(None, 9), (vec![], false));
}

/// 3.7, H14: what left the cluster comes back as another server, and empty.
#[test]
fn a_store_that_was_reset_is_blank_and_takes_entries_again() {
    let disk = disk(12);
    let mut store = used(&disk);
    let old = store.identity();
    store.reset(NEW).unwrap();
    assert_ne!(store.identity(), old);
    is_blank(&store);
    store.commit(&[entry(7, 9, 40)]).unwrap();
    drop(store);

    let mut store = open(&disk);
    assert_eq!(store.identity(), NEW);
    assert_eq!(bytes_of(&mut store, 7), payload(7, 9, 40).into_bytes());
    assert_eq!(store.slot(Position(8)), Slot::Absent);
    drop(store);
    assert!(
        inspect(&*disk.attach(), false)
            .unwrap()
            .violations
            .is_empty()
    );
}

/// 3.7: a crash leaves the old server untouched, or one that is blank under another identity. Never the old identity with
/// less than it held, nor the new one with something of the old.
#[test]
fn a_crash_at_any_step_of_a_reset_leaves_the_old_unit_or_a_blank_other_one() {
    let (mut kept, mut gone) = (0, 0);
    for steps in 0..60_u32 {
        for names in [0, usize::MAX] {
            let disk = disk(12);
            let mut store = used(&disk);
            let old = store.identity();
            let mut left = steps;
            disk.set_faults(Some(Box::new(move |operation| match operation {
                Operation::Read { .. } => Outcome::Done,
                _ if left == 0 => Outcome::Fail(io::ErrorKind::BrokenPipe),
                _ => {
                    left -= 1;
                    Outcome::Done
                }
            })));
            let reset = store.reset(NEW);
            if let Err(error) = &reset {
                assert!(matches!(error, CommitError::Failed(_)));
                assert!(store.commit(&[entry(200, 1, 9)]).is_err(), "U9");
            }
            disk.set_faults(None);
            disk.crash(names, &mut |_, _| false);
            drop(store);

            let mut store = Store::open(
                disk.attach(),
                options(),
                &Random::seeded(100 + u64::from(steps)),
            )
            .unwrap();
            if store.identity() == old {
                assert!(reset.is_err(), "it was told that it is done");
                kept += 1;
                assert_eq!(store.run(span(3, 500)), (Slot::Data, span(3, 120)));
                assert_eq!(bytes_of(&mut store, 50), payload(50, 1, 500).into_bytes());
            } else {
                gone += 1;
                assert!(reset.is_err() || store.identity() == NEW);
                is_blank(&store);
            }
            store.commit(&[entry(300, 2, 9)]).unwrap();
        }
    }
    assert!(kept > 0 && gone > 10, "{kept} kept, {gone} gone");
}

/// Whoever verifies a stopped cluster must not change what it is to be started with.
#[test]
fn a_look_at_a_directory_changes_no_byte_of_it_and_sees_what_is_there() {
    let disk = disk(12);
    let mut store = used(&disk);
    store
        .commit(&[entry(130, 0xa7, 64), entry(131, 2, 30)])
        .unwrap();
    let taken = View::open(&*disk.attach()).err();
    assert!(matches!(taken, Some(OpenError::InUse)), "{taken:?}");
    disk.kill();
    drop(store);
    let found = data_files(&disk).into_iter().find_map(|name| {
        let bytes = disk.bytes(&name).unwrap();
        let at = bytes.windows(64).position(|window| window == [0xa7; 64]);
        Some((name, at? as u64))
    });
    let (name, at) = found.unwrap();
    disk.flip(&name, at + 9, 4);
    let contents = |disk: &MemoryDisk| {
        let names = disk.names();
        let bytes: Vec<_> = names.iter().map(|name| disk.bytes(name)).collect();
        (names, bytes)
    };
    let before = contents(&disk);

    let mut view = View::open(&*disk.attach()).unwrap();
    assert_eq!(view.trimmed, Position(3));
    assert_eq!(view.term, Term(4));
    assert_eq!(view.run(span(3, 120)), (Slot::Data, span(3, 120)));
    for position in 3..120 {
        let (_, bytes) = view.read(Position(position)).unwrap();
        assert_eq!(bytes, payload(position, 1, 500));
    }
    let _ = view.read(Position(130));
    assert_ne!(view.run(span(130, 131)).0, Slot::Data);
    drop(view);
    assert!(contents(&disk) == before, "something was written");
}
