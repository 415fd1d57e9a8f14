//! One answer of a sound history changed, in a way that nobody may be told: a checker that does not find it is none.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use milonga_host::Random;
use milonga_wire::Position;

use super::file::Recording;
use crate::invariants::objects::Truth;
use crate::object_history::{Asked, Key, Mode, Operation, Reads, Told};

/// What is changed.
#[derive(Copy, Clone, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Plant {
    /// A linearizable read finds what had been overwritten by a write that was acknowledged before.
    StaleRead,
    /// A write that depended on what it overwrites had read what was there before that.
    LostUpdate,
    /// A watch tells two changes the other way round.
    ReorderedWatch,
}

/// Changes one answer, drawn from all that can be, and says which.
///
/// # Errors
/// If the history has none.
pub fn plant(
    what: Plant,
    recording: &mut Recording,
    truth: &Truth,
    random: &Random,
) -> Result<String> {
    match what {
        Plant::StaleRead => stale_read(recording, truth, random),
        Plant::LostUpdate => lost_update(recording, truth, random),
        Plant::ReorderedWatch => reordered_watch(recording, random),
    }
}

fn draw<T: Copy>(candidates: &[T], random: &Random) -> Result<T> {
    let place = random.below(candidates.len() as u64) as usize;
    let drawn = candidates.get(place).copied();
    drawn.context("this history has nothing that could be changed so; make it longer")
}

fn reads(operation: &Operation) -> Option<(u64, &Reads)> {
    match operation.told.as_ref()? {
        (told, Told::Found(reads) | Told::Done(_, reads)) => Some((*told, reads)),
        _ => None,
    }
}

/// Reads of this operation that found what `may` accept, and was set over something: its place among all reads.
fn set_over(
    operation: &Operation,
    truth: &Truth,
    may: impl Fn(Key, Position) -> bool,
) -> Vec<usize> {
    let all = reads(operation).into_iter().flat_map(|(_, reads)| reads);
    let found = all.enumerate().filter(|(_, (key, found))| {
        found.is_some_and(|(_, at)| may(*key, at) && truth.earlier(*key, at).is_some())
    });
    found.map(|(place, _)| place).collect()
}

/// Lets one read find what was there before what it found.
fn age(operation: &mut Operation, place: usize, truth: &Truth) -> String {
    let (client, asked) = (operation.client, operation.asked);
    let mut what = String::new();
    if let Some((_, Told::Found(reads) | Told::Done(_, reads))) = &mut operation.told {
        let (key, found) = &mut reads[place];
        let before = found.and_then(|(_, at)| truth.earlier(*key, at));
        what = format!("found {before:?} at {key:?} instead of {found:?}");
        *found = before;
    }
    format!("what client {client} asked at {asked} {what}")
}

fn stale_read(recording: &mut Recording, truth: &Truth, random: &Random) -> Result<String> {
    let mut acknowledged = BTreeMap::new();
    for operation in &recording.operations {
        if let Some((told, Told::Done(at, _))) = operation.told {
            acknowledged.insert(at, told);
        }
    }
    let mut candidates = vec![];
    for (number, operation) in recording.operations.iter().enumerate() {
        if operation.what == Asked::Read {
            let places = set_over(operation, truth, |_, at| {
                let told = acknowledged.get(&at);
                told.is_some_and(|told| *told < operation.asked)
            });
            candidates.extend(places.into_iter().map(|place| (number, place)));
        }
    }
    let (number, place) = draw(&candidates, random)?;
    Ok(age(&mut recording.operations[number], place, truth))
}

fn lost_update(recording: &mut Recording, truth: &Truth, random: &Random) -> Result<String> {
    let mut candidates = vec![];
    for (number, operation) in recording.operations.iter().enumerate() {
        if let (
            Asked::Write {
                writes,
                mode: Mode::Serializable,
                ..
            },
            Some((_, Told::Done(..))),
        ) = (&operation.what, &operation.told)
        {
            let is_written = |key| writes.iter().any(|(written, _)| *written == key);
            let places = set_over(operation, truth, |key, _| is_written(key));
            candidates.extend(places.into_iter().map(|place| (number, place)));
        }
    }
    let (number, place) = draw(&candidates, random)?;
    Ok(age(&mut recording.operations[number], place, truth))
}

fn reordered_watch(recording: &mut Recording, random: &Random) -> Result<String> {
    let mut candidates = vec![];
    for (number, watch) in recording.watches.iter().enumerate() {
        let pairs = watch.changes.windows(2).enumerate();
        let apart = pairs.filter(|(_, pair)| pair[0].1.position != pair[1].1.position);
        candidates.extend(apart.map(|(place, _)| (number, place)));
    }
    let (number, place) = draw(&candidates, random)?;
    let watch = &mut recording.watches[number];
    let (first, second) = (
        watch.changes[place].1.clone(),
        watch.changes[place + 1].1.clone(),
    );
    watch.changes[place].1 = second.clone();
    watch.changes[place + 1].1 = first.clone();
    let (map, from) = (watch.map, watch.from);
    Ok(format!(
        "a watch of map {map} from {from} told {second:?} before {first:?}"
    ))
}
