//! Votes on layouts: one Paxos instance per term, among the layout servers that the layout before it names.
//!
//! Pure: no clock, no disk, no network. Every answer comes with the [`Change`] that must be durable before it is sent;
//! the shell makes it so, then applies it. An answer whose change was not made durable was never given.
//!
//! - A1 A rank once promised in a term is never undercut there: no lower one is promised or accepted.
//! - A2 What was accepted is told to every later proposer of its term, until the term is decided.
//! - A3 Only a server that the layout of term t - 1 names votes in term t, and only while t is undecided here.
//! - A4 Decided layouts are kept without a gap from term 0, each proved by the one before it, and never change.
//! - A5 A term is confirmed only while it is the newest decided here and nothing was accepted for the next.
//!
//! Source: Lamport, *Paxos Made Simple*, "Choosing a Value" and "Learning a Chosen Value".

use std::sync::Arc;

use milonga_wire::{
    ClusterId, Decided, Identity, Layout, LayoutReply, Promise, Rank, Refusal, Standing, Term,
};
use serde::{Deserialize, Serialize};

/// Bytes of the largest layout: with what stands around it in any answer it fits a frame's head.
pub const LAYOUT_BYTES_MAX: usize = 3 << 20;

/// The largest number of acceptances that a decision needs: all of five layout servers.
const ACCEPTANCES_MAX: usize = 5;
/// How far above the number promised last a rank may be.
const NUMBERS_AHEAD_MAX: u64 = 1 << 32;

/// What this acceptor promised and accepted in one undecided term.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Vote {
    /// The term.
    pub term: Term,
    /// Nothing below it is promised or accepted any more (A1).
    pub promised: Rank,
    /// The layout accepted at the highest rank so far (A2).
    pub accepted: Option<(Rank, Arc<Layout>)>,
}

/// What must be durable before an answer is sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// The vote in its term, in place of any other vote.
    Vote(Vote),
    /// One more decided layout.
    Decided(Arc<Decided>),
}

/// An answer, and what must be durable first.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// To be made durable, then given to [`Acceptor::apply`]; then the reply may be sent.
    pub durable: Option<Change>,
    /// The answer.
    pub reply: LayoutReply,
}

/// Why stored decisions are no history (A4).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the decision of term {term} does not follow the one before it: {why}")]
pub struct InvalidHistory {
    /// The first term that does not fit.
    pub term: Term,
    /// Why not.
    pub why: String,
}

/// One layout server's state.
#[derive(Clone, Debug)]
pub struct Acceptor {
    cluster: ClusterId,
    identity: Identity,
    /// By term, from 0 (A4).
    decided: Vec<Arc<Decided>>,
    /// In the term after the newest decided one; a vote in an earlier term is over.
    vote: Option<Vote>,
}

impl Acceptor {
    /// A blank one.
    pub fn new(cluster: ClusterId, identity: Identity) -> Self {
        Self {
            cluster,
            identity,
            decided: Vec::new(),
            vote: None,
        }
    }

    /// As it was before a restart.
    ///
    /// # Errors
    /// If what was stored cannot have been: then it must not vote at all.
    pub fn recover(
        cluster: ClusterId,
        identity: Identity,
        decided: Vec<Decided>,
        vote: Option<Vote>,
    ) -> Result<Self, InvalidHistory> {
        let mut acceptor = Self::new(cluster, identity);
        for next in decided {
            let term = next.layout.term;
            acceptor
                .check_next(&next)
                .map_err(|why| InvalidHistory { term, why })?;
            acceptor.decided.push(Arc::new(next));
        }
        if let Some(vote) = vote {
            if vote.term > acceptor.next_term() {
                return Err(InvalidHistory {
                    term: vote.term,
                    why: "there is a vote in its term, and no decision before it".to_owned(),
                });
            }
            acceptor.apply(Change::Vote(vote));
        }
        Ok(acceptor)
    }

