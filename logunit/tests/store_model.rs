//! The store against a plain map, through crashes, torn writes, full disks, flipped bits and lies.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::io;

use common::*;
use milonga_host::memory_disk::{Operation, Outcome};
use milonga_host::{MemoryDisk, Random};
use milonga_logunit::storage::{Change, CommitError, ReadError, Slot, Storage};
use milonga_logunit::store::{Options, Store};
use milonga_wire::limits::BACKPOINTERS;
use milonga_wire::{Before, EntryHead, Payload, Position, Span, StreamLink, Stripes, Term};
use proptest::prelude::*;

/// What a position holds, in the plain map.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Item {
    Data(EntryHead, Payload),
    Junk(Term),
}

/// The store as it should be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Model {
    /// Everything ever committed, trimmed or not.
    items: BTreeMap<u64, Item>,
    trimmed: u64,
    end: u64,
    term: u64,
    settled: u64,
    listed: bool,
}

impl Model {
    fn apply(&mut self, batch: &[Change]) {
        for change in batch {
            match change {
                Change::Entry { head, payload } => {
                    let item = Item::Data(head.clone(), payload.clone());
                    self.items.insert(head.position.0, item);
                    self.end = self.end.max(head.position.0 + 1);
                }
                Change::Junk { span, term } => {
                    let positions = span.positions();
                    self.items
                        .extend(positions.map(|position| (position.0, Item::Junk(*term))));
                    self.end = self.end.max(span.end.0);
                }
                Change::Term(term) => self.term = self.term.max(term.0),
                Change::Trim(to) => {
                    self.trimmed = self.trimmed.max(to.0);
                    self.end = self.end.max(to.0);
                }
                Change::Settled(to) => self.settled = self.settled.max(to.0),
                Change::Listed => self.listed = true,
                Change::Probe => {}
            }
        }
    }

    fn slot(&self, position: u64) -> Slot {
        if position < self.trimmed {
            return Slot::Trimmed;
        }
        match self.items.get(&position) {
            Some(Item::Data(..)) => Slot::Data,
            Some(Item::Junk(term)) => Slot::Junk(*term),
            None => Slot::Absent,
        }
    }

    fn is_held(&self, position: u64) -> bool {
        matches!(self.slot(position), Slot::Data | Slot::Junk(_))
    }

    /// The positions of a stream that were ever put.
    fn stream(&self, stream: u8) -> Vec<Position> {
        let mut own = Vec::new();
        for item in self.items.values() {
            let Item::Data(head, _) = item else { continue };
            let mut links = head.streams.iter();
            if links.any(|link| link.stream == stream_id(stream)) {
                own.push(head.position);
            }
        }
        own
    }
}

/// One change of a batch to be made up, in terms of what the store holds then.
#[derive(Clone, Debug)]
enum Piece {
    Run {
        skip: u8,
        count: u8,
        len: u16,
        stream: u8,
    },
    Old {
        pick: u16,
        stream: u8,
    },
    Junk {
        skip: u8,
        count: u8,
    },
    Trim {
        keep: u8,
    },
    Term,
    Settled,
    Listed,
    Probe,
}

#[derive(Clone, Debug)]
enum Action {
    Commit(Vec<Piece>),
    Tidy(u8),
    Reopen,
    Kill,
    /// The power goes after so many operations, the last of which stops in the middle.
    Crash {
        operations: u8,
        stop: u16,
        survivors: u64,
        names: u8,
        during: Vec<Piece>,
    },
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        8 => (0_u8..3, 1_u8..7, 0_u16..900, 0_u8..4)
            .prop_map(|(skip, count, len, stream)| Piece::Run { skip, count, len, stream }),
        3 => (any::<u16>(), 0_u8..4).prop_map(|(pick, stream)| Piece::Old { pick, stream }),
        2 => (0_u8..3, 1_u8..30).prop_map(|(skip, count)| Piece::Junk { skip, count }),
        1 => (0_u8..60).prop_map(|keep| Piece::Trim { keep }),
        1 => Just(Piece::Term),
        1 => Just(Piece::Settled),
        1 => Just(Piece::Listed),
        1 => Just(Piece::Probe),
    ]
}

