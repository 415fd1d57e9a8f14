//! Healing: units that took the places of others get what was closed before they came, and are then listed for it.
//!
//! ```text
//! a short open chain takes a spare (one term) ─▶ settle a closed range ─▶ copy it, from where the unit lacks ─▶ list (one term)
//! ```
//! Appends go on meanwhile: nothing is sealed but for the two terms. A copy that stops is gone on with from what the unit
//! holds, by whoever heals next. Until it is listed the unit has no authority over the range, so a copy that is wrong
//! harms nobody; it is listed only if it holds every position (P6).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use milonga_wire::limits::SPANS_MAX;
use milonga_wire::{
    ConfirmedEnd, Decided, Identity, Kind, Layout, Position, Server, Span, Stripes, WriteKind,
};

use crate::chain::{Found, OneChain};
use crate::log::Log;
use crate::reconfigure::condition::{describe, writing};
use crate::reconfigure::drive::{ChangeError, can_be_sealed, make};
use crate::reconfigure::finish::raise_trim;
use crate::reconfigure::plan::Change;
use crate::reconfigure::reach::{Far, Reach};

/// Positions that one step of a copy covers at most.
const STEP_POSITIONS: u64 = 16_384;
/// Payload bytes that one step of a copy covers.
const STEP_BYTES: u32 = 2 << 20;
/// While appends go on, a copy pauses this many times as long as its step took.
const BUSY_PAUSE: u32 = 4;
/// Steps after which a copy looks whether appends go on.
const PACE_STEPS: u32 = 8;
/// How long a copy that makes no progress is nobody's.
const CLAIM: Duration = Duration::from_secs(2);

/// A closed range that a unit should be listed for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Gap {
    /// Where its segment starts.
    pub segment: Position,
    /// The number of its chain there.
    pub chain: usize,
    /// Its positions.
    pub stripes: Stripes,
    /// The unit.
    pub unit: Server,
}

/// The closed ranges that are held by fewer units than there should be, with the units that are to be copied to: those that
/// serve beside the remaining ones in the open segment.
pub fn gaps(layout: &Layout) -> Vec<Gap> {
    gaps_without(layout, &BTreeSet::new())
}

/// The same as if those of `leaving` held nothing: what must be copied before they leave.
pub(super) fn gaps_without(layout: &Layout, leaving: &BTreeSet<Identity>) -> Vec<Gap> {
    let replicas = usize::from(layout.settings.replicas);
    let open = &layout.open_segment().chains;
    let mut gaps = vec![];
    for segment in layout.segments.iter().filter(|s| s.end.is_some()) {
        let mut named: BTreeSet<Identity> = segment
            .chains
            .iter()
            .flat_map(|chain| chain.units.iter().copied())
            .collect();
        for (number, chain) in segment.chains.iter().enumerate() {
            let shares = |unit: &Identity| chain.units.contains(unit);
            let beside = open.iter().find(|other| other.units.iter().any(shares));
            let beside = beside.unwrap_or(&open[number % open.len()]);
            let stays = |unit: &&Identity| !leaving.contains(unit);
            let holding = chain.units.iter().filter(stays).count();
            let missing = replicas.saturating_sub(holding);
            let wanted = beside.units.iter().filter(stays);
            let wanted = wanted.filter(|unit| !named.contains(unit));
            let wanted: Vec<Identity> = wanted.copied().take(missing).collect();
            for unit in wanted.into_iter().filter_map(|unit| layout.unit(unit)) {
                if chain.unreachable {
                    continue;
                }
                named.insert(unit.identity);
                gaps.push(Gap {
                    segment: segment.start,
                    chain: number,
                    stripes: segment.stripes(number),
                    unit: unit.clone(),
                });
            }
        }
    }
    gaps
}

/// Whether an open chain is short of units while a spare stands ready.
pub fn may_take_spares(layout: &Layout) -> bool {
    let replicas = usize::from(layout.settings.replicas);
    let mut open = layout.open_segment().chains.iter();
    !layout.spares.is_empty() && open.any(|chain| chain.units.len() < replicas)
}

