//! Reads: what positions hold on their whole chains. Holes and half-written entries are settled on the way.
//!
//! Below a chain's settled mark any of its units may answer, so reads spread; above it, only the tail (C4).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use milonga_host::{BoxFuture, Moment};
use milonga_wire::limits::SPANS_MAX;
use milonga_wire::{Chain, ConfirmedEnd, Layout, Payload, Position, Role, Span};

use crate::chain::Found;
use crate::entry::{Entry, Kind};
use crate::log::Log;
use crate::lost::declared;
use crate::settle::{ChainKey, by_chain};
use crate::trouble::{Trouble, Unavailable};

/// Positions that one round of reads covers at most.
const ROUND_POSITIONS: u64 = 8_192;
/// The first of the looks at a hole that is left to its writer comes after this part of the wait, each next one after twice as
/// long.
const LOOKS: u32 = 32;
/// Rounds over a hole that nobody has asked for, at a time.
const STUCK_ROUNDS: u64 = 64;

/// Why a read brought nothing. The log is unchanged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// What the position holds could not be found out in time.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// What one round found at the front of what was asked.
#[derive(Debug)]
pub(crate) enum Round {
    /// Entries from the first position on, without a gap; at least one.
    Entries(Vec<Entry>),
    /// The first position lies at or above the end, as confirmed.
    Ended(ConfirmedEnd),
}

impl Log {
    /// What `position` holds. At or above the end that is [`Kind::Unwritten`], and nothing is filled there (H12).
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read(&self, position: Position) -> Result<Entry, ReadError> {
        let mut patience = self.patience();
        match self.round(Span::one(position), &mut patience).await? {
            Round::Entries(entries) => Ok(entries.into_iter().next().unwrap_or(Entry {
                position,
                kind: Kind::Unknown,
            })),
            Round::Ended(_) => Ok(Entry {
                position,
                kind: Kind::Unwritten,
            }),
        }
    }

    /// What the positions of `span` hold, in order, up to the end of the log. All of it in memory: for long spans use
    /// [`Log::read_some`] or [`Log::follow`].
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_range(&self, span: Span) -> Result<Vec<Entry>, ReadError> {
        let mut entries = vec![];
        let mut rest = span;
        while !rest.is_empty() {
            let some = self.read_some(rest).await?;
            let Some(last) = some.last() else { break };
            rest.start = last.position.next();
            entries.extend(some);
        }
        Ok(entries)
    }

