//! What clients of replicated maps were told, against all changes that a replay from the start found.
//!
//! Versions are positions of the log, so that every answer says which changes it has seen: no order has to be searched for.
//!
//! - O2 The state of a map as of a position is what its changes up to there make ([`contents`]).
//! - O3 A watch tells each change once, in order, none left out ([`watch`]).
//! - O4 A read sees a state that holds everything acknowledged before it was asked for; X1: all of it one state.
//! - O6 A conditional write took place if, and only if, what it expected held where it lies.
//! - O8 Writes that belong together take place at one position, all or none; what was refused takes place nowhere.
//! - O9 Under one idempotency key writes take place once, and all who use it are told the same position.
//! - X3 What a serializable transaction read is what was there where it lies; with other isolations, what these promise.

use std::collections::{BTreeMap, BTreeSet};

use milonga_wire::Position;

use crate::object_history::{
    Asked, Change, Contents, Found, Key, Mode, Operation, Reads, Told, Watched,
};

/// Every change there was.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    keys: BTreeMap<Key, BTreeMap<Position, Option<u64>>>,
    positions: BTreeMap<Position, BTreeMap<Key, Option<u64>>>,
    values: BTreeMap<u64, Vec<(Position, Key)>>,
}

impl Truth {
    /// As a replay from the start told them.
    pub fn new(changes: impl IntoIterator<Item = Change>) -> Self {
        let mut truth = Self::default();
        for Change {
            position,
            key,
            value,
        } in changes
        {
            truth.keys.entry(key).or_default().insert(position, value);
            truth
                .positions
                .entry(position)
                .or_default()
                .insert(key, value);
            if let Some(value) = value {
                truth.values.entry(value).or_default().push((position, key));
            }
        }
        truth
    }

    /// What a key holds once everything below `end` has been applied.
    fn below(&self, key: Key, end: Position) -> Found {
        let (position, value) = self.keys.get(&key)?.range(..end).next_back()?;
        value.map(|value| (value, *position))
    }

    /// What a map holds once everything below `end` has been applied.
    pub fn map_below(&self, map: u64, end: Position) -> Contents {
        let keys = self.keys.range((map, 0)..(map + 1, 0));
        keys.filter_map(|(key, _)| Some((key.1, self.below(*key, end)?)))
            .collect()
    }

    fn hold(&self, reads: &Reads, end: Position) -> bool {
        reads
            .iter()
            .all(|(key, found)| self.below(*key, end) == *found)
    }

    /// The first place from `start` up to `limit` at which all of this is so.
    fn place(&self, reads: &Reads, start: Position, limit: Position) -> Option<Position> {
        let changes = reads.iter().filter_map(|(key, _)| self.keys.get(key));
        let changes = changes.flat_map(|changes| changes.range(start..).map(|(at, _)| at.next()));
        let places: BTreeSet<Position> = changes.chain([start]).collect();
        let mut places = places.into_iter().take_while(|place| *place <= limit);
        places.find(|place| self.hold(reads, *place))
    }
}

/// Everything at once.
pub fn check(truth: &Truth, operations: &[Operation], watches: &[Watched]) -> Vec<String> {
    let floor = Floor::new(operations, watches);
    let mut violations = vec![];
    for operation in operations {
        let floor = floor.before(operation.asked);
        let found = match &operation.what {
            Asked::Write { writes, mode, .. } => writes_of(truth, operation, writes, *mode, floor),
            Asked::Read | Asked::ReadStale | Asked::At { .. } => read(truth, operation, floor),
        };
        violations.extend(found.map(|what| format!("{what}; {operation:?}, floor {floor}")));
    }
    violations.extend(keys(truth, operations));
    violations.extend(origins(truth, operations));
    violations.extend(watches.iter().filter_map(|one| {
        let floor = floor.before(one.caught_up.unwrap_or_default());
        watch(truth, one, floor)
    }));
    violations
}

/// What was acknowledged by when.
struct Floor(Vec<(u64, Position)>);

impl Floor {
    fn new(operations: &[Operation], watches: &[Watched]) -> Self {
        let mut known: Vec<(u64, Position)> = vec![];
        for operation in operations {
            let Some((at, told)) = &operation.told else {
                continue;
            };
            let (position, reads) = match told {
                Told::Done(position, _) => (Some(*position), None),
                Told::Found(reads) if operation.what == Asked::Read => (None, Some(reads)),
                Told::Repeated(position) | Told::Undecided(position) => (Some(*position), None),
                Told::Refused(Some((position, _))) => (Some(*position), None),
                Told::Found(_) | Told::Contents(_) | Told::Refused(None) | Told::Open => {
                    (None, None)
                }
            };
            let versions = reads.into_iter().flatten();
            let versions = versions.filter_map(|(_, found)| found.map(|(_, version)| version));
            known.extend(
                versions
                    .chain(position)
                    .map(|position| (*at, position.next())),
            );
        }
        let changes = watches.iter().flat_map(|watch| &watch.changes);
        known.extend(changes.map(|(at, change)| (*at, change.position.next())));
        known.sort_unstable();
        let mut highest = Position::FIRST;
        for (_, position) in &mut known {
            highest = highest.max(*position);
            *position = highest;
        }
        Self(known)
    }

