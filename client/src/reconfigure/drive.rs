//! The way to the next layout: Paxos, seals, announcement, bootstrap, restoring. Decisions are in `plan.rs`.
//!
//! Who can crash where: before a majority accepted, the next proposer adopts or outranks us; after it, any client learns
//! the decision and finishes; announcing and bootstrapping are idempotent; restoring is repeated by whoever meets a gap.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use milonga_host::Moment;
use milonga_wire::limits::TEXT_BYTES_MAX;
use milonga_wire::{
    Acceptance, Decided, Description, Identity, InvalidLayout, Kind, Layout, LayoutReply,
    LayoutRequest, Origin, Position, Rank, Refusal, Sealed, SequencerReply, SequencerRequest,
    Server, ServerName, Term, UnitReply, UnitRequest,
};

use crate::calls::{Failure, unexpected};
use crate::chain::ChainError;
use crate::layouts::LayoutsError;
use crate::log::Log;
use crate::reconfigure::finish::finish;
use crate::reconfigure::phases::Phases;
use crate::reconfigure::plan::{Change, PlanError, Seals, next};
use crate::reconfigure::reach::{Far, Reach};
use crate::reconfigure::servers;
use crate::reconfigure::survey::Survey;
use crate::reconfigure::words;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(300);
/// How long those that do not answer are waited for while others were just started.
const STARTING: Duration = Duration::from_secs(5);
/// How long a proposer leaves the field to another that came first, and twice as long each time.
const YIELD: Duration = Duration::from_millis(40);
/// How often a proposer that was outranked tries again.
const TRIES: u32 = 8;

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
    /// A chain refused, or did not answer, while a range was copied.
    #[error("a range could not be copied: {0}; try again")]
    Copy(String),
    /// A copy goes no further.
    #[error("{unit} lacks position {position} after it was copied; look at its log")]
    Stuck {
        /// The unit copied to.
        unit: String,
        /// Where.
        position: Position,
    },
    /// No sequencer of the layout answered.
    #[error("no sequencer answered: {}; start one of them", .0.join(", "))]
    NoSequencer(Vec<String>),
    /// This client does not reach a server, and nobody confirms that it is down: it stays (H29). Where a majority of the
    /// layout servers reaches it, and nothing else is wrong, that is all; what needs a term is done through them. Where they
    /// cannot tell, nothing is.
    #[error(
        "this client does not reach {0}, but nobody confirms that it is down; nothing was changed; look at the network between them"
    )]
    Unconfirmed(String),
    /// Other proposers were faster each time.
    #[error("other proposers came first {TRIES} times")]
    Outranked,
    /// Too few of the layout's layout servers hold it and all before it: it is decided, and not yet in effect there.
    #[error("{got} layout servers hold the history of layouts, {needed} are needed: {}", why.join("; "))]
    NotHeld {
        /// How many.
        got: usize,
        /// How many are needed.
        needed: usize,
        /// What the others said.
        why: Vec<String>,
    },
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

impl From<ChainError> for ChangeError {
    fn from(error: ChainError) -> Self {
        Self::Copy(error.to_string())
    }
}

/// Looks again at a cluster that gave trouble, and does what is missing: finishes a half-done term, makes the next one if
/// a server was restarted or is gone, teaches layout servers what they missed. Changes nothing in a cluster that is well.
/// `suspect` is the server that gave the trouble, if it was one.
///
/// A log unit or a sequencer is left out only if a majority of the layout servers finds it in trouble too (H29), and where
/// other servers were restarted as well it is given time to come back.
///
/// # Errors
/// [`ChangeError`].
pub async fn mend(
    log: &Log,
    why: &str,
    suspect: Option<&ServerName>,
) -> Result<Arc<Decided>, ChangeError> {
    let mended = mend_once(log, why, suspect).await;
    // Who says that it is well and takes no seal or announcement stops everybody: the others are asked about it now.
    let blamed = mended.as_ref().err().and_then(blamed);
    match blamed.filter(|blamed| suspect != Some(blamed)) {
        Some(blamed) => mend_once(log, why, Some(&blamed)).await,
        None => mended,
    }
}

/// The server that made a change fail by not doing what it was asked.
fn blamed(error: &ChangeError) -> Option<ServerName> {
    match error {
        ChangeError::Server(failure) => {
            let is_silent = match failure {
                Failure::Call(_) => true,
                Failure::Refused { refusal, .. } => {
                    matches!(refusal, Refusal::DiskFailed { .. })
                }
            };
            failure.server().filter(|_| is_silent)
        }
        ChangeError::Plan(PlanError::Missing(names)) => names.first()?.parse().ok(),
        _ => None,
    }
}

