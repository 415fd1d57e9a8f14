//! Appends of one client process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use milonga_client::{Log, StreamId};

use super::baseline::{Bare, Probe};
use super::meter::{Plan, Sample, closed_loop};
use super::{AppendArgs, BenchError, Report, in_turn};

pub(super) async fn run(log: &Log, args: &AppendArgs) -> Result<Report, BenchError> {
    let decided = log.layout().await?;
    let open = decided.layout.open_segment();
    let (chains, replicas) = (open.chains.len(), open.chains[0].units.len());
    let bare = if args.baseline {
        Some(Bare::start(log.host(), &args.load.dir, replicas).await?)
    } else {
        None
    };
    let appends = Appends::new(args);
    let probe = Probe::Path {
        bytes: args.size * args.batch,
    };
    let plan = args.load.plan();
    let report = in_turn(
        &args.load,
        &|| Box::pin(appends.clone().measure(log, args.load.concurrency, plan)),
        bare.as_ref().map(|bare| (bare, probe)),
    )
    .await?;
    Ok(Report {
        bench: "append",
        chains: Some(chains),
        replicas: Some(replicas),
        concurrency: args.load.concurrency,
        batch: Some(args.batch),
        streams: Some(args.streams),
        ..report.sized(args.size, args.batch)
    })
}

/// What is appended.
#[derive(Clone)]
pub(super) struct Appends {
    records: Arc<[Bytes]>,
    streams: Arc<[[StreamId; 1]]>,
    next: Arc<AtomicUsize>,
}

impl Appends {
    fn new(args: &AppendArgs) -> Self {
        let streams = (0..args.streams).map(|n| [StreamId::of_name(&format!("bench-{n}"))]);
        Self {
            records: vec![record(args.size); args.batch as usize].into(),
            streams: streams.collect(),
            next: Arc::default(),
        }
    }

    async fn measure(self, log: &Log, concurrency: u32, plan: Plan) -> Sample {
        let log = log.clone();
        let host = log.host().clone();
        let operation = move |_| {
            let (log, appends) = (log.clone(), self.clone());
            async move { appends.append(&log).await }
        };
        closed_loop(&host, concurrency, plan, operation).await
    }

    async fn append(&self, log: &Log) -> bool {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let streams: &[StreamId] = match self.streams.len() {
            0 => &[],
            count => &self.streams[turn % count],
        };
        match log.append_batch(&self.records, streams).await {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, "an append failed");
                false
            }
        }
    }
}

/// A record of `size` bytes that do not repeat every few of them.
pub(super) fn record(size: u32) -> Bytes {
    (0..size).map(|n| (n.wrapping_mul(31) >> 3) as u8).collect()
}