    /// Takes over what has become durable.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Vote(vote) => {
                debug_assert!(
                    self.vote().is_none_or(|own| own.promised <= vote.promised),
                    "A1"
                );
                self.vote = Some(vote);
            }
            Change::Decided(decided) => {
                debug_assert_eq!(decided.layout.term, self.next_term(), "A4");
                self.decided.push(decided);
            }
        }
    }

    /// Promises nothing below `rank` in `term`, and tells what was accepted there. Idempotent.
    ///
    /// # Errors
    /// [`Refusal::Decided`], [`Refusal::Behind`] or [`Refusal::NotListed`] if it has no vote in `term`;
    /// [`Refusal::Outranked`] if it promised more.
    pub fn prepare(&self, term: Term, rank: Rank) -> Result<Step, Refusal> {
        self.check_vote(term)?;
        let vote = self.vote();
        check_rank(vote, rank)?;
        let accepted = vote.and_then(|vote| vote.accepted.clone());
        let reply = LayoutReply::Promised(Promise {
            rank,
            accepted: accepted
                .clone()
                .map(|(rank, layout)| (rank, Box::new(Layout::clone(&layout)))),
        });
        let next = Vote {
            term,
            promised: rank,
            accepted,
        };
        Ok(self.voting(next, reply))
    }

    /// Accepts `layout` in `term` unless a higher rank was promised. Idempotent.
    ///
    /// # Errors
    /// As [`Acceptor::prepare`]; [`Refusal::Malformed`] if the layout cannot be that term's, or if the same rank
    /// proposed another layout before: a rank belongs to one proposer, which proposes one thing.
    pub fn propose(&self, term: Term, rank: Rank, layout: Layout) -> Result<Step, Refusal> {
        self.check_layout(term, &layout)?;
        self.check_vote(term)?;
        let vote = self.vote();
        check_rank(vote, rank)?;
        if let Some((at, other)) = vote.and_then(|vote| vote.accepted.as_ref())
            && *at == rank
            && **other != layout
        {
            return Err(Refusal::malformed(format!(
                "rank {rank} proposed another layout for term {term} before"
            )));
        }
        let next = Vote {
            term,
            promised: rank,
            accepted: Some((rank, Arc::new(layout))),
        };
        Ok(self.voting(next, LayoutReply::Accepted { rank }))
    }

    /// Takes note of a decided layout. Needs no vote: a server that leaves learns, and so does one that is to come, from
    /// term 0 on. Idempotent.
    ///
    /// # Errors
    /// [`Refusal::Behind`] if it lacks the layout before; [`Refusal::Malformed`] if the decision is not proved by that,
    /// or contradicts one it knows: then two layouts of one term were called decided, and a human must look.
    pub fn learn(&self, decided: Decided) -> Result<Step, Refusal> {
        let term = decided.layout.term;
        if let Some(known) = self.decided_in(term) {
            if known.layout != decided.layout {
                return Err(Refusal::malformed(format!(
                    "term {term} was decided otherwise: {} here, {} there",
                    known.layout.origin.change, decided.layout.origin.change
                )));
            }
            return Ok(Step {
                durable: None,
                reply: self.learned(),
            });
        }
        if term > self.next_term() {
            return Err(Refusal::Behind {
                newest: self.newest().map(|newest| newest.layout.term),
            });
        }
        self.check_next(&decided).map_err(Refusal::malformed)?;
        Ok(Step {
            durable: Some(Change::Decided(Arc::new(decided))),
            reply: LayoutReply::Learned { newest: term },
        })
    }

    /// Makes `layout` the one of term 0. Idempotent for the same content.
    ///
    /// # Errors
    /// [`Refusal::AlreadyInitialised`] if there is another one; [`Refusal::NotListed`] if it does not name this server;
    /// [`Refusal::Malformed`] if it cannot be a first layout.
    pub fn genesis(&self, layout: Layout) -> Result<Step, Refusal> {
        if let Some(first) = self.decided.first() {
            if first.layout != layout {
                return Err(Refusal::AlreadyInitialised);
            }
            return Ok(Step {
                durable: None,
                reply: LayoutReply::Initialised,
            });
        }
        self.check_layout(Term::GENESIS, &layout)?;
        if !lists(&layout, self.identity) {
            return Err(Refusal::NotListed);
        }
        let decided = Decided {
            layout,
            acceptances: Vec::new(),
        };
        Ok(Step {
            durable: Some(Change::Decided(Arc::new(decided))),
            reply: LayoutReply::Initialised,
        })
    }

    /// Says that nothing was accepted in a term after `term` (A5).
    ///
    /// # Errors
    /// [`Refusal::Decided`] if a later term is decided; [`Refusal::StaleTerm`] if a layout of a later term was accepted,
    /// decided or not; [`Refusal::Behind`] or [`Refusal::NotListed`] if it has no say in that.
    pub fn confirm(&self, term: Term) -> Result<LayoutReply, Refusal> {
        let next = term.next();
        self.check_vote(next)?;
        match self.vote() {
            Some(vote) if vote.accepted.is_some() => Err(Refusal::StaleTerm {
                asked: term,
                current: next,
                newest: self.newest().map(boxed),
            }),
            Some(_) | None => Ok(LayoutReply::Confirmed { term }),
        }
    }

    /// The newest decided layout, and how far the term after it has got here.
    pub fn standing(&self) -> LayoutReply {
        let vote = self.vote();
        LayoutReply::Newest {
            decided: self.newest().map(boxed),
            standing: Standing {
                promised: vote.map(|vote| vote.promised),
                accepted: vote.and_then(|vote| vote.accepted.as_ref().map(|(rank, _)| *rank)),
            },
        }
    }

    /// The decided layout of `term`.
    pub fn at(&self, term: Term) -> LayoutReply {
        LayoutReply::At {
            decided: self.decided_in(term).map(boxed),
        }
    }

    /// The newest decided layout; none on a blank server.
    pub fn newest(&self) -> Option<&Arc<Decided>> {
        self.decided.last()
    }

    /// Whether the newest decided layout names this server.
    pub fn is_listed(&self) -> bool {
        self.newest()
            .is_some_and(|newest| lists(&newest.layout, self.identity))
    }

    /// The vote in the term after the newest decided one.
    fn vote(&self) -> Option<&Vote> {
        self.vote
            .as_ref()
            .filter(|vote| vote.term == self.next_term())
    }

    fn next_term(&self) -> Term {
        Term(self.decided.len() as u64)
    }

    fn decided_in(&self, term: Term) -> Option<&Arc<Decided>> {
        self.decided.get(usize::try_from(term.0).ok()?)
    }

    /// A3.
    fn check_vote(&self, term: Term) -> Result<(), Refusal> {
        let Some(newest) = self.newest() else {
            return Err(Refusal::NotListed);
        };
        if term <= newest.layout.term {
            return Err(Refusal::Decided {
                newest: boxed(newest),
            });
        }
        if term > self.next_term() {
            return Err(Refusal::Behind {
                newest: Some(newest.layout.term),
            });
        }
        if self.is_listed() {
            Ok(())
        } else {
            Err(Refusal::NotListed)
        }
    }

    /// What any layout of `term` must be.
    fn check_layout(&self, term: Term, layout: &Layout) -> Result<(), Refusal> {
        if layout.cluster != self.cluster {
            return Err(Refusal::WrongCluster {
                asked: layout.cluster,
                here: self.cluster,
            });
        }
        if layout.term != term {
            return Err(Refusal::malformed(format!(
                "a layout of term {} for term {term}",
                layout.term
            )));
        }
        layout
            .validate()
            .map_err(|invalid| Refusal::malformed(invalid.to_string()))?;
        let bytes = postcard::to_stdvec(layout).map_or(usize::MAX, |bytes| bytes.len());
        if bytes > LAYOUT_BYTES_MAX {
            let limit = LAYOUT_BYTES_MAX as u32;
            return Err(Refusal::too_large("bytes in a layout", bytes, limit));
        }
        Ok(())
    }

    /// A4: whether `decided` may stand at the end of the history.
    fn check_next(&self, decided: &Decided) -> Result<(), String> {
        let term = self.next_term();
        self.check_layout(term, &decided.layout)
            .map_err(|refusal| refusal.to_string())?;
        if decided.acceptances.len() > ACCEPTANCES_MAX {
            return Err(format!(
                "{} acceptances; at most {ACCEPTANCES_MAX} servers can have accepted it",
                decided.acceptances.len()
            ));
        }
        match self.newest() {
            Some(previous) => decided
                .check(&previous.layout)
                .map_err(|invalid| invalid.to_string()),
            None => Ok(()), // Term 0 is nobody's vote: `cluster init` decides it.
        }
    }

    /// `next` in place of the present vote, if it differs.
    fn voting(&self, next: Vote, reply: LayoutReply) -> Step {
        let durable = (self.vote() != Some(&next)).then_some(Change::Vote(next));
        Step { durable, reply }
    }

    fn learned(&self) -> LayoutReply {
        LayoutReply::Learned {
            newest: self.newest().map_or(Term::GENESIS, |d| d.layout.term),
        }
    }
}

/// A1. A number far above all that were promised would leave no room for anybody else (3.9).
fn check_rank(vote: Option<&Vote>, rank: Rank) -> Result<(), Refusal> {
    let promised = vote.map_or(0, |vote| vote.promised.number);
    if rank.number > promised.saturating_add(NUMBERS_AHEAD_MAX) {
        let why = format!("the number {} of a rank, after {promised}", rank.number);
        return Err(Refusal::malformed(why));
    }
    match vote {
        Some(vote) if rank < vote.promised => Err(Refusal::Outranked {
            promised: vote.promised,
        }),
        Some(_) | None => Ok(()),
    }
}

fn lists(layout: &Layout, identity: Identity) -> bool {
    layout
        .layout_servers
        .iter()
        .any(|server| server.identity == identity)
}

fn boxed(decided: &Arc<Decided>) -> Box<Decided> {
    Box::new(Decided::clone(decided))
}

#[cfg(test)]
#[path = "acceptor_tests.rs"]
pub(crate) mod tests;

#[cfg(test)]
#[path = "agreement_tests.rs"]
mod agreement;
