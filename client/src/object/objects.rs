//! The objects that a process hosts: one playback, shared by all who read them.
//!
//! Reads that wait at the same time share one round: one question for the end, one playback. A reader that comes while
//! a round runs takes part in the next, since its own end must be confirmed after it came (O4, H43).
//!
//! An object that is opened later catches up by itself, from its newest snapshot on, while the others go on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use milonga_wire::{Position, Role, StreamId};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Object;
use super::codec::Named;
use super::counter::CounterState;
use super::cursors::CursorsState;
use super::directory::DirectoryState;
use super::error::{AtError, PlayError};
use super::group::{Group, Kinds, locked};
use super::hosted::{Cell, Hosted, Kind};
use super::image::ImageWriter;
use super::keeping::KeepingState;
use super::lock::LockState;
use super::map::cache::Cache;
use super::map::lease::{self, Kept};
use super::map::{MapState, in_log};
use super::queue::QueueState;
use super::register::RegisterState;
use super::roll_back::RollBackError;
use super::set::SetState;
use super::view::View;
use super::world::World;
use crate::log::{End, Log};

/// The replicated objects of one process. Clones share them.
///
/// All that are open are played together, so that a transaction sees them all as of one position.
#[derive(Clone)]
pub struct Objects {
    shared: Arc<Shared>,
}

/// The same, without keeping them alive.
pub(super) struct WeakObjects(Weak<Shared>);

impl WeakObjects {
    pub(super) fn upgrade(&self) -> Option<Objects> {
        let shared = self.0.upgrade()?;
        Some(Objects { shared })
    }
}

struct Shared {
    log: Log,
    kinds: Kinds,
    world: Arc<Mutex<World>>,
    /// Held by whoever leads a round.
    group: tokio::sync::Mutex<Group>,
    rounds: Mutex<Rounds>,
    /// Held while some catch up.
    joining: tokio::sync::Mutex<()>,
    /// To be taken before `world`, by whoever needs both.
    views: Mutex<Views>,
    /// Values that stay in the log. Taken alone.
    cache: Mutex<Cache>,
}

/// Who is interested in what. An object that nobody has a view of is not played any more.
#[derive(Default)]
struct Views {
    count: BTreeMap<Named, usize>,
    /// Of those, the ones that have not caught up: all others are in the world.
    behind: BTreeMap<Named, Kind>,
    kept: BTreeSet<Named>,
    /// The maps whose leases are watched over here, for as long as they have views.
    keepers: BTreeMap<Named, DropGuard>,
}

/// Which rounds have been.
#[derive(Default)]
struct Rounds {
    began: u64,
    /// The last round that came to its end, and what came of it.
    ended: u64,
    result: Option<Result<End, PlayError>>,
}

