//! What to do when a server refuses or stays silent: one place for every retry.
//!
//! The choice is a pure function of the failure ([`Next::after`]); `log.rs` carries it out.

use std::time::Duration;

use milonga_host::{CallError, Clock, Moment, Random};
use milonga_wire::Refusal;

use crate::calls::Failure;
use crate::chain::ChainError;
use crate::layouts::LayoutsError;

/// Why an operation could not be carried out. What is true of the log then is said by the error that holds this.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unavailable {
    /// The deadline passed while servers were silent, restarting or changing layout. A retry may help.
    #[error("gave up after {} ms: {last}", .waited.as_millis())]
    Deadline {
        /// How long it was tried.
        waited: Duration,
        /// The last thing that went wrong.
        last: String,
    },
    /// A server refused for good: trying the same again brings the same answer.
    #[error("{server}: {refusal}")]
    Refused {
        /// Which server.
        server: String,
        /// Why.
        refusal: Refusal,
    },
    /// The two sides do not understand each other, or a certificate is not good enough. Trying again does not help.
    #[error("{why}")]
    Protocol {
        /// What is wrong.
        why: String,
    },
    /// Units of one chain hold different entries at one position.
    #[error("{why}")]
    Diverged {
        /// Where, and who.
        why: String,
    },
}

impl Unavailable {
    /// Whether the same operation may succeed later.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Deadline { .. })
    }
}

/// What a failure asks for next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Next {
    /// Try the same again after a pause; the layout may have changed meanwhile.
    Again,
    /// A server does not answer, or says that it cannot: a control client looks whether others find so too.
    Look,
    /// A newer layout is there, or must be: read it.
    Refresh,
    /// A server was restarted, or a term is half done: a control client mends it, others wait for one.
    Mend,
    /// A unit cannot tell what it held: a control client restores it from its peers, others report it.
    Restore,
    /// Nothing will change by trying again.
    GiveUp,
}

impl Next {
    pub(crate) fn after(failure: &Failure) -> Self {
        match failure {
            Failure::Call(CallError::Protocol { .. }) => Self::GiveUp,
            Failure::Call(
                CallError::NotSent { .. } | CallError::Lost { .. } | CallError::Deadline { .. },
            ) => Self::Look,
            Failure::Refused { refusal, .. } => match refusal {
                Refusal::StaleTerm { .. } | Refusal::Decided { .. } => Self::Refresh,
                Refusal::WrongIncarnation { .. }
                | Refusal::WrongServer { .. }
                | Refusal::FutureTerm { .. }
                | Refusal::NotAnnounced { .. }
                | Refusal::NotBootstrapped { .. } => Self::Mend,
                Refusal::Unknown { .. } => Self::Restore,
                Refusal::Busy { .. }
                | Refusal::Draining
                | Refusal::Unconfirmed { .. }
                | Refusal::Outranked { .. }
                | Refusal::Behind { .. }
                | Refusal::TermJump { .. }
                // A trim came first: a second look says trimmed.
                | Refusal::Trimmed { .. } => Self::Again,
                Refusal::DiskFailed { .. } => Self::Look,
                Refusal::WrongCluster { .. }
                | Refusal::WrongRole { .. }
                | Refusal::OutOfWindow { .. }
                | Refusal::BeyondEnd { .. }
                | Refusal::Unsettled { .. }
                | Refusal::DiskFull
                | Refusal::TooLarge { .. }
                | Refusal::Malformed { .. }
                | Refusal::WrongKind { .. }
                | Refusal::NotListed
                | Refusal::AlreadyInitialised
                | Refusal::InUse { .. } => Self::GiveUp,
            },
        }
    }
}

/// How long an operation goes on, and how it paces its retries.
pub(crate) struct Patience {
    clock: Clock,
    random: Random,
    began: Moment,
    limit: Duration,
    pause: Duration,
}

impl Patience {
    const FIRST_PAUSE: Duration = Duration::from_millis(2);
    const LONGEST_PAUSE: Duration = Duration::from_millis(200);

    pub(crate) fn new(clock: &Clock, random: &Random, limit: Duration) -> Self {
        Self {
            clock: clock.clone(),
            random: random.clone(),
            began: clock.now(),
            limit,
            pause: Self::FIRST_PAUSE,
        }
    }

    /// How long it has been tried.
    pub(crate) fn waited(&self) -> Duration {
        self.clock.now().since(self.began)
    }

    /// How long it may go on.
    pub(crate) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.waited())
    }

    /// Whether the deadline has passed.
    pub(crate) fn is_over(&self) -> bool {
        self.waited() >= self.limit
    }

    /// Pauses before the next try, longer each time.
    ///
    /// # Errors
    /// [`Unavailable::Deadline`] with `last` if the deadline has passed.
    pub(crate) async fn pause(&mut self, last: impl FnOnce() -> String) -> Result<(), Unavailable> {
        if self.is_over() {
            return Err(Unavailable::Deadline {
                waited: self.waited(),
                last: last(),
            });
        }
        let left = self.limit.saturating_sub(self.waited());
        self.clock
            .sleep(self.random.jittered(self.pause).min(left))
            .await;
        self.pause = (self.pause * 2).min(Self::LONGEST_PAUSE);
        Ok(())
    }
}

/// Everything that stops an operation for a moment or for good.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Server(#[from] Failure),
    #[error(transparent)]
    Layouts(#[from] LayoutsError),
    #[error("{0}")]
    Diverged(String),
    /// An operation that this one needed gave up.
    #[error(transparent)]
    GaveUp(#[from] Unavailable),
    /// A unit cannot tell what `span` held.
    #[error("{unit} cannot tell what {span} held")]
    Unknown {
        unit: String,
        span: milonga_wire::Span,
    },
}

impl From<ChainError> for Trouble {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Unit(failure) => Self::Server(failure),
            ChainError::Diverged { .. } => Self::Diverged(error.to_string()),
            ChainError::Unknown { unit, span } => Self::Unknown { unit, span },
        }
    }
}

#[cfg(test)]
mod tests {
    use milonga_wire::Term;

    use super::*;

    fn refused(refusal: Refusal) -> Failure {
        Failure::Refused {
            server: "u-1".to_owned(),
            refusal,
        }
    }

    /// H8: an old-term token is not retried for ever; the layout is read instead.
    #[test]
    fn a_stale_term_asks_for_the_newest_layout_and_a_restart_for_mending() {
        let stale = Refusal::StaleTerm {
            asked: Term(1),
            current: Term(2),
            newest: None,
        };
        assert_eq!(Next::after(&refused(stale)), Next::Refresh);
        assert_eq!(
            Next::after(&refused(Refusal::NotBootstrapped { term: Term(1) })),
            Next::Mend
        );
        assert_eq!(Next::after(&refused(Refusal::DiskFull)), Next::GiveUp);
        let lost = CallError::Lost {
            peer: "u-1".to_owned(),
            why: "reset".to_owned(),
        };
        assert_eq!(Next::after(&Failure::Call(lost)), Next::Look);
    }
}
