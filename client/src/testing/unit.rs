//! The log units of the miniature: write-once maps that keep to the wire's rules.

use std::collections::{BTreeMap, BTreeSet};

use milonga_wire::limits::{BACKPOINTERS, WINDOW_POSITIONS};
use milonga_wire::{
    Answer, Before, EntryHead, Fill, FillOutcome, Holder, Identity, Incarnation, Payload, Piece,
    Position, Refusal, Sealed, Server, Span, StreamId, Stripes, Term, UnitReply, UnitRequest,
    WriteKind, WriteOutcome,
};

/// How much room a unit's disk has.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) enum Room {
    None,
    Reserve,
    Plenty,
}

/// What a unit holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Slot {
    Data(EntryHead, Payload),
    Junk(Term),
}

pub(super) struct Unit {
    pub(super) server: Server,
    pub(super) term: Term,
    announced: Option<(Term, Position)>,
    member_from: Option<Position>,
    trimmed: Position,
    settled: Position,
    entries: BTreeMap<Position, Slot>,
    /// Everything of these stripes was there below this position.
    whole: Option<(Stripes, Position)>,
    damaged: BTreeSet<Position>,
    /// It has no room for records.
    pub(super) room: Room,
    pub(super) failed: bool,
    streams: BTreeMap<StreamId, BTreeSet<Position>>,
}

type Replied = Result<(UnitReply, Payload), Refusal>;

impl Unit {
    /// A unit that was announced in the first term.
    pub(super) fn member(server: Server) -> Self {
        Self {
            server,
            term: Term::GENESIS,
            announced: Some((Term::GENESIS, Position::FIRST)),
            member_from: Some(Position::FIRST),
            trimmed: Position::FIRST,
            settled: Position::FIRST,
            entries: BTreeMap::new(),
            whole: None,
            damaged: BTreeSet::new(),
            room: Room::Plenty,
            failed: false,
            streams: BTreeMap::new(),
        }
    }

    /// A unit that no layout has named yet.
    pub(super) fn blank(server: Server) -> Self {
        Self {
            announced: None,
            member_from: None,
            ..Self::member(server)
        }
    }

    pub(super) fn restart(&mut self, incarnation: Incarnation) {
        self.server.incarnation = incarnation;
        self.announced = None;
        self.member_from = None;
    }

    pub(super) fn slot(&self, position: Position) -> Option<Slot> {
        self.entries.get(&position).cloned()
    }

    pub(super) fn put(&mut self, position: Position, slot: Option<Slot>) {
        if let Some(slot) = slot {
            self.entries.insert(position, slot);
        } else {
            self.whole = None;
            self.entries.remove(&position);
        }
    }

    pub(super) fn damage(&mut self, position: Position) {
        self.whole = None;
        self.entries.remove(&position);
        self.damaged.insert(position);
    }

    pub(super) fn serve(&mut self, term: Term, request: UnitRequest, payload: Payload) -> Replied {
        if self.failed && !matches!(request, UnitRequest::Read { .. }) {
            let why = "the cable is out".to_owned();
            return Err(Refusal::DiskFailed { why });
        }
        let reply = match request {
            UnitRequest::Write { kind, pieces } => self.write(term, kind, &pieces, payload)?,
            UnitRequest::Fill(fill) => self.fill(term, &fill)?,
            UnitRequest::Read { spans, bytes_max } => return self.read(term, &spans, bytes_max),
            UnitRequest::Seal => self.seal(term)?,
            UnitRequest::Announce { start } => {
                self.check_term(term)?;
                self.announced = Some((term, start));
                self.member_from.get_or_insert(start);
                UnitReply::Announced
            }
            UnitRequest::Settled { stripes } => {
                self.check_term(term)?;
                UnitReply::Settled(self.first_lacking(&stripes))
            }
            UnitRequest::Trim { to, settled } => {
                self.check_term(term)?;
                if to > settled.max(self.trimmed) {
                    return Err(Refusal::Unsettled {
                        asked: to,
                        limit: settled,
                    });
                }
                self.trimmed = self.trimmed.max(to);
                self.settled = self.settled.max(settled);
                self.entries = self.entries.split_off(&self.trimmed);
                UnitReply::Trimmed(self.trimmed)
            }
            UnitRequest::StreamTails { .. } => {
                self.check_term(term)?;
                let last = |positions: &BTreeSet<Position>| {
                    Before::Known(positions.iter().rev().take(BACKPOINTERS).copied().collect())
                };
                UnitReply::StreamTails {
                    tails: self
                        .streams
                        .iter()
                        .map(|(stream, positions)| (*stream, last(positions)))
                        .collect(),
                    more: false,
                }
            }
            UnitRequest::StreamPositions {
                stream,
                span,
                count_max,
            } => {
                self.check_term(term)?;
                let from = span.start.max(self.trimmed);
                let held = self.streams.get(&stream).into_iter();
                let mut held = held
                    .flat_map(|held| held.range(from..span.end.max(from)))
                    .copied();
                UnitReply::StreamPositions {
                    positions: held.by_ref().take(count_max as usize).collect(),
                    next: held.next(),
                }
            }
            UnitRequest::Probe => UnitReply::Probed,
            UnitRequest::Lacking { stripes, from, .. } => self.lacking(term, stripes, from)?,
            UnitRequest::Reset { of } => self.reset(term, of)?,
        };
        Ok((reply, Payload::new()))
    }

