//! A view: one process's copy of an object, shared by all who use it there.

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use milonga_wire::limits::ENTRY_BYTES_MAX;
use milonga_wire::{Position, StreamId};

use super::Object;
use super::codec::{self, Named, Once};
use super::error::{AtError, DecideError, PlayError, UpdateError};
use super::hold::Hold;
use super::hosted::{Applied, Kind};
use super::objects::{Objects, named};
use super::once::ONCE_BYTES_MAX;
use super::snapshot::Snapshot;
use crate::log::Log;

/// A copy of an object that follows its stream. Clones share it. Once the last is dropped, it is not played any more.
pub struct View<O: Object> {
    hold: Arc<Hold>,
    kind: PhantomData<fn() -> O>,
}

impl<O: Object> Clone for View<O> {
    fn clone(&self) -> Self {
        Self {
            hold: Arc::clone(&self.hold),
            kind: PhantomData,
        }
    }
}

impl<O: Object> View<O> {
    pub(super) fn new(objects: &Objects, stream: StreamId) -> Self {
        let hold = Hold::new(objects, named::<O>(stream), Kind::of::<O>());
        Self {
            hold: Arc::new(hold),
            kind: PhantomData,
        }
    }

    /// The objects that it is played with.
    pub fn objects(&self) -> &Objects {
        self.hold.objects()
    }

    /// The stream that feeds it.
    pub fn stream(&self) -> StreamId {
        self.hold.object().stream
    }

    pub(crate) fn named(&self) -> &Named {
        self.hold.object()
    }

    /// The client it plays with.
    pub fn log(&self) -> &Log {
        self.objects().log()
    }

    /// Everything below this position has been played here.
    pub fn played(&self) -> Position {
        self.objects().world().played
    }

    /// The position of the last update that this copy has applied.
    pub fn applied(&self) -> Option<Position> {
        let world = self.objects().world();
        world.cell::<O>(self.stream()).and_then(|cell| cell.changed)
    }

    /// Plays up to an end that is confirmed after this call: whatever was acknowledged before it is applied then (O4).
    ///
    /// # Errors
    /// [`PlayError`]: the view stays where it is, or where the trouble begins.
    pub async fn sync(&self) -> Result<(), PlayError> {
        self.hold.sync().await
    }

