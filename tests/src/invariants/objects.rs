//! What clients of replicated maps were told, against all changes that a replay from the start found.
//!
//! Versions are positions of the log, so that every answer says which changes it has seen: no order has to be searched for, and
//! the time that a check takes grows with the length of the history, not faster.
//!
//! - I4 What was asked after another was told lies behind it.
//! - O2 The state of a map as of a position is what its changes up to there make ([`contents`]).
//! - O3 A watch tells each change once, in order, none left out ([`watch`]).
//! - O4 A read sees a state that holds everything acknowledged before it was asked for, and nothing that was asked for after it
//!   was told; X1: all of it one state.
//! - O6 A conditional write took place if, and only if, what it expected held where it lies.
//! - O8 Writes that belong together take place at one position, all or none; what was refused takes place nowhere, and
//!   nothing takes place that nobody asked for.
//! - O9 Under one idempotency key writes take place once, and all who use it are told the same position.
//! - X3 What a serializable transaction read is what was there where it lies; with other isolations, what these promise. One
//!   that was aborted was in somebody's way.

use std::collections::{BTreeMap, BTreeSet};

use milonga_wire::Position;

use crate::object_history::{
    Asked, Change, Contents, Found, Key, Mode, Operation, Reads, Told, Value, Watched,
};

/// What happens at one position.
type Changes = BTreeMap<Key, Value>;