    /// The first entries of `span`, as many as one round brings: at least one, or none if `span` starts at or above the end.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_some(&self, span: Span) -> Result<Vec<Entry>, ReadError> {
        if span.is_empty() {
            return Ok(vec![]);
        }
        let mut patience = self.patience();
        match self.round(span, &mut patience).await? {
            Round::Entries(entries) => Ok(entries),
            Round::Ended(_) => Ok(vec![]),
        }
    }

    /// What each of `positions` holds, in order: they rise, and all lie below a confirmed end. As few calls as the units'
    /// answers have room for, all chains at once; what is not whole everywhere is settled one by one.
    pub(crate) async fn read_each(&self, positions: &[Position]) -> Result<Vec<Entry>, ReadError> {
        self.read_first(positions, usize::MAX).await
    }

    /// The same of the first of `positions`, at least one: as many as are brought by the call after which there are `bytes_enough` of
    /// payload.
    pub(crate) async fn read_first(
        &self,
        positions: &[Position],
        bytes_enough: usize,
    ) -> Result<Vec<Entry>, ReadError> {
        let mut patience = self.patience();
        let mut entries: BTreeMap<Position, Entry> = BTreeMap::new();
        let mut rest: Vec<Position> = positions.to_vec();
        while !rest.is_empty() {
            let decided = self.layout().await?;
            let layout = &decided.layout;
            let asked = &rest[..rest.len().min(SPANS_MAX)];
            let before = entries.len();
            match self.gather(layout, &spans_of(asked), true).await {
                Ok((found, _)) => {
                    let whole = found.into_values().filter(is_final);
                    entries.extend(
                        whole
                            .flat_map(entries_of)
                            .map(|entry| (entry.position, entry)),
                    );
                }
                Err(trouble) => self.after(&mut patience, layout.term, trouble).await?,
            }
            rest.retain(|position| !entries.contains_key(position));
            if entries.len() == before
                && let Some(first) = rest.first()
            {
                entries.insert(*first, self.read(*first).await?);
                rest.remove(0);
            }
            let payloads = entries.values().filter_map(Entry::payload);
            let is_enough = payloads.map(bytes::Bytes::len).sum::<usize>() >= bytes_enough;
            if is_enough && rest.first() != positions.first() {
                break;
            }
        }
        let wanted = positions.iter();
        Ok(wanted
            .map_while(|position| entries.remove(position))
            .collect())
    }

    /// One round over the front of `span`, tried until it brings something.
    pub(crate) async fn round(
        &self,
        span: Span,
        patience: &mut crate::trouble::Patience,
    ) -> Result<Round, Unavailable> {
        let mut waiting = Waiting::default();
        loop {
            let decided = self.layout().await?;
            let layout = &decided.layout;
            match self.try_round(layout, span, &mut waiting).await {
                Ok(Some(round)) => return Ok(round),
                Ok(None) if std::mem::take(&mut waiting.slept) && !patience.is_over() => {}
                Ok(None) => {
                    patience
                        .pause(|| {
                            let start = span.start;
                            if self.may(Role::Writer) {
                                format!("positions from {start} are being settled")
                            } else {
                                format!(
                                    "positions from {start} are holes, which writers and caretakers settle when they meet them, and none has"
                                )
                            }
                        })
                        .await?;
                }
                Err(Trouble::Unknown {
                    unit,
                    span: unknown,
                }) if declared(layout, span.start).is_some() => {
                    let asked = unknown.intersect(window_of(span));
                    if let Some(entries) = self.read_lost(layout, asked).await {
                        return Ok(Round::Entries(entries));
                    }
                    let unknown = Trouble::Unknown {
                        unit,
                        span: unknown,
                    };
                    self.after(patience, layout.term, unknown).await?;
                }
                // H32: nobody is left hanging where data may be lost. Only the first position may be answered so: what
                // lies before a gap is never skipped.
                Err(Trouble::Unknown { span: unknown, .. })
                    if patience.is_over() && unknown.contains(span.start) =>
                {
                    let positions = unknown
                        .intersect(span)
                        .positions()
                        .skip_while(|at| *at < span.start);
                    let entries = positions
                        .take(ROUND_POSITIONS as usize)
                        .map(|position| Entry {
                            position,
                            kind: Kind::Unknown,
                        });
                    return Ok(Round::Entries(entries.collect()));
                }
                Err(unknown @ Trouble::Unknown { .. }) if !patience.is_over() => {
                    // Its own pause may be the last: the answer above is better than an error.
                    let _ = self.after(patience, layout.term, unknown).await;
                }
                Err(trouble) => self.after(patience, layout.term, trouble).await?,
            }
        }
    }

    /// One try. Nothing if holes were met and settled, or left to their writers for a moment: look again. Only holes that
    /// were waited for are settled, so that what is written meanwhile is not.
    async fn try_round(
        &self,
        layout: &Layout,
        span: Span,
        waiting: &mut Waiting,
    ) -> Result<Option<Round>, Trouble> {
        let window = window_of(span);
        let is_found =
            |found: &BTreeMap<Position, Found>| found.get(&span.start).is_some_and(is_final);
        let (mut found, from_tails) = self.gather(layout, &[window], true).await?;
        if !is_found(&found) && !from_tails {
            (found, _) = self.gather(layout, &[window], false).await?;
        }
        if is_found(&found) {
            return Ok(Some(Round::Entries(prefix(span.start, found))));
        }
        if let Some(Found::Unknown(unknown) | Found::Damaged(unknown)) = found.get(&span.start) {
            let (chain, _) = layout.chain_of(span.start);
            let unit = self.chain(layout, chain).tail().name.to_string();
            return Err(Trouble::Unknown {
                unit,
                span: *unknown,
            });
        }
        // Unwritten at the tail: beyond the end, in flight, or a hole.
        let end = match self.confirmed(layout.term) {
            Some(known) if span.start < known.end => known,
            Some(_) | None => {
                let end = self.end().await?;
                ConfirmedEnd {
                    end: end.counter,
                    term: end.term,
                }
            }
        };
        if end.term != layout.term {
            return Ok(None);
        }
        if span.start >= end.end {
            return Ok(Some(Round::Ended(end)));
        }
        let holes: Vec<Span> = found
            .values()
            .filter_map(|found| match found {
                Found::Unwritten(hole) => Some(Log::clip(*hole, end.end)),
                Found::Data(..)
                | Found::Junk(..)
                | Found::Trimmed(_)
                | Found::Unknown(_)
                | Found::Damaged(_) => None,
            })
            .filter(|hole| !hole.is_empty())
            .collect();
        let Some(first) = holes.first().filter(|hole| hole.start == span.start) else {
            return Ok(None);
        };
        if !self.options.settle {
            // The end may be of a while ago, and the tail may have been left out of a newer layout since (H40).
            if self.end().await?.term != layout.term {
                return Ok(None);
            }
            let unwritten = |position| Entry {
                position,
                kind: Kind::Unwritten,
            };
            return Ok(Some(Round::Entries(
                first.positions().map(unwritten).collect(),
            )));
        }
        let clock = &self.shared.host.clock;
        let waited_for = common(&waiting.holes, &holes);
        if waited_for.is_empty() {
            // One wait for all of them, in which they are looked at again and again: most are written within a moment.
            let wait = self.hole_wait();
            *waiting = Waiting {
                holes,
                until: Some(clock.now().plus(wait)),
                pause: wait / LOOKS,
                slept: false,
                waited: Duration::ZERO,
            };
        } else {
            waiting.holes = waited_for;
        }
        let now = clock.now();
        match waiting.until.filter(|until| now < *until) {
            Some(until) => {
                let pause = waiting.pause.min(until.since(now));
                clock.sleep(pause).await;
                waiting.waited += pause;
                waiting.pause *= 2;
                waiting.slept = true;
            }
            None => Box::pin(self.settle(layout, &waiting.holes, end)).await?,
        }
        Ok(None)
    }

    /// What the units say of `wanted`, by first position, and whether only tails were asked. With `spread`, other units
    /// answer for what their chain's tail called settled; their "unwritten" and "unknown" mean nothing.
    async fn gather(
        &self,
        layout: &Layout,
        wanted: &[Span],
        spread: bool,
    ) -> Result<(BTreeMap<Position, Found>, bool), Trouble> {
        let groups = by_chain(layout, wanted);
        let turn = self.shared.turns.fetch_add(1, Ordering::Relaxed) as usize;
        let reads = groups.iter().map(|(key, (chain, spans))| async move {
            let chain_of = self.chain(layout, chain);
            let mark = self.shared.marks.of(layout, chain, *key);
            let settled = spread && spans.first().is_some_and(|span| span.start < mark);
            let unit = if settled {
                chain_of.any(turn)
            } else {
                chain_of.tail()
            };
            let is_tail = unit.identity == chain_of.tail().identity;
            // A unit above the tail may hold what the tail does not have yet: it is asked below the mark only.
            let limit = if is_tail { Position(u64::MAX) } else { mark };
            let asked = spans
                .iter()
                .map(|span| Log::clip(*span, limit))
                .filter(|span| !span.is_empty());
            let found = chain_of
                .read(
                    unit,
                    asked.take(SPANS_MAX).collect(),
                    self.options.read_bytes,
                )
                .await?;
            self.note_damage(unit, &found);
            if is_tail && spans.last().is_some_and(|span| span.end > mark) {
                self.learn_mark(layout, chain, *key, spans[0].start).await;
            }
            Ok::<_, Trouble>((found, is_tail))
        });
        let (mut all, mut only_tails) = (BTreeMap::new(), true);
        for result in join_all(reads).await {
            let (found, is_tail) = result?;
            only_tails &= is_tail;
            all.extend(found.into_iter().map(|found| (found.span().start, found)));
        }
        Ok((all, only_tails))
    }

    /// Asks the tail of the chain that holds `position` for its settled mark, now and then.
    async fn learn_mark(&self, layout: &Layout, chain: &Chain, key: ChainKey, position: Position) {
        let (marks, clock) = (&self.shared.marks, &self.shared.host.clock);
        if chain.units.len() < 2 || !marks.is_due(key, clock) {
            return;
        }
        let (_, stripes) = layout.chain_of(position);
        let Ok(mark) = self.chain(layout, chain).settled(stripes).await else {
            return;
        };
        if !marks.note(layout, chain, key, mark, clock, self.options.hole_wait_max) {
            return;
        }
        let is_hole = |end: ConfirmedEnd| mark < end.end;
        if self.options.settle && self.confirmed(layout.term).is_some_and(is_hole) {
            self.background(|log| log.push_mark(key, mark));
        } else {
            marks.pushed(key);
        }
    }

    /// Reads from the hole that keeps the mark of `key` down, which settles it: else every later read went to the tail.
    fn push_mark(self, key: ChainKey, hole: Position) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            for number in 0..STUCK_ROUNDS {
                let start = hole.plus(number * ROUND_POSITIONS);
                let round = Span::new(start, start.plus(ROUND_POSITIONS));
                match self.read_some(round).await {
                    Ok(entries) if entries.len() as u64 == ROUND_POSITIONS => {}
                    Ok(_) | Err(_) => break,
                }
            }
            self.shared.marks.pushed(key);
        })
    }
}

