//! Plays the objects of one [`World`]: brings it what the log holds, and what it lacks to go on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use milonga_host::{BoxFuture, Moment};
use milonga_wire::limits::ENTRY_BYTES_MAX;
use milonga_wire::{Position, Session, Span, StreamId, Term};

use super::codec::{Commit, Decision, Named, Record, Verdict, decision};
use super::error::{PlayError, UpdateError};
use super::hosted::{Hosted, Kind};
use super::playback::Playback;
use super::snapshot;
use super::world::{Lacking, World};
use crate::entry::{Entry, Kind as EntryKind};
use crate::log::{End, Log};

/// Records applied between two moments at which others may look.
const APPLIED_AT_ONCE: usize = 256;
/// How long the writer of a transaction is waited for before others decide it; each waits up to twice as long.
const WRITER: Duration = Duration::from_millis(500);
/// Between two looks for a decision: from the first to the second, doubling.
const PAUSES: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// How objects come into being, by kind: those that this process has opened, and those that come with this crate.
pub(crate) type Kinds = Arc<Mutex<BTreeMap<&'static str, Kind>>>;

/// Objects, and the place in the log at which they all stand.
pub(crate) struct Group {
    log: Log,
    kinds: Kinds,
    pub(crate) world: Arc<Mutex<World>>,
    pub(crate) playback: Playback,
    ahead: Ahead,
}

/// How far the log was looked through for decisions.
#[derive(Default)]
struct Ahead {
    stream: Option<StreamId>,
    term: Term,
    upto: Position,
    /// The transaction that holds all up, since when, and how long its writer is waited for.
    stuck: Option<(Position, Moment, Duration)>,
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Group {
    /// Objects that nobody has opened yet; outcomes of `session`, or of all, are kept for those who wait.
    pub(crate) fn new(log: &Log, kinds: &Kinds, session: Option<Session>) -> Self {
        Self {
            log: log.clone(),
            kinds: Arc::clone(kinds),
            world: Arc::new(Mutex::new(World::new(session))),
            playback: Playback::new(log, []),
            ahead: Ahead::default(),
        }
    }

    /// Hosts `object` from its start on, before anything is played.
    pub(crate) fn host(&mut self, stream: StreamId, object: Box<dyn Hosted>) {
        let mut world = locked(&self.world);
        world.insert(stream, object);
        self.playback.set_streams(world.streams());
    }

    /// Hosts `kind` as its newest snapshot that holds nothing at or above `limit` has it, else from its start on.
    pub(crate) async fn host_restored(
        &mut self,
        stream: StreamId,
        kind: Kind,
        limit: Position,
    ) -> Result<(), PlayError> {
        let object = snapshot::newest(&self.log, stream, kind, limit).await?;
        self.host(stream, object.unwrap_or_else(kind.fresh));
        Ok(())
    }

    /// Hosts from now on what `other` hosts. Both were played up to the same end.
    pub(crate) fn absorb(&mut self, other: Self) {
        let theirs = std::mem::replace(&mut *locked(&other.world), World::new(None));
        let mut world = locked(&self.world);
        world.absorb(theirs);
        self.playback.joined_by(&other.playback);
        self.playback.set_streams(world.streams());
    }

    /// Brings no more what nobody is interested in any more.
    pub(crate) fn look_again(&mut self) {
        let world = locked(&self.world);
        if !self.playback.has_streams(world.streams()) {
            self.playback.set_streams(world.streams());
        }
    }

    /// The streams to ask the sequencer for.
    pub(crate) fn asked(&self) -> Vec<StreamId> {
        self.playback.asked()
    }

    /// Plays up to `end`, which was confirmed.
    pub(crate) async fn play(&mut self, end: &End) -> Result<(), PlayError> {
        self.playback.begin(end);
        while self.play_some().await? {}
        Ok(())
    }

    /// Plays up to `position`, which lies below a confirmed end of `term`.
    pub(crate) async fn play_to(
        &mut self,
        position: Position,
        term: Term,
    ) -> Result<(), PlayError> {
        self.playback.begin_to(position, term, BTreeMap::new());
        while self.play_some().await? {}
        Ok(())
    }

    /// Plays one batch; false once it has come to the end that it was begun for. A call that is dropped loses nothing.
    pub(crate) async fn play_some(&mut self) -> Result<bool, PlayError> {
        if !self.playback.fetch().await? {
            return Ok(false);
        }
        while self.playback.next_ready().is_some() {
            if let Some(lacking) = self.apply_some()? {
                self.bring(lacking).await?;
            }
        }
        Ok(true)
    }

    /// Applies some of what was brought, unless something is lacking.
    fn apply_some(&mut self) -> Result<Option<Lacking>, PlayError> {
        let mut world = locked(&self.world);
        for _ in 0..APPLIED_AT_ONCE {
            let Some(found) = self.playback.next_ready() else {
                return Ok(None);
            };
            let position = found.entry.position;
            match &found.entry.kind {
                EntryKind::Data {
                    stamp,
                    streams,
                    payload,
                    ..
                } => {
                    if let Err(lacking) = world.apply(position, *stamp, streams, payload) {
                        return Ok(Some(lacking));
                    }
                    world.played = world.played.max(position.next());
                }
                EntryKind::Trimmed => world.trimmed(found.of, position),
                EntryKind::Unknown | EntryKind::Unwritten => {
                    drop(world);
                    self.playback.stop();
                    return Err(PlayError::Lost(position));
                }
                EntryKind::Junk { .. } => {}
            }
            self.playback.handed_on();
        }
        Ok(None)
    }

    fn bring(&mut self, lacking: Lacking) -> BoxFuture<'_, Result<(), PlayError>> {
        // In a box: what has to be brought may take another group to be played.
        Box::pin(async move {
            match lacking {
                Lacking::Image(manifest) => {
                    let image = snapshot::image(&self.log, manifest).await?;
                    let mut world = locked(&self.world);
                    match (image, self.playback.next_ready()) {
                        (Some(image), _) => world.bring(manifest, image),
                        // Later snapshots hold what it went back to.
                        (None, Some(found)) => world.passed_by(&found.entry),
                        (None, None) => {}
                    }
                    Ok(())
                }
                Lacking::Decision(of, stream) => self.bring_decision(of, stream).await,
                Lacking::Object(of, object) => self.bring_object(of, object).await,
            }
        })
    }

