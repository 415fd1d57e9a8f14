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

use milonga_wire::{
    ConfirmedEnd, Decided, Identity, Kind, Layout, Payload, Position, Server, Span, Stripes,
    UnitRequest, WriteKind,
};

use crate::chain::OneChain;
use crate::log::Log;
use crate::reconfigure::drive::{ChangeError, change, describe};
use crate::reconfigure::plan::Change;

/// Positions that one step of a copy covers.
const STEP_POSITIONS: u64 = 1_024;

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

/// Brings a cluster back to full strength, as far as units are there for it: at most one term for the spares, the copies,
/// and one term for what was copied. Nothing if there was nothing to do.
///
/// # Errors
/// [`ChangeError`]. What was copied stays copied.
pub async fn heal(log: &Log, why: &str) -> Result<Option<Arc<Decided>>, ChangeError> {
    let mut newest = log.shared.layouts.read().await?.decided;
    let mut healed = None;
    if may_take_spares(&newest.layout) {
        let spares = Change {
            heal: true,
            ..Change::default()
        };
        let decided = change(log, &spares, why).await?;
        newest = (*decided).clone();
        healed = Some(decided);
    }
    let layout = &newest.layout;
    let mut list = vec![];
    for gap in gaps(layout) {
        copy(log, layout, &gap).await?;
        list.push((gap.segment, gap.chain, gap.unit.identity));
    }
    if list.is_empty() {
        return Ok(healed);
    }
    let listed = Change {
        list,
        ..Change::default()
    };
    Ok(Some(change(log, &listed, why).await?))
}

/// Copies to the unit of `gap` what it lacks.
pub(super) async fn copy(log: &Log, layout: &Layout, gap: &Gap) -> Result<(), ChangeError> {
    let chain = &layout.segment_of(gap.segment).chains[gap.chain];
    let chain = log.chain(layout, chain);
    let end = ConfirmedEnd {
        end: layout.open_segment().start,
        term: layout.term,
    };
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
        let mut positions = 0;
        let step = gap.stripes.runs_from(lacking).map_while(|run| {
            let room = STEP_POSITIONS.saturating_sub(positions);
            positions += run.len();
            let cut = Span::new(run.start, run.start.plus(run.len().min(room)));
            (!cut.is_empty()).then_some(cut)
        });
        let step: Vec<Span> = step.collect();
        chain.settle_or_restore(&step, end).await?;
        let found = chain.read_all(chain.tail(), &step).await?;
        chain.push(&gap.unit, WriteKind::Copy, &found, end).await?;
        metrics::counter!("milonga_client_copied_positions_total").increment(positions);
    }
}

/// A unit that joins drops what was trimmed before it came: else it would be asked to hold it.
async fn adopt_trim(log: &Log, layout: &Layout, chain: &OneChain<'_>, unit: &Server) {
    let Ok(tail) = describe(log, chain.tail(), Kind::LogUnit).await else {
        return;
    };
    let request = UnitRequest::Trim {
        to: tail.trimmed,
        settled: tail.trimmed,
    };
    let calls = &log.shared.calls;
    if let Err(error) = calls.unit(unit, layout.term, request, Payload::new()).await {
        tracing::debug!(%error, unit = %unit.name, "the trim point was not adopted");
    }
}
