//! A replicated map: reads and writes of keys, transactions, and how fast a copy is played.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use milonga_client::object::map::{Keys, MapState, Update};
use milonga_client::object::{Map, Objects, PlayError, TransactError, Transaction, Writes};
use milonga_client::{Log, StreamId};
use milonga_host::Host;

use super::append::record;
use super::meter::{Sample, closed_loop, processor_time};
use super::{BenchError, KvArgs, PlaybackArgs, Report, TxnArgs, in_turn};

/// Keys that one append writes before anything is measured.
const RUN: u64 = 2_000;

/// Gets that are linearizable, and puts, of one process.
pub(super) async fn kv(log: &Log, args: &KvArgs) -> Result<Report, BenchError> {
    let keys = Keyed::prepare(log, "bench-kv", args.keys, args.size).await?;
    let writes = u64::from(args.writes);
    let report = measure(log, &args.load, move |host| {
        let keys = keys.clone();
        let writes_now = host.random.below(100) < writes;
        async move {
            if writes_now {
                let put = keys.map.put(keys.any(), keys.value.clone()).await;
                put.map_err(|error| tracing::debug!(%error, "a put failed"))
                    .is_ok()
            } else {
                let got = keys.map.get(&keys.any()).await;
                got.map_err(|error| tracing::debug!(%error, "a get failed"))
                    .is_ok()
            }
        }
    });
    let report = report.await?;
    of_cluster(log, "kv", report.sized(args.size, 1), args.load.concurrency).await
}

/// Transactions of one process: each reads some keys, and some of them write.
pub(super) async fn txn(log: &Log, args: &TxnArgs) -> Result<Report, BenchError> {
    let keys = Keyed::prepare(log, "bench-txn", args.keys, args.size).await?;
    let (reads, writes) = (args.reads, u64::from(args.writes));
    let report = measure(log, &args.load, move |host| {
        let keys = keys.clone();
        let writes_now = host.random.below(100) < writes;
        async move {
            let named: Vec<Bytes> = (0..reads).map(|_| keys.any()).collect();
            let body = |txn: &mut Transaction<'_>| {
                for key in &named {
                    txn.get(&keys.map, key)?;
                }
                if writes_now && let Some(key) = named.first() {
                    txn.put(&keys.map, key.clone(), keys.value.clone());
                }
                Ok(())
            };
            let done: Result<_, TransactError<PlayError>> =
                keys.map.view().objects().transact(body).await;
            done.map_err(|error| tracing::debug!(%error, "a transaction failed"))
                .is_ok()
        }
    });
    let report = report.await?;
    of_cluster(
        log,
        "txn",
        report.sized(args.size, 1),
        args.load.concurrency,
    )
    .await
}

/// How fast a new copy of a map is played, from the start of its history or from a snapshot.
pub(super) async fn playback(log: &Log, args: &PlaybackArgs) -> Result<Report, BenchError> {
    let name = format!(
        "bench-playback-{}-{}-{}",
        args.updates, args.keys, args.size
    );
    let stream = StreamId::of_name(&name);
    let written = log.end_of(&[stream]).await?;
    let is_there = written.streams.iter().any(
        |link| !matches!(&link.before, milonga_client::Before::Known(before) if before.is_empty()),
    );
    if !is_there {
        let map = Map::of(Objects::new(log).host::<MapState>(stream));
        let value = record(args.size);
        let mut next = 0;
        while next < args.updates {
            let count = RUN.min(args.updates - next);
            let updates: Vec<Bytes> = (next..next + count)
                .map(|number| {
                    let key = key(number % args.keys);
                    let value = value.clone();
                    map.view().record(&Update::Put { key, value })
                })
                .collect::<Result<_, _>>()?;
            log.append_batch(&updates, &[stream]).await?;
            next += count;
        }
    }
    if args.from_snapshot {
        let map = Map::of(Objects::new(log).host::<MapState>(stream));
        map.view()
            .snapshot()
            .await
            .map_err(|error| BenchError::Objects(error.to_string()))?;
    }
    let mut samples = vec![];
    for _ in 0..args.rounds {
        // A client of its own: nothing is known yet.
        let view = Objects::new(log).host::<MapState>(stream);
        let (began, cpu) = (log.host().clock.now(), processor_time());
        view.sync().await?;
        let took = log.host().clock.now().since(began);
        let spent = processor_time().saturating_sub(cpu);
        let held = view.read_stale(MapState::len) as u64;
        if held != args.keys.min(args.updates) {
            return Err(BenchError::Objects(format!("{held} keys were played")));
        }
        samples.push(played(args, took, spent));
    }
    let mut report = Report::of(&super::figures::merged(samples.clone()));
    report.rounds = samples
        .iter()
        .map(|sample| super::Round {
            ops_per_s: sample.per_second(),
            baseline_ops_per_s: None,
        })
        .collect();
    of_cluster(log, "playback", report.sized(args.size, 1), 1).await
}

