//! Questions: answered from what is durable, in the order asked, and cut where a bound is met.

use milonga_wire::limits::{
    HEAD_BYTES_MAX, READ_ANSWERS_MAX, READ_BYTES_MAX, SPANS_MAX, STREAM_TAILS_PAGE_MAX,
};
use milonga_wire::{
    Answer, Before, EntryHead, Payload, Position, Refusal, Span, StreamLink, Stripes, Term,
    UnitReply,
};

use super::batch::View;
use super::{MARKS_MAX, Query, Unit, stale};
use crate::storage::Storage;

/// Bytes that the answers of one read may take in the head of their frame.
const ANSWERS_BYTES_MAX: usize = HEAD_BYTES_MAX / 2;
/// Runs that one search for what is lacking looks at.
const LACKING_STEPS_MAX: usize = 4_096;

impl Unit {
    /// Answers a question. `trusted` callers may have the settled mark that they made the unit work out remembered.
    ///
    /// # Errors
    /// A refusal, for a term that is not the unit's, or a bound.
    pub fn answer(
        &mut self,
        storage: &mut dyn Storage,
        term: Term,
        query: Query,
        trusted: bool,
    ) -> Result<(UnitReply, Payload), Refusal> {
        let reply = match query {
            Query::Read { spans, bytes_max } => {
                return self.read(storage, term, &spans, bytes_max);
            }
            Query::Settled { stripes } => {
                UnitReply::Settled(self.settled(storage, term, stripes, trusted)?)
            }
            Query::StreamTails { after, count_max } => {
                self.state.check_term(term)?;
                let count_max = count_max.clamp(1, STREAM_TAILS_PAGE_MAX) as usize;
                let (tails, more) = storage.stream_tails(after, count_max);
                UnitReply::StreamTails { tails, more }
            }
            Query::StreamPositions {
                stream,
                span,
                count_max,
            } => {
                self.state.check_term(term)?;
                let count_max = (count_max as usize).clamp(1, READ_ANSWERS_MAX);
                let (positions, next) = storage.stream_positions(stream, span, count_max);
                UnitReply::StreamPositions { positions, next }
            }
            Query::Lacking {
                stripes,
                from,
                count_max,
            } => self.lacking(storage, term, stripes, from, count_max)?,
        };
        Ok((reply, Payload::new()))
    }

    fn read(
        &mut self,
        storage: &mut dyn Storage,
        term: Term,
        spans: &[Span],
        bytes_max: u32,
    ) -> Result<(UnitReply, Payload), Refusal> {
        let (asked, current) = (term, self.state.term);
        if asked > current {
            return Err(Refusal::FutureTerm { asked, current });
        }
        if spans.len() > SPANS_MAX {
            let limit = SPANS_MAX as u32;
            return Err(Refusal::too_large("spans in a read", spans.len(), limit));
        }
        let mut reply = Reading {
            up_to: (asked < current).then_some(asked),
            bytes_max: bytes_max.min(READ_BYTES_MAX) as usize,
            answers: Vec::new(),
            answers_bytes: 0,
            payload: Payload::new(),
        };
        for span in spans {
            if !self.read_span(storage, *span, &mut reply) {
                break;
            }
        }
        if reply.answers.is_empty() && asked < current {
            return Err(stale(asked, current));
        }
        Ok((UnitReply::Read(reply.answers), reply.payload))
    }

    /// Answers `span`, and says whether there is room for more.
    fn read_span(&mut self, storage: &mut dyn Storage, span: Span, reply: &mut Reading) -> bool {
        let mut rest = span;
        while !rest.is_empty() {
            let (view, run) = self.state.look(storage, self.state.end, rest);
            let more = match view {
                View::Data => run
                    .positions()
                    .all(|position| self.read_entry(storage, position, reply)),
                View::Junk(term) => reply.say(Answer::Junk { span: run, term }),
                View::Trimmed => reply.say(Answer::Trimmed(run)),
                View::Absent => reply.say(Answer::Unwritten(run)),
                View::Unknown => reply.say(Answer::Unknown(run)),
                View::Damaged => reply.say(Answer::Damaged(run)),
                View::Waiting(_) => unreachable!("only a batch waits, and none is open (U4)"),
            };
            if !more {
                return false;
            }
            rest.start = run.end;
        }
        true
    }

    fn read_entry(
        &mut self,
        storage: &mut dyn Storage,
        position: Position,
        reply: &mut Reading,
    ) -> bool {
        if reply.is_full() {
            return false;
        }
        if let Ok((head, payload)) = storage.read(position) {
            debug_assert_eq!(head.position, position, "S3: an entry is where it says");
            return reply.give(head, payload);
        }
        self.note_damage(position);
        reply.say(Answer::Damaged(Span::one(position)))
    }

    /// The first position of `stripes` that is lacking here. Goes on where it ended before.
    fn settled(
        &mut self,
        storage: &dyn Storage,
        term: Term,
        stripes: Stripes,
        trusted: bool,
    ) -> Result<Position, Refusal> {
        self.state.check_term(term)?;
        if !stripes.is_valid() {
            return Err(Refusal::malformed("these stripes are none"));
        }
        let from = self.marks.get(&stripes).copied();
        let mark = storage.first_lacking(&stripes, from.unwrap_or(Position::FIRST));
        if self.marks.len() >= MARKS_MAX && from.is_none() {
            self.marks.pop_first();
        }
        self.marks.insert(stripes, mark);
        if trusted && self.connects(storage, stripes.span.start) {
            self.mark = self.mark.max(mark.min(self.state.end));
        }
        Ok(mark)
    }

