//! Tests that need more than one part of Milonga: the simulator, the model, the invariants and the house rules.

pub mod histories;
pub mod history;
pub mod invariants;
pub mod model;
pub mod object_history;
pub mod scenarios;
pub mod sim;
