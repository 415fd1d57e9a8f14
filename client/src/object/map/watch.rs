//! Watching a map: its changes from a position on, each once and in order.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use milonga_wire::Position;

use super::{Held, Map, MapState, Outcome, Update, Value};
use crate::object::group::{Group, locked};
use crate::object::hosted::Hosted;
use crate::object::{
    ImageError, ImageReader, ImageWriter, Keys, Object, Part, PlayError, Seen, View,
};

/// How long a watch that has caught up waits before it looks again: from the first to the second, doubling.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// One change of one key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// The position of the write that made it.
    pub position: Position,
    /// The key.
    pub key: Bytes,
    /// Its new value; none if it was removed.
    pub value: Option<Bytes>,
}

/// Follows the changes of some keys. Writes that changed nothing (a conflict, a delete of what was not there) are none. Keys that
/// went with a lease are told one by one, in order, with the position at which it ended.
pub struct Watch {
    view: View<MapState>,
    keys: Keys,
    from: Position,
    group: Option<Group>,
    pause: Duration,
}

/// A map that notes what changes it. Played beside the map itself, it is one more object over the same history.
#[derive(Default)]
struct Watched {
    state: MapState,
    changes: VecDeque<(Position, Bytes, Option<Value>)>,
    /// Which are noted; none: nobody asked yet.
    wanted: Option<(Keys, Position)>,
}

impl Object for Watched {
    // It stands for the map, in transactions too.
    const KIND: &'static str = MapState::KIND;
    type Update = Update;
    type Outcome = ();

    fn apply(&mut self, position: Position, update: Update) {
        let key = update.key().cloned();
        let value = update.clone().into_value().map(Value::Here);
        let mut gone = vec![];
        let outcome = self.state.change(position, update, &mut gone);
        if let Some(key) = key {
            match outcome {
                Outcome::Put => self.note(position, key, value),
                Outcome::Deleted { existed: true } => self.note(position, key, None),
                Outcome::Deleted { existed: false }
                | Outcome::Conflict { .. }
                | Outcome::Lives { .. }
                | Outcome::Ended { .. }
                | Outcome::NoLease { .. }
                | Outcome::Kept => {}
            }
        }
        for key in gone {
            self.note(position, key, None);
        }
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        self.state.snapshot(to);
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        let state = MapState::restore(from)?;
        Ok(Self {
            state,
            ..Self::default()
        })
    }

    fn seen(&self, part: &Part) -> Option<Seen> {
        self.state.seen(part)
    }

    fn reset(&mut self, position: Position, to: Self) {
        let before = std::mem::take(&mut self.state);
        self.state = before.clone();
        self.state.reset(position, to.state);
        for (key, value) in before.changed_in(&self.state) {
            self.note(position, key, value);
        }
    }
}

impl Watched {
    fn note(&mut self, position: Position, key: Bytes, value: Option<Value>) {
        let Some((keys, from)) = &self.wanted else {
            return;
        };
        if position >= *from && keys.contains(&key) {
            self.changes.push_back((position, key, value));
        }
    }
}

impl Watch {
    pub(super) fn new(view: &View<MapState>, keys: Keys, from: Position) -> Self {
        Self {
            view: view.clone(),
            keys,
            from,
            group: None,
            pause: PAUSES.0,
        }
    }

    /// The next change. Waits for as long as it takes.
    ///
    /// # Errors
    /// [`PlayError`]. The watch stays where it is: after [`PlayError::Unavailable`], call again and nothing is missed. After
    /// [`PlayError::Gone`] the next call goes on behind a change whose value, which was gone back to, is not there any more.
    pub async fn next(&mut self) -> Result<Change, PlayError> {
        loop {
            if let Some(change) = self.next_ready().await? {
                self.pause = PAUSES.0;
                return Ok(change);
            }
            self.view.log().host().clock.sleep(self.pause).await;
            self.pause = (self.pause * 2).min(PAUSES.1);
        }
    }

    /// The next change; none if it has told every change that was acknowledged before this call.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub async fn next_ready(&mut self) -> Result<Option<Change>, PlayError> {
        let mut has_asked = false;
        loop {
            let (view, keys, from) = (&self.view, &self.keys, self.from);
            let group = match &mut self.group {
                Some(group) => group,
                None => self.group.insert(begin(view, keys, from).await?),
            };
            let stream = view.stream();
            let next = {
                let world = locked(&group.world);
                let cell = world.cell::<Watched>(stream);
                cell.and_then(|cell| cell.state.changes.front().cloned())
            };
            if let Some((position, key, value)) = next {
                let value = match value {
                    Some(Value::Here(value)) => Ok(Some(value)),
                    None => Ok(None),
                    // It was gone back to, by a record that holds no values.
                    Some(value @ Value::InLog(_)) => fetched(view, &key, position, value).await,
                };
                if let Some(cell) = locked(&group.world).cell_mut::<Watched>(stream) {
                    let is_told = matches!(value, Ok(_) | Err(PlayError::Gone(_)));
                    if is_told {
                        cell.state.changes.pop_front();
                    }
                }
                let value = value?;
                return Ok(Some(Change {
                    position,
                    key,
                    value,
                }));
            }
            let stopped = {
                let world = locked(&group.world);
                let cell = world.cell::<Watched>(stream);
                cell.and_then(|cell| cell.stopped().cloned())
            };
            if let Some(stopped) = stopped {
                return Err(stopped.into());
            }
            if !group.playback.has_begun() {
                if has_asked {
                    return Ok(None);
                }
                // All watches of a process share its rounds, and ask no server themselves if those brought nothing new.
                has_asked = true;
                let end = view.objects().sync_for(view.named()).await?;
                let own = locked(&group.world)
                    .cell::<Watched>(stream)
                    .and_then(|cell| cell.changed);
                if own.is_some() && own == view.applied() {
                    return Ok(None);
                }
                group.playback.begin(&end);
            }
            group.play_some().await?;
        }
    }
}

/// A value that stays in the log, where it was or where the map has it by now.
async fn fetched(
    view: &View<MapState>,
    key: &[u8],
    version: Position,
    value: Value,
) -> Result<Option<Bytes>, PlayError> {
    let map = Map::of(view.clone());
    let held = Held { value, version };
    let found = match map.fetch_one(key, Some(held)).await {
        Err(PlayError::Gone(position)) => {
            let now = map.view().read(|state| state.get(key)).await?;
            match now.filter(|now| now.version == version) {
                Some(now) => map.fetch_one(key, Some(now)).await?,
                None => return Err(PlayError::Gone(position)),
            }
        }
        found => found?,
    };
    Ok(found.map(|found| found.value))
}

/// The map before `from`: a copy of the one that is played if that stands below, else what a snapshot or the log's start has.
async fn begin(view: &View<MapState>, keys: &Keys, from: Position) -> Result<Group, PlayError> {
    let objects = view.objects();
    let (stream, wanted) = (view.stream(), Some((keys.clone(), from)));
    let watched = |state: MapState| Watched {
        state,
        ..Watched::default()
    };
    let mut group = match objects.apart_below(stream, from, watched) {
        Some(group) => group,
        None => objects.apart::<Watched>(stream, from).await?,
    };
    if let Some(cell) = locked(&group.world).cell_mut::<Watched>(stream) {
        cell.state.wanted = wanted;
    }
    group.look_again();
    Ok(group)
}
