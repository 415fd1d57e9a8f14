//! Takes objects back to what they were, by a new record: what lies between stays in the log.
//!
//! ```text
//!  … as they were at P … what came since … parts, manifests (what they were) … back to those …
//! ```
//! A snapshot of each as of the position asked for goes into the log first. Then one record takes all of them back at once; who
//! plays it needs those snapshots, which are kept for as long as somebody may (R3), and by a pin until they can be found.

use std::time::Duration;

use milonga_host::Moment;
use milonga_wire::Position;

use super::codec::{Conflict, Named, Verdict};
use super::error::{AtError, DecideError, OpenError, PlayError, UpdateError};
use super::hold::Hold;
use super::hosted::Kind;
use super::snapshot;
use super::transact::Undone;
use super::transaction::Writes;
use super::{Keeping, Objects};

/// For how long what was written is kept by a process that may have died.
const PINNED: Duration = Duration::from_secs(3_600);

/// Why objects were not taken back.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RollBackError {
    /// No name was given.
    #[error("no object was named; name at least one")]
    Nothing,
    /// No object has that name.
    #[error("no object is called `{0}`; see `milonga object list`")]
    NotFound(String),
    /// This program does not know what it is.
    #[error("`{name}` is a {kind}, which this program does not know; use the one that writes it")]
    UnknownKind {
        /// The object's name.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The directory could not be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What they were could not be found out. Nothing was done.
    #[error(transparent)]
    At(#[from] AtError),
    /// It could not be appended; see there whether it may have been.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// It is in the log at `position`; whether it took place could not be played here.
    #[error("what became of it at position {position} is not known ({why})")]
    Undecided {
        /// Where it is.
        position: Position,
        /// Why it could not be played.
        why: PlayError,
    },
    /// Definite: it came too long after what it goes back to was written. Nothing was done; try again.
    #[error("it took too long, or the log grew too fast meanwhile; nothing was done; try again")]
    Late,
}

impl From<PlayError> for RollBackError {
    fn from(error: PlayError) -> Self {
        Self::At(error.into())
    }
}

impl From<DecideError> for RollBackError {
    fn from(error: DecideError) -> Self {
        match error {
            DecideError::Update(error) => error.into(),
            DecideError::Undecided { why, .. } => why.into(),
        }
    }
}

impl From<Undone> for RollBackError {
    fn from(undone: Undone) -> Self {
        match undone {
            Undone::Play(error) => error.into(),
            Undone::Update(error) => Self::Update(error),
            Undone::Undecided(position, why) => Self::Undecided { position, why },
        }
    }
}

impl Objects {
    /// Takes the objects of these names back to what they were once everything up to and including `to` had been applied: all of
    /// them at once, by a new record whose position is returned. What was written since stays in the log, and can be gone back to
    /// in the same way. Positions of keys do not go back: what changes by it was written by it.
    ///
    /// A second index over the stream of one of them ([`Objects::host`]) cannot follow and stops there, with a typed error: its own
    /// state of then is in no snapshot.
    ///
    /// # Errors
    /// [`RollBackError`].
    pub async fn roll_back(
        &self,
        names: &[impl AsRef<str>],
        to: Position,
    ) -> Result<Position, RollBackError> {
        if names.is_empty() {
            return Err(RollBackError::Nothing);
        }
        let mut all: Vec<(Named, Kind)> = vec![];
        for name in names.iter().map(AsRef::as_ref) {
            let not_found = || RollBackError::NotFound(name.to_owned());
            let listed = self.listed_now(name).await?.ok_or_else(not_found)?;
            let (stream, kind) = (listed.stream, listed.kind);
            let known = self.kind(&kind).ok_or_else(|| RollBackError::UnknownKind {
                name: name.to_owned(),
                kind: kind.clone(),
            })?;
            all.push((Named { stream, kind }, known));
        }
        // Whoever trims without knowing of this pin goes no further than where the log ended then, which is below all that follows.
        let end = self.log().end().await.map_err(PlayError::from)?.counter;
        let keeping = Keeping::open(self);
        let began = self.log().host().clock.now();
        let pin = keeping.pin(end, PINNED).await?;
        let result = Box::pin(self.roll_all_back(&all, to, began)).await;
        if let Err(error) = keeping.unpin(pin).await {
            tracing::debug!(%error, "a pin is left to end by itself");
        }
        result
    }

    async fn roll_all_back(
        &self,
        all: &[(Named, Kind)],
        to: Position,
        began: Moment,
    ) -> Result<Position, RollBackError> {
        let images = self.images_at(all, to).await?;
        let hold = |(object, kind): &(Named, Kind)| Hold::new(self, object.clone(), *kind);
        let holds: Vec<Hold> = all.iter().map(hold).collect();
        let mut writes = Writes::new();
        for (hold, (image, refers_to)) in holds.iter().zip(images) {
            let object = hold.object().clone();
            let (log, as_of) = (self.log(), to.next());
            let written = snapshot::write(log, object, as_of, true, image, refers_to).await?;
            writes.reset(hold.object(), written.manifest);
        }
        // After that somebody may have ended the pin before the snapshots could be found.
        if self.log().host().clock.now().since(began) > PINNED / 2 {
            return Err(RollBackError::Late);
        }
        let committed = Box::pin(self.transaction().commit(writes)).await;
        let (position, verdict) = committed?;
        match verdict {
            Verdict::Committed => Ok(position),
            Verdict::Conflict(Conflict::Late) => Err(RollBackError::Late),
            Verdict::Conflict(Conflict::Changed { .. } | Conflict::Repeated { .. }) => {
                unreachable!("it checks nothing")
            }
        }
    }
}

#[cfg(test)]
mod tests;
