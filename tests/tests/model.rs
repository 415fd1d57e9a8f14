//! The protocol model: clean with every rule in force, and broken without any one of them.
//!
//! Each broken variant runs in the smallest scope that shows it, and every such scope is explored
//! to its end with the rules in force. The rules' numbers are those of the design's rules.
//!
//! Source: CORFU (NSDI '12); Tango (SOSP '13); van Renesse and Schneider (OSDI '04).

#![expect(
    clippy::print_stdout,
    reason = "state counts and shortest runs, for --nocapture"
)]

use stateright::{Checker, HasDiscoveries, Model, Path};
use tests::model::Milonga;
use tests::model::action::Action;
use tests::model::guard::{Guard, Guards};
use tests::model::property::{
    ABSENCE, ACKNOWLEDGED_STAYS, AGREEMENT, END_ABOVE, EXPECTED, ONE_ENTRY, ONE_VALUE,
};
use tests::model::scope::Scope;
use tests::model::witness::Event;

/// Explores `scope` to its end and wants nothing wrong, and all of `events` met on the way.
fn clean(guards: Guards, scope: Scope, events: &[Event]) {
    let model = Milonga::new(scope, guards);
    let witness = model.witness.clone();
    let checker = model
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();

    let broken = checker.discoveries().into_iter().next();
    if let Some((property, path)) = broken {
        panic!("{property}: {:?}", path.into_actions());
    }
    for &event in events {
        assert!(witness.count(event) > 0, "never met: {event:?}");
    }
    println!(
        "{} states, at most {} deep",
        checker.unique_state_count(),
        checker.max_depth()
    );
}

/// Wants `property` broken without `guard`, and the shortest run that breaks it to take `steps`.
fn caught(guard: Guard, scope: &Scope, property: &'static str, steps: usize) {
    let mut run = broken(guard, scope, property, None);
    while let Some(shorter) = broken(guard, scope, property, run.as_ref().map(Vec::len)) {
        run = Some(shorter);
    }
    let Some(run) = run else {
        panic!("without {guard:?} nothing breaks {property}");
    };
    println!("without {guard:?}, {property}: {} steps", run.len());
    for action in &run {
        println!("  {action:?}");
    }
    assert_eq!(run.len(), steps, "{run:?}");
}

/// A run that breaks `property` without `guard`, with fewer than `below` steps.
fn broken(
    guard: Guard,
    scope: &Scope,
    property: &'static str,
    below: Option<usize>,
) -> Option<Vec<Action>> {
    let checker = Milonga::new(scope.clone(), Guards::without(guard))
        .checker()
        .finish_when(HasDiscoveries::AnyOf([property].into()));
    // The checker counts states, not steps, and leaves out the depth that it is given.
    let checker = match below {
        Some(steps) => checker.target_max_depth(steps + 1),
        None => checker,
    };
    let found = checker.spawn_bfs().join();
    found.discovery(property).map(Path::into_actions)
}

// With every rule in force.

/// 4.4, 6.2 to 6.4, 7.2, 7.3: a term change under an append.
#[test]
fn a_term_change_under_an_append_is_clean() {
    let events = [
        Event::AcknowledgedInLaterTerm,
        Event::StaleWriteRefused,
        Event::StaleTokenNotAppended,
        Event::StaleTokenAppended,
        Event::StaleTokenLost,
        Event::HoleFilled,
        Event::EntryCompleted,
        Event::SegmentReplaced,
        Event::DuplicateArrived,
    ];
    clean(Guards::ALL, Scope::term_change(), &events);
}

/// 6.2: each proposer computes its layout from its own seals; one is decided.
#[test]
fn proposers_of_one_term_can_race() {
    let events = [Event::ProposerOutrun, Event::StaleTokenAppended];
    clean(Guards::ALL, Scope::race(), &events);
}

/// 6.4, 6.8: the chain of the open segment changes until none of its first units is left.
#[test]
fn an_evicted_chain_takes_its_entries_along() {
    clean(Guards::ALL, Scope::eviction(), &[Event::SpareListed]);
}

