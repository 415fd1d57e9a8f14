//! What the store promises, one sentence at a time.
#![allow(clippy::unwrap_used)]

mod common;

use std::io;

use common::*;
use milonga_host::memory_disk::{Operation, Outcome};
use milonga_host::{MemoryDisk, Random};
use milonga_logunit::storage::{Change, CommitError, ReadError, Room, Slot, Storage};
use milonga_logunit::store::inspect::{inspect, walk};
use milonga_logunit::store::{OpenError, Options, Store};
use milonga_wire::{Before, Holder, Position, Stripes, Term};

fn fail_syncs(disk: &MemoryDisk) {
    disk.set_faults(Some(Box::new(|operation| match operation {
        Operation::Sync { .. } => Outcome::Fail(io::ErrorKind::Other),
        _ => Outcome::Done,
    })));
}

/// Where in `name` the bytes `needle` stand first.
fn find(disk: &MemoryDisk, name: &str, needle: &[u8]) -> u64 {
    let bytes = disk.bytes(name).unwrap();
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle);
    at.unwrap() as u64
}

/// S1.
#[test]
fn a_committed_batch_is_durable_and_visible() {
    let disk = disk(8);
    let mut store = open(&disk);
    let batch = [
        entry(5, 1, 100),
        Change::Junk {
            span: span(6, 9),
            term: Term(2),
        },
        Change::Term(Term(3)),
        Change::Settled(Position(4)),
        Change::Listed,
    ];
    store.commit(&batch).unwrap();
    drop(store);
    disk.crash(0, &mut |_, _| false);

    let mut store = open(&disk);
    let durable = store.durable();
    assert_eq!((durable.term, durable.settled), (Term(3), Position(4)));
    assert_eq!((durable.end, durable.trimmed), (Position(9), Position(0)));
    assert!(durable.synced && !durable.blank);
    assert_eq!(
        store.read(Position(5)).unwrap(),
        (head(5, 1, 100), payload(5, 1, 100))
    );
    assert_eq!(store.slot(Position(4)), Slot::Absent);
    assert_eq!(store.run(span(6, 20)), (Slot::Junk(Term(2)), span(6, 9)));
    assert_eq!(store.holder(Position(7)), Ok(Some(Holder::Junk)));
    assert_eq!(
        store.holder(Position(5)),
        Ok(Some(Holder::Data(head(5, 1, 0).stamp)))
    );
    assert_eq!(store.read(Position(7)).unwrap_err(), ReadError::NotData);
}

/// S1, H22: what is not synced is not readable; and after a crash in the middle it is there whole, or not at all.
#[test]
fn nothing_of_a_batch_is_visible_before_it_is_durable() {
    for survivors in 0..16_u64 {
        let disk = disk(8);
        let mut store = open(&disk);
        store.commit(&[entry(1, 1, 100)]).unwrap();
        // The machine stops between the write and the sync.
        disk.set_faults(Some(Box::new(|operation| match operation {
            Operation::Sync { .. } => Outcome::Fail(io::ErrorKind::Interrupted),
            _ => Outcome::Done,
        })));
        assert!(store.commit(&[entry(2, 1, 700), entry(3, 1, 700)]).is_err());
        assert_eq!(store.slot(Position(2)), Slot::Absent);
        disk.set_faults(None);
        disk.crash(0, &mut |_, sector| survivors >> (sector % 4) & 1 == 1);

        let mut store = open(&disk);
        assert_eq!(bytes_of(&mut store, 1)[8], 1);
        let slots = [store.slot(Position(2)), store.slot(Position(3))];
        assert!(
            slots == [Slot::Absent; 2],
            "a failed sync's sectors are gone after the crash"
        );
    }
}

