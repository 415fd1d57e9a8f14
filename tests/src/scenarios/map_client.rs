//! A client process with maps, in several loops at once: writes, reads, transactions, snapshots and watches, all written down.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milonga_client::object::map::{Cas, Expect, Update, Watch};
use milonga_client::object::{
    Applied, Committed, DecideError, Isolation, Keys, Map, ONCE_LIVES, Once, PlayError,
    SnapshotError, TransactError, UpdateError, Writes,
};
use milonga_client::{Log, Options, Resumed};
use milonga_host::{BoxFuture, Host, Random, Service};
use milonga_wire::{Address, Caller, Position, Role, ServerName};

use super::maps::{
    MAPS, Replica, body, bytes_of, change_of, contents_at, contents_now, contents_of, fetched,
    found_of, reads_of,
};
use super::workload::NoService;
use crate::object_history::{Asked, History, Key, Mode, Reads, Told, Value};
use crate::sim::faults::{flip, pick};
use crate::sim::{Machine, World};

/// How many keys each has.
const KEYS: u64 = 5;
/// For how long clients use the same idempotency keys.
const ONCE_WINDOW_US: u64 = 400_000;

/// What all client processes of a run share.
#[derive(Clone)]
pub struct Shared {
    /// The world.
    pub world: World,
    /// What they were told.
    pub history: History,
    /// Where the layout servers listen.
    pub layout: Vec<Address>,
    /// They stop before their next operation.
    pub stop: Arc<AtomicBool>,
    /// Numbers client processes.
    pub processes: Arc<AtomicU64>,
    /// What the processes that live now host, by their machine and loop.
    pub replicas: Arc<Mutex<BTreeMap<(String, u64), Replica>>>,
}

impl Shared {
    /// What is hosted, by whom.
    pub fn replicas(&self) -> MutexGuard<'_, BTreeMap<(String, u64), Replica>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One client's machine.
pub struct MapMachine {
    /// What it does.
    pub shared: Shared,
    /// Its name.
    pub name: ServerName,
    /// Its role.
    pub role: Role,
}

impl Machine for MapMachine {
    fn start(&self, host: Host) -> BoxFuture<'_, Result<Arc<dyn Service>, String>> {
        let shared = &self.shared;
        let process = shared.processes.fetch_add(1, Ordering::Relaxed);
        let caller = Caller {
            cluster: shared.world.cluster(),
            role: self.role,
            name: self.name.clone(),
        };
        let random = shared.world.random(&format!("map process {process}"));
        let options = Options {
            deadline: Duration::from_secs(*pick(&random, &[2, 5, 20])),
            call: Duration::from_millis(*pick(&random, &[200, 1_000])),
            mend: random.below(4) > 0,
            hole_wait_max: Duration::from_millis(*pick(&random, &[20, 500])),
            ..Options::default()
        };
        let tasks = host.tasks.clone();
        let log = Log::new(host, caller, shared.layout.clone(), options);
        let replica = Replica::draw(&log, &random);
        let name = self.name.to_string();
        shared.replicas().retain(|(machine, _), _| *machine != name);
        for number in 0..=random.below(3) {
            let place = (name.clone(), number);
            shared.replicas().insert(place.clone(), replica.clone());
            let client = MapClient {
                shared: shared.clone(),
                process,
                place,
                replica: replica.clone(),
                random: shared.world.random(&format!("map loop {process} {number}")),
                pause: Duration::from_millis(*pick(&random, &[1, 20, 100])),
            };
            tasks.spawn(client.run());
        }
        Box::pin(std::future::ready(Ok(
            Arc::new(NoService) as Arc<dyn Service>
        )))
    }

    fn crashed(&self, _: &Random) {}
}

/// One loop of a client process.
struct MapClient {
    shared: Shared,
    process: u64,
    /// Under which its replica is known.
    place: (String, u64),
    replica: Replica,
    random: Random,
    pause: Duration,
}

impl MapClient {
    async fn run(mut self) {
        let mut watch: Option<(usize, u64, Watch)> = None;
        while !self.shared.stop.load(Ordering::Relaxed) {
            match self.random.below(50) {
                0..6 => self.write().await,
                6..10 => self.cas().await,
                10..16 => self.read().await,
                16..18 => self.read_stale().await,
                18..32 => self.transact().await,
                32..36 => self.write_together().await,
                36..40 => self.write_once().await,
                40..42 => self.at().await,
                42 => self.snapshot().await,
                43 => self.read_tape().await,
                44 if flip(&self.random) => self.begin_anew(),
                45 => self.keep_in_log().await,
                _ => self.watch(&mut watch).await,
            }
            let pause = self.random.jittered(self.pause);
            self.log().host().clock.sleep(pause).await;
        }
    }

