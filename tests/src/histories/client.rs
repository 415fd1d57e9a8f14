//! A client process: several clients that share one connection and one copy of the maps, each in a loop of its own.
//!
//! It goes on until its standard input ends, reads everything once more then, and ends. After a kill its successor repeats what
//! has an idempotency key and was not answered, and lets a watch go on where the last one stopped.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use milonga_client::object::map::{Cas, Expect, Update, Watch};
use milonga_client::object::{
    Applied, Committed, DecideError, Isolation, Keys, Map, Once, PlayError, SnapshotError,
    TransactError, UpdateError, Writes,
};
use milonga_client::{ClusterConfig, Resumed};
use milonga_host::Random;
use milonga_wire::Position;

use super::file::{Kind, Recorder, Recording, now_ns};
use crate::object_history::{Asked, Key, Mode, Reads, Told, Value};
use crate::scenarios::maps::{
    Replica, body, bytes_of, change_of, contents_at, contents_now, contents_of, fetched, found_of,
    reads_of,
};
use crate::sim::faults::{flip, pick};

/// How many maps there are.
pub const MAPS: u64 = 4;
/// For how long all clients use the same idempotency keys.
const ONCE_WINDOW_NS: u64 = 400_000_000;
/// How many positions an idempotency key lives: longer than any operation goes on, and its repetition by a successor.
const ONCE_LIVES: u64 = 1 << 16;
/// How far back a watch or a read as of a position may begin.
const BACK: u64 = 2_000;
/// How many changes a watch is asked for at a time.
const CHANGES: u64 = 200;
/// Between two reports of how many operations were answered.
const REPORT: Duration = Duration::from_millis(50);
/// How often a watch may fail that is to tell everything at the end.
const LAST_TRIES: u32 = 10;

/// What a client process is told.
#[derive(Clone, Debug, clap::Args)]
pub struct ClientArgs {
    /// The cluster file.
    #[arg(long)]
    pub cluster: PathBuf,
    /// Where it writes down what happens.
    #[arg(long)]
    pub history: PathBuf,
    /// What its predecessor wrote down.
    #[arg(long)]
    pub before: Option<PathBuf>,
    /// A number of this start of a process.
    #[arg(long)]
    pub process: u64,
    /// The number of its first client.
    #[arg(long)]
    pub first: u64,
    /// How many clients it has.
    #[arg(long)]
    pub clients: u64,
    /// How many keys each map has.
    #[arg(long)]
    pub keys: u64,
    /// What is drawn is drawn from this.
    #[arg(long)]
    pub seed: u64,
}

/// Runs until standard input ends.
///
/// # Errors
/// If it cannot begin.
pub fn run(args: &ClientArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work(args))
}

async fn work(args: &ClientArgs) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    std::thread::spawn(move || {
        // Nobody writes to it. It ends when there is to be an end, or with who started this.
        let _ = std::io::stdin().read_to_end(&mut vec![]);
        told.store(true, Ordering::Relaxed);
    });
    let (log, transport) = ClusterConfig::load(&args.cluster)?.connect_with_transport()?;
    let random = Random::seeded(args.seed);
    let recorder = Arc::new(Recorder::create(&args.history)?);
    // Whoever lacks a map waits for what is decided of it by others.
    let first = random.below(MAPS);
    let count = *pick(&random, &[2, MAPS, MAPS, MAPS]);
    let maps: Vec<u64> = (0..count).map(|more| (first + more) % MAPS).collect();
    let replica = Replica::new(&log, maps.iter().copied(), []);
    let values = Arc::new(AtomicU64::new(args.process << 32));
    let mut tasks = vec![];
    let (retries, watched) = left_open(args)?;
    for number in 0..args.clients {
        let client = Client {
            number: args.first + number,
            recorder: Arc::clone(&recorder),
            replica: replica.clone(),
            maps: maps.clone(),
            keys: args.keys,
            random: Random::seeded(random.next()),
            values: Arc::clone(&values),
            stop: Arc::clone(&stop),
        };
        let retries = retries.iter().filter(|retry| retry.0 == client.number);
        let retries = retries.map(|retry| (retry.1, retry.2)).collect();
        let watched = watched.filter(|_| number == 0);
        tasks.push(tokio::spawn(client.run(retries, watched)));
    }
    let clock = log.host().clock.clone();
    let reporter = tokio::spawn(async move {
        loop {
            clock.sleep(REPORT).await;
            if writeln!(std::io::stdout(), "{}", recorder.answered()).is_err() {
                return;
            }
        }
    });
    for task in tasks {
        task.await?;
    }
    reporter.abort();
    transport.close().await;
    Ok(())
}

