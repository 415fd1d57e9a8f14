//! Objects that are played together, and what happens to them at each position. Pure.
//!
//! - O7 At every position all objects here stand at the same place in the log, so what they decide of a transaction is what
//!   every other replica decides.
//! - O8 A transaction takes place in all objects that it writes, or in none.

use std::collections::BTreeMap;

use milonga_wire::{Position, Session, Stamp, StreamId, StreamLink};

use super::Object;
use super::codec::{Change, Commit, Conflict, Decision, Named, Record, Verdict};
use super::error::PlayError;
use super::hosted::{Cell, Hosted, Stopped};
use super::image::{ImageReader, ImageWriter};
use super::waiting::Waiting;
use crate::entry::{Entry, Kind};

/// Objects, all at one place in the log.
pub(crate) struct World {
    /// Whose outcomes are kept for those who wait for them; none: everybody's.
    session: Option<Session>,
    hosted: BTreeMap<StreamId, Vec<Box<dyn Hosted>>>,
    /// Decisions of transactions further on, by those who could decide them.
    decisions: BTreeMap<Position, Verdict>,
    /// What became of transactions that others may not be able to decide, as decided here: none has told it yet.
    untold: BTreeMap<Position, (Vec<StreamId>, Verdict)>,
    /// Snapshots that transactions further on go back to, by the position of their manifests and in the order of [`World::hosted`].
    images: BTreeMap<Position, ImageReader>,
    /// What became of this client's transactions.
    pub(crate) commits: Waiting<Verdict>,
    /// The last position that was handed to any of them.
    pub(crate) applied: Option<Position>,
    /// Everything below it was played, but what a later term put where an earlier one had issued in vain.
    pub(crate) played: Position,
}

/// What has to be known before the next record can be applied.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Lacking {
    /// What became of the transaction at this position: not all that it checked is here. It is told in this stream.
    Decision(Position, StreamId),
    /// The snapshot with this manifest.
    Image(Position),
    /// An object that alone decides the transaction at this position, and is not here: another that the same stream feeds is.
    Object(Position, Named),
}

impl World {
    pub(crate) fn new(session: Option<Session>) -> Self {
        Self {
            session,
            hosted: BTreeMap::new(),
            decisions: BTreeMap::new(),
            untold: BTreeMap::new(),
            images: BTreeMap::new(),
            commits: Waiting::default(),
            applied: None,
            played: Position::FIRST,
        }
    }

    pub(crate) fn insert(&mut self, stream: StreamId, object: Box<dyn Hosted>) {
        self.remove(&Named {
            stream,
            kind: object.kind().to_owned(),
        });
        self.hosted.entry(stream).or_default().push(object);
    }

    pub(crate) fn remove(&mut self, named: &Named) {
        if let Some(all) = self.hosted.get_mut(&named.stream) {
            all.retain(|object| object.kind() != named.kind);
            if all.is_empty() {
                self.hosted.remove(&named.stream);
            }
        }
    }

    /// Takes over what another world hosts. Both stand at the same place.
    pub(crate) fn absorb(&mut self, other: Self) {
        for (stream, objects) in other.hosted {
            for object in objects {
                self.insert(stream, object);
            }
        }
        self.untold.extend(other.untold);
        self.applied = self.applied.max(other.applied);
        self.played = self.played.max(other.played);
    }

    /// The streams that feed it, each with the place from which it is needed.
    pub(crate) fn streams(&self) -> impl Iterator<Item = (StreamId, Position)> {
        let from =
            |objects: &Vec<Box<dyn Hosted>>| objects.iter().map(|object| object.from()).min();
        let all = self.hosted.iter();
        all.map(move |(stream, objects)| (*stream, from(objects).unwrap_or(Position::FIRST)))
    }

    /// Everything below this position is in `object`, and nothing at or above it.
    pub(crate) fn behind(&self, object: &dyn Hosted) -> Position {
        let applied = self.applied.map_or(Position::FIRST, Position::next);
        // A snapshot holds more than what was applied here, if nothing of any object came after it.
        applied.max(object.from())
    }

