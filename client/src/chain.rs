//! One chain in one term: write down it, read from a unit of it, settle what is half done, restore what a unit lost.
//!
//! ```text
//!          write / complete                     fill                       restore (control)
//! client ──▶ head   Decide: decides      client ──▶ head   junk, if empty     every unit: what do you hold?
//!        ──▶ middle Follow: repeats             ──▶ middle                    head first, Copy what any of them holds,
//!        ──▶ tail   acknowledged                ──▶ tail                      down the whole chain; junk if none does
//! ```
//! Straight lines without retries: a caller that meets a [`ChainError`] knows what is true and tries again where that
//! is right, in one place (`log.rs`).
//!
//! Source: van Renesse and Schneider, *Chain Replication* (OSDI '04); CORFU (NSDI '12), "Completing writes" and "Filling holes".

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use milonga_host::CallError;
use milonga_wire::limits::{
    FILL_POSITIONS_MAX, PIECE_BYTES_MAX, PIECES_MAX, READ_BYTES_MAX, SPANS_MAX,
};
use milonga_wire::{
    Answer, Chain, ConfirmedEnd, EntryHead, Fill, Layout, Payload, Piece, Position, Refusal,
    Server, Span, Stripes, Term, UnitReply, UnitRequest, WriteKind, WriteOutcome,
};

use crate::calls::{Calls, Failure, unexpected};
use crate::full::FullUnits;
use crate::lost::declared;

/// Bytes of piece heads in one push, about: far below what a frame's head may take.
const PUSH_HEADS_MAX: usize = 1 << 20;

/// Why an operation on a chain did not come to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ChainError {
    /// A unit refused or did not answer. Whatever was asked of the units before it in the chain is done.
    #[error(transparent)]
    Unit(#[from] Failure),
    /// C2 is broken: a unit holds something else than the head. Nothing was acknowledged there.
    #[error(
        "position {position} differs between {head} and {unit}; nothing is lost at the head; evict {unit} and let it heal"
    )]
    Diverged {
        /// Where.
        position: Position,
        /// The head's name.
        head: String,
        /// The unit that differs.
        unit: String,
    },
    /// A unit cannot tell what it held there: a later term must restore it.
    #[error("{unit} cannot tell what {span} held")]
    Unknown {
        /// Which unit.
        unit: String,
        /// The positions.
        span: Span,
    },
}

/// What a position holds on one unit, bytes included.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    Data(EntryHead, Payload),
    Junk(Span, Term),
    Trimmed(Span),
    Unwritten(Span),
    Unknown(Span),
    Damaged(Span),
}

impl Found {
    pub(crate) fn span(&self) -> Span {
        match self {
            Self::Data(head, _) => Span::one(head.position),
            Self::Junk(span, _)
            | Self::Trimmed(span)
            | Self::Unwritten(span)
            | Self::Unknown(span)
            | Self::Damaged(span) => *span,
        }
    }
}

/// What became of a piece.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Written {
    /// The whole chain has it.
    Done,
    /// `position` belongs to another; nothing of the piece is in the log.
    Lost { position: Position },
}

/// One chain, as the layout of one term lists it.
#[derive(Copy, Clone)]
pub(crate) struct OneChain<'a> {
    pub(crate) calls: &'a Calls,
    pub(crate) layout: &'a Layout,
    pub(crate) chain: &'a Chain,
    pub(crate) full: &'a FullUnits,
}

impl<'a> OneChain<'a> {
    fn units(&self) -> impl DoubleEndedIterator<Item = &'a Server> + use<'a> {
        self.layout.units_of(self.chain)
    }

