//! What keeps an object played in this process, whatever its type.

use milonga_wire::Position;

use super::codec::Named;
use super::error::PlayError;
use super::group::told;
use super::hosted::{Fed, Hosted, Kind, Stopped};
use super::objects::Objects;
use super::snapshot::{self, Snapshot};
use super::view::SnapshotError;

/// One who is interested in an object. Once the last is dropped, it is not played any more.
pub(crate) struct Hold {
    objects: Objects,
    object: Named,
}

impl Hold {
    pub(crate) fn new(objects: &Objects, object: Named, kind: Kind) -> Self {
        objects.viewed(&object, kind);
        Self {
            objects: objects.clone(),
            object,
        }
    }

    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    pub(crate) fn object(&self) -> &Named {
        &self.object
    }

    /// Plays up to an end that is confirmed after this call.
    pub(crate) async fn sync(&self) -> Result<(), PlayError> {
        self.objects.sync_for(&self.object).await?;
        match self.stopped() {
            None => Ok(()),
            Some(Stopped::Trimmed(_)) => {
                self.objects.reload(Some(&self.object)).await?;
                self.stopped().map_or(Ok(()), |stopped| Err(stopped.into()))
            }
            Some(stopped @ Stopped::Operation(..)) => Err(stopped.into()),
        }
    }

    fn stopped(&self) -> Option<Stopped> {
        let world = self.objects.world();
        let object = world.object(&self.object);
        object.and_then(Hosted::stopped).cloned()
    }

    /// What it has taken since the newest snapshot that this process knows of.
    pub(crate) fn fed(&self) -> Fed {
        let world = self.objects.world();
        let object = world.object(&self.object);
        object.map_or(Fed::default(), Hosted::fed)
    }

    /// Writes a snapshot of it into the log, as of now.
    pub(crate) async fn snapshot(&self) -> Result<Snapshot, SnapshotError> {
        self.sync().await?;
        let (as_of, image, refers_to, fed, untold) = {
            let world = self.objects.world();
            let image = world.image(&self.object)?;
            let object = world.object(&self.object);
            let behind = object.map_or(Position::FIRST, |object| world.behind(object));
            let refers_to = object.and_then(Hosted::refers_to);
            let fed = object.map(Hosted::fed).unwrap_or_default();
            let untold = world.untold(self.object.stream, behind);
            (behind, image, refers_to, fed, untold)
        };
        let (log, object) = (self.objects.log(), self.object.clone());
        // R5.
        for (streams, decision) in untold {
            told(log, &streams, decision).await?;
        }
        let written = snapshot::write(log, object, as_of, false, image, refers_to).await?;
        if let Some(object) = self.objects.world().object_mut(&self.object) {
            object.is_kept(fed);
        }
        Ok(written)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.objects.not_viewed(&self.object);
    }
}