/// S1, S3: an unsynced batch torn between any of its sectors is found whole or not at all, and what was acknowledged
/// before stays. Torn, the store says that it cannot vouch for every batch.
#[test]
fn a_batch_torn_anywhere_is_not_believed() {
    let mut outcomes = std::collections::BTreeSet::new();
    for survivors in 0..32_u64 {
        let disk = disk(8);
        let mut store = open(&disk);
        store.commit(&[entry(1, 1, 300)]).unwrap();
        // The disk lies about the last sync, so its sectors are still open when the power goes.
        disk.set_faults(Some(Box::new(|operation| match operation {
            Operation::Sync { .. } => Outcome::Lie,
            _ => Outcome::Done,
        })));
        store
            .commit(&[entry(2, 2, 4_500), entry(3, 3, 700)])
            .unwrap();
        disk.set_faults(None);
        let first = disk.unsynced_sectors()[0].1;
        disk.crash(0, &mut |_, sector| {
            survivors >> (sector - first).min(4) & 1 == 1
        });

        let mut store = open(&disk);
        assert_eq!(bytes_of(&mut store, 1), payload(1, 1, 300).into_bytes());
        let found = [store.slot(Position(2)), store.slot(Position(3))];
        let whole = found == [Slot::Data; 2];
        assert!(whole || found == [Slot::Absent; 2], "{survivors:b}");
        outcomes.insert((whole, store.durable().synced));
        // Whatever was left behind is never taken for what is written next.
        store.commit(&[entry(4, 4, 10)]).unwrap();
        drop(store);
        let mut store = open(&disk);
        assert!(
            store.durable().synced,
            "V3: what was torn once is not torn again"
        );
        assert_eq!(bytes_of(&mut store, 4), payload(4, 4, 10).into_bytes());
        assert_eq!([store.slot(Position(2)), store.slot(Position(3))], found);
    }
    assert!(outcomes.contains(&(true, true)), "whole");
    assert!(outcomes.contains(&(false, true)), "nothing left of it");
    assert!(outcomes.contains(&(false, false)), "torn");
    assert!(!outcomes.contains(&(true, false)));
}

/// S2, H30: after a failed sync every later commit fails, the sync is not tried again, and reads go on.
#[test]
fn after_a_failed_sync_nothing_is_written_again() {
    let disk = disk(8);
    let mut store = open(&disk);
    store.commit(&[entry(1, 1, 10)]).unwrap();
    fail_syncs(&disk);
    assert!(matches!(
        store.commit(&[entry(2, 1, 10)]),
        Err(CommitError::Failed(_))
    ));
    disk.set_faults(Some(Box::new(|operation| match operation {
        Operation::Write { .. } | Operation::Sync { .. } | Operation::Create { .. } => {
            panic!("a failed disk was used: {operation:?}")
        }
        _ => Outcome::Done,
    })));

    assert!(matches!(
        store.commit(&[entry(3, 1, 10)]),
        Err(CommitError::Failed(_))
    ));
    assert!(!store.housekeep());
    assert_eq!(store.slot(Position(2)), Slot::Absent);
    assert_eq!(bytes_of(&mut store, 1), payload(1, 1, 10).into_bytes());
}

/// H30: after a failed sync the machine shows bytes that are not on the disk and calls them clean. What the next process
/// finds and shows must survive the power going.
#[test]
fn what_a_restarted_process_finds_after_a_failed_sync_it_makes_durable() {
    let disk = disk(8);
    let mut store = open(&disk);
    store.commit(&[entry(1, 1, 10)]).unwrap();
    fail_syncs(&disk);
    store.commit(&[entry(2, 2, 900)]).unwrap_err();
    disk.set_faults(None);
    disk.kill();
    drop(store);

    let store = open(&disk);
    let shown = store.slot(Position(2));
    disk.crash(0, &mut |_, _| false);
    let mut store = open(&disk);

    assert_eq!(shown, Slot::Data, "the machine still shows it");
    assert_eq!(bytes_of(&mut store, 2), payload(2, 2, 900).into_bytes());
}

/// S3, H16: a damaged record is damaged, not absent, and its neighbours are not touched by it.
#[test]
fn a_flipped_bit_makes_one_record_damaged() {
    let disk = disk(8);
    let mut store = open(&disk);
    store
        .commit(&[entry(1, 1, 10), entry(2, 0xa7, 64), entry(3, 3, 10)])
        .unwrap();
    let name = data_files(&disk)[0].clone();
    disk.flip(&name, find(&disk, &name, &[0xa7; 64]) + 9, 4);

    assert_eq!(store.slot(Position(2)), Slot::Data, "nobody has looked yet");
    assert!(matches!(
        store.read(Position(2)),
        Err(ReadError::Damaged(_))
    ));
    assert_eq!(store.slot(Position(2)), Slot::Damaged);
    assert!(store.holder(Position(2)).is_err());
    assert_eq!(store.first_lacking(&all(), Position(1)), Position(2));
    assert_eq!(bytes_of(&mut store, 3), payload(3, 3, 10).into_bytes());

    store.commit(&[entry(2, 9, 64)]).unwrap();
    drop(store);
    let mut store = open(&disk);
    assert_eq!(
        bytes_of(&mut store, 2),
        payload(2, 9, 64).into_bytes(),
        "I1: the newer one"
    );
}