    pub(crate) fn head(&self) -> &'a Server {
        self.units()
            .next()
            .expect("a valid layout's chains are not empty and name listed units (L1)")
    }

    pub(crate) fn tail(&self) -> &'a Server {
        self.units()
            .next_back()
            .expect("a valid layout's chains are not empty and name listed units (L1)")
    }

    /// All but the head, in order.
    pub(crate) fn below_head(&self) -> impl Iterator<Item = &'a Server> + use<'a> {
        self.units().skip(1)
    }

    /// The unit at `index`, counted round the chain from its head.
    pub(crate) fn any(&self, index: usize) -> &'a Server {
        self.units()
            .nth(index % self.chain.units.len())
            .unwrap_or_else(|| self.tail())
    }

    /// Whether `error`, met by a write, shows that no unit got it: the head refused, or was not reached. A head whose disk
    /// failed proves nothing: what it was writing may be found after its restart (H30).
    pub(crate) fn is_untouched(&self, error: &ChainError) -> bool {
        let ChainError::Unit(failure) = error else {
            return false;
        };
        let is_definite = match failure {
            Failure::Refused { refusal, .. } => !matches!(refusal, Refusal::DiskFailed { .. }),
            Failure::Call(CallError::NotSent { .. }) => true,
            Failure::Call(_) => false,
        };
        is_definite && failure.server().as_ref() == Some(&self.head().name)
    }

    /// Writes a new piece, head to tail (C1).
    pub(crate) async fn write(
        &self,
        piece: &Piece,
        payload: &Payload,
    ) -> Result<Written, ChainError> {
        for (index, unit) in self.units().enumerate() {
            let kind = if index == 0 {
                WriteKind::Decide
            } else {
                WriteKind::Follow
            };
            let put = self
                .put(unit, kind, vec![piece.clone()], payload.clone())
                .await;
            if index > 0 {
                self.full.note(unit, &put);
            }
            match put?.first() {
                Some(WriteOutcome::Stored | WriteOutcome::InReserve) => {}
                Some(WriteOutcome::Taken { position, .. }) if index == 0 => {
                    return Ok(Written::Lost {
                        position: *position,
                    });
                }
                Some(WriteOutcome::Taken { position, .. }) => {
                    return Err(self.diverged(unit, *position));
                }
                None => return Err(unexpected(unit.name.as_str()).into()),
            }
        }
        Ok(Written::Done)
    }

    /// What `spans` hold on `unit`: all of them, in order, in as many calls as it takes.
    pub(crate) async fn read_all(
        &self,
        unit: &Server,
        spans: &[Span],
    ) -> Result<Vec<Found>, ChainError> {
        let mut rest: VecDeque<Span> = spans
            .iter()
            .copied()
            .filter(|span| !span.is_empty())
            .collect();
        let mut found = vec![];
        while !rest.is_empty() {
            let asked = rest.iter().copied().take(SPANS_MAX).collect();
            let part = self.read(unit, asked, READ_BYTES_MAX).await?;
            if part.is_empty() {
                return Err(unexpected(unit.name.as_str()).into());
            }
            for piece in &part {
                advance(&mut rest, piece.span());
            }
            found.extend(part);
        }
        Ok(found)
    }

    /// What `spans` hold on `unit`, as far as one reply goes: only what was asked, in order, each record whole.
    pub(crate) async fn read(
        &self,
        unit: &Server,
        spans: Vec<Span>,
        bytes_max: u32,
    ) -> Result<Vec<Found>, ChainError> {
        let mut rest: VecDeque<Span> = spans.iter().copied().collect();
        let request = UnitRequest::Read { spans, bytes_max };
        let (reply, mut payload) = self
            .calls
            .unit(unit, self.layout.term, request, Payload::new())
            .await?;
        let nonsense = || ChainError::from(unexpected(unit.name.as_str()));
        let UnitReply::Read(answers) = reply else {
            return Err(nonsense());
        };
        let mut all = Vec::with_capacity(answers.len());
        for answer in answers {
            if !advance(&mut rest, answer.span()) {
                return Err(nonsense());
            }
            all.push(match answer {
                Answer::Data(head) => {
                    let bytes = payload.split_to(head.len as usize);
                    if bytes.len() != head.len as usize {
                        return Err(nonsense());
                    }
                    Found::Data(head, bytes)
                }
                Answer::Junk { span, term } => Found::Junk(span, term),
                Answer::Trimmed(span) => Found::Trimmed(span),
                Answer::Unwritten(span) => Found::Unwritten(span),
                Answer::Unknown(span) => Found::Unknown(span),
                Answer::Damaged(span) => Found::Damaged(span),
            });
        }
        Ok(all)
    }

    /// All units, head first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'a Server> + use<'a> {
        self.units()
    }

    /// The chain's settled mark, from its tail.
    pub(crate) async fn settled(&self, stripes: Stripes) -> Result<Position, ChainError> {
        self.settled_at(self.tail(), stripes).await
    }

    /// The first position of `stripes` that `unit` lacks: a settled mark only if it is the tail.
    pub(crate) async fn settled_at(
        &self,
        unit: &Server,
        stripes: Stripes,
    ) -> Result<Position, ChainError> {
        let request = UnitRequest::Settled { stripes };
        match self
            .calls
            .unit(unit, self.layout.term, request, Payload::new())
            .await?
        {
            (UnitReply::Settled(mark), _) => Ok(mark),
            _ => Err(unexpected(unit.name.as_str()).into()),
        }
    }

    /// Settles `spans`, all below `end`: what the head holds is completed down the chain; where it holds nothing, junk.
    pub(crate) async fn settle(&self, spans: &[Span], end: ConfirmedEnd) -> Result<(), ChainError> {
        let mut reached = None;
        loop {
            let error = match self.settle_within_windows(spans, end).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match self.next_step(&error, end.end) {
                Some(step) if reached < Some(step) => {
                    reached = Some(step);
                    self.settle_within_windows(&[Span::one(step)], end).await?;
                }
                Some(_) | None => return Err(error),
            }
        }
    }

    /// Where a unit takes a write no further than so far above what it holds, because more positions were issued and
    /// never written: the position below `below` that, once settled, moves its window on.
    pub(crate) fn next_step(&self, error: &ChainError, below: Position) -> Option<Position> {
        let ChainError::Unit(failure) = error else {
            return None;
        };
        let Some(Refusal::OutOfWindow { position, limit }) = failure.refusal() else {
            return None;
        };
        let segment = self.layout.segment_of(*position);
        segment.last_below(segment.chain_index(*position), below.min(*limit))
    }

    async fn settle_within_windows(
        &self,
        spans: &[Span],
        end: ConfirmedEnd,
    ) -> Result<(), ChainError> {
        let head = self.head();
        let mut found = self.read_all(head, spans).await?;
        let empty: Vec<Span> = found
            .iter()
            .filter_map(|held| match held {
                Found::Unwritten(span) => Some(*span),
                _ => None,
            })
            .collect();
        if !empty.is_empty() {
            self.fill(head, WriteKind::Decide, self.layout.term, &empty, end)
                .await?;
            // Whoever won there, the head says it now (H9).
            found.retain(|held| !matches!(held, Found::Unwritten(_)));
            found.extend(self.read_all(head, &empty).await?);
        }
        for unit in self.below_head() {
            self.push(unit, WriteKind::Follow, &found, end).await?;
        }
        Ok(())
    }

    /// Settles `spans`, which lie below the open segment; where a unit cannot tell what it held, they are restored.
    pub(crate) async fn settle_or_restore(
        &self,
        spans: &[Span],
        end: ConfirmedEnd,
    ) -> Result<(), ChainError> {
        match self.settle(spans, end).await {
            Err(ChainError::Unknown { .. }) => self.restore(spans, end).await,
            settled => settled,
        }
    }

    /// Puts back, down the whole chain, what any of its units holds of `spans`, and junk where none does.
    ///
    /// Every unit must answer. `spans` must lie below the open segment, whose layout is decided. Where a unit held
    /// something that it cannot read any more and no other holds it, the entry is lost, and nothing takes its place until
    /// an admin declares it lost (P7).
    pub(crate) async fn restore(
        &self,
        spans: &[Span],
        end: ConfirmedEnd,
    ) -> Result<(), ChainError> {
        match self.restore_all(spans, end).await?.first() {
            None => Ok(()),
            Some(lost) => Err(ChainError::Unknown {
                unit: "every unit of the chain".to_owned(),
                span: *lost,
            }),
        }
    }

    /// [`OneChain::restore`], to its end whatever is lost: it names all of that.
    pub(crate) async fn restore_all(
        &self,
        spans: &[Span],
        end: ConfirmedEnd,
    ) -> Result<Vec<Span>, ChainError> {
        let mut held: Vec<Found> = vec![];
        let mut missing: Vec<Span> = spans.to_vec();
        let mut damaged: BTreeSet<Position> = BTreeSet::new();
        for unit in self.units() {
            let mut lacking: Vec<Span> = vec![];
            for found in self.read_all(unit, &missing).await? {
                let span = found.span();
                match found {
                    Found::Data(..) | Found::Junk(..) | Found::Trimmed(_) => {
                        held.push(found);
                        continue;
                    }
                    Found::Unwritten(_) | Found::Unknown(_) => {}
                    Found::Damaged(_) => damaged.extend(span.positions()),
                }
                match lacking.last_mut() {
                    Some(last) if last.end == span.start => last.end = span.end,
                    Some(_) | None => lacking.push(span),
                }
            }
            missing = lacking;
        }
        let mut lost: Vec<Span> = vec![];
        for position in missing.into_iter().flat_map(Span::positions) {
            if damaged.contains(&position) && declared(self.layout, position).is_none() {
                match lost.last_mut() {
                    Some(last) if last.end == position => last.end = position.next(),
                    Some(_) | None => lost.push(Span::one(position)),
                }
                continue;
            }
            match held.last_mut() {
                Some(Found::Junk(span, term))
                    if *term == self.layout.term && span.end == position =>
                {
                    span.end = position.next();
                }
                Some(_) | None => held.push(Found::Junk(Span::one(position), self.layout.term)),
            }
        }
        for unit in self.units() {
            self.push(unit, WriteKind::Copy, &held, end).await?;
        }
        Ok(lost)
    }

    /// What `unit` says that it cannot tell of `stripes`, from `from` on, as far as one answer goes; and where to go on.
    pub(crate) async fn lacking(
        &self,
        unit: &Server,
        stripes: Stripes,
        from: Position,
    ) -> Result<(Vec<Span>, Option<Position>), ChainError> {
        let request = UnitRequest::Lacking {
            stripes,
            from,
            count_max: SPANS_MAX as u32,
        };
        let calls = self.calls;
        match calls
            .unit(unit, self.layout.term, request, Payload::new())
            .await?
        {
            (UnitReply::Lacking { spans, next }, _) if next.is_none_or(|next| next > from) => {
                Ok((spans.iter().map(Answer::span).collect(), next))
            }
            _ => Err(unexpected(unit.name.as_str()).into()),
        }
    }

    /// Makes `unit` hold all of `entries` that are held at all; what is not is named when the rest is done.
    pub(crate) async fn push(
        &self,
        unit: &Server,
        kind: WriteKind,
        entries: &[Found],
        end: ConfirmedEnd,
    ) -> Result<(), ChainError> {
        let (mut pieces, mut payload, mut heads) = (vec![], Payload::new(), 0);
        let mut junk: BTreeMap<Term, Vec<Span>> = BTreeMap::new();
        let mut unknown = None;
        for found in entries {
            match found {
                Found::Data(head, bytes) => {
                    let full = payload.len() + bytes.len() > PIECE_BYTES_MAX
                        || pieces.len() >= PIECES_MAX
                        || heads > PUSH_HEADS_MAX;
                    if full {
                        let pieces = std::mem::take(&mut pieces);
                        self.put_all(unit, kind, pieces, std::mem::take(&mut payload))
                            .await?;
                        heads = 0;
                    }
                    heads += 64 + head.streams.len() * 64;
                    pieces.push(Piece::one(head.clone()));
                    payload.append(bytes.clone());
                }
                Found::Junk(span, decided) => junk.entry(*decided).or_default().push(*span),
                Found::Trimmed(_) => {}
                Found::Unwritten(span) | Found::Unknown(span) | Found::Damaged(span) => {
                    unknown.get_or_insert(*span);
                }
            }
        }
        self.put_all(unit, kind, pieces, payload).await?;
        for (decided, spans) in junk {
            self.fill(unit, kind, decided, &spans, end).await?;
        }
        match unknown {
            None => Ok(()),
            Some(span) => Err(ChainError::Unknown {
                unit: self.head().name.to_string(),
                span,
            }),
        }
    }

    /// Writes pieces that must be there afterwards: another value is a divergence.
    async fn put_all(
        &self,
        unit: &Server,
        kind: WriteKind,
        pieces: Vec<Piece>,
        payload: Payload,
    ) -> Result<(), ChainError> {
        if pieces.is_empty() {
            return Ok(());
        }
        for outcome in self.put(unit, kind, pieces, payload).await? {
            match outcome {
                WriteOutcome::Stored | WriteOutcome::InReserve => {}
                WriteOutcome::Taken { position, .. } => return Err(self.diverged(unit, position)),
            }
        }
        Ok(())
    }

    async fn put(
        &self,
        unit: &Server,
        kind: WriteKind,
        pieces: Vec<Piece>,
        payload: Payload,
    ) -> Result<Vec<WriteOutcome>, ChainError> {
        let request = UnitRequest::Write { kind, pieces };
        match self
            .calls
            .unit(unit, self.layout.term, request, payload)
            .await
        {
            Ok((UnitReply::Written(outcomes), _)) => Ok(outcomes),
            Ok(_) => Err(unexpected(unit.name.as_str()).into()),
            Err(failure) => Err(unknown_or(unit, failure)),
        }
    }

    /// Junk on `unit`. At the head (Decide) a record that is there wins; below it, it is a divergence.
    async fn fill(
        &self,
        unit: &Server,
        kind: WriteKind,
        decided: Term,
        spans: &[Span],
        end: ConfirmedEnd,
    ) -> Result<(), ChainError> {
        for part in parts(spans) {
            let positions: u64 = part.iter().map(|span| span.len()).sum();
            let fill = Fill {
                kind,
                decided,
                spans: part,
                end,
            };
            let reply = self
                .calls
                .unit(
                    unit,
                    self.layout.term,
                    UnitRequest::Fill(fill),
                    Payload::new(),
                )
                .await;
            let outcome = match reply {
                Ok((UnitReply::Filled(outcome), _)) => outcome,
                Ok(_) => return Err(unexpected(unit.name.as_str()).into()),
                Err(failure) => return Err(unknown_or(unit, failure)),
            };
            metrics::counter!("milonga_client_holes_filled_total")
                .increment(positions.saturating_sub(outcome.taken.len() as u64));
            match (kind, outcome.taken.first()) {
                (WriteKind::Decide, _) | (_, None) => {}
                (WriteKind::Follow | WriteKind::Copy, Some((position, _))) => {
                    return Err(self.diverged(unit, *position));
                }
            }
        }
        Ok(())
    }

    fn diverged(&self, unit: &Server, position: Position) -> ChainError {
        let head = self.head().name.to_string();
        ChainError::Diverged {
            position,
            head,
            unit: unit.name.to_string(),
        }
    }
}