/// 6.8: what was copied may be all that is left, and whoever left does not count.
#[test]
fn a_spare_that_was_copied_to_can_stand_alone() {
    let events = [
        Event::SpareListed,
        Event::Copied,
        Event::CopyListed,
        Event::CopyAlone,
        Event::OneLeft,
    ];
    clean(Guards::ALL, Scope::healing(), &events);
    clean(Guards::ALL, Scope::leaver(), &[]);
}

/// 3.4, 3.6, 6.3: a disk that lied.
#[test]
fn what_a_unit_forgot_is_restored_or_filled() {
    let events = [
        Event::AcknowledgedLost,
        Event::RestartedListed,
        Event::EntryRestored,
        Event::UnknownFilled,
        Event::ChangeRefused,
    ];
    clean(Guards::ALL, Scope::forgetful_unit(), &events);
}

/// 6.3, 8.1: what nobody complete holds stays listed, and backpointers say so.
#[test]
fn a_silent_unit_stays_listed_until_another_is_complete() {
    let events = [
        Event::SilentKept,
        Event::BackpointersUnknown,
        Event::RestartedWhole,
    ];
    clean(Guards::ALL, Scope::forgetful_for_two_terms(), &events);
    clean(Guards::ALL, Scope::forgetful_with_two_writers(), &events);
}

/// 3.6: head first, down the whole chain.
#[test]
fn a_restore_goes_down_a_chain_of_three() {
    let events = [Event::EntryRestored, Event::UnknownFilled];
    clean(Guards::ALL, Scope::restart_of_three(), &events);
}

/// 6.3: a restart that lost nothing, and is believed, costs one term and no restore.
#[test]
fn honest_disks_need_no_restore() {
    let scope = Scope::honest_disks();
    clean(Guards::ALL, scope, &[Event::RestartedListed]);
}

/// 7.1: the restarted sequencer issues nothing.
#[test]
fn a_restarted_sequencer_waits_for_a_term() {
    let scope = Scope::restarted_sequencer();
    clean(Guards::ALL, scope, &[Event::SequencerRestarted]);
}

/// 7.2: the stream's positions survive a unit that forgot them.
#[test]
fn a_bootstrap_finds_what_one_unit_forgot() {
    let scope = Scope::forgetful_index();
    clean(Guards::ALL, scope, &[Event::AcknowledgedLost]);
}

/// 3.9, 6.4: what was trimmed counts for the start.
#[test]
fn trimmed_positions_are_not_issued_again() {
    clean(Guards::ALL, Scope::trims(), &[Event::StaleWriteRefused]);
}

/// Wider than the smallest: several restarts, a spare, racing proposers, all together.
#[test]
#[ignore = "takes minutes and gigabytes; run it with --release"]
fn wider_scopes_are_clean() {
    for scope in Scope::wider() {
        clean(Guards::ALL, scope, &[]);
    }
}

// Without one rule.

/// 3.3; H31: a write of an older term lands behind the counter of the new one.
#[test]
fn without_3_3_terms_an_old_write_is_acknowledged_above_the_end() {
    caught(Guard::WriteNeedsTerm, &Scope::term_change(), END_ABOVE, 6);
}

/// 3.3: the old tail is the new head; what it holds is not on the whole chain.
#[test]
fn without_3_3_entry_terms_an_old_reader_sees_what_the_new_chain_loses() {
    caught(
        Guard::ReadChecksEntryTerm,
        &Scope::eviction(),
        ONE_VALUE,
        15,
    );
}

/// 3.3: an announcement meant for the process before makes a member of one that forgot.
#[test]
fn without_3_3_incarnations_a_restarted_unit_is_taken_for_the_old_one() {
    let scope = &Scope::forgetful_unit();
    caught(Guard::RequestNamesIncarnation, scope, ABSENCE, 5);
}