fn all() -> Stripes {
    Stripes {
        span: span(0, u64::MAX),
        width: 1,
        chains: 1,
        index: 0,
    }
}

/// V1, R2: damage in the middle of a file is not its end. What was acknowledged behind it is there.
#[test]
fn batches_behind_a_damaged_one_are_found() {
    let disk = disk(8);
    let mut store = open(&disk);
    for position in 0..6 {
        store
            .commit(&[
                entry(position, position as u8 + 1, 40),
                entry(position + 10, 0xb0 + position as u8, 40),
            ])
            .unwrap();
    }
    store.commit(&[Change::Term(Term(9))]).unwrap();
    drop(store);
    let name = data_files(&disk)[0].clone();
    disk.flip(&name, find(&disk, &name, &[0xb2; 40]), 1);

    let mut store = open(&disk);
    assert!(!store.durable().synced);
    assert_eq!(store.durable().term, Term(9));
    for position in [0, 1, 2, 3, 4, 5, 10, 11, 13, 14, 15] {
        assert!(store.read(Position(position)).is_ok(), "{position}");
    }
    assert_eq!(store.slot(Position(12)), Slot::Damaged);
    assert_eq!(store.durable().end, Position(16));
}

/// T2, T3: many files, reopened through their footers, and after a trim through what is left.
#[test]
fn files_come_and_go_and_the_state_stays() {
    let disk = disk(12);
    let mut store = open(&disk);
    let mut expected = 0;
    for round in 0..40_u64 {
        let batch: Vec<Change> = (0..10)
            .map(|n| entry(round * 10 + n, round as u8, 200))
            .collect();
        store.commit(&batch).unwrap();
        tidy(&mut store);
        if round == 5 {
            store
                .commit(&[
                    Change::Term(Term(7)),
                    Change::Settled(Position(33)),
                    Change::Listed,
                ])
                .unwrap();
        }
        if round >= 20 && round % 5 == 0 {
            expected = (round - 12) * 10;
            store.commit(&[Change::Trim(Position(expected))]).unwrap();
        }
    }
    tidy(&mut store);
    drop(store);
    disk.crash(0, &mut |_, _| false);

    let mut store = open(&disk);
    let durable = store.durable();
    assert_eq!(
        (durable.term, durable.settled, durable.trimmed),
        (Term(7), Position(33), Position(expected))
    );
    assert!(durable.synced && !durable.blank);
    assert_eq!(store.run(span(0, 500)), (Slot::Trimmed, span(0, expected)));
    assert_eq!(
        store.run(span(expected, 500)),
        (Slot::Data, span(expected, 400))
    );
    for position in expected..400 {
        assert_eq!(
            bytes_of(&mut store, position),
            payload(position, (position / 10) as u8, 200).into_bytes()
        );
    }
    assert!(store.bytes() <= 12 * FILE_BYTES);
}

/// T2: a recycled file is full of old batches that verified once; none is believed.
#[test]
fn what_a_recycled_file_held_is_not_believed() {
    let disk = disk(3);
    let mut store = open(&disk);
    for round in 0..60_u64 {
        let batch: Vec<Change> = (0..10)
            .map(|n| entry(round * 10 + n, round as u8, 200))
            .collect();
        store.commit(&batch).unwrap();
        store.commit(&[Change::Trim(Position(round * 10))]).unwrap();
        tidy(&mut store);
        disk.kill();
        store = open(&disk);
        assert!(store.durable().synced, "{round}");
        assert_eq!(store.held(Position(0), 9).len(), 1);
        assert_eq!(
            store.held(Position(0), 9)[0].span,
            span(round * 10, round * 10 + 10)
        );
    }
}

