//! Asks every unit of a quiet cluster, by itself, what it holds, and compares the units of each chain.

use std::time::Duration;

use milonga_client::Log;
use milonga_host::net::{PeerKind, Request};
use milonga_host::{Host, Peer};
use milonga_wire::{
    Layout, Payload, Position, Reply, RequestHead, Server, Span, Stripes, Target, UnitReply,
    UnitRequest,
};

use crate::invariants::replicas::{self, Replicas};
use crate::sim::World;

/// Reports every position below `end` that two units hold differently (I8).
pub async fn inspect(world: &World, log: &Log, end: Position) {
    let decided = match log.newest_layout().await {
        Ok(decided) => decided,
        Err(error) => return world.violation(format!("no layout in the audit: {error}")),
    };
    let layout = &decided.layout;
    let mut all = Replicas::new();
    for (chain, stripes) in layout.chains() {
        for unit in layout.units_of(chain) {
            if let Err(why) = hold(log.host(), layout, unit, stripes, end, &mut all).await {
                world.violation(format!("{} in the audit: {why}", unit.name));
            }
        }
    }
    for violation in replicas::check(&all) {
        world.violation(violation);
    }
}

/// Adds what `unit` holds of `stripes`, below `end`.
async fn hold(
    host: &Host,
    layout: &Layout,
    unit: &Server,
    stripes: Stripes,
    end: Position,
    all: &mut Replicas,
) -> Result<(), String> {
    const WITHIN: Duration = Duration::from_secs(10);
    const BYTES_MAX: u32 = 1 << 20;
    let below = Span::new(Position::FIRST, end);
    let runs = stripes.runs_from(Position::FIRST);
    for run in runs.take_while(|run| run.start < end) {
        let mut rest = run.intersect(below);
        while !rest.is_empty() {
            let request = Request {
                head: RequestHead {
                    id: 0,
                    cluster: layout.cluster,
                    to: Some(Target {
                        identity: unit.identity,
                        incarnation: unit.incarnation,
                    }),
                    term: layout.term,
                    request: milonga_wire::Request::Unit(UnitRequest::Read {
                        spans: vec![rest],
                        bytes_max: BYTES_MAX,
                    }),
                },
                payload: Payload::new(),
            };
            let peer = Peer {
                name: Some(unit.name.clone()),
                address: unit.address.clone(),
                kind: PeerKind::LogUnit,
            };
            let response = host.net.call(&peer, request, WITHIN).await;
            let response = response.map_err(|error| error.to_string())?;
            let answers = match response.reply {
                Ok(Reply::Unit(UnitReply::Read(answers))) => answers,
                Ok(_) => return Err("another answer than to a read".to_owned()),
                Err(refusal) => return Err(refusal.to_string()),
            };
            let next = answers.last().map(|answer| answer.span().end);
            rest.start = next
                .filter(|next| *next > rest.start)
                .ok_or("no progress")?;
            replicas::add(all, &unit.name, &answers, response.payload);
        }
    }
    Ok(())
}