    /// What of `stripes` this unit cannot tell, from `from` on: what is merely unwritten is left out.
    fn lacking(
        &self,
        storage: &dyn Storage,
        term: Term,
        stripes: Stripes,
        from: Position,
        count_max: u32,
    ) -> Result<UnitReply, Refusal> {
        self.state.check_term(term)?;
        if !stripes.is_valid() {
            return Err(Refusal::malformed("these stripes are none"));
        }
        let count_max = (count_max as usize).clamp(1, SPANS_MAX);
        let end = stripes.span.end.min(self.state.known_end());
        let stripes = Stripes {
            span: Span::new(stripes.span.start, end),
            ..stripes
        };
        let mut spans: Vec<Answer> = vec![];
        let mut at = from;
        for _ in 0..LACKING_STEPS_MAX {
            let Some(rest) = stripes.run_from(storage.first_lacking(&stripes, at)) else {
                return Ok(UnitReply::Lacking { spans, next: None });
            };
            if spans.len() == count_max {
                break;
            }
            let (view, run) = self.state.look(storage, self.state.end, rest);
            let lack = match view {
                View::Unknown => Some(Answer::Unknown(run)),
                View::Damaged => Some(Answer::Damaged(run)),
                View::Data | View::Junk(_) | View::Trimmed | View::Absent | View::Waiting(_) => {
                    None
                }
            };
            if let Some(lack) = lack {
                match spans
                    .last_mut()
                    .and_then(|last| Some((join(last, &lack)?, last)))
                {
                    Some((joined, last)) => *last = joined,
                    None => spans.push(lack),
                }
            }
            at = run.end;
        }
        let next = Some(at);
        Ok(UnitReply::Lacking { spans, next })
    }

    /// Whether nothing is held between the remembered mark and `start`: a mark never jumps over what it does not speak of.
    fn connects(&self, storage: &dyn Storage, start: Position) -> bool {
        let from = self.mark.max(self.state.settled).max(self.state.trimmed);
        let held = storage.held(from, 1);
        held.first().is_none_or(|held| held.span.start >= start)
    }
}

/// An answer to a read, as far as it has got.
struct Reading {
    /// The request's term, if it is older than the unit's (U10).
    up_to: Option<Term>,
    bytes_max: usize,
    answers: Vec<Answer>,
    answers_bytes: usize,
    payload: Payload,
}

impl Reading {
    fn is_full(&self) -> bool {
        self.answers.len() >= READ_ANSWERS_MAX || self.answers_bytes >= ANSWERS_BYTES_MAX
    }

    /// Whether a request of this term may be told `answer` (U10).
    fn may_say(&self, answer: &Answer) -> bool {
        self.up_to.is_none_or(|up_to| match answer {
            Answer::Data(head) => head.term <= up_to,
            Answer::Junk { term, .. } => *term <= up_to,
            Answer::Trimmed(_) => true,
            Answer::Unwritten(_) | Answer::Unknown(_) | Answer::Damaged(_) => false,
        })
    }

    /// Adds a record, unless the answer is full without it.
    fn give(&mut self, head: EntryHead, payload: Payload) -> bool {
        let fits = self.payload.len() + payload.len() <= self.bytes_max;
        if self.is_full() || !(fits || self.answers.is_empty()) {
            return false;
        }
        let bytes = head_bytes(&head);
        let said = self.push(Answer::Data(head), bytes);
        if said {
            self.payload.append(payload);
        }
        said
    }

    /// Adds what is said of a run of positions; to the one before, if that says the same of its neighbours.
    fn say(&mut self, answer: Answer) -> bool {
        const BYTES: usize = 32;
        if let Some(last) = self.answers.last_mut()
            && let Some(joined) = join(last, &answer)
        {
            *last = joined;
            return true;
        }
        !self.is_full() && self.push(answer, BYTES)
    }

    fn push(&mut self, answer: Answer, bytes: usize) -> bool {
        let may = self.may_say(&answer);
        if may {
            self.answers_bytes += bytes;
            self.answers.push(answer);
        }
        may
    }
}

/// Bytes that a record's head takes in a frame, at most.
fn head_bytes(head: &EntryHead) -> usize {
    const BASE: usize = 64;
    let link = |link: &StreamLink| match &link.before {
        Before::Known(positions) => 20 + 10 * positions.len(),
        Before::Unknown => 20,
    };
    BASE + head.streams.iter().map(link).sum::<usize>()
}

/// One answer for both, if they say the same of neighbouring positions.
fn join(first: &Answer, second: &Answer) -> Option<Answer> {
    let span = Span::new(first.span().start, second.span().end);
    if first.span().end != second.span().start {
        return None;
    }
    match (first, second) {
        (Answer::Junk { term, .. }, Answer::Junk { term: other, .. }) if term == other => {
            Some(Answer::Junk { span, term: *term })
        }
        (Answer::Trimmed(_), Answer::Trimmed(_)) => Some(Answer::Trimmed(span)),
        (Answer::Unwritten(_), Answer::Unwritten(_)) => Some(Answer::Unwritten(span)),
        (Answer::Unknown(_), Answer::Unknown(_)) => Some(Answer::Unknown(span)),
        (Answer::Damaged(_), Answer::Damaged(_)) => Some(Answer::Damaged(span)),
        (
            Answer::Data(_)
            | Answer::Junk { .. }
            | Answer::Trimmed(_)
            | Answer::Unwritten(_)
            | Answer::Unknown(_)
            | Answer::Damaged(_),
            _,
        ) => None,
    }
}