/// Rising positions as spans: neighbours share one.
/// Holes that are left to their writers for a moment.
#[derive(Default)]
struct Waiting {
    /// What was empty at every look so far.
    holes: Vec<Span>,
    until: Option<Moment>,
    /// Before the next look.
    pause: Duration,
    /// Whether the last try ended with a pause.
    slept: bool,
    waited: Duration,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.waited.is_zero() {
            let waited = metrics::histogram!("milonga_client_hole_wait_seconds");
            waited.record(self.waited.as_secs_f64());
        }
    }
}

fn spans_of(positions: &[Position]) -> Vec<Span> {
    let mut spans: Vec<Span> = vec![];
    for position in positions {
        match spans.last_mut().filter(|last| last.end == *position) {
            Some(last) => last.end = position.next(),
            None => spans.push(Span::one(*position)),
        }
    }
    spans
}

/// What one round looks at.
fn window_of(span: Span) -> Span {
    Span::new(span.start, span.start.plus(span.len().min(ROUND_POSITIONS)))
}

/// What two rising lists of spans have in common.
fn common(one: &[Span], other: &[Span]) -> Vec<Span> {
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    let mut both = vec![];
    while let (Some(a), Some(b)) = (one.peek(), other.peek()) {
        let span = a.intersect(**b);
        if !span.is_empty() {
            both.push(span);
        }
        if a.end <= b.end {
            one.next();
        } else {
            other.next();
        }
    }
    both
}

