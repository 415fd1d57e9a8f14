//! The unit's rules said once more, one position at a time and one command at a time: what `unit.rs` is held against.

use std::collections::BTreeMap;

use milonga_wire::limits::{FILL_POSITIONS_MAX, WINDOW_POSITIONS};
use milonga_wire::{
    Answer, Fill, FillOutcome, Held, Holder, Identity, Incarnation, Payload, Piece, Position,
    Refusal, Sealed, Span, Stamp, Stripes, Term, UnitReply, WriteKind, WriteOutcome,
};

use super::{Asked, Command, HELD_MAX};
use crate::storage::Room;

#[derive(Clone, Debug, Eq, PartialEq)]
enum Thing {
    Data(Stamp, Term, Vec<u8>),
    Junk(Term),
    Damaged,
}

/// A unit that keeps everything in one map and forgets nothing by accident.
#[derive(Clone, Debug)]
pub(super) struct Reference {
    pub(super) identity: Identity,
    pub(super) incarnation: Incarnation,
    pub(super) entry_bytes_max: u32,
    pub(super) term: Term,
    pub(super) blank: bool,
    pub(super) sealed: bool,
    pub(super) announced: Option<(Term, Position)>,
    pub(super) member_from: Option<Position>,
    pub(super) trimmed: Position,
    pub(super) end: Position,
    pub(super) settled: Position,
    pub(super) room: Room,
    pub(super) failed: bool,
    things: BTreeMap<Position, Thing>,
}

impl Reference {
    pub(super) fn new(identity: Identity, entry_bytes_max: u32) -> Self {
        Self {
            identity,
            incarnation: Incarnation(0),
            entry_bytes_max,
            term: Term(0),
            blank: true,
            sealed: false,
            announced: None,
            member_from: None,
            trimmed: Position(0),
            end: Position(0),
            settled: Position(0),
            room: Room::Plenty,
            failed: false,
            things: BTreeMap::new(),
        }
    }

    pub(super) fn restart(&mut self, incarnation: Incarnation) {
        self.incarnation = incarnation;
        (self.announced, self.member_from, self.sealed) = (None, None, false);
        self.failed = false;
    }

    pub(super) fn damage(&mut self, position: Position) {
        if let Some(thing) = self.things.get_mut(&position) {
            *thing = Thing::Damaged;
        }
    }

    pub(super) fn lose(&mut self, span: Span) {
        self.things.retain(|position, _| !span.contains(*position));
    }

    /// A seal's answer is left to [`Reference::sealed`], once the whole batch is through.
    pub(super) fn command(&mut self, asked: &Asked) -> Result<Option<UnitReply>, Refusal> {
        let before = self.clone();
        let reply = self.try_command(asked);
        if reply.is_err() {
            *self = before;
        }
        reply
    }

    fn try_command(&mut self, asked: &Asked) -> Result<Option<UnitReply>, Refusal> {
        if self.failed {
            return Err(Refusal::DiskFailed { why: String::new() });
        }
        let term = asked.term;
        match &asked.command {
            Command::Write { kind, pieces } => {
                self.write(term, *kind, pieces, &asked.payload).map(Some)
            }
            Command::Fill(fill) => self.fill(term, fill).map(Some),
            Command::Seal => {
                if term < self.term {
                    return Err(self.stale(term));
                }
                if term.0 > self.term.0 + 1 && !asked.confirmed {
                    let current = self.term;
                    return Err(Refusal::TermJump {
                        asked: term,
                        current,
                    });
                }
                self.blank &= term == self.term;
                self.sealed = true;
                self.term = term;
                Ok(None)
            }
            Command::Announce { start } => {
                self.exact(term)?;
                if let Some((announced, earlier)) = self.announced
                    && announced == term
                    && earlier != *start
                {
                    return Err(Refusal::malformed(""));
                }
                if !(self.blank || self.sealed || self.announced.is_some()) {
                    return Err(Refusal::malformed(""));
                }
                self.blank = false;
                self.announced = Some((term, *start));
                self.member_from = self.member_from.or(Some(*start));
                Ok(Some(UnitReply::Announced))
            }
            Command::Trim { to, settled } => {
                self.exact(term)?;
                let start = self.announced.map_or(Position(0), |(_, start)| start);
                let limit = (*settled).min(self.end.max(start));
                if *to > self.trimmed && *to > limit {
                    return Err(Refusal::Unsettled { asked: *to, limit });
                }
                self.blank &= *to <= self.trimmed && limit <= self.settled;
                self.trimmed = self.trimmed.max(*to);
                self.settled = self.settled.max(limit);
                self.things = self.things.split_off(&self.trimmed);
                Ok(Some(UnitReply::Trimmed(self.trimmed)))
            }
            Command::Probe => Ok(Some(UnitReply::Probed)),
        }
    }