/// Whether every position has as many copies as it should have, and can be read.
pub(super) fn is_whole(layout: &Layout) -> bool {
    let replicas = usize::from(layout.settings.replicas);
    let mut chains = layout.segments.iter().flat_map(|segment| &segment.chains);
    chains.all(|chain| chain.units.len() >= replicas && !chain.unreachable)
}

/// Whether [`heal`] would have something to do.
pub fn is_short(layout: &Layout) -> bool {
    may_take_spares(layout) || !gaps(layout).is_empty()
}

/// Brings a cluster back to full strength, as far as units are there for it: at most one term for the spares, the copies,
/// and one term for what was copied. Nothing if there was nothing to do.
///
/// # Errors
/// [`ChangeError`]. What was copied stays copied.
pub async fn heal(log: &Log, why: &str) -> Result<Option<Arc<Decided>>, ChangeError> {
    heal_what(log, why, Which::All).await
}

/// The same for whoever looks after a cluster unasked, perhaps beside others who do: what somebody else copies meanwhile is
/// left to them.
///
/// # Errors
/// [`ChangeError`]. What was copied stays copied.
pub async fn heal_unattended(log: &Log, why: &str) -> Result<Option<Arc<Decided>>, ChangeError> {
    heal_what(log, why, Which::Unattended).await
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Which {
    All,
    Unattended,
}

async fn heal_what(
    log: &Log,
    why: &str,
    which: Which,
) -> Result<Option<Arc<Decided>>, ChangeError> {
    let mut newest = log.shared.layouts.read().await?.decided;
    let mut healed = None;
    if may_take_spares(&newest.layout) && has_ready_spare(log, &newest).await {
        let spares = Change {
            heal: true,
            ..Change::default()
        };
        let before = strength(&newest.layout);
        let decided = make(log, newest.layout.term, &spares, why).await?;
        newest = (*decided).clone();
        healed = (strength(&newest.layout) > before).then_some(decided);
    }
    let layout = &newest.layout;
    let (mut list, mut failed) = (vec![], None);
    for gap in gaps(layout) {
        if which == Which::Unattended && !is_unattended(log, layout, &gap).await {
            continue;
        }
        match copy(log, layout, &gap).await {
            Ok(()) => list.push((gap.segment, gap.chain, gap.unit.identity)),
            Err(error) => {
                tracing::info!(%error, unit = %gap.unit.name, segment = %gap.segment, "a copy stopped");
                failed.get_or_insert(error);
            }
        }
    }
    if !list.is_empty() {
        let listed = Change {
            list,
            ..Change::default()
        };
        healed = Some(make(log, layout.term, &listed, why).await?);
    }
    failed.map_or(Ok(healed), Err)
}

/// Whether a spare writes, and can be sealed. A term for one that does not would change nothing, and another would follow it.
async fn has_ready_spare(log: &Log, decided: &Decided) -> bool {
    let layout = &decided.layout;
    let near = &Far::default();
    let ready = join_all(layout.spares.iter().map(|spare| async move {
        let there = writing(log, spare, layout.term).await;
        let reach = &Reach::new(log, decided, near);
        there.is_some_and(|there| there.identity == spare.identity)
            && can_be_sealed(reach, spare, layout.term).await
    }));
    ready.await.contains(&true)
}

/// How many places of the open chains are taken.
fn strength(layout: &Layout) -> usize {
    let open = &layout.open_segment().chains;
    open.iter().map(|chain| chain.units.len()).sum()
}

/// Whether nobody copies to the unit of `gap`, as far as can be seen in a moment.
async fn is_unattended(log: &Log, layout: &Layout, gap: &Gap) -> bool {
    let host = log.host();
    let chain = &layout.segment_of(gap.segment).chains[gap.chain];
    let chain = log.chain(layout, chain);
    let before = chain.settled_at(&gap.unit, gap.stripes).await.ok();
    host.clock.sleep(host.random.jittered(CLAIM)).await;
    let after = chain.settled_at(&gap.unit, gap.stripes).await.ok();
    before.is_some() && before == after
}

/// Copies to the unit of `gap` what it lacks.
pub(super) async fn copy(log: &Log, layout: &Layout, gap: &Gap) -> Result<(), ChangeError> {
    let chain = &layout.segment_of(gap.segment).chains[gap.chain];
    let chain = log.chain(layout, chain);
    adopt_trim(log, layout, &chain, &gap.unit).await;
    let mut before = None;
    loop {
        let lacking = chain.settled_at(&gap.unit, gap.stripes).await?;
        if gap.stripes.run_from(lacking).is_none() {
            return Ok(());
        }
        if before == Some(lacking) {
            return Err(ChangeError::Stuck {
                unit: gap.unit.name.to_string(),
                position: lacking,
            });
        }
        before = Some(lacking);
        copy_from(log, layout, &chain, gap, lacking).await?;
    }
}

/// Copies what the tail of `chain` holds from `from` on: the next step is read while the one before is written.
async fn copy_from(
    log: &Log,
    layout: &Layout,
    chain: &OneChain<'_>,
    gap: &Gap,
    from: Position,
) -> Result<(), ChangeError> {
    let end = ConfirmedEnd {
        end: layout.open_segment().start,
        term: layout.term,
    };
    let mut pace = Pace::new(log, chain);
    let mut step = read_step(chain, gap.stripes, from, end).await?;
    while let Some(last) = step.last() {
        let began = log.host().clock.now();
        let after = last.span().end;
        let written = chain.push(&gap.unit, WriteKind::Copy, &step, end);
        let (written, next) = join(written, read_step(chain, gap.stripes, after, end)).await;
        written?;
        let positions = step.iter().map(|found| found.span().len()).sum();
        metrics::counter!("milonga_client_copied_positions_total").increment(positions);
        step = next?;
        pace.step(log.host().clock.now().since(began)).await;
    }
    Ok(())
}

/// Settles and reads what the tail of `chain` holds from `from` on, as far as one step goes. Empty at the end.
async fn read_step(
    chain: &OneChain<'_>,
    stripes: Stripes,
    from: Position,
    end: ConfirmedEnd,
) -> Result<Vec<Found>, ChangeError> {
    let mut room = STEP_POSITIONS;
    let runs = stripes.runs_from(from).map_while(|run| {
        let cut = Span::new(run.start, run.start.plus(run.len().min(room)));
        room -= cut.len();
        (!cut.is_empty()).then_some(cut)
    });
    let step: Vec<Span> = runs.take(SPANS_MAX).collect();
    let Some(last) = step.last() else {
        return Ok(vec![]);
    };
    // What the tail has was settled before.
    let mark = chain.settled(stripes).await?;
    if mark < last.end {
        let open = step
            .iter()
            .map(|span| Span::new(span.start.max(mark), span.end));
        let open: Vec<Span> = open.filter(|span| !span.is_empty()).collect();
        chain.settle_or_restore(&open, end).await?;
    }
    Ok(chain.read(chain.tail(), step, STEP_BYTES).await?)
}

/// Keeps a copy from taking more than its part of a cluster that appends.
struct Pace<'a> {
    log: &'a Log,
    tail: &'a Server,
    /// Where the tail ended when it was last asked.
    end: Option<Position>,
    /// Steps until it is asked again.
    steps: u32,
    is_busy: bool,
}

impl<'a> Pace<'a> {
    fn new(log: &'a Log, chain: &OneChain<'a>) -> Self {
        Self {
            log,
            tail: chain.tail(),
            end: None,
            steps: 0,
            is_busy: false,
        }
    }

    /// Pauses after a step that took `took` if appends go on.
    async fn step(&mut self, took: Duration) {
        if self.steps == 0 {
            self.steps = PACE_STEPS;
            let tail = describe(self.log, self.tail, Kind::LogUnit).await;
            let end = tail.ok().map(|tail| tail.end);
            self.is_busy = self.end.is_some() && end != self.end;
            self.end = end;
        }
        self.steps -= 1;
        if self.is_busy {
            self.log.host().clock.sleep(took * BUSY_PAUSE).await;
        }
    }
}

/// A unit that joins drops what was trimmed before it came: else it would be asked to hold it.
async fn adopt_trim(log: &Log, layout: &Layout, chain: &OneChain<'_>, unit: &Server) {
    let Ok(tail) = describe(log, chain.tail(), Kind::LogUnit).await else {
        return;
    };
    raise_trim(log, layout, unit, tail.trimmed).await;
}