    pub(crate) fn object(&self, named: &Named) -> Option<&dyn Hosted> {
        let all = self.hosted.get(&named.stream)?;
        let mut all = all.iter().filter(|object| object.kind() == named.kind);
        all.next().map(|object| &**object)
    }

    pub(crate) fn object_mut(&mut self, named: &Named) -> Option<&mut Box<dyn Hosted>> {
        let mut all = self.hosted.get_mut(&named.stream)?.iter_mut();
        all.find(|object| object.kind() == named.kind)
    }

    /// A snapshot of the object, if it can be played on.
    pub(crate) fn image(&self, object: &Named) -> Result<ImageWriter, PlayError> {
        let found = self.object(object);
        let found = found.ok_or_else(|| PlayError::Unopened(object.clone()))?;
        match found.stopped() {
            Some(stopped) => Err(stopped.clone().into()),
            None => Ok(found.snapshot()),
        }
    }

    /// Whether `object` cannot be played on because what it missed was trimmed.
    pub(crate) fn is_trimmed(&self, object: &Named) -> bool {
        let stopped = self.object(object).and_then(Hosted::stopped);
        matches!(stopped, Some(Stopped::Trimmed(_)))
    }

    /// The object, if it can be played on.
    pub(crate) fn playable<O: Object>(&self, object: &Named) -> Result<&Cell<O>, PlayError> {
        let cell = self.cell::<O>(object.stream);
        let cell = cell.ok_or_else(|| PlayError::Unopened(object.clone()))?;
        match cell.stopped() {
            Some(stopped) => Err(stopped.clone().into()),
            None => Ok(cell),
        }
    }

    pub(crate) fn cell<O: Object>(&self, stream: StreamId) -> Option<&Cell<O>> {
        let mut all = self.hosted.get(&stream)?.iter();
        all.find_map(|object| object.as_any().downcast_ref())
    }

    pub(crate) fn cell_mut<O: Object>(&mut self, stream: StreamId) -> Option<&mut Cell<O>> {
        let mut all = self.hosted.get_mut(&stream)?.iter_mut();
        all.find_map(|object| object.as_any_mut().downcast_mut())
    }

    /// All objects of a type, with their streams.
    pub(crate) fn cells<O: Object>(&self) -> impl Iterator<Item = (StreamId, &Cell<O>)> {
        self.hosted.iter().flat_map(|(stream, objects)| {
            let cells = objects
                .iter()
                .filter_map(|object| object.as_any().downcast_ref());
            cells.map(|cell| (*stream, cell))
        })
    }

    pub(crate) fn take<O: Object>(&mut self, stream: StreamId) -> Option<Box<Cell<O>>> {
        let all = self.hosted.get_mut(&stream)?;
        let place = all
            .iter()
            .position(|object| object.as_any().is::<Cell<O>>())?;
        all.swap_remove(place).into_any().downcast().ok()
    }

    /// Applies the record at `position`, which belongs to the streams of `links`.
    ///
    /// # Errors
    /// [`Lacking`]: nothing happened; once that is known, try again.
    pub(crate) fn apply(
        &mut self,
        position: Position,
        stamp: Stamp,
        links: &[StreamLink],
        payload: &[u8],
    ) -> Result<(), Lacking> {
        assert!(
            self.applied.is_none_or(|applied| applied < position),
            "O3: {position} comes behind {:?}",
            self.applied
        );
        let mine = self.session.is_none_or(|session| session == stamp.session);
        match Record::parse(payload) {
            Ok(Record::Update(update)) => {
                self.each(links, position, |object| {
                    object.update(position, mine, update);
                });
            }
            Ok(Record::Once(once, update)) => self.each(links, position, |object| {
                object.update_once(position, mine, &once, update);
            }),
            Ok(Record::Commit(commit)) => self.commit(position, mine, links, &commit)?,
            // It is looked for ahead, by those who cannot decide themselves.
            Ok(Record::Decision(decision)) => drop(self.untold.remove(&decision.of)),
            Ok(Record::Chunk(..) | Record::Manifest(_) | Record::Value(_)) => {
                self.each(links, position, |object| {
                    let why = super::OperationError::malformed("a part of a snapshot, or a value");
                    object.stop(Stopped::Operation(position, why));
                });
            }
            Err(why) => self.each(links, position, |object| {
                object.stop(Stopped::Operation(position, why.clone()));
            }),
        }
        self.applied = Some(position);
        while self
            .decisions
            .first_key_value()
            .is_some_and(|(of, _)| *of <= position)
        {
            self.decisions.pop_first();
        }
        Ok(())
    }