/// 3.3: sealed for a term that is not announced, the tail no longer knows what it may have lost.
#[test]
fn without_3_3_own_terms_a_sealed_tail_denies_what_it_forgot() {
    let (guard, scope) = (Guard::UnwrittenNeedsTerm, &Scope::forgetful_for_two_terms());
    caught(guard, scope, ABSENCE, 8);
}

/// 3.4; H16: the restarted head calls unwritten what it forgot, and takes junk for it.
#[test]
fn without_3_4_unknown_is_reported_as_unwritten_and_filled() {
    let scope = &Scope::forgetful_unit();
    caught(Guard::UnknownIsNotUnwritten, scope, ACKNOWLEDGED_STAYS, 10);
}

/// 3.4: the unit says unknown, and takes a fill all the same.
#[test]
fn without_3_4_refusals_a_fill_overwrites_what_is_unknown() {
    let scope = &Scope::forgetful_unit();
    caught(Guard::UnknownRefusesFills, scope, ACKNOWLEDGED_STAYS, 10);
}

/// 3.4: the writer of the lost entry is still on its way down the chain.
#[test]
fn without_3_4_patience_unknown_is_filled_under_a_writer() {
    let (guard, scope) = (Guard::UnknownWaitsForLaterTerm, &Scope::forgetful_unit());
    caught(guard, scope, ACKNOWLEDGED_STAYS, 9);
}

/// 3.6; H22: a process that forgot goes on as if it had not restarted.
#[test]
fn without_3_6_a_restarted_unit_takes_junk_for_what_it_forgot() {
    let (guard, scope) = (Guard::RestartedWaitsForListing, &Scope::forgetful_unit());
    caught(guard, scope, ACKNOWLEDGED_STAYS, 6);
}

/// 3.6; H37: the restore arrives in a term that another proposer decided without it.
#[test]
fn without_3_6_decisions_a_restore_brings_back_what_was_appended_again() {
    caught(Guard::RestoreFollowsDecision, &Scope::race(), ONE_ENTRY, 13);
}

/// 3.6; H38: read at the tail, then lost with the unit that it was restored from.
#[test]
fn without_3_6_order_a_restored_entry_is_read_and_replaced() {
    let (guard, scope) = (Guard::RestoreHeadFirst, &Scope::restart_of_three());
    caught(guard, scope, ACKNOWLEDGED_STAYS, 16);
}

/// 3.6; H35: what the head forgot a unit behind it still holds.
#[test]
fn without_3_6_questions_junk_replaces_what_another_unit_holds() {
    let (guard, scope) = (Guard::RestoreAsksEveryUnit, &Scope::forgetful_unit());
    caught(guard, scope, ACKNOWLEDGED_STAYS, 11);
}

/// 4.4; H8: an old token used under the new layout.
#[test]
fn without_4_4_a_kept_token_is_acknowledged_above_the_end() {
    caught(Guard::TokenInOwnTerm, &Scope::term_change(), END_ABOVE, 7);
}

/// 4.4; H41: the start that the token's own term opened proves nothing.
#[test]
fn without_4_4_starts_an_append_is_done_twice() {
    caught(Guard::StartOfNextTerm, &Scope::term_change(), ONE_ENTRY, 9);
}

/// 5.4; H40: the tail that was left out unsealed.
#[test]
fn without_5_4_an_old_tail_denies_an_acknowledged_entry() {
    caught(Guard::AbsenceConfirmed, &Scope::term_change(), ABSENCE, 7);
}

/// 6.3; H4: an old write lands on a listed unit after the start was computed without it.
#[test]
fn without_6_3_seals_an_append_is_done_twice() {
    caught(Guard::ListedIsSealed, &Scope::race(), ONE_ENTRY, 16);
}

/// 6.3; H36: the unit that forgot is the only one asked.
#[test]
fn without_6_3_completeness_a_restarted_unit_survives_alone() {
    let (guard, scope) = (Guard::SurvivorIsComplete, &Scope::forgetful_unit());
    caught(guard, scope, END_ABOVE, 7);
}

