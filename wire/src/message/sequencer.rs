//! What a sequencer is asked and answers. Its rules are in `milonga-sequencer`, `counter.rs`.

use serde::{Deserialize, Serialize};

use crate::{Before, Decided, Position, StreamId, StreamLink, Term};

/// A stream's last positions at bootstrap.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct StreamTail {
    /// The stream.
    pub stream: StreamId,
    /// Its last positions, newest first.
    pub last: Before,
}

/// A page of what a sequencer starts from.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct BootstrapPage {
    /// The layout of the term, with its proof; it names this incarnation.
    pub decided: Decided,
    /// Whether the tails are of every stream there is: else an unlisted stream is unknown, not empty.
    pub complete: bool,
    /// Which attempt this page belongs to: random.
    pub driver: [u8; 16],
    /// Which page this is, from 0.
    pub page: u32,
    /// Whether it is the last.
    pub last: bool,
    /// Stream tails.
    pub tails: Vec<StreamTail>,
}

/// Requests to a sequencer.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum SequencerRequest {
    /// The next `count` positions, each in all of `streams`. Not idempotent: a lost reply burns the positions (readers fill them).
    Tokens {
        /// How many, 1 to [`crate::limits::RUN_RECORDS_MAX`].
        count: u32,
        /// The streams of every record of the run.
        streams: Vec<StreamId>,
    },
    /// The end of the log, confirmed by a majority of the layout servers after this request arrived; and where these streams end.
    End {
        /// Streams of interest.
        streams: Vec<StreamId>,
    },
    /// End all terms below the request's: issue nothing more in them.
    Seal,
    /// Start to issue in the request's term. Pages of one driver add up; the first driver whose last page arrives wins,
    /// repeats are no-ops.
    Bootstrap(Box<BootstrapPage>),
    /// Are you there, and bootstrapped?
    Probe,
}

impl SequencerRequest {
    /// What it does, as a verb for messages and metrics.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Tokens { .. } => "take tokens",
            Self::End { .. } => "end",
            Self::Seal => "seal",
            Self::Bootstrap(_) => "bootstrap",
            Self::Probe => "probe",
        }
    }
}

/// What the sequencer issues: good in its own term only.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// The term.
    pub term: Term,
    /// The first position.
    pub first: Position,
    /// How many.
    pub count: u32,
    /// Per stream asked for, in order, its last positions before `first`.
    pub streams: Vec<StreamLink>,
}

/// Answers of a sequencer.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum SequencerReply {
    /// To a request for tokens.
    Token(Token),
    /// To [`SequencerRequest::End`].
    End {
        /// At or above every append acknowledged before the request.
        end: Position,
        /// The term it was confirmed in.
        term: Term,
        /// Per stream asked for, in order, its last positions below `end`.
        streams: Vec<StreamLink>,
    },
    /// To a seal: the counter, none if it was never bootstrapped.
    Sealed {
        /// The next position it would have issued.
        counter: Option<Position>,
    },
    /// To a bootstrap page.
    Bootstrapped {
        /// Whether the sequencer issues positions in this term now.
        serving: bool,
    },
    /// To a probe.
    Probed {
        /// Whether it issues positions.
        serving: bool,
    },
}