    /// Records of `stream`, or of all, from `position` on are trimmed: those who need them stop.
    pub(crate) fn trimmed(&mut self, stream: Option<StreamId>, position: Position) {
        let all = self.hosted.iter_mut();
        let concerned = all.filter(|(own, _)| stream.is_none_or(|stream| stream == **own));
        for object in concerned.flat_map(|(_, objects)| objects) {
            object.stop(Stopped::Trimmed(position));
        }
    }

    /// What is needed to apply `entry` was trimmed: those whose streams it belongs to stop.
    pub(crate) fn passed_by(&mut self, entry: &Entry) {
        if let Kind::Data { streams, .. } = &entry.kind {
            let position = entry.position;
            self.each(streams, position, |object| {
                object.stop(Stopped::Trimmed(position));
            });
        }
    }

    /// What became of the transaction at `of`, as told by somebody who could decide it. The first to say it counts.
    pub(crate) fn learn(&mut self, decision: Decision) {
        if self.applied.is_none_or(|applied| applied < decision.of) {
            self.decisions
                .entry(decision.of)
                .or_insert(decision.verdict);
        }
    }

    /// What became of the transaction in `entry`, as found out in its writer's place. Nobody else may have been told (R5).
    pub(crate) fn found_out(&mut self, entry: &Entry, verdict: Verdict) {
        let of = entry.position;
        if let Kind::Data { streams, .. } = &entry.kind {
            let streams = streams.iter().map(|link| link.stream).collect();
            self.untold.insert(of, (streams, verdict.clone()));
        }
        self.learn(Decision { of, verdict });
    }

    /// What nobody has told of transactions that `stream` holds below `as_of`.
    pub(crate) fn untold(
        &self,
        stream: StreamId,
        as_of: Position,
    ) -> Vec<(Vec<StreamId>, Decision)> {
        let below = self.untold.range(..as_of);
        let own = below.filter(|(_, (streams, _))| streams.contains(&stream));
        own.map(|(of, (streams, verdict))| {
            let (of, verdict) = (*of, verdict.clone());
            (streams.clone(), Decision { of, verdict })
        })
        .collect()
    }

    pub(crate) fn knows(&self, of: Position) -> bool {
        self.decisions.contains_key(&of)
    }

    pub(crate) fn bring(&mut self, manifest: Position, image: ImageReader) {
        self.images.insert(manifest, image);
    }

    /// A stream of `links` that feeds an object here which is still being played.
    fn concerned(&self, position: Position, links: &[StreamLink]) -> Option<StreamId> {
        let mut streams = links.iter().map(|link| link.stream);
        streams.find(|stream| {
            let mut all = self.hosted.get(stream).into_iter().flatten();
            all.any(|object| is_played(&**object, position))
        })
    }

    fn each(
        &mut self,
        links: &[StreamLink],
        position: Position,
        mut what: impl FnMut(&mut dyn Hosted),
    ) {
        for link in links {
            for object in self.hosted.get_mut(&link.stream).into_iter().flatten() {
                if is_played(&**object, position) {
                    what(&mut **object);
                }
            }
        }
    }

