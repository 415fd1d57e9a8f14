//! Replicated objects: deterministic state machines fed by a stream of the log.
//!
//! An object's updates are records of one stream. Every client that is interested holds a [`View`]: the object's state
//! after some position, which it moves on by playing the stream. Nobody replicates state; all replay the same log.
//!
//! ```text
//! update ─▶ append to the stream ─▶ … log … ─▶ play up to the confirmed end ─▶ apply, apply ─▶ read the state
//! ```
//! `codec.rs` fixes how updates look as bytes, `playback.rs` moves one state along one stream, `view.rs` shares that
//! among everyone in the process, and [`map`] is the first object.
//!
//! - O1 [`Object::apply`] is a pure function of the state, the position and the update.
//! - O2 So every replica that has played a stream up to a position has the same state there.
//! - O3 Updates are applied in the order of their positions, each once, none left out: where something is missing, or
//!   cannot be read, playback stops with a typed error and stays where it is.
//! - O4 A linearizable read is answered from a state that was played to an end whose confirmation began after the read.
//! - O5 Playback stops at the sequencer's counter. What lies between it and an end that was told in an earlier term
//!   counts as not issued; after a change of term, playback goes on behind the last update it applied.
//! - O6 Only the log judges: whether a conditional update took place is decided when it is played, alike everywhere.
//!
//! Source: Balakrishnan et al., *Tango* (SOSP '13), "Tango Objects".

mod codec;
pub mod cursors;
pub mod map;
mod playback;
mod view;

use milonga_wire::Position;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use codec::{FORMAT_VERSION, OperationError};
pub use cursors::Cursors;
pub use map::Map;
pub use playback::PlayError;
pub use view::{AtError, DecideError, UpdateError, View};

/// A deterministic state machine. Its default is the state before the first update.
pub trait Object: Default + Send + 'static {
    /// What kind of object it is: part of the name of its stream.
    const KIND: &'static str;

    /// What changes it, as it stands in the log: usually an enum. It only grows at its end, and what it means never changes
    /// once it is in some log.
    type Update: Serialize + DeserializeOwned;

    /// What an update brought about, for whoever made it.
    type Outcome: Send + 'static;

    /// Applies the update at `position`. A pure function (O1): no clock, no randomness, nothing but its arguments.
    fn apply(&mut self, position: Position, update: Self::Update) -> Self::Outcome;
}