    pub(super) fn is_blank(&self) -> bool {
        self.term == Term::GENESIS && self.announced.is_none() && self.entries.is_empty()
    }

    pub(super) fn forget_index(&mut self, position: Position) {
        for held in self.streams.values_mut() {
            held.remove(&position);
        }
    }

    /// As the real one says it.
    pub(super) fn condition(&self) -> &'static str {
        let announced = self.announced.map(|(term, _)| term);
        if self.failed {
            "failed"
        } else if self.is_blank() {
            "blank"
        } else if announced != Some(self.term) {
            "sealed"
        } else if self.room < Room::Plenty {
            "full"
        } else {
            "serving"
        }
    }

    pub(super) fn forget_trim(&mut self) {
        self.trimmed = Position::FIRST;
    }

    pub(super) fn trimmed(&self) -> Position {
        self.trimmed
    }

    pub(super) fn damaged(&self) -> u64 {
        self.damaged.len() as u64
    }

    pub(super) fn end(&self) -> Position {
        let last = self.entries.last_key_value();
        last.map_or(Position::FIRST, |(position, _)| position.next())
    }

    fn check_term(&self, asked: Term) -> Result<(), Refusal> {
        let current = self.term;
        if asked < current {
            return Err(Refusal::StaleTerm {
                asked,
                current,
                newest: None,
            });
        }
        if asked > current {
            return Err(Refusal::FutureTerm { asked, current });
        }
        Ok(())
    }

    fn announced_in(&self, asked: Term) -> Result<Position, Refusal> {
        self.check_term(asked)?;
        match self.announced {
            Some((term, start)) if term == asked => Ok(start),
            Some(_) | None => Err(Refusal::NotAnnounced { term: self.term }),
        }
    }

    /// What of `stripes` it cannot tell, as far as it goes.
    fn lacking(&self, term: Term, stripes: Stripes, from: Position) -> Result<UnitReply, Refusal> {
        self.check_term(term)?;
        let known = self.announced.map_or(Position::FIRST, |(_, start)| start);
        let end = stripes.span.end.min(self.end().max(known));
        let lacks = Span::new(from.max(self.trimmed), end)
            .positions()
            .filter(|position| {
                stripes.contains(*position)
                    && !self.entries.contains_key(position)
                    && self.is_unknown(*position)
            });
        let answer = |position: Position| {
            if self.damaged.contains(&position) {
                Answer::Damaged(Span::one(position))
            } else {
                Answer::Unknown(Span::one(position))
            }
        };
        let spans = lacks.map(answer).collect();
        Ok(UnitReply::Lacking { spans, next: None })
    }

    /// It is another unit from now on.
    fn reset(&mut self, term: Term, of: Identity) -> Result<UnitReply, Refusal> {
        assert_eq!(of, self.server.identity, "admission compares it");
        if term < self.term {
            return Err(self.check_term(term).expect_err("it is lower"));
        }
        if self
            .announced
            .is_some_and(|(announced, _)| announced == term)
        {
            return Err(Refusal::InUse { term });
        }
        let (Identity(mut identity), Incarnation(incarnation)) =
            (self.server.identity, self.server.incarnation);
        identity[15] = identity[15].wrapping_add(128);
        let server = Server {
            identity: Identity(identity),
            incarnation: Incarnation(incarnation + 1_000),
            ..self.server.clone()
        };
        let (identity, incarnation) = (server.identity, server.incarnation);
        *self = Self::blank(server);
        Ok(UnitReply::Reset {
            identity,
            incarnation,
        })
    }

    fn seal(&mut self, term: Term) -> Result<UnitReply, Refusal> {
        if term < self.term {
            return Err(self.check_term(term).expect_err("it is lower"));
        }
        self.term = term;
        Ok(UnitReply::Sealed(Box::new(Sealed {
            identity: self.server.identity,
            incarnation: self.server.incarnation,
            end: self.end(),
            trimmed: self.trimmed,
            member_from: self.member_from,
            synced: true,
            settled: self.settled,
            held: vec![],
            announced: self.announced,
        })))
    }

    fn is_unknown(&self, position: Position) -> bool {
        self.damaged.contains(&position) || self.member_from.is_none_or(|from| position < from)
    }

    fn check_decided(
        kind: WriteKind,
        is_junk: bool,
        decided: Term,
        term: Term,
    ) -> Result<(), Refusal> {
        let fits = match kind {
            WriteKind::Decide => decided == term,
            WriteKind::Follow => decided <= term,
            WriteKind::Copy => decided < term || (is_junk && decided == term),
        };
        if fits {
            Ok(())
        } else {
            Err(Refusal::malformed("decided in another term"))
        }
    }

    fn write(
        &mut self,
        term: Term,
        kind: WriteKind,
        pieces: &[Piece],
        mut payload: Payload,
    ) -> Result<UnitReply, Refusal> {
        let is_scarce = self.room == Room::Reserve;
        if self.room == Room::None || is_scarce && kind == WriteKind::Decide {
            return Err(Refusal::DiskFull);
        }
        let start = self.announced_in(term)?;
        for piece in pieces {
            piece.check(1 << 20)?;
            Self::check_decided(kind, false, piece.term, term)?;
            if kind == WriteKind::Copy && piece.span().end > start {
                return Err(Refusal::OutOfWindow {
                    position: piece.first,
                    limit: start,
                });
            }
            let limit = self.end().max(start).plus(WINDOW_POSITIONS);
            if kind != WriteKind::Copy && piece.span().end > limit {
                let position = piece.first.max(limit);
                return Err(Refusal::OutOfWindow { position, limit });
            }
            if piece.first < self.trimmed {
                return Err(Refusal::Trimmed { to: self.trimmed });
            }
        }
        let mut outcomes = vec![];
        for piece in pieces {
            let mut bytes = payload.split_to(piece.payload_bytes() as usize);
            let taken = piece.heads().find_map(|head| {
                let holder = match self.entries.get(&head.position)? {
                    Slot::Data(held, _) if held.stamp == head.stamp => return None,
                    Slot::Data(held, _) => Holder::Data(held.stamp),
                    Slot::Junk(_) => Holder::Junk,
                };
                Some(WriteOutcome::Taken {
                    position: head.position,
                    holder,
                })
            });
            if let Some(taken) = taken {
                outcomes.push(taken);
                continue;
            }
            for head in piece.heads() {
                let own = bytes.split_to(head.len as usize);
                if self.entries.contains_key(&head.position) {
                    continue;
                }
                if kind != WriteKind::Copy && self.is_unknown(head.position) {
                    let span = Span::one(head.position);
                    return Err(Refusal::Unknown { span });
                }
                self.damaged.remove(&head.position);
                for link in &head.streams {
                    let stream = self.streams.entry(link.stream).or_default();
                    stream.insert(head.position);
                }
                self.entries.insert(head.position, Slot::Data(head, own));
            }
            outcomes.push(if is_scarce {
                WriteOutcome::InReserve
            } else {
                WriteOutcome::Stored
            });
        }
        Ok(UnitReply::Written(outcomes))
    }

    fn fill(&mut self, term: Term, fill: &Fill) -> Result<UnitReply, Refusal> {
        let start = self.announced_in(term)?;
        Self::check_decided(fill.kind, true, fill.decided, term)?;
        let end = match fill.kind {
            WriteKind::Copy => start,
            WriteKind::Decide | WriteKind::Follow if fill.end.term == term => fill.end.end,
            WriteKind::Decide | WriteKind::Follow => Position::FIRST,
        };
        let mut taken = vec![];
        for position in fill.spans.iter().flat_map(|span| span.positions()) {
            if position >= end {
                return Err(Refusal::BeyondEnd { position, end });
            }
            let limit = self.end().max(start).plus(WINDOW_POSITIONS);
            if fill.kind != WriteKind::Copy && position >= limit {
                return Err(Refusal::OutOfWindow { position, limit });
            }
            match self.entries.get(&position) {
                Some(Slot::Data(head, _)) => taken.push((position, head.stamp)),
                Some(Slot::Junk(_)) => {}
                None if position < self.trimmed => {}
                None if fill.kind != WriteKind::Copy && self.is_unknown(position) => {
                    let span = Span::one(position);
                    return Err(Refusal::Unknown { span });
                }
                None => {
                    self.damaged.remove(&position);
                    self.entries.insert(position, Slot::Junk(fill.decided));
                }
            }
        }
        Ok(UnitReply::Filled(FillOutcome { taken }))
    }

    fn read(&self, term: Term, spans: &[Span], bytes_max: u32) -> Replied {
        if term > self.term {
            self.check_term(term)?;
        }
        let is_old = term < self.term;
        let (mut answers, mut payload): (Vec<Answer>, _) = (vec![], Payload::new());
        'spans: for span in spans {
            let mut position = span.start;
            while position < span.end {
                let answer = self.answer(position, span.end);
                let is_said = match &answer {
                    Answer::Data(head) => head.term <= term,
                    Answer::Junk { term: decided, .. } => *decided <= term,
                    Answer::Trimmed(_) => true,
                    Answer::Unwritten(_) | Answer::Unknown(_) | Answer::Damaged(_) => !is_old,
                };
                let full = !answers.is_empty() && payload.len() >= bytes_max as usize;
                if !is_said || full {
                    break 'spans;
                }
                position = answer.span().end;
                if let Some(Slot::Data(_, bytes)) = self.entries.get(&answer.span().start) {
                    payload.append(bytes.clone());
                }
                answers.push(answer);
            }
        }
        if is_old && answers.is_empty() {
            self.check_term(term)?;
        }
        Ok((UnitReply::Read(answers), payload))
    }

    fn answer(&self, position: Position, limit: Position) -> Answer {
        if position < self.trimmed {
            return Answer::Trimmed(Span::new(position, limit.min(self.trimmed)));
        }
        match self.entries.get(&position) {
            Some(Slot::Data(head, _)) => Answer::Data(head.clone()),
            Some(Slot::Junk(term)) => Answer::Junk {
                span: Span::one(position),
                term: *term,
            },
            None if self.damaged.contains(&position) => Answer::Damaged(Span::one(position)),
            None if self.is_unknown(position) => Answer::Unknown(Span::one(position)),
            None => {
                let next = self.entries.range(position..).next();
                let end = next.map_or(limit, |(held, _)| limit.min(*held));
                let damaged = self.damaged.range(position..end).next().copied();
                Answer::Unwritten(Span::new(position, damaged.unwrap_or(end)))
            }
        }
    }

    fn first_lacking(&mut self, stripes: &Stripes) -> Position {
        let limit = self.end().max(self.trimmed).next();
        let known = self.whole.filter(|(known, _)| known == stripes);
        let known = known.map_or(Position::FIRST, |(_, upto)| upto);
        let first = stripes
            .runs_from(self.trimmed.max(known))
            .take_while(|run| run.start <= limit)
            .flat_map(Span::positions)
            .find(|position| !self.entries.contains_key(position))
            .unwrap_or_else(|| {
                stripes
                    .run_from(limit)
                    .map_or(stripes.span.end, |run| run.start)
            });
        self.whole = Some((*stripes, first.min(limit)));
        first
    }
}
