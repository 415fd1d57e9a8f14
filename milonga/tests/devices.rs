//! Disks that fill up, break or stand still under a log unit of a cluster of real processes. Whatever was acknowledged is
//! there once; a unit is left out if it cannot do its work, and only then.
//!
//! Needs root and loop devices; each test that breaks a disk says so and does nothing where it has not got them. Nothing here
//! is timed: what is waited for has a bound that says no more than that it happens.

#![allow(clippy::unwrap_used)] // Helpers of tests are no tests to the lint.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use milonga_client::{AppendError, Log, Position, Resumed, SavedAppend, Span, Unavailable};
use milonga_wire::Refusal;
use support::field::Field;
use support::load::{Wait, connect, is_full, layout, lists};
use support::volume::Volume;

/// MiB of a disk.
const DISK: u64 = 384;
/// MiB that something else takes of a disk that is to be full soon: what is left is the reserve of a unit of `milonga dev`, and
/// not much more.
const OTHERS: u64 = 192;
/// Bytes of the records that fill it.
const BIG: usize = 512 << 10;

/// Appends big records, and keeps account of them.
struct Filler {
    log: Log,
    acknowledged: BTreeMap<Position, u64>,
    unknown: Vec<(Box<SavedAppend>, u64)>,
    number: u64,
}

/// What became of one record.
#[derive(Debug, Eq, PartialEq)]
enum Fate {
    Appended(Position),
    /// By a full disk: not in the log.
    Refused,
    /// Likewise, but some unit may hold it.
    Unknown,
}

impl Filler {
    fn new(field: &Field) -> Self {
        Self {
            log: connect(&field.dev.dir().join("control.toml")),
            acknowledged: BTreeMap::new(),
            unknown: vec![],
            number: 0,
        }
    }

    fn record(number: u64) -> Bytes {
        Bytes::from(number.to_le_bytes().repeat(BIG / 8))
    }

    async fn append(&mut self) -> Fate {
        let number = self.number;
        self.number += 1;
        let (why, saved) = match self.log.append(Self::record(number), &[]).await {
            Ok(position) => {
                self.acknowledged.insert(position, number);
                return Fate::Appended(position);
            }
            Err(AppendError::NotAppended { why }) => (why, None),
            Err(AppendError::Unknown { saved, why, .. }) => (why, Some(saved)),
            Err(error @ AppendError::Partly { .. }) => panic!("{error}"),
        };
        let is_full = matches!(
            &why,
            Unavailable::Refused {
                refusal: Refusal::DiskFull,
                ..
            }
        );
        assert!(is_full, "{why}");
        match saved {
            None => Fate::Refused,
            Some(saved) => {
                self.unknown.push((saved, number));
                Fate::Unknown
            }
        }
    }

    /// Appends until one is refused.
    async fn fill(&mut self) {
        let most = (DISK << 20) / BIG as u64;
        for _ in 0..most {
            if self.append().await == Fate::Refused {
                return;
            }
        }
        panic!("never full: {:?}", self.unknown);
    }

    /// Appends until `count` were acknowledged one after another.
    async fn goes_on(&mut self, count: usize) {
        let (wait, mut in_a_row) = (Wait::new(), 0);
        while in_a_row < count {
            match self.append().await {
                Fate::Appended(_) => in_a_row += 1,
                fate => {
                    in_a_row = 0;
                    wait.again(&format!("appends go on: {fate:?}")).await;
                }
            }
        }
    }

    /// Finds out about what was unknown.
    async fn resolve(&mut self) {
        for (saved, number) in std::mem::take(&mut self.unknown) {
            match self.log.resume(&saved).await.unwrap()[..] {
                [(_, Resumed::Appended(position))] => {
                    self.acknowledged.insert(position, number);
                }
                [(_, Resumed::NotAppended)] => {}
                ref other => panic!("{other:?}"),
            }
        }
    }

    /// Every record that was acknowledged from `start` on is at its position.
    async fn is_in(&self, log: &Log, start: Position) {
        for (position, number) in self.acknowledged.range(start..) {
            let entry = log.read(*position).await.unwrap();
            assert_eq!(entry.payload(), Some(&Self::record(*number)), "{position}");
        }
    }

