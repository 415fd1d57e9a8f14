//! What the steps go by: the bounds, the rules in force, and where to note what happened.

use super::guard::Guards;
use super::scope::Scope;
use super::witness::Witness;

/// What the steps go by.
pub struct Rules<'a> {
    /// The bounds.
    pub scope: &'a Scope,
    /// The rules in force.
    pub guards: Guards,
    /// Where remarkable events are noted.
    pub witness: &'a Witness,
}