    fn log(&self) -> &Log {
        self.replica.objects.log()
    }

    /// Hosts other maps, from their snapshots if they have any, in the place of those it has.
    fn begin_anew(&mut self) {
        self.count("hosted anew");
        self.replica = Replica::draw(self.log(), &self.random);
        let replica = self.replica.clone();
        self.shared.replicas().insert(self.place.clone(), replica);
    }

    fn count(&self, what: &'static str) {
        self.shared.world.count(what);
    }

    /// One of the maps that it hosts, now and then one that it does not.
    fn number(&self) -> u64 {
        let hosted: Vec<u64> = self.replica.maps.keys().copied().collect();
        match self.random.below(10) {
            0 => self.random.below(MAPS),
            _ => *pick(&self.random, &hosted),
        }
    }

    fn map(&self) -> (u64, Map) {
        let number = self.number();
        (number, self.replica.map(number))
    }

    fn key(&self) -> u64 {
        self.random.below(KEYS)
    }

    fn value(&self) -> Value {
        (self.random.below(4) > 0).then(|| self.shared.history.value())
    }

    fn ask_write(&self, writes: &[(Key, Value)], mode: Mode, once: Option<u64>) -> usize {
        let what = Asked::Write {
            writes: writes.to_vec(),
            mode,
            once,
        };
        self.shared.history.ask(self.process, what)
    }

    async fn write(&self) {
        let ((number, map), key, value) = (self.map(), self.key(), self.value());
        let asked = self.ask_write(&[((number, key), value)], Mode::Serializable, None);
        let result = match value {
            Some(value) => map.put(bytes_of(key), bytes_of(value)).await,
            None => map.delete(bytes_of(key)).await,
        };
        let told = match result {
            Ok(position) => Told::Done(position, vec![]),
            Err(error) => self.not_updated(error, true).await,
        };
        self.shared.history.tell(asked, told);
    }

    /// What can be said of a write after this; `sure`: if it is in the log, it took place.
    async fn not_updated(&self, error: UpdateError, sure: bool) -> Told {
        match error {
            UpdateError::NotAppended { .. } => {
                self.count("update: not appended");
                Told::Refused(None)
            }
            UpdateError::Unknown { saved, .. } => {
                self.count("update: unknown");
                let resumed = self.log().resume(&saved).await;
                match resumed.as_deref() {
                    Ok([(_, Resumed::Appended(position))]) if sure => Told::Done(*position, vec![]),
                    Ok([(_, Resumed::Appended(position))]) => Told::Undecided(*position),
                    Ok([(_, Resumed::NotAppended)]) => Told::Refused(None),
                    Ok(_) | Err(_) => Told::Open,
                }
            }
            error @ (UpdateError::TooLarge { .. } | UpdateError::TooMany { .. }) => {
                self.shared.world.violation(error.to_string());
                Told::Open
            }
        }
    }

    async fn not_decided(&self, error: DecideError) -> Told {
        match error {
            DecideError::Update(error) => self.not_updated(error, false).await,
            DecideError::Undecided { position, why } => {
                self.count("update: undecided");
                self.trouble(&why);
                Told::Undecided(position)
            }
        }
    }

    /// Trouble that may come, and trouble that may not.
    fn trouble(&self, why: &PlayError) {
        match why {
            PlayError::Unavailable(_) => self.count("play: unavailable"),
            PlayError::Lost(_) => self.count("play: lost"),
            PlayError::Undecided { .. } => self.count("play: undecided"),
            PlayError::Trimmed(_)
            | PlayError::Operation { .. }
            | PlayError::Unopened(_)
            | PlayError::Gone(_)
            | PlayError::InLog(_)
            | PlayError::TooMuch { .. }
            | PlayError::Snapshot { .. } => self.shared.world.violation(why.to_string()),
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
            Some((value, _)) if self.random.below(2) == 0 => Expect::value(bytes_of(value)),
            Some((_, version)) => Expect::Version(version),
        };
        let at = (number, key);
        let asked = self.ask_write(&[(at, value)], Mode::Serializable, None);
        let result = match value {
            Some(value) => map.cas(bytes_of(key), expect, bytes_of(value)).await,
            None => map.delete_if(bytes_of(key), expect).await,
        };
        let told = match result {
            Ok(Cas::Done { position }) => Told::Done(position, vec![(at, expected)]),
            Ok(Cas::Conflict { position, found }) => {
                self.count("conditional write: conflict");
                match fetched(&map, key, found).await {
                    Ok(found) => {
                        if found == expected {
                            let text =
                                format!("O6: at {position} was what was expected: {found:?}");
                            self.shared.world.violation(text);
                        }
                        Told::Refused(Some((position, vec![(at, found)])))
                    }
                    Err(why) => {
                        self.trouble(&why);
                        Told::Undecided(position)
                    }
                }
            }
            Err(error) => self.not_decided(error).await,
        };
        self.shared.history.tell(asked, told);
    }

