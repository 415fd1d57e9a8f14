//! The way to the next layout: Paxos, seals, announcement, bootstrap, restoring. Decisions are in `plan.rs`.
//!
//! Who can crash where: before a majority accepted, the next proposer adopts or outranks us; after it, any client learns
//! the decision and finishes; announcing and bootstrapping are idempotent; restoring is repeated by whoever meets a gap.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use milonga_wire::limits::{BACKPOINTERS, STREAM_TAILS_PAGE_MAX};
use milonga_wire::{
    Acceptance, Before, BootstrapPage, Decided, Description, InvalidLayout, Kind, Layout,
    LayoutReply, LayoutRequest, Origin, Payload, Position, Rank, Refusal, Sealed, SequencerReply,
    SequencerRequest, Server, Span, StreamId, StreamTail, Term, UnitReply, UnitRequest,
};

use crate::calls::{Failure, peer, unexpected};
use crate::layouts::LayoutsError;
use crate::log::Log;
use crate::reconfigure::plan::{PlanError, Seals, restarted};

/// How often a proposer that was outranked tries again.
const TRIES: u32 = 8;
/// Positions that one step of a restore covers.
const RESTORE_POSITIONS: u64 = 1_024;
/// Stream tails pages that a bootstrap may take: 64 million streams.
const PAGES_MAX: u32 = 16_384;

