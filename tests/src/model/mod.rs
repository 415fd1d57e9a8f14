//! The protocol of the log as a model that a checker explores: every order of steps, within bounds.
//!
//! It covers tokens, writes down a chain, completions, fills, seals, restarted units, the change of
//! the layout by proposers that race, the bootstrap of the sequencer, stale tokens and restores, spares that join, are
//! copied to and listed, and units that come back.
//!
//! It is not the code: it shares no type with the services, and what it says of them is only as good
//! as the likeness. It leaves out Paxos (a layout is decided in one step), more than one chain,
//! runs of several records, leases, and the network's bytes.
//!
//! - With every guard in force no property of [`property`] fails, in any scope.
//! - Without any one of the guards that a test names, some property fails within a few steps.
//!
//! Source: CORFU (NSDI '12); van Renesse and Schneider, *Chain Replication* (OSDI '04).

pub mod action;
mod append;
mod change;
pub mod client;
mod copying;
pub mod entry;
mod fault;
pub mod guard;
pub mod layout;
pub mod property;
pub mod rules;
pub mod scope;
pub mod sequencer;
mod settling;
pub mod state;
pub mod unit;
pub mod witness;

use stateright::{Model, Property};

use action::Action;
use guard::Guards;
use rules::Rules;
use scope::Scope;
use state::State;
use witness::Witness;

/// The model: a scope, the rules in force, and what was met on the way.
#[derive(Clone, Debug)]
pub struct Milonga {
    /// How much of the world.
    pub scope: Scope,
    /// Which rules.
    pub guards: Guards,
    /// What happened somewhere.
    pub witness: Witness,
}

impl Milonga {
    /// The protocol with `guards`, within `scope`.
    pub fn new(scope: Scope, guards: Guards) -> Milonga {
        Milonga {
            scope,
            guards,
            witness: Witness::default(),
        }
    }

    fn rules(&self) -> Rules<'_> {
        Rules {
            scope: &self.scope,
            guards: self.guards,
            witness: &self.witness,
        }
    }
}

impl Model for Milonga {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::first(&self.scope)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        state.actions(&self.rules(), actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut next = last.clone();
        next.step(&self.rules(), action)?;
        next.observe(self.guards);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Milonga>> {
        property::all()
    }
}
