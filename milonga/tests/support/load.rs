//! Clients that append one record after another while a test breaks things, and what must be true of the log afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use milonga_client::{AppendError, ClusterConfig, Layout, Log, Position, Span};
use milonga_host::{Clock, Moment};

/// How long anything that is waited for may take: a bound on a test that fails, no promise.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// How long an append may take: longer than any outage that a test makes.
const DEADLINE: Duration = Duration::from_secs(90);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two appends of one client: the log stays small enough to be read through often.
const BREATH: Duration = Duration::from_millis(4);

/// Waits with a bound.
pub(crate) struct Wait {
    clock: Clock,
    began: Moment,
}

impl Wait {
    pub(crate) fn new() -> Self {
        let clock = Clock::real();
        let began = clock.now();
        Self { clock, began }
    }

    /// Lets a moment pass before the next look at `what`.
    pub(crate) async fn again(&self, what: &str) {
        let waited = self.clock.now().since(self.began);
        assert!(waited < PATIENCE, "waited in vain: {what}");
        self.clock.sleep(PAUSE).await;
    }

    /// Waits until `is_so`.
    pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let wait = Self::new();
        while !is_so() {
            wait.again(what).await;
        }
    }
}

/// What the clients know.
#[derive(Clone, Default)]
pub(crate) struct Told {
    acknowledged: Vec<(Position, Bytes)>,
    /// Proved to be nowhere.
    refused: BTreeSet<Bytes>,
    unknown: BTreeSet<Bytes>,
    /// In words, of the last two.
    errors: Vec<String>,
}

impl Told {
    /// No append failed, or ended without being known to be there or not.
    #[track_caller]
    pub(crate) fn all_acknowledged(&self) {
        assert!(self.errors.is_empty(), "{:?}", self.errors);
        assert!(!self.acknowledged.is_empty());
    }

    /// Every append has an outcome, or is one of so many that were on their way when everything was killed.
    #[track_caller]
    pub(crate) fn at_most_unknown(&self, count: usize) {
        assert!(self.refused.is_empty(), "{:?}", self.errors);
        assert!(self.unknown.len() <= count, "{:?}", self.errors);
    }

    /// Reads the log from its start to its end as `log`: what was acknowledged is where it was said to be, what was refused is
    /// not there, and nothing is there twice.
    pub(crate) async fn is_in(&self, log: &Log) {
        self.rest(log).await;
    }

    /// The same once every client has stopped: besides, nothing is there that nobody appended.
    pub(crate) async fn is_all_of(&self, log: &Log) {
        for record in self.rest(log).await.keys() {
            assert!(self.unknown.contains(record), "{record:?} is nobody's");
        }
    }

    /// What else is there.
    async fn rest(&self, log: &Log) -> BTreeMap<Bytes, Position> {
        let end = log.end().await.unwrap().position;
        let entries = log.read_range(Span::new(Position::FIRST, end)).await;
        let mut seen = BTreeMap::new();
        for entry in &entries.unwrap() {
            if let Some(payload) = entry.payload() {
                let before = seen.insert(payload.clone(), entry.position);
                assert_eq!(before, None, "also at {}", entry.position);
            }
        }
        for (position, record) in &self.acknowledged {
            assert_eq!(seen.remove(record), Some(*position), "{record:?}");
        }
        for record in &self.refused {
            assert!(!seen.contains_key(record), "{record:?} was refused");
        }
        seen
    }

    /// What both know.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.acknowledged.extend(other.acknowledged.iter().cloned());
        both.refused.extend(other.refused.iter().cloned());
        both.unknown.extend(other.unknown.iter().cloned());
        both.errors.extend(other.errors.iter().cloned());
        both
    }

    /// Somebody else was told so.
    pub(crate) fn acknowledge(&mut self, position: Position, record: &'static str) {
        let record = Bytes::from_static(record.as_bytes());
        self.acknowledged.push((position, record));
    }

    /// Above everything that was acknowledged.
    pub(crate) fn end(&self) -> Position {
        let last = self.acknowledged.iter().map(|(position, _)| *position);
        last.max().map_or(Position::FIRST, Position::next)
    }
}

/// Appending clients, on a thread of their own.
pub(crate) struct Load {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    /// Acknowledged, of each client.
    counts: Vec<AtomicU64>,
    told: Mutex<Told>,
}

impl Load {
    /// Starts `clients`, each a session of its own, with the certificate that the cluster file names.
    pub(crate) fn start(file: &Path, clients: usize) -> Self {
        Self::start_in(file, clients, || {})
    }

