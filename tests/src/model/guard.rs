//! The rules of the protocol that can be taken out, one at a time, to see what they are for.
//!
//! A guard is named after the rule that it enforces. Taking it out gives the naive protocol that
//! somebody in a hurry would write; the tests show what then breaks.

/// One rule.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Guard {
    /// 3.3 A mutating request needs exactly the unit's term.
    WriteNeedsTerm,
    /// 3.3 A request of an older term gets an entry only if it was decided in that term or before.
    ReadChecksEntryTerm,
    /// 3.3 A request names the incarnation that it is meant for.
    RequestNamesIncarnation,
    /// 3.3 Unwritten is said in the unit's own term only.
    UnwrittenNeedsTerm,
    /// 3.4 A unit that may have lost an entry does not say unwritten.
    UnknownIsNotUnwritten,
    /// 3.4 Fills and completions are refused where the unit does not know.
    UnknownRefusesFills,
    /// 3.4 Unknown is resolved in a later term than the one in which it arose.
    UnknownWaitsForLaterTerm,
    /// 3.6 A restarted unit takes no part until a later term lists it.
    RestartedWaitsForListing,
    /// 3.6 A restore follows the decision of the term in which it writes.
    RestoreFollowsDecision,
    /// 3.6 A restore goes down the whole chain, head first.
    RestoreHeadFirst,
    /// 3.6 Only when every listed unit has answered is an unknown position filled.
    RestoreAsksEveryUnit,
    /// 4.4 A token is good in its own term only.
    TokenInOwnTerm,
    /// 4.4 A stale token is compared with the start that the *next* term opened.
    StartOfNextTerm,
    /// 4.4 That start, and not the one of the newest term. (Not needed for safety: starts only rise.)
    NextNotNewest,
    /// 5.4 Unwritten from a unit is no answer until the term is confirmed after it.
    AbsenceConfirmed,
    /// 6.3 Every unit that can be sealed and is listed has been sealed at the new term.
    ListedIsSealed,
    /// 6.3 The open chain has a complete unit, or all of its units answered.
    SurvivorIsComplete,
    /// 6.3 A closed chain drops a silent unit only if one that stays is complete.
    ClosedKeepsIncomplete,
    /// 6.4 The new start is above everything that a sealed unit holds.
    StartAboveHeld,
    /// 6.8 A closed range is copied from where it is settled.
    CopyFollowsSettling,
    /// 6.8 A unit is listed for a closed range only if it holds all of it.
    ListedIsWhole,
    /// 6.8 Below where it joined, a unit does not say unwritten. (Not needed for safety: nobody asks it before it is listed.)
    JoinerKnowsSince,
    /// 6.8 A unit that left comes back as a new one, empty.
    LeaverComesBackEmpty,
    /// 6.4 The new start is at or above every trim point.
    StartAboveTrim,
    /// 6.4 The new start is at or above the start before it.
    StartAbovePrevious,
    /// 6.4 The new start is at or above the sealed sequencer's counter. (Not needed for safety.)
    StartAboveCounter,
    /// 7.1 A restarted sequencer issues nothing until a new term names it.
    SequencerWaitsForTerm,
    /// 7.2 Stream tails are read from every sealed unit of the decided layout.
    BootstrapAsksEveryUnit,
    /// 7.3 `end()` is confirmed by a majority after the counter was read.
    EndConfirmed,
    /// 8.1 Where a listed unit was silent at bootstrap, backpointers say unknown.
    BackpointersSayUnknown,
}

impl Guard {
    /// Every one of them.
    pub const EACH: &[Guard] = &[
        Guard::WriteNeedsTerm,
        Guard::ReadChecksEntryTerm,
        Guard::RequestNamesIncarnation,
        Guard::UnwrittenNeedsTerm,
        Guard::UnknownIsNotUnwritten,
        Guard::UnknownRefusesFills,
        Guard::UnknownWaitsForLaterTerm,
        Guard::RestartedWaitsForListing,
        Guard::RestoreFollowsDecision,
        Guard::RestoreHeadFirst,
        Guard::RestoreAsksEveryUnit,
        Guard::TokenInOwnTerm,
        Guard::StartOfNextTerm,
        Guard::NextNotNewest,
        Guard::AbsenceConfirmed,
        Guard::ListedIsSealed,
        Guard::SurvivorIsComplete,
        Guard::ClosedKeepsIncomplete,
        Guard::StartAboveHeld,
        Guard::CopyFollowsSettling,
        Guard::ListedIsWhole,
        Guard::JoinerKnowsSince,
        Guard::LeaverComesBackEmpty,
        Guard::StartAboveTrim,
        Guard::StartAbovePrevious,
        Guard::StartAboveCounter,
        Guard::SequencerWaitsForTerm,
        Guard::BootstrapAsksEveryUnit,
        Guard::EndConfirmed,
        Guard::BackpointersSayUnknown,
    ];
}

/// The rules in force: all of them, or all but one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Guards {
    removed: Option<Guard>,
}

impl Guards {
    /// The protocol as it is meant.
    pub const ALL: Guards = Guards { removed: None };

    /// The naive protocol without `guard`.
    pub fn without(guard: Guard) -> Guards {
        Guards {
            removed: Some(guard),
        }
    }

    /// Whether `guard` is in force.
    pub fn hold(self, guard: Guard) -> bool {
        self.removed != Some(guard)
    }
}
