//! What a simulated run plays.

pub mod append_read_seal_crash;
pub mod audit;
pub mod changed_by_hand;
pub mod cluster;
pub mod cut_client;
pub mod duelling_proposers;
pub mod echo;
pub mod inspection;
pub mod keeper;
pub mod lost_unit;
pub mod map_client;
pub mod maps;
pub mod records;
pub mod replaced_sequencer;
pub mod restarted_sequencer;
pub mod tape;
pub mod transactions;
pub mod workload;

use crate::sim::Scenario;

/// Every scenario by its name.
pub const ALL: [(&str, Scenario); 9] = [
    ("echo", echo::play),
    ("append_read_seal_crash", append_read_seal_crash::play),
    ("replaced_sequencer", replaced_sequencer::play),
    ("restarted_sequencer", restarted_sequencer::play),
    ("lost_unit", lost_unit::play),
    ("duelling_proposers", duelling_proposers::play),
    ("cut_client", cut_client::play),
    ("changed_by_hand", changed_by_hand::play),
    ("transactions", transactions::play),
];

/// The scenario of that name.
pub fn named(name: &str) -> Option<Scenario> {
    ALL.iter()
        .find(|(other, _)| *other == name)
        .map(|(_, scenario)| *scenario)
}

/// The names of all scenarios.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|(name, _)| *name).collect()
}