async fn mend_once(
    log: &Log,
    why: &str,
    suspect: Option<&ServerName>,
) -> Result<Arc<Decided>, ChangeError> {
    let host = log.host();
    let (mut known, mut survey) = look(log, suspect).await?;
    let term = known.layout.term;
    let began = host.clock.now();
    // Another proposer may be at work, or everything is being started: a moment, and another look (H19).
    while survey.half_done || survey.restarted && survey.lacks_some() {
        let patience = if survey.restarted {
            STARTING
        } else {
            Duration::ZERO
        };
        host.clock.sleep(host.random.jittered(PAUSE)).await;
        (known, survey) = look(log, suspect).await?;
        if known.layout.term > term || host.clock.now().since(began) >= patience {
            break;
        }
    }
    // Another's change came while this one looked.
    if let Some(newer) = log
        .shared
        .layouts
        .known()
        .filter(|newer| newer.layout.term > term)
    {
        finish(log, &newer, &survey.far).await?;
        return Ok(newer);
    }
    if survey.is_well() {
        finish(log, &known, &survey.far).await?;
        return Ok(Arc::new(known));
    }
    if let Some(name) = survey.cut_off.first()
        && !survey.needs_a_term()
    {
        // Whoever decided the term may have died over it, and the others may have no other client than this one.
        if let Err(error) = finish(log, &known, &survey.far).await {
            tracing::info!(%error, "the term could not be put to work through others");
        }
        return Err(ChangeError::Unconfirmed(name.to_string()));
    }
    let change = Change {
        heal: true,
        ..Change::default()
    };
    make_after(log, term, &change, why, Some(survey)).await
}

async fn look(log: &Log, suspect: Option<&ServerName>) -> Result<(Decided, Survey), ChangeError> {
    let known = log.shared.layouts.read().await?;
    let mut standings = known.standings.iter();
    let accepted = standings.any(|standing| standing.accepted.is_some());
    let mut survey = Survey::of(log, &known.decided, suspect).await;
    survey.half_done |= accepted;
    Ok((known.decided, survey))
}

/// Makes the next layout now: the same servers in their present process starts, a fresh sequencer.
///
/// # Errors
/// [`ChangeError`].
pub async fn rebuild(log: &Log, why: &str) -> Result<Arc<Decided>, ChangeError> {
    let term = log.shared.layouts.read().await?.decided.layout.term;
    make(log, term, &Change::default(), why).await
}

/// Makes the next layout now, with `change`.
///
/// # Errors
/// [`ChangeError`].
pub async fn change(log: &Log, change: &Change, why: &str) -> Result<Arc<Decided>, ChangeError> {
    let term = log.shared.layouts.read().await?.decided.layout.term;
    make(log, term, change, why).await
}

/// Makes the layout that follows `from`. If another proposer decides one first, that is finished instead: whatever asked
/// for this change is looked at again under it, so one failure makes one term.
///
/// # Errors
/// [`ChangeError`].
pub(crate) async fn make(
    log: &Log,
    from: Term,
    change: &Change,
    why: &str,
) -> Result<Arc<Decided>, ChangeError> {
    make_after(log, from, change, why, None).await
}

