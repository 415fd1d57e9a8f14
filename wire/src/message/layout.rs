//! What a layout server is asked and answers. Its rules are in `milonga-layout`, `acceptor.rs`.
//!
//! ```text
//! proposer                     a majority of the layout servers of layout t
//!    │── Prepare(t+1, rank) ──────▶│  promise nothing lower     (fsync)
//!    │◀─ Promise(accepted?) ───────│
//!    │      seals t+1, computes or adopts the layout
//!    │── Propose(t+1, rank, L) ───▶│  accept unless outranked   (fsync)
//!    │◀─ Accepted ─────────────────│
//!    │── Learn(L, acceptances) ───▶│  decided                   (fsync)
//! ```
//!
//! Source: Lamport, *Paxos Made Simple*, "The Algorithm".

use serde::{Deserialize, Serialize};

use crate::refusal::cut;
use crate::{
    Brought, Decided, Kind, Layout, Position, Rank, Relayed, Role, Server, ServerName, Span, Term,
};

/// What a client saw and cannot or may not mend itself.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Report {
    /// Positions below the end that hold nothing yet.
    Holes {
        /// Where.
        spans: Vec<Span>,
        /// The end known when they were seen.
        end: Position,
    },
    /// A server that does not answer as it should.
    Suspect {
        /// Its name.
        server: ServerName,
        /// What was seen.
        why: String,
    },
    /// Records that a log unit cannot read any more.
    Damaged {
        /// The unit's name.
        server: ServerName,
        /// Where.
        spans: Vec<Span>,
    },
}

impl Report {
    /// The least role that may report it.
    pub fn needs(&self) -> Role {
        match self {
            Self::Holes { .. } | Self::Damaged { .. } => Role::Reader,
            Self::Suspect { .. } => Role::Writer,
        }
    }
}

/// Requests to a layout server. The head's term is the one spoken of.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum LayoutRequest {
    /// The newest decided layout you know, and how far the term after it has got.
    Newest,
    /// The decided layout of the head's term.
    At,
    /// Have you accepted a layout of a term after the head's?
    Confirm,
    /// Promise to accept nothing below `rank` in the head's term. Idempotent.
    Prepare {
        /// The proposer's rank.
        rank: Rank,
    },
    /// Accept `layout` in the head's term unless a higher rank was promised. Idempotent.
    Propose {
        /// The rank that was prepared.
        rank: Rank,
        /// The layout.
        layout: Box<Layout>,
    },
    /// The layout is decided. Idempotent.
    Learn {
        /// With its proof.
        decided: Box<Decided>,
    },
    /// The layout of term 0. Idempotent for the same content; refused if the server is not blank.
    Genesis {
        /// The layout.
        layout: Box<Layout>,
    },
    /// For the caretaker beside the layout server.
    Report(Report),
    /// Do you reach this server, end to end? Answered after a probe that began when the request had arrived. Refused if
    /// the newest decided layout does not list the server so: nobody else is sent anything.
    Opinion {
        /// The suspect, as a layout lists it.
        of: Box<Server>,
        /// What it is listed as: a log unit or a sequencer.
        kind: Kind,
    },
    /// Ask this server for me, in the head's term: I do not reach it. Answered with what it said, or that it said nothing.
    /// Refused if the newest decided layout does not list the server so, or if the term is neither that layout's nor the next
    /// one: nobody else is sent anything. It can be repeated, as all that can be passed on, which may arrive late and twice.
    Relay {
        /// The server, as a layout lists it, and the process start of it that is meant.
        to: Box<Server>,
        /// What it is asked.
        request: Relayed,
    },
}

impl LayoutRequest {
    /// What it does, as a verb for messages and metrics.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Newest => "read the layout",
            Self::At => "read a layout",
            Self::Confirm => "confirm",
            Self::Prepare { .. } => "prepare a layout",
            Self::Propose { .. } => "propose a layout",
            Self::Learn { .. } => "announce a layout",
            Self::Genesis { .. } => "initialise a cluster",
            Self::Report(_) => "report",
            Self::Opinion { .. } => "ask for an opinion",
            Self::Relay { .. } => "relay",
        }
    }
}

/// How far the term after the newest decided one has got, at one layout server.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The highest rank promised.
    pub promised: Option<Rank>,
    /// The rank at which a layout was accepted. Accepted is not decided.
    pub accepted: Option<Rank>,
}

/// The answer to a prepare.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Promise {
    /// The rank promised: the proposer's own.
    pub rank: Rank,
    /// What was accepted before. The proposer must adopt the one of highest rank that a majority shows it.
    pub accepted: Option<(Rank, Box<Layout>)>,
}

/// Answers of a layout server.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum LayoutReply {
    /// To [`LayoutRequest::Newest`]: nothing on a blank server.
    Newest {
        /// The newest decided layout it knows.
        decided: Option<Box<Decided>>,
        /// How far the next term has got here.
        standing: Standing,
    },
    /// To [`LayoutRequest::At`]: nothing if it does not know that term.
    At {
        /// The decided layout of that term.
        decided: Option<Box<Decided>>,
    },
    /// To [`LayoutRequest::Confirm`]: it has accepted no layout of a later term. (Else it refuses.)
    Confirmed {
        /// The term confirmed.
        term: Term,
    },
    /// To a prepare.
    Promised(Promise),
    /// To a propose.
    Accepted {
        /// The rank accepted.
        rank: Rank,
    },
    /// To a learn: the newest decided term it knows now.
    Learned {
        /// That term.
        newest: Term,
    },
    /// To a genesis.
    Initialised,
    /// To a report.
    Noted,
    /// To [`LayoutRequest::Opinion`].
    Opinion {
        /// None: it answered a probe that began after the request arrived, a log unit with a durable write. Else why not,
        /// in words.
        trouble: Option<String>,
    },
    /// To [`LayoutRequest::Relay`].
    Relayed(Box<Brought>),
}

impl LayoutReply {
    /// [`LayoutReply::Opinion`], its text cut to the limit.
    pub fn opinion(trouble: Option<String>) -> Self {
        Self::Opinion {
            trouble: trouble.map(cut),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::TEXT_BYTES_MAX;

    /// What a peer put into an error may be of any length; what is passed on may not.
    #[test]
    fn the_words_of_an_opinion_are_cut_to_the_limit() {
        let long = "\u{e9}".repeat(TEXT_BYTES_MAX);
        let LayoutReply::Opinion { trouble } = LayoutReply::opinion(Some(long)) else {
            panic!("no opinion");
        };
        assert_eq!(trouble.map(|why| why.len()), Some(TEXT_BYTES_MAX));
        assert_eq!(
            LayoutReply::opinion(None),
            LayoutReply::Opinion { trouble: None }
        );
    }
}