    /// The same, and nothing else is there.
    async fn is_all_of(&self, log: &Log, start: Position) {
        self.is_in(log, start).await;
        let end = log.end().await.unwrap().position;
        let entries = log.read_range(Span::new(start, end)).await.unwrap();
        let others = entries
            .iter()
            .filter(|entry| entry.payload().is_some())
            .filter(|entry| !self.acknowledged.contains_key(&entry.position));
        assert_eq!(others.count(), 0);
    }
}

/// 3.8, H33: a unit whose disk is full refuses records in so many words, and goes on reading, sealing and trimming; nobody
/// leaves it out. What was refused is not there, what was acknowledged is, and the space that comes back is used.
async fn fills_up(name: &str) {
    let Some(volume) = Volume::new(DISK) else {
        return;
    };
    volume.take(OTHERS);
    let shape = ["--chains", "2", "--stripe-width", "1"];
    let field = Field::new_on(&shape, &[(name, volume.dir())]);
    let before = field.log.newest_layout().await.unwrap();
    assert_eq!(before.layout.open_segment().chains.len(), 2);
    let its_chain = |position: Position| {
        let (chain, _) = before.layout.chain_of(position);
        let mut units = before.layout.units_of(chain);
        units.any(|unit| unit.name.as_str() == name)
    };
    let mut filler = Filler::new(&field);
    filler.fill().await;
    field.names("disk-full", name, "milonga log trim").await;

    // The other chain takes what falls to it, every second record.
    let mut elsewhere = 0;
    for _ in 0..8 {
        match filler.append().await {
            Fate::Appended(position) => {
                assert!(!its_chain(position), "{position} is on the full chain");
                elsewhere += 1;
            }
            Fate::Refused => {}
            Fate::Unknown => panic!("{name} is known to be full"),
        }
    }
    assert_eq!(elsewhere, 4);
    filler.is_in(&field.log, Position::FIRST).await;
    // A client that has heard of nothing finds the same.
    let mut other = Filler::new(&field);
    other.number = 1 << 32;
    other.fill().await;
    assert!(other.unknown.len() <= 1);

    // Whole files come back: most of what it holds must go.
    let kept = filler.acknowledged.len() / 8;
    let to = *filler.acknowledged.keys().nth_back(kept).unwrap();
    let trimmed = filler.log.trim(to).await.unwrap();
    assert_eq!(trimmed, to);
    filler.goes_on(4).await;
    other.goes_on(4).await;
    filler.resolve().await;
    other.resolve().await;
    filler.acknowledged.append(&mut other.acknowledged);
    filler.is_all_of(&field.log, trimmed).await;

    // Or something else makes room.
    filler.fill().await;
    volume.give_back();
    filler.goes_on(4).await;
    filler.resolve().await;
    filler.is_all_of(&field.log, trimmed).await;
    let after = field.log.newest_layout().await.unwrap();
    assert_eq!(before.layout, after.layout, "nobody left");
    field.is_well();
}

/// 3.8, H33: see above; a head refuses before anybody has the record.
#[tokio::test]
async fn a_head_whose_disk_is_full_refuses_records_and_does_everything_else() {
    fills_up("unit-1").await;
}

/// 3.8, H33: see above; a unit below the head learns of a record when another has it already.
#[tokio::test]
async fn a_tail_whose_disk_is_full_refuses_records_and_does_everything_else() {
    fills_up("unit-3").await;
}

/// 3.8, H30, 6.2: a disk on which every write and sync fails. Its unit says so and is left out, a spare takes its place and
/// gets its data, and the operator is told what to do; with another disk the unit comes back.
#[tokio::test]
async fn a_unit_whose_disk_fails_is_replaced_and_comes_back_with_another_disk() {
    let Some(volume) = Volume::new(DISK) else {
        return;
    };
    let field = Field::new_on(&["--steady-ms", "2000"], &[("unit-2", volume.dir())]);
    let load = field.load("control.toml", 2);
    load.goes_on(50).await;
    volume.shut_down();
    load.goes_on(50).await;
    field.heals_without("unit-2").await;
    load.goes_on(50).await;
    load.told().is_in(&field.log).await;
    field.is_well();

    let status = field.status();
    let left = &status["left"][0];
    assert_eq!(left["name"], "unit-2", "{status}");
    let fix = left["fix"].as_str().unwrap();
    assert!(fix.contains("disk") && fix.contains("restart"), "{left}");

    field.dev.tell("stop", "unit-2", &["--kill"]).done();
    volume.exchange(DISK);
    field.dev.tell("restart", "unit-2", &[]).done();
    let is_back = |layout: &milonga_client::Layout| {
        let mut all = layout.units.iter().chain(&layout.spares);
        all.any(|unit| unit.name.as_str() == "unit-2")
    };
    layout(&field.log, "unit-2 is back", is_back).await;
    load.goes_on(20).await;
    let told = load.stop();
    field.is_well();
    told.all_acknowledged();
    told.is_all_of(&field.log).await;
}