    /// Whoever asks at this moment sees everything below.
    fn before(&self, asked: u64) -> Position {
        let count = self.0.partition_point(|(told, _)| *told < asked);
        count
            .checked_sub(1)
            .map_or(Position::FIRST, |last| self.0[last].1)
    }
}

const END: Position = Position(u64::MAX);

fn read(truth: &Truth, operation: &Operation, floor: Position) -> Option<String> {
    let (_, told) = operation.told.as_ref()?;
    match (&operation.what, told) {
        (Asked::Read, Told::Found(reads)) => truth
            .place(reads, floor, END)
            .is_none()
            .then(|| "O4: this is no state with everything acknowledged before".to_owned()),
        (Asked::ReadStale, Told::Found(reads)) => truth
            .place(reads, Position::FIRST, END)
            .is_none()
            .then(|| "O2: this is the state as of no position".to_owned()),
        (Asked::At { map, position }, Told::Contents(found)) => {
            contents(truth, *map, position.next(), found)
        }
        _ => None,
    }
}

/// O2: whether a map holds what all changes below `end` make.
pub fn contents(truth: &Truth, map: u64, end: Position, found: &Contents) -> Option<String> {
    let expected = truth.map_below(map, end);
    (*found != expected)
        .then(|| format!("O2: map {map} below {end} is {found:?}; its changes make {expected:?}"))
}

fn writes_of(
    truth: &Truth,
    operation: &Operation,
    writes: &[(Key, Option<u64>)],
    mode: Mode,
    floor: Position,
) -> Option<String> {
    let placed: BTreeSet<Position> = places(truth, writes);
    let told = operation.told.as_ref().map(|(_, told)| told);
    match told {
        Some(Told::Done(position, reads)) => took_place(truth, writes, *position)
            .or_else(|| {
                (*position < floor)
                    .then(|| format!("O3: {position} lies below what was acknowledged"))
            })
            .or_else(|| isolated(truth, writes, mode, *position, reads, floor)),
        Some(Told::Repeated(_)) if placed.is_empty() => None,
        Some(Told::Refused(decided)) if placed.is_empty() => {
            let (position, reads) = decided.as_ref()?;
            (!truth.hold(reads, *position))
                .then(|| "O6: what was found was not what is there".to_owned())
        }
        Some(Told::Repeated(_) | Told::Refused(_)) => {
            Some(format!("O8: it was refused, and took place at {placed:?}"))
        }
        Some(Told::Undecided(position)) if placed.iter().any(|place| place != position) => {
            Some(format!("O8: it took place at {placed:?}"))
        }
        Some(Told::Undecided(_) | Told::Open | Told::Found(_) | Told::Contents(_)) | None => {
            match placed.len() {
                0 => None,
                1 => took_place(truth, writes, *placed.first()?),
                _ => Some(format!("O8: it took place at {placed:?}")),
            }
        }
    }
}

fn places(truth: &Truth, writes: &[(Key, Option<u64>)]) -> BTreeSet<Position> {
    let values = writes.iter().filter_map(|(_, value)| *value);
    let found = values.filter_map(|value| truth.values.get(&value));
    found.flatten().map(|(position, _)| *position).collect()
}

/// O8: all of it is at `position`, nothing else is there, and nothing of it is anywhere else.
fn took_place(truth: &Truth, writes: &[(Key, Option<u64>)], position: Position) -> Option<String> {
    // What removes a key that is not there changes nothing.
    let changes = writes
        .iter()
        .filter(|(key, value)| value.is_some() || truth.below(*key, position).is_some());
    let expected: BTreeMap<Key, Option<u64>> = changes.copied().collect();
    let found = truth.positions.get(&position).cloned().unwrap_or_default();
    if found != expected {
        return Some(format!(
            "O8: at {position} took place {found:?}, not {expected:?}"
        ));
    }
    let places = places(truth, writes);
    places
        .iter()
        .any(|place| *place != position)
        .then(|| format!("O8: it took place at {places:?}"))
}

fn isolated(
    truth: &Truth,
    writes: &[(Key, Option<u64>)],
    mode: Mode,
    position: Position,
    reads: &Reads,
    floor: Position,
) -> Option<String> {
    let start = match mode {
        Mode::Serializable => {
            return (!truth.hold(reads, position))
                .then(|| format!("X3: what it read is not what was there at {position}"));
        }
        Mode::Snapshot => floor,
        Mode::WriteWrite => Position::FIRST,
    };
    if truth.place(reads, start, position).is_none() {
        return Some(format!("X3: what it read was never there below {position}"));
    }
    let protected = reads
        .iter()
        .filter(|(key, _)| writes.iter().any(|(written, _)| written == key));
    let protected: Reads = protected.copied().collect();
    (!truth.hold(&protected, position))
        .then(|| format!("X3: what it both read and wrote was written by others below {position}"))
}