    fn stale(&self, asked: Term) -> Refusal {
        Refusal::StaleTerm {
            asked,
            current: self.term,
            newest: None,
        }
    }

    fn exact(&self, asked: Term) -> Result<(), Refusal> {
        let current = self.term;
        if asked < current {
            return Err(self.stale(asked));
        }
        if asked > current {
            return Err(Refusal::FutureTerm { asked, current });
        }
        Ok(())
    }

    fn start(&self, asked: Term) -> Result<Position, Refusal> {
        self.exact(asked)?;
        match self.announced {
            Some((term, start)) if term == self.term => Ok(start),
            _ => Err(Refusal::NotAnnounced { term: self.term }),
        }
    }

    fn is_member(&self, position: Position) -> bool {
        self.member_from.is_some_and(|from| from <= position)
    }

    fn is_free(&self, position: Position, kind: WriteKind) -> Result<bool, Refusal> {
        match self.things.get(&position) {
            Some(Thing::Data(..) | Thing::Junk(_)) => Ok(false),
            None if self.is_member(position) => Ok(true),
            Some(Thing::Damaged) | None if kind == WriteKind::Copy => Ok(true),
            Some(Thing::Damaged) | None => Err(Refusal::Unknown {
                span: Span::one(position),
            }),
        }
    }

    fn check_decided(
        kind: WriteKind,
        junk: bool,
        decided: Term,
        term: Term,
    ) -> Result<(), Refusal> {
        match kind {
            WriteKind::Copy if junk && decided == term => Ok(()),
            WriteKind::Decide if decided == term => Ok(()),
            WriteKind::Follow if decided <= term => Ok(()),
            WriteKind::Copy if decided < term => Ok(()),
            _ => Err(Refusal::malformed("")),
        }
    }

    fn limit(&self, kind: WriteKind, start: Position) -> Position {
        match kind {
            WriteKind::Copy => start,
            WriteKind::Decide | WriteKind::Follow => {
                Position(self.end.0.max(start.0) + WINDOW_POSITIONS)
            }
        }
    }

    fn write(
        &mut self,
        term: Term,
        kind: WriteKind,
        pieces: &[Piece],
        payload: &Payload,
    ) -> Result<UnitReply, Refusal> {
        let start = self.start(term)?;
        for piece in pieces {
            piece.check(self.entry_bytes_max)?;
            Self::check_decided(kind, false, piece.term, term)?;
        }
        let mut bytes: Vec<u8> = payload.clone().into_bytes().to_vec();
        if bytes.len() as u64 != pieces.iter().map(Piece::payload_bytes).sum::<u64>() {
            return Err(Refusal::malformed(""));
        }
        let limit = self.limit(kind, start);
        for piece in pieces {
            for position in piece.span().positions() {
                if position >= limit {
                    return Err(Refusal::OutOfWindow { position, limit });
                }
            }
            if piece.first < self.trimmed {
                return Err(Refusal::Trimmed { to: self.trimmed });
            }
        }
        let mut outcomes = Vec::new();
        for piece in pieces {
            let rest = bytes.split_off(piece.payload_bytes() as usize);
            let own = std::mem::replace(&mut bytes, rest);
            outcomes.push(self.place(kind, piece, own)?);
        }
        Ok(UnitReply::Written(outcomes))
    }

    fn place(
        &mut self,
        kind: WriteKind,
        piece: &Piece,
        mut bytes: Vec<u8>,
    ) -> Result<WriteOutcome, Refusal> {
        let mut puts = Vec::new();
        for head in piece.heads() {
            let rest = bytes.split_off(head.len as usize);
            let own = std::mem::replace(&mut bytes, rest);
            let position = head.position;
            match self.things.get(&position) {
                Some(Thing::Data(stamp, ..)) if *stamp == head.stamp => {}
                Some(Thing::Data(stamp, ..)) => {
                    let holder = Holder::Data(*stamp);
                    return Ok(WriteOutcome::Taken { position, holder });
                }
                Some(Thing::Junk(_)) => {
                    let holder = Holder::Junk;
                    return Ok(WriteOutcome::Taken { position, holder });
                }
                Some(Thing::Damaged) | None => {
                    assert!(self.is_free(position, kind)?);
                    puts.push((position, Thing::Data(head.stamp, head.term, own)));
                }
            }
        }
        let refuses =
            self.room < Room::Reserve || self.room == Room::Reserve && kind == WriteKind::Decide;
        if !puts.is_empty() && refuses {
            return Err(Refusal::DiskFull);
        }
        let is_scarce = !puts.is_empty() && self.room == Room::Reserve;
        for (position, thing) in puts {
            self.put(position, thing);
        }
        Ok(if is_scarce {
            WriteOutcome::InReserve
        } else {
            WriteOutcome::Stored
        })
    }

