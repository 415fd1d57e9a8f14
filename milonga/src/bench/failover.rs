//! How long appends stand still when a process is killed, or all of them.
//!
//! ```text
//!   kill          known to be gone          term sealed    decided    sequencer serves      next acknowledgement
//! ───┼──── detect ──────────┼────── seal ────────┼── decide ──┼─── bootstrap ──┼──────────────────┼──▶
//!    └───────────────────────────── total: the longest of all clients ─────────────────────────────┘
//! ```
//! Each round has a cluster of its own, in a temporary folder: `milonga dev` as it comes, with its defaults. Afterwards the
//! log is read through: every acknowledged record is at its position, and no record is there twice.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use milonga_client::reconfigure::Phases;
use milonga_client::{AppendError, ClusterConfig, Log, Position, Span};
use milonga_host::{Clock, Moment, Random};
use serde::Serialize;

use crate::dev::Child;
use crate::failure::{Code, Failure, Outcome};
use crate::output::say;

/// How long a client goes on after the kill, at least.
const AFTER: Duration = Duration::from_secs(2);

/// What is killed.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Victim {
    /// The sequencer that issues positions.
    Sequencer,
    /// A head.
    Head,
    /// A unit between head and tail.
    Middle,
    /// A tail.
    Tail,
    /// A layout server.
    Layout,
    /// Every process at once; they are started again. The stall ends with the first append after that.
    Everything,
}

/// How failover is measured.
#[derive(Clone, Debug, clap::Parser)]
pub struct FailoverArgs {
    /// What is killed.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Victim::Sequencer, Victim::Head, Victim::Middle, Victim::Tail, Victim::Layout])]
    pub victims: Vec<Victim>,
    /// Rounds per victim, each on a fresh cluster, the kill at a random moment.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// Clients that append one record after another.
    #[arg(long, value_name = "C", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub clients: u32,
    /// Bytes of a record, at least 16.
    #[arg(long, value_name = "B", default_value_t = 128, value_parser = clap::value_parser!(u32).range(16..=65_536))]
    pub size: u32,
}

/// What one kill did, or the longest of several.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Stall {
    /// From the kill until it was known that there has to be a new term.
    pub detect: f64,
    /// Promises and seals.
    pub seal: f64,
    /// The vote.
    pub decide: f64,
    /// Until the sequencer serves.
    pub bootstrap: f64,
    /// The longest time between two acknowledgements of one client.
    pub total: f64,
}

/// One round.
#[derive(Clone, Debug, Serialize)]
pub struct Kill {
    victim: Victim,
    name: String,
    stall_ms: Stall,
    ops: u64,
    errors: u64,
    unknown: u64,
}

/// All rounds.
#[derive(Clone, Debug, Serialize)]
pub struct FailoverReport {
    bench: &'static str,
    ops: u64,
    seconds: f64,
    errors: u64,
    /// Appends that ended without being known to be there or not.
    unknown: u64,
    /// The longest stall, and its parts.
    stall_ms: Stall,
    /// Of the totals.
    total_p50_ms: f64,
    /// Of the totals.
    total_p99_ms: f64,
    clients: u32,
    size: u32,
    kills: Vec<Kill>,
}

impl FailoverReport {
    /// For people.
    pub fn text(&self) -> String {
        let mut lines = vec![format!(
            "{:10} {:14} {:>8} {:>8} {:>8} {:>9} {:>8}   ms",
            "VICTIM", "NAME", "DETECT", "SEAL", "DECIDE", "BOOTSTRAP", "TOTAL"
        )];
        let row = |what: &str, name: &str, stall: &Stall| {
            format!(
                "{what:10} {name:14} {:>8.1} {:>8.1} {:>8.1} {:>9.1} {:>8.1}",
                stall.detect, stall.seal, stall.decide, stall.bootstrap, stall.total
            )
        };
        for kill in &self.kills {
            let victim = format!("{:?}", kill.victim).to_lowercase();
            lines.push(row(&victim, &kill.name, &kill.stall_ms));
        }
        lines.push(row("longest", "", &self.stall_ms));
        lines.push(format!(
            "appends stood still for {:.0} ms at p50, {:.0} ms at p99; {} acknowledged, all there once; {} failed, {} unknown",
            self.total_p50_ms, self.total_p99_ms, self.ops, self.errors, self.unknown
        ));
        lines.join("\n")
    }
}

