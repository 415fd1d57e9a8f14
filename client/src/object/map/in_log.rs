//! Values that stay in the log, between a map and the log: they are fetched when they are read, and brought forward before what
//! lies around them is trimmed (Z2, Z3).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use milonga_wire::limits::ENTRY_BYTES_MAX;
use milonga_wire::{Position, StreamId};

use super::value::{Digest, Moved, Stored};
use super::{Held, Map, MapState, Page, Update, Value, Versioned};
use crate::entry::Kind;
use crate::log::Log;
use crate::object::codec;
use crate::object::error::{DecideError, PlayError, UpdateError};
use crate::object::group::{Group, locked};
use crate::object::hosted::Cell;
use crate::object::keeping::KeepError;
use crate::object::objects::Objects;
use crate::object::roll_back::RollBackError;

/// Bytes of values that are fetched, or brought forward, at once.
const AT_ONCE_BYTES: u64 = 4 << 20;
/// Values that are fetched, or brought forward, at once.
const AT_ONCE: usize = 1_000;

/// Bytes of keys whose values are brought forward at once: one update names them.
const KEYS_BYTES: usize = 64 << 10;
/// Bytes of two positions beside a key, about.
const PLACES_BYTES: usize = 24;

/// A value that is wanted.
pub(crate) type Wanted = (Bytes, Stored);

/// Fetches values by their places. Each is held by `objects` as far as there is room.
///
/// # Errors
/// [`PlayError::Gone`] if one is not there: the map refers to another place by now, or what it refers to was trimmed by force.
pub(crate) async fn fetch(
    objects: &Objects,
    wanted: &[Wanted],
) -> Result<BTreeMap<Digest, Bytes>, PlayError> {
    let mut found = BTreeMap::new();
    let mut missing = vec![];
    {
        let mut cache = objects.cache();
        for (key, stored) in wanted {
            match cache.get(&stored.digest) {
                Some(value) => drop(found.insert(stored.digest, value)),
                None => missing.push((key.clone(), *stored)),
            }
        }
    }
    for some in batches(missing) {
        let values = fetch_some(objects.log(), &some).await?;
        let mut cache = objects.cache();
        for ((_, stored), value) in some.iter().zip(values) {
            cache.put(stored.digest, value.clone());
            found.insert(stored.digest, value);
        }
    }
    Ok(found)
}

impl<T> Page<T> {
    /// What one key holds.
    pub(super) fn one(key: &[u8], held: Option<T>) -> Self {
        let entry = |held| (Bytes::copy_from_slice(key), held);
        Self {
            entries: held.map(entry).into_iter().collect(),
            more: false,
        }
    }

    pub(super) fn into_one(mut self) -> Option<T> {
        self.entries.pop().map(|(_, held)| held)
    }
}

/// What is not too much at once, in order.
fn batches(all: Vec<Wanted>) -> Vec<Vec<Wanted>> {
    let mut batches: Vec<Vec<Wanted>> = vec![];
    let mut bytes = 0;
    for wanted in all {
        let size = u64::from(wanted.1.bytes);
        match batches.last_mut() {
            Some(last) if bytes + size <= AT_ONCE_BYTES && last.len() < AT_ONCE => {
                bytes += size;
                last.push(wanted);
            }
            Some(_) | None => {
                bytes = size;
                batches.push(vec![wanted]);
            }
        }
    }
    batches
}

async fn fetch_some(log: &Log, wanted: &[Wanted]) -> Result<Vec<Bytes>, PlayError> {
    let places: BTreeSet<Position> = wanted.iter().map(|(_, stored)| stored.at).collect();
    let places: Vec<Position> = places.into_iter().collect();
    let entries = log.read_each(&places).await?;
    let entries: BTreeMap<Position, _> = entries
        .into_iter()
        .map(|entry| (entry.position, entry.kind))
        .collect();
    let found = |(key, stored): &Wanted| {
        let position = stored.at;
        let gone = PlayError::Gone(position);
        match entries.get(&position) {
            Some(Kind::Data { payload, .. }) => stored.find_in(payload, key).ok_or(gone),
            Some(Kind::Unknown | Kind::Unwritten) => Err(PlayError::Lost(position)),
            Some(Kind::Junk { .. } | Kind::Trimmed) | None => Err(gone),
        }
    };
    wanted.iter().map(found).collect()
}

impl Map {
    /// From now on values of at least so many bytes stay in the log, for everybody who opens the map, and are fetched when they are
    /// read; with none, all are in memory. What was put before stays where it is.
    ///
    /// A map keeps some 200 bytes for each such value, beside its key. The process holds those that it used last, up to
    /// [`Objects::hold`].
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn keep_in_log(&self, from_bytes: Option<u64>) -> Result<Position, DecideError> {
        let update = Update::KeepInLog { from_bytes };
        let (position, _) = self.view().update(&update).await?;
        Ok(position)
    }

    /// The same with all values: those that stay in the log are fetched. Of a state that is as of some position ([`Map::at`]), they may
    /// have gone since.
    ///
    /// # Errors
    /// [`PlayError::Gone`] for one that is not there any more, or what keeps the log from being read.
    pub async fn fetch(&self, held: Page<Held>) -> Result<Page, PlayError> {
        let wanted: Vec<Wanted> = held
            .entries
            .iter()
            .filter_map(|(key, held)| Some((key.clone(), *held.value.stored()?)))
            .collect();
        let found = if wanted.is_empty() {
            BTreeMap::new()
        } else {
            Box::pin(fetch(self.view().objects(), &wanted)).await?
        };
        let entries = held.entries.into_iter().map(|(key, held)| {
            let value = match held.value {
                Value::Here(value) => value,
                Value::InLog(stored) => found[&stored.digest].clone(),
            };
            let version = held.version;
            (key, Versioned { value, version })
        });
        Ok(Page {
            entries: entries.collect(),
            more: held.more,
        })
    }

