//! Who needs the log from where on, and trimming no further than that.

use futures_util::future::try_join_all;
use milonga_wire::{Position, Span, StreamId};

use super::{Keeping, KeepingState};
use crate::log::Log;
use crate::object::codec::{BACK_WITHIN, Manifest, Named};
use crate::object::cursors::CursorsState;
use crate::object::directory::{DirectoryState, Listed};
use crate::object::error::{DecideError, OpenError, PlayError};
use crate::object::hold::Hold;
use crate::object::lock::LockError;
use crate::object::snapshot;
use crate::object::{Cursors, Object, SnapshotError};
use crate::trim::TrimError;

/// Objects that the runtime itself lives on: each in the stream of its kind's name.
const RUNTIME: [&str; 3] = [DirectoryState::KIND, CursorsState::KIND, KeepingState::KIND];
/// Objects that are looked at at once.
const AT_ONCE: usize = 16;

/// Something that needs the log from a position on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Need {
    /// What: `object NAME`, `cursor NAME` or `pin POSITION`.
    pub what: String,
    /// From here on.
    pub from: Position,
}

/// How far the log was trimmed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kept {
    /// Everything below it was given back.
    pub trimmed: Position,
    /// What kept more from being given back, if something did.
    pub held_by: Option<Need>,
}