fn batch() -> impl Strategy<Value = Vec<Piece>> {
    prop::collection::vec(piece(), 1..6)
}

fn action() -> impl Strategy<Value = Action> {
    let crash = (0_u8..14, 0_u16..9_000, any::<u64>(), 0_u8..6, batch());
    prop_oneof![
        12 => batch().prop_map(Action::Commit),
        4 => (1_u8..20).prop_map(Action::Tidy),
        1 => Just(Action::Reopen),
        1 => Just(Action::Kill),
        3 => crash.prop_map(|(operations, stop, survivors, names, during)| {
            Action::Crash { operations, stop, survivors, names, during }
        }),
    ]
}

/// A machine with a store on it, and the map it is held against.
struct Machine {
    disk: MemoryDisk,
    random: Random,
    store: Option<Store>,
    model: Model,
    /// Makes each attempt's records different.
    attempt: u64,
    crashed: bool,
}

impl Machine {
    fn new(files: u64) -> Self {
        let disk = MemoryDisk::new(files * options_small().file_bytes + 16_384);
        let mut machine = Self {
            disk,
            random: Random::seeded(11),
            store: None,
            model: Model::default(),
            attempt: 0,
            crashed: false,
        };
        machine.open();
        machine
    }

    fn open(&mut self) {
        let store = Store::open(self.disk.attach(), options_small(), &self.random);
        self.store = Some(store.unwrap());
    }

    fn store(&mut self) -> &mut Store {
        self.store.as_mut().unwrap()
    }

    /// Changes that admission would let through, one after the other.
    fn make(&mut self, pieces: &[Piece]) -> Vec<Change> {
        self.attempt += 1;
        let mut model = self.model.clone();
        let mut batch = Vec::new();
        for piece in pieces {
            let changes = self.changes(&model, piece);
            model.apply(&changes);
            batch.extend(changes);
        }
        batch
    }

    fn changes(&self, model: &Model, piece: &Piece) -> Vec<Change> {
        match piece {
            Piece::Run {
                skip,
                count,
                len,
                stream,
            } => {
                let first = model.end + u64::from(*skip);
                let positions = first..first + u64::from(*count);
                let len = usize::from(*len);
                positions
                    .map(|position| self.entry(model, position, len, *stream))
                    .collect()
            }
            Piece::Old { pick, stream } => {
                let holes: Vec<u64> = (model.trimmed..model.end)
                    .filter(|p| !model.is_held(*p))
                    .collect();
                let hole = holes.get(usize::from(*pick).checked_rem(holes.len()).unwrap_or(0));
                hole.map(|position| self.entry(model, *position, 60, *stream))
                    .into_iter()
                    .collect()
            }
            Piece::Junk { skip, count } => {
                let start = model.end + u64::from(*skip);
                vec![Change::Junk {
                    span: span(start, start + u64::from(*count)),
                    term: Term(self.attempt % 3),
                }]
            }
            Piece::Trim { keep } => {
                vec![Change::Trim(Position(
                    model.end.saturating_sub(u64::from(*keep)),
                ))]
            }
            Piece::Term => vec![Change::Term(Term(model.term + 1))],
            Piece::Settled => vec![Change::Settled(Position(model.end / 2))],
            Piece::Listed => vec![Change::Listed],
            Piece::Probe => vec![Change::Probe],
        }
    }