/// Kills processes under load and measures how long appends stand still.
///
/// # Errors
/// [`Failure`] if a cluster does not start, or with [`Code::Damage`] if it lost or doubled what it acknowledged.
pub async fn failover(args: &FailoverArgs) -> Outcome<FailoverReport> {
    let (clock, random) = (Clock::real(), Random::real());
    let began = clock.now();
    let mut kills = vec![];
    for victim in &args.victims {
        for _ in 0..args.rounds {
            let kill = round(args, *victim, &clock, &random).await?;
            say(format_args!(
                "{} killed: {:.0} ms",
                kill.name, kill.stall_ms.total
            ));
            kills.push(kill);
        }
    }
    let mut totals: Vec<f64> = kills.iter().map(|kill| kill.stall_ms.total).collect();
    totals.sort_by(f64::total_cmp);
    let at = |percent: usize| totals[((totals.len() - 1) * percent).div_ceil(100)];
    let longest = kills
        .iter()
        .max_by(|a, b| a.stall_ms.total.total_cmp(&b.stall_ms.total));
    Ok(FailoverReport {
        bench: "failover",
        ops: kills.iter().map(|kill| kill.ops).sum(),
        seconds: clock.now().since(began).as_secs_f64(),
        errors: kills.iter().map(|kill| kill.errors).sum(),
        unknown: kills.iter().map(|kill| kill.unknown).sum(),
        stall_ms: longest.map(|kill| kill.stall_ms).unwrap_or_default(),
        total_p50_ms: at(50),
        total_p99_ms: at(99),
        clients: args.clients,
        size: args.size,
        kills,
    })
}

/// What one client did.
#[derive(Default)]
struct Done {
    /// Position and content of what was acknowledged.
    acknowledged: Vec<(Position, Bytes)>,
    errors: u64,
    unknown: u64,
    /// The longest time between two acknowledgements, the second of which came after the kill.
    longest: Duration,
}

async fn round(
    args: &FailoverArgs,
    victim: Victim,
    clock: &Clock,
    random: &Random,
) -> Outcome<Kill> {
    let own = tempfile::tempdir()
        .map_err(|why| Failure::failed(format!("no temporary directory: {why}")))?;
    let cluster = Child::start(&own.path().join("cluster"), &[])?;
    let logs: Vec<Log> = (0..args.clients)
        .map(|_| connect(cluster.dir()))
        .collect::<Outcome<_>>()?;
    let name = name_of(&logs[0], victim, random).await?;
    let killed = Arc::new(std::sync::OnceLock::new());
    let stop = Arc::new(AtomicBool::new(false));
    let clients = logs.iter().enumerate().map(|(number, log)| {
        let (log, killed, stop) = (log.clone(), Arc::clone(&killed), Arc::clone(&stop));
        tokio::spawn(append(log, number as u32, args.size, killed, stop))
    });
    let clients: Vec<_> = clients.collect();
    let pause = Duration::from_millis(500 + random.below(1_000));
    clock.sleep(pause).await;
    let moment = clock.now();
    let _ = killed.set(moment);
    let cluster = if victim == Victim::Everything {
        // Elsewhere: it waits until the cluster is ready, and the clients go on meanwhile.
        let anew = tokio::task::spawn_blocking(move || cluster.start_anew()).await;
        anew.map_err(|error| Failure::failed(format!("nothing was started again: {error}")))??
    } else {
        cluster.kill(&name)?;
        cluster
    };
    clock.sleep(AFTER).await;
    stop.store(true, Ordering::Relaxed);
    let mut done = vec![];
    for client in join_all(clients).await {
        done.push(client.map_err(|error| Failure::failed(format!("a client ended: {error}")))?);
    }
    verify(&logs[0], &done).await?;
    drop(cluster);
    let total = done.iter().map(|done| done.longest).max();
    let phases = logs.iter().flat_map(Log::changes);
    let first = phases
        .filter(|phases| phases.began.since(moment) > Duration::ZERO)
        .min_by_key(|phases| phases.began.since(moment));
    Ok(Kill {
        victim,
        name,
        stall_ms: stall(moment, first, total.unwrap_or_default()),
        ops: done.iter().map(|done| done.acknowledged.len() as u64).sum(),
        errors: done.iter().map(|done| done.errors).sum(),
        unknown: done.iter().map(|done| done.unknown).sum(),
    })
}

