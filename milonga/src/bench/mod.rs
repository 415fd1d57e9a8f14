//! Measurements: closed loops against a cluster, each beside what the same machine does with nothing in between.
//!
//! ```text
//! append, read, token ─▶ meter ◀─ baseline: the same loop over the same transport, with bare servers
//!        A                                        B                 measured in turn, B A B A …
//! ```
//! Figures of one machine say little on another, and on a shared one little an hour later. So every figure comes with its
//! ratio to a baseline that was measured in the same minute, in rounds that take turns, and the ratio is of the medians.
//!
//! - M1 A loop is closed: each of `concurrency` tasks of one client process starts its next operation when the last ends.
//! - M2 What starts or ends outside the window counts for nothing; what fails counts as an error, never as an operation.
//! - M3 Cluster and baseline are measured with the same window, concurrency, sizes, transport options and client runtime.

mod append;
mod baseline;
mod failover;
mod figures;
mod meter;
mod objects;
mod read;
mod token;

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, Subcommand};
use milonga_client::object::{PlayError, UpdateError};
use milonga_client::{AppendError, Log, ReadError, Unavailable};
use milonga_host::{BoxFuture, Host};

pub use baseline::{NodeArgs, node};
pub use failover::{FailoverArgs, FailoverReport, Kill, Stall, Victim, failover};
pub use figures::{Latency, Line, Report, Round, UnitReads};

use baseline::{Bare, Probe};
use figures::{median, merged};
use meter::{Plan, Sample};

/// Bytes of the largest record.
const SIZE_MAX: u32 = milonga_wire::limits::ENTRY_BYTES_MAX as u32;

/// What `milonga bench` is asked to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What to measure.
    #[command(subcommand)]
    pub what: What,
}

/// The measurements.
#[derive(Clone, Debug, Subcommand)]
pub enum What {
    /// Appends: a token, then the whole chain, durably.
    #[command(
        after_help = "Example:\n  milonga bench append --concurrency 64 --size 128 --seconds 3s"
    )]
    Append(AppendArgs),
    /// Reads of single records.
    #[command(after_help = "Example:\n  milonga bench read --order random --concurrency 64")]
    Read(ReadArgs),
    /// Tokens alone. Positions issued and not written become holes, which readers fill.
    #[command(after_help = "Example:\n  milonga bench token --concurrency 256")]
    Token(TokenArgs),
    /// Linearizable gets, and puts, of keys of one map.
    #[command(after_help = "Example:\n  milonga bench kv --concurrency 64 --writes 5")]
    Kv(KvArgs),
    /// Transactions on one map: each reads some keys, some write one of them.
    #[command(after_help = "Example:\n  milonga bench txn --concurrency 256 --writes 10")]
    Txn(TxnArgs),
    /// How fast a new copy of a map is played, from its start or from a snapshot.
    #[command(
        after_help = "Example:\n  milonga bench playback --updates 1000000 --keys 100000
  milonga bench playback --updates 1000000 --keys 1000000 --from-snapshot"
    )]
    Playback(PlaybackArgs),
    /// How long appends stand still when a process is killed. On clusters of its own, in a temporary folder.
    #[command(
        after_help = "Example:\n  milonga bench failover --victims sequencer,head --rounds 5"
    )]
    Failover(FailoverArgs),
    /// What this machine does without a cluster: round trips, durable writes, and the bare append path.
    #[command(after_help = "Example:\n  milonga bench baseline --dir /var/lib/milonga")]
    Baseline(BaselineArgs),
}

/// What every closed loop is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Load {
    /// Operations in flight.
    #[arg(short, long, value_name = "C", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub concurrency: u32,
    /// How long one round counts.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub seconds: Duration,
    /// Operations that one round counts, instead of a time.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub records: Option<u64>,
    /// How long each round runs before it counts.
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = humantime::parse_duration)]
    pub warm_up: Duration,
    /// Rounds of the cluster, and as many of the baseline between them.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// Where bare servers write: on the disk that the cluster uses. A folder in it is made, and removed again.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
}

