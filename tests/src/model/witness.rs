//! What happened somewhere in an exploration, so that a clean one is known not to be vacuous.
//!
//! Kept beside the states and not in them: a history in every state would multiply them. It is no
//! property and never stops a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Something worth reaching.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// An append was acknowledged in a later term than the first.
    AcknowledgedInLaterTerm,
    /// A unit refused a write of an older term.
    StaleWriteRefused,
    /// A stale token was proven not appended.
    StaleTokenNotAppended,
    /// A stale token turned out to be appended.
    StaleTokenAppended,
    /// A stale token's position went to somebody else, or to junk.
    StaleTokenLost,
    /// A hole was filled at the head.
    HoleFilled,
    /// A unit below the head got a record from a completion.
    EntryCompleted,
    /// A unit got a record from a restore.
    EntryRestored,
    /// A unit got junk where it did not know, and nobody held anything.
    UnknownFilled,
    /// A restarted unit was listed by a later term.
    RestartedListed,
    /// A restarted unit was found complete again and its mark went down.
    RestartedWhole,
    /// A spare was listed.
    SpareListed,
    /// A unit was listed for a range that was closed before it joined.
    CopyListed,
    /// A range went over to those it was copied to.
    CopyAlone,
    /// One unit alone is listed for a closed range.
    OneLeft,
    /// A position was copied.
    Copied,
    /// A unit stayed listed though it was silent.
    SilentKept,
    /// A change was refused: no complete unit, and not all of the chain.
    ChangeRefused,
    /// An open segment in which nothing was written was replaced.
    SegmentReplaced,
    /// A proposer's seals came to nothing: another layout was decided.
    ProposerOutrun,
    /// A token said that the stream's earlier positions are unknown.
    BackpointersUnknown,
    /// An old write arrived after its sender had moved on.
    DuplicateArrived,
    /// A unit lost an entry that was acknowledged.
    AcknowledgedLost,
    /// A sequencer restarted while it was serving.
    SequencerRestarted,
}

const EVENTS: usize = Event::SequencerRestarted as usize + 1;

/// Counts events over a whole exploration. Clones share their counts.
#[derive(Clone, Debug, Default)]
pub struct Witness {
    counts: Arc<[AtomicU64; EVENTS]>,
}

impl Witness {
    /// Notes `event`.
    pub fn saw(&self, event: Event) {
        self.counts[event as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often `event` was noted, over all steps explored.
    pub fn count(&self, event: Event) -> u64 {
        self.counts[event as usize].load(Ordering::Relaxed)
    }
}
