//! `milonga bench`: measures the cluster, and beside it the same machine with nothing in between. A figure alone says
//! little; its ratio to the baseline says what Milonga costs.

mod bare;
mod baseline;
mod load;

use std::path::PathBuf;

use bytes::Bytes;
use clap::Subcommand;
use milonga_client::Log;
use milonga_host::net::Request as Call;
use milonga_host::{Peer, Random};
use milonga_wire::limits::{PIECE_BYTES_MAX, RUN_RECORDS_MAX};
use milonga_wire::{
    Kind, Payload, Position, Reply, Request, RequestHead, SequencerReply, SequencerRequest, Span,
    StreamId, Target,
};
use serde::Serialize;

use self::baseline::Bed;
use self::load::{Load, Measured};
use super::{Context, wait};
use crate::failure::{Failure, Outcome};
use crate::output::{say, table};

#[derive(Debug, Subcommand)]
pub(super) enum Bench {
    /// Appends records, many at a time.
    #[command(after_help = "Example:
  milonga bench append --records 200000 --size 128 --concurrency 256 -o json")]
    Append(Args),
    /// Reads records, many at a time, after appending them.
    #[command(after_help = "Example:
  milonga bench read --records 200000 --batch 100 --concurrency 16")]
    Read(Args),
    /// Takes tokens from the sequencer, and fills the positions afterwards.
    #[command(after_help = "Example:
  milonga bench token --records 500000 --concurrency 256")]
    Token(Args),
    /// Measures the baseline alone: ping, echo, group commit, and an append with nothing else in it.
    #[command(after_help = "Example:
  milonga bench baseline --size 4096 --concurrency 64")]
    Baseline(Args),
    /// Runs one bare server.
    #[command(hide = true)]
    Bare(bare::BareArgs),
}

/// What is measured.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// Records, beside a tenth more to warm up.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,
    /// Bytes of each.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    size: u64,
    /// Operations under way at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    concurrency: u32,
    /// Records in one operation.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=u64::from(RUN_RECORDS_MAX)))]
    batch: u64,
    /// Streams that each record belongs to.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=64))]
    streams: u64,
    /// Leaves the baseline out, and with it the ratio.
    #[arg(long)]
    no_baseline: bool,
    /// Where the baseline's files go: on the disk of the log units [default: the temporary directory].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Chains of the baseline [default: the cluster's, else 2].
    #[arg(long)]
    chains: Option<usize>,
    /// Units per chain of the baseline [default: the cluster's, else 3].
    #[arg(long)]
    replicas: Option<usize>,
}

/// One figure, as it is printed.
#[derive(Serialize)]
struct Figure {
    bench: &'static str,
    #[serde(flatten)]
    measured: Measured,
    /// Operations per second, compared with `baseline`.
    ratio: Option<f64>,
    baseline: Option<Measured>,
    configured: Configured,
}

/// What was configured.
#[derive(Clone, Copy, Serialize)]
struct Configured {
    chains: usize,
    replicas: usize,
    stripe_width: u64,
    fsync: bool,
    size: u64,
    concurrency: u32,
    batch: u64,
    streams: u64,
    processes: usize,
}

impl Bench {
    pub(super) fn run(self, context: &Context) -> Outcome {
        match self {
            Self::Append(args) => wait(append(context, args)),
            Self::Read(args) => wait(read(context, args)),
            Self::Token(args) => wait(token(context, args)),
            Self::Baseline(args) => wait(baseline(context, args)),
            Self::Bare(bare) => bare.run(),
        }
    }
}

async fn append(context: &Context, args: Args) -> Outcome {
    args.check()?;
    let log = context.cluster.connect()?;
    let configured = args.configured_by(&log).await?;
    let records = vec![Bytes::from(vec![b'x'; args.size as usize]); args.batch as usize];
    let streams = args.stream_ids();
    let operation = async |_| Ok(log.append_batch(&records, &streams).await.map(drop)?);
    let clock = &log.host().clock;
    let measured = load::run(clock, args.load(), args.batch, args.size, operation).await;
    let bare = match args.bed(configured).await? {
        Some(bed) => Some(bed.appends(args.load(), args.size, args.batch).await),
        None => None,
    };
    print(
        context,
        &[Figure::new("append", measured, bare, configured)],
    )
}

