//! A server's typed no. Nothing changed.

use serde::{Deserialize, Serialize};

use crate::limits::TEXT_BYTES_MAX;
use crate::{ClusterId, Decided, Identity, Incarnation, Position, Rank, Role, Span, Term};

/// Why a server did not do what was asked. A refused request has had no effect, but for [`Refusal::DiskFailed`].
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The request names another cluster.
    #[error(
        "the request names cluster {asked}, this server belongs to {here}; use this cluster's configuration"
    )]
    WrongCluster {
        /// The cluster it names.
        asked: ClusterId,
        /// The server's own.
        here: ClusterId,
    },
    /// The request names another server (its directory was wiped, copied or swapped, or the address reused).
    #[error("the request names server {asked}, this is {here}; fetch the newest layout")]
    WrongServer {
        /// The identity it names.
        asked: Identity,
        /// The server's own.
        here: Identity,
    },
    /// The server was restarted since the layout was made. A new term must list it first.
    #[error(
        "the request names process start {asked}, this is {here}; a new term must list it (`cluster rebuild-sequencer`)"
    )]
    WrongIncarnation {
        /// The incarnation it names.
        asked: Incarnation,
        /// The server's own.
        here: Incarnation,
    },
    /// The caller's certificate does not allow this.
    #[error("a {has} certificate may not {verb}; use one of role {needs}")]
    WrongRole {
        /// The caller's role.
        has: Role,
        /// The least role that may.
        needs: Role,
        /// What was asked.
        verb: String,
    },
    /// The term is over. The newest decided layout is attached where the server knows one.
    #[error("term {asked} is over, the server is in {current}; fetch the newest layout")]
    StaleTerm {
        /// The term the request believes in.
        asked: Term,
        /// The server's.
        current: Term,
        /// The newest decided layout the server knows.
        newest: Option<Box<Decided>>,
    },
    /// The server has not been sealed for that term yet.
    #[error("the server is in term {current}, not yet in {asked}; finish the change of layout")]
    FutureTerm {
        /// The term the request believes in.
        asked: Term,
        /// The server's.
        current: Term,
    },
    /// A restarted or new unit that no layout of this term was announced to: it takes no writes yet.
    #[error(
        "no layout of term {term} has been announced to this unit; a control client must finish the change of layout"
    )]
    NotAnnounced {
        /// The unit's term.
        term: Term,
    },
    /// The sequencer (or a standby) has not been bootstrapped in this term, and issues nothing.
    #[error(
        "the sequencer has not been bootstrapped in term {term}; a control client must finish the change of layout"
    )]
    NotBootstrapped {
        /// The sequencer's term.
        term: Term,
    },
    /// Entries there were lost or damaged here, or cannot be told from it: neither a fill nor a completion may decide them.
    #[error("this unit cannot tell what {span} held; a later term must restore it from its peers")]
    Unknown {
        /// The positions.
        span: Span,
    },
    /// The position lies beyond what a correct writer could have been issued.
    #[error("position {position} lies beyond {limit}; take a token from the sequencer")]
    OutOfWindow {
        /// The position.
        position: Position,
        /// The first position out of the window.
        limit: Position,
    },
    /// A fill at or above the end it names, or on another term's end.
    #[error("position {position} lies at or above the end {end}; nothing there can be filled")]
    BeyondEnd {
        /// The position.
        position: Position,
        /// The end the request named.
        end: Position,
    },
    /// The position's entry was trimmed.
    #[error("positions below {to} are trimmed")]
    Trimmed {
        /// The trim point.
        to: Position,
    },
    /// A trim beyond what is settled.
    #[error("cannot trim to {asked}: only positions below {limit} are settled")]
    Unsettled {
        /// What was asked.
        asked: Position,
        /// As far as a trim may go.
        limit: Position,
    },
    /// No room for deciding data. Reads, trims and what is already decided go on.
    #[error("the disk of this unit is full; trim the log or add space")]
    DiskFull,
    /// A write or sync failed, this one or one before; the unit refuses writes until it is restarted. What it was asked to
    /// write may be on its disk all the same, and be found after the restart.
    #[error("the disk of this server failed ({why}); check it, then restart the server")]
    DiskFailed {
        /// The first failure.
        why: String,
    },
    /// Something is larger than the limit.
    #[error("{asked} {what}, the limit is {limit}; split it")]
    TooLarge {
        /// What was counted.
        what: String,
        /// What was asked.
        asked: u64,
        /// The most allowed.
        limit: u64,
    },
    /// The request contradicts itself or makes no sense.
    #[error("malformed request: {why}")]
    Malformed {
        /// What is wrong.
        why: String,
    },
    /// This server does not serve that kind of request.
    #[error("this server is no {needs}; fetch the newest layout")]
    WrongKind {
        /// The kind of server that would.
        needs: String,
    },
    /// A layout server promised a higher rank.
    #[error("a proposer of rank {promised} came first; wait, then prepare again above it")]
    Outranked {
        /// The rank promised.
        promised: Rank,
    },
    /// A layout server knows a newer decided layout.
    #[error("the layout of term {} is decided already; use it", .newest.layout.term)]
    Decided {
        /// The newest decided layout it knows.
        newest: Box<Decided>,
    },
    /// A layout server has not seen the layout before the one spoken of. Send it what it lacks (learn), then ask again.
    #[error("this layout server knows {}; send it the decided ones it lacks", up_to(*.newest))]
    Behind {
        /// The newest term it knows.
        newest: Option<Term>,
    },
    /// The layout server is blank, or no layout that it knows names its identity: it does not vote.
    #[error("no layout names this layout server; `cluster init` or `set-layout-servers` must")]
    NotListed,
    /// The cluster has been initialised with other content.
    #[error(
        "this server is already part of an initialised cluster; `cluster init` needs blank servers"
    )]
    AlreadyInitialised,
    /// A jump over several terms could not be confirmed by a majority of the layout servers.
    #[error(
        "a seal from term {current} to {asked} skips terms that the layout servers do not confirm; expected the term after the newest layout's; fetch that"
    )]
    TermJump {
        /// The term asked for.
        asked: Term,
        /// The server's.
        current: Term,
    },
    /// Too few layout servers answered to confirm that the term still stands. Nothing was issued.
    #[error("too few layout servers confirmed term {term} in time; try again")]
    Unconfirmed {
        /// The term.
        term: Term,
    },
    /// The server is shutting down.
    #[error("the server is shutting down; try again")]
    Draining,
    /// A bound on work in progress was met.
    #[error("the server has too much to do ({what}); try again")]
    Busy {
        /// Which bound.
        what: String,
    },
    /// A layout of that term lists the server: it keeps what it holds.
    #[error("the layout of term {term} lists this server; a later one must leave it out first")]
    InUse {
        /// The term.
        term: Term,
    },
}

/// The layouts that a layout server knows.
fn up_to(newest: Option<Term>) -> String {
    match newest {
        Some(term) => format!("the layouts up to term {term} only"),
        None => "no layout yet".to_owned(),
    }
}

impl Refusal {
    /// [`Refusal::TooLarge`].
    pub fn too_large(what: &str, asked: usize, limit: u32) -> Self {
        Self::TooLarge {
            what: what.to_owned(),
            asked: asked as u64,
            limit: u64::from(limit),
        }
    }

    /// [`Refusal::Malformed`], its text cut to the limit.
    pub fn malformed(why: impl Into<String>) -> Self {
        let why = cut(why.into());
        Self::Malformed { why }
    }
}

/// `text`, as much of it as a message may carry.
pub(crate) fn cut(mut text: String) -> String {
    while text.len() > TEXT_BYTES_MAX {
        text.pop();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What people read names terms as people do.
    #[test]
    fn a_layout_server_that_is_behind_says_how_far_it_is() {
        let text = |newest| Refusal::Behind { newest }.to_string();

        assert!(text(Some(Term(2))).contains("up to term 2 only"));
        assert!(text(None).contains("no layout yet"));
    }
}