/// H33, T4: deciding data is told to stop before the reserve is touched; trims go on, and give the space back.
#[test]
fn a_full_disk_keeps_a_reserve_and_recovers() {
    let disk = disk(4);
    let mut store = open(&disk);
    tidy(&mut store);
    let mut position = 0;
    let mut write = |store: &mut Store| {
        position += 1;
        store.commit(&[entry(position, 1, 1_000)])
    };
    while store.room() == Room::Plenty {
        write(&mut store).unwrap();
        tidy(&mut store);
    }
    assert_eq!(store.room(), Room::Reserve);
    let mut reserve = 0_u64;
    while store.room() == Room::Reserve {
        write(&mut store).unwrap();
        reserve += 1_000;
    }
    assert!(reserve > FILE_BYTES / 2, "{reserve}");
    assert_eq!(store.room(), Room::Little);
    let mut little = 0_u64;
    while store.room() == Room::Little {
        write(&mut store).unwrap();
        little += 1_000;
    }
    assert!(little > FILE_BYTES / 4, "{little}");
    while write(&mut store).is_ok() {}
    assert_eq!(write(&mut store), Err(CommitError::Full));
    assert_eq!(store.room(), Room::None);

    let middle = store.durable().end.0 / 2;
    disk.set_capacity(0);
    store.commit(&[Change::Trim(Position(middle))]).unwrap();
    tidy(&mut store);
    assert!(store.room() > Room::None, "a trim gave space back");
    write(&mut store).unwrap();
    disk.set_capacity(1 << 20);
    tidy(&mut store);
    assert_eq!(store.room(), Room::Plenty);
}

/// A batch is one write whatever its size: a piece is all or nothing.
#[test]
fn a_batch_larger_than_a_file_gets_a_file_of_its_own() {
    let disk = MemoryDisk::new(1 << 20);
    let mut store = open(&disk);
    tidy(&mut store);
    let batch: Vec<Change> = (0..100).map(|n| entry(n, 1, 1_000)).collect();
    store.commit(&batch).unwrap();
    store.commit(&[entry(100, 2, 10)]).unwrap();
    tidy(&mut store);
    disk.kill();

    let mut store = open(&disk);
    assert_eq!(store.run(span(0, 200)), (Slot::Data, span(0, 101)));
    assert_eq!(bytes_of(&mut store, 99), payload(99, 1, 1_000).into_bytes());
    store.commit(&[Change::Trim(Position(101))]).unwrap();
    store.commit(&[entry(101, 2, 20_000)]).unwrap();
    tidy(&mut store);
    assert!(store.durable().synced);
}

/// 3.7: a directory is opened as what it is, or not at all; each refusal is one sentence that says what to do.
#[test]
fn a_directory_that_is_not_this_servers_is_refused() {
    let disk = disk(6);
    let mut store = open(&disk);
    store.commit(&[entry(1, 1, 1)]).unwrap();
    assert!(matches!(try_open(&disk), Err(OpenError::InUse)));
    drop(store);
    let with = |change: &dyn Fn(&mut milonga_logunit::store::Options)| {
        let mut options = options();
        change(&mut options);
        Store::open(disk.attach(), options, &milonga_host::Random::seeded(1))
            .map(|_| ())
            .unwrap_err()
    };
    let other_cluster = with(&|options| options.cluster = milonga_wire::ClusterId([9; 16]));
    let other_server = with(&|options| options.name = "u2".parse().unwrap());
    let odd_size = with(&|options| options.file_bytes = 12_345);
    assert!(matches!(other_cluster, OpenError::OtherCluster { .. }));
    assert!(matches!(other_server, OpenError::OtherServer { .. }));
    assert!(matches!(odd_size, OpenError::Option { .. }));

    let foreign = common::disk(1);
    drop(foreign.attach().create("holiday.jpg", 10).unwrap());
    assert!(matches!(
        try_open(&foreign),
        Err(OpenError::NotAStore { .. })
    ));
    let other = common::disk(2);
    let process = other.attach();
    let file = process.create("identity", 61).unwrap();
    file.write_at(0, &[io::IoSlice::new(b"milongaL and so on")])
        .unwrap();
    file.sync().unwrap();
    drop((file, process));
    assert!(matches!(try_open(&other), Err(OpenError::OtherKind)));
    disk.flip("identity", 40, 1);
    assert!(matches!(try_open(&disk), Err(OpenError::DamagedIdentity)));
    disk.flip("identity", 40, 1);
    let mut page = disk.bytes("identity").unwrap();
    page[16] = 3;
    let sum = crc32fast::hash(&page[..4_092]).to_le_bytes();
    page[4_092..].copy_from_slice(&sum);
    let copy = disk.snapshot();
    let process = copy.attach();
    let identity = process.open("identity").unwrap();
    identity.write_at(0, &[io::IoSlice::new(&page)]).unwrap();
    drop(process);
    assert!(matches!(
        try_open(&copy),
        Err(OpenError::FromTheFuture { found: 3, known: 1 })
    ));
    assert_eq!(bytes_of(&mut open(&disk), 1)[8..], [1]);
}