    fn entry(&self, model: &Model, position: u64, len: usize, stream: u8) -> Change {
        let mark = self.attempt as u8;
        let mut head = head(position, mark, len);
        head.term = Term(self.attempt);
        if stream > 0 {
            let own = model.stream(stream);
            let before = own
                .iter()
                .rev()
                .filter(|p| p.0 < position)
                .take(BACKPOINTERS);
            head.streams.push(StreamLink {
                stream: stream_id(stream),
                before: match self.attempt % 5 {
                    0 => Before::Unknown,
                    _ => Before::Known(before.copied().collect()),
                },
            });
        }
        Change::Entry {
            head,
            payload: payload(position, mark, len),
        }
    }

    fn run(&mut self, action: &Action) {
        match action {
            Action::Commit(pieces) => {
                let batch = self.make(pieces);
                match self.store().commit(&batch) {
                    Ok(()) => self.model.apply(&batch),
                    Err(CommitError::Full) => {}
                    Err(error @ CommitError::Failed(_)) => panic!("{error}"),
                }
            }
            Action::Tidy(times) => {
                for _ in 0..*times {
                    self.store().housekeep();
                }
            }
            Action::Reopen => {
                self.store = None;
                self.open();
            }
            Action::Kill => {
                self.disk.kill();
                self.open();
            }
            Action::Crash {
                operations,
                stop,
                survivors,
                names,
                during,
            } => {
                let batch = self.make(during);
                self.fail_after(*operations, *stop);
                let mut committed = self.store().commit(&batch);
                for _ in 0..operations / 2 {
                    self.store().housekeep();
                }
                // Whatever was said after the power was gone, nobody heard.
                if committed == Err(CommitError::Full) {
                    committed = Ok(());
                } else if committed.is_ok() {
                    self.model.apply(&batch);
                }
                self.lose_power(*survivors, *names);
                if committed.is_err() {
                    self.settle(&batch);
                }
            }
        }
    }

    /// All operations fail, from some operation on.
    fn fail_after(&self, operations: u8, stop: u16) {
        let mut left = operations;
        self.disk.set_faults(Some(Box::new(move |operation| {
            if matches!(operation, Operation::Read { .. }) {
                return Outcome::Done;
            }
            let outcome = match (left, operation) {
                (0, _) => Outcome::Fail(io::ErrorKind::BrokenPipe),
                (1, Operation::Write { .. }) => Outcome::Stop(u64::from(stop)),
                (_, _) => Outcome::Done,
            };
            left = left.saturating_sub(1);
            outcome
        })));
    }

    fn lose_power(&mut self, survivors: u64, names: u8) {
        self.crashed = true;
        self.disk.set_faults(None);
        self.disk.crash(usize::from(names), &mut |name, sector| {
            survives(survivors, name, sector)
        });
        self.open();
    }

    /// A batch that was not acknowledged is there whole, or not at all.
    fn settle(&mut self, batch: &[Change]) {
        let mut after = self.model.clone();
        after.apply(batch);
        let durable = self.store().durable();
        let (before, end) = (self.model.trimmed.min(after.trimmed), after.end);
        let is_after = (before..end).all(|position| {
            let slot = self.store.as_ref().unwrap().slot(Position(position));
            slot == after.slot(position)
        });
        let same_state = (durable.term.0, durable.settled.0) == (after.term, after.settled);
        if is_after && same_state && durable.trimmed.0 == after.trimmed {
            after.listed |= self.model.listed;
            if durable.blank {
                after.listed = self.model.listed;
            }
            self.model = after;
        }
    }

    /// The store is exactly what the model says.
    fn check(&mut self) {
        let model = self.model.clone();
        let crashed = self.crashed;
        let store = self.store();
        let durable = store.durable();
        assert_eq!(
            (
                durable.term.0,
                durable.trimmed.0,
                durable.settled.0,
                durable.end.0
            ),
            (model.term, model.trimmed, model.settled, model.end)
        );
        assert!(durable.synced || crashed, "nothing was ever lost here");
        for position in 0..model.end + 3 {
            let slot = store.slot(Position(position));
            assert_eq!(slot, model.slot(position), "{position}");
            match model.items.get(&position) {
                Some(Item::Data(head, payload)) if slot == Slot::Data => {
                    let read = store.read(Position(position));
                    assert_eq!(read, Ok((head.clone(), payload.clone())));
                    assert_eq!(store.stamp(Position(position)), Some(head.stamp));
                }
                _ => assert_eq!(store.read(Position(position)), Err(ReadError::NotData)),
            }
        }
        check_runs(store, &model);
        check_streams(store, &model);
    }
}

