//! Verifying a running cluster: every unit is read by position, window by window, several at a time.
//!
//! ```text
//! end confirmed ─▶ windows from the trim point to it: every unit of every chain is read ─▶ compared
//!               ─▶ what may have been under way is looked at again, a few times ─▶ indexes of streams summed up
//! ```
//! What is written meanwhile lies above the end. A unit that is sealed, left out or taken in meanwhile is asked again
//! under the newer layout. Bytes are dropped as soon as their checksum is known.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{StreamExt, iter};
use milonga_wire::limits::{READ_ANSWERS_MAX, SPANS_MAX, STREAM_TAILS_PAGE_MAX};
use milonga_wire::{
    Chain, Identity, Kind, Layout, Payload, Position, Server, Span, StreamId, StreamLink,
    UnitReply, UnitRequest,
};

use super::compare::{Findings, Held, Record, Told, judge};
use super::streams::{Sum, Trails};
use crate::calls::{Failure, peer, unexpected};
use crate::chain::{ChainError, Found, OneChain, advance};
use crate::log::Log;
use crate::settle::by_chain;
use crate::trouble::Unavailable;

/// Positions that are looked at together.
const WINDOW_POSITIONS: u64 = 4_096;
/// Windows under way at a time.
const WINDOWS: usize = 4;
/// Payload bytes that one call brings.
const READ_BYTES: u32 = 1 << 20;
/// How often a window is tried, and how long it waits in between.
const TRIES: u32 = 5;
const TRY_PAUSE: Duration = Duration::from_millis(200);
/// How often what may be under way is looked at again.
const LOOKS: u32 = 3;
/// Spans that wait for another look; more are looked at as they come.
const AGAIN_MAX: usize = 1_024;
/// Streams whose index did not add up that are looked at once more.
const DOUBTED_MAX: usize = 64;
/// Questions for streams under way at a time.
const QUESTIONS: usize = 64;

/// How verifying is to be done.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// Bytes of records read in a second, of all units together. None: as fast as they come.
    pub bytes_per_second: Option<u64>,
}

/// Told how many positions are done, and of how many.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Send + Sync);

/// Verifies everything below the end as it is now. A reader's certificate is enough.
///
/// # Errors
/// [`Unavailable`] if there is no layout or no end. Units that do not answer are findings.
pub async fn verify(
    log: &Log,
    options: &VerifyOptions,
    progress: Progress<'_>,
) -> Result<Findings, Unavailable> {
    log.newest_layout().await?;
    let end = log.end().await?.counter;
    let run = Run {
        log: log.clone(),
        options: options.clone(),
        silent: Mutex::default(),
        numbers: Mutex::default(),
    };
    let mut findings = Findings::default();
    let start = run.trims(end, &mut findings).await?;
    let all = Span::new(start.min(end), end);
    let mut trails = Trails::default();
    let mut again = run.scan(all, &mut trails, &mut findings, progress).await?;
    run.look_again(&mut again, &mut findings).await?;
    findings.streams = trails.len() as u64;
    run.indexes(all, &trails, &mut findings).await?;
    findings.unreachable = run
        .silent
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Ok(findings)
}

struct Run {
    log: Log,
    options: VerifyOptions,
    /// Units that do not answer, and why not.
    silent: Mutex<BTreeMap<String, String>>,
    /// Units by number.
    numbers: Mutex<BTreeMap<Identity, u16>>,
}

/// What the units of one chain say of some spans.
struct Part {
    units: Vec<Server>,
    told: Vec<VecDeque<(Span, Told)>>,
    links: BTreeMap<Position, Vec<StreamLink>>,
}

/// What all units say of a window.
struct Seen {
    /// Its pieces in order, each with the number of its part.
    pieces: Vec<(Span, usize)>,
    parts: Vec<Part>,
    bytes: u64,
}

/// What one unit says of some spans.
#[derive(Default)]
struct Said {
    told: VecDeque<(Span, Told)>,
    links: BTreeMap<Position, Vec<StreamLink>>,
    bytes: u64,
}