impl Load {
    fn plan(&self) -> Plan {
        Plan {
            warm_up: self.warm_up,
            lasts: self.seconds,
            operations: self.records,
        }
    }
}

/// How appends are measured.
#[derive(Clone, Debug, Parser)]
pub struct AppendArgs {
    /// The loop.
    #[command(flatten)]
    pub load: Load,
    /// Bytes of a record.
    #[arg(long, value_name = "B", default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=i64::from(SIZE_MAX)))]
    pub size: u32,
    /// Records of one append.
    #[arg(long, value_name = "R", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub batch: u32,
    /// How many streams the appends take turns in; each names one.
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub streams: u32,
    /// Whether the bare append path is measured beside it.
    #[arg(long, value_name = "YES", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub baseline: bool,
}

/// Which record is read next.
#[derive(Copy, Clone, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Order {
    /// Any.
    Random,
    /// The one after the last, over all tasks.
    Sequential,
}

/// How reads are measured.
#[derive(Clone, Debug, Parser)]
pub struct ReadArgs {
    /// The loop.
    #[command(flatten)]
    pub load: Load,
    /// Bytes of a record, where records must be written first.
    #[arg(long, value_name = "B", default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=i64::from(SIZE_MAX)))]
    pub size: u32,
    /// Which record is read next.
    #[arg(long, value_enum, default_value_t = Order::Random)]
    pub order: Order,
    /// Records to read among: the newest ones. What the log lacks of them is written first.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub among: u64,
    /// Whether bare answers of that size are measured beside it.
    #[arg(long, value_name = "YES", default_value_t = false, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub baseline: bool,
}

/// How tokens are measured.
#[derive(Clone, Debug, Parser)]
pub struct TokenArgs {
    /// The loop.
    #[command(flatten)]
    pub load: Load,
    /// Whether bare round trips are measured beside it.
    #[arg(long, value_name = "YES", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub baseline: bool,
}

/// How a map is measured.
#[derive(Clone, Debug, Parser)]
pub struct KvArgs {
    /// The loop.
    #[command(flatten)]
    pub load: Load,
    /// Bytes of a value.
    #[arg(long, value_name = "B", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub size: u32,
    /// Keys of the map.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// How many of 100 operations are puts.
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub writes: u32,
}

/// How transactions are measured.
#[derive(Clone, Debug, Parser)]
pub struct TxnArgs {
    /// The loop.
    #[command(flatten)]
    pub load: Load,
    /// Bytes of a value.
    #[arg(long, value_name = "B", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub size: u32,
    /// Keys of the map.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// Keys that each transaction reads.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub reads: u32,
    /// How many of 100 transactions write one of the keys that they read.
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub writes: u32,
}

/// How playback is measured.
#[derive(Clone, Debug, Parser)]
pub struct PlaybackArgs {
    /// Updates in the history of the map; they are written first if they are not there.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub updates: u64,
    /// Keys that they are spread over.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// Bytes of a value.
    #[arg(long, value_name = "B", default_value_t = 16, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub size: u32,
    /// Whether a snapshot is written first, and copies start from it.
    #[arg(long)]
    pub from_snapshot: bool,
    /// Copies that are played, one after the other.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
}

/// How the machine is measured.
#[derive(Clone, Debug, Parser)]
pub struct BaselineArgs {
    /// How long each figure counts.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub seconds: Duration,
    /// How long each figure runs before it counts.
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = humantime::parse_duration)]
    pub warm_up: Duration,
    /// Units of the bare append path.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub replicas: u32,
    /// Operations in flight: one line of the report for each.
    #[arg(short, long, value_name = "C", value_delimiter = ',', default_values_t = [1, 16, 64, 256, 1024])]
    pub concurrency: Vec<u32>,
    /// Bytes of a record: one line of the report for each.
    #[arg(long, value_name = "B", value_delimiter = ',', default_values_t = [128, 4096])]
    pub size: Vec<u32>,
    /// Where bare servers write. A folder in it is made, and removed again.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
}