/// Every change there was.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    keys: BTreeMap<Key, BTreeMap<Position, Value>>,
    positions: BTreeMap<Position, Changes>,
    values: BTreeMap<u64, BTreeSet<Position>>,
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
            let here = truth.positions.entry(position).or_default();
            here.insert(key, value);
            if let Some(value) = value {
                truth.values.entry(value).or_default().insert(position);
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
        let mut reads = reads.iter();
        reads.all(|(key, found)| self.below(*key, end) == *found)
    }

    /// Whether all of this is so once everything below some place from `start` to `limit` has been applied.
    fn held(&self, reads: &Reads, start: Position, limit: Position) -> bool {
        let (mut start, mut limit) = (start, limit);
        // What was found was there from its own position on, and until the next change of its key.
        for (key, version) in reads
            .iter()
            .filter_map(|read| Some((read.0, version(read)?)))
        {
            start = start.max(version.next());
            let changes = self.keys.get(&key);
            let next = changes.and_then(|changes| changes.range(version.next()..).next());
            limit = next.map_or(limit, |(next, _)| limit.min(*next));
        }
        if start > limit {
            return false;
        }
        let changes = reads.iter().filter_map(|(key, _)| self.keys.get(key));
        let changes = changes.flat_map(|changes| changes.range(start..limit));
        let places = changes.map(|(at, _)| at.next());
        let mut places = std::iter::once(start).chain(places);
        places.any(|place| self.hold(reads, place))
    }

    /// For people: what of this was otherwise once everything below `end` had been applied.
    fn other(&self, reads: &Reads, end: Position) -> String {
        let mut others = reads.iter().map(|(key, _)| (key, self.below(*key, end)));
        let other = others.find(|read| !reads.contains(&(*read.0, read.1)));
        other.map_or_else(String::new, |(key, found)| {
            format!("; below {end} lay {found:?} at {key:?}")
        })
    }

    /// The change of `key` before the one at `position`, if that is one and there is one that set a value.
    pub fn earlier(&self, key: Key, position: Position) -> Found {
        let changes = self.keys.get(&key)?;
        changes.get(&position)?;
        self.below(key, position)
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.positions.values().map(Changes::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// What these writes change at `position`: to remove a key that is not there changes nothing.
    fn made_of(&self, writes: &[(Key, Value)], position: Position) -> Changes {
        let changes = writes
            .iter()
            .filter(|(key, value)| value.is_some() || self.below(*key, position).is_some());
        changes.copied().collect()
    }

    fn at(&self, position: Position) -> Changes {
        self.positions.get(&position).cloned().unwrap_or_default()
    }

    /// Where the values of these writes are.
    fn places(&self, writes: &[(Key, Value)]) -> BTreeSet<Position> {
        let values = writes.iter().filter_map(|(_, value)| *value);
        let found = values.filter_map(|value| self.values.get(&value));
        found.flatten().copied().collect()
    }

    /// Whether what happened at `position` may be this operation's doing.
    fn may_be_of(&self, operation: &Operation, position: Position) -> bool {
        let Asked::Write { writes, .. } = &operation.what else {
            return false;
        };
        let may = match &operation.told {
            Some((_, Told::Done(at, _) | Told::Undecided(at))) => *at == position,
            Some((_, Told::Open)) | None => true,
            Some(_) => false,
        };
        may && self.made_of(writes, position) == self.at(position)
    }
}

/// Everything at once.
pub fn check(truth: &Truth, operations: &[Operation], watches: &[Watched]) -> Vec<String> {
    let bounds = Bounds::new(truth, operations, watches);
    let mut violations = vec![];
    for operation in operations {
        let floor = bounds.before(operation.asked);
        let found = match &operation.what {
            Asked::Write { writes, mode, .. } => {
                write(truth, operation, writes, *mode, floor, &bounds)
            }
            Asked::Read | Asked::ReadStale | Asked::At { .. } => {
                read(truth, operation, floor, &bounds)
            }
        };
        violations.extend(found.map(|what| format!("{what}; {operation:?}, floor {floor}")));
    }
    violations.extend(once(truth, operations));
    violations.extend(origins(truth, operations));
    let floor = |asked| bounds.before(asked);
    violations.extend(watches.iter().filter_map(|one| watch(truth, one, floor)));
    violations
}

const END: Position = Position(u64::MAX);

/// What real time says of positions.
struct Bounds {
    /// By when everything below which position was known to somebody.
    known: Vec<(u64, Position)>,
    /// From when on everything that is asked for lies at or above which position.
    later: Vec<(u64, Position)>,
}

impl Bounds {
    fn new(truth: &Truth, operations: &[Operation], watches: &[Watched]) -> Self {
        let (mut known, mut later) = (vec![], vec![]);
        for Operation {
            asked, what, told, ..
        } in operations
        {
            let own = match told {
                Some((
                    _,
                    Told::Done(position, _)
                    | Told::Undecided(position)
                    | Told::Refused(Some((position, _))),
                )) => Some(*position),
                _ => None,
            };
            if let Asked::Write { writes, .. } = what {
                let own = own.or_else(|| truth.places(writes).first().copied());
                later.extend(own.map(|position| (*asked, position)));
            }
            let seen = match told {
                Some((_, Told::Found(reads))) => reads.iter().filter_map(version).max(),
                Some((_, Told::Repeated(first))) => Some(*first),
                _ => own,
            };
            let told = told.iter().map(|(told, _)| *told);
            known.extend(told.zip(seen).map(|(told, seen)| (told, seen.next())));
        }
        let changes = watches.iter().flat_map(|watch| &watch.changes);
        known.extend(changes.map(|(at, change)| (*at, change.position.next())));
        known.sort_unstable();
        let mut highest = Position::FIRST;
        for (_, position) in &mut known {
            highest = highest.max(*position);
            *position = highest;
        }
        later.sort_unstable();
        let mut lowest = END;
        for (_, position) in later.iter_mut().rev() {
            lowest = lowest.min(*position);
            *position = lowest;
        }
        Self { known, later }
    }

    /// Whoever asks at this moment sees everything below.
    fn before(&self, asked: u64) -> Position {
        let count = self.known.partition_point(|(told, _)| *told < asked);
        let last = count.checked_sub(1);
        last.map_or(Position::FIRST, |last| self.known[last].1)
    }

    /// Whoever is told at this moment has seen nothing from here on.
    fn after(&self, told: u64) -> Position {
        let next = self.later.partition_point(|(asked, _)| *asked < told);
        self.later.get(next).map_or(END, |(_, position)| *position)
    }
}

fn version((_, found): &(Key, Found)) -> Option<Position> {
    found.map(|(_, version)| version)
}

fn read(truth: &Truth, operation: &Operation, floor: Position, bounds: &Bounds) -> Option<String> {
    let (at, told) = operation.told.as_ref()?;
    let limit = bounds.after(*at);
    match (&operation.what, told) {
        (Asked::Read, Told::Found(reads)) => (!truth.held(reads, floor, limit)).then(|| {
            let other = truth.other(reads, floor);
            format!("O4: this is no state with everything acknowledged before{other}")
        }),
        (Asked::ReadStale, Told::Found(reads)) => (!truth.held(reads, Position::FIRST, limit))
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

fn write(
    truth: &Truth,
    operation: &Operation,
    writes: &[(Key, Value)],
    mode: Mode,
    floor: Position,
    bounds: &Bounds,
) -> Option<String> {
    let places = truth.places(writes);
    let told = operation.told.as_ref();
    let (position, is_wrong) = match told {
        Some((_, Told::Done(at, _))) => {
            let is_whole = truth.at(*at) == truth.made_of(writes, *at);
            let elsewhere = places.iter().any(|place| place != at);
            (Some(*at), !is_whole || elsewhere)
        }
        Some((_, Told::Undecided(at))) => (Some(*at), places.iter().any(|place| place != at)),
        Some((_, Told::Refused(decided))) => {
            let at = decided.as_ref().map(|(at, _)| *at);
            (at, !places.is_empty())
        }
        Some((_, Told::Repeated(_) | Told::Aborted(_))) => (None, !places.is_empty()),
        Some((_, Told::Open | Told::Found(_) | Told::Contents(_))) | None => {
            (places.first().copied(), places.len() > 1)
        }
    };
    if is_wrong {
        let found = places.iter().chain(&position).map(|at| (at, truth.at(*at)));
        let found: BTreeMap<&Position, Changes> = found.collect();
        return Some(format!("O8: what took place is {found:?}"));
    }
    if position.is_some_and(|position| position < floor) {
        return Some("I4: it lies below what was known before it was asked for".to_owned());
    }
    match told {
        Some((_, Told::Done(at, reads))) => (!isolated(truth, writes, mode, *at, reads, floor))
            .then(|| {
                let other = truth.other(reads, *at);
                format!("X3: what it read is not what it was to be at {at}{other}")
            }),
        Some((_, Told::Refused(Some((at, reads))))) => {
            (!truth.hold(reads, *at)).then(|| "O6: what was found was not what is there".to_owned())
        }
        Some((told, Told::Aborted(reads))) => {
            let span = start(mode, floor)..bounds.after(*told);
            let kept = kept(mode, reads, writes);
            let mut changes = kept.iter().filter_map(|key| truth.keys.get(key));
            let is_idle = changes.all(|changes| changes.range(span.clone()).next().is_none());
            is_idle.then(|| "X3: nothing that it depends on was changed".to_owned())
        }
        _ => None,
    }
}

/// Where a transaction reads at the earliest.
fn start(mode: Mode, floor: Position) -> Position {
    match mode {
        Mode::Serializable | Mode::Snapshot => floor,
        Mode::WriteWrite => Position::FIRST,
    }
}

/// What of a transaction nobody else may change between where it reads and where it lies.
fn kept(mode: Mode, reads: &Reads, writes: &[(Key, Value)]) -> BTreeSet<Key> {
    let read: BTreeSet<Key> = reads.iter().map(|(key, _)| *key).collect();
    let written: BTreeSet<Key> = writes.iter().map(|(key, _)| *key).collect();
    match mode {
        Mode::Serializable => read,
        Mode::Snapshot => written,
        Mode::WriteWrite => &read & &written,
    }
}

/// Whether what a transaction at `position` read was one state that it may have seen, with what it keeps as it is there.
fn isolated(
    truth: &Truth,
    writes: &[(Key, Value)],
    mode: Mode,
    position: Position,
    reads: &Reads,
    floor: Position,
) -> bool {
    let kept = kept(mode, reads, writes);
    let kept = kept.iter().map(|key| (*key, truth.below(*key, position)));
    let state: Reads = reads.iter().copied().chain(kept).collect();
    truth.held(&state, start(mode, floor), position)
}

/// O9.
fn once(truth: &Truth, operations: &[Operation]) -> Vec<String> {
    let mut users: BTreeMap<u64, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        if let Asked::Write {
            once: Some(once), ..
        } = &operation.what
        {
            users.entry(*once).or_default().push(operation);
        }
    }
    let mut violations = vec![];
    for (once, users) in users {
        let mut all = BTreeSet::new();
        for operation in &users {
            if let Asked::Write { writes, .. } = &operation.what {
                all.extend(truth.places(writes));
            }
            match &operation.told {
                Some((_, Told::Done(position, _))) => drop(all.insert(*position)),
                Some((_, Told::Repeated(first))) => {
                    all.insert(*first);
                    if !users.iter().any(|other| truth.may_be_of(other, *first)) {
                        let text = format!("O9: nothing took place under {once} at {first}");
                        violations.push(text);
                    }
                }
                _ => {}
            }
        }
        if all.len() > 1 {
            violations.push(format!("O9: what has {once} took place at {all:?}"));
        }
    }
    violations
}

/// Who may have done what.
#[derive(Default)]
struct Origins<'a> {
    /// Told where.
    told: BTreeMap<Position, Vec<&'a Operation>>,
    /// Not told, by the values that they write.
    open: BTreeMap<u64, Vec<&'a Operation>>,
    /// Not told, and of removals alone.
    removals: Vec<&'a Operation>,
}

impl<'a> Origins<'a> {
    fn new(operations: &'a [Operation]) -> Self {
        let mut origins = Self::default();
        for operation in operations {
            let Asked::Write { writes, .. } = &operation.what else {
                continue;
            };
            match &operation.told {
                Some((_, Told::Done(at, _) | Told::Undecided(at))) => {
                    origins.told.entry(*at).or_default().push(operation);
                }
                Some((_, Told::Open)) | None => {
                    let mut values = writes.iter().filter_map(|(_, value)| *value).peekable();
                    if values.peek().is_none() {
                        origins.removals.push(operation);
                    }
                    values.for_each(|value| origins.open.entry(value).or_default().push(operation));
                }
                Some(_) => {}
            }
        }
        origins
    }

    /// All who may have made these changes at `position`.
    fn of(&self, position: Position, changes: &Changes) -> impl Iterator<Item = &'a Operation> {
        let told = self.told.get(&position).into_iter().flatten();
        let is_removal = changes.values().all(Option::is_none);
        let open = changes
            .values()
            .filter_map(|value| self.open.get(&(*value)?));
        let removals: &[_] = if is_removal { &self.removals } else { &[] };
        told.chain(open.flatten()).chain(removals).copied()
    }
}

