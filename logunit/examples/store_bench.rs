//! What one log unit's store does on this machine, with nothing else around it.
//!
//! ```text
//! cargo run --release -p milonga-logunit --example store_bench -- DIR commits        batches of several sizes
//! cargo run --release -p milonga-logunit --example store_bench -- DIR fill 10000000  records of 128 bytes
//! cargo run --release -p milonga-logunit --example store_bench -- DIR open           opens what was filled
//! cargo run --release -p milonga-logunit --example store_bench -- DIR read           the same, and reads it
//! ```
//! DIR is left full.

#![allow(clippy::print_stdout, clippy::cast_precision_loss)]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use milonga_host::{Clock, FsDisk, Random};
use milonga_logunit::storage::{Change, Storage};
use milonga_logunit::store::{Options, Store};
use milonga_wire::{
    Before, ClusterId, EntryHead, Payload, Position, Session, Stamp, StreamId, StreamLink, Stripes,
    Term,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: store_bench DIR commits|fill N|open|read";
    let directory = arguments.next().ok_or(usage)?;
    let directory = Path::new(&directory);
    match arguments.next().as_deref() {
        Some("commits") => {
            for count in [1, 16, 64, 256, 1_024] {
                commits(&directory.join(format!("small-{count}")), count, 128)?;
            }
            for count in [64, 256] {
                commits(&directory.join(format!("large-{count}")), count, 4_096)?;
            }
            Ok(())
        }
        Some("fill") => {
            let records = arguments.next().ok_or(usage)?.parse()?;
            fill(&directory.join("many"), records)
        }
        Some("open") => reopen(&directory.join("many")).map(|_| ()),
        Some("read") => reads(&mut reopen(&directory.join("many"))?),
        Some(_) | None => Err(usage.into()),
    }
}

fn open(directory: &Path) -> Outcome<Store> {
    let options = Options::new(ClusterId([1; 16]), "bench".parse()?);
    let disk = Arc::new(FsDisk::at(directory)?);
    Ok(Store::open(disk, options, &Random::real())?)
}

/// Records in order, in stripes of 1,000 positions on every second chain, each in one of 100 streams.
struct Maker {
    position: Position,
    stripes: Stripes,
    payload: Payload,
}

impl Maker {
    fn new(bytes: usize) -> Self {
        Self {
            position: Position::FIRST,
            stripes: Stripes {
                span: milonga_wire::Span::new(Position(0), Position(u64::MAX)),
                width: 1_000,
                chains: 2,
                index: 0,
            },
            payload: vec![0xa5; bytes].into(),
        }
    }

    fn batch(&mut self, count: usize) -> Vec<Change> {
        let mut batch = Vec::with_capacity(count);
        while batch.len() < count {
            let Some(run) = self.stripes.run_from(self.position) else {
                break;
            };
            batch.push(self.entry(run.start));
            self.position = run.start.next();
        }
        batch
    }

    fn entry(&self, position: Position) -> Change {
        let before = (1..=4)
            .filter_map(|n| position.0.checked_sub(n * 100))
            .map(Position);
        Change::Entry {
            head: EntryHead {
                position,
                term: Term(1),
                stamp: Stamp {
                    session: Session([7; 16]),
                    request: position.0,
                    record: 0,
                },
                streams: vec![StreamLink {
                    stream: StreamId([(position.0 % 100) as u8; 16]),
                    before: Before::Known(before.collect()),
                }],
                len: self.payload.len() as u32,
            },
            payload: self.payload.clone(),
        }
    }
}

fn commits(directory: &Path, count: usize, bytes: usize) -> Outcome<()> {
    let clock = Clock::real();
    let mut store = open(directory)?;
    while store.housekeep() {}
    let mut maker = Maker::new(bytes);
    let mut times = Vec::new();
    let mut spent = Duration::ZERO;
    let started = clock.now();
    while clock.now().since(started) < Duration::from_secs(3) && times.len() < 20_000 {
        let batch = maker.batch(count);
        let from = clock.now();
        store.commit(&batch)?;
        let time = clock.now().since(from);
        spent += time;
        times.push(time);
        store.housekeep();
    }
    times.sort();
    let rate = (times.len() * count) as f64 / spent.as_secs_f64();
    println!(
        "commit {count:>5} x {bytes:>5} B: {rate:>10.0} records/s, {:>7.1} MB/s; p50 {:?}, p99 {:?}",
        rate * bytes as f64 / 1e6,
        times[times.len() / 2],
        times[times.len() * 99 / 100],
    );
    Ok(())
}

fn fill(directory: &Path, records: usize) -> Outcome<()> {
    let clock = Clock::real();
    let mut store = open(directory)?;
    let mut maker = Maker::new(128);
    let from = clock.now();
    let mut written = 0;
    while written < records {
        let batch = maker.batch(4_096.min(records - written));
        written += batch.len();
        store.commit(&batch)?;
        store.housekeep();
    }
    println!("fill {records} records: {:?}", clock.now().since(from));
    while store.housekeep() {}
    Ok(())
}

fn reopen(directory: &Path) -> Outcome<Store> {
    let clock = Clock::real();
    let from = clock.now();
    let store = open(directory)?;
    println!("open: {:?}", clock.now().since(from));
    let (bytes, records) = store.index_size();
    let each = bytes as f64 / records as f64;
    println!("index of {records} records: {each:.2} B/record");
    let from = clock.now();
    let lacking = store.first_lacking(&Maker::new(128).stripes, Position::FIRST);
    let time = clock.now().since(from);
    println!("first lacking from 0 ({lacking}): {time:?}");
    Ok(store)
}

fn reads(store: &mut Store) -> Outcome<()> {
    let clock = Clock::real();
    let maker = Maker::new(128);
    let end = store.durable().end;
    let count = store.index_size().1.min(2_000_000);
    for round in ["cold maps", "warm"] {
        let from = clock.now();
        let runs = maker.stripes.runs_from(Position::FIRST);
        let mut bytes = 0;
        for position in runs.flat_map(milonga_wire::Span::positions).take(count) {
            bytes += store.read(position)?.1.len();
        }
        let each = clock.now().since(from) / count as u32;
        println!("read in order, {round}: {each:?} each ({bytes} bytes)");
    }
    let random = Random::seeded(1);
    let stripes = end.0 / 2_000;
    let from = clock.now();
    for _ in 0..count {
        let position = random.below(stripes) * 2_000 + random.below(1_000);
        store.read(Position(position))?;
    }
    println!(
        "read at random: {:?} each",
        clock.now().since(from) / count as u32
    );
    let from = clock.now();
    for _ in 0..count {
        let position = random.below(stripes) * 2_000 + random.below(2_000);
        std::hint::black_box(store.slot(Position(position)));
    }
    println!(
        "look up at random: {:?} each",
        clock.now().since(from) / count as u32
    );
    let from = clock.now();
    let span = milonga_wire::Span::new(Position::FIRST, end);
    let page = store.stream_positions(StreamId([7; 16]), span, 4_096);
    println!(
        "a page of {} stream positions: {:?}",
        page.0.len(),
        clock.now().since(from)
    );
    Ok(())
}