fn options_small() -> Options {
    Options {
        file_bytes: 16 << 10,
        ..options()
    }
}

/// Which sectors a power cut spares: none, all, or some, at the dice's mercy.
fn survives(seed: u64, name: &str, sector: u64) -> bool {
    let mixed = name.bytes().fold(
        seed ^ sector.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3),
    );
    match seed % 4 {
        0 => false,
        1 => true,
        _ => (mixed >> 33) & 1 == 1,
    }
}

fn check_runs(store: &Store, model: &Model) {
    let mut at = 0;
    while at < model.end + 3 {
        let (slot, run) = store.run(span(at, model.end + 3));
        let end = (at..model.end + 3).find(|p| model.slot(*p) != slot);
        assert_eq!(
            (slot, run),
            (model.slot(at), span(at, end.unwrap_or(model.end + 3)))
        );
        at = run.end.0;
    }
    let held: Vec<Span> = store
        .held(Position(0), usize::MAX)
        .iter()
        .map(|held| held.span)
        .collect();
    assert!(
        held.windows(2).all(|pair| pair[0].end < pair[1].start),
        "neighbours are merged"
    );
    let positions: Vec<u64> = held
        .iter()
        .flat_map(|span| span.positions())
        .map(|p| p.0)
        .collect();
    let expected: Vec<u64> = (0..model.end).filter(|p| model.is_held(*p)).collect();
    assert_eq!(positions, expected);
    for (width, chains, index, from) in [(1, 1, 0, 0), (4, 2, 1, 5), (3, 3, 0, model.end / 2)] {
        let stripes = Stripes {
            span: span(2, model.end + 50),
            width,
            chains,
            index,
        };
        let lacking = store.first_lacking(&stripes, Position(from));
        let expected = (from.max(model.trimmed)..model.end + 50)
            .find(|p| stripes.contains(Position(*p)) && !model.is_held(*p));
        assert_eq!(lacking, Position(expected.unwrap_or(model.end + 50)));
    }
}

fn check_streams(store: &Store, model: &Model) {
    let (tails, more) = store.stream_tails(None, 100);
    assert!(!more);
    let tails: BTreeMap<_, _> = tails.into_iter().collect();
    for stream in 1..4 {
        let own = model.stream(stream);
        let kept: Vec<Position> = own
            .iter()
            .copied()
            .filter(|p| p.0 >= model.trimmed)
            .collect();
        let everything = span(0, u64::MAX);
        let mut found = Vec::new();
        let mut from = Some(Position(0));
        while let Some(start) = from {
            let rest = Span::new(start, everything.end);
            let (page, next) = store.stream_positions(stream_id(stream), rest, 3);
            assert!(
                page.len() <= 3
                    && next.is_none_or(|next| page.last().is_none_or(|last| *last < next))
            );
            found.extend(page);
            from = next;
        }
        assert_eq!(found, kept);
        match tails.get(&stream_id(stream)) {
            None => assert!(own.is_empty(), "X1: a stream that ever was has a tail"),
            Some(Before::Unknown) => panic!("X1: nothing is ever forgotten here"),
            Some(Before::Known(tail)) => {
                let newest: Vec<Position> = own.iter().rev().take(BACKPOINTERS).copied().collect();
                assert_eq!(*tail, newest, "X1");
            }
        }
    }
}

/// Cases enough to be quick; `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").is_ok();
    let config = ProptestConfig::default();
    let cases = if asked { config.cases } else { 120 };
    ProptestConfig { cases, ..config }
}

