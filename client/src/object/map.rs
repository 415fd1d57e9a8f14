//! A replicated map: ordered, from byte keys to byte values, each with the position of its last write.
//!
//! Every key is allowed, the empty one too. Reads are linearizable unless they say otherwise. All of it is in memory, in
//! every process that opened it: about 230 bytes for each key, beside the key and its value, and some 130 more for one that
//! is bound to a lease ([`lease`]). A map that is larger than memory leaves values in the log ([`Map::keep_in_log`]).

pub(crate) mod cache;
pub(in crate::object) mod in_log;
pub mod lease;
mod state;
mod transaction;
pub(crate) mod value;
mod watch;

use bytes::Bytes;
use milonga_wire::Position;

pub use super::Keys;
pub use lease::{Lease, LeaseError, LeaseState};
pub use state::{Expect, KEY_BYTES_MAX, MapState, Outcome, Page, Update, Versioned};
pub use value::{Held, Moved, Stored, Value};
pub use watch::{Change, Watch};

use super::{AtError, DecideError, Objects, OpenError, PlayError, UpdateError, View};

/// What became of a conditional write.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Cas {
    /// The expectation held when the log came to `position`: the write took place, and that is the key's version now.
    Done {
        /// Where.
        position: Position,
    },
    /// Something else stood there: nothing was changed.
    Conflict {
        /// Where it was decided.
        position: Position,
        /// What stood in the way; nothing if the key was absent. [`Map::fetch`] has the value if that stays in the log.
        found: Option<Held>,
    },
}

impl Cas {
    /// None if the update was about a lease, or wanted one that had ended.
    fn of(position: Position, outcome: Outcome) -> Option<Self> {
        match outcome {
            Outcome::Conflict { found } => Some(Self::Conflict { position, found }),
            Outcome::Put | Outcome::Deleted { .. } => Some(Self::Done { position }),
            Outcome::Lives { .. }
            | Outcome::Ended { .. }
            | Outcome::NoLease { .. }
            | Outcome::Kept => None,
        }
    }
}

/// A replicated map. Clones share one copy of it.
///
/// ```no_run
/// use milonga_client::object::{Map, Objects};
/// use milonga_client::object::map::{Cas, Expect, Keys};
///
/// # async fn use_it(log: milonga_client::Log) -> Result<(), Box<dyn std::error::Error>> {
/// let map = Map::open(&Objects::new(&log), "default").await?;
/// let version = map.put("colour", "red").await?;
/// assert_eq!(map.get(b"colour").await?.map(|found| found.version), Some(version));
///
/// match map.cas("colour", Expect::value("red"), "blue").await? {
///     Cas::Done { position } => println!("blue as of {position}"),
///     Cas::Conflict { found, .. } => println!("somebody else wrote {found:?}"),
/// }
/// for (key, found) in map.scan(&Keys::prefix("col"), 100).await?.entries {
///     println!("{key:?} is {:?}", found.value);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Map {
    view: View<MapState>,
}

