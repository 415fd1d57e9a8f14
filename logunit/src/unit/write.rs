//! Writes and fills: which positions become what.

use milonga_wire::limits::{FILL_POSITIONS_MAX, PIECES_MAX, SPANS_MAX, WINDOW_POSITIONS};
use milonga_wire::{
    Fill, FillOutcome, Holder, Payload, Piece, Position, Refusal, Span, Stamp, Term, UnitReply,
    WriteKind, WriteOutcome,
};
use smallvec::SmallVec;

use super::batch::{Cutter, View};
use super::{Batch, State, Unit};
use crate::storage::{Change, Room, Storage};

impl Unit {
    /// Stores what of `pieces` is not stored yet.
    pub(super) fn write(
        &mut self,
        storage: &mut dyn Storage,
        batch: &mut Batch,
        term: Term,
        kind: WriteKind,
        pieces: &[Piece],
        payload: &Payload,
    ) -> Result<UnitReply, Refusal> {
        let start = batch.state.announced_in(term)?;
        self.check_pieces(term, kind, pieces, payload)?;
        let bound = Bound::of(kind, &batch.state, start);
        for piece in pieces {
            bound.check(piece.span())?;
        }
        let before = batch.mark();
        let mut bytes = Cutter::new(payload);
        let outcomes: Result<Vec<WriteOutcome>, Refusal> = pieces
            .iter()
            .map(|piece| self.place(storage, batch, kind, piece, &mut bytes))
            .collect();
        outcomes
            .map(UnitReply::Written)
            .inspect_err(|_| batch.undo(&before))
    }

    /// Every bound that depends on the request alone.
    fn check_pieces(
        &self,
        term: Term,
        kind: WriteKind,
        pieces: &[Piece],
        payload: &Payload,
    ) -> Result<(), Refusal> {
        if pieces.is_empty() || pieces.len() > PIECES_MAX {
            let limit = PIECES_MAX as u32;
            return Err(Refusal::too_large("pieces in a write", pieces.len(), limit));
        }
        for piece in pieces {
            piece.check(self.entry_bytes_max)?;
            check_decided(kind, Copied::Record, piece.term, term)?;
        }
        let bytes: u64 = pieces.iter().map(Piece::payload_bytes).sum();
        if bytes != payload.len() as u64 {
            let came = payload.len();
            let why = format!("the pieces speak of {bytes} bytes, {came} came");
            return Err(Refusal::malformed(why));
        }
        Ok(())
    }

    /// Decides one piece: stored as a whole, or taken as a whole (U3).
    fn place(
        &mut self,
        storage: &mut dyn Storage,
        batch: &mut Batch,
        kind: WriteKind,
        piece: &Piece,
        bytes: &mut Cutter<'_>,
    ) -> Result<WriteOutcome, Refusal> {
        let lacking = match self.compare(storage, batch, kind, piece)? {
            Compared::Lacking(lacking) => lacking,
            Compared::Taken(position, holder) => {
                bytes.skip(piece.payload_bytes() as usize);
                return Ok(WriteOutcome::Taken { position, holder });
            }
        };
        let mut outcome = WriteOutcome::Stored;
        if !lacking.is_empty() {
            let is_deciding = kind == WriteKind::Decide;
            let least = if is_deciding {
                Room::Plenty
            } else {
                Room::Reserve
            };
            check_room(storage, least)?;
            if storage.room() < Room::Plenty {
                outcome = WriteOutcome::InReserve;
            }
        }
        let mut lacking = lacking.into_iter().peekable();
        for (index, len) in piece.lengths.iter().enumerate() {
            let position = piece.first.plus(index as u64);
            while lacking.next_if(|run| run.end <= position).is_some() {}
            match lacking.peek() {
                Some(run) if run.start <= position => {
                    if run.start == position {
                        let stamp = piece.stamp.plus(index as u32);
                        batch.take(*run, Holder::Data(stamp));
                    }
                    batch.push(Change::Entry {
                        head: piece.head(index as u32),
                        payload: bytes.take(*len as usize),
                    });
                }
                Some(_) | None => bytes.skip(*len as usize),
            }
        }
        Ok(outcome)
    }

