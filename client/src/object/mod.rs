//! Replicated objects: deterministic state machines fed by a stream of the log.
//!
//! An object's updates are records of one stream. Every client that is interested holds a [`View`]: the object's state
//! after some position, which it moves on by playing the stream. Nobody replicates state; all replay the same log.
//!
//! ```text
//! update ─▶ append to the stream ─▶ … log … ─▶ play up to the confirmed end ─▶ apply, apply ─▶ read the state
//! ```
//! `codec.rs` fixes how records look as bytes, `world.rs` decides what they do to the objects that a process hosts,
//! `playback.rs` and `group.rs` bring them what the log holds, and [`Objects`] shares all that among everyone in the process.
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
pub mod counter;
pub mod cursors;
pub mod directory;
mod error;
#[cfg(test)]
mod given_tests;
mod group;
mod hold;
mod hosted;
mod image;
pub mod keeping;
mod keys;
pub mod lock;
pub mod map;
mod objects;
mod once;
mod part;
mod playback;
pub mod queue;
pub mod register;
mod renewing;
#[cfg(test)]
mod replicas_tests;
mod roll_back;
#[cfg(test)]
mod second_index_tests;
pub mod set;
mod snapshot;
mod transact;
mod transaction;
mod view;
mod waiting;
mod world;

use milonga_wire::Position;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use codec::{Conflict, FORMAT_VERSION, Named, Once, OperationError};
pub use counter::Counter;
pub use cursors::Cursors;
pub use error::{AtError, DecideError, OpenError, PlayError, UpdateError};
pub use hosted::Applied;
pub use image::{ImageError, ImageReader, ImageWriter};
pub use keeping::Keeping;
pub use keys::Keys;
pub use lock::Lock;
pub use map::Map;
pub use objects::Objects;
pub use once::{ONCE_BYTES_MAX, ONCE_LIVES};
pub use part::{Part, Seen};
pub use queue::Queue;
pub use register::Register;
pub use roll_back::RollBackError;
pub use set::Set;
pub use snapshot::Snapshot;
pub use transact::{Abort, Committed, Transact, TransactError};
pub use transaction::{Isolation, Transaction, Writes};
pub use view::{SnapshotError, View};

/// A deterministic state machine. Its default is the state before the first update.
///
/// ```
/// use milonga_client::Position;
/// use milonga_client::object::{ImageError, ImageReader, ImageWriter, Object, Objects};
///
/// /// Adds up.
/// #[derive(Default)]
/// struct Sum(u64);
///
/// impl Object for Sum {
///     const KIND: &'static str = "sum";
///     type Update = u32;
///     type Outcome = u64;
///
///     fn apply(&mut self, _: Position, update: u32) -> u64 {
///         self.0 += u64::from(update);
///         self.0
///     }
///
///     fn snapshot(&self, to: &mut ImageWriter) {
///         to.write(&self.0);
///     }
///
///     fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
///         Ok(Self(from.read()?.unwrap_or_default()))
///     }
/// }
///
/// # async fn use_it(log: milonga_client::Log) -> Result<(), Box<dyn std::error::Error>> {
/// let objects = Objects::new(&log);
/// let sum = objects.open::<Sum>("visitors").await?;
/// let (position, total) = sum.update(&3).await?;
/// println!("{total} as of position {position}, {} now", sum.read(|sum| sum.0).await?);
/// # Ok(())
/// # }
/// ```
pub trait Object: Default + Send + 'static {
    /// What kind of object it is, in the directory and in transactions: no two types that are used on one log have the same.
    const KIND: &'static str;

    /// What changes it, as it stands in the log: usually an enum. It only grows at its end, and what it means never changes
    /// once it is in some log.
    type Update: Serialize + DeserializeOwned;

    /// What an update brought about, for whoever made it; remembered with an idempotency key.
    type Outcome: Serialize + DeserializeOwned + Send + 'static;

    /// Applies the update at `position`. A pure function (O1): no clock, no randomness, nothing but its arguments.
    fn apply(&mut self, position: Position, update: Self::Update) -> Self::Outcome;

    /// Writes the state as items, in an order that depends on nothing but the state.
    fn snapshot(&self, to: &mut ImageWriter);

    /// The state that [`Object::snapshot`] wrote. Played on from there, it is what a replay from the start gives.
    ///
    /// # Errors
    /// [`ImageError`] if the items are not what was expected.
    fn restore(from: &mut ImageReader) -> Result<Self, ImageError>;

    /// The lowest position of the log that the state refers to, if it does: what lies there and above is kept as long as this state is
    /// the one to start from. What a later update refers to must not lie below its own position.
    fn refers_to(&self) -> Option<Position> {
        None
    }

    /// What an update changes, or depends on. Only for objects that are made of keys: transactions then conflict per key.
    fn part(_update: &Self::Update) -> Part {
        Part::Whole
    }

    /// How a part stands; none if the object is not made of keys.
    fn seen(&self, _part: &Part) -> Option<Seen> {
        None
    }

    /// Takes over the state `to`, in which the object was before, by the record at `position`. An object that keeps positions of
    /// its keys gives those that change this one, since versions must never come back ([`Seen`]).
    fn reset(&mut self, _position: Position, to: Self) {
        *self = to;
    }
}