proptest! {
    #![proptest_config(config())]

    /// S1, S2, S3, V1, H22, H30: on an honest disk everything acknowledged survives everything, and everything not
    /// acknowledged is there whole or not at all.
    #[test]
    fn the_store_is_a_plain_map_that_survives_crashes(
        files in 5_u64..30,
        actions in prop::collection::vec(action(), 1..60),
    ) {
        let mut machine = Machine::new(files);
        for action in &actions {
            machine.run(action);
            if !matches!(action, Action::Commit(_) | Action::Tidy(_)) {
                machine.check();
            }
        }
        machine.check();
    }

    /// S3, F1, R2: flipped bits lose entries, and the store knows; they never turn one into another.
    #[test]
    fn flipped_bits_never_turn_an_entry_into_another(
        actions in prop::collection::vec(action(), 1..40),
        flips in prop::collection::vec((any::<u16>(), any::<u32>(), 0_u8..8), 1..8),
        again in prop::collection::vec(batch(), 0..6),
    ) {
        let mut machine = Machine::new(40);
        for action in &actions {
            machine.run(action);
        }
        machine.store = None;
        machine.disk.kill();
        let names = data_files(&machine.disk);
        for (file, offset, bit) in &flips {
            if let Some(name) = names.get(usize::from(*file).checked_rem(names.len()).unwrap_or(0)) {
                machine.disk.flip(name, u64::from(*offset) % (16 << 10), 1 << bit);
            }
        }
        machine.open();
        let model = machine.model.clone();
        let known = observe(&mut machine, &model);
        let lost = (model.trimmed..model.end).any(|position| {
            model.is_held(position) && machine.store().slot(Position(position)) == Slot::Absent
        });
        prop_assert!(!(lost && machine.store().durable().synced), "what is lost is noticed");
        stays(&mut machine, &known, &again);
    }

    /// S3, I1, H16: what flipped bits damaged, in open and closed files, is found by reading everything once, or missed at
    /// the next start. Put back from elsewhere, it stays: after any start the store is the plain map again.
    #[test]
    fn what_is_repaired_is_the_plain_map_again_and_stays_it(
        actions in prop::collection::vec(action(), 1..40),
        flips in prop::collection::vec((any::<u16>(), any::<u32>(), 0_u8..8), 1..8),
        while_it_runs in any::<bool>(),
        tidy in 0_u8..20,
        again in prop::collection::vec(batch(), 0..4),
    ) {
        let mut machine = Machine::new(60);
        for action in &actions {
            machine.run(action);
        }
        let model = machine.model.clone();
        let names = data_files(&machine.disk);
        for (file, offset, bit) in &flips {
            if let Some(name) = names.get(usize::from(*file).checked_rem(names.len()).unwrap_or(0)) {
                machine.disk.flip(name, u64::from(*offset) % (16 << 10), 1 << bit);
            }
        }
        if while_it_runs {
            repair(&mut machine, &model);
            machine.run(&Action::Tidy(tidy));
        }
        machine.run(&Action::Kill);
        // Terms and marks stand in the last batch alone, which a flip may have cost: peers tell a unit its term.
        prop_assume!(machine.store().durable().trimmed.0 == model.trimmed);
        repair(&mut machine, &model);
        machine.run(&Action::Tidy(tidy));
        let kept = model.items.range(model.trimmed..);
        let kept = kept.map(|(at, item)| (*at, item.clone())).collect();
        stays(&mut machine, &kept, &again);
        prop_assert_eq!(machine.store().damaged(), 0);
    }

    /// S3, V3: a disk that says synced and is not loses what it lied about. Nothing of it turns up later, in the place
    /// of what was written since.
    #[test]
    fn a_lying_disk_loses_entries_and_brings_none_back(
        actions in prop::collection::vec(action(), 0..20),
        lies in prop::collection::vec(batch(), 1..12),
        tidy in 0_u8..20,
        survivors in any::<u64>(),
        names in 0_u8..8,
        again in prop::collection::vec(batch(), 0..6),
    ) {
        let mut machine = Machine::new(40);
        for action in &actions {
            machine.run(action);
        }
        machine.disk.set_faults(Some(Box::new(|operation| match operation {
            Operation::Sync { .. } | Operation::SyncNames => Outcome::Lie,
            _ => Outcome::Done,
        })));
        for pieces in &lies {
            machine.run(&Action::Commit(pieces.clone()));
        }
        machine.run(&Action::Tidy(tidy));
        machine.lose_power(survivors, names);
        let model = machine.model.clone();
        let known = observe(&mut machine, &model);
        stays(&mut machine, &known, &again);
    }
}