fn connect(dir: &Path) -> Outcome<Log> {
    Ok(ClusterConfig::load(&dir.join(crate::connect::FILE))?.connect()?)
}

fn stall(killed: Moment, first: Option<Phases>, total: Duration) -> Stall {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    first.map_or(
        Stall {
            total: ms(total),
            ..Stall::default()
        },
        |phases| Stall {
            detect: ms(phases.began.since(killed)),
            seal: ms(phases.seal),
            decide: ms(phases.decide),
            bootstrap: ms(phases.bootstrap),
            total: ms(total),
        },
    )
}

async fn name_of(log: &Log, victim: Victim, random: &Random) -> Outcome<String> {
    let decided = log.layout().await?;
    let layout = &decided.layout;
    let chains = &layout.open_segment().chains;
    let chain = &chains[random.below(chains.len() as u64) as usize];
    let units: Vec<_> = layout.units_of(chain).collect();
    let server = match victim {
        Victim::Sequencer => &layout.sequencer,
        Victim::Head => units[0],
        Victim::Middle => units[units.len() / 2],
        Victim::Tail => units[units.len() - 1],
        Victim::Everything => return Ok("everything".to_owned()),
        Victim::Layout => {
            &layout.layout_servers[random.below(layout.layout_servers.len() as u64) as usize]
        }
    };
    Ok(server.name.to_string())
}

/// Appends one record after another, each unlike all others.
async fn append(
    log: Log,
    client: u32,
    size: u32,
    killed: Arc<std::sync::OnceLock<Moment>>,
    stop: Arc<AtomicBool>,
) -> Done {
    let clock = log.host().clock.clone();
    let (mut done, mut last) = (Done::default(), clock.now());
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let mut record = vec![0; size as usize];
        record[..4].copy_from_slice(&client.to_le_bytes());
        record[4..12].copy_from_slice(&number.to_le_bytes());
        number += 1;
        let record = Bytes::from(record);
        match log.append(record.clone(), &[]).await {
            Ok(position) => {
                let now = clock.now();
                if killed.get().is_some() {
                    done.longest = done.longest.max(now.since(last));
                }
                last = now;
                done.acknowledged.push((position, record));
            }
            Err(AppendError::Unknown { .. }) => done.unknown += 1,
            Err(error) => {
                tracing::info!(%error, "an append failed");
                done.errors += 1;
            }
        }
    }
    done
}

/// Every acknowledged record is where it was said to be, and no record is there twice.
async fn verify(log: &Log, done: &[Done]) -> Outcome {
    let damage = |what: String| Err(Failure::new(Code::Damage, what));
    let end = log.end().await?.position;
    let entries = log.read_range(Span::new(Position::FIRST, end)).await?;
    let mut seen: BTreeMap<Bytes, Position> = BTreeMap::new();
    for entry in &entries {
        if let Some(payload) = entry.payload()
            && let Some(before) = seen.insert(payload.clone(), entry.position)
        {
            return damage(format!(
                "the record at {before} is also at {}",
                entry.position
            ));
        }
    }
    for (position, record) in done.iter().flat_map(|done| &done.acknowledged) {
        if seen.get(record) != Some(position) {
            return damage(format!("what was acknowledged at {position} is not there"));
        }
    }
    Ok(())
}
