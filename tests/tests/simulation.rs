//! A fixed set of simulated runs, for every change; fresh seeds are run by `.ci/run`.

use tests::scenarios;
use tests::sim::{Profile, run};

/// Plays seeds `from` to `to` of a scenario.
fn hold(scenario: &str, profile: &str, from: u64, to: u64) {
    let play = scenarios::named(scenario).expect("a scenario of that name");
    for seed in from..to {
        let outcome = run(seed, profile, play, false).expect("a profile of that name");
        assert!(
            outcome.violations.is_empty(),
            "{:#?}\nreplay: SIM_TRACE=1 cargo run -p tests --bin sim -- \
             --scenario {scenario} --profile {profile} --seeds 1 --from {seed}",
            outcome.violations
        );
    }
}

/// N1, N2, N3: what everything above the network relies on holds on the simulated one.
#[test]
fn the_simulated_network_keeps_the_promises_of_the_real_one() {
    for profile in Profile::NAMES {
        hold("echo", profile, 1, 9);
    }
}

/// I1 to I10.
#[test]
fn the_log_keeps_its_invariants_while_everything_fails() {
    hold("append_read_seal_crash", "swarm", 1, 61);
}

/// H2, H43; I5: the end of a sequencer that was replaced while some clients still reach it.
#[test]
fn a_replaced_sequencer_tells_no_old_end() {
    hold("replaced_sequencer", "calm", 1, 31);
}

/// H5, H6; I5, I9: the counter is lost while appends are on their way, some of them in front of a seal.
#[test]
fn a_term_that_begins_without_a_counter_loses_and_repeats_nothing() {
    hold("restarted_sequencer", "swarm", 1, 21);
}

/// I1 to I10, one kind of trouble at a time: where everything fails at once, some failures hide behind others.
#[test]
fn the_log_keeps_its_invariants_under_each_kind_of_trouble() {
    for profile in ["calm", "network", "crash"] {
        hold("append_read_seal_crash", profile, 1, 16);
    }
}

/// I1 to I14; H4, H7, H14, H15, H27: units that die for good, their successors, and those that come back.
#[test]
fn units_that_are_lost_are_replaced_and_nothing_is_lost_with_them() {
    for profile in Profile::NAMES {
        hold("lost_unit", profile, 1, 8);
    }
}

/// H19, H20, H21; A3: one failure, twenty proposers, ten seconds, five terms.
#[test]
fn twenty_proposers_that_die_at_any_step_come_to_one_layout() {
    for profile in ["calm", "swarm"] {
        hold("duelling_proposers", profile, 1, 61);
    }
}

/// I4, O2 to O9, X1 to X4: what transactions read, did and did not do is what a replay finds.
#[test]
fn transactions_over_maps_are_what_a_replay_makes_of_them() {
    for profile in Profile::NAMES {
        hold("transactions", profile, 1, 11);
    }
}

/// H29: on one client's word nobody is left out.
#[test]
fn a_client_that_is_cut_off_alone_has_nobody_left_out() {
    hold("cut_client", "calm", 1, 13);
}

/// I9, I12: whatever is changed by hand, positions stay where they were written.
#[test]
fn changes_by_hand_move_no_position() {
    for profile in ["calm", "swarm", "crash"] {
        hold("changed_by_hand", profile, 1, 8);
    }
}