/// One position, as a window shows it.
struct Shown<'a> {
    position: Position,
    units: &'a [Server],
    told: &'a [Told],
    links: Option<&'a Vec<StreamLink>>,
}

impl Run {
    /// The highest trim point of any unit: below it nothing is promised.
    async fn trims(&self, end: Position, findings: &mut Findings) -> Result<Position, Unavailable> {
        let decided = self.log.layout().await?;
        let units = &decided.layout.units;
        let calls = &self.log.shared.calls;
        let described = units.iter().map(|unit| async move {
            let said = calls.describe(&peer(unit, Kind::LogUnit)).await;
            (
                unit.name.as_str(),
                said.ok().filter(|said| said.identity == unit.identity),
            )
        });
        let mut trims = vec![];
        for (name, said) in join_all(described).await {
            trims.extend(said.map(|said| (name, said.trimmed)));
        }
        findings.trims(&trims, end);
        Ok(trims
            .iter()
            .map(|(_, trimmed)| *trimmed)
            .max()
            .unwrap_or_default())
    }

    /// Looks at `all`, and returns what must be looked at again.
    async fn scan(
        &self,
        all: Span,
        trails: &mut Trails,
        findings: &mut Findings,
        progress: Progress<'_>,
    ) -> Result<Vec<Span>, Unavailable> {
        let clock = &self.log.host().clock;
        let began = clock.now();
        let mut bytes = 0_u64;
        let mut again = vec![];
        let mut looks = iter(windows(all))
            .map(|window| async move { (window, self.look(window).await) })
            .buffered(WINDOWS);
        while let Some((window, seen)) = looks.next().await {
            let seen = seen?;
            bytes += seen.bytes;
            self.judge_all(seen, trails, findings, &mut again);
            progress(window.end.since(all.start), all.len());
            if let Some(rate) = self.options.bytes_per_second {
                let due = Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1));
                let took = clock.now().since(began);
                clock.sleep(due.saturating_sub(took)).await;
            }
            if again.len() > AGAIN_MAX {
                self.look_again(&mut again, findings).await?;
            }
        }
        Ok(again)
    }

    fn judge_all(
        &self,
        seen: Seen,
        trails: &mut Trails,
        findings: &mut Findings,
        again: &mut Vec<Span>,
    ) {
        seen.each(|shown| {
            let held = judge(shown.told, true);
            if let Some(links) = shown.links {
                let has = |told: &Told| matches!(told, Told::Data(_));
                let units = shown.units.iter().zip(shown.told);
                let units = units.filter(|(_, told)| has(told));
                let units: Vec<u16> = units.map(|(unit, _)| self.number(unit)).collect();
                trails.note(shown.position, links, units.iter().copied(), findings);
            }
            if held.may_change() {
                match again.last_mut() {
                    Some(last) if last.end == shown.position => last.end = shown.position.next(),
                    Some(_) | None => again.push(Span::one(shown.position)),
                }
            } else {
                shown.note(held, findings);
            }
        });
    }

    /// What differed is looked at again after a moment: it may have been under way. What still differs then stands.
    async fn look_again(
        &self,
        again: &mut Vec<Span>,
        findings: &mut Findings,
    ) -> Result<(), Unavailable> {
        let mut rest = std::mem::take(again);
        for number in 1..=LOOKS {
            if rest.is_empty() {
                return Ok(());
            }
            let pause = self.log.options.hole_wait_max;
            self.log.host().clock.sleep(pause).await;
            let mut still = vec![];
            for window in rest.iter().copied().flat_map(windows) {
                self.look(window).await?.each(|shown| {
                    let held = judge(shown.told, true);
                    if held.may_change() && number < LOOKS {
                        match still.last_mut() {
                            Some(Span { end, .. }) if *end == shown.position => {
                                *end = shown.position.next();
                            }
                            Some(_) | None => still.push(Span::one(shown.position)),
                        }
                    } else {
                        shown.note(held, findings);
                    }
                });
            }
            rest = still;
        }
        Ok(())
    }

    /// What every unit of every chain says of `window`, under the newest layout.
    async fn look(&self, window: Span) -> Result<Seen, Unavailable> {
        for number in 1.. {
            let decided = self.log.layout().await?;
            let layout = &decided.layout;
            match self.try_look(layout, window, number >= TRIES).await {
                Ok(seen) => return Ok(seen),
                Err(failure) => tracing::debug!(%failure, %window, "looking again"),
            }
            // A newer layout, if there is one; what cannot be read now is tried again.
            let _ = self.log.shared.layouts.read().await;
            let newest = self.log.layout().await?;
            if newest.layout.term == layout.term {
                self.log.host().clock.sleep(TRY_PAUSE * number).await;
            }
        }
        unreachable!("the last try leaves out who does not answer")
    }

    async fn try_look(
        &self,
        layout: &Layout,
        window: Span,
        is_last: bool,
    ) -> Result<Seen, ChainError> {
        let groups = by_chain(layout, &[window]);
        let looks = groups
            .values()
            .map(|(chain, spans)| self.part(layout, chain, spans, is_last));
        let (mut parts, mut bytes) = (vec![], 0);
        for part in join_all(looks).await {
            let (part, read) = part?;
            parts.push(part);
            bytes += read;
        }
        let mut pieces: Vec<(Span, usize)> = groups
            .values()
            .enumerate()
            .flat_map(|(number, (_, spans))| spans.iter().map(move |span| (*span, number)))
            .collect();
        pieces.sort_unstable();
        Ok(Seen {
            pieces,
            parts,
            bytes,
        })
    }

    async fn part(
        &self,
        layout: &Layout,
        chain: &Chain,
        spans: &[Span],
        is_last: bool,
    ) -> Result<(Part, u64), ChainError> {
        let chain = self.log.chain(layout, chain);
        let units: Vec<Server> = chain.all().cloned().collect();
        let reads = units.iter().map(|unit| async move {
            if self.is_silent(unit) {
                return Ok(silence(spans));
            }
            match read(&chain, unit, spans).await {
                Err(error) if is_last => {
                    self.note_silent(unit, &error);
                    Ok(silence(spans))
                }
                said => said,
            }
        });
        let mut part = Part {
            told: vec![],
            links: BTreeMap::new(),
            units: vec![],
        };
        let mut bytes = 0;
        for said in join_all(reads).await {
            let said = said?;
            bytes += said.bytes;
            part.told.push(said.told);
            for (position, links) in said.links {
                part.links.entry(position).or_insert(links);
            }
        }
        part.units = units;
        Ok((part, bytes))
    }

    fn is_silent(&self, unit: &Server) -> bool {
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.contains_key(unit.name.as_str())
    }

    fn note_silent(&self, unit: &Server, why: &impl ToString) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let name = unit.name.to_string();
        silent.entry(name).or_insert_with(|| why.to_string());
    }

    fn number(&self, unit: &Server) -> u16 {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let next = numbers.len() as u16;
        *numbers.entry(unit.identity).or_insert(next)
    }

    /// Compares every unit's index of every stream with what was read of that unit.
    async fn indexes(
        &self,
        all: Span,
        trails: &Trails,
        findings: &mut Findings,
    ) -> Result<(), Unavailable> {
        let decided = self.log.layout().await?;
        let units: Vec<Server> = decided.layout.units.clone();
        let mut doubted = BTreeSet::new();
        for unit in units.iter().filter(|unit| !self.is_silent(unit)) {
            let mut streams: BTreeSet<StreamId> = trails.streams().collect();
            streams.extend(self.tails(unit).await);
            let questions = iter(streams).map(|stream| async move {
                let mut sum = Sum::default();
                let told = self.positions(unit, stream, all, |at| sum.add(at)).await;
                (stream, told.then_some(sum))
            });
            let mut answers = questions.buffered(QUESTIONS);
            while let Some((stream, sum)) = answers.next().await {
                let expected = trails.sum(stream, self.number(unit));
                if sum.is_some_and(|sum| sum != expected) && doubted.len() < DOUBTED_MAX {
                    doubted.insert(stream);
                }
            }
        }
        if doubted.is_empty() || trails.is_partial() {
            return Ok(());
        }
        self.doubts(all, &units, doubted, findings).await
    }

    /// Looks once more at streams whose index did not add up: entries may have come to a unit after it was read, and
    /// trims have taken some. So its index is read before and after: what it names first must be found, and what is found
    /// it must name in the end.
    async fn doubts(
        &self,
        all: Span,
        units: &[Server],
        doubted: BTreeSet<StreamId>,
        findings: &mut Findings,
    ) -> Result<(), Unavailable> {
        let before = self.lists(all, units, &doubted).await;
        let mut trails = Trails::of_doubted(doubted.clone());
        let mut aside = Findings::default();
        self.scan(all, &mut trails, &mut aside, &|_, _| {}).await?;
        let after = self.lists(all, units, &doubted).await;
        let mut trimmed = self.trims(Position(u64::MAX), &mut aside).await?;
        trimmed = trimmed.max(all.start);
        for unit in units.iter().filter(|unit| !self.is_silent(unit)) {
            for stream in &doubted {
                let key = (unit.identity, *stream);
                let (Some(before), Some(after)) = (before.get(&key), after.get(&key)) else {
                    continue;
                };
                let found = trails.exact(*stream, self.number(unit));
                // What cannot be read was no part of what was found.
                let untold = |at: &Position| findings.is_damaged(unit.name.as_str(), *at);
                let mut excess = before.difference(&found).filter(|at| **at >= trimmed);
                let excess = excess.find(|at| !untold(at));
                let lack = found.difference(after).find(|at| **at >= trimmed);
                for (at, what) in [(excess, "names"), (lack, "leaves out")] {
                    if let Some(at) = at {
                        let not = if what == "names" {
                            ", which is none of it"
                        } else {
                            ""
                        };
                        let text = format!(
                            "the index of {} {what} {at} in stream {stream}{not}",
                            unit.name
                        );
                        findings.violate("index", *at, unit.name.to_string(), text);
                    }
                }
            }
        }
        Ok(())
    }

    async fn lists(
        &self,
        all: Span,
        units: &[Server],
        streams: &BTreeSet<StreamId>,
    ) -> BTreeMap<(Identity, StreamId), BTreeSet<Position>> {
        let mut lists = BTreeMap::new();
        for unit in units {
            for stream in streams {
                let mut list = BTreeSet::new();
                let told = self.positions(unit, *stream, all, |at| {
                    list.insert(at);
                });
                if told.await {
                    lists.insert((unit.identity, *stream), list);
                }
            }
        }
        lists
    }

    /// Every stream that `unit` knows.
    async fn tails(&self, unit: &Server) -> Vec<StreamId> {
        let (mut streams, mut after) = (vec![], None);
        loop {
            let request = UnitRequest::StreamTails {
                after,
                count_max: STREAM_TAILS_PAGE_MAX,
            };
            let Ok(UnitReply::StreamTails { tails, more }) = self.ask(unit, request).await else {
                return streams;
            };
            let last = tails.last().map(|(stream, _)| *stream);
            streams.extend(tails.into_iter().map(|(stream, _)| stream));
            if !more || last <= after {
                return streams;
            }
            after = last;
        }
    }

    /// Goes through the positions of `stream` that `unit`'s index names. Whether it told all.
    async fn positions(
        &self,
        unit: &Server,
        stream: StreamId,
        all: Span,
        mut each: impl FnMut(Position),
    ) -> bool {
        let mut from = Some(all.start);
        while let Some(start) = from {
            let request = UnitRequest::StreamPositions {
                stream,
                span: Span::new(start, all.end),
                count_max: READ_ANSWERS_MAX as u32,
            };
            match self.ask(unit, request).await {
                Ok(UnitReply::StreamPositions { positions, next })
                    if next.is_none_or(|next| next > start) =>
                {
                    positions.into_iter().for_each(&mut each);
                    from = next;
                }
                _ => return false,
            }
        }
        true
    }

    /// Asks `unit` in the newest term; once more if that is over.
    async fn ask(&self, unit: &Server, request: UnitRequest) -> Result<UnitReply, Failure> {
        let calls = &self.log.shared.calls;
        let silent = || unexpected(unit.name.as_str());
        for _ in 0..2 {
            let known = self.log.shared.layouts.known().ok_or_else(silent)?;
            let layout = &known.layout;
            let Some(unit) = layout.unit(unit.identity) else {
                break;
            };
            let asked = calls.unit(unit, layout.term, request.clone(), Payload::new());
            match asked.await {
                Ok((reply, _)) => return Ok(reply),
                Err(failure) => tracing::debug!(%failure, "asking again"),
            }
            let _ = self.log.shared.layouts.read().await;
        }
        Err(silent())
    }
}