/// 3.7: formatting again makes another server, and a crash while formatting leaves a directory that can be formatted.
#[test]
fn an_identity_is_made_once_and_stays() {
    let disk = disk(4);
    disk.set_faults(Some(Box::new(|operation| match operation {
        Operation::Rename { .. } => Outcome::Fail(io::ErrorKind::Other),
        _ => Outcome::Done,
    })));
    assert!(matches!(try_open(&disk), Err(OpenError::Io { .. })));
    disk.set_faults(None);
    disk.crash(9, &mut |_, _| true);

    let identity = open(&disk).identity();
    assert_eq!(open(&disk).identity(), identity);
    assert!(open(&disk).durable().blank);
}

/// 3.7: a file of another directory, or one put under another name, is not believed, and its loss is noticed.
#[test]
fn a_swapped_file_is_not_believed() {
    let disk = disk(6);
    let mut store = open(&disk);
    let batch: Vec<Change> = (0..100).map(|n| entry(n, 1, 200)).collect();
    store.commit(&batch).unwrap();
    store
        .commit(&batch.iter().map(|_| Change::Probe).collect::<Vec<_>>())
        .unwrap();
    for position in 100..140 {
        store.commit(&[entry(position, 1, 500)]).unwrap();
    }
    drop(store);
    let copy = disk.snapshot();
    let names = data_files(&disk);
    let process = disk.attach();
    process.rename(&names[0], "x").unwrap();
    process.rename(&names[1], &names[0]).unwrap();
    process.rename("x", &names[1]).unwrap();
    process.sync_names().unwrap();

    let mut store = open(&disk);
    assert!(!store.durable().synced);
    for position in (0..140).map(Position) {
        assert!(matches!(store.slot(position), Slot::Absent) || store.read(position).is_ok());
    }
    drop(store);
    copy.attach().remove(&names[0]).unwrap();
    assert!(!open(&copy).durable().synced, "a file is missing");
}

/// X1: tails are what was put, through trims, files and reopening, whatever entries say came before them.
#[test]
fn stream_tails_survive_trims() {
    let known = |positions: &[u64]| Before::Known(positions.iter().map(|p| Position(*p)).collect());
    let disk = disk(8);
    let mut store = open(&disk);
    store
        .commit(&[
            in_stream(1, 1, &[]),
            in_stream(2, 2, &[]),
            in_stream(3, 3, &[]),
        ])
        .unwrap();
    for position in 4..300 {
        store.commit(&[entry(position, 1, 200)]).unwrap();
    }
    store
        .commit(&[
            in_stream(300, 1, &[1]),
            linked(301, 2, Before::Unknown),
            in_stream(302, 4, &[]),
        ])
        .unwrap();
    let before = store.stream_tails(None, 9).0;
    store.commit(&[Change::Trim(Position(250))]).unwrap();
    let kept = store.stream_tails(None, 9).0;
    tidy(&mut store);
    disk.kill();
    let store = open(&disk);
    let after = store.stream_tails(None, 9).0;

    assert_eq!(
        before,
        [
            (stream_id(1), known(&[300, 1])),
            (stream_id(2), known(&[301, 2])),
            (stream_id(3), known(&[3])),
            (stream_id(4), known(&[302])),
        ]
    );
    assert_eq!(
        kept,
        [
            (stream_id(1), known(&[300, 1])),
            (stream_id(2), known(&[301, 2])),
            (stream_id(3), known(&[3])),
            (stream_id(4), known(&[302])),
        ]
    );
    assert_eq!(
        after,
        [
            (stream_id(1), known(&[300, 1])),
            (stream_id(2), known(&[301, 2])),
            (stream_id(3), known(&[3])),
            (stream_id(4), known(&[302])),
        ]
    );
    assert!(store.stream_tails(Some(stream_id(1)), 1).1);
    assert_eq!(
        store.stream_positions(stream_id(1), span(0, 999), 9),
        (vec![Position(300)], None)
    );
}

