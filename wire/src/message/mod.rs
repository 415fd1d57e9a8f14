//! Requests and replies. The payload of a frame, if any, is described by its head and never copied into it.

pub(crate) mod layout;
pub(crate) mod relay;
pub(crate) mod sequencer;
pub(crate) mod unit;

use serde::{Deserialize, Serialize};

use crate::{
    ClusterId, Identity, Incarnation, LayoutReply, LayoutRequest, Position, Refusal,
    SequencerReply, SequencerRequest, ServerName, Term, UnitReply, UnitRequest,
};

/// The server that a request means.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Which server.
    pub identity: Identity,
    /// Which process start of it. Layout servers do not look at it.
    pub incarnation: Incarnation,
}

/// The head of a request frame.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct RequestHead {
    /// Chosen by the caller; the reply carries it. Unique among the requests in flight on a stream.
    pub id: u64,
    /// The cluster the caller means.
    pub cluster: ClusterId,
    /// The server the caller means; see [`crate::admit`].
    pub to: Option<Target>,
    /// The term the caller believes in; for a seal, a prepare, a propose or a bootstrap, the term it is about.
    pub term: Term,
    /// What is asked.
    pub request: Request,
}

/// What can be asked.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Who are you? Any server answers, to any certificate of the cluster.
    Describe,
    /// For a log unit.
    Unit(UnitRequest),
    /// For a sequencer.
    Sequencer(SequencerRequest),
    /// For a layout server.
    Layout(LayoutRequest),
}

impl Request {
    /// What it does, as a verb for messages and metrics.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Describe => "describe",
            Self::Unit(request) => request.verb(),
            Self::Sequencer(request) => request.verb(),
            Self::Layout(request) => request.verb(),
        }
    }
}

/// The head of a reply frame.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ReplyHead {
    /// The request's.
    pub id: u64,
    /// The answer, or why not.
    pub reply: Result<Reply, Refusal>,
}

/// What can be answered.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Describe`].
    Described(Box<Description>),
    /// Of a log unit.
    Unit(UnitReply),
    /// Of a sequencer.
    Sequencer(SequencerReply),
    /// Of a layout server.
    Layout(LayoutReply),
}

/// What a server serves as.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Serialize, Deserialize)]
pub enum Kind {
    /// A layout server.
    Layout,
    /// A sequencer.
    Sequencer,
    /// A log unit.
    LogUnit,
}

/// A server's word about itself. Nothing decides by it but `cluster init`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// What it serves as.
    pub kind: Kind,
    /// Its name, as its certificate has it.
    pub name: ServerName,
    /// Its identity.
    pub identity: Identity,
    /// Its process start.
    pub incarnation: Incarnation,
    /// Its term.
    pub term: Term,
    /// Whether it has never been part of a cluster: nothing stored, no layout, never sealed or announced.
    pub blank: bool,
    /// The first position above everything it holds (a unit), or its counter (a sequencer).
    pub end: Position,
    /// The trim point (a unit).
    pub trimmed: Position,
    /// Bytes on its disk.
    pub bytes: u64,
    /// Requests to read that it has answered since it started (a unit).
    pub reads: u64,
    /// In one word: `blank`, `serving`, `sealed`, `restarted`, `failed`, `full`.
    pub state: String,
    /// The version of its program.
    pub version: String,
    /// Positions whose records it found damaged and holds no other copy of (a unit).
    pub damaged: u64,
    /// Per mille of the last ten seconds that its disk was at work for more than reads (a unit).
    pub busy_per_mille: u32,
}