fn is_final(found: &Found) -> bool {
    match found {
        Found::Data(..) | Found::Junk(..) | Found::Trimmed(_) => true,
        Found::Unwritten(_) | Found::Unknown(_) | Found::Damaged(_) => false,
    }
}

/// The entries from `start` on, up to the first gap.
fn prefix(start: Position, found: BTreeMap<Position, Found>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = vec![];
    let mut next = start;
    for (position, found) in found {
        if position != next || !is_final(&found) {
            break;
        }
        next = found.span().end;
        entries.extend(entries_of(found));
    }
    entries
}

/// The entries of one answer that is final, one for each position.
fn entries_of(found: Found) -> Vec<Entry> {
    let all = |span: Span, kind: Kind| {
        let kinds = span.positions().map(|position| Entry {
            position,
            kind: kind.clone(),
        });
        kinds.collect()
    };
    match found {
        Found::Data(head, payload) => vec![data(head, payload)],
        Found::Junk(span, term) => all(span, Kind::Junk { term }),
        Found::Trimmed(span) => all(span, Kind::Trimmed),
        Found::Unwritten(_) | Found::Unknown(_) | Found::Damaged(_) => vec![],
    }
}

fn data(head: milonga_wire::EntryHead, payload: Payload) -> Entry {
    let milonga_wire::EntryHead {
        position,
        term,
        stamp,
        streams,
        len: _,
    } = head;
    Entry {
        position,
        kind: Kind::Data {
            term,
            stamp,
            streams,
            payload: payload.into_bytes(),
        },
    }
}

#[cfg(test)]
mod tests;