impl Map {
    /// The map of that name; if there is none, a new one, which is empty.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(objects: &Objects, name: &str) -> Result<Self, OpenError> {
        Ok(Self::of(objects.open(name).await?))
    }

    /// The map of that name, if there is one: nothing is written for it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn find(objects: &Objects, name: &str) -> Result<Option<Self>, OpenError> {
        Ok(objects.find(name).await?.map(Self::of))
    }

    /// The map that this view is of: of [`Objects::host`], for one that the directory does not know.
    pub fn of(view: View<MapState>) -> Self {
        Self { view }
    }

    /// The view that it is.
    pub fn view(&self) -> &View<MapState> {
        &self.view
    }

    /// Sets `key` to `value`, and returns the position of the write: the key's version from there on.
    ///
    /// Key and value together must fit a record: 1 MiB less some bytes of header.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Position, UpdateError> {
        let (key, value) = (checked(key)?, value.into());
        self.view.append(&Update::Put { key, value }).await
    }

    /// Removes `key`, if it is there, and returns the position of the write.
    ///
    /// # Errors
    /// [`UpdateError`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Position, UpdateError> {
        let key = checked(key)?;
        self.view.append(&Update::Delete { key }).await
    }

    /// Sets `key` to `value` if `expect` holds where the write comes to lie in the log. Every replica decides that alike
    /// when it plays the write (O6); this call plays up to it and tells how.
    ///
    /// # Errors
    /// [`DecideError`]. A conflict is no error.
    pub async fn cas(
        &self,
        key: impl Into<Bytes>,
        expect: Expect,
        value: impl Into<Bytes>,
    ) -> Result<Cas, DecideError> {
        self.decide(checked(key)?, expect, Some(value.into())).await
    }

    /// Removes `key` if `expect` holds where the write comes to lie in the log, as [`Map::cas`] does.
    ///
    /// # Errors
    /// [`DecideError`]. A conflict is no error.
    pub async fn delete_if(
        &self,
        key: impl Into<Bytes>,
        expect: Expect,
    ) -> Result<Cas, DecideError> {
        self.decide(checked(key)?, expect, None).await
    }

    async fn decide(
        &self,
        key: Bytes,
        expect: Expect,
        value: Option<Bytes>,
    ) -> Result<Cas, DecideError> {
        let update = Update::Cas { key, expect, value };
        let (position, outcome) = self.view.update(&update).await?;
        Ok(Cas::of(position, outcome).expect("it names no lease"))
    }

    /// What became of the conditional write at `position`, if there is one: for a write whose position was found out by
    /// [`crate::Log::resume`]. Replays the map up to there. None, too, if nothing was changed because the key was to be bound to a
    /// lease that had ended.
    ///
    /// # Errors
    /// [`AtError`].
    pub async fn cas_at(&self, position: Position) -> Result<Option<Cas>, AtError> {
        let outcome = self.view.outcome_at(position).await?;
        Ok(outcome.and_then(|outcome| Cas::of(position, outcome)))
    }

    /// The value of `key` once everything acknowledged before this call is in the map.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn get(&self, key: &[u8]) -> Result<Option<Versioned>, PlayError> {
        let found = self.view.read(|state| state.get(key)).await?;
        match self.fetch_one(key, found).await {
            Err(PlayError::Gone(_)) => {
                let one = |state: &MapState| Page::one(key, state.get(key));
                let found = Box::pin(self.read_fetched(one)).await?;
                Ok(found.into_one())
            }
            done => done,
        }
    }

    /// What this process's copy holds under `key`, however old that is. Nothing is asked of any server.
    pub fn get_stale(&self, key: &[u8]) -> Option<Held> {
        self.view.read_stale(|state| state.get(key))
    }

    /// The value of `key` as it was once the entry at `position` had been applied. For more than one key, use [`Map::at`].
    ///
    /// # Errors
    /// [`AtError`].
    pub async fn get_at(
        &self,
        key: &[u8],
        position: Position,
    ) -> Result<Option<Versioned>, AtError> {
        let found = self.at(position).await?.get(key);
        Ok(self.fetch_one(key, found).await?)
    }

    /// The whole map as it was once the entry at `position` had been applied. Costs a read of the log up to there, and
    /// memory for a copy.
    ///
    /// # Errors
    /// [`AtError`].
    pub async fn at(&self, position: Position) -> Result<MapState, AtError> {
        self.view.at(position).await
    }

    /// The first `limit` of `keys`, in order, all as of one moment after this call began.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn scan(&self, keys: &Keys, limit: usize) -> Result<Page, PlayError> {
        self.read_fetched(|state| state.scan(keys, limit)).await
    }

    /// The first `limit` of `keys` in this process's copy, however old that is. Nothing is asked of any server.
    pub fn scan_stale(&self, keys: &Keys, limit: usize) -> Page<Held> {
        self.view.read_stale(|state| state.scan(keys, limit))
    }

    /// The changes of `keys` at and above `from`: each once, in the order of the log, none left out.
    ///
    /// Conditional writes can only be told with the state before them. If this process's copy stands below `from`, the
    /// watch starts with a copy of it, which takes a moment; else it replays the map from its start. Nothing is asked yet.
    pub fn watch(&self, keys: Keys, from: Position) -> Watch {
        Watch::new(&self.view, keys, from)
    }
}

fn checked(key: impl Into<Bytes>) -> Result<Bytes, UpdateError> {
    let key = key.into();
    if key.len() > KEY_BYTES_MAX {
        return Err(UpdateError::TooLarge {
            what: "a key",
            asked: key.len(),
            limit: KEY_BYTES_MAX,
        });
    }
    Ok(key)
}

#[cfg(test)]
mod tests;