    async fn read(&self) {
        let (number, map) = self.map();
        let asked = self.shared.history.ask(self.process, Asked::Read);
        let reads = if self.random.below(3) == 0 {
            let contents = contents_now(&map).await;
            contents.map(|contents| reads_of(number, KEYS, &contents))
        } else {
            let key = self.key();
            let found = map.get(&bytes_of(key)).await;
            found.map(|found| vec![((number, key), found_of(found.as_ref()))])
        };
        let told = match reads {
            Ok(reads) => Told::Found(reads),
            Err(why) => {
                self.trouble(&why);
                Told::Open
            }
        };
        self.shared.history.tell(asked, told);
    }

    async fn read_stale(&self) {
        let (number, map) = self.map();
        let asked = self.shared.history.ask(self.process, Asked::ReadStale);
        let held = map.scan_stale(&Keys::all(), usize::MAX);
        let told = match map.fetch(held).await {
            Ok(page) => Told::Found(reads_of(number, KEYS, &contents_of(&page))),
            Err(why) => {
                self.trouble(&why);
                Told::Open
            }
        };
        self.shared.history.tell(asked, told);
    }

    async fn write_together(&self) {
        let (mut all, mut writes) = (vec![], Writes::new());
        for ((number, key), value) in self.plan(1 + self.random.below(4)) {
            let map = self.replica.map(number);
            match value {
                Some(value) => writes.put(&map, bytes_of(key), bytes_of(value)),
                None => writes.delete(&map, bytes_of(key)),
            }
            all.push(((number, key), value));
        }
        let asked = self.ask_write(&all, Mode::Serializable, None);
        let told = match self.replica.objects.append(writes).await {
            Ok(position) => Told::Done(position, vec![]),
            Err(error) => self.not_updated(error, true).await,
        };
        self.shared.history.tell(asked, told);
    }

    /// Writes of so many keys at most.
    fn plan(&self, count: u64) -> Vec<(Key, Value)> {
        let writes = (0..count).map(|_| ((self.number(), self.key()), self.value()));
        let writes: BTreeMap<Key, Value> = writes.collect();
        writes.into_iter().collect()
    }

    /// An idempotency key that others use at this time, too.
    fn once(&self, map: u64) -> (u64, Once) {
        let window = self.shared.world.now_us() / ONCE_WINDOW_US;
        let number = (window * 2 + self.random.below(2)) * MAPS + map;
        let once = Once {
            key: bytes_of(number),
            lives: ONCE_LIVES,
        };
        (number, once)
    }

    async fn write_once(&self) {
        let ((number, map), key, value) = (self.map(), self.key(), self.shared.history.value());
        let (name, once) = self.once(number);
        let writes = [((number, key), Some(value))];
        let asked = self.ask_write(&writes, Mode::Serializable, Some(name));
        let update = Update::Put {
            key: bytes_of(key),
            value: bytes_of(value),
        };
        let told = match map.view().update_once(once, &update).await {
            Ok((position, Applied::First(_))) => Told::Done(position, vec![]),
            Ok((_, Applied::Repeated { first, .. })) => {
                self.count("update: repeated");
                Told::Repeated(first)
            }
            Err(error) => self.not_decided(error).await,
        };
        self.shared.history.tell(asked, told);
    }