/// O9.
fn keys(truth: &Truth, operations: &[Operation]) -> Vec<String> {
    let mut told: BTreeMap<u64, BTreeSet<Position>> = BTreeMap::new();
    let mut firsts: BTreeMap<u64, u64> = BTreeMap::new();
    for operation in operations {
        let Asked::Write {
            once: Some(once),
            writes,
            ..
        } = &operation.what
        else {
            continue;
        };
        let all = told.entry(*once).or_default();
        all.extend(places(truth, writes));
        match &operation.told {
            Some((_, Told::Done(position, _))) => {
                *firsts.entry(*once).or_default() += 1;
                all.insert(*position);
            }
            Some((_, Told::Repeated(position))) => drop(all.insert(*position)),
            _ => {}
        }
    }
    let several = told.iter().filter(|(_, places)| places.len() > 1);
    let several = several.map(|(once, places)| {
        format!("O9: what has the idempotency key {once} took place at {places:?}")
    });
    let twice = firsts.iter().filter(|(_, count)| **count > 1);
    let twice = twice.map(|(once, _)| {
        format!("O9: two were told that they were the first with the idempotency key {once}")
    });
    several.chain(twice).collect()
}

/// Values that nobody had asked to write, and those that were seen before somebody had.
fn origins(truth: &Truth, operations: &[Operation]) -> Vec<String> {
    let mut asked: BTreeMap<u64, u64> = BTreeMap::new();
    for operation in operations {
        if let Asked::Write { writes, .. } = &operation.what {
            let values = writes.iter().filter_map(|(_, value)| *value);
            asked.extend(values.map(|value| (value, operation.asked)));
        }
    }
    let unknown = truth
        .values
        .keys()
        .filter(|value| !asked.contains_key(value));
    let mut violations: Vec<String> = unknown
        .map(|value| format!("O3: nobody wrote value {value}"))
        .collect();
    for operation in operations {
        let Some((told, Told::Found(reads))) = &operation.told else {
            continue;
        };
        let values = reads.iter().filter_map(|(_, found)| *found);
        let mut early = values.filter(|(value, _)| asked.get(value).is_none_or(|at| at > told));
        if let Some((value, _)) = early.next() {
            violations.push(format!("O4: value {value} was read before it was written"));
        }
    }
    violations
}

/// O3: whether a watch told every change from where it began, in order, up to `floor` at least if it said that there is no more.
pub fn watch(truth: &Truth, watched: &Watched, floor: Position) -> Option<String> {
    let all = truth.positions.range(watched.from..);
    let expected: Vec<Change> = all
        .flat_map(|(position, changes)| {
            changes.iter().map(|(key, value)| Change {
                position: *position,
                key: *key,
                value: *value,
            })
        })
        .filter(|change| change.key.0 == watched.map)
        .collect();
    let told: Vec<&Change> = watched.changes.iter().map(|(_, change)| change).collect();
    let rises = told
        .windows(2)
        .all(|two| two[0].position <= two[1].position);
    let last = told.last().map(|change| change.position);
    // Those of one position come in the order of the transaction; of the last position some may still be to come.
    let (whole, rest): (Vec<&Change>, Vec<&Change>) = told
        .iter()
        .partition(|change| Some(change.position) != last);
    let mut whole = whole;
    whole.sort_by_key(|change| (change.position, change.key));
    let of_last: Vec<&Change> = expected[whole.len().min(expected.len())..]
        .iter()
        .take_while(|change| Some(change.position) == last)
        .collect();
    let distinct: BTreeSet<Key> = rest.iter().map(|change| change.key).collect();
    let is_sound = rises
        && whole.len() <= expected.len()
        && whole
            .iter()
            .zip(&expected)
            .all(|(one, other)| **one == *other)
        && rest.iter().all(|change| of_last.contains(change))
        && distinct.len() == rest.len();
    if !is_sound {
        let mut both = told.iter().zip(&expected);
        let first = both.position(|(one, other)| **one != *other);
        let first = first.unwrap_or(told.len().min(expected.len()));
        let (told, expected) = (told.get(first), expected.get(first));
        return Some(format!(
            "O3: a watch of map {} from {} told as number {first} {told:?}, and there was {expected:?}",
            watched.map, watched.from
        ));
    }
    let missing = expected
        .get(told.len())
        .filter(|change| watched.caught_up.is_some() && change.position < floor);
    missing
        .map(|change| format!("O3: a watch said that there is no more before it told {change:?}"))
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