impl Objects {
    /// None yet. Nothing is asked before the first read.
    pub fn new(log: &Log) -> Self {
        let known = [
            Kind::of::<MapState>(),
            Kind::of::<CursorsState>(),
            Kind::of::<DirectoryState>(),
            Kind::of::<CounterState>(),
            Kind::of::<RegisterState>(),
            Kind::of::<SetState>(),
            Kind::of::<QueueState>(),
            Kind::of::<LockState>(),
            Kind::of::<KeepingState>(),
        ];
        let kinds = known.into_iter().map(|kind| (kind.name, kind)).collect();
        let kinds = Arc::new(Mutex::new(kinds));
        let group = Group::new(log, &kinds, Some(log.session()));
        let shared = Shared {
            log: log.clone(),
            kinds,
            world: Arc::clone(&group.world),
            group: tokio::sync::Mutex::new(group),
            rounds: Mutex::default(),
            joining: tokio::sync::Mutex::default(),
            views: Mutex::default(),
            cache: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The client they play with.
    pub fn log(&self) -> &Log {
        &self.shared.log
    }

    /// From now on at most so many bytes of values that stay in the log are held in memory, of all maps together
    /// ([`super::Map::keep_in_log`]); 64 MiB unless this is called. A transaction reads no more of them than that.
    pub fn hold(&self, bytes: u64) {
        self.cache().limit(bytes);
    }

    pub(crate) fn cache(&self) -> MutexGuard<'_, Cache> {
        locked(&self.shared.cache)
    }

    /// Hosts the object of type `O` that `stream` feeds, whatever its name. Opening it again gives the same one. Objects of
    /// several types may be fed by one stream, if they have the same updates: a second index over one history. Transactions over the
    /// first are decided by it, so its kind must be known here, and it is played along.
    ///
    /// What has no name ([`Objects::open`]) keeps nothing from being trimmed: see [`super::Keeping`].
    pub fn host<O: Object>(&self, stream: StreamId) -> View<O> {
        locked(&self.shared.kinds).insert(O::KIND, Kind::of::<O>());
        View::new(self, stream)
    }

    /// Plays `object`, of which there is a view, for as long as there are objects.
    pub(super) fn keep(&self, object: &Named) {
        let mut views = locked(&self.shared.views);
        if views.kept.insert(object.clone()) {
            *views.count.entry(object.clone()).or_default() += 1;
        }
    }

    /// Plays all that is open up to an end that is confirmed after this call: whatever was acknowledged before it is applied then
    /// (O4).
    ///
    /// # Errors
    /// [`PlayError`]: everything stays where it is, or where the trouble begins. An object that was stopped by what its own
    /// stream holds is no error here; whoever reads it is told.
    pub async fn sync(&self) -> Result<End, PlayError> {
        self.join(None).await?;
        Box::pin(self.round()).await
    }

    /// The same for one object and all that have caught up.
    pub(crate) async fn sync_for(&self, object: &Named) -> Result<End, PlayError> {
        self.join(Some(object)).await?;
        Box::pin(self.round()).await
    }

    async fn round(&self) -> Result<End, PlayError> {
        let shared = &self.shared;
        // The first round that begins from here on.
        let mine = locked(&shared.rounds).began + 1;
        let mut group = shared.group.lock().await;
        {
            let mut rounds = locked(&shared.rounds);
            if rounds.ended >= mine
                && let Some(result) = &rounds.result
            {
                return result.clone();
            }
            rounds.began += 1;
        }
        let result = self.play(&mut group).await;
        self.attend();
        let mut rounds = locked(&shared.rounds);
        rounds.ended = rounds.began;
        rounds.result = Some(result.clone());
        result
    }

    /// From now on somebody watches over the leases of the maps that have some.
    fn attend(&self) {
        if !self.log().may(Role::Writer) {
            return;
        }
        let leased: Vec<Named> = {
            let world = self.world();
            let maps = world.cells::<MapState>();
            let leased = maps.filter(|(_, map)| map.stopped().is_none() && map.state.has_leases());
            leased
                .map(|(stream, _)| named::<MapState>(stream))
                .collect()
        };
        for map in leased {
            let mut views = locked(&self.shared.views);
            if !views.count.contains_key(&map) || views.keepers.contains_key(&map) {
                continue;
            }
            let unneeded = CancellationToken::new();
            let guard = unneeded.clone().drop_guard();
            views.keepers.insert(map.clone(), guard);
            let keeping = lease::keep(self, map);
            self.log().host().tasks.spawn(async move {
                unneeded.run_until_cancelled(keeping).await;
            });
        }
    }

    /// The leases of a map, for who watches over them; if there are none, nobody does any more.
    pub(super) fn leases_of(&self, map: &Named) -> Option<Vec<Kept>> {
        let mut views = locked(&self.shared.views);
        let leases: Vec<Kept> = {
            let world = self.world();
            let playable = world.playable::<MapState>(map).ok();
            let leases = playable.into_iter().flat_map(|map| map.state.leases());
            leases
                .map(|(lease, found)| Kept {
                    lease,
                    renewed: found.renewed(),
                    ttl: found.ttl(),
                })
                .collect()
        };
        if leases.is_empty() {
            views.keepers.remove(map);
            return None;
        }
        Some(leases)
    }

    /// The confirmed end, and everything up to it.
    async fn play(&self, group: &mut Group) -> Result<End, PlayError> {
        group.look_again();
        let end = self.shared.log.end_of(&group.asked()).await?;
        group.play(&end).await?;
        self.world().played = end.counter;
        Ok(end)
    }

    /// Lets those objects catch up that were opened, the one named or all, and that have not yet. They are played from their
    /// newest snapshots on, all together, while those that have caught up go on.
    pub(crate) async fn join(&self, which: Option<&Named>) -> Result<(), PlayError> {
        if self.behind(which).is_empty() {
            return Ok(());
        }
        Box::pin(self.join_now(which)).await
    }

    async fn join_now(&self, which: Option<&Named>) -> Result<(), PlayError> {
        let shared = &self.shared;
        let _alone = shared.joining.lock().await;
        let behind = self.behind(which);
        if behind.is_empty() {
            return Ok(());
        }
        let mut newcomers = Group::new(&shared.log, &shared.kinds, Some(shared.log.session()));
        for (object, kind) in &behind {
            newcomers
                .host_restored(object.stream, *kind, Position(u64::MAX))
                .await?;
        }
        let end = shared.log.end_of(&newcomers.asked()).await?;
        newcomers.play(&end).await?;
        // All come to one place: what is left for the newcomers is what came meanwhile.
        let mut group = shared.group.lock().await;
        let end = self.play(&mut group).await?;
        newcomers.play(&end).await?;
        let mut views = locked(&shared.views);
        group.absorb(newcomers);
        for object in behind.keys() {
            views.behind.remove(object);
            if !views.count.contains_key(object) {
                self.world().remove(object);
            }
        }
        Ok(())
    }

    /// What has views and has not caught up: this one, or all.
    fn behind(&self, which: Option<&Named>) -> BTreeMap<Named, Kind> {
        let views = locked(&self.shared.views);
        match which {
            Some(object) => {
                let found = views.behind.get_key_value(object);
                found
                    .map(|(named, kind)| (named.clone(), *kind))
                    .into_iter()
                    .collect()
            }
            None => views.behind.clone(),
        }
    }

    /// Lets those catch up anew, from snapshots, that stopped because what they missed was trimmed: this one, or all. False if
    /// there are none.
    pub(crate) async fn reload(&self, which: Option<&Named>) -> Result<bool, PlayError> {
        let is_any = {
            let mut views = locked(&self.shared.views);
            let (world, kinds) = (self.world(), locked(&self.shared.kinds));
            let asked = |object: &&Named| which.is_none_or(|which| which == *object);
            let all = views.count.keys().filter(asked);
            let trimmed = all.filter(|object| world.is_trimmed(object));
            let trimmed: Vec<_> = trimmed
                .filter_map(|object| Some((object.clone(), *kinds.get(object.kind.as_str())?)))
                .collect();
            let is_any = !trimmed.is_empty();
            views.behind.extend(trimmed);
            is_any
        };
        self.join(which).await?;
        Ok(is_any)
    }

    /// A group apart that hosts what `made` makes of a copy of an object, if all that is in it lies below `position`.
    pub(crate) fn apart_below<O: Object + Clone, P: Object>(
        &self,
        stream: StreamId,
        position: Position,
        made: impl FnOnce(O) -> P,
    ) -> Option<Group> {
        let copy = {
            let world = self.world();
            let cell = world.cell::<O>(stream)?;
            if cell.stopped().is_some() || cell.changed? >= position {
                return None;
            }
            let behind = world.behind(cell);
            cell.copied(made(cell.state.clone()), behind.min(position))
        };
        let mut group = Group::new(&self.shared.log, &self.shared.kinds, None);
        group.host(stream, Box::new(copy));
        Some(group)
    }

    /// A group apart that hosts an object as its newest snapshot that holds nothing at or above `limit` has it.
    pub(crate) async fn apart<O: Object>(
        &self,
        stream: StreamId,
        limit: Position,
    ) -> Result<Group, PlayError> {
        let mut group = Group::new(&self.shared.log, &self.shared.kinds, None);
        group.host_restored(stream, Kind::of::<O>(), limit).await?;
        Ok(group)
    }

    /// Replays an object up to and including `position`; outcomes at `noted` are kept.
    pub(crate) async fn replayed<O: Object>(
        &self,
        stream: StreamId,
        position: Position,
        noted: bool,
    ) -> Result<Cell<O>, AtError> {
        let end = self.end_above(position).await?;
        let limit = if noted { position } else { position.next() };
        let mut group = self.apart::<O>(stream, limit).await?;
        if noted && let Some(cell) = locked(&group.world).cell_mut::<O>(stream) {
            cell.waiting.enter(position);
        }
        group.play_to(position.next(), end.term).await?;
        let mut world = locked(&group.world);
        let cell = world.take::<O>(stream).unwrap_or_default();
        match cell.stopped() {
            Some(stopped) => Err(PlayError::from(stopped.clone()).into()),
            None => Ok(*cell),
        }
    }

    /// Snapshots of several objects as they were once everything up to and including `position` had been applied, with what they refer
    /// to: copies of what they referred to then.
    pub(crate) async fn images_at(
        &self,
        objects: &[(Named, Kind)],
        position: Position,
    ) -> Result<Vec<(ImageWriter, Option<Position>)>, RollBackError> {
        let end = self.end_above(position).await?;
        let mut group = Group::new(&self.shared.log, &self.shared.kinds, None);
        for (object, kind) in objects {
            group
                .host_restored(object.stream, *kind, position.next())
                .await?;
        }
        group.play_to(position.next(), end.term).await?;
        for (object, _) in objects {
            if object.kind == MapState::KIND {
                in_log::take_along(self.log(), &group, object.stream).await?;
            }
        }
        let world = locked(&group.world);
        let images = objects.iter().map(|(object, _)| {
            let refers_to = world.object(object).and_then(Hosted::refers_to);
            Ok((world.image(object)?, refers_to))
        });
        Ok(images.collect::<Result<_, PlayError>>()?)
    }

    async fn end_above(&self, position: Position) -> Result<End, AtError> {
        let end = self.shared.log.end().await.map_err(PlayError::from)?;
        if position < end.counter {
            return Ok(end);
        }
        Err(AtError::BeyondEnd {
            asked: position,
            end: end.counter,
        })
    }

    pub(crate) fn kind(&self, name: &str) -> Option<Kind> {
        locked(&self.shared.kinds).get(name).copied()
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        locked(&self.shared.world)
    }

    /// There is one more view of `object`.
    pub(super) fn viewed(&self, object: &Named, kind: Kind) {
        let mut views = locked(&self.shared.views);
        let count = views.count.entry(object.clone()).or_default();
        *count += 1;
        if *count == 1 {
            views.behind.insert(object.clone(), kind);
        }
    }

    /// There is one less.
    pub(super) fn not_viewed(&self, object: &Named) {
        let mut views = locked(&self.shared.views);
        if let Some(count) = views.count.get_mut(object) {
            *count -= 1;
            if *count == 0 {
                views.count.remove(object);
                views.behind.remove(object);
                views.keepers.remove(object);
                self.world().remove(object);
            }
        }
    }

    pub(super) fn downgrade(&self) -> WeakObjects {
        WeakObjects(Arc::downgrade(&self.shared))
    }
}

pub(crate) fn named<O: Object>(stream: StreamId) -> Named {
    Named {
        stream,
        kind: O::KIND.to_owned(),
    }
}