/// X1, T5: a stream all of which was trimmed keeps its last positions when its files are freed, again and again, or its
/// next entry would name nothing before it, and be read as its first.
#[test]
fn a_stream_all_of_which_was_trimmed_is_not_taken_for_a_new_one() {
    let disk = disk(8);
    let mut store = open(&disk);
    let mut expected = vec![];
    for round in 0..6_u64 {
        let (stream, first) = (round as u8 + 1, 300 * round);
        let before: Vec<u64> = (0..round % 2).map(|back| first - 300 - back).collect();
        let number = if round % 2 == 0 { stream } else { stream - 1 };
        store.commit(&[in_stream(first, number, &before)]).unwrap();
        for position in first + 1..first + 300 {
            store.commit(&[entry(position, 1, 200)]).unwrap();
        }
        if round % 2 == 0 {
            expected.push((stream_id(number), Before::Known(vec![Position(first)])));
        } else {
            let last = vec![Position(first), Position(first - 300)];
            expected.last_mut().unwrap().1 = Before::Known(last);
        }
        store
            .commit(&[Change::Trim(Position(first + 200))])
            .unwrap();
        tidy(&mut store);
        assert_eq!(store.stream_tails(None, 9).0, expected);
        drop(store);
        disk.kill();
        store = open(&disk);
        assert_eq!(store.stream_tails(None, 9).0, expected, "round {round}");
    }
}

/// T5: what is kept of trimmed streams is bounded, the stream trimmed first goes first; and as long as a stream is
/// missing, so many others are told of that no sequencer believes them to be all.
#[test]
fn of_too_many_trimmed_streams_the_oldest_are_dropped() {
    let disk = disk(8);
    let options = Options {
        streams_kept: 3,
        ..options()
    };
    let open = || Store::open(disk.attach(), options.clone(), &Random::seeded(7)).unwrap();
    let mut store = open();
    for position in 0..5 {
        store
            .commit(&[in_stream(position, 9 - position as u8, &[])])
            .unwrap();
    }
    for position in 5..600 {
        store.commit(&[entry(position, 1, 200)]).unwrap();
    }
    store.commit(&[Change::Trim(Position(500))]).unwrap();
    tidy(&mut store);
    let known = |position| Before::Known(vec![Position(position)]);
    let kept = [
        (stream_id(5), known(4)),
        (stream_id(6), known(3)),
        (stream_id(7), known(2)),
    ];
    assert_eq!(store.stream_tails(None, 9).0, kept);
    drop(store);

    // One that was dropped and goes on says what its entry says, or that it does not know.
    let mut store = open();
    assert_eq!(store.stream_tails(None, 9).0, kept);
    store
        .commit(&[in_stream(600, 9, &[0]), linked(601, 8, Before::Unknown)])
        .unwrap();
    let again = [
        (stream_id(8), Before::Unknown),
        (
            stream_id(9),
            Before::Known(vec![Position(600), Position(0)]),
        ),
    ];
    for _ in 0..2 {
        assert_eq!(store.stream_tails(None, 9).0[3..], again);
        drop(store);
        store = open();
    }
}

/// X1: a unit whose file of trimmed streams is damaged says so, knows what its entries tell, and guesses nothing.
#[test]
fn a_damaged_file_of_trimmed_streams_is_noticed_and_not_believed() {
    let disk = disk(8);
    let mut store = open(&disk);
    let first = [
        in_stream(0, 1, &[]),
        in_stream(1, 2, &[]),
        in_stream(2, 3, &[]),
    ];
    store.commit(&first).unwrap();
    for position in 3..600 {
        store.commit(&[entry(position, 1, 200)]).unwrap();
    }
    let last = [in_stream(600, 2, &[1]), linked(601, 3, Before::Unknown)];
    store.commit(&last).unwrap();
    store.commit(&[Change::Trim(Position(500))]).unwrap();
    tidy(&mut store);
    drop(store);
    assert_eq!(inspect(&*disk.attach(), false).unwrap().violations, []);
    disk.flip("streams", 90, 4);

    let report = inspect(&*disk.attach(), false).unwrap();
    assert_eq!(report.violations.len(), 1);
    assert_eq!(report.violations[0].file, "streams");
    let store = open(&disk);
    assert!(!store.durable().synced);
    let known = Before::Known(vec![Position(600), Position(1)]);
    assert_eq!(
        store.stream_tails(None, 9).0,
        [(stream_id(2), known), (stream_id(3), Before::Unknown)]
    );
}