/// 6.3; H35: the last holder of a closed range is dropped for a unit that does not know.
#[test]
fn without_6_3_patience_the_last_holder_is_dropped() {
    let (guard, scope) = (
        Guard::ClosedKeepsIncomplete,
        &Scope::forgetful_for_two_terms(),
    );
    caught(guard, scope, ACKNOWLEDGED_STAYS, 14);
}

/// 6.4: the highest position held.
#[test]
fn without_6_4_entries_the_log_starts_again_below_them() {
    caught(Guard::StartAboveHeld, &Scope::term_change(), END_ABOVE, 6);
}

/// 6.4: the trim point.
#[test]
fn without_6_4_trims_the_log_starts_again_below_them() {
    caught(Guard::StartAboveTrim, &Scope::trims(), END_ABOVE, 7);
}

/// 6.4: the start before; the spare of an unwritten segment holds nothing.
#[test]
fn without_6_4_starts_an_unwritten_segment_takes_the_log_back() {
    caught(Guard::StartAbovePrevious, &Scope::eviction(), END_ABOVE, 9);
}

/// 6.8; H15: copied before it was settled, a half-written entry is taken for a hole.
#[test]
fn without_6_8_settling_a_copy_holds_junk_for_an_entry() {
    caught(Guard::CopyFollowsSettling, &Scope::healing(), AGREEMENT, 13);
}

/// 6.8; H15: listed before it holds the range, it denies what was acknowledged there.
#[test]
fn without_6_8_wholeness_a_spare_denies_an_acknowledged_entry() {
    caught(Guard::ListedIsWhole, &Scope::healing(), ABSENCE, 9);
}

/// 6.8; H7, H14: an unacknowledged entry comes back with its unit, at a position that was issued again.
#[test]
fn without_6_8_emptiness_a_unit_that_left_brings_back_what_was_issued_again() {
    let scope = &Scope::leaver();
    caught(Guard::LeaverComesBackEmpty, scope, AGREEMENT, 13);
}

/// 3.3; H31: the unit that was evicted still takes the old write; its successors do not.
#[test]
fn without_3_3_terms_an_evicted_units_late_write_goes_on_down_the_new_chain() {
    caught(Guard::WriteNeedsTerm, &Scope::healing(), END_ABOVE, 6);
}

/// 7.1; H6: bootstrapped again within its term, it misses a token still in flight.
#[test]
fn without_7_1_backpointers_miss_a_token_in_flight() {
    let (guard, scope) = (Guard::SequencerWaitsForTerm, &Scope::restarted_sequencer());
    caught(guard, scope, EXPECTED, 11);
}

/// 7.2; H4: the tails of the one unit that had not got the entry yet.
#[test]
fn without_7_2_backpointers_miss_what_only_the_head_held() {
    let (guard, scope) = (Guard::BootstrapAsksEveryUnit, &Scope::forgetful_index());
    caught(guard, scope, EXPECTED, 14);
}

/// 7.3; H2: the sequencer that nobody sealed.
#[test]
fn without_7_3_an_old_sequencer_answers_an_old_end() {
    caught(Guard::EndConfirmed, &Scope::term_change(), END_ABOVE, 7);
}

/// 8.1; H39: the unit that holds the stream's entry was silent at bootstrap.
#[test]
fn without_8_1_silence_is_taken_for_the_start_of_a_stream() {
    let scope = &Scope::forgetful_with_two_writers();
    caught(Guard::BackpointersSayUnknown, scope, EXPECTED, 14);
}

// Rules that other rules cover: nothing breaks without them.

/// 4.4, 6.4: kept for what they cost and say, not for safety.
#[test]
fn rules_that_others_cover_are_not_needed_for_safety() {
    for guard in [Guard::NextNotNewest, Guard::StartAboveCounter] {
        clean(Guards::without(guard), Scope::race(), &[]);
        clean(Guards::without(guard), Scope::eviction(), &[]);
        clean(
            Guards::without(guard),
            Scope::forgetful_for_two_terms(),
            &[],
        );
    }
    clean(
        Guards::without(Guard::JoinerKnowsSince),
        Scope::healing(),
        &[],
    );
}
