//! `milonga bench`: runs what [`crate::bench`] measures, and prints it.

use super::Context;
use crate::bench::{self, Args, NodeArgs, What};
use crate::failure::{Failure, Outcome};
use crate::output::say;

pub(super) async fn run(args: &Args, context: &Context) -> Outcome {
    let report = match &args.what {
        What::Baseline(baseline) => bench::baseline(&host(), baseline).await?,
        What::Append(_) | What::Read(_) => bench::run(&context.cluster.connect()?, args).await?,
        What::Token(_) => {
            let log = context.cluster.connect()?;
            let report = bench::run(&log, args).await?;
            say("the positions that were taken are left as holes; readers fill them");
            report
        }
    };
    context.output.one(&report, || report.text())
}

/// Runs one bare server, for whoever measures.
pub(super) fn node(args: &NodeArgs) -> Outcome {
    bench::node(args).map_err(|why| Failure::failed(format!("a bare server: {why}")))
}

/// What the machine gives, without a cluster's certificate: the bare servers have their own.
fn host() -> milonga_host::Host {
    milonga_host::Host {
        net: std::sync::Arc::new(Nobody),
        clock: milonga_host::Clock::real(),
        random: milonga_host::Random::real(),
        tasks: milonga_host::Tasks::new(),
    }
}

/// A network without anybody: a baseline calls through a transport of its own.
struct Nobody;

impl milonga_host::Network for Nobody {
    fn call<'a>(
        &'a self,
        peer: &'a milonga_host::Peer,
        _: milonga_host::net::Request,
        _: std::time::Duration,
    ) -> milonga_host::BoxFuture<'a, Result<milonga_host::net::Response, milonga_host::CallError>>
    {
        let not_sent = milonga_host::CallError::NotSent {
            peer: peer.to_string(),
            why: "this host has no network".to_owned(),
        };
        Box::pin(async { Err(not_sent) })
    }
}