/// What has an idempotency key and was not answered, with the client and the key it wrote; and where a watch stopped.
type LeftOpen = (Vec<(u64, Key, u64)>, Option<(u64, Position)>);

fn left_open(args: &ClientArgs) -> Result<LeftOpen> {
    let mut before = Recording::default();
    if let Some(path) = &args.before {
        before.read(path)?;
    }
    let open = before.operations.iter().filter(|one| one.told.is_none());
    let retries = open.filter_map(|one| match &one.what {
        Asked::Write {
            writes,
            once: Some(once),
            ..
        } if writes.len() == 1 => Some((one.client, writes[0].0, *once)),
        _ => None,
    });
    let watch = before.watches.last().map(|watch| {
        let last = watch.changes.last();
        // Of that position more may be to come.
        (
            watch.map,
            last.map_or(watch.from, |(_, change)| change.position),
        )
    });
    Ok((retries.collect(), watch))
}

/// A watch, with its map and its number in the record.
struct Watching {
    number: u64,
    map: u64,
    watch: Watch,
}

struct Client {
    number: u64,
    recorder: Arc<Recorder>,
    replica: Replica,
    maps: Vec<u64>,
    keys: u64,
    random: Random,
    values: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Client {
    async fn run(self, retries: Vec<(Key, u64)>, watched: Option<(u64, Position)>) {
        for (key, once) in retries {
            self.put_once(Kind::Retry, key, once).await;
        }
        let mut watching = watched.map(|(map, from)| self.watching(map, from));
        while !self.stop.load(Ordering::Relaxed) {
            match self.random.below(1_000) {
                0..140 => self.write().await,
                140..240 => self.cas().await,
                240..310 => self.write_once().await,
                310..360 => self.write_together().await,
                360..560 => self.transact().await,
                560..860 => self.get().await,
                860..930 => self.scan(self.map()).await,
                930..960 => self.scan_stale().await,
                960..962 => self.at().await,
                962 if self.random.below(4) == 0 => self.snapshot().await,
                963 if self.random.below(4) == 0 => watching = None,
                964.. => self.watch(&mut watching, CHANGES, 1).await,
                _ => {}
            }
        }
        // Everything is there by now, and it is whole.
        for number in self.maps.clone() {
            self.scan((number, self.replica.map(number))).await;
        }
        self.watch(&mut watching, u64::MAX, LAST_TRIES).await;
    }

    fn map(&self) -> (u64, Map) {
        let number = *pick(&self.random, &self.maps);
        (number, self.replica.map(number))
    }

    fn key(&self) -> u64 {
        self.random.below(self.keys)
    }

    fn some(&self) -> u64 {
        self.values.fetch_add(1, Ordering::Relaxed)
    }

    /// A value that nobody else writes; sometimes none.
    fn value(&self) -> Value {
        (self.random.below(4) > 0).then(|| self.some())
    }

    fn ask_write(&self, kind: Kind, writes: &[(Key, Value)], mode: Mode, once: Option<u64>) -> u64 {
        let what = Asked::Write {
            writes: writes.to_vec(),
            mode,
            once,
        };
        self.recorder.ask(self.number, kind, what)
    }

    async fn write(&self) {
        let ((number, map), key, value) = (self.map(), self.key(), self.value());
        let kind = value.map_or(Kind::Delete, |_| Kind::Put);
        let asked = self.ask_write(kind, &[((number, key), value)], Mode::Serializable, None);
        let result = match value {
            Some(value) => map.put(bytes_of(key), bytes_of(value)).await,
            None => map.delete(bytes_of(key)).await,
        };
        let told = match result {
            Ok(position) => Told::Done(position, vec![]),
            Err(error) => self.not_updated(error, true).await,
        };
        self.recorder.tell(asked, told);
    }

    /// What can be said of a write after this; `sure`: if it is in the log, it took place.
    async fn not_updated(&self, error: UpdateError, sure: bool) -> Told {
        match error {
            UpdateError::NotAppended { .. }
            | UpdateError::TooLarge { .. }
            | UpdateError::TooMany { .. } => Told::Refused(None),
            UpdateError::Unknown { saved, .. } => {
                let resumed = self.replica.objects.log().resume(&saved).await;
                match resumed.as_deref() {
                    Ok([(_, Resumed::Appended(position))]) if sure => Told::Done(*position, vec![]),
                    Ok([(_, Resumed::Appended(position))]) => Told::Undecided(*position),
                    Ok([(_, Resumed::NotAppended)]) => Told::Refused(None),
                    Ok(_) | Err(_) => Told::Open,
                }
            }
        }
    }

    async fn not_decided(&self, error: DecideError) -> Told {
        match error {
            DecideError::Update(error) => self.not_updated(error, false).await,
            DecideError::Undecided { position, why } => {
                self.trouble(&why);
                Told::Undecided(position)
            }
        }
    }

    /// Some trouble passes; what does not ends the process, which is found then.
    fn trouble(&self, why: &PlayError) {
        match why {
            PlayError::Unavailable(_) | PlayError::Lost(_) | PlayError::Undecided { .. } => {
                tracing::info!(%why, "trouble");
            }
            PlayError::Trimmed(_)
            | PlayError::Operation { .. }
            | PlayError::Unopened(_)
            | PlayError::Gone(_)
            | PlayError::InLog(_)
            | PlayError::TooMuch { .. }
            | PlayError::Snapshot { .. } => {
                let _ = writeln!(std::io::stderr(), "error: client {}: {why}", self.number);
                std::process::exit(1);
            }
        }
    }

    async fn cas(&self) {
        let ((number, map), key, value) = (self.map(), self.key(), self.value());
        let held = map.get_stale(&bytes_of(key));
        let expected = match fetched(&map, key, held).await {
            Ok(expected) => expected,
            Err(why) => return self.trouble(&why),
        };
        let expect = match expected {
            None => Expect::Absent,
            Some((value, _)) if flip(&self.random) => Expect::value(bytes_of(value)),
            Some((_, version)) => Expect::Version(version),
        };
        let at = (number, key);
        let asked = self.ask_write(Kind::Cas, &[(at, value)], Mode::Serializable, None);
        let result = match value {
            Some(value) => map.cas(bytes_of(key), expect, bytes_of(value)).await,
            None => map.delete_if(bytes_of(key), expect).await,
        };
        let told = match result {
            Ok(Cas::Done { position }) => Told::Done(position, vec![(at, expected)]),
            Ok(Cas::Conflict { position, found }) => match fetched(&map, key, found).await {
                Ok(found) => Told::Refused(Some((position, vec![(at, found)]))),
                Err(why) => {
                    self.trouble(&why);
                    Told::Undecided(position)
                }
            },
            Err(error) => self.not_decided(error).await,
        };
        self.recorder.tell(asked, told);
    }

    async fn get(&self) {
        let ((number, map), key) = (self.map(), self.key());
        let asked = self.recorder.ask(self.number, Kind::Get, Asked::Read);
        let found = map.get(&bytes_of(key)).await;
        let reads = found.map(|found| vec![((number, key), found_of(found.as_ref()))]);
        self.recorder.tell(asked, self.found(reads));
    }

    async fn scan(&self, (number, map): (u64, Map)) {
        let asked = self.recorder.ask(self.number, Kind::Scan, Asked::Read);
        let contents = contents_now(&map).await;
        let reads = contents.map(|contents| reads_of(number, self.keys, &contents));
        self.recorder.tell(asked, self.found(reads));
    }

    fn found(&self, reads: Result<Reads, PlayError>) -> Told {
        match reads {
            Ok(reads) => Told::Found(reads),
            Err(why) => {
                self.trouble(&why);
                Told::Open
            }
        }
    }

    async fn scan_stale(&self) {
        let (number, map) = self.map();
        let asked = self
            .recorder
            .ask(self.number, Kind::ScanStale, Asked::ReadStale);
        let held = map.scan_stale(&Keys::all(), usize::MAX);
        let page = map.fetch(held).await;
        let reads = page.map(|page| reads_of(number, self.keys, &contents_of(&page)));
        let told = self.found(reads);
        self.recorder.tell(asked, told);
    }

    async fn at(&self) {
        let (map, hosted) = self.map();
        let back = 1 + self.random.below(BACK);
        let Some(position) = hosted.view().played().0.checked_sub(back).map(Position) else {
            return;
        };
        let what = Asked::At { map, position };
        let asked = self.recorder.ask(self.number, Kind::At, what);
        let told = match contents_at(&hosted, position).await {
            Ok(Some(contents)) => Told::Contents(contents),
            Ok(None) => Told::Open,
            Err(why) => {
                self.trouble(&why);
                Told::Open
            }
        };
        self.recorder.tell(asked, told);
    }

    async fn snapshot(&self) {
        match self.map().1.view().snapshot().await {
            Ok(_) => {}
            Err(SnapshotError::Play(why)) => self.trouble(&why),
            Err(SnapshotError::Update(error)) => drop(self.not_updated(error, false).await),
        }
    }

    async fn write_together(&self) {
        let writes = self.plan(1 + self.random.below(4));
        let mut all = Writes::new();
        for ((number, key), value) in &writes {
            let map = self.replica.map(*number);
            match value {
                Some(value) => all.put(&map, bytes_of(*key), bytes_of(*value)),
                None => all.delete(&map, bytes_of(*key)),
            }
        }
        let asked = self.ask_write(Kind::Together, &writes, Mode::Serializable, None);
        let told = match self.replica.objects.append(all).await {
            Ok(position) => Told::Done(position, vec![]),
            Err(error) => self.not_updated(error, true).await,
        };
        self.recorder.tell(asked, told);
    }

    /// Writes of so many keys at most.
    fn plan(&self, count: u64) -> Vec<(Key, Value)> {
        let writes = (0..count).map(|_| ((self.map().0, self.key()), self.value()));
        let writes: BTreeMap<Key, Value> = writes.collect();
        writes.into_iter().collect()
    }

    /// An idempotency key of a map: one of its own, or one that others use at this time, too.
    fn once(&self, map: u64) -> u64 {
        let name = if flip(&self.random) {
            self.some()
        } else {
            now_ns() / ONCE_WINDOW_NS * 2 + self.random.below(2)
        };
        name * MAPS + map
    }

    async fn write_once(&self) {
        let key = (self.map().0, self.key());
        let once = self.once(key.0);
        self.put_once(Kind::PutOnce, key, once).await;
    }

    async fn put_once(&self, kind: Kind, (number, key): Key, once: u64) {
        let value = self.some();
        let writes = [((number, key), Some(value))];
        let asked = self.ask_write(kind, &writes, Mode::Serializable, Some(once));
        let update = Update::Put {
            key: bytes_of(key),
            value: bytes_of(value),
        };
        let map = self.replica.map(number);
        let told = match map.view().update_once(once_of(once), &update).await {
            Ok((position, Applied::First(_))) => Told::Done(position, vec![]),
            Ok((_, Applied::Repeated { first, .. })) => Told::Repeated(first),
            Err(error) => self.not_decided(error).await,
        };
        self.recorder.tell(asked, told);
    }

    async fn transact(&self) {
        let (kind, mode, isolation) = *pick(
            &self.random,
            &[
                SERIALIZABLE,
                SERIALIZABLE,
                SERIALIZABLE,
                (Kind::Snapshot, Mode::Snapshot, Isolation::Snapshot),
                (Kind::WriteWrite, Mode::WriteWrite, Isolation::WriteWrite),
            ],
        );
        let writes = self.plan(*pick(&self.random, &[0, 1, 1, 2, 3]));
        let reads = (0..self.random.below(4)).map(|_| (self.map().0, self.key()));
        let reads: Vec<Key> = reads.collect();
        // What is written is often read before.
        let own = writes.iter().map(|(key, _)| *key);
        let own = own.filter(|_| flip(&self.random));
        let reads: Vec<Key> = own.chain(reads).collect();
        let scanned = (self.random.below(8) == 0).then(|| self.map().0);
        let is_once = !writes.is_empty() && self.random.below(4) == 0;
        let once = is_once.then(|| self.once(writes[0].0.0));
        let asked = if writes.is_empty() {
            let stale = mode == Mode::WriteWrite;
            let what = if stale { Asked::ReadStale } else { Asked::Read };
            self.recorder.ask(self.number, kind, what)
        } else {
            self.ask_write(kind, &writes, mode, once)
        };
        let attempts = *pick(&self.random, &[1, 3, u32::MAX]);
        let transact = self.replica.objects.transaction();
        let mut transact = transact.isolation(isolation).attempts(attempts);
        if let Some(once) = once {
            transact = transact.once(once_of(once));
        }
        let hosted = self.maps.iter();
        let maps = hosted.map(|map| (*map, self.replica.map(*map))).collect();
        let mut last = vec![];
        let result = transact.run(|txn| {
            last = body(&maps, txn, &reads, scanned, self.keys, &writes)?;
            Ok(last.clone())
        });
        let result = result.await;
        let told = self.transacted(result, last).await;
        self.recorder.tell(asked, told);
    }

    /// What to note of a transaction that read `last` when it was last tried.
    async fn transacted(
        &self,
        result: Result<Committed<Reads>, TransactError<PlayError>>,
        last: Reads,
    ) -> Told {
        match result {
            Ok(Committed {
                repeats: Some(first),
                ..
            }) => Told::Repeated(first),
            Ok(Committed {
                value,
                position: Some(position),
                ..
            }) => Told::Done(position, value),
            Ok(Committed { value, .. }) => Told::Found(value),
            Err(TransactError::Conflict(_)) => Told::Aborted(last),
            Err(TransactError::Body(why) | TransactError::Play(why)) => {
                self.trouble(&why);
                Told::Refused(None)
            }
            Err(TransactError::Update(error)) => self.not_updated(error, false).await,
            Err(TransactError::Undecided { position, why }) => {
                self.trouble(&why);
                Told::Undecided(position)
            }
        }
    }

    fn watching(&self, map: u64, from: Position) -> Watching {
        Watching {
            number: self.recorder.watch(map, from),
            map,
            watch: self.replica.map(map).watch(Keys::all(), from),
        }
    }

    /// Asks a watch for so many changes, until there has been trouble so often; begins one if there is none.
    async fn watch(&self, watching: &mut Option<Watching>, count: u64, tries: u32) {
        let watching = watching.get_or_insert_with(|| {
            let (number, map) = self.map();
            let played = map.view().played().0;
            let from = match self.random.below(3) {
                0 => played,
                1 => played + self.random.below(BACK),
                _ => played.saturating_sub(self.random.below(BACK)),
            };
            self.watching(number, Position(from))
        });
        let mut failed = 0;
        for _ in 0..count {
            let asked = now_ns();
            match watching.watch.next_ready().await {
                Ok(Some(change)) => {
                    let (at, value) = (change.position, change.value.as_ref());
                    let change = change_of(watching.map, at, &change.key, value);
                    self.recorder.changed(watching.number, change);
                }
                Ok(None) => return self.recorder.caught_up(watching.number, asked),
                Err(why) => {
                    self.trouble(&why);
                    failed += 1;
                    if failed == tries {
                        return;
                    }
                }
            }
        }
    }
}

const SERIALIZABLE: (Kind, Mode, Isolation) = (
    Kind::Serializable,
    Mode::Serializable,
    Isolation::Serializable,
);

fn once_of(name: u64) -> Once {
    Once {
        key: bytes_of(name),
        lives: ONCE_LIVES,
    }
}
