//! Maps of numbers, as clients of simulations and histories host and read them.

use std::collections::BTreeMap;

use bytes::Bytes;
use milonga_client::Log;
use milonga_client::object::map::{Held, Page, Versioned};
use milonga_client::object::{AtError, Keys, Map, Objects, PlayError, Transaction, View};
use milonga_host::Random;
use milonga_wire::{Position, StreamId};

use super::tape::Tape;
use crate::object_history::{Change, Contents, Found, Key, Reads, Value};
use crate::sim::faults::pick;

/// How many maps there are.
pub const MAPS: u64 = 3;
/// The maps that are hosted together.
#[derive(Clone)]
pub struct Replica {
    /// What they are played by.
    pub(crate) objects: Objects,
    /// By number.
    pub maps: BTreeMap<u64, Map>,
    /// Likewise.
    pub tapes: BTreeMap<u64, View<Tape>>,
}

impl Replica {
    /// Hosts these maps, and tapes of these.
    pub fn new(
        log: &Log,
        maps: impl IntoIterator<Item = u64>,
        tapes: impl IntoIterator<Item = u64>,
    ) -> Self {
        let mut replica = Self {
            objects: Objects::new(log),
            maps: BTreeMap::new(),
            tapes: BTreeMap::new(),
        };
        let maps = maps.into_iter();
        replica.maps = maps.map(|map| (map, replica.map(map))).collect();
        let tapes = tapes.into_iter();
        replica.tapes = tapes.map(|map| (map, replica.tape(map))).collect();
        replica
    }

    /// All maps or some, drawn.
    pub(crate) fn draw(log: &Log, random: &Random) -> Self {
        let first = random.below(MAPS);
        let some = |count: u64| (0..count).map(move |more| (first + more) % MAPS);
        let (maps, tapes) = (*pick(random, &[1, 2, MAPS, MAPS]), random.below(MAPS + 1));
        Self::new(log, some(maps), some(tapes))
    }

    /// A map, which is hosted as long as anybody has it.
    pub(crate) fn map(&self, number: u64) -> Map {
        Map::of(self.objects.host(stream_of(number)))
    }

    pub(crate) fn tape(&self, number: u64) -> View<Tape> {
        self.objects.host(stream_of(number))
    }
}

fn stream_of(map: u64) -> StreamId {
    StreamId::of_name(&format!("map {map}"))
}

/// A number as a key or a value of a map has it.
pub(crate) fn bytes_of(number: u64) -> Bytes {
    Bytes::from(number.to_string())
}

pub(crate) fn number_of(bytes: &[u8]) -> u64 {
    let text = std::str::from_utf8(bytes).ok();
    // Nobody writes that value, so a damaged one is found.
    text.and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}

pub(crate) fn found_of(found: Option<&Versioned>) -> Found {
    found.map(|found| (number_of(&found.value), found.version))
}

/// What a key held, with its value if that stays in the log.
pub(crate) async fn fetched(map: &Map, key: u64, held: Option<Held>) -> Result<Found, PlayError> {
    let entry = held.map(|held| (bytes_of(key), held));
    let page = Page {
        entries: entry.into_iter().collect(),
        more: false,
    };
    let fetched = map.fetch(page).await?.entries.pop();
    Ok(found_of(fetched.as_ref().map(|(_, found)| found)))
}

/// All that a map holds once everything acknowledged is in it.
///
/// # Errors
/// As [`Map::scan`].
pub async fn contents_now(map: &Map) -> Result<Contents, PlayError> {
    Ok(contents_of(&map.scan(&Keys::all(), usize::MAX).await?))
}

/// All that a map held right after what is at `position`; none if the log ends below it, as it may after a change of term.
///
/// # Errors
/// As [`Map::at`].
pub async fn contents_at(map: &Map, position: Position) -> Result<Option<Contents>, PlayError> {
    let state = match map.at(position).await {
        Ok(state) => state,
        Err(AtError::BeyondEnd { .. }) => return Ok(None),
        Err(AtError::Play(why)) => return Err(why),
    };
    let held = state.scan(&Keys::all(), usize::MAX);
    Ok(Some(contents_of(&map.fetch(held).await?)))
}

/// All that a map holds.
pub(crate) fn contents_of(page: &Page) -> Contents {
    let entries = page.entries.iter();
    entries
        .map(|(key, found)| (number_of(key), (number_of(&found.value), found.version)))
        .collect()
}

/// What a scan of a map of so many keys says of each.
pub(crate) fn reads_of(map: u64, keys: u64, contents: &Contents) -> Reads {
    (0..keys)
        .map(|key| ((map, key), contents.get(&key).copied()))
        .collect()
}

/// A change as a watch or a tape tells it.
pub fn change_of(map: u64, position: Position, key: &[u8], value: Option<&Bytes>) -> Change {
    Change {
        position,
        key: (map, number_of(key)),
        value: value.map(|value| number_of(value)),
    }
}

/// Reads these keys, and all of a map of so many, and writes.
pub(crate) fn body(
    maps: &BTreeMap<u64, Map>,
    txn: &mut Transaction<'_>,
    reads: &[Key],
    scanned: Option<u64>,
    keys: u64,
    writes: &[(Key, Value)],
) -> Result<Reads, PlayError> {
    let mut all = vec![];
    for (number, key) in reads {
        let found = txn.get_versioned(&maps[number], &bytes_of(*key))?;
        all.push(((*number, *key), found_of(found.as_ref())));
    }
    if let Some(number) = scanned {
        let page = txn.scan(&maps[&number], &Keys::all(), usize::MAX)?;
        let entries = page.entries.iter();
        let contents = entries
            .map(|(key, found)| (number_of(key), (number_of(&found.value), found.version)))
            .collect();
        all.extend(reads_of(number, keys, &contents));
    }
    for ((number, key), value) in writes {
        match value {
            Some(value) => txn.put(&maps[number], bytes_of(*key), bytes_of(*value)),
            None => txn.delete(&maps[number], bytes_of(*key)),
        }
    }
    Ok(all)
}