/// T5: to free a file takes room for what is left of its streams; a full disk finds it.
#[test]
fn a_full_disk_is_trimmed_and_keeps_the_tails_of_streams() {
    for slack in 0..6_u64 {
        let disk = MemoryDisk::new(3 * FILE_BYTES + 8_192 + slack * 2_048);
        let mut store = open(&disk);
        store.commit(&[in_stream(0, 1, &[])]).unwrap();
        let mut position = 1;
        while store.room() > Room::None {
            store.commit(&[entry(position, 1, 400)]).unwrap();
            position += 1;
            store.housekeep();
        }
        store.commit(&[Change::Trim(Position(position))]).unwrap();
        tidy(&mut store);
        assert!(store.room() > Room::None, "{slack}");
        for next in position..position + 20 {
            store.commit(&[entry(next, 1, 400)]).unwrap();
        }
        drop(store);
        let tails = open(&disk).stream_tails(None, 9).0;
        assert_eq!(
            tails,
            [(stream_id(1), Before::Known(vec![Position(0)]))],
            "{slack}"
        );
    }
}

/// What maps allow must not be different from what reads allow; and a process that died with maps starts without.
#[test]
fn maps_change_nothing_but_the_way_bytes_are_read() {
    let disk = disk(8);
    disk.set_mappable(true);
    let mut mapped = options();
    mapped.map = true;
    let start = |disk: &MemoryDisk| {
        Store::open(
            disk.attach(),
            mapped.clone(),
            &milonga_host::Random::seeded(3),
        )
        .unwrap()
    };
    let mut store = start(&disk);
    for position in 0..200 {
        store.commit(&[entry(position, 1, 300)]).unwrap();
    }
    tidy(&mut store);
    let held = store.read(Position(0)).unwrap().1;
    for position in 0..200 {
        assert_eq!(
            bytes_of(&mut store, position),
            payload(position, 1, 300).into_bytes()
        );
    }
    store.commit(&[Change::Trim(Position(190))]).unwrap();
    tidy(&mut store);
    assert_eq!(
        held,
        payload(0, 1, 300),
        "A1: bytes in somebody's hand stay what they are"
    );
    assert!(disk.names().contains(&"mapping".to_owned()));
    disk.kill();
    drop(store);

    let mut store = start(&disk);
    assert_eq!(bytes_of(&mut store, 195), payload(195, 1, 300).into_bytes());
    drop(store);
    assert!(!disk.names().contains(&"mapping".to_owned()), "a clean end");
}

/// The inspector agrees with the store about a good directory, changes nothing, and finds what is damaged.
#[test]
fn the_inspector_finds_what_is_damaged_and_nothing_else() {
    let disk = disk(8);
    let mut store = open(&disk);
    for position in 0..100 {
        store
            .commit(&[
                in_stream(position, 1, &[]),
                entry(1_000 + position, 0xd7, 500),
            ])
            .unwrap();
        tidy(&mut store);
    }
    let junk = Change::Junk {
        span: span(100, 200),
        term: Term(1),
    };
    store.commit(&[junk, Change::Term(Term(6))]).unwrap();
    assert!(matches!(
        inspect(&*disk.attach(), false),
        Err(OpenError::InUse)
    ));
    drop(store);
    let names = data_files(&disk);
    let before: Vec<_> = names.iter().map(|name| disk.bytes(name)).collect();

    let mut shown = 0;
    let report = walk(&*disk.attach(), &mut |_| shown += 1).unwrap();
    assert_eq!((report.violations.len(), report.notes.len()), (0, 0));
    assert_eq!((report.checked, shown), (201, 201));
    assert_eq!((report.term, report.end), (Term(6), Position(1_100)));
    assert!(report.files.len() > 2 && report.files[0].footer == "written");
    assert_eq!(
        names
            .iter()
            .map(|name| disk.bytes(name))
            .collect::<Vec<_>>(),
        before
    );

    let at = find(&disk, &names[0], &[0xd7; 500]);
    disk.flip(&names[0], at, 1);
    let report = inspect(&*disk.attach(), false).unwrap();
    assert!(report.violations.iter().all(|found| found.file == names[0]));
    assert!(
        report
            .violations
            .iter()
            .any(|found| found.what.contains("position 1000 ")),
        "{report:?}"
    );
    disk.flip(&names[0], at, 1);
    disk.attach().remove(&names[1]).unwrap();
    let report = inspect(&*disk.attach(), false).unwrap();
    assert!(report.violations.iter().any(|found| found.file == names[1]));
}

