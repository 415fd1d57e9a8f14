//! Tokens: one round trip to the sequencer each, and no unit is asked.

use std::sync::Arc;
use std::time::Duration;

use milonga_client::Log;
use milonga_host::net::Request;
use milonga_host::{Host, Peer};
use milonga_wire::{
    Decided, Kind, Payload, Reply, Request as Wanted, RequestHead, SequencerReply,
    SequencerRequest, Target,
};

use super::baseline::{Bare, Probe};
use super::meter::closed_loop;
use super::{BenchError, Report, TokenArgs, in_turn};

/// How long a token may take.
const WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn run(log: &Log, args: &TokenArgs) -> Result<Report, BenchError> {
    let decided = log.layout().await?;
    let bare = if args.baseline {
        Some(Bare::start(log.host(), &args.load.dir, 0).await?)
    } else {
        None
    };
    let tokens = Arc::new(Tokens::new(log.host().clone(), &decided));
    let (host, plan) = (log.host(), args.load.plan());
    let report = in_turn(
        &args.load,
        &|| {
            let tokens = tokens.clone();
            let operation = move |_| {
                let tokens = tokens.clone();
                async move { tokens.take().await }
            };
            Box::pin(closed_loop(host, args.load.concurrency, plan, operation))
        },
        bare.as_ref().map(|bare| (bare, Probe::ECHO)),
    )
    .await?;
    Ok(Report {
        bench: "token",
        concurrency: args.load.concurrency,
        ..report
    })
}

struct Tokens {
    host: Host,
    peer: Peer,
    head: RequestHead,
}

impl Tokens {
    fn new(host: Host, decided: &Decided) -> Self {
        let layout = &decided.layout;
        let sequencer = &layout.sequencer;
        Self {
            host,
            peer: Peer {
                name: Some(sequencer.name.clone()),
                address: sequencer.address.clone(),
                kind: Kind::Sequencer.into(),
            },
            head: RequestHead {
                id: 0,
                cluster: layout.cluster,
                to: Some(Target {
                    identity: sequencer.identity,
                    incarnation: sequencer.incarnation,
                }),
                term: layout.term,
                request: Wanted::Sequencer(SequencerRequest::Tokens {
                    count: 1,
                    streams: vec![],
                }),
            },
        }
    }

    async fn take(&self) -> bool {
        let request = Request {
            head: self.head.clone(),
            payload: Payload::new(),
        };
        let response = self.host.net.call(&self.peer, request, WITHIN).await;
        let reply = response.map(|response| response.reply);
        matches!(reply, Ok(Ok(Reply::Sequencer(SequencerReply::Token(_)))))
    }
}
