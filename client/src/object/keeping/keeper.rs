//! Does the work: notes the time, writes the snapshots that are due, ends the pins of those who are gone, and trims what nobody
//! needs.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use milonga_host::Moment;
use milonga_wire::{Position, Span};

use super::needs::Own;
use super::{Every, KeepError, Keeping, KeepingState, Kept, Mark, Update};
use crate::log::Log;
use crate::object::codec::Named;
use crate::object::hold::Hold;
use crate::object::map::{MapState, in_log};
use crate::object::{Lock, Object, Objects, PlayError, snapshot};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(10);
/// What a look itself may add to the log: so many positions more are not worth a mark.
const OWN: u64 = 4;
/// The lock of those who write snapshots, and its lease.
const LOCK: &str = "milonga/keeper";
const LEASE: Duration = Duration::from_secs(15);
/// Where, and how much at each of these places, is looked at to tell how large records are.
const SAMPLES: u64 = 4;
const SAMPLE: u64 = 16;
/// An object is looked at again once the log has grown by this part of the updates after which it gets a snapshot: one record
/// may hold several.
const LOOKS: u64 = 16;
/// Of what is kept this part is looked through for values that are copied forward together with those that are in the way.
const FORWARD: u64 = 4;
/// Bytes of the largest snapshot that a keeper takes care of unless it is told otherwise.
pub const MEMORY: u64 = 256 << 20;

/// Keeps a log in order, as [`Keeping`] was told. Any number of them may do so at once: a lock sees to it that one at a time
/// writes snapshots, and the rest is done alike by all.
///
/// It plays every object that has a name and a kind known here for a moment when a snapshot of it may be due. So a process with
/// objects of its own kinds runs one, while those that come with this crate are kept by the caretakers of the cluster.
pub struct Keeper {
    keeping: Keeping,
    owner: Bytes,
    memory: u64,
    lock: Option<Lock>,
    /// When this process first saw each pin.
    pins: BTreeMap<Position, Moment>,
    /// How long the log is, and how many bytes of records it has grown by since this began, about.
    length: (Position, u64),
    /// The same when each object was looked at last.
    looked: BTreeMap<Named, (Position, u64)>,
    trimmed: Position,
}

impl Keeper {
    /// One that works with the objects of this process.
    pub fn new(objects: &Objects) -> Self {
        Self {
            keeping: Keeping::open(objects),
            owner: Bytes::from(objects.log().session().to_string()),
            memory: MEMORY,
            lock: None,
            pins: BTreeMap::new(),
            length: (Position::FIRST, 0),
            looked: BTreeMap::new(),
            trimmed: Position::FIRST,
        }
    }

    /// It leaves objects alone whose snapshots are larger: they do not fit its memory.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Works until it is dropped.
    pub async fn run(mut self) {
        let host = self.log().host().clone();
        loop {
            host.clock.sleep(host.random.jittered(PAUSE)).await;
            if let Err(error) = Box::pin(self.work()).await {
                tracing::info!(%error, "the log could not be kept in order");
            }
        }
    }

    fn log(&self) -> &Log {
        self.keeping.log()
    }

    /// Does what is due, once. What was trimmed, if something is to go.
    ///
    /// # Errors
    /// [`KeepError`].
    pub async fn work(&mut self) -> Result<Option<Kept>, KeepError> {
        self.mark().await?;
        self.expire().await?;
        let now_ms = self.log().host().clock.wall_ms();
        let known = |state: &KeepingState| (state.retained_from(now_ms), state.every());
        let (to, every) = self.keeping.view.read(known).await?;
        self.make_way(to, every).await?;
        if to <= self.trimmed {
            return Ok(None);
        }
        let kept = self.keeping.trim(to).await?;
        self.trimmed = kept.trimmed;
        Ok(Some(kept))
    }

    /// Writes the snapshots that keep what lies below `to` from going, and trims up to there, but no further than what is needed then.
    ///
    /// # Errors
    /// [`KeepError`].
    pub async fn trim(&mut self, to: Position) -> Result<Kept, KeepError> {
        let every = self.keeping.view.read(KeepingState::every).await?;
        self.make_way(to, every).await?;
        self.keeping.trim(to).await
    }

    /// Notes how long the log is, if it has grown and some time has passed.
    async fn mark(&self) -> Result<(), KeepError> {
        let log = self.log();
        let known = |state: &KeepingState| (state.notes_times(), state.newest_mark());
        let (is_asked, newest) = self.keeping.view.read(known).await?;
        let end = log.end().await.map_err(PlayError::from)?.counter;
        let wall_ms = log.host().clock.wall_ms();
        let is_due = newest.is_none_or(|newest| {
            let waited = wall_ms.saturating_sub(newest.wall_ms);
            waited >= PAUSE.as_millis() as u64 && newest.end.plus(OWN) < end
        });
        if !is_asked || !is_due {
            return Ok(());
        }
        let from = newest.map_or(Position::FIRST, |newest| newest.end);
        let bytes = newest.map_or(0, |newest| newest.bytes) + self.bytes_in(from, end).await?;
        let mark = Mark {
            wall_ms,
            end,
            bytes,
        };
        self.keeping.view.update(&Update::Mark(mark)).await?;
        Ok(())
    }