impl Seen {
    /// Every position of the window, in order.
    fn each(mut self, mut each: impl FnMut(&Shown<'_>)) {
        let mut told = vec![];
        for (piece, number) in &self.pieces {
            let part = &mut self.parts[*number];
            for position in piece.positions() {
                told.clear();
                for runs in &mut part.told {
                    while runs.front().is_some_and(|(run, _)| run.end <= position) {
                        runs.pop_front();
                    }
                    let run = runs.front().filter(|(run, _)| run.contains(position));
                    told.push(run.map_or(Told::Silent, |(_, told)| *told));
                }
                each(&Shown {
                    position,
                    units: &part.units,
                    told: &told,
                    links: part.links.get(&position),
                });
            }
        }
    }
}

impl Shown<'_> {
    fn note(&self, held: Held, findings: &mut Findings) {
        let units: Vec<&str> = self.units.iter().map(|unit| unit.name.as_str()).collect();
        findings.note(self.position, &units, self.told, held);
    }
}

/// Reads `spans` of `unit`, and keeps what each position is.
async fn read(chain: &OneChain<'_>, unit: &Server, spans: &[Span]) -> Result<Said, ChainError> {
    let mut rest: VecDeque<Span> = spans.iter().copied().collect();
    let mut said = Said::default();
    while !rest.is_empty() {
        let asked = rest.iter().copied().take(SPANS_MAX).collect();
        let found = chain.read(unit, asked, READ_BYTES).await?;
        if found.is_empty() {
            return Err(unexpected(unit.name.as_str()).into());
        }
        for found in found {
            let span = found.span();
            advance(&mut rest, span);
            let told = match found {
                Found::Data(head, payload) => {
                    let mut crc = crc32fast::Hasher::new();
                    payload.chunks().iter().for_each(|chunk| crc.update(chunk));
                    said.bytes += payload.len() as u64;
                    let record = Record::of(&head, crc.finalize());
                    if !head.streams.is_empty() {
                        said.links.insert(head.position, head.streams);
                    }
                    Told::Data(record)
                }
                Found::Junk(_, term) => Told::Junk(term),
                Found::Trimmed(_) => Told::Trimmed,
                Found::Unwritten(_) => Told::Unwritten,
                Found::Unknown(_) => Told::Unknown,
                Found::Damaged(_) => Told::Damaged,
            };
            said.told.push_back((span, told));
        }
    }
    Ok(said)
}

fn silence(spans: &[Span]) -> Said {
    Said {
        told: spans.iter().map(|span| (*span, Told::Silent)).collect(),
        ..Said::default()
    }
}

/// `all`, window by window.
fn windows(all: Span) -> impl Iterator<Item = Span> {
    let starts = (all.start.0..all.end.0.max(all.start.0)).step_by(WINDOW_POSITIONS as usize);
    starts.map(move |start| {
        let start = Position(start);
        Span::new(start, start.plus(WINDOW_POSITIONS)).intersect(all)
    })
}

#[cfg(test)]
mod tests;