/// [`make`], after a survey of the layout of `from` if there was one: what it showed is not looked at again.
async fn make_after(
    log: &Log,
    from: Term,
    change: &Change,
    why: &str,
    mut survey: Option<Survey>,
) -> Result<Arc<Decided>, ChangeError> {
    let host = log.host();
    let mut number = 0;
    for attempt in 0..TRIES {
        if attempt > 0 {
            host.clock
                .sleep(host.random.jittered(YIELD * (1 << attempt.min(5))))
                .await;
        }
        let known = log.shared.layouts.read().await?;
        if known.decided.layout.term > from {
            let near = Far::default();
            let far = survey.as_ref().map_or(&near, |survey| &survey.far);
            finish(log, &known.decided, far).await?;
            return Ok(Arc::new(known.decided));
        }
        let seen = known
            .standings
            .iter()
            .filter_map(|standing| standing.promised)
            .map(|rank| rank.number);
        let seen = seen.max();
        if attempt == 0 && seen.is_some() {
            // Somebody is at it, or died over it: outbidding takes longer than letting them finish (H19).
            continue;
        }
        number = seen.unwrap_or(0).max(number).saturating_add(1);
        let rank = Rank {
            number,
            proposer: host.random.id(),
        };
        // Seals stop service: who is really gone, and whether it can succeed at all, is asked before anything is promised.
        let old = &known.decided.layout;
        let survey = match &survey {
            Some(survey) => survey,
            None => survey.insert(Survey::of(log, &known.decided, None).await),
        };
        survey.permits(old, change)?;
        if let Some(servers) = &change.layout_servers {
            servers::teach_history(log, servers, &known.decided).await?;
        }
        let began = host.clock.now();
        match propose(log, &known.decided, rank, change, survey, why).await {
            Ok((decided, sealed)) => {
                let voted = host.clock.now();
                finish(log, &decided, &survey.far).await?;
                log.shared.changes.note(Phases {
                    term: decided.layout.term,
                    began,
                    seal: sealed.since(began),
                    decide: voted.since(sealed),
                    bootstrap: host.clock.now().since(voted),
                });
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

/// One pass of Paxos over the term after `previous`. With the decision, when the seals were done.
async fn propose(
    log: &Log,
    previous: &Decided,
    rank: Rank,
    change: &Change,
    survey: &Survey,
    why: &str,
) -> Result<(Decided, Moment), Step> {
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
        None => compute(log, previous, term, change, survey, why).await?,
    };
    let sealed = log.host().clock.now();
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
    Ok((decided, sealed))
}

/// Whether only closed segments name the unit: nothing waits for it, and it stays listed while it is needed.
pub(super) fn is_closed_only(layout: &Layout, unit: &Server) -> bool {
    let mut open = layout.open_segment().chains.iter();
    !open.any(|chain| chain.units.contains(&unit.identity))
}

/// Seals the term and computes its layout from the answers (C7).
async fn compute(
    log: &Log,
    previous: &Decided,
    term: Term,
    change: &Change,
    survey: &Survey,
    why: &str,
) -> Result<Layout, Step> {
    let old = &previous.layout;
    let reach = &Reach::new(log, previous, &survey.far);
    let is_absent = |server: &&Server| survey.absent.contains(&server.identity);
    let listed = old.units.iter().chain(&old.spares);
    let is_new = |unit: &&Server| listed.clone().all(|known| known.identity != unit.identity);
    let all = listed.clone().chain(change.arrivals().filter(is_new));
    let asked = all.filter(|unit| !is_absent(unit));
    let seals =
        join_all(asked.map(|unit| async move { (unit, seal_unit(reach, unit, term).await) }));
    let (mut units, mut damaged) = (BTreeMap::new(), BTreeSet::new());
    for (unit, sealed) in seals.await {
        let failure = match sealed {
            Ok((sealed, is_damaged)) => {
                damaged.extend(is_damaged.then_some(sealed.identity));
                units.insert(sealed.identity, sealed);
                continue;
            }
            Err(failure) => failure,
        };
        if is_over(&failure) {
            return Err(Step::Again);
        }
        tracing::info!(%failure, %term, "a unit could not be sealed");
        let must = old.unit(unit.identity).is_some() && !change.leaves(&unit.identity);
        if must && !is_closed_only(old, unit) {
            // It was there a moment ago, and nobody has confirmed that it is gone: whoever tries next asks again.
            return Err(PlanError::Missing(vec![unit.name.to_string()]).into());
        }
    }
    let whole = whole(reach, old, term, change, &units).await;
    // The old sequencer's counter, if it still has one; and the first of the sequencers that answers issues next.
    let wanted = change.sequencer.as_ref();
    let mut sequencers: Vec<&Server> = std::iter::once(&old.sequencer)
        .chain(&old.standbys)
        .collect();
    sequencers.sort_by_key(|server| wanted != Some(&server.name));
    let (mut counter, mut first, mut silent) = (None, None, vec![]);
    for server in sequencers {
        if survey.absent.contains(&server.identity) {
            silent.push(format!("{} is down", server.name));
            continue;
        }
        match seal_sequencer(reach, server, term).await {
            Ok((present, sealed)) => {
                counter = counter.max(sealed);
                first.get_or_insert(present);
            }
            Err(failure) if is_over(&failure) => return Err(Step::Again),
            Err(failure) => silent.push(failure.to_string()),
        }
    }
    let first = first.ok_or(ChangeError::NoSequencer(silent))?;
    let seals = Seals {
        units,
        counter,
        whole,
        damaged,
    };
    let mut layout = next(old, change, &seals, &first, Origin::default())?;
    layout.origin = Origin {
        by: log.caller().name.to_string(),
        why: cut(why.replace(char::is_control, " ")),
        change: words::changed(old, &layout),
        at_ms: log.host().clock.wall_ms(),
    };
    Ok(layout)
}

pub(super) fn cut(mut text: String) -> String {
    while text.len() > TEXT_BYTES_MAX {
        text.pop();
    }
    text
}

/// Which units hold every position of the closed chains that lose somebody, or get somebody (P3, P6).
async fn whole(
    reach: &Reach<'_>,
    old: &Layout,
    term: Term,
    change: &Change,
    sealed: &BTreeMap<Identity, Sealed>,
) -> BTreeSet<(Position, usize, Identity)> {
    let mut questions = vec![];
    for segment in old.segments.iter().filter(|segment| segment.end.is_some()) {
        for (number, chain) in segment.chains.iter().enumerate() {
            let key = (segment.start, number);
            let stays = |unit: &Identity| sealed.contains_key(unit) && !change.leaves(unit);
            let listed = change.list.iter().filter(|(at, of, _)| (*at, *of) == key);
            let listed = listed.map(|(_, _, unit)| *unit);
            let loses = !chain.units.iter().all(stays);
            let members = chain.units.iter().copied().filter(|_| loses);
            for unit in members.chain(listed).filter(stays) {
                questions.push((key, segment.stripes(number), unit));
            }
        }
    }
    let answers = questions
        .into_iter()
        .map(|((start, number), stripes, unit)| async move {
            let listed = old.unit(unit)?;
            let server = present(reach, listed, Kind::LogUnit, term).await.ok()?;
            let request = UnitRequest::Settled { stripes };
            match reach.unit(&server, term, request).await.ok()? {
                UnitReply::Settled(mark) if stripes.run_from(mark).is_none() => {
                    Some((start, number, unit))
                }
                _ => None,
            }
        });
    join_all(answers).await.into_iter().flatten().collect()
}

/// Sends `request` to every layout server of `previous`; a majority must agree, and no more than that are waited for.
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
    let needed = previous.layout.majority();
    let mut running: FuturesUnordered<_> = calls.collect();
    let (mut agreed, mut why, mut outdone, mut forbidden) = (vec![], vec![], false, None);
    while let Some((server, answer)) = running.next().await {
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
        // The rest may be down, and service stands still.
        if agreed.len() >= needed {
            return Ok(agreed);
        }
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
pub(super) async fn teach(log: &Log, server: &Server, newest: Option<Term>, upto: &Decided) {
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

/// Whether `unit` takes a seal: that of the decided `term`, which changes nothing if it has it, and takes the way of the next.
pub(super) async fn can_be_sealed(reach: &Reach<'_>, unit: &Server, term: Term) -> bool {
    seal_unit(reach, unit, term).await.is_ok()
}

/// The server as it runs now, if its directory is still the one that the layout lists.
async fn present(
    reach: &Reach<'_>,
    server: &Server,
    kind: Kind,
    term: Term,
) -> Result<Server, Failure> {
    Ok(found(reach, server, kind, term).await?.0)
}

/// The same, and what it says of itself.
async fn found(
    reach: &Reach<'_>,
    server: &Server,
    kind: Kind,
    term: Term,
) -> Result<(Server, Description), Failure> {
    let found = reach.describe(server, kind, term).await?;
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
    let server = Server {
        incarnation: found.incarnation,
        ..server.clone()
    };
    Ok((server, found))
}

/// Whether somebody has sealed or decided a later term.
pub(super) fn is_over(failure: &Failure) -> bool {
    matches!(
        failure.refusal(),
        Some(Refusal::StaleTerm { .. } | Refusal::Decided { .. })
    )
}

/// Seals `unit` for `term`. With what it said, whether it knows of damaged records.
async fn seal_unit(
    reach: &Reach<'_>,
    unit: &Server,
    term: Term,
) -> Result<(Sealed, bool), Failure> {
    let (unit, said) = found(reach, unit, Kind::LogUnit, term).await?;
    match reach.unit(&unit, term, UnitRequest::Seal).await? {
        UnitReply::Sealed(sealed) if sealed.identity == unit.identity => {
            Ok((*sealed, said.damaged > 0))
        }
        _ => Err(unexpected(unit.name.as_str())),
    }
}

async fn seal_sequencer(
    reach: &Reach<'_>,
    server: &Server,
    term: Term,
) -> Result<(Server, Option<Position>), Failure> {
    let server = present(reach, server, Kind::Sequencer, term).await?;
    match reach
        .sequencer(&server, term, SequencerRequest::Seal)
        .await?
    {
        SequencerReply::Sealed { counter } => Ok((server, counter)),
        _ => Err(unexpected(server.name.as_str())),
    }
}