/// Why the work was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeepError {
    /// What is needed could not be played.
    #[error(transparent)]
    Play(#[from] PlayError),
    /// Something could not be noted.
    #[error(transparent)]
    Decide(#[from] DecideError),
    /// The lock of those who do the work could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// That lock was not to be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A snapshot could not be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// It could not be trimmed.
    #[error(transparent)]
    Trim(#[from] TrimError),
}

/// An object that is kept, and what is left of its history.
pub(super) struct Own {
    pub(super) name: String,
    pub(super) object: Named,
    /// The newest snapshot from which it can be started.
    pub(super) newest: Option<Manifest>,
    /// Its start and its snapshots, lowest first: never none.
    bases: Vec<Base>,
    /// From here on it needs the log.
    pub(super) from: Position,
    /// The same but for what may be gone back to, which no other snapshot makes needless before the log is that long.
    rests_on: Position,
    back_until: Option<Position>,
}

/// What an object can be played on from.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Base {
    /// Everything of its stream below is in it.
    as_of: Position,
    /// What has to stay in the log for it: from here on.
    needs: Position,
    /// With what may be gone back to from there on (R3).
    with_back: Position,
}

impl Own {
    /// Whether another snapshot lets more of what lies below `to` go.
    pub(super) fn is_in_the_way(&self, to: Position, end: Position) -> bool {
        let is_over = self.back_until.is_some_and(|until| until < end);
        self.rests_on < to || self.from < to && is_over
    }

    /// Everything below is in its newest snapshot, or lies before its start.
    pub(super) fn as_of(&self) -> Position {
        self.bases.last().map_or(Position::FIRST, |base| base.as_of)
    }

    /// What it is replayed from by those who have to know how it stood at `at`, or later.
    fn base_at(&self, at: Position) -> Base {
        let below = self.bases.partition_point(|base| base.as_of <= at);
        self.bases[below.saturating_sub(1)]
    }
}

/// R4: whoever plays an object on from its newest snapshot may have to decide what it takes part in.
fn meet_each_other(objects: &mut [Own]) {
    let needs = |own: &Own| {
        let later = objects.iter().filter(|it| it.as_of() > own.as_of());
        let bases = later.map(|it| it.base_at(own.as_of()));
        bases.fold((own.from, own.rests_on), |(from, rests_on), base| {
            (from.min(base.with_back), rests_on.min(base.needs))
        })
    };
    let all: Vec<(Position, Position)> = objects.iter().map(needs).collect();
    for (own, (from, rests_on)) in objects.iter_mut().zip(all) {
        (own.from, own.rests_on) = (from, rests_on);
    }
}

impl Keeping {
    pub(super) fn log(&self) -> &Log {
        self.view.log()
    }

    /// Everything that needs some of the log, lowest first.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn needs(&self) -> Result<Vec<Need>, PlayError> {
        let need = |what, from| Need { what, from };
        let mut needs = vec![];
        for (name, cursor) in Cursors::open(self.view.objects()).all().await? {
            needs.push(need(format!("cursor {name}"), cursor.position));
        }
        let pins = self.view.read(|state| state.pins().collect::<Vec<_>>());
        for (name, pin) in pins.await? {
            needs.push(need(format!("pin {name}"), pin.from));
        }
        for own in self.objects().await? {
            needs.push(need(format!("object {}", own.name), own.from));
        }
        needs.sort_by(|one, other| (one.from, &one.what).cmp(&(other.from, &other.what)));
        Ok(needs)
    }

    /// Every object that has a name, and those of the runtime itself.
    pub(super) async fn objects(&self) -> Result<Vec<Own>, PlayError> {
        let mut all: Vec<(String, Named, Option<Position>)> = vec![];
        for (name, listed) in self.view.objects().all().await? {
            let Listed {
                kind,
                stream,
                since,
            } = listed;
            all.push((name, Named { stream, kind }, Some(since)));
        }
        for kind in RUNTIME {
            let stream = StreamId::of_name(kind);
            let kind = kind.to_owned();
            all.push((kind.clone(), Named { stream, kind }, None));
        }
        let mut objects = vec![];
        for some in all.chunks(AT_ONCE) {
            let looks = some
                .iter()
                .map(|(name, object, since)| look(self.log(), name, object, *since));
            objects.extend(try_join_all(looks).await?.into_iter().flatten());
        }
        meet_each_other(&mut objects);
        Ok(objects)
    }

    /// Trims up to `to`, whoever needs what goes: what is returned lost some of what it needs. What the runtime itself lives on, the
    /// names of objects first of all, is written anew before.
    ///
    /// # Errors
    /// [`KeepError`].
    pub async fn trim_by_force(&self, to: Position) -> Result<(Position, Vec<Need>), KeepError> {
        let end = self.log().end().await.map_err(PlayError::from)?.counter;
        if to > end {
            return Err(TrimError::BeyondEnd { asked: to, end }.into());
        }
        let mut lose = vec![];
        match self.needs().await {
            Ok(needs) => lose.extend(needs.into_iter().filter(|need| need.from < to)),
            // Then there is nothing left to be spared.
            Err(PlayError::Trimmed(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let objects = self.view.objects();
        for name in RUNTIME {
            let what = format!("object {name}");
            let is_hit = lose.iter().any(|need| need.what == what);
            if let Some(kind) = objects.kind(name).filter(|_| is_hit) {
                let stream = StreamId::of_name(name);
                let kind_name = name.to_owned();
                let object = Named {
                    stream,
                    kind: kind_name,
                };
                Hold::new(objects, object, kind).snapshot().await?;
                lose.retain(|need| need.what != what);
            }
        }
        Ok((self.log().trim(to).await?, lose))
    }

    /// Trims up to `to`, but no further than what somebody needs (R1).
    ///
    /// # Errors
    /// [`KeepError`].
    pub async fn trim(&self, to: Position) -> Result<Kept, KeepError> {
        let end = self.log().end().await.map_err(PlayError::from)?.counter;
        if to > end {
            return Err(TrimError::BeyondEnd { asked: to, end }.into());
        }
        let lowest = self.needs().await?.into_iter().next();
        let held_by = lowest.filter(|need| need.from < to);
        let limit = held_by.as_ref().map_or(to, |need| need.from);
        let trimmed = self.log().trim(limit).await?;
        Ok(Kept { trimmed, held_by })
    }
}

/// None if nothing was ever written to it.
async fn look(
    log: &Log,
    name: &str,
    object: &Named,
    since: Option<Position>,
) -> Result<Option<Own>, PlayError> {
    let manifests = snapshot::manifests(log, object).await?;
    let (past, usable): (Vec<_>, Vec<_>) = manifests.iter().partition(|(_, it)| it.is_past);
    let newest = usable.iter().map(|(_, it)| *it);
    let newest = newest.max_by_key(|it| it.as_of).cloned();
    let start = match since {
        Some(since) => Some(since),
        None => first_of(log, object.stream).await?,
    };
    // What is left may begin behind a snapshot: then that is the start.
    let is_start = |start: &Position| usable.iter().all(|(_, it)| *start < it.as_of);
    let start = start.filter(is_start).map(|start| (start, start));
    let bases = usable.iter().map(|(_, it)| (it.as_of, it.needs()));
    let mut bases: Vec<Base> = start
        .into_iter()
        .chain(bases)
        .map(|(as_of, needs)| {
            // R3.
            let back = past
                .iter()
                .filter(|(position, _)| as_of <= position.plus(BACK_WITHIN));
            let back = back.map(|(_, it)| it.needs()).min();
            let with_back = back.map_or(needs, |back| back.min(needs));
            Base {
                as_of,
                needs,
                with_back,
            }
        })
        .collect();
    bases.sort_unstable();
    let back_until = past.iter().map(|(position, _)| position.plus(BACK_WITHIN));
    let back_until = back_until.max();
    Ok(bases.last().copied().map(|last| Own {
        name: name.to_owned(),
        object: object.clone(),
        newest,
        bases,
        from: last.with_back,
        rests_on: last.needs,
        back_until,
    }))
}

/// The first record of a stream that is left; none if there is none.
async fn first_of(log: &Log, stream: StreamId) -> Result<Option<Position>, PlayError> {
    let end = log.end_of(&[stream]).await?;
    let last = end.streams.first().map(|link| &link.before);
    let span = Span::new(Position::FIRST, end.counter);
    let mut reader = log.stream_reader(stream, span, last);
    while let Some(entries) = reader.next().await? {
        if let Some(first) = entries.iter().find(|entry| entry.payload().is_some()) {
            return Ok(Some(first.position));
        }
    }
    Ok(None)
}
