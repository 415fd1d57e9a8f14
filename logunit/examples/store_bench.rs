//! What one log unit's store does on this machine, with nothing else around it.
//!
//! `cargo run --release -p milonga-logunit --example store_bench -- DIR [RECORDS]`: commits batches of several sizes, then
//! fills a store with RECORDS records (10 million) of 128 bytes, opens it again, and reads it. DIR is used up: it must be
//! empty, and is left full.

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
    let directory = arguments.next().ok_or("usage: store_bench DIR [RECORDS]")?;
    let records = arguments
        .next()
        .map_or(Ok(10_000_000), |text| text.parse())?;
    let directory = Path::new(&directory);
    for (batch, bytes) in [
        (1, 128),
        (16, 128),
        (64, 128),
        (256, 128),
        (1_024, 128),
        (64, 4_096),
        (256, 4_096),
    ] {
        commits(
            &directory.join(format!("commit-{batch}-{bytes}")),
            batch,
            bytes,
        )?;
    }
    many(&directory.join("many"), records)
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

fn many(directory: &Path, records: usize) -> Outcome<()> {
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
    drop(store);
    let before = resident_kib();
    let from = clock.now();
    let mut store = open(directory)?;
    println!("open {records} records: {:?}", clock.now().since(from));
    let (bytes, found) = store.index_size();
    let grown = resident_kib().saturating_sub(before) as f64 * 1_024.0;
    println!(
        "index: {:.2} B/record counted, {:.2} B/record of resident memory ({found} records)",
        bytes as f64 / found as f64,
        grown / found as f64
    );
    let from = clock.now();
    let lacking = store.first_lacking(&maker.stripes, Position::FIRST);
    println!(
        "first lacking from 0 ({lacking}): {:?}",
        clock.now().since(from)
    );
    reads(&mut store, &maker, records)
}

fn reads(store: &mut Store, maker: &Maker, records: usize) -> Outcome<()> {
    let clock = Clock::real();
    let count = records.min(2_000_000);
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
    let stripes = maker.position.0 / 2_000;
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
    let span = milonga_wire::Span::new(Position::FIRST, maker.position);
    let page = store.stream_positions(StreamId([7; 16]), span, 4_096);
    println!(
        "a page of {} stream positions: {:?}",
        page.0.len(),
        clock.now().since(from)
    );
    Ok(())
}

/// Memory of this process, as Linux counts it.
#[allow(clippy::disallowed_methods)]
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}
