//! `milonga bench`: measures the cluster, and beside it the same machine with nothing in between.

use std::sync::Arc;
use std::time::Duration;

use milonga_host::net::{Request, Response};
use milonga_host::{BoxFuture, CallError, Clock, Host, Network, Peer, Random, Tasks};

use super::{Context, wait};
use crate::bench::{self, What};
use crate::failure::Outcome;

/// What is measured.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  milonga bench append --records 100000 --size 200
  milonga bench baseline -o json")]
pub(super) struct Bench {
    #[command(flatten)]
    args: bench::Args,
}

impl Bench {
    pub(super) fn run(self, context: &Context) -> Outcome {
        wait(context, async {
            if let What::Failover(args) = &self.args.what {
                let report = bench::failover(args).await?;
                return context.output.one(&report, || report.text());
            }
            let report = match &self.args.what {
                What::Baseline(args) => bench::baseline(&alone(), args).await?,
                What::Append(_)
                | What::Read(_)
                | What::Token(_)
                | What::Kv(_)
                | What::Txn(_)
                | What::Playback(_)
                | What::Failover(_) => bench::run(&context.cluster.connect()?, &self.args).await?,
            };
            context.output.one(&report, || report.text())
        })
    }
}

/// The machine without a cluster: a baseline needs no certificate, and calls through a transport of its own.
fn alone() -> Host {
    Host {
        net: Arc::new(Nobody),
        clock: Clock::real(),
        random: Random::real(),
        tasks: Tasks::new(),
    }
}

/// A network without anybody.
struct Nobody;

impl Network for Nobody {
    fn call<'a>(
        &'a self,
        peer: &'a Peer,
        _: Request,
        _: Duration,
    ) -> BoxFuture<'a, Result<Response, CallError>> {
        let not_sent = CallError::NotSent {
            peer: peer.to_string(),
            why: "this host has no network".to_owned(),
        };
        Box::pin(async { Err(not_sent) })
    }
}
