//! What a log unit is asked and answers. Its rules are in `milonga-logunit`, `unit.rs`.

use serde::{Deserialize, Serialize};

use crate::{
    Before, EntryHead, Holder, Identity, Incarnation, Piece, Position, Span, StreamId, Stripes,
    Term,
};

/// Which link of a chain a write is.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum WriteKind {
    /// At the head: it decides what the position holds. Refused first when the disk fills.
    Decide,
    /// Below the head: it repeats what the head holds.
    Follow,
    /// Below the open segment of the unit's term: what a peer holds is put back. Control only; allowed on unknown.
    Copy,
}

/// The end a fill was based on, and the term whose sequencer said it.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ConfirmedEnd {
    /// The end.
    pub end: Position,
    /// Its term: must be the request's own.
    pub term: Term,
}

/// Ends holes with junk.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Fill {
    /// Which link of the chain.
    pub kind: WriteKind,
    /// The term of the junk: the request's own, but for copies and completions of junk, which keep it.
    pub decided: Term,
    /// The positions.
    pub spans: Vec<Span>,
    /// What the filler knows of the end.
    pub end: ConfirmedEnd,
}

/// Requests to a log unit. All but reads need exactly the unit's term.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum UnitRequest {
    /// Store entries; the payload carries their bytes in order. Answered once durable, piece by piece.
    Write {
        /// Which link of the chain.
        kind: WriteKind,
        /// The pieces, each all or nothing.
        pieces: Vec<Piece>,
    },
    /// Store junk where nothing is.
    Fill(Fill),
    /// What do these positions hold? Answered in order; cut short at `bytes_max` of payload, but never before one answer.
    Read {
        /// The positions.
        spans: Vec<Span>,
        /// Payload bytes wanted at most (one entry may exceed it).
        bytes_max: u32,
    },
    /// End all terms below the request's. Durable, and after every write admitted before it.
    Seal,
    /// The request's term is decided, lists this very incarnation, and opens its segment at `start`.
    Announce {
        /// Where the open segment starts: from here a restarted unit is a full member.
        start: Position,
    },
    /// The first position of these stripes that the unit lacks. Only a tail's answer, in its own term, is a settled mark.
    Settled {
        /// Whose positions.
        stripes: Stripes,
    },
    /// Give back the space below `to`.
    Trim {
        /// The first position kept.
        to: Position,
        /// The log's settled mark, as the client established it in this term.
        settled: Position,
    },
    /// The last positions of every stream, in the order of stream ids.
    StreamTails {
        /// Streams after this one.
        after: Option<StreamId>,
        /// Streams wanted at most.
        count_max: u32,
    },
    /// The positions of one stream that this unit holds.
    StreamPositions {
        /// The stream.
        stream: StreamId,
        /// Where to look.
        span: Span,
        /// Positions wanted at most.
        count_max: u32,
    },
    /// A durable write to a probe slot, end to end: a failing disk does not answer it. Answered in any term, and by any
    /// process start of the server that the head names.
    Probe,
    /// Which of these positions can this unit not tell? Its damaged records, and what is unknown to it. Control only.
    Lacking {
        /// Whose positions.
        stripes: Stripes,
        /// Where to look from.
        from: Position,
        /// Spans wanted at most.
        count_max: u32,
    },
    /// Forget everything, and be formatted anew, as another server. The head's term is that of a decided layout that does
    /// not list this one. Control only.
    Reset {
        /// The identity that ends: the server's own.
        of: Identity,
    },
}

impl UnitRequest {
    /// What it does, as a verb for messages and metrics.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Write {
                kind: WriteKind::Copy,
                ..
            } => "copy",
            Self::Write { .. } => "write",
            Self::Fill(_) => "fill",
            Self::Read { .. } => "read",
            Self::Seal => "seal",
            Self::Announce { .. } => "announce",
            Self::Settled { .. } => "settled",
            Self::Trim { .. } => "trim",
            Self::StreamTails { .. } => "stream-tails",
            Self::StreamPositions { .. } => "stream-positions",
            Self::Probe => "probe",
            Self::Lacking { .. } => "lacking",
            Self::Reset { .. } => "reset",
        }
    }
}