fn played(args: &PlaybackArgs, took: Duration, cpu: Duration) -> Sample {
    let mut latency = Histogram::new(3).expect("three digits are allowed");
    latency.saturating_record(took.as_nanos() as u64);
    let operations = if args.from_snapshot {
        args.keys
    } else {
        args.updates
    };
    Sample {
        operations,
        errors: 0,
        seconds: took.as_secs_f64(),
        cpu,
        cpu_ends: operations,
        latency,
    }
}

async fn measure<F>(
    log: &Log,
    load: &super::Load,
    operation: impl Fn(&Host) -> F + Clone + Send + Sync + 'static,
) -> Result<Report, BenchError>
where
    F: Future<Output = bool> + Send + 'static,
{
    let (host, plan) = (log.host(), load.plan());
    let round = || {
        let (host, operation) = (host.clone(), operation.clone());
        let concurrency = load.concurrency;
        let running = async move {
            let own = host.clone();
            closed_loop(&host, concurrency, plan, move |_| operation(&own)).await
        };
        Box::pin(running) as milonga_host::BoxFuture<'_, Sample>
    };
    in_turn(load, &round, None).await
}

async fn of_cluster(
    log: &Log,
    bench: &'static str,
    report: Report,
    concurrency: u32,
) -> Result<Report, BenchError> {
    let decided = log.layout().await?;
    let open = decided.layout.open_segment();
    Ok(Report {
        bench,
        chains: Some(open.chains.len()),
        replicas: Some(open.chains[0].units.len()),
        concurrency,
        ..report
    })
}

/// A map with some keys.
#[derive(Clone)]
struct Keyed {
    map: Map,
    keys: u64,
    value: Bytes,
    host: Arc<Host>,
}

impl Keyed {
    async fn prepare(log: &Log, name: &str, keys: u64, size: u32) -> Result<Self, BenchError> {
        let wrong = |error: &dyn std::fmt::Display| BenchError::Objects(error.to_string());
        let objects = Objects::new(log);
        let map = Map::open(&objects, name)
            .await
            .map_err(|error| wrong(&error))?;
        let value = record(size);
        let page = map.scan(&Keys::all(), 1).await?;
        if page.entries.is_empty() || map.view().read(MapState::len).await? < keys as usize {
            for run in (0..keys).step_by(RUN as usize) {
                let mut writes = Writes::new();
                for number in run..keys.min(run + RUN) {
                    writes.put(&map, key(number), value.clone());
                }
                objects
                    .append(writes)
                    .await
                    .map_err(|error| wrong(&error))?;
            }
            map.view().sync().await?;
        }
        Ok(Self {
            map,
            keys,
            value,
            host: Arc::new(log.host().clone()),
        })
    }

    fn any(&self) -> Bytes {
        key(self.host.random.below(self.keys))
    }
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key {number:010}"))
}