/// O8: whatever happened somebody asked for, as a whole, who was not told that it did not take place or that it did elsewhere.
fn origins(truth: &Truth, operations: &[Operation]) -> Vec<String> {
    let all = Origins::new(operations);
    let orphans = truth.positions.iter().filter(|(position, changes)| {
        let mut all = all.of(**position, changes);
        !all.any(|operation| truth.may_be_of(operation, **position))
    });
    orphans
        .map(|(position, changes)| format!("O8: nobody did {changes:?} at {position}"))
        .collect()
}

/// O3: whether a watch told every change from where it began, in order, and each time it said that there is no more, what lies below
/// the floor of that time.
pub fn watch(truth: &Truth, watched: &Watched, floor: impl Fn(u64) -> Position) -> Option<String> {
    let Watched { map, from, .. } = watched;
    let wrong = |what: String| Some(format!("O3: a watch of map {map} from {from} {what}"));
    let all = truth.positions.range(from..).map(|(position, changes)| {
        let own = changes.iter().filter(|(key, _)| key.0 == *map);
        (*position, own.map(|(key, value)| (*key, *value)).collect())
    });
    let all = all.filter(|(_, changes): &(Position, Changes)| !changes.is_empty());
    let mut told: Vec<(Position, Changes)> = vec![];
    for (_, change) in &watched.changes {
        if told.last().is_none_or(|(at, _)| *at != change.position) {
            told.push((change.position, Changes::new()));
        }
        let again = told
            .last_mut()
            .and_then(|(_, last)| last.insert(change.key, change.value));
        if again.is_some() {
            return wrong(format!("told twice {change:?}"));
        }
    }
    // One more than was told: what may be missing.
    let expected: Vec<(Position, Changes)> = all.take(told.len() + 1).collect();
    for (number, (at, changes)) in told.iter().enumerate() {
        let is_right = expected.get(number).is_some_and(|(place, all)| {
            // Of the last position some may still be to come.
            let is_last = number + 1 == told.len() && all.len() > changes.len();
            let is_part = changes.iter().all(|(key, to)| all.get(key) == Some(to));
            place == at && (changes == all || is_last && is_part)
        });
        if !is_right {
            let there = expected.get(number);
            return wrong(format!("told {changes:?} at {at}, and there was {there:?}"));
        }
    }
    let positions = expected.iter();
    let positions = positions.flat_map(|(at, changes)| changes.iter().map(|_| *at));
    let positions: Vec<Position> = positions.collect();
    watched.caught_up.iter().find_map(|(asked, told)| {
        let missing = positions.get(*told).filter(|at| **at < floor(*asked))?;
        wrong(format!(
            "said that there is no more before it told what is at {missing}"
        ))
    })
}

#[cfg(test)]
#[path = "objects_tests.rs"]
mod tests;
