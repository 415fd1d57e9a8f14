//! Where in one data file each position's record stands. Pure.
//!
//! A growing file keeps runs that are easy to extend; a frozen one takes 4 bytes a record, and 12 more for every run
//! of consecutive positions, so never more than 16.

use std::collections::BTreeMap;

use milonga_wire::{Position, Span};

use super::format::{u32_at, u64_at};

/// The records of a file that is still written.
#[derive(Debug, Default)]
pub(super) struct Growing {
    runs: BTreeMap<Position, Vec<u32>>,
    count: usize,
}

impl Growing {
    /// Notes that the record of `position` stands at `slot`; the last one put counts.
    pub(super) fn put(&mut self, position: Position, slot: u32) {
        if let Some((start, slots)) = self.runs.range_mut(..=position).next_back() {
            let index = position.since(*start) as usize;
            if index < slots.len() {
                slots[index] = slot;
                return;
            }
            if index == slots.len() && !self.runs.contains_key(&position) {
                let (_, slots) = self
                    .runs
                    .range_mut(..=position)
                    .next_back()
                    .expect("as above");
                slots.push(slot);
                self.count += 1;
                return;
            }
        }
        self.runs.insert(position, vec![slot]);
        self.count += 1;
    }

    /// Takes out what `span` covers.
    pub(super) fn remove(&mut self, span: Span) {
        while let Some(first) = self
            .first_from(span.start)
            .filter(|first| span.contains(*first))
        {
            let (start, mut slots) = self
                .runs
                .range(..=first)
                .next_back()
                .map(|(start, slots)| (*start, slots.clone()))
                .expect("first_from found it");
            self.runs.remove(&start);
            let mut cut = slots.split_off(first.since(start) as usize);
            let gone = cut.len().min(span.end.since(first) as usize);
            let rest = cut.split_off(gone);
            self.count -= gone;
            if !slots.is_empty() {
                self.runs.insert(start, slots);
            }
            if !rest.is_empty() {
                self.runs.insert(first.plus(gone as u64), rest);
            }
        }
    }

    fn find(&self, position: Position) -> Option<u32> {
        let (start, slots) = self.runs.range(..=position).next_back()?;
        slots.get(position.since(*start) as usize).copied()
    }

    fn run_end(&self, position: Position) -> Option<Position> {
        let (start, slots) = self.runs.range(..=position).next_back()?;
        let end = start.plus(slots.len() as u64);
        (position < end).then_some(end)
    }

    fn first_from(&self, from: Position) -> Option<Position> {
        if self.find(from).is_some() {
            return Some(from);
        }
        self.runs.range(from..).next().map(|(start, _)| *start)
    }

    pub(super) fn freeze(&self) -> Frozen {
        let mut frozen = Frozen {
            starts: Vec::with_capacity(self.runs.len()),
            firsts: Vec::with_capacity(self.runs.len()),
            slots: Vec::with_capacity(self.count),
        };
        let mut end = None;
        for (start, slots) in &self.runs {
            if end != Some(*start) {
                frozen.starts.push(start.0);
                frozen.firsts.push(frozen.slots.len() as u32);
            }
            frozen.slots.extend_from_slice(slots);
            end = Some(start.plus(slots.len() as u64));
        }
        frozen.starts.shrink_to_fit();
        frozen.firsts.shrink_to_fit();
        frozen
    }

    /// Bytes that the frozen form takes at most.
    pub(super) fn bytes_max(&self) -> u64 {
        (8 + self.runs.len() * 12 + self.count * 4) as u64
    }
}

/// The records of a closed file: `starts[i]` is the first position of run `i`, `slots[firsts[i]..]` where they stand.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Frozen {
    starts: Vec<u64>,
    firsts: Vec<u32>,
    slots: Vec<u32>,
}

impl Frozen {
    /// The run that `position` would lie in: its index, and how far into it.
    fn place(&self, position: Position) -> Option<(usize, u64)> {
        let run = self
            .starts
            .partition_point(|start| *start <= position.0)
            .checked_sub(1)?;
        Some((run, position.0 - self.starts[run]))
    }

    fn run_len(&self, run: usize) -> u64 {
        let end = self
            .firsts
            .get(run + 1)
            .map_or(self.slots.len(), |next| *next as usize);
        (end - self.firsts[run] as usize) as u64
    }

    fn find(&self, position: Position) -> Option<u32> {
        let (run, within) = self.place(position)?;
        (within < self.run_len(run))
            .then(|| self.slots[self.firsts[run] as usize + within as usize])
    }

    fn run_end(&self, position: Position) -> Option<Position> {
        let (run, within) = self.place(position)?;
        let len = self.run_len(run);
        (within < len).then(|| Position(self.starts[run] + len))
    }