    fn put(&mut self, position: Position, thing: Thing) {
        self.things.insert(position, thing);
        self.end = self.end.max(position.next());
    }

    fn fill(&mut self, term: Term, fill: &Fill) -> Result<UnitReply, Refusal> {
        let start = self.start(term)?;
        let count: u64 = fill.spans.iter().map(|span| span.len()).sum();
        if count > FILL_POSITIONS_MAX {
            return Err(Refusal::too_large("", 0, 0));
        }
        Self::check_decided(fill.kind, true, fill.decided, term)?;
        let positions = || fill.spans.iter().flat_map(|span| span.positions());
        if fill.kind != WriteKind::Copy {
            let end = fill.end.end;
            let beyond = |position: &Position| *position >= end || fill.end.term != term;
            if let Some(position) = positions().find(beyond) {
                return Err(Refusal::BeyondEnd { position, end });
            }
        }
        let limit = self.limit(fill.kind, start);
        if let Some(position) = positions().find(|position| *position >= limit) {
            return Err(Refusal::OutOfWindow { position, limit });
        }
        let mut taken = Vec::new();
        for position in positions().collect::<Vec<_>>() {
            if position < self.trimmed {
                continue;
            }
            if let Some(Thing::Data(stamp, ..)) = self.things.get(&position) {
                taken.push((position, *stamp));
            } else if self.is_free(position, fill.kind)? {
                if self.room == Room::None {
                    return Err(Refusal::DiskFull);
                }
                self.put(position, Thing::Junk(fill.decided));
            }
        }
        Ok(UnitReply::Filled(FillOutcome { taken }))
    }

    /// One answer per position, with the bytes of records; cut where nothing may be said.
    pub(super) fn read(&self, asked: Term, span: Span) -> Result<Vec<(Answer, Vec<u8>)>, Refusal> {
        let current = self.term;
        if asked > current {
            return Err(Refusal::FutureTerm { asked, current });
        }
        let mut answers = Vec::new();
        for position in span.positions() {
            let one = Span::one(position);
            let (answer, decided, bytes) = match self.things.get(&position) {
                _ if position < self.trimmed => (Answer::Trimmed(one), Term(0), vec![]),
                Some(Thing::Data(stamp, term, bytes)) => {
                    let head = milonga_wire::EntryHead {
                        position,
                        term: *term,
                        stamp: *stamp,
                        streams: vec![],
                        len: bytes.len() as u32,
                    };
                    (Answer::Data(head), *term, bytes.clone())
                }
                Some(Thing::Junk(term)) => {
                    let (span, term) = (one, *term);
                    (Answer::Junk { span, term }, term, vec![])
                }
                None if self.is_member(position) => (Answer::Unwritten(one), current, vec![]),
                Some(Thing::Damaged) => (Answer::Damaged(one), current, vec![]),
                None => (Answer::Unknown(one), current, vec![]),
            };
            if decided > asked {
                break;
            }
            answers.push((answer, bytes));
        }
        if answers.is_empty() && asked < current && !span.is_empty() {
            return Err(self.stale(asked));
        }
        Ok(answers)
    }

    pub(super) fn first_lacking(&self, stripes: &Stripes) -> Position {
        let holds = |position: Position| {
            let thing = self.things.get(&position);
            position < self.trimmed || !matches!(thing, None | Some(Thing::Damaged))
        };
        stripes
            .span
            .positions()
            .find(|position| stripes.contains(*position) && !holds(*position))
            .unwrap_or(stripes.span.end.max(self.trimmed))
    }

    pub(super) fn sealed(&self) -> Sealed {
        let mut held: Vec<Held> = Vec::new();
        for (position, thing) in self.things.range(self.settled..) {
            if *thing == Thing::Damaged {
                continue;
            }
            match held.iter_mut().find(|held| held.span.end == *position) {
                Some(held) => held.span.end = position.next(),
                None => held.push(Held {
                    span: Span::one(*position),
                }),
            }
        }
        held.truncate(HELD_MAX);
        Sealed {
            identity: self.identity,
            incarnation: self.incarnation,
            end: self.end,
            trimmed: self.trimmed,
            member_from: self.member_from,
            synced: true,
            settled: self.settled,
            held,
            announced: self.announced,
        }
    }
}