    /// What of `piece` is to be written. The first position that is neither free nor the piece's own decides.
    fn compare(
        &mut self,
        storage: &mut dyn Storage,
        batch: &Batch,
        kind: WriteKind,
        piece: &Piece,
    ) -> Result<Compared, Refusal> {
        let stamp = |position: Position| piece.stamp.plus(position.since(piece.first) as u32);
        let mut lacking = Lacking::new();
        let mut rest = piece.span();
        while !rest.is_empty() {
            let (view, run) = batch.look(storage, rest);
            match view {
                View::Absent => lacking.push(run),
                View::Unknown | View::Damaged => lacking.push(unknown(kind, run)?),
                View::Trimmed => return Err(Refusal::Trimmed { to: run.end }),
                View::Junk(_) => return Ok(Compared::Taken(run.start, Holder::Junk)),
                // Stamps count on in both, so the first speaks for the run.
                View::Waiting(holder) if holder == Holder::Data(stamp(run.start)) => {}
                View::Waiting(holder) => return Ok(Compared::Taken(run.start, holder)),
                View::Data => {
                    for position in run.positions() {
                        match self.holder(storage, position) {
                            Some(holder) if holder == Holder::Data(stamp(position)) => {}
                            Some(holder) => return Ok(Compared::Taken(position, holder)),
                            None => lacking.push(unknown(kind, Span::one(position))?),
                        }
                    }
                }
            }
            rest.start = run.end;
        }
        Ok(Compared::Lacking(lacking))
    }

    /// Who holds a position whose slot says data; none if it is damaged.
    fn holder(&mut self, storage: &mut dyn Storage, position: Position) -> Option<Holder> {
        if let Ok(Some(holder)) = storage.holder(position) {
            return Some(holder);
        }
        self.note_damage(position);
        None
    }

    /// Ends the holes among the positions of `fill` with junk.
    pub(super) fn fill(
        &mut self,
        storage: &mut dyn Storage,
        batch: &mut Batch,
        term: Term,
        fill: &Fill,
    ) -> Result<UnitReply, Refusal> {
        let start = batch.state.announced_in(term)?;
        check_fill(fill, term)?;
        let bound = Bound::of(fill.kind, &batch.state, start);
        for span in &fill.spans {
            bound.check_window(*span)?;
        }
        let before = batch.mark();
        let mut taken = Vec::new();
        fill.spans
            .iter()
            .try_for_each(|span| self.fill_span(storage, batch, fill, *span, &mut taken))
            .inspect_err(|_| batch.undo(&before))?;
        Ok(UnitReply::Filled(FillOutcome { taken }))
    }

    fn fill_span(
        &mut self,
        storage: &mut dyn Storage,
        batch: &mut Batch,
        fill: &Fill,
        span: Span,
        taken: &mut Vec<(Position, Stamp)>,
    ) -> Result<(), Refusal> {
        let mut rest = span;
        while !rest.is_empty() {
            let (view, run) = batch.look(storage, rest);
            match view {
                View::Absent => put_junk(storage, batch, run, fill.decided)?,
                View::Unknown | View::Damaged => {
                    let run = unknown(fill.kind, run)?;
                    put_junk(storage, batch, run, fill.decided)?;
                }
                View::Trimmed | View::Junk(_) | View::Waiting(Holder::Junk) => {}
                View::Waiting(Holder::Data(stamp)) => {
                    let stamps = (0..).map(|count| stamp.plus(count));
                    taken.extend(run.positions().zip(stamps));
                }
                View::Data => {
                    for position in run.positions() {
                        match self.holder(storage, position) {
                            Some(Holder::Data(stamp)) => taken.push((position, stamp)),
                            Some(Holder::Junk) => {}
                            None => {
                                let run = unknown(fill.kind, Span::one(position))?;
                                put_junk(storage, batch, run, fill.decided)?;
                            }
                        }
                    }
                }
            }
            rest.start = run.end;
        }
        Ok(())
    }
}

/// Runs of one piece; almost always one.
type Lacking = SmallVec<[Span; 1]>;