async fn read(context: &Context, args: Args) -> Outcome {
    args.check()?;
    let log = context.cluster.connect()?;
    let configured = args.configured_by(&log).await?;
    let span = preload(&log, &args).await?;
    let positions = span.len().saturating_sub(args.batch) + 1;
    let random = Random::real();
    let operation = async |_| {
        let first = span.start.plus(random.below(positions));
        let wanted = Span::new(first, first.plus(args.batch));
        let entries = log.read_range(wanted).await?;
        if entries.len() as u64 == args.batch {
            return Ok(());
        }
        let read = entries.len();
        Err(Failure::failed(format!("{read} of {wanted} were read")))
    };
    let clock = &log.host().clock;
    let measured = load::run(clock, args.load(), args.batch, args.size, operation).await;
    let bare = match args.bed(configured).await? {
        Some(bed) => Some(bed.reads(args.load(), args.size, args.batch).await),
        None => None,
    };
    print(context, &[Figure::new("read", measured, bare, configured)])
}

/// Appends what is to be read.
async fn preload(log: &Log, args: &Args) -> Outcome<Span> {
    const TOGETHER: u64 = 1_024;
    let each = (PIECE_BYTES_MAX as u64 / 8 / args.size.max(1)).clamp(1, TOGETHER);
    let record = Bytes::from(vec![b'x'; args.size as usize]);
    let mut producer = log.producer(&args.stream_ids());
    let (mut first, mut last, mut left) = (None, Position::FIRST, args.records.max(args.batch));
    while left > 0 {
        let count = left.min(each);
        let positions = producer
            .append(&vec![record.clone(); count as usize])
            .await?;
        first = first.or(positions.first().copied());
        last = positions.last().copied().unwrap_or(last);
        left -= count;
    }
    Ok(Span::new(first.unwrap_or_default(), last.next()))
}

async fn token(context: &Context, args: Args) -> Outcome {
    let log = context.cluster.connect()?;
    let configured = args.configured_by(&log).await?;
    let begins = log.end().await?.counter;
    let decided = log.layout().await?;
    let (layout, streams) = (&decided.layout, args.stream_ids());
    let sequencer = &layout.sequencer;
    let peer = Peer {
        name: Some(sequencer.name.clone()),
        address: sequencer.address.clone(),
        kind: Kind::Sequencer.into(),
    };
    let operation = async |_| {
        let tokens = SequencerRequest::Tokens {
            count: args.batch as u32,
            streams: streams.clone(),
        };
        let head = RequestHead {
            id: 0,
            cluster: layout.cluster,
            to: Some(Target {
                identity: sequencer.identity,
                incarnation: sequencer.incarnation,
            }),
            term: layout.term,
            request: Request::Sequencer(tokens),
        };
        let payload = Payload::new();
        let request = Call { head, payload };
        let answer = log
            .host()
            .net
            .call(&peer, request, log.options().call)
            .await?;
        match answer.reply.map_err(Failure::failed)? {
            Reply::Sequencer(SequencerReply::Token(_)) => Ok(()),
            _ => Err(Failure::failed("the sequencer gave no token")),
        }
    };
    let clock = &log.host().clock;
    let measured = load::run(clock, args.load(), args.batch, 0, operation).await;
    let bare = match args.bed(configured).await? {
        Some(bed) => Some(bed.tokens(args.load()).await),
        None => None,
    };
    print(context, &[Figure::new("token", measured, bare, configured)])?;
    say("filling the positions that were taken");
    let mut rest = Span::new(begins, log.end().await?.counter.max(begins));
    while !rest.is_empty() {
        let entries = log.read_some(rest).await?;
        let Some(last) = entries.last() else { break };
        rest.start = last.position.next();
    }
    Ok(())
}

async fn baseline(context: &Context, args: Args) -> Outcome {
    args.check()?;
    let configured = args.configured();
    let Some(bed) = args.bed(configured).await? else {
        return Err(Failure::usage(
            "the baseline without the baseline is nothing; leave --no-baseline out",
        ));
    };
    let load = args.load();
    let alone = Load {
        count: load.count.min(5_000),
        warm_up: load.warm_up.min(500),
        concurrency: 1,
    };
    let alone_configured = Configured {
        concurrency: 1,
        ..configured
    };
    let figure = |name, measured| Figure::new(name, measured, None, configured);
    let figures = vec![
        Figure::new("ping", bed.echo(alone).await, None, alone_configured),
        figure("echo", bed.echo(load).await),
        figure("commit", bed.commits(load, args.size, args.batch).await),
        figure("append", bed.appends(load, args.size, args.batch).await),
    ];
    print(context, &figures)
}