/// Reads everything once, and puts back what the model holds and the store cannot tell.
fn repair(machine: &mut Machine, model: &Model) {
    let store = machine.store();
    let mut found = store.damaged();
    loop {
        let scrubbed = store.scrub(4_096);
        found += scrubbed.damaged;
        if scrubbed.done {
            break;
        }
    }
    assert_eq!(store.damaged(), found);
    for (position, item) in model.items.range(model.trimmed..) {
        let at = Position(*position);
        if matches!(store.slot(at), Slot::Data | Slot::Junk(_)) {
            continue;
        }
        let change = match item.clone() {
            Item::Data(head, payload) => Change::Entry { head, payload },
            Item::Junk(term) => Change::Junk {
                span: Span::one(at),
                term,
            },
        };
        store.commit(&[change]).unwrap();
    }
    assert_eq!(store.damaged(), 0);
}

/// What can be read of what the model says was committed: nothing else, ever.
fn observe(machine: &mut Machine, model: &Model) -> BTreeMap<u64, Item> {
    let mut known = BTreeMap::new();
    let store = machine.store();
    assert!(store.durable().term.0 <= model.term && store.durable().end.0 <= model.end);
    for position in 0..model.end + 100 {
        let item = match store.slot(Position(position)) {
            Slot::Data => match store.read(Position(position)) {
                Ok((head, payload)) => Item::Data(head, payload),
                Err(ReadError::Damaged(_)) => continue,
                Err(ReadError::NotData) => panic!("it has a slot"),
            },
            Slot::Junk(term) => Item::Junk(term),
            Slot::Absent | Slot::Trimmed | Slot::Damaged => continue,
        };
        let expected = model.items.get(&position);
        assert!(
            Some(&item) == expected,
            "{position}: found {}, expected {}",
            brief(Some(&item)),
            brief(expected)
        );
        known.insert(position, item);
    }
    known
}

/// From now on the disk is honest: what was seen stays, what was not is free to be written, and what is written stays.
fn stays(machine: &mut Machine, known: &BTreeMap<u64, Item>, again: &[Vec<Piece>]) {
    let durable = machine.store().durable();
    machine.model = Model {
        items: known.clone(),
        trimmed: durable.trimmed.0,
        end: durable.end.0,
        term: durable.term.0,
        settled: durable.settled.0,
        listed: false,
    };
    for pieces in again {
        machine.run(&Action::Commit(pieces.clone()));
        machine.run(&Action::Tidy(3));
    }
    for action in [Action::Kill, Action::Tidy(20), Action::Reopen] {
        machine.run(&action);
        let model = machine.model.clone();
        let found = observe(machine, &model);
        for position in model.trimmed..model.end {
            let (found, expected) = (found.get(&position), model.items.get(&position));
            assert!(
                found == expected,
                "{position}: found {}, expected {}",
                brief(found),
                brief(expected)
            );
        }
    }
}

fn brief(item: Option<&Item>) -> String {
    match item {
        Some(Item::Data(head, _)) => format!("record of attempt {}", head.term),
        Some(Item::Junk(term)) => format!("junk of {term}"),
        None => "nothing".to_owned(),
    }
}