    /// The same for what one key holds.
    pub(super) async fn fetch_one(
        &self,
        key: &[u8],
        held: Option<Held>,
    ) -> Result<Option<Versioned>, PlayError> {
        match held {
            Some(held) if held.value.stored().is_some() => {
                Ok(self.fetch(Page::one(key, Some(held))).await?.into_one())
            }
            held => Ok(held.and_then(Held::here)),
        }
    }

    /// What `read` finds once everything acknowledged before this call is in the map, with its values.
    pub(super) async fn read_fetched(
        &self,
        read: impl Fn(&MapState) -> Page<Held>,
    ) -> Result<Page, PlayError> {
        let mut gone = None;
        loop {
            let held = self.view().read(&read).await?;
            match self.fetch(held).await {
                // It was brought forward while it was looked for.
                Err(PlayError::Gone(position)) if gone != Some(position) => gone = Some(position),
                done => return done,
            }
        }
    }
}

/// Copies what the map refers to below `to` to the end of the log, a part at a time. Afterwards only its history up to here refers to
/// what lies there.
pub(in crate::object) async fn bring_forward(
    objects: &Objects,
    stream: StreamId,
    to: Position,
) -> Result<(), KeepError> {
    let map = Map::of(objects.host(stream));
    let mut after: Option<Bytes> = None;
    loop {
        let some = map
            .view()
            .read_stale(|state| some_below(state, to, after.as_ref()));
        let Some((last, _)) = some.last() else {
            return Ok(());
        };
        after = Some(last.clone());
        let values = match copy(objects.log(), &some).await {
            Err(CopyError::Play(PlayError::Gone(_))) => copy_each(objects.log(), &some).await?,
            copied => copied?,
        };
        map.view().update(&Update::Moved { values }).await?;
    }
}

fn some_below(state: &MapState, to: Position, after: Option<&Bytes>) -> Vec<Wanted> {
    let all = state.stored_below(to, after).take(AT_ONCE);
    let (mut values, mut keys) = (0, 0);
    all.take_while(|(key, stored)| {
        let is_first = keys == 0;
        values += u64::from(stored.bytes);
        keys += key.len() + PLACES_BYTES;
        is_first || values <= AT_ONCE_BYTES && keys <= KEYS_BYTES
    })
    .collect()
}

/// Why values could not be copied.
pub(in crate::object) enum CopyError {
    Play(PlayError),
    Update(UpdateError),
}

impl From<CopyError> for KeepError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Play(error) => error.into(),
            CopyError::Update(error) => DecideError::from(error).into(),
        }
    }
}

impl From<CopyError> for RollBackError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Play(error) => error.into(),
            CopyError::Update(error) => error.into(),
        }
    }
}

/// Appends copies of values, as records of no stream.
async fn copy(log: &Log, wanted: &[Wanted]) -> Result<Vec<Moved>, CopyError> {
    let values = fetch_some(log, wanted).await.map_err(CopyError::Play)?;
    let too_large = UpdateError::too_large("a value", ENTRY_BYTES_MAX);
    let records = values.iter().map(|value| codec::value(value));
    let records: Result<Vec<Bytes>, _> = records.collect();
    let records = records.map_err(|error| CopyError::Update(too_large(error)))?;
    let appended = log.append_batch(&records, &[]).await;
    let appended = appended.map_err(|error| CopyError::Update(error.into()))?;
    let moved = wanted.iter().zip(appended.positions);
    let moved = moved.map(|((key, stored), to)| Moved {
        key: key.clone(),
        from: stored.at,
        to: Some(to),
    });
    Ok(moved.collect())
}

/// The same one by one, and those that are gone are told to be: they were trimmed by force, or are elsewhere by now, where that does
/// not touch them.
async fn copy_each(log: &Log, wanted: &[Wanted]) -> Result<Vec<Moved>, CopyError> {
    let mut all = vec![];
    for one in wanted.chunks(1) {
        match copy(log, one).await {
            Err(CopyError::Play(PlayError::Gone(position))) => {
                tracing::info!(%position, "a value is gone");
                all.extend(one.iter().map(|(key, stored)| Moved {
                    key: key.clone(),
                    from: stored.at,
                    to: None,
                }));
            }
            copied => all.extend(copied?),
        }
    }
    Ok(all)
}

/// Has a map of the past refer to new copies of its values: what it referred to need not be there for long any more.
pub(in crate::object) async fn take_along(
    log: &Log,
    group: &Group,
    stream: StreamId,
) -> Result<(), CopyError> {
    let mut after: Option<Bytes> = None;
    loop {
        let some = {
            let world = locked(&group.world);
            let cell = world.cell::<MapState>(stream);
            let all =
                |cell: &Cell<MapState>| some_below(&cell.state, Position(u64::MAX), after.as_ref());
            cell.map(all).unwrap_or_default()
        };
        let Some((last, _)) = some.last() else {
            return Ok(());
        };
        after = Some(last.clone());
        let moved = match copy(log, &some).await {
            Err(CopyError::Play(PlayError::Gone(_))) => copy_each(log, &some).await?,
            copied => copied?,
        };
        if let Some(cell) = locked(&group.world).cell_mut::<MapState>(stream) {
            cell.state.moved(moved);
        }
    }
}

#[cfg(test)]
mod tests;
