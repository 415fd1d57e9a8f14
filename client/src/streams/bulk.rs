//! Long parts of a stream: the indexes of the tails say where its records lie, backpointers prove that none is missing.
//!
//! ```text
//!  at ──── r₁ ─────────── r₂ ── ✗ ── r₃ ──── top        r: a record of the stream, ✗: junk where one was to be
//!          ◀── before ────┘          │        │
//!                         ◀── before ┘ ◀─────┘ what the next record, or the sequencer, names before it
//! ```
//! Going down from the top, each record names those before it. What it names and no index told is read; where it names
//! nothing that helps (its past is unknown, or all that it names is junk), every position in between is looked at.
//!
//! Source: vCorfu (NSDI '17), "materialized streams", for the indexes; Tango (SOSP '13) for the backpointers.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use milonga_wire::limits::{BACKPOINTERS, READ_ANSWERS_MAX};
use milonga_wire::{
    Before, Layout, Payload, Position, Server, Span, StreamId, UnitReply, UnitRequest,
};

use super::{StreamReader, link, reaches};
use crate::calls::{Failure, unexpected};
use crate::entry::{Entry, Kind};
use crate::log::Log;
use crate::read::ReadError;

/// Positions asked of one unit at a time.
const ASKED: u32 = if cfg!(test) { 3 } else { 4_096 };
const _: () = assert!(ASKED as usize <= READ_ANSWERS_MAX);

/// Bytes of records after which a batch ends.
const ENOUGH: usize = if cfg!(test) { 4 } else { 16 << 20 };

/// A position at or above all that is brought, and what of the stream lies before it.
pub(super) struct Top {
    pub(super) position: Position,
    pub(super) before: Before,
}

/// Everything of `stream` from `at` on that comes before the end of the batch, in order, and where the next one starts. How much is in
/// memory for it does not depend on how large the stream is.
/// Nothing lies above `top`.
pub(super) async fn batch(
    log: &Log,
    stream: StreamId,
    at: Position,
    top: &Top,
) -> Result<(Vec<Entry>, Position), ReadError> {
    let (positions, mut upto) = match &top.before {
        // All that is new is named: it is read with whatever else is.
        Before::Known(named) if reaches(named, at) => (vec![], top.position),
        Before::Known(_) | Before::Unknown => {
            let mut from = at;
            loop {
                let (positions, upto) = indexed(log, stream, Span::new(from, top.position)).await?;
                if !positions.is_empty() || upto >= top.position {
                    break (positions, upto);
                }
                from = upto;
            }
        }
    };
    let entries = log.read_first(&positions, ENOUGH).await?;
    if entries.len() < positions.len() {
        upto = entries.last().map_or(upto, |last| last.position.next());
    }
    let mut proof = Proof::new(stream, at);
    for entry in entries {
        proof.take(entry);
    }
    // What lies between the last record and the place where the indexes were cut off is proved by the next batch.
    let (end, mut above, mut before) = match proof.newest() {
        Some((newest, before)) if upto < top.position => (newest.next(), newest, before),
        _ => (top.position, top.position, top.before.clone()),
    };
    while let Some(step) = proof.step(above, &before) {
        match step {
            Step::Down(to, next) => (above, before) = (to, next),
            Step::Read(positions) => {
                for entry in log.read_each(&positions).await? {
                    proof.take(entry);
                }
            }
            Step::Scan(span) => {
                let mut scan = StreamReader::new(log, stream, span, Some(before.clone()));
                while let Some(entries) = scan.next_scanned().await? {
                    entries.into_iter().for_each(|entry| proof.bring(entry));
                }
                proof.proved.insert(above);
            }
        }
    }
    Ok((proof.entries(), end))
}

/// The next record of `stream` at or above `from`, with what comes before it; else its end as the sequencer knows it.
pub(super) async fn top_of(log: &Log, stream: StreamId, from: Position) -> Result<Top, ReadError> {
    let end = log.end_of(&[stream]).await?;
    let mut rest = Span::new(from, end.counter);
    while !rest.is_empty() {
        let (positions, upto) = indexed(log, stream, rest).await?;
        if let Some(first) = positions.first() {
            let entry = log.read(*first).await?;
            if let Some(link) = link(&entry, stream) {
                let (position, before) = (*first, link.before.clone());
                return Ok(Top { position, before });
            }
            break;
        }
        rest.start = upto;
    }
    let before = end.streams.into_iter().next();
    Ok(Top {
        position: end.counter.max(from),
        before: before.map_or(Before::Unknown, |link| link.before),
    })
}

/// Where the tails of all chains say that records of `stream` lie within `span`, in order, and up to where they were asked.
async fn indexed(
    log: &Log,
    stream: StreamId,
    span: Span,
) -> Result<(Vec<Position>, Position), ReadError> {
    let mut patience = log.patience();
    loop {
        let decided = log.layout().await?;
        let layout = &decided.layout;
        let mut asked: BTreeMap<_, (&Server, Span)> = BTreeMap::new();
        for (chain, stripes) in layout.chains() {
            let part = stripes.span.intersect(span);
            if part.is_empty() {
                continue;
            }
            let tail = log.chain(layout, chain).tail();
            let (_, all) = asked.entry(tail.identity).or_insert((tail, part));
            *all = Span::new(all.start.min(part.start), all.end.max(part.end));
        }
        let asked = asked.into_values();
        let answers = asked.map(|(unit, part)| positions_at(log, layout, unit, stream, part));
        let answers: Result<Vec<_>, Failure> = join_all(answers).await.into_iter().collect();
        match answers {
            Ok(answers) => {
                let upto = answers.iter().filter_map(|(_, next)| *next).min();
                let upto = upto.unwrap_or(span.end);
                let all: BTreeSet<Position> =
                    answers.into_iter().flat_map(|(all, _)| all).collect();
                let below = all.into_iter().filter(|position| *position < upto);
                return Ok((below.collect(), upto));
            }
            Err(failure) => {
                log.after(&mut patience, layout.term, failure.into())
                    .await?;
            }
        }
    }
}

