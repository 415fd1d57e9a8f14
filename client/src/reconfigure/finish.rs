//! What follows a decision: every unit hears where its open segment starts, the sequencer gets the stream tails, and what a
//! unit lacks of what is closed is restored.
//!
//! Any client may do it, and repeat it: each step is idempotent, and the next change of layout does it anew.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use milonga_wire::limits::{BACKPOINTERS, STREAM_TAILS_PAGE_MAX};
use milonga_wire::{
    Before, BootstrapPage, Decided, Kind, Layout, Payload, Position, SequencerReply,
    SequencerRequest, Server, Span, StreamId, StreamTail, Term, UnitReply, UnitRequest,
};

use crate::calls::{Failure, unexpected};
use crate::log::Log;
use crate::reconfigure::condition::{answers_soon, describe};
use crate::reconfigure::drive::{ChangeError, is_closed_only, is_over};
use crate::reconfigure::reach::{Far, Reach};
use crate::reconfigure::servers;

/// Positions that one step of a restore covers.
const RESTORE_POSITIONS: u64 = 1_024;
/// Stream tails pages that a bootstrap may take: 64 million streams.
const PAGES_MAX: u32 = 16_384;

/// Puts a decided layout to work: every unit hears where its open segment starts, the sequencer its stream tails. Those that
/// are `far` hear it through layout servers.
pub(super) async fn finish(log: &Log, decided: &Decided, far: &Far) -> Result<(), ChangeError> {
    match put_to_work(log, decided, far).await {
        // Somebody has sealed a later term, and goes on from there.
        Err(ChangeError::Server(failure)) if is_over(&failure) => Ok(()),
        finished => finished,
    }
}

async fn put_to_work(log: &Log, decided: &Decided, far: &Far) -> Result<(), ChangeError> {
    let layout = &decided.layout;
    let reach = &Reach::new(log, decided, far);
    let announce = UnitRequest::Announce {
        start: layout.open_segment().start,
    };
    let announced = layout.units.iter().map(|unit| {
        let request = announce.clone();
        async move {
            if !is_there(log, reach, layout, unit).await {
                return Ok(());
            }
            match reach.unit(unit, layout.term, request).await? {
                UnitReply::Announced => Ok(()),
                _ => Err(unexpected(unit.name.as_str())),
            }
        }
    });
    // A term that a majority of its layout servers does not know cannot be confirmed, nor followed. What the units know of
    // streams was settled by their seals: it may be read before they have heard where the segment starts.
    let (announced, held, tails) = tokio::join!(
        biased;
        join_all(announced),
        servers::hold(log, decided),
        tails(log, reach, layout)
    );
    held?;
    for (unit, result) in layout.units.iter().zip(announced) {
        // Who holds nothing but closed ranges may be silent: it is listed for what only it may hold.
        if !is_closed_only(layout, unit) {
            result?;
        }
    }
    if let Some(tails) = tails? {
        bootstrap(log, reach, decided, tails).await?;
    }
    let layout = layout.clone();
    log.background(|log| async move { complete(&log, &layout).await });
    Ok(())
}

/// Whether the term waits for `unit`: not for one that only closed ranges need and that does not answer soon.
async fn is_there(log: &Log, reach: &Reach<'_>, layout: &Layout, unit: &Server) -> bool {
    !is_closed_only(layout, unit)
        || reach.is_far(unit)
        || answers_soon(log, unit, Kind::LogUnit).await
}

/// The tails of all streams, and whether nobody is silent who may know more of them.
struct Tails {
    tails: BTreeMap<StreamId, Before>,
    complete: bool,
}

/// The tails of all streams, read from every unit of `layout`; none if its sequencer serves already.
async fn tails(
    log: &Log,
    reach: &Reach<'_>,
    layout: &Layout,
) -> Result<Option<Tails>, ChangeError> {
    let probe = reach
        .sequencer(&layout.sequencer, layout.term, SequencerRequest::Probe)
        .await?;
    if matches!(probe, SequencerReply::Probed { serving: true }) {
        return Ok(None);
    }
    let mut tails: BTreeMap<StreamId, Before> = BTreeMap::new();
    // Below here, what a silent unit may hold is in no other tail (H39).
    let mut doubt = Position::FIRST;
    let units = layout.units.iter();
    let told = units.map(|unit| async move {
        if is_there(log, reach, layout, unit).await {
            stream_tails(reach, unit, layout.term).await.map(Some)
        } else {
            Ok(None)
        }
    });
    let told = join_all(told).await;
    for (unit, told) in layout.units.iter().zip(told) {
        let told = match told {
            Err(_) | Ok(None) if is_closed_only(layout, unit) => {
                doubt = doubt.max(last_of(layout, unit));
                continue;
            }
            told => told?.unwrap_or_default(),
        };
        for (stream, last) in told {
            merge(
                tails.entry(stream).or_insert_with(|| Before::Known(vec![])),
                last,
            );
        }
    }
    tails.values_mut().for_each(|tail| doubt_below(tail, doubt));
    let complete = doubt == Position::FIRST;
    Ok(Some(Tails { tails, complete }))
}