/// H29: a disk on which a sync takes seconds, again and again, is as good as none, though its unit answers everything else: it
/// is left out once the layout servers find so too, and appends go on at their usual pace without it. (They wait for a
/// durable write four times as long as for a sign of life, and begin when a client has waited for a second; so a stall of
/// less than four seconds may pass for a busy disk.)
#[tokio::test]
async fn a_unit_whose_disk_takes_seconds_for_a_sync_is_left_out() {
    let Some(volume) = Volume::new(DISK) else {
        return;
    };
    let field = Field::new_on(&[], &[("unit-5", volume.dir())]);
    let load = field.load("control.toml", 2);
    load.goes_on(50).await;
    let clock = field.log.host().clock.clone();
    let (still, between) = (Duration::from_secs(5), Duration::from_secs(1));
    tokio::select! {
        biased;
        () = field.heals_without("unit-5") => {}
        () = volume.stands_still(still, between, 20, &clock) => panic!("still listed"),
    }
    load.goes_on(50).await;
    let told = load.stop();
    field.is_well();
    told.all_acknowledged();
    told.is_all_of(&field.log).await;
}

/// H29, issue of flapping: a disk that stands still for a moment now and then, as disks do, costs its unit its place once at
/// most; there is no new term for each moment.
#[tokio::test]
async fn short_stalls_of_a_disk_cost_its_unit_at_most_one_eviction() {
    let Some(volume) = Volume::new(DISK) else {
        return;
    };
    let field = Field::new_on(&[], &[("unit-1", volume.dir())]);
    let load = field.load("control.toml", 2);
    load.goes_on(50).await;
    let clock = field.log.host().clock.clone();
    let (still, between) = (Duration::from_millis(300), Duration::from_millis(1_700));
    volume.stands_still(still, between, 6, &clock).await;
    load.goes_on(50).await;
    let told = load.stop();
    let after = field.log.newest_layout().await.unwrap();
    field.is_well();
    told.all_acknowledged();
    told.is_all_of(&field.log).await;
    // Leaving, and the spare's listing.
    assert!(after.layout.term.0 <= 2, "{:?}", field.makers());
    let others = (2..=6).map(|number| format!("unit-{number}"));
    for other in others {
        assert!(lists(&after.layout, &other), "{other} left");
    }
}

/// 6.8, H7, H14: a unit that was killed, left out and started again comes back by itself when it has answered for a while, as
/// another unit, empty.
#[tokio::test]
async fn a_unit_that_was_killed_and_left_out_comes_back_by_itself() {
    let field = Field::new(&["--spares", "0", "--steady-ms", "2000"]);
    let load = field.load("control.toml", 2);
    load.goes_on(20).await;
    let before = field.log.newest_layout().await.unwrap();
    let mut listed = before.layout.units.iter();
    let old = listed.find(|unit| unit.name.as_str() == "unit-6").unwrap();
    field.kill("unit-6");
    load.goes_on(20).await;
    let gone = |layout: &milonga_client::Layout| !lists(layout, "unit-6");
    layout(&field.log, "unit-6 is left out", gone).await;

    field.dev.tell("restart", "unit-6", &[]).done();
    let back = |layout: &milonga_client::Layout| lists(layout, "unit-6") && is_full(layout);
    let after = layout(&field.log, "unit-6 is back", back).await;
    assert!(after.unit(old.identity).is_none(), "as who it was");
    load.goes_on(20).await;
    let told = load.stop();
    field.is_well();
    told.all_acknowledged();
    told.is_all_of(&field.log).await;
}