    async fn transact(&self) {
        let (mode, isolation) = *pick(
            &self.random,
            &[
                (Mode::Serializable, Isolation::Serializable),
                (Mode::Serializable, Isolation::Serializable),
                (Mode::Serializable, Isolation::Serializable),
                (Mode::Snapshot, Isolation::Snapshot),
                (Mode::WriteWrite, Isolation::WriteWrite),
            ],
        );
        let count = *pick(&self.random, &[0, 1, 1, 2, 3]);
        let writes = self.plan(count);
        let reads: Vec<Key> = (0..self.random.below(4))
            .map(|_| (self.number(), self.key()))
            .collect();
        // What is written is often read before.
        let own = writes.iter().map(|(key, _)| *key);
        let own = own.filter(|_| self.random.below(2) == 0);
        let reads: Vec<Key> = own.chain(reads).collect();
        let scanned = (self.random.below(5) == 0).then(|| self.number());
        let is_once = !writes.is_empty() && self.random.below(4) == 0;
        let once = is_once.then(|| self.once(writes[0].0.0));
        let asked = if writes.is_empty() {
            let stale = mode == Mode::WriteWrite;
            let what = if stale { Asked::ReadStale } else { Asked::Read };
            self.shared.history.ask(self.process, what)
        } else {
            self.ask_write(&writes, mode, once.as_ref().map(|(name, _)| *name))
        };
        let attempts = *pick(&self.random, &[1, 3, u32::MAX]);
        let transact = self.replica.objects.transaction();
        let mut transact = transact.isolation(isolation).attempts(attempts);
        if let Some((_, once)) = once {
            transact = transact.once(once);
        }
        let read = reads.iter().map(|(map, _)| *map);
        let written = writes.iter().map(|((map, _), _)| *map);
        let maps = read.chain(written).chain(scanned);
        let maps = maps.map(|map| (map, self.replica.map(map))).collect();
        let mut last = vec![];
        let result = transact.run(|txn| {
            last = body(&maps, txn, &reads, scanned, KEYS, &writes)?;
            Ok(last.clone())
        });
        let result = result.await;
        let told = self.transacted(result, last).await;
        self.shared.history.tell(asked, told);
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
            }) => {
                self.count("transaction: repeated");
                Told::Repeated(first)
            }
            Ok(Committed {
                value,
                position: Some(position),
                attempts,
                ..
            }) => {
                self.count("transaction: committed");
                if attempts > 1 {
                    self.count("transaction: tried again");
                }
                Told::Done(position, value)
            }
            Ok(Committed { value, .. }) => Told::Found(value),
            Err(TransactError::Conflict(_)) => {
                self.count("transaction: aborted");
                Told::Aborted(last)
            }
            Err(TransactError::Body(why) | TransactError::Play(why)) => {
                self.trouble(&why);
                Told::Refused(None)
            }
            Err(TransactError::Update(error)) => self.not_updated(error, false).await,
            Err(TransactError::Undecided { position, why }) => {
                self.count("transaction: undecided");
                self.trouble(&why);
                Told::Undecided(position)
            }
        }
    }

    async fn at(&self) {
        let (map, hosted) = self.map();
        let back = self.random.below(40);
        let Some(position) = hosted.view().played().0.checked_sub(1 + back).map(Position) else {
            return;
        };
        let asked = self
            .shared
            .history
            .ask(self.process, Asked::At { map, position });
        let told = match contents_at(&hosted, position).await {
            Ok(Some(contents)) => {
                self.count("state as of a position");
                Told::Contents(contents)
            }
            Ok(None) => Told::Open,
            Err(why) => {
                self.trouble(&why);
                Told::Open
            }
        };
        self.shared.history.tell(asked, told);
    }

    /// From some value on, or from none on, they stay in the log.
    async fn keep_in_log(&self) {
        let (_, map) = self.map();
        let from_bytes = *pick(&self.random, &[None, Some(0), Some(2)]);
        match map.keep_in_log(from_bytes).await {
            Ok(_) => self.count("values in the log, or not"),
            Err(error) => drop(self.not_decided(error).await),
        }
    }

    async fn snapshot(&self) {
        let number = self.number();
        let result = if flip(&self.random) {
            self.replica.map(number).view().snapshot().await
        } else {
            self.replica.tape(number).snapshot().await
        };
        match result {
            Ok(_) => self.count("snapshot"),
            Err(SnapshotError::Play(why)) => self.trouble(&why),
            Err(SnapshotError::Update(error)) => drop(self.not_updated(error, false).await),
        }
    }

    async fn read_tape(&self) {
        let number = self.number();
        let asked = self.shared.history.now();
        let tape = self.replica.tape(number);
        match tape.read(|tape| tape.told(number)).await {
            Ok(changes) => self.shared.history.listed(number, asked, changes),
            Err(why) => self.trouble(&why),
        }
    }

    /// Asks a watch for some changes; begins one if there is none.
    async fn watch(&self, watch: &mut Option<(usize, u64, Watch)>) {
        if watch.is_none() || self.random.below(20) == 0 {
            let (number, map) = self.map();
            let played = map.view().played().0;
            let from = Position(match self.random.below(3) {
                0 => 0,
                1 => played,
                _ => self.random.below(played + 20),
            });
            let id = self.shared.history.watch(number, from);
            *watch = Some((id, number, map.watch(Keys::all(), from)));
        }
        let Some((id, number, watch)) = watch else {
            return;
        };
        for _ in 0..=self.random.below(30) {
            let asked = self.shared.history.now();
            match watch.next_ready().await {
                Ok(Some(change)) => {
                    self.count("change watched");
                    let (at, value) = (change.position, change.value.as_ref());
                    let change = change_of(*number, at, &change.key, value);
                    self.shared.history.changed(*id, change);
                }
                Ok(None) => return self.shared.history.caught_up(*id, asked),
                Err(why) => return self.trouble(&why),
            }
        }
    }
}