/// Gives the sequencer of `decided` the tails of all streams.
async fn bootstrap(
    log: &Log,
    reach: &Reach<'_>,
    decided: &Decided,
    Tails { tails, complete }: Tails,
) -> Result<(), ChangeError> {
    let layout = &decided.layout;
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
        match reach
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
    reach: &Reach<'_>,
    unit: &Server,
    term: Term,
) -> Result<Vec<(StreamId, Before)>, Failure> {
    let (mut all, mut after): (Vec<(StreamId, Before)>, Option<StreamId>) = (vec![], None);
    for _ in 0..PAGES_MAX {
        let request = UnitRequest::StreamTails {
            after,
            count_max: STREAM_TAILS_PAGE_MAX,
        };
        match reach.unit(unit, term, request).await? {
            UnitReply::StreamTails { tails, more } => {
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

/// Where the last closed segment ends that names `unit`.
fn last_of(layout: &Layout, unit: &Server) -> Position {
    let segments = layout.segments.iter();
    let naming = segments.filter(|segment| {
        let mut chains = segment.chains.iter();
        chains.any(|chain| chain.units.contains(&unit.identity))
    });
    naming
        .filter_map(|segment| segment.end)
        .max()
        .unwrap_or_default()
}

/// Makes a tail unknown unless all K positions of it lie at or above `doubt`.
fn doubt_below(tail: &mut Before, doubt: Position) {
    if let Before::Known(known) = tail
        && doubt > Position::FIRST
        && !(known.len() >= BACKPOINTERS && known.iter().all(|position| *position >= doubt))
    {
        *tail = Before::Unknown;
    }
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

/// Raises trim points, then puts back what units lack of what is closed.
pub(super) async fn complete(log: &Log, layout: &Layout) {
    raise_trims(log, layout).await;
    restore_lacking(log, layout).await;
}

/// Tells the units of `layout` that lie below it the highest trim point of any: a trim that some never heard of, or that a
/// disk forgot, is finished. Who does not answer now is told by the next term, or by whoever repeats the trim.
async fn raise_trims(log: &Log, layout: &Layout) {
    let told = layout.units.iter().map(|unit| async move {
        let said = describe(log, unit, Kind::LogUnit).await.ok()?;
        (said.identity == unit.identity).then_some((unit, said.trimmed))
    });
    let told: Vec<(&Server, Position)> = join_all(told).await.into_iter().flatten().collect();
    let Some(highest) = told.iter().map(|(_, trimmed)| *trimmed).max() else {
        return;
    };
    let below = told.into_iter().filter(|(_, trimmed)| *trimmed < highest);
    join_all(below.map(|(unit, _)| raise_trim(log, layout, unit, highest))).await;
}

/// Tells `unit` that another one trimmed up to `to`, which is settled everywhere then.
pub(super) async fn raise_trim(log: &Log, layout: &Layout, unit: &Server, to: Position) {
    let request = UnitRequest::Trim { to, settled: to };
    let calls = &log.shared.calls;
    if let Err(error) = calls.unit(unit, layout.term, request, Payload::new()).await {
        tracing::debug!(%error, unit = %unit.name, "the trim point was not adopted");
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

    /// H39: a silent unit of a closed range may hold positions of any stream.
    #[test]
    fn a_tail_that_reaches_below_what_a_silent_unit_may_hold_is_unknown() {
        let known =
            |positions: &[u64]| Before::Known(positions.iter().map(|p| Position(*p)).collect());
        for (tail, doubt, sure) in [
            (known(&[9, 8, 7, 6]), 6, true),
            (known(&[9, 8, 7, 6]), 7, false),
            (known(&[9, 8, 7]), 5, false),
            (known(&[]), 0, true),
        ] {
            let mut doubted = tail.clone();
            doubt_below(&mut doubted, Position(doubt));
            assert_eq!(doubted, if sure { tail } else { Before::Unknown });
        }
    }
}