/// A lost footer costs a scan, and the inspector can write it again.
#[test]
fn a_damaged_footer_costs_a_scan_and_is_repaired() {
    let disk = disk(8);
    let mut store = open(&disk);
    for position in 0..100 {
        store
            .commit(&[in_stream(position, 1, &[]), entry(1_000 + position, 2, 500)])
            .unwrap();
        tidy(&mut store);
    }
    drop(store);
    let names = data_files(&disk);
    // The trailer is 40 bytes; this is the end of the footer.
    disk.flip(&names[0], FILE_BYTES - 45, 1);

    let store = open(&disk);
    assert_eq!(store.run(span(0, 500)), (Slot::Data, span(0, 100)));
    assert_eq!(
        store
            .stream_positions(stream_id(1), span(0, 500), 999)
            .0
            .len(),
        100
    );
    assert!(store.durable().synced);
    disk.kill();
    drop(store);
    let found = inspect(&*disk.attach(), false).unwrap();
    assert_eq!(
        (found.violations.len(), found.files[0].footer),
        (1, "damaged")
    );
    inspect(&*disk.attach(), true).unwrap();
    let repaired = inspect(&*disk.attach(), false).unwrap();
    assert_eq!(
        (repaired.violations.len(), repaired.files[0].footer),
        (0, "written")
    );
}

/// D1: only the disk decides what survives; a directory on a real file system is opened again as it was left.
#[test]
fn a_real_directory_is_opened_again_as_it_was_left() {
    let temporary = tempfile::tempdir().unwrap();
    let random = milonga_host::Random::seeded(5);
    let mut mapped = options();
    mapped.map = true;
    let start = || {
        let disk = milonga_host::FsDisk::at(&temporary.path().join("u1")).unwrap();
        Store::open(std::sync::Arc::new(disk), mapped.clone(), &random).unwrap()
    };
    let mut store = start();
    for position in 0..150 {
        store.commit(&[entry(position, 1, 700)]).unwrap();
        store.housekeep();
    }
    tidy(&mut store);
    store.commit(&[Change::Trim(Position(60))]).unwrap();
    tidy(&mut store);
    drop(store);

    let mut store = start();
    assert!(store.durable().synced);
    assert_eq!(store.run(span(60, 500)), (Slot::Data, span(60, 150)));
    for position in 60..150 {
        assert_eq!(
            bytes_of(&mut store, position),
            payload(position, 1, 700).into_bytes()
        );
    }
    // A1: bytes in somebody's hand stay what they are, whatever becomes of their file.
    let held = store.read(Position(60)).unwrap().1;
    store.commit(&[Change::Trim(Position(150))]).unwrap();
    for position in 150..500 {
        store.commit(&[entry(position, 2, 700)]).unwrap();
        tidy(&mut store);
    }
    assert_eq!(held, payload(60, 1, 700));
}

/// T2: a crash while files are prepared, closed or freed leaves nothing that looks like damage.
#[test]
fn a_crash_between_any_two_steps_of_tidying_up_leaves_no_damage() {
    for steps in 0..40_u32 {
        let disk = disk(8);
        let mut store = open(&disk);
        store.commit(&[in_stream(0, 1, &[])]).unwrap();
        for position in 1..120 {
            store.commit(&[entry(position, 1, 500)]).unwrap();
        }
        store.commit(&[Change::Trim(Position(70))]).unwrap();
        let mut left = steps;
        disk.set_faults(Some(Box::new(move |operation| match operation {
            Operation::Read { .. } => Outcome::Done,
            _ if left == 0 => Outcome::Fail(io::ErrorKind::BrokenPipe),
            _ => {
                left -= 1;
                Outcome::Done
            }
        })));
        tidy(&mut store);
        disk.set_faults(None);
        disk.crash(usize::MAX, &mut |_, _| false);
        drop(store);

        let report = inspect(&*disk.attach(), false).unwrap();
        assert!(
            report.violations.is_empty(),
            "{steps}: {:?}",
            report.violations
        );
        let store = open(&disk);
        assert!(store.durable().synced, "{steps}");
        assert_eq!(store.run(span(70, 500)), (Slot::Data, span(70, 120)));
        let tails = store.stream_tails(None, 9).0;
        assert_eq!(
            tails,
            [(stream_id(1), Before::Known(vec![Position(0)]))],
            "{steps}"
        );
    }
}