async fn positions_at(
    log: &Log,
    layout: &Layout,
    unit: &Server,
    stream: StreamId,
    span: Span,
) -> Result<(Vec<Position>, Option<Position>), Failure> {
    let request = UnitRequest::StreamPositions {
        stream,
        span,
        count_max: ASKED,
    };
    let calls = &log.shared.calls;
    match calls
        .unit(unit, layout.term, request, Payload::new())
        .await?
    {
        (UnitReply::StreamPositions { positions, next }, _)
            if next.is_none_or(|next| next > span.start) =>
        {
            Ok((positions, next))
        }
        _ => Err(unexpected(unit.name.as_str())),
    }
}

/// What to do next to prove that nothing is missing below a record.
#[derive(Debug, Eq, PartialEq)]
enum Step {
    /// Nothing is missing down to this record; before it comes what it says.
    Down(Position, Before),
    /// These may be records.
    Read(Vec<Position>),
    /// Only a look at each of these tells.
    Scan(Span),
}

/// What was found of a stream, and what is proved of it. Pure.
struct Proof {
    stream: StreamId,
    at: Position,
    /// Records of the stream, and what takes the place of such: trimmed, lost.
    found: BTreeMap<Position, Entry>,
    junk: BTreeSet<Position>,
    /// What holds something else than the stream's records or junk: whoever named it named what was never written.
    foreign: BTreeSet<Position>,
    /// Everything below it is trimmed.
    trimmed: Option<Position>,
    /// Between these and the record below each nothing is missing.
    proved: BTreeSet<Position>,
}

impl Proof {
    fn new(stream: StreamId, at: Position) -> Self {
        Self {
            stream,
            at,
            found: BTreeMap::new(),
            junk: BTreeSet::new(),
            foreign: BTreeSet::new(),
            trimmed: None,
            proved: BTreeSet::new(),
        }
    }

    /// What an index, or a record, said to be of the stream.
    fn take(&mut self, entry: Entry) {
        let position = entry.position;
        match &entry.kind {
            Kind::Data { .. } if link(&entry, self.stream).is_some() => {
                self.found.insert(position, entry);
            }
            Kind::Junk { .. } => {
                self.junk.insert(position);
            }
            Kind::Trimmed => self.trimmed = self.trimmed.max(Some(position.next())),
            Kind::Data { .. } | Kind::Unwritten | Kind::Unknown => {
                self.foreign.insert(position);
            }
        }
    }

    /// What a scan brought: told as it is.
    fn bring(&mut self, entry: Entry) {
        self.found.insert(entry.position, entry);
    }

    fn newest(&self) -> Option<(Position, Before)> {
        let (position, entry) = self.found.last_key_value()?;
        Some((*position, link(entry, self.stream)?.before.clone()))
    }

    /// What is left to do below `above`, before which comes `before`; none if all is proved.
    fn step(&mut self, above: Position, before: &Before) -> Option<Step> {
        let mut below = self.found.range(..above);
        let next = below.next_back().map(|(position, _)| *position);
        if self.trimmed.is_some_and(|trimmed| trimmed >= above) {
            return None;
        }
        if self.proved.contains(&above) {
            return self.down(next);
        }
        let doubt = |end: Position| {
            let start = next.map_or(self.at, Position::next).max(self.at);
            Some(Step::Scan(Span::new(start, end)))
        };
        let Before::Known(named) = before else {
            return doubt(above);
        };
        let unseen: Vec<Position> = named
            .iter()
            .copied()
            .filter(|position| *position >= self.at && self.is_unseen(*position))
            .collect();
        if !unseen.is_empty() {
            let mut unseen = unseen;
            unseen.sort_unstable();
            return Some(Step::Read(unseen));
        }
        if named.iter().any(|position| self.foreign.contains(position)) {
            return doubt(above);
        }
        let first = named.iter().find(|position| !self.junk.contains(position));
        match first {
            Some(position) if Some(*position) == next => self.down(next),
            // Before `at`, or trimmed: of what was asked there is nothing more, unless something is there all the same.
            Some(position) if *position < self.at || Some(*position) < self.trimmed => match next {
                None => None,
                Some(_) => doubt(above),
            },
            Some(_) => doubt(above),
            None if named.len() < BACKPOINTERS => match next {
                None => None,
                Some(_) => doubt(above),
            },
            None => doubt(named.iter().copied().min().unwrap_or(above)),
        }
    }

    fn is_unseen(&self, position: Position) -> bool {
        !(self.found.contains_key(&position)
            || self.junk.contains(&position)
            || self.foreign.contains(&position)
            || Some(position) < self.trimmed)
    }

    /// On from the record at `to`; what stands for lost records says nothing of its past, and was scanned with it.
    fn down(&self, to: Option<Position>) -> Option<Step> {
        let mut below = self.found.range(..=to?).rev();
        below.find_map(|(position, entry)| {
            let link = link(entry, self.stream)?;
            Some(Step::Down(*position, link.before.clone()))
        })
    }

    /// In order; a place in front where something of the stream is trimmed.
    fn entries(self) -> Vec<Entry> {
        let mut found = self.found;
        if self.trimmed.is_some() {
            found.entry(self.at).or_insert(Entry {
                position: self.at,
                kind: Kind::Trimmed,
            });
        }
        found.into_values().collect()
    }
}