/// Why a change of layout did not come about. Nothing is lost by it; any control client may try again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangeError {
    /// The layout servers could not be read, or too few promised or accepted.
    #[error(transparent)]
    Layouts(#[from] LayoutsError),
    /// Not enough servers answered to make a next layout.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A server that the change needs did not answer, or refused.
    #[error(transparent)]
    Server(#[from] Failure),
    /// Layout servers said things that make no decision.
    #[error(transparent)]
    Unproved(#[from] InvalidLayout),
    /// No sequencer of the layout answered.
    #[error("no sequencer answered: {}; start one of them", .0.join(", "))]
    NoSequencer(Vec<String>),
    /// Other proposers were faster each time.
    #[error("other proposers came first {TRIES} times")]
    Outranked,
    /// Too few layout servers promised or accepted.
    #[error("{got} of {needed} layout servers agreed: {}", why.join("; "))]
    NoMajority {
        /// How many.
        got: usize,
        /// How many are needed.
        needed: usize,
        /// What the others said.
        why: Vec<String>,
    },
}

/// What a look at all servers of the newest layout shows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Look {
    /// Every server runs as the layout lists it.
    Well,
    /// A layout of the next term was accepted, or a unit or the sequencer is sealed for it: someone is at it, or died over it.
    HalfDone,
    /// A unit or the sequencer runs in another process start than the layout lists.
    Restarted,
    /// The sequencer does not answer.
    NoSequencer,
}

/// Looks again at a cluster that gave trouble, and does what is missing: finishes a half-done term, makes the next one if
/// a server was restarted, teaches layout servers what they missed. Changes nothing in a cluster that is well.
///
/// # Errors
/// [`ChangeError`].
pub async fn mend(log: &Log, why: &str) -> Result<Arc<Decided>, ChangeError> {
    let host = log.host();
    let (known, mut seen) = look(log).await?;
    let term = known.layout.term;
    if matches!(seen, Look::HalfDone | Look::NoSequencer) {
        // Another proposer may be at work, or one message was lost: a moment, and another look (H19, H29).
        host.clock
            .sleep(host.random.jittered(Duration::from_millis(300)))
            .await;
        let (newer, again) = look(log).await?;
        if newer.layout.term > term {
            finish(log, &newer).await?;
            return Ok(Arc::new(newer));
        }
        seen = again;
    }
    match seen {
        Look::Well => {
            teach_all(log, &known).await;
            finish(log, &known).await?;
            Ok(Arc::new(known))
        }
        Look::HalfDone | Look::Restarted | Look::NoSequencer => change(log, term, why).await,
    }
}

async fn look(log: &Log) -> Result<(Decided, Look), ChangeError> {
    let known = log.shared.layouts.read().await?;
    let layout = &known.decided.layout;
    let units = join_all(
        layout
            .units
            .iter()
            .map(|unit| describe(log, unit, Kind::LogUnit)),
    )
    .await;
    let sequencer = describe(log, &layout.sequencer, Kind::Sequencer).await;
    let accepted = known
        .standings
        .iter()
        .any(|standing| standing.accepted.is_some());
    let mut servers = units.iter().chain(std::iter::once(&sequencer)).flatten();
    let sealed_ahead = servers.any(|server| server.term > layout.term);
    let other_start = |listed: &Server, found: &Result<Description, Failure>| {
        found
            .as_ref()
            .is_ok_and(|found| found.incarnation != listed.incarnation)
    };
    let restarted = layout
        .units
        .iter()
        .zip(&units)
        .any(|(listed, found)| other_start(listed, found));
    let seen = if accepted || sealed_ahead {
        Look::HalfDone
    } else if restarted || other_start(&layout.sequencer, &sequencer) {
        Look::Restarted
    } else if sequencer.is_err() {
        Look::NoSequencer
    } else {
        Look::Well
    };
    Ok((known.decided, seen))
}

/// Makes the next layout now: the same servers in their present process starts, a fresh sequencer.
///
/// # Errors
/// [`ChangeError`].
pub async fn rebuild(log: &Log, why: &str) -> Result<Arc<Decided>, ChangeError> {
    let term = log.shared.layouts.read().await?.decided.layout.term;
    change(log, term, why).await
}

/// Makes the layout that follows `from`. If another proposer decides one first, that is finished instead: whatever asked
/// for this change is looked at again under it, so one failure makes one term.
///
/// # Errors
/// [`ChangeError`].
pub(crate) async fn change(log: &Log, from: Term, why: &str) -> Result<Arc<Decided>, ChangeError> {
    let host = log.host();
    let mut number = 0;
    for attempt in 0..TRIES {
        if attempt > 0 {
            host.clock
                .sleep(
                    host.random
                        .jittered(Duration::from_millis(20 << attempt.min(5))),
                )
                .await;
        }
        let known = log.shared.layouts.read().await?;
        if known.decided.layout.term > from {
            finish(log, &known.decided).await?;
            return Ok(Arc::new(known.decided));
        }
        let seen = known
            .standings
            .iter()
            .filter_map(|standing| standing.promised)
            .map(|rank| rank.number);
        number = seen.max().unwrap_or(0).max(number) + 1;
        let rank = Rank {
            number,
            proposer: host.random.id(),
        };
        let accepted = known
            .standings
            .iter()
            .any(|standing| standing.accepted.is_some());
        if !accepted {
            // Before anything is promised or sealed: can it succeed at all?
            second_look(log, &known.decided.layout).await?;
        }
        match propose(log, &known.decided, rank, why).await {
            Ok(decided) => {
                finish(log, &decided).await?;
                return Ok(Arc::new(decided));
            }
            Err(Step::Again) => {}
            Err(Step::Failed(error)) => return Err(error),
        }
    }
    Err(ChangeError::Outranked)
}

/// How a try to decide a term ended without a decision of ours.
enum Step {
    /// Someone came first: read again.
    Again,
    Failed(ChangeError),
}

impl<E: Into<ChangeError>> From<E> for Step {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// One pass of Paxos over the term after `previous`.
async fn propose(log: &Log, previous: &Decided, rank: Rank, why: &str) -> Result<Decided, Step> {
    let old = &previous.layout;
    let term = old.term.next();
    let promises = ask_all(log, previous, term, &LayoutRequest::Prepare { rank }).await?;
    let accepted = promises
        .into_iter()
        .filter_map(|(_, reply)| match reply {
            LayoutReply::Promised(promise) => promise.accepted,
            _ => None,
        })
        .max_by_key(|(rank, _)| *rank);
    // An accepted layout may be decided already (H21): it is finished, and nothing of it is used before.
    let layout = match accepted {
        Some((_, layout)) => *layout,
        None => compute(log, old, term, why).await?,
    };
    let request = LayoutRequest::Propose {
        rank,
        layout: Box::new(layout.clone()),
    };
    let accepted = ask_all(log, previous, term, &request).await?;
    let acceptances = accepted
        .into_iter()
        .filter_map(|(server, reply)| match reply {
            LayoutReply::Accepted { rank } => Some(Acceptance {
                server: server.identity,
                rank,
            }),
            _ => None,
        })
        .collect();
    let decided = Decided {
        layout,
        acceptances,
    };
    decided.check(old).map_err(ChangeError::from)?;
    let learn = LayoutRequest::Learn {
        decided: Box::new(decided.clone()),
    };
    // Whoever does not hear it learns it from the next client that reads a majority.
    let _ = ask_all(log, previous, term, &learn).await;
    log.shared.layouts.adopt(decided.clone());
    Ok(decided)
}

/// Looks whether a change can succeed, before anything is sealed: seals stop service, so a wrong suspicion ends here.
async fn second_look(log: &Log, old: &Layout) -> Result<(), ChangeError> {
    let units = join_all(
        old.units
            .iter()
            .map(|unit| present(log, unit, Kind::LogUnit)),
    )
    .await;
    let missing = old
        .units
        .iter()
        .zip(&units)
        .filter(|(_, found)| found.is_err());
    let missing: Vec<String> = missing.map(|(unit, _)| unit.name.to_string()).collect();
    if !missing.is_empty() {
        return Err(PlanError::Missing(missing).into());
    }
    let sequencers = std::iter::once(&old.sequencer).chain(&old.standbys);
    let found = join_all(sequencers.map(|server| present(log, server, Kind::Sequencer))).await;
    if found.iter().all(Result::is_err) {
        return Err(ChangeError::NoSequencer(
            found
                .into_iter()
                .filter_map(Result::err)
                .map(|failure| failure.to_string())
                .collect(),
        ));
    }
    Ok(())
}

/// Seals the term and computes its layout from the answers (C7).
async fn compute(log: &Log, old: &Layout, term: Term, why: &str) -> Result<Layout, Step> {
    let seals = join_all(old.units.iter().map(|unit| seal_unit(log, unit, term))).await;
    let (mut units, mut errors) = (BTreeMap::new(), vec![]);
    for sealed in seals {
        match sealed {
            Ok(sealed) => {
                units.insert(sealed.identity, sealed);
            }
            Err(Failure::Refused {
                refusal: Refusal::StaleTerm { .. },
                ..
            }) => return Err(Step::Again),
            Err(failure) => errors.push(failure),
        }
    }
    for failure in &errors {
        tracing::info!(%failure, %term, "a unit could not be sealed");
    }
    // The old sequencer's counter, if it still has one; and the first of the sequencers that answers issues next.
    let (mut counter, mut next, mut silent) = (None, None, vec![]);
    for server in std::iter::once(&old.sequencer).chain(&old.standbys) {
        match seal_sequencer(log, server, term).await {
            Ok((present, sealed)) => {
                counter = counter.max(sealed);
                next.get_or_insert(present);
            }
            Err(Failure::Refused {
                refusal: Refusal::StaleTerm { .. },
                ..
            }) => return Err(Step::Again),
            Err(failure) => silent.push(failure.to_string()),
        }
    }
    let next = next.ok_or(ChangeError::NoSequencer(silent))?;
    let origin = Origin {
        by: log.caller().name.to_string(),
        why: why.to_owned(),
        change: format!("same servers; {} issues positions", next.name),
        at_ms: log.host().clock.wall_ms(),
    };
    Ok(restarted(old, &Seals { units, counter }, &next, origin)?)
}

/// Sends `request` to every layout server of `previous`; a majority must agree.
async fn ask_all(
    log: &Log,
    previous: &Decided,
    term: Term,
    request: &LayoutRequest,
) -> Result<Vec<(Server, LayoutReply)>, Step> {
    let servers = &previous.layout.layout_servers;
    let calls = servers.iter().map(|server| async move {
        let answer = log.shared.calls.layout(server, term, request.clone()).await;
        let answer = match answer {
            Err(Failure::Refused {
                refusal: Refusal::Behind { newest },
                ..
            }) => {
                teach(log, server, newest, previous).await;
                log.shared.calls.layout(server, term, request.clone()).await
            }
            answer => answer,
        };
        (server, answer)
    });
    let (mut agreed, mut why, mut outdone, mut forbidden) = (vec![], vec![], false, None);
    for (server, answer) in join_all(calls).await {
        match answer {
            Ok(reply) => agreed.push((server.clone(), reply)),
            Err(failure) => {
                match failure.refusal() {
                    Some(Refusal::Outranked { .. }) => outdone = true,
                    Some(Refusal::Decided { newest }) => {
                        log.shared.layouts.offer(newest);
                        outdone = true;
                    }
                    Some(Refusal::WrongRole { .. }) => forbidden = Some(failure.clone()),
                    Some(_) | None => {}
                }
                why.push(failure.to_string());
            }
        }
    }
    let needed = previous.layout.majority();
    if agreed.len() >= needed {
        return Ok(agreed);
    }
    if outdone {
        return Err(Step::Again);
    }
    if let Some(failure) = forbidden {
        return Err(ChangeError::Server(failure).into());
    }
    Err(ChangeError::NoMajority {
        got: agreed.len(),
        needed,
        why,
    }
    .into())
}

/// Sends a layout server the decided layouts it lacks, up to `upto`.
async fn teach(log: &Log, server: &Server, newest: Option<Term>, upto: &Decided) {
    let mut term = newest.map_or(Term::GENESIS, Term::next);
    while term < upto.layout.term {
        let Ok(Some(decided)) = log.shared.layouts.decided_at(term).await else {
            return;
        };
        let learn = LayoutRequest::Learn {
            decided: Box::new(decided),
        };
        if log.shared.calls.layout(server, term, learn).await.is_err() {
            return;
        }
        term = term.next();
    }
    let learn = LayoutRequest::Learn {
        decided: Box::new(upto.clone()),
    };
    let _ = log
        .shared
        .calls
        .layout(server, upto.layout.term, learn)
        .await;
}

async fn describe(log: &Log, server: &Server, kind: Kind) -> Result<Description, Failure> {
    log.shared.calls.describe(&peer(server, kind)).await
}

/// The server as it runs now, if its directory is still the one that the layout lists.
async fn present(log: &Log, server: &Server, kind: Kind) -> Result<Server, Failure> {
    let found = describe(log, server, kind).await?;
    if found.identity != server.identity {
        let refusal = Refusal::WrongServer {
            asked: server.identity,
            here: found.identity,
        };
        return Err(Failure::Refused {
            server: server.name.to_string(),
            refusal,
        });
    }
    Ok(Server {
        incarnation: found.incarnation,
        ..server.clone()
    })
}

async fn seal_unit(log: &Log, unit: &Server, term: Term) -> Result<Sealed, Failure> {
    let unit = present(log, unit, Kind::LogUnit).await?;
    match log
        .shared
        .calls
        .unit(&unit, term, UnitRequest::Seal, Payload::new())
        .await?
    {
        (UnitReply::Sealed(sealed), _) => Ok(*sealed),
        _ => Err(unexpected(unit.name.as_str())),
    }
}

async fn seal_sequencer(
    log: &Log,
    server: &Server,
    term: Term,
) -> Result<(Server, Option<Position>), Failure> {
    let server = present(log, server, Kind::Sequencer).await?;
    match log
        .shared
        .calls
        .sequencer(&server, term, SequencerRequest::Seal)
        .await?
    {
        SequencerReply::Sealed { counter } => Ok((server, counter)),
        _ => Err(unexpected(server.name.as_str())),
    }
}

/// Puts a decided layout to work: every unit hears where its open segment starts, the sequencer its stream tails.
pub(crate) async fn finish(log: &Log, decided: &Decided) -> Result<(), ChangeError> {
    let layout = &decided.layout;
    let announce = UnitRequest::Announce {
        start: layout.open_segment().start,
    };
    let announced = layout.units.iter().map(|unit| {
        let request = announce.clone();
        async move {
            match log
                .shared
                .calls
                .unit(unit, layout.term, request, Payload::new())
                .await?
            {
                (UnitReply::Announced, _) => Ok(()),
                _ => Err(unexpected(unit.name.as_str())),
            }
        }
    });
    for result in join_all(announced).await {
        result?;
    }
    bootstrap(log, decided).await?;
    let (restorer, decided) = (log.clone(), decided.clone());
    log.host()
        .tasks
        .spawn(async move { restore_lacking(&restorer, &decided.layout).await });
    Ok(())
}

/// Sends every layout server that lags behind `decided` what it lacks: else it could not confirm the term (H20).
async fn teach_all(log: &Log, decided: &Decided) {
    let layout = &decided.layout;
    let lessons = layout.layout_servers.iter().map(|server| async move {
        let answer = log
            .shared
            .calls
            .layout(server, layout.term, LayoutRequest::Newest)
            .await;
        let Ok(LayoutReply::Newest {
            decided: newest, ..
        }) = answer
        else {
            return;
        };
        let newest = newest.map(|newest| newest.layout.term);
        if newest.is_none_or(|newest| newest < layout.term) {
            teach(log, server, newest, decided).await;
        }
    });
    join_all(lessons).await;
}

/// Gives the sequencer of `decided` the tails of all streams, read from every unit of the layout.
async fn bootstrap(log: &Log, decided: &Decided) -> Result<(), ChangeError> {
    let layout = &decided.layout;
    let probe = log
        .shared
        .calls
        .sequencer(&layout.sequencer, layout.term, SequencerRequest::Probe)
        .await?;
    if matches!(probe, SequencerReply::Probed { serving: true }) {
        return Ok(());
    }
    let mut tails: BTreeMap<StreamId, Before> = BTreeMap::new();
    for unit in join_all(
        layout
            .units
            .iter()
            .map(|unit| stream_tails(log, unit, layout.term)),
    )
    .await
    {
        for (stream, last) in unit? {
            merge(
                tails.entry(stream).or_insert_with(|| Before::Known(vec![])),
                last,
            );
        }
    }
    let complete = layout
        .segments
        .iter()
        .flat_map(|segment| &segment.chains)
        .all(|chain| !chain.unreachable);
    let driver = log.host().random.id();
    let tails: Vec<StreamTail> = tails
        .into_iter()
        .map(|(stream, last)| StreamTail { stream, last })
        .collect();
    let pages = tails.len().div_ceil(STREAM_TAILS_PAGE_MAX as usize).max(1);
    for page in 0..pages {
        let from = page * STREAM_TAILS_PAGE_MAX as usize;
        let part = tails
            .iter()
            .skip(from)
            .take(STREAM_TAILS_PAGE_MAX as usize)
            .cloned()
            .collect();
        let request = SequencerRequest::Bootstrap(Box::new(BootstrapPage {
            decided: decided.clone(),
            complete,
            driver,
            page: page as u32,
            last: page + 1 == pages,
            tails: part,
        }));
        match log
            .shared
            .calls
            .sequencer(&layout.sequencer, layout.term, request)
            .await?
        {
            SequencerReply::Bootstrapped { serving } if serving || page + 1 < pages => {}
            _ => return Err(unexpected(layout.sequencer.name.as_str()).into()),
        }
    }
    Ok(())
}

async fn stream_tails(
    log: &Log,
    unit: &Server,
    term: Term,
) -> Result<Vec<(StreamId, Before)>, Failure> {
    let (mut all, mut after): (Vec<(StreamId, Before)>, Option<StreamId>) = (vec![], None);
    for _ in 0..PAGES_MAX {
        let request = UnitRequest::StreamTails {
            after,
            count_max: STREAM_TAILS_PAGE_MAX,
        };
        match log
            .shared
            .calls
            .unit(unit, term, request, Payload::new())
            .await?
        {
            (UnitReply::StreamTails { tails, more }, _) => {
                let last = tails.last().map(|(stream, _)| *stream);
                all.extend(tails);
                if !more || last.is_none() || last <= after {
                    return Ok(all);
                }
                after = last;
            }
            _ => break,
        }
    }
    Err(unexpected(unit.name.as_str()))
}

/// The last K positions that either knows. Where one does not know, nobody does.
fn merge(into: &mut Before, other: Before) {
    match (&mut *into, other) {
        (Before::Known(known), Before::Known(more)) => {
            known.extend(more);
            known.sort_unstable_by(|a, b| b.cmp(a));
            known.dedup();
            known.truncate(BACKPOINTERS);
        }
        (Before::Unknown, _) => {}
        (_, Before::Unknown) => *into = Before::Unknown,
    }
}

/// Restores, below the open segment, whatever any unit of a chain lacks. What cannot be restored now is restored by whoever
/// meets it, or the next time.
async fn restore_lacking(log: &Log, layout: &Layout) {
    for (chain, stripes) in layout.chains() {
        let closed = stripes
            .span
            .intersect(Span::new(Position::FIRST, layout.open_segment().start));
        if closed.is_empty() {
            continue;
        }
        let chain = log.chain(layout, chain);
        let mut restored = Position::FIRST;
        loop {
            let marks = join_all(chain.all().map(|unit| chain.settled_at(unit, stripes))).await;
            let lacking = marks
                .into_iter()
                .filter_map(Result::ok)
                .min()
                .unwrap_or(closed.end);
            let window = Span::new(lacking, lacking.plus(RESTORE_POSITIONS)).intersect(closed);
            let run = stripes.run_from(lacking).map(|run| run.intersect(window));
            let Some(run) = run.filter(|run| !run.is_empty() && run.end > restored) else {
                break;
            };
            if !log.restore(run).await {
                break;
            }
            restored = run.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// H39: one unit that does not know makes the stream's past unknown, not shorter.
    #[test]
    fn merged_tails_are_the_newest_of_all_units_or_unknown() {
        let known =
            |positions: &[u64]| Before::Known(positions.iter().map(|p| Position(*p)).collect());
        let mut tail = known(&[9, 4]);
        merge(&mut tail, known(&[9, 8, 7, 6]));
        assert_eq!(tail, known(&[9, 8, 7, 6]));
        merge(&mut tail, Before::Unknown);
        merge(&mut tail, known(&[11]));
        assert_eq!(tail, Before::Unknown);
    }
}