    /// About how many bytes of records lie in between: by samples, since not all are read for this.
    async fn bytes_in(&self, from: Position, end: Position) -> Result<u64, KeepError> {
        let count = end.since(from.min(end));
        let (mut seen, mut bytes) = (0_u64, 0_u64);
        for number in 0..SAMPLES {
            let start = from.plus(count / SAMPLES * number);
            let sample = Span::new(start, start.plus(SAMPLE).min(end));
            if sample.is_empty() {
                continue;
            }
            let entries = self.log().read_some(sample).await;
            for entry in entries.map_err(PlayError::from)? {
                seen += 1;
                bytes += entry.payload().map_or(0, |payload| payload.len() as u64);
            }
        }
        Ok((u128::from(bytes) * u128::from(count) / u128::from(seen.max(1))) as u64)
    }

    /// Ends pins that were not renewed for as long as their lease, by this process's own clock.
    async fn expire(&mut self) -> Result<(), KeepError> {
        let now = self.log().host().clock.now();
        let pins = self.keeping.view.read(|state| state.pins().collect());
        let pins: BTreeMap<_, _> = pins.await?;
        self.pins.retain(|name, _| pins.contains_key(name));
        for (name, pin) in pins {
            let since = *self.pins.entry(name).or_insert(now);
            if now.since(since) > Duration::from_millis(pin.lease_ms) {
                self.keeping.unpin(name).await?;
            }
        }
        Ok(())
    }

    /// Writes the snapshots that are due, and those in the way of a trim up to `to` once more: those that were written first
    /// are older than those that came after them (R4).
    async fn make_way(&mut self, to: Position, every: Every) -> Result<(), KeepError> {
        if self.write_snapshots(to, every).await? {
            self.write_snapshots(to, every).await?;
        }
        Ok(())
    }

    /// Writes the snapshots that are due: of what took enough since its last one, and of what keeps from going what lies below `to`.
    /// Whether there was any of the latter.
    async fn write_snapshots(&mut self, to: Position, every: Every) -> Result<bool, KeepError> {
        let (last, bytes) = self.length;
        let end = self.log().end().await.map_err(PlayError::from)?.counter;
        if end > last {
            self.length = (end, bytes + self.bytes_in(last, end).await?);
        }
        let (end, bytes) = self.length;
        let mut is_any_in_the_way = false;
        for own in self.keeping.objects().await? {
            let is_in_the_way = own.is_in_the_way(to, end);
            let looked = self.looked.get(&own.object).copied();
            let (then, before) = if let Some(looked) = looked {
                looked
            } else {
                let since = self.bytes_in(own.as_of(), end).await?;
                (own.as_of(), bytes.saturating_sub(since))
            };
            let has_grown = end.since(then) >= every.updates.div_ceil(LOOKS);
            let may_be_due = has_grown || bytes - before >= every.bytes;
            if !is_in_the_way && !may_be_due {
                self.looked.insert(own.object, (then, before));
                continue;
            }
            let Some(kind) = self.keeping.view.objects().kind(&own.object.kind) else {
                continue;
            };
            if own
                .newest
                .as_ref()
                .is_some_and(|newest| newest.bytes > self.memory)
            {
                tracing::info!(
                    name = own.name,
                    "its snapshots are larger than what this keeper may hold; run one that may hold more"
                );
                continue;
            }
            let hold = Hold::new(self.keeping.view.objects(), own.object.clone(), kind);
            match self.write_if_due(&hold, &own, to, every).await {
                Ok(()) => is_any_in_the_way |= is_in_the_way,
                // One that cannot be played keeps no other from getting its own.
                Err(error) => {
                    tracing::info!(%error, name = own.name, "no snapshot could be written");
                }
            }
            self.looked.insert(own.object, (end, bytes));
        }
        Ok(is_any_in_the_way)
    }

    async fn write_if_due(
        &mut self,
        hold: &Hold,
        own: &Own,
        to: Position,
        every: Every,
    ) -> Result<(), KeepError> {
        let is_in_the_way = own.is_in_the_way(to, self.length.0);
        hold.sync().await?;
        let fed = hold.fed();
        if !is_in_the_way && fed.updates < every.updates && fed.bytes < every.bytes {
            return Ok(());
        }
        let lock = match &self.lock {
            Some(lock) => lock.clone(),
            None => Lock::open(self.keeping.view.objects(), LOCK).await?,
        };
        let lock = self.lock.insert(lock);
        let held = Box::pin(lock.acquire(self.owner.clone(), LEASE)).await?;
        // Somebody may have written one before it was this one's turn.
        let newest = snapshot::manifests(self.keeping.log(), &own.object).await?;
        let newest = newest.values().filter(|it| !it.is_past).map(|it| it.as_of);
        if newest.max() <= own.newest.as_ref().map(|newest| newest.as_of) {
            if is_in_the_way && own.object.kind == MapState::KIND {
                // Some more than what is to go now, or the next look would find the next few.
                let more = self.length.0.since(to) / FORWARD;
                let to = to.plus(more);
                in_log::bring_forward(hold.objects(), own.object.stream, to).await?;
            }
            let written = hold.snapshot().await?;
            tracing::info!(name = own.name, as_of = %written.as_of, bytes = written.bytes, "wrote a snapshot");
        }
        Ok(held.release().await?)
    }
}