    /// Reads the state as it is once everything acknowledged before this call is in it.
    ///
    /// `read` runs under the lock of all [`Objects`]: it must be short, and must neither use nor drop objects or views of them, or it
    /// waits for itself.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn read<T>(&self, read: impl FnOnce(&O) -> T) -> Result<T, PlayError> {
        self.sync().await?;
        let world = self.objects().world();
        Ok(read(&world.playable::<O>(self.named())?.state))
    }

    /// Reads the state as this copy has it now, however old: nothing is asked of any server. Before the first
    /// [`View::sync`] that is the empty state.
    pub fn read_stale<T>(&self, read: impl FnOnce(&O) -> T) -> T {
        let world = self.objects().world();
        match world.cell::<O>(self.stream()) {
            Some(cell) => read(&cell.state),
            None => read(&O::default()),
        }
    }

    /// Appends an update and returns its position, without waiting for its outcome. Nothing is played for it.
    ///
    /// # Errors
    /// [`UpdateError`]: one of the three outcomes of an append, never a guess.
    pub async fn append(&self, update: &O::Update) -> Result<Position, UpdateError> {
        self.append_record(self.record(update)?).await
    }

    /// The record of an update, for [`Log::append_batch`]: many updates of one object with one token.
    ///
    /// # Errors
    /// [`UpdateError::TooLarge`].
    pub fn record(&self, update: &O::Update) -> Result<Bytes, UpdateError> {
        let record = codec::update(update);
        record.map_err(UpdateError::too_large("an update", ENTRY_BYTES_MAX))
    }

    async fn append_record(&self, record: Bytes) -> Result<Position, UpdateError> {
        Ok(self.log().append(record, &[self.stream()]).await?)
    }

    /// Appends an update, plays up to it, and returns its position and what it brought about there (O6).
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn update(&self, update: &O::Update) -> Result<(Position, O::Outcome), DecideError> {
        let (position, applied) = Box::pin(self.decide(self.record(update)?)).await?;
        match applied {
            Applied::First(outcome) => Ok((position, outcome)),
            Applied::Repeated { .. } => unreachable!("it has no idempotency key"),
        }
    }

    /// Appends an update that takes place once however often it is appended with the same key, by this process or others, until
    /// the log has grown by `once.lives` positions. A program that crashed and does not know calls it again.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn update_once(
        &self,
        once: Once,
        update: &O::Update,
    ) -> Result<(Position, Applied<O::Outcome>), DecideError> {
        checked_once(&once)?;
        let record = codec::once(once, update);
        let record = record.map_err(UpdateError::too_large("an update", ENTRY_BYTES_MAX))?;
        Box::pin(self.decide(record)).await
    }

    /// Appends a record, and plays up to it.
    async fn decide(&self, record: Bytes) -> Result<(Position, Applied<O::Outcome>), DecideError> {
        // Who cannot play cannot tell the outcome; but the update may be made.
        if let Err(why) = self.objects().join(Some(self.named())).await {
            tracing::debug!(%why, "an update is made of an object that could not be played yet");
        }
        let waiter = Waiter::new(self);
        let position = self.append_record(record).await?;
        let undecided = |why| DecideError::Undecided { position, why };
        // Whoever led the last round may have played it already.
        let mut applied = waiter.take(position);
        if applied.is_none() {
            self.sync().await.map_err(undecided)?;
            applied = waiter.take(position);
        }
        match applied {
            Some(applied) => Ok((position, applied)),
            None => match self.applied_at(position).await {
                Ok(Some(applied)) => Ok((position, applied)),
                Ok(None) | Err(AtError::BeyondEnd { .. }) => {
                    Err(undecided(PlayError::Lost(position)))
                }
                Err(AtError::Play(why)) => Err(undecided(why)),
            },
        }
    }

    /// What the update at `position` brought about; nothing if there is none of this object there. Of a repeated one, what the
    /// first did.
    ///
    /// Replays the object up to there, as [`View::at`] does.
    ///
    /// # Errors
    /// [`AtError`].
    pub async fn outcome_at(&self, position: Position) -> Result<Option<O::Outcome>, AtError> {
        match self.applied_at(position).await? {
            None => Ok(None),
            Some(
                Applied::First(outcome)
                | Applied::Repeated {
                    outcome: Some(outcome),
                    ..
                },
            ) => Ok(Some(outcome)),
            Some(Applied::Repeated { first, .. }) => match self.applied_at(first).await? {
                Some(Applied::First(outcome)) => Ok(Some(outcome)),
                Some(Applied::Repeated { .. }) | None => Ok(None),
            },
        }
    }

    async fn applied_at(&self, position: Position) -> Result<Option<Applied<O::Outcome>>, AtError> {
        let replayed = self.objects().replayed::<O>(self.stream(), position, true);
        Ok(replayed.await?.waiting.take(position))
    }

    /// The state once everything up to and including `position` had been applied.
    ///
    /// It replays the object from its newest snapshot below, else from its start.
    ///
    /// # Errors
    /// [`AtError::BeyondEnd`] if nothing can be there yet.
    pub async fn at(&self, position: Position) -> Result<O, AtError> {
        let replayed = self.objects().replayed::<O>(self.stream(), position, false);
        Ok(replayed.await?.state)
    }

    /// Writes a snapshot of the object into the log, as of now: who opens it later starts from there, and what lies before it may
    /// be trimmed.
    ///
    /// The state is copied under the lock that readers take, which takes about a second for a gigabyte.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn snapshot(&self) -> Result<Snapshot, SnapshotError> {
        self.hold.snapshot().await
    }
}

/// Why there is no snapshot.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The object could not be played.
    #[error(transparent)]
    Play(#[from] PlayError),
    /// It could not be written; what was written of it counts for nothing.
    #[error(transparent)]
    Update(#[from] UpdateError),
}

pub(crate) fn checked_once(once: &Once) -> Result<(), UpdateError> {
    let (asked, limit) = (once.key.len(), ONCE_BYTES_MAX);
    if asked > limit {
        let what = "an idempotency key";
        return Err(UpdateError::TooLarge { what, asked, limit });
    }
    Ok(())
}

/// One who is about to append an update and wants its outcome: from now on the view keeps those of this client.
struct Waiter<'a, O: Object> {
    view: &'a View<O>,
    number: Option<u64>,
}

impl<'a, O: Object> Waiter<'a, O> {
    fn new(view: &'a View<O>) -> Self {
        let mut world = view.objects().world();
        // The update is not appended yet, so it will lie behind everything that was applied.
        let from = world.applied.map_or(Position::FIRST, Position::next);
        let cell = world.cell_mut::<O>(view.stream());
        let number = cell.map(|cell| cell.waiting.enter(from));
        drop(world);
        Self { view, number }
    }

    fn take(&self, position: Position) -> Option<Applied<O::Outcome>> {
        let mut world = self.view.objects().world();
        let cell = world.cell_mut::<O>(self.view.stream())?;
        cell.waiting.take(position)
    }
}

impl<O: Object> Drop for Waiter<'_, O> {
    fn drop(&mut self) {
        let mut world = self.view.objects().world();
        if let Some(number) = self.number
            && let Some(cell) = world.cell_mut::<O>(self.view.stream())
        {
            cell.waiting.leave(number);
        }
    }
}