/// Why nothing was measured. What the cluster holds is as any client may leave it.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The cluster does not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Records to read could not be written first.
    #[error(transparent)]
    Append(Box<AppendError>),
    /// Records to read could not be found.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The bare servers could not be started or broke off.
    #[error("the baseline: {0}; try --dir with a writable folder, or --baseline false")]
    Baseline(String),
    /// A map could not be read or written.
    #[error("a map: {0}")]
    Objects(String),
    /// Failover is measured on clusters of its own.
    #[error("failover is measured with `bench::failover`")]
    OwnCluster,
    /// Nothing succeeded within the window.
    #[error(
        "no operation succeeded in {seconds} s ({errors} failed); try a longer --seconds, or `milonga cluster status`"
    )]
    Nothing {
        /// How long it was tried.
        seconds: f64,
        /// How many failed.
        errors: u64,
    },
}

impl From<PlayError> for BenchError {
    fn from(error: PlayError) -> Self {
        Self::Objects(error.to_string())
    }
}

impl From<UpdateError> for BenchError {
    fn from(error: UpdateError) -> Self {
        Self::Objects(error.to_string())
    }
}

impl From<AppendError> for BenchError {
    fn from(error: AppendError) -> Self {
        Self::Append(Box::new(error))
    }
}

/// Measures. Must be called inside the runtime whose client is measured.
///
/// For [`What::Baseline`] nothing is asked of the cluster; [`baseline`] does without a client.
///
/// # Errors
/// [`BenchError`].
pub async fn run(log: &Log, args: &Args) -> Result<Report, BenchError> {
    match &args.what {
        What::Append(args) => append::run(log, args).await,
        What::Read(args) => read::run(log, args).await,
        What::Token(args) => token::run(log, args).await,
        What::Kv(args) => objects::kv(log, args).await,
        What::Txn(args) => objects::txn(log, args).await,
        What::Playback(args) => objects::playback(log, args).await,
        What::Baseline(args) => baseline(log.host(), args).await,
        What::Failover(_) => Err(BenchError::OwnCluster),
    }
}

/// Measures the machine alone.
///
/// # Errors
/// [`BenchError::Baseline`].
pub async fn baseline(host: &Host, args: &BaselineArgs) -> Result<Report, BenchError> {
    baseline::table(host, args).await
}

/// One kind of round: a cluster's or the baseline's.
type Measure<'a> = dyn Fn() -> BoxFuture<'a, Sample> + Send + Sync + 'a;

/// Rounds in turn: the baseline's first, so that the cluster never has the warmer machine.
async fn in_turn(
    load: &Load,
    measure: &Measure<'_>,
    bare: Option<(&Bare, Probe)>,
) -> Result<Report, BenchError> {
    let (mut ours, mut theirs) = (vec![], vec![]);
    for _ in 0..load.rounds {
        if let Some((bare, probe)) = bare {
            theirs.push(bare.measure(probe, load.concurrency, load.plan()).await?);
        }
        ours.push(measure().await);
    }
    let rates = |samples: &[Sample]| samples.iter().map(Sample::per_second).collect::<Vec<f64>>();
    let (own, other) = (rates(&ours), rates(&theirs));
    let all = merged(ours);
    if all.operations == 0 {
        return Err(BenchError::Nothing {
            seconds: all.seconds,
            errors: all.errors,
        });
    }
    let mut report = Report::of(&all);
    if !theirs.is_empty() {
        report.ratio = Some(median(&own) / median(&other));
        let theirs = merged(theirs);
        report.baseline_latency_us = Some(Latency::of(&theirs));
        report.baseline_client_cpu_us = Some(theirs.cpu_us());
    }
    report.rounds = (0..own.len())
        .map(|index| Round {
            ops_per_s: own[index],
            baseline_ops_per_s: other.get(index).copied(),
        })
        .collect();
    Ok(report)
}
