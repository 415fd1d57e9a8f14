//! Reads of single records, random or one after the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use milonga_client::{EntryKind, Log, Position, Span};
use milonga_host::net::Request;
use milonga_host::{Peer, PeerKind};
use milonga_wire::{Decided, Payload, Reply, Request as Wanted, RequestHead, Server};

use super::append::record;
use super::baseline::{Bare, Probe};
use super::meter::closed_loop;
use super::{BenchError, Order, ReadArgs, Report, UnitReads, in_turn};

/// Records that one append writes, where some must be written first.
const RUN: u64 = 512;

pub(super) async fn run(log: &Log, args: &ReadArgs) -> Result<Report, BenchError> {
    let decided = log.layout().await?;
    let open = decided.layout.open_segment();
    let (chains, replicas) = (open.chains.len(), open.chains[0].units.len());
    let span = prepare(log, args).await?;
    let bare = if args.baseline {
        Some(Bare::start(log.host(), &args.load.dir, 0).await?)
    } else {
        None
    };
    let reads = Reads {
        log: log.clone(),
        span,
        order: args.order,
        next: Arc::default(),
    };
    let (host, plan) = (log.host(), args.load.plan());
    let before = counters(log, &decided).await;
    let report = in_turn(
        &args.load,
        &|| {
            let reads = reads.clone();
            let operation = move |_| {
                let reads = reads.clone();
                async move { reads.read().await }
            };
            Box::pin(closed_loop(host, args.load.concurrency, plan, operation))
        },
        bare.as_ref().map(|bare| {
            let probe = Probe::Echo {
                asked: 16,
                answered: 8 + args.size,
            };
            (bare, probe)
        }),
    )
    .await?;
    let after = counters(log, &decided).await;
    let units = after.into_iter().map(|(name, reads)| {
        let reads = reads.saturating_sub(before.get(&name).copied().unwrap_or(0));
        UnitReads { name, reads }
    });
    Ok(Report {
        bench: "read",
        chains: Some(chains),
        replicas: Some(replicas),
        concurrency: args.load.concurrency,
        units: units.collect(),
        ..report.sized(args.size, 1)
    })
}

/// The newest records of the log; what it lacks of them is written.
async fn prepare(log: &Log, args: &ReadArgs) -> Result<Span, BenchError> {
    let mut end = log.end().await?.position;
    let trimmed = first_kept(log, end).await?;
    let mut lacking = args.among.saturating_sub(end.since(trimmed));
    while lacking > 0 {
        let count = lacking.min(RUN);
        let records = vec![record(args.size); count as usize];
        log.append_batch(&records, &[]).await?;
        lacking -= count;
        end = end.plus(count);
    }
    let end = log.end().await?.position;
    let start = Position(end.0.saturating_sub(args.among)).max(trimmed);
    let span = Span::new(start, end);
    // Once over all of it: holes that others left (a measurement of tokens does) are settled before anything counts.
    let mut rest = span;
    while let Some(last) = log.read_some(rest).await?.last() {
        rest.start = last.position.next();
    }
    Ok(span)
}

async fn first_kept(log: &Log, end: Position) -> Result<Position, BenchError> {
    let mut rest = Span::new(Position::FIRST, end);
    loop {
        let some = log.read_some(rest).await?;
        let is_kept = |kind: &EntryKind| !matches!(kind, EntryKind::Trimmed);
        if let Some(kept) = some.iter().find(|entry| is_kept(&entry.kind)) {
            return Ok(kept.position);
        }
        match some.last() {
            Some(last) => rest.start = last.position.next(),
            None => return Ok(rest.start),
        }
    }
}

#[derive(Clone)]
struct Reads {
    log: Log,
    span: Span,
    order: Order,
    next: Arc<AtomicU64>,
}

impl Reads {
    async fn read(&self) -> bool {
        let number = match self.order {
            Order::Random => self.log.host().random.next(),
            Order::Sequential => self.next.fetch_add(1, Ordering::Relaxed),
        };
        let position = self.span.start.plus(number % self.span.len());
        match self.log.read(position).await {
            // Junk is an answer as good as any: a token that was never used left it.
            Ok(entry) => !matches!(entry.kind, EntryKind::Unwritten | EntryKind::Unknown),
            Err(error) => {
                tracing::debug!(%error, "a read failed");
                false
            }
        }
    }
}

/// How many reads each unit of the open segment has answered. A unit that does not say counts as none.
async fn counters(log: &Log, decided: &Decided) -> BTreeMap<String, u64> {
    let layout = &decided.layout;
    let mut reads = BTreeMap::new();
    for chain in &layout.open_segment().chains {
        for unit in layout.units_of(chain) {
            let count = describe(log, decided, unit).await.unwrap_or(0);
            reads.insert(unit.name.to_string(), count);
        }
    }
    reads
}

async fn describe(log: &Log, decided: &Decided, unit: &Server) -> Option<u64> {
    let peer = Peer {
        name: Some(unit.name.clone()),
        address: unit.address.clone(),
        kind: PeerKind::LogUnit,
    };
    let head = RequestHead {
        id: 0,
        cluster: decided.layout.cluster,
        to: None,
        term: decided.layout.term,
        request: Wanted::Describe,
    };
    let payload = Payload::from(Bytes::new());
    let request = Request { head, payload };
    let answer = log.host().net.call(&peer, request, Duration::from_secs(5));
    match answer.await.ok()?.reply {
        Ok(Reply::Described(description)) => Some(description.reads),
        Ok(Reply::Unit(_) | Reply::Sequencer(_) | Reply::Layout(_)) | Err(_) => None,
    }
}