    fn commit(
        &mut self,
        position: Position,
        mine: bool,
        links: &[StreamLink],
        commit: &Commit,
    ) -> Result<(), Lacking> {
        let verdict = match self.decide(position, commit) {
            Some(verdict) => {
                let is_told = commit.needs_no_decision() || self.knows(position);
                if !is_told && self.concerned(position, links).is_some() {
                    let streams = links.iter().map(|link| link.stream).collect();
                    self.untold.insert(position, (streams, verdict.clone()));
                }
                verdict
            }
            None => match (
                self.decisions.get(&position),
                self.concerned(position, links),
            ) {
                (Some(verdict), _) => verdict.clone(),
                (None, Some(stream)) => {
                    let alone = commit.alone().filter(|it| self.object(it).is_none());
                    return Err(match alone {
                        Some(object) => Lacking::Object(position, object.clone()),
                        None => Lacking::Decision(position, stream),
                    });
                }
                (None, None) => return Ok(()),
            },
        };
        if verdict == Verdict::Committed {
            self.carry_out(position, links, commit)?;
        }
        if mine {
            self.commits.note(position, verdict);
        }
        Ok(())
    }

    /// What becomes of a transaction at `position`; none if it cannot be decided here.
    pub(crate) fn decide(&self, position: Position, commit: &Commit) -> Option<Verdict> {
        if commit.is_late(position) {
            return Some(Verdict::Conflict(Conflict::Late));
        }
        let at_hand = |number: u32| {
            let object = self.object(commit.object(number))?;
            is_played(object, position).then_some(object)
        };
        if let Some(once) = &commit.once {
            let keeper = at_hand(commit.writes[0].object)?;
            if let Some(first) = keeper.first_of(position, &once.key) {
                return Some(Verdict::Conflict(Conflict::Repeated { first }));
            }
        }
        let mut conflict = None;
        for check in &commit.checks {
            let found = at_hand(check.object)?.seen(&check.part);
            if found != check.seen && conflict.is_none() {
                conflict = Some(Conflict::Changed {
                    object: commit.object(check.object).clone(),
                    part: check.part.clone(),
                    found,
                });
            }
        }
        Some(conflict.map_or(Verdict::Committed, Verdict::Conflict))
    }

    /// O8: nothing is done before all that it takes is here.
    fn carry_out(
        &mut self,
        position: Position,
        links: &[StreamLink],
        commit: &Commit,
    ) -> Result<(), Lacking> {
        let named = |stream: StreamId| links.iter().any(|link| link.stream == stream);
        for write in &commit.writes {
            let object = commit.object(write.object);
            if let Change::Reset(manifest) = &write.change
                && self
                    .object(object)
                    .is_some_and(|object| is_played(object, position))
                && !self.images.contains_key(manifest)
            {
                return Err(Lacking::Image(*manifest));
            }
        }
        for (number, write) in commit.writes.iter().enumerate() {
            let named_object = commit.object(write.object);
            if !named(named_object.stream) {
                continue;
            }
            let mut image = match &write.change {
                Change::Reset(manifest) => self.images.remove(manifest),
                Change::Update(_) => None,
            };
            for object in self
                .hosted
                .get_mut(&named_object.stream)
                .into_iter()
                .flatten()
            {
                if !is_played(&**object, position) {
                    continue;
                }
                match &write.change {
                    Change::Update(update) => object.update(position, false, update),
                    Change::Reset(_) if object.kind() == named_object.kind => {
                        if let Some(image) = image.take() {
                            object.reset(position, image);
                        }
                    }
                    Change::Reset(_) => {
                        let why = super::OperationError::malformed(
                            "the history that it is fed by was rolled back",
                        );
                        object.stop(Stopped::Operation(position, why));
                    }
                }
                // By all that the stream feeds, or what one of them takes for repeated another would not.
                if number == 0
                    && let Some(once) = &commit.once
                {
                    object.note_once(position, once);
                }
            }
        }
        Ok(())
    }
}

/// Whether what is at `position` concerns `object`: it was not stopped before, and its snapshot does not hold it already.
fn is_played(object: &dyn Hosted, position: Position) -> bool {
    object.stopped().is_none() && position >= object.from()
}
