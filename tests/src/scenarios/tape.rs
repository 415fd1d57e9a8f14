//! A map that remembers all its changes: a second index over the history of a map. Who applies an update twice, or leaves one out,
//! has another tape for ever, where a map forgets it with the next write.

use bytes::Bytes;
use milonga_client::object::map::{MapState, Outcome, Update};
use milonga_client::object::{ImageError, ImageReader, ImageWriter, Object};
use milonga_wire::Position;

use super::maps::change_of;
use crate::object_history::Change;

/// Its state.
#[derive(Default)]
pub struct Tape {
    map: MapState,
    /// Where, which key, and its new value; none: it was removed.
    changes: Vec<(Position, Bytes, Option<Bytes>)>,
}

impl Tape {
    /// All changes of the map of that number.
    pub fn told(&self, map: u64) -> Vec<Change> {
        let changes = self.changes.iter();
        changes
            .map(|(position, key, value)| change_of(map, *position, key, value.as_ref()))
            .collect()
    }
}

impl Object for Tape {
    const KIND: &'static str = "tape";
    type Update = Update;
    type Outcome = ();

    fn apply(&mut self, position: Position, update: Update) {
        let (key, value) = (update.key().cloned(), update.clone().into_value());
        let value = match self.map.apply(position, update) {
            Outcome::Put => value,
            Outcome::Deleted { existed: true } => None,
            Outcome::Deleted { existed: false } | Outcome::Conflict { .. } | Outcome::Kept => {
                return;
            }
            Outcome::Lives { .. } | Outcome::Ended { .. } | Outcome::NoLease { .. } => {
                unreachable!("nobody uses leases here")
            }
        };
        let key = key.expect("it was put or deleted");
        self.changes.push((position, key, value));
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        to.write(&self.changes);
        self.map.snapshot(to);
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        let changes = from.read()?.unwrap_or_default();
        let map = MapState::restore(from)?;
        Ok(Self { map, changes })
    }
}