/// What became of one piece.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum WriteOutcome {
    /// Durable, every position of it; by this request or an equal one before it.
    Stored,
    /// `position`, the first of the piece that is taken by something else; nothing of the piece was written.
    Taken {
        /// Where.
        position: Position,
        /// By whom.
        holder: Holder,
    },
    /// As [`WriteOutcome::Stored`], on a disk that has nothing but its reserve left: who decides more should ask it first.
    InReserve,
}

/// What became of the positions of a fill that did not become junk by it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct FillOutcome {
    /// Positions that hold records, which stand. All others named in the fill are durable junk now.
    pub taken: Vec<(Position, crate::Stamp)>,
}

/// What a position holds, here.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// A record; its bytes are next in the payload.
    Data(EntryHead),
    /// Junk, with the term of the fill that decided it.
    Junk {
        /// The positions.
        span: Span,
        /// The term.
        term: Term,
    },
    /// Trimmed.
    Trimmed(Span),
    /// Never written here, in this term. Not an answer about the log by itself.
    Unwritten(Span),
    /// Absent here, where that does not show that it was never written.
    Unknown(Span),
    /// Something was held here, and cannot be read any more. If no unit holds it, it is lost: never filled by itself.
    Damaged(Span),
}

impl Answer {
    /// The positions it speaks of.
    pub fn span(&self) -> Span {
        match self {
            Self::Data(head) => Span::one(head.position),
            Self::Junk { span, .. }
            | Self::Trimmed(span)
            | Self::Unwritten(span)
            | Self::Unknown(span)
            | Self::Damaged(span) => *span,
        }
    }
}

/// A range of positions that a unit holds above its last settled mark.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The positions, all of them held.
    pub span: Span,
}

/// A seal's answer: what the unit held when the lower terms ended. Nothing of them is added afterwards.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Sealed {
    /// The unit.
    pub identity: Identity,
    /// Its process start.
    pub incarnation: Incarnation,
    /// The first position above everything it holds: data, junk and partial writes.
    pub end: Position,
    /// The trim point.
    pub trimmed: Position,
    /// Where its membership starts: below, what it lacks is unknown. None: restarted, and listed by no term since.
    pub member_from: Option<Position>,
    /// Whether its store shows every batch synced up to its end.
    pub synced: bool,
    /// The last settled mark that it was told or worked out as a tail.
    pub settled: Position,
    /// What it holds above `settled`, lowest first, cut at a bound.
    pub held: Vec<Held>,
    /// The open segment start that was announced last, with its term.
    pub announced: Option<(Term, Position)>,
}

/// Answers of a log unit.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum UnitReply {
    /// To a write: one outcome per piece, in order.
    Written(Vec<WriteOutcome>),
    /// To a fill.
    Filled(FillOutcome),
    /// To a read: what was asked, in order, perhaps cut short.
    Read(Vec<Answer>),
    /// To a seal.
    Sealed(Box<Sealed>),
    /// To an announcement.
    Announced,
    /// To [`UnitRequest::Settled`].
    Settled(Position),
    /// To a trim: the trim point achieved.
    Trimmed(Position),
    /// To [`UnitRequest::StreamTails`]: streams in order; `more` if the page did not hold them all.
    StreamTails {
        /// Per stream its last positions on this unit, newest first; `Unknown` where the unit cannot tell.
        tails: Vec<(StreamId, Before)>,
        /// Whether there are more.
        more: bool,
    },
    /// To [`UnitRequest::StreamPositions`]: rising; `next` is where to go on, `None` when the span is done.
    StreamPositions {
        /// The positions.
        positions: Vec<Position>,
        /// Where to go on.
        next: Option<Position>,
    },
    /// To a probe.
    Probed,
    /// To [`UnitRequest::Lacking`]: rising; `next` is where to go on, `None` when all was looked at.
    Lacking {
        /// [`Answer::Unknown`] and [`Answer::Damaged`] only.
        spans: Vec<Answer>,
        /// Where to go on.
        next: Option<Position>,
    },
    /// To a reset: who the server is from now on. It is blank, and no layout lists it.
    Reset {
        /// Its identity.
        identity: Identity,
        /// Its process start.
        incarnation: Incarnation,
    },
}