/// A refusal that says "unknown" is told apart: it needs a restore, not a retry.
fn unknown_or(unit: &Server, failure: Failure) -> ChainError {
    match failure.refusal() {
        Some(milonga_wire::Refusal::Unknown { span }) => ChainError::Unknown {
            unit: unit.name.to_string(),
            span: *span,
        },
        Some(_) | None => failure.into(),
    }
}

/// `spans`, cut and grouped so that each group fits one fill.
fn parts(spans: &[Span]) -> Vec<Vec<Span>> {
    let mut groups: Vec<Vec<Span>> = vec![];
    let mut room = 0;
    for span in spans {
        let mut rest = *span;
        while !rest.is_empty() {
            if room == 0 || groups.last().is_none_or(|group| group.len() >= SPANS_MAX) {
                groups.push(vec![]);
                room = FILL_POSITIONS_MAX;
            }
            let taken = Span::new(rest.start, rest.start.plus(room.min(rest.len())));
            groups
                .last_mut()
                .expect("a group was just pushed")
                .push(taken);
            room -= taken.len();
            rest.start = taken.end;
        }
    }
    groups
}

/// Takes `done`, the front of what was asked, off `rest`. Says whether that was any progress, and no more than was asked: one
/// answer may cover spans that touch, since a unit joins what it says of neighbours.
pub(crate) fn advance(rest: &mut VecDeque<Span>, done: Span) -> bool {
    let Some(first) = rest.front() else {
        return false;
    };
    if done.start > first.start || done.end <= first.start {
        return false;
    }
    while let Some(first) = rest.front_mut() {
        if done.end < first.end {
            first.start = done.end;
            return true;
        }
        let end = first.end;
        rest.pop_front();
        if done.end == end {
            return true;
        }
        if rest.front().is_none_or(|next| next.start != end) {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A range of one chain is asked for stripe by stripe, and junk that lies across them is one answer: taken for nonsense,
    /// it stopped every copy of such a range.
    #[test]
    fn one_answer_may_cover_spans_that_touch_and_no_more() {
        let span = |start, end| Span::new(Position(start), Position(end));
        let asked = || VecDeque::from([span(0, 4), span(4, 8), span(12, 16)]);
        for (done, left) in [
            (span(0, 2), Some(vec![span(2, 4), span(4, 8), span(12, 16)])),
            (span(0, 4), Some(vec![span(4, 8), span(12, 16)])),
            (span(0, 6), Some(vec![span(6, 8), span(12, 16)])),
            (span(0, 8), Some(vec![span(12, 16)])),
            (span(0, 9), None),
            (span(0, 16), None),
            (span(1, 2), None),
        ] {
            let mut rest = asked();
            let progress = advance(&mut rest, done);
            assert_eq!(progress.then(|| Vec::from(rest)), left, "{done}");
        }
    }
}