    /// Plays along from now on an object that decides what another here takes part in.
    async fn bring_object(&mut self, of: Position, object: Named) -> Result<(), PlayError> {
        let under_way = self.playback.under_way();
        let (end, term) = under_way.expect("what lacks it was just brought");
        let kind = self.kind_for(of, &object.kind)?;
        let mut companion = Self::new(&self.log, &self.kinds, None);
        companion.host_restored(object.stream, kind, of).await?;
        companion.play_to(of, term).await?;
        self.absorb(companion);
        // Nothing of what was played already lies between there and here, so it goes on where both stand.
        self.playback.begin_to(end, term, BTreeMap::new());
        Ok(())
    }

    /// What an object that is needed to decide the transaction at `of` is.
    fn kind_for(&self, of: Position, kind: &str) -> Result<Kind, PlayError> {
        let known = locked(&self.kinds).get(kind).copied();
        known.ok_or_else(|| PlayError::Undecided {
            position: of,
            why: format!("this program knows no objects that are a {kind}"),
        })
    }

    /// Looks for the decision of the transaction at `of` further on in `stream`; if its writer does not tell, decides it.
    async fn bring_decision(&mut self, of: Position, stream: StreamId) -> Result<(), PlayError> {
        let host = self.log.host().clone();
        let begun = host.clock.now();
        let mut pause = PAUSES.0;
        loop {
            let end = self.log.end_of(&[stream]).await?;
            self.look_ahead(of, stream, &end).await?;
            if locked(&self.world).knows(of) {
                self.ahead.stuck = None;
                return Ok(());
            }
            let now = host.clock.now();
            let (since, patience) = match self.ahead.stuck {
                Some((stuck, since, patience)) if stuck == of => (since, patience),
                Some(_) | None => {
                    let patience = WRITER + host.random.jittered(WRITER);
                    self.ahead.stuck = Some((of, now, patience));
                    (now, patience)
                }
            };
            if now.since(since) >= patience {
                let entry = self.playback.log().read(of).await?;
                let found = self.decide(&entry, end.term).await?;
                let mut world = locked(&self.world);
                match found {
                    Some(verdict) => world.found_out(&entry, verdict),
                    // Later snapshots hold what became of it (R4).
                    None => world.passed_by(&entry),
                }
                return Ok(());
            }
            if now.since(begun) >= self.log.options().deadline {
                let why = "its writer is waited for".to_owned();
                return Err(PlayError::Undecided { position: of, why });
            }
            host.clock.sleep(host.random.jittered(pause)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Notes every decision that `stream` holds above `of` and below `end`; what was looked through is not looked at again.
    async fn look_ahead(
        &mut self,
        of: Position,
        stream: StreamId,
        end: &End,
    ) -> Result<(), PlayError> {
        let ahead = &self.ahead;
        let goes_on = ahead.stream == Some(stream) && ahead.term == end.term;
        let from = if goes_on {
            of.next().max(ahead.upto)
        } else {
            of.next()
        };
        let last = end.streams.first().map(|link| &link.before);
        let span = Span::new(from.min(end.counter), end.counter);
        let mut reader = self.playback.log().stream_reader(stream, span, last);
        while let Some(entries) = reader.next().await? {
            let mut world = locked(&self.world);
            for entry in entries {
                if let Some(Ok(Record::Decision(decision))) =
                    entry.payload().map(|bytes| Record::parse(bytes))
                {
                    world.learn(decision);
                }
            }
        }
        self.ahead.stream = Some(stream);
        self.ahead.term = end.term;
        self.ahead.upto = end.counter;
        Ok(())
    }

    /// Decides a transaction in its writer's place: replays what it checked up to there, and tells everybody. None if that was
    /// trimmed.
    async fn decide(&self, entry: &Entry, term: Term) -> Result<Option<Verdict>, PlayError> {
        let of = entry.position;
        let undecided = |why: &str| PlayError::Undecided {
            position: of,
            why: why.to_owned(),
        };
        let commit = commit_in(entry).ok_or_else(|| undecided("it is not readable"))?;
        let mut shadow = Self::new(&self.log, &self.kinds, None);
        for Named { stream, kind } in commit.decided_by() {
            let kind = self.kind_for(of, kind)?;
            shadow.host_restored(*stream, kind, of).await?;
        }
        shadow.play_to(of, term).await?;
        let verdict = {
            let world = locked(&shadow.world);
            let mut needed = commit.decided_by().into_iter();
            match world.decide(of, &commit) {
                Some(verdict) => verdict,
                None if needed.any(|object| world.is_trimmed(object)) => return Ok(None),
                None => return Err(undecided("what it checked cannot be replayed")),
            }
        };
        if let EntryKind::Data { streams, .. } = &entry.kind {
            let streams: Vec<StreamId> = streams.iter().map(|link| link.stream).collect();
            let verdict = verdict.clone();
            tell(&self.log, &streams, Decision { of, verdict }).await;
        }
        Ok(Some(verdict))
    }
}

pub(crate) fn commit_in(entry: &Entry) -> Option<Commit> {
    match Record::parse(entry.payload()?) {
        Ok(Record::Commit(commit)) => Some(commit),
        Ok(_) | Err(_) => None,
    }
}

/// Tells what became of a transaction, in all the streams that it writes. If that fails, others decide it again.
pub(crate) async fn tell(log: &Log, streams: &[StreamId], found: Decision) {
    if let Err(error) = told(log, streams, found).await {
        tracing::debug!(%error, "a decision could not be told");
    }
}

/// The same, and it has to be.
pub(crate) async fn told(
    log: &Log,
    streams: &[StreamId],
    found: Decision,
) -> Result<(), UpdateError> {
    let record = decision(found);
    let record = record.map_err(UpdateError::too_large("a decision", ENTRY_BYTES_MAX))?;
    log.append(record, streams).await?;
    Ok(())
}