/// How a piece compares with what is there.
enum Compared {
    /// These runs of it are to be written; the rest is stored already.
    Lacking(Lacking),
    /// Something else holds this position.
    Taken(Position, Holder),
}

/// Where entries and junk of one kind may go (U7).
struct Bound {
    trimmed: Position,
    /// The first position out of it.
    limit: Position,
}

impl Bound {
    fn of(kind: WriteKind, state: &State, start: Position) -> Self {
        let limit = match kind {
            WriteKind::Decide | WriteKind::Follow => state.end.max(start).plus(WINDOW_POSITIONS),
            WriteKind::Copy => start,
        };
        Self {
            trimmed: state.trimmed,
            limit,
        }
    }

    fn check(&self, span: Span) -> Result<(), Refusal> {
        self.check_window(span)?;
        if span.start < self.trimmed {
            return Err(Refusal::Trimmed { to: self.trimmed });
        }
        Ok(())
    }

    fn check_window(&self, span: Span) -> Result<(), Refusal> {
        if span.end > self.limit {
            return Err(Refusal::OutOfWindow {
                position: span.start.max(self.limit),
                limit: self.limit,
            });
        }
        Ok(())
    }
}

/// What a write carries.
#[derive(Clone, Copy)]
enum Copied {
    Record,
    Junk,
}

/// Only a copy decides what is unknown (U5).
fn unknown(kind: WriteKind, span: Span) -> Result<Span, Refusal> {
    match kind {
        WriteKind::Copy => Ok(span),
        WriteKind::Decide | WriteKind::Follow => Err(Refusal::Unknown { span }),
    }
}

/// The term that an entry keeps: what is decided now is of the request's own, what is repeated may be older. A record
/// that is copied is older; junk may be of this term, where no unit of the chain held anything.
fn check_decided(kind: WriteKind, what: Copied, decided: Term, term: Term) -> Result<(), Refusal> {
    let fits = match (kind, what) {
        (WriteKind::Decide, _) => decided == term,
        (WriteKind::Follow, _) | (WriteKind::Copy, Copied::Junk) => decided <= term,
        (WriteKind::Copy, Copied::Record) => decided < term,
    };
    if fits {
        return Ok(());
    }
    let why = format!("a request of term {term} cannot {kind:?} what term {decided} decided");
    Err(Refusal::malformed(why))
}

/// Every bound of a fill that depends on the request alone.
fn check_fill(fill: &Fill, term: Term) -> Result<(), Refusal> {
    let count = fill.spans.len();
    if count == 0 || count > SPANS_MAX {
        return Err(Refusal::too_large(
            "spans in a fill",
            count,
            SPANS_MAX as u32,
        ));
    }
    if fill.spans.iter().any(|span| span.is_empty()) {
        return Err(Refusal::malformed("a fill names an empty span"));
    }
    let positions = fill
        .spans
        .iter()
        .fold(0_u64, |sum, span| sum.saturating_add(span.len()));
    if positions > FILL_POSITIONS_MAX {
        return Err(Refusal::TooLarge {
            what: "positions in a fill".to_owned(),
            asked: positions,
            limit: FILL_POSITIONS_MAX,
        });
    }
    check_decided(fill.kind, Copied::Junk, fill.decided, term)?;
    if fill.kind == WriteKind::Copy {
        return Ok(());
    }
    let end = if fill.end.term == term {
        fill.end.end
    } else {
        Position::FIRST // Another term's end says nothing: everything lies beyond it.
    };
    match fill.spans.iter().find(|span| span.end > end) {
        Some(span) => Err(Refusal::BeyondEnd {
            position: span.start.max(end),
            end: fill.end.end,
        }),
        None => Ok(()),
    }
}

/// U11.
fn check_room(storage: &dyn Storage, least: Room) -> Result<(), Refusal> {
    if storage.room() < least {
        return Err(Refusal::DiskFull);
    }
    Ok(())
}

fn put_junk(
    storage: &dyn Storage,
    batch: &mut Batch,
    span: Span,
    term: Term,
) -> Result<(), Refusal> {
    check_room(storage, Room::Little)?;
    batch.take(span, Holder::Junk);
    batch.push(Change::Junk { span, term });
    Ok(())
}