fn print(context: &Context, figures: &[Figure]) -> Outcome {
    let head = [
        "BENCH", "OPS/S", "MB/S", "P50 US", "P90", "P99", "P999", "MAX", "ERRORS", "RATIO",
    ];
    if context.output.is_json() {
        return context.output.list(figures, &head, Figure::row);
    }
    let bare = figures.iter().filter_map(|figure| {
        let bare = figure.baseline.as_ref()?;
        Some(row(&format!("bare {}", figure.bench), bare, None))
    });
    let rows = figures.iter().map(Figure::row).chain(bare);
    crate::output::line(&table(&head, rows))?;
    if let Some(Figure { configured, .. }) = figures.first() {
        say(configured);
    }
    Ok(())
}

impl std::fmt::Display for Configured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} chains of {}, stripes of {}, fsync, {} bytes, {} at once, {} records each, {} streams",
            self.chains,
            self.replicas,
            self.stripe_width,
            self.size,
            self.concurrency,
            self.batch,
            self.streams
        )
    }
}

impl Figure {
    fn new(
        bench: &'static str,
        measured: Measured,
        baseline: Option<Measured>,
        configured: Configured,
    ) -> Self {
        let ratio = baseline
            .as_ref()
            .filter(|bare| bare.ops_per_s > 0.0)
            .map(|bare| measured.ops_per_s / bare.ops_per_s);
        Self {
            bench,
            measured,
            ratio,
            baseline,
            configured,
        }
    }

    fn row(&self) -> Vec<String> {
        row(self.bench, &self.measured, self.ratio)
    }
}

fn row(name: &str, measured: &Measured, ratio: Option<f64>) -> Vec<String> {
    let latency = measured.latency_us;
    let mut row = vec![
        name.to_owned(),
        format!("{:.0}", measured.ops_per_s),
        format!("{:.1}", measured.mb_per_s),
    ];
    let latencies = [
        latency.p50,
        latency.p90,
        latency.p99,
        latency.p999,
        latency.max,
    ];
    row.extend(latencies.map(|us| us.to_string()));
    row.push(measured.errors.to_string());
    row.push(ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")));
    row
}

impl Args {
    /// The bounds that one append has.
    fn check(&self) -> Outcome {
        if self.size * self.batch > PIECE_BYTES_MAX as u64 {
            return Err(Failure::usage(format!(
                "{} records of {} bytes; expected at most {PIECE_BYTES_MAX} bytes in a batch",
                self.batch, self.size
            )));
        }
        Ok(())
    }

    fn load(&self) -> Load {
        let count = self.records.div_ceil(self.batch);
        Load {
            count,
            warm_up: count.div_ceil(10).max(u64::from(self.concurrency)),
            concurrency: self.concurrency as usize,
        }
    }

    fn stream_ids(&self) -> Vec<StreamId> {
        let names = (0..self.streams).map(|number| format!("bench-{number}"));
        names.map(|name| StreamId::of_name(&name)).collect()
    }

    /// The cluster's shape, so that the baseline has the same.
    async fn configured_by(&self, log: &Log) -> Outcome<Configured> {
        let decided = log.layout().await?;
        let open = decided.layout.open_segment();
        let replicas = open.chains.iter().map(|chain| chain.units.len()).max();
        Ok(Configured {
            chains: self.chains.unwrap_or(open.chains.len()),
            replicas: self.replicas.or(replicas).unwrap_or(1),
            stripe_width: u64::from(open.stripe_width),
            processes: 1 + decided.layout.units.len(),
            ..self.configured()
        })
    }

    fn configured(&self) -> Configured {
        let (chains, replicas) = (self.chains.unwrap_or(2), self.replicas.unwrap_or(3));
        Configured {
            chains,
            replicas,
            stripe_width: u64::from(super::cluster::STRIPE_WIDTH),
            fsync: true,
            size: self.size,
            concurrency: self.concurrency,
            batch: self.batch,
            streams: self.streams,
            processes: 1 + chains * replicas,
        }
    }

    async fn bed(&self, configured: Configured) -> Outcome<Option<Bed>> {
        if self.no_baseline {
            return Ok(None);
        }
        let Configured {
            chains,
            replicas,
            stripe_width,
            ..
        } = configured;
        let bed = Bed::start(self.dir.as_deref(), chains, replicas, stripe_width).await?;
        Ok(Some(bed))
    }
}