    fn first_from(&self, from: Position) -> Option<Position> {
        if self.run_end(from).is_some() {
            return Some(from);
        }
        let next = self.starts.partition_point(|start| *start < from.0);
        self.starts.get(next).map(|start| Position(*start))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.starts.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.slots.len() as u32).to_le_bytes());
        self.starts
            .iter()
            .for_each(|start| out.extend_from_slice(&start.to_le_bytes()));
        let numbers = self.firsts.iter().chain(&self.slots);
        numbers.for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
    }

    /// What [`Frozen::encode`] wrote and how many bytes it took, if it makes sense throughout.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let head = bytes.get(..8)?;
        let (runs, records) = (u32_at(head, 0) as usize, u32_at(head, 4) as usize);
        let starts_end = 8 + runs.checked_mul(8)?;
        let firsts_end = starts_end + runs.checked_mul(4)?;
        let end = firsts_end + records.checked_mul(4)?;
        let numbers = |range: std::ops::Range<usize>| {
            let bytes = bytes.get(range)?;
            Some(
                bytes
                    .chunks_exact(4)
                    .map(|number| u32_at(number, 0))
                    .collect::<Vec<u32>>(),
            )
        };
        let frozen = Self {
            starts: bytes
                .get(8..starts_end)?
                .chunks_exact(8)
                .map(|start| u64_at(start, 0))
                .collect(),
            firsts: numbers(starts_end..firsts_end)?,
            slots: numbers(firsts_end..end)?,
        };
        frozen.is_sound().then_some((frozen, end))
    }

    fn is_sound(&self) -> bool {
        let rising = self.firsts.windows(2).all(|pair| pair[0] < pair[1]);
        let firsts = match (self.firsts.first(), self.firsts.last()) {
            (Some(first), Some(last)) => *first == 0 && (*last as usize) < self.slots.len(),
            _ => self.slots.is_empty(),
        };
        firsts
            && rising
            && (0..self.starts.len()).all(|run| {
                let end = self.starts[run].checked_add(self.run_len(run));
                let next = self.starts.get(run + 1).copied().unwrap_or(u64::MAX);
                end.is_some_and(|end| end <= next)
            })
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.starts.capacity() * 8 + (self.firsts.capacity() + self.slots.capacity()) * 4
    }
}

/// The records of a file.
#[derive(Debug)]
pub(super) enum Slots {
    Growing(Growing),
    Frozen(Frozen),
}

impl Slots {
    /// Where the record of `position` stands.
    pub(super) fn find(&self, position: Position) -> Option<u32> {
        match self {
            Self::Growing(growing) => growing.find(position),
            Self::Frozen(frozen) => frozen.find(position),
        }
    }

    /// The first position behind the run of records that `position` lies in; none if it has no record.
    pub(super) fn run_end(&self, position: Position) -> Option<Position> {
        match self {
            Self::Growing(growing) => growing.run_end(position),
            Self::Frozen(frozen) => frozen.run_end(position),
        }
    }

    /// The first position at or after `from` that has a record.
    pub(super) fn first_from(&self, from: Position) -> Option<Position> {
        match self {
            Self::Growing(growing) => growing.first_from(from),
            Self::Frozen(frozen) => frozen.first_from(from),
        }
    }

    /// The runs of consecutive positions, rising.
    pub(super) fn runs(&self) -> Box<dyn Iterator<Item = Span> + '_> {
        let span = |start: Position, len: u64| Span::new(start, start.plus(len));
        match self {
            Self::Growing(growing) => {
                let runs = growing.runs.iter();
                Box::new(runs.map(move |(start, slots)| span(*start, slots.len() as u64)))
            }
            Self::Frozen(frozen) => {
                let starts = frozen.starts.iter().enumerate();
                Box::new(
                    starts.map(move |(run, start)| span(Position(*start), frozen.run_len(run))),
                )
            }
        }
    }

    pub(super) fn count(&self) -> usize {
        match self {
            Self::Growing(growing) => growing.count,
            Self::Frozen(frozen) => frozen.slots.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Growing, frozen, and read back: the same positions stand at the same places, in any order of arrival.
        #[test]
        fn slots_agree_with_a_plain_map(
            steps in prop::collection::vec((0_u64..60, 1_u64..5, any::<bool>()), 0..60),
        ) {
            let mut plain = BTreeMap::new();
            let mut growing = Growing::default();
            for (slot, (start, len, put)) in steps.into_iter().enumerate() {
                let span = Span::new(Position(start), Position(start + len));
                if put {
                    growing.put(span.start, slot as u32);
                    plain.insert(span.start, slot as u32);
                } else {
                    growing.remove(span);
                    span.positions().for_each(|position| { plain.remove(&position); });
                }
            }
            let frozen = growing.freeze();
            let mut bytes = vec![];
            frozen.encode(&mut bytes);
            prop_assert!(bytes.len() as u64 <= growing.bytes_max());
            let (decoded, len) = Frozen::decode(&bytes).unwrap();
            prop_assert_eq!((&decoded, len), (&frozen, bytes.len()));
            for slots in [Slots::Growing(growing), Slots::Frozen(decoded)] {
                prop_assert_eq!(slots.count(), plain.len());
                for position in (0..70).map(Position) {
                    prop_assert_eq!(slots.find(position), plain.get(&position).copied());
                    let next = plain.range(position..).next().map(|(position, _)| *position);
                    prop_assert_eq!(slots.first_from(position), next);
                }
                let runs: Vec<Position> = slots.runs().flat_map(Span::positions).collect();
                prop_assert_eq!(runs, plain.keys().copied().collect::<Vec<_>>());
            }
        }

        /// A footer comes from a disk: whatever its bytes, they decode to something sound or to nothing.
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            if let Some((frozen, _)) = Frozen::decode(&bytes) {
                let _ = Slots::Frozen(frozen).runs().count();
            }
        }
    }
}
