//! What a log unit is asked, sorted: questions are answered at once, commands wait in the one queue (U1).

use milonga_wire::{
    Fill, Identity, Piece, Position, Span, StreamId, Stripes, UnitRequest, WriteKind,
};

/// A request, sorted.
#[derive(Clone, Debug)]
pub enum Work {
    /// Answered from what is durable.
    Query(Query),
    /// Decided and committed in the order of arrival.
    Command(Command),
    /// [`UnitRequest::Reset`], of that server. What waits meanwhile is meant for one that is no more.
    Reset(Identity),
}

/// What changes nothing.
#[derive(Clone, Debug)]
pub enum Query {
    /// [`UnitRequest::Read`].
    Read {
        /// The positions.
        spans: Vec<Span>,
        /// Payload bytes wanted at most.
        bytes_max: u32,
    },
    /// [`UnitRequest::Settled`].
    Settled {
        /// Whose positions.
        stripes: Stripes,
    },
    /// [`UnitRequest::StreamTails`].
    StreamTails {
        /// Streams after this one.
        after: Option<StreamId>,
        /// Streams wanted at most.
        count_max: u32,
    },
    /// [`UnitRequest::StreamPositions`].
    StreamPositions {
        /// The stream.
        stream: StreamId,
        /// Where to look.
        span: Span,
        /// Positions wanted at most.
        count_max: u32,
    },
    /// [`UnitRequest::Lacking`].
    Lacking {
        /// Whose positions.
        stripes: Stripes,
        /// Where to look from.
        from: Position,
        /// Spans wanted at most.
        count_max: u32,
    },
}

/// What may change something.
#[derive(Clone, Debug)]
pub enum Command {
    /// [`UnitRequest::Write`].
    Write {
        /// Which link of the chain.
        kind: WriteKind,
        /// The pieces.
        pieces: Vec<Piece>,
    },
    /// [`UnitRequest::Fill`].
    Fill(Fill),
    /// [`UnitRequest::Seal`].
    Seal,
    /// [`UnitRequest::Announce`].
    Announce {
        /// Where the open segment starts.
        start: Position,
    },
    /// [`UnitRequest::Trim`].
    Trim {
        /// The first position kept.
        to: Position,
        /// The settled mark that the client established.
        settled: Position,
    },
    /// [`UnitRequest::Probe`].
    Probe,
}

impl Command {
    /// Whether it stores entries or junk, and so needs room on the disk.
    pub fn stores(&self) -> bool {
        match self {
            Self::Write { .. } | Self::Fill(_) => true,
            Self::Seal | Self::Announce { .. } | Self::Trim { .. } | Self::Probe => false,
        }
    }

    /// Bytes of memory that its head takes while it waits, roughly.
    pub fn head_bytes(&self) -> usize {
        const BASE: usize = 256;
        const LINK: usize = 64;
        let piece = |piece: &Piece| BASE + piece.streams.len() * LINK + piece.lengths.len() * 4;
        match self {
            Self::Write { pieces, .. } => BASE + pieces.iter().map(piece).sum::<usize>(),
            Self::Fill(fill) => BASE + fill.spans.len() * size_of::<Span>(),
            Self::Seal | Self::Announce { .. } | Self::Trim { .. } | Self::Probe => BASE,
        }
    }
}

impl From<UnitRequest> for Work {
    fn from(request: UnitRequest) -> Self {
        match request {
            UnitRequest::Read { spans, bytes_max } => Self::Query(Query::Read { spans, bytes_max }),
            UnitRequest::Settled { stripes } => Self::Query(Query::Settled { stripes }),
            UnitRequest::StreamTails { after, count_max } => {
                Self::Query(Query::StreamTails { after, count_max })
            }
            UnitRequest::StreamPositions {
                stream,
                span,
                count_max,
            } => Self::Query(Query::StreamPositions {
                stream,
                span,
                count_max,
            }),
            UnitRequest::Lacking {
                stripes,
                from,
                count_max,
            } => Self::Query(Query::Lacking {
                stripes,
                from,
                count_max,
            }),
            UnitRequest::Reset { of } => Self::Reset(of),
            UnitRequest::Write { kind, pieces } => Self::Command(Command::Write { kind, pieces }),
            UnitRequest::Fill(fill) => Self::Command(Command::Fill(fill)),
            UnitRequest::Seal => Self::Command(Command::Seal),
            UnitRequest::Announce { start } => Self::Command(Command::Announce { start }),
            UnitRequest::Trim { to, settled } => Self::Command(Command::Trim { to, settled }),
            UnitRequest::Probe => Self::Command(Command::Probe),
        }
    }
}
