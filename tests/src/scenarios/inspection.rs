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

/// How far above the end nothing may be held.
const ABOVE: u64 = 256;

/// How many terms one inspection may see begin: the clients that look at the cluster bring it to full strength meanwhile.
const TERMS_MAX: usize = 16;

/// Reports every position below `end` that two units hold differently (I8), and every one above that is held (I10).
pub async fn inspect(world: &World, log: &Log, end: Position) {
    in_one_term(world, log, Some(end)).await;
}

/// Reports every closed position that a unit lacks which is listed for it (I14).
pub async fn inspect_whole(world: &World, log: &Log) {
    in_one_term(world, log, None).await;
}

/// Reports what is wrong with what is held around `end`, or else with what is closed. What it finds while a term ends is
/// not told, unless two units differ: it looks again.
async fn in_one_term(world: &World, log: &Log, end: Option<Position>) {
    for _ in 0..TERMS_MAX {
        let layout = match log.newest_layout().await {
            Ok(newest) => newest.layout.clone(),
            Err(error) => return world.violation(format!("no layout to inspect: {error}")),
        };
        let violations = match end {
            Some(end) => held(log.host(), &layout, end).await,
            None => lacking(log.host(), &layout).await,
        };
        let newest = log.newest_layout().await;
        let differ = violations.iter().any(|one| one.starts_with("I8"));
        if violations.is_empty()
            || differ
            || newest.is_ok_and(|newest| newest.layout.term == layout.term)
        {
            for violation in violations {
                world.violation(violation);
            }
            return;
        }
    }
    world.violation(format!(
        "{TERMS_MAX} terms began while a quiet cluster was inspected"
    ));
}

/// What is wrong with what the units hold below and above `end`.
async fn held(host: &Host, layout: &Layout, end: Position) -> Vec<String> {
    let mut violations = vec![];
    let mut all = Replicas::new();
    for (chain, stripes) in layout.chains() {
        for unit in layout.units_of(chain) {
            let below = Span::new(Position::FIRST, end);
            let runs = stripes.runs_from(Position::FIRST);
            for run in runs.take_while(|run| run.start < end) {
                let run = run.intersect(below);
                if let Err(why) = hold(host, layout, unit, run, &mut all).await {
                    violations.push(format!("{} in the audit: {why}", unit.name));
                }
            }
        }
    }
    let mut above = Replicas::new();
    for unit in &layout.units {
        let span = Span::new(end, end.plus(ABOVE));
        if let Err(why) = hold(host, layout, unit, span, &mut above).await {
            violations.push(format!("{} above the end: {why}", unit.name));
        }
    }
    violations.extend(above.into_iter().map(|(position, held)| {
        format!("I10: position {position} lies above the end, {end}, and is held: {held:?}")
    }));
    violations.extend(replicas::check(&all));
    violations
}

/// The closed positions that a unit lacks which is listed for them.
async fn lacking(host: &Host, layout: &Layout) -> Vec<String> {
    let mut violations = vec![];
    let closed = layout
        .segments
        .iter()
        .filter(|segment| segment.end.is_some());
    for segment in closed {
        for (number, chain) in segment.chains.iter().enumerate() {
            let stripes = segment.stripes(number);
            for unit in layout.units_of(chain) {
                let lacking = settled(host, layout, unit, stripes).await;
                match lacking.map(|lacking| stripes.run_from(lacking)) {
                    Ok(None) => {}
                    Ok(Some(run)) => violations.push(format!(
                        "I14: {} is listed for {} and lacks {}",
                        unit.name, stripes.span, run.start
                    )),
                    Err(why) => violations.push(format!("{} after healing: {why}", unit.name)),
                }
            }
        }
    }
    violations
}

/// The first position of `stripes` that `unit` lacks.
async fn settled(
    host: &Host,
    layout: &Layout,
    unit: &Server,
    stripes: Stripes,
) -> Result<Position, String> {
    match ask(host, layout, unit, UnitRequest::Settled { stripes }).await? {
        (UnitReply::Settled(mark), _) => Ok(mark),
        _ => Err("another answer than to a question for the mark".to_owned()),
    }
}

async fn ask(
    host: &Host,
    layout: &Layout,
    unit: &Server,
    request: UnitRequest,
) -> Result<(UnitReply, Payload), String> {
    const WITHIN: Duration = Duration::from_secs(10);
    let request = Request {
        head: RequestHead {
            id: 0,
            cluster: layout.cluster,
            to: Some(Target {
                identity: unit.identity,
                incarnation: unit.incarnation,
            }),
            term: layout.term,
            request: milonga_wire::Request::Unit(request),
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
    match response.reply {
        Ok(Reply::Unit(reply)) => Ok((reply, response.payload)),
        Ok(_) => Err("another answer than a unit's".to_owned()),
        Err(refusal) => Err(refusal.to_string()),
    }
}

/// Adds what `unit` holds of `span`.
async fn hold(
    host: &Host,
    layout: &Layout,
    unit: &Server,
    span: Span,
    all: &mut Replicas,
) -> Result<(), String> {
    const BYTES_MAX: u32 = 1 << 20;
    let mut rest = span;
    while !rest.is_empty() {
        let request = UnitRequest::Read {
            spans: vec![rest],
            bytes_max: BYTES_MAX,
        };
        let (UnitReply::Read(answers), payload) = ask(host, layout, unit, request).await? else {
            return Err("another answer than to a read".to_owned());
        };
        let next = answers.last().map(|answer| answer.span().end);
        rest.start = next
            .filter(|next| *next > rest.start)
            .ok_or("no progress")?;
        replicas::add(all, &unit.name, &answers, payload);
    }
    Ok(())
}