    /// The same on a thread that is prepared first: sockets belong to where the thread is that makes them.
    pub(crate) fn start_in(
        file: &Path,
        clients: usize,
        prepare: impl FnOnce() + Send + 'static,
    ) -> Self {
        static LOADS: AtomicU64 = AtomicU64::new(0);
        let load = LOADS.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            counts: (0..clients).map(|_| AtomicU64::new(0)).collect(),
            told: Mutex::default(),
        });
        let config = ClusterConfig::load(file).unwrap();
        let with = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            prepare();
            runtime().block_on(async {
                let logs: Vec<Log> = (0..clients).map(|_| config.connect().unwrap()).collect();
                let appends = logs
                    .iter()
                    .enumerate()
                    .map(|(client, log)| with.append(log.with_deadline(DEADLINE), load, client));
                join_all(appends).await;
            });
        });
        let thread = Some(thread);
        Self { shared, thread }
    }

    /// Waits until every client has got `count` acknowledgements more: appends go on.
    pub(crate) async fn goes_on(&self, count: u64) {
        let counts = || self.shared.counts.iter();
        let wanted: Vec<u64> = counts()
            .map(|acknowledged| acknowledged.load(Ordering::Relaxed) + count)
            .collect();
        Wait::until("every client appends", || {
            let thread = self.thread.as_ref();
            assert!(thread.is_some_and(|thread| !thread.is_finished()));
            let mut both = counts().zip(&wanted);
            both.all(|(acknowledged, wanted)| acknowledged.load(Ordering::Relaxed) >= *wanted)
        })
        .await;
    }

    /// What is known by now.
    pub(crate) fn told(&self) -> Told {
        self.shared.told.lock().unwrap().clone()
    }

    /// Ends every client after its last append.
    pub(crate) fn stop(mut self) -> Told {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.told()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    async fn append(&self, log: Log, load: u64, client: usize) {
        let clock = log.host().clock.clone();
        let mut number = 0_u64;
        while !self.stop.load(Ordering::Relaxed) {
            let record = Bytes::from(format!("{load}:{client}:{number}"));
            number += 1;
            let outcome = log.append(record.clone(), &[]).await;
            {
                let mut told = self.told.lock().unwrap();
                match outcome {
                    Ok(position) => told.acknowledged.push((position, record)),
                    Err(error) => {
                        told.errors.push(error.to_string());
                        match error {
                            AppendError::Unknown { .. } => told.unknown.insert(record),
                            AppendError::NotAppended { .. } | AppendError::Partly { .. } => {
                                told.refused.insert(record)
                            }
                        };
                        continue;
                    }
                }
            }
            self.counts[client].fetch_add(1, Ordering::Relaxed);
            clock.sleep(BREATH).await;
        }
    }
}

/// A runtime for the calling thread.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// A client with the certificate that the cluster file names.
pub(crate) fn connect(file: &Path) -> Log {
    let log = ClusterConfig::load(file).unwrap().connect().unwrap();
    log.with_deadline(DEADLINE)
}

/// Waits until the newest layout `is_so`, and returns it.
pub(crate) async fn layout(log: &Log, what: &str, is_so: impl Fn(&Layout) -> bool) -> Layout {
    let wait = Wait::new();
    loop {
        let newest = log.newest_layout().await.unwrap();
        if is_so(&newest.layout) {
            return newest.layout.clone();
        }
        wait.again(&format!("{what}: {:?}", names(&newest.layout)))
            .await;
    }
}

/// The names of the units that take new positions, chain by chain.
pub(crate) fn names(layout: &Layout) -> Vec<Vec<String>> {
    let chains = layout.open_segment().chains.iter();
    let names = chains.map(|chain| {
        let units = layout.units_of(chain);
        units.map(|unit| unit.name.to_string()).collect()
    });
    names.collect()
}

/// Whether the layout lists a unit of that name in any chain.
pub(crate) fn lists(layout: &Layout, name: &str) -> bool {
    layout.units.iter().any(|unit| unit.name.as_str() == name)
}

/// Whether every position has as many copies as it should.
pub(crate) fn is_full(layout: &Layout) -> bool {
    let replicas = usize::from(layout.settings.replicas);
    let mut chains = layout.segments.iter().flat_map(|segment| &segment.chains);
    chains.all(|chain| !chain.unreachable && chain.units.len() >= replicas)
}
