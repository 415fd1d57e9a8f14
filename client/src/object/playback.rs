//! Moves along the streams of some objects: brings what is new, in order.

use std::collections::{BTreeMap, VecDeque};

use milonga_host::Host;
use milonga_wire::limits::STREAMS_PER_ENTRY_MAX;
use milonga_wire::{Before, Position, StreamId, Term};
use tokio::sync::oneshot;

use crate::log::{End, Log};
use crate::options::Options;
use crate::read::ReadError;
use crate::streams::{Found, Together, Wanted};
use crate::trouble::Unavailable;

/// Batches of at least this many records are followed by others, most likely: the next is fetched while one is applied.
const LONG: usize = 512;

/// How the next batch comes.
enum Reading {
    /// When it is asked for.
    Here(Together),
    /// It is under way.
    Ahead(oneshot::Receiver<(Together, Batch)>),
}

type Batch = Result<Option<Vec<Found>>, ReadError>;

/// A place in the log, as far as some streams are concerned: everything of them before it was handed on, once and in order (O3).
pub(crate) struct Playback {
    log: Log,
    /// Each with the place from which it is wanted.
    streams: BTreeMap<StreamId, Position>,
    /// Everything below it that was issued up to `term` was handed on.
    played: Position,
    term: Term,
    /// The position of the last record handed on.
    applied: Option<Position>,
    /// What is being read, and up to where.
    reading: Option<(Reading, Position, Term)>,
    /// What was read and not handed on yet.
    ready: VecDeque<Found>,
}

impl Playback {
    /// The place before the first record of `streams`, each from its position on.
    pub(crate) fn new(log: &Log, streams: impl IntoIterator<Item = (StreamId, Position)>) -> Self {
        // A hole must be settled before anybody may pass it, whatever else this client's reads do.
        let options = Options {
            settle: true,
            ..log.options().clone()
        };
        Self {
            log: log.with_options(options),
            streams: streams.into_iter().collect(),
            played: Position::FIRST,
            term: Term::GENESIS,
            applied: None,
            reading: None,
            ready: VecDeque::new(),
        }
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// The streams that it asks the sequencer for: none if there are more than one question may name.
    pub(crate) fn asked(&self) -> Vec<StreamId> {
        match self.streams.len() {
            0..=STREAMS_PER_ENTRY_MAX => self.streams.keys().copied().collect(),
            _ => vec![],
        }
    }

    /// Which streams it brings from now on. What is new among them was played by others up to the same place.
    pub(crate) fn set_streams(&mut self, streams: impl IntoIterator<Item = (StreamId, Position)>) {
        self.streams = streams.into_iter().collect();
        self.reading = None;
        self.ready.clear();
    }

    pub(crate) fn has_streams(&self, streams: impl Iterator<Item = (StreamId, Position)>) -> bool {
        self.streams
            .keys()
            .copied()
            .eq(streams.map(|(stream, _)| stream))
    }

    /// Takes notice that others have played up to this place.
    pub(crate) fn joined_by(&mut self, other: &Self) {
        self.applied = self.applied.max(other.applied);
    }

    /// Gets ready to bring what lies below `end`: up to the counter, since what lies above it was never issued in its term (O5).
    pub(crate) fn begin(&mut self, end: &End) {
        let last = end.streams.iter();
        let last = last
            .map(|link| (link.stream, link.before.clone()))
            .collect();
        self.begin_to(end.counter, end.term, last);
    }

    /// Gets ready to bring what lies below `end`, of which `last` says where the streams end.
    pub(crate) fn begin_to(
        &mut self,
        end: Position,
        term: Term,
        mut last: BTreeMap<StreamId, Before>,
    ) {
        self.ready.clear();
        let next = self.next(term);
        let wanted = self.streams.iter().map(|(stream, from)| Wanted {
            stream: *stream,
            from: next.max(*from).min(end),
            last: last.remove(stream),
        });
        let together = Together::new(&self.log, wanted.collect(), end);
        self.reading = Some((Reading::Here(together), end, term));
    }

    /// Up to where it was begun, and has not come yet.
    pub(crate) fn under_way(&self) -> Option<(Position, Term)> {
        self.reading.as_ref().map(|(_, end, term)| (*end, *term))
    }

    /// Whether it was begun and has not come to the end yet.
    pub(crate) fn has_begun(&self) -> bool {
        self.reading.is_some()
    }

    /// Brings more; false once all was brought and handed on.
    ///
    /// After an error it must be begun again: what was brought before the trouble has been handed on. A call that is
    /// dropped loses nothing and repeats nothing.
    pub(crate) async fn fetch(&mut self) -> Result<bool, ReadError> {
        if !self.ready.is_empty() {
            return Ok(true);
        }
        let Some((reading, end, term)) = &mut self.reading else {
            return Ok(false);
        };
        let (end, term) = (*end, *term);
        match reading.next(self.log.host()).await {
            Ok(Some(found)) => {
                self.ready = found.into();
                Ok(true)
            }
            Ok(None) => {
                (self.played, self.term) = (end, term);
                self.reading = None;
                Ok(false)
            }
            Err(error) => {
                self.reading = None;
                Err(error)
            }
        }
    }

    /// What is to be handed on next.
    pub(crate) fn next_ready(&self) -> Option<&Found> {
        self.ready.front()
    }

    /// It was handed on.
    pub(crate) fn handed_on(&mut self) {
        if let Some(found) = self.ready.pop_front()
            && found.entry.payload().is_some()
        {
            self.applied = Some(found.entry.position);
        }
    }

    /// Nothing behind what is ready may be handed on.
    pub(crate) fn stop(&mut self) {
        self.reading = None;
        self.ready.clear();
    }

    /// Where the next record can be, as far as a sequencer of `term` may have issued (O5).
    ///
    /// What was held when a term ended lies below the next one's open segment, so what was handed on stays. But positions
    /// that were issued in vain are issued again, to entries that nobody has seen.
    fn next(&self, term: Term) -> Position {
        let behind = self.applied.map_or(Position::FIRST, Position::next);
        if term == self.term {
            behind.max(self.played)
        } else {
            behind
        }
    }
}

impl Reading {
    /// The next batch. A call that is dropped loses nothing.
    async fn next(&mut self, host: &Host) -> Batch {
        let batch = match self {
            Self::Here(together) => together.next().await,
            Self::Ahead(coming) => {
                let Ok((together, batch)) = coming.await else {
                    let why = "the task that was reading ahead is gone".to_owned();
                    return Err(ReadError::Unavailable(Unavailable::Protocol { why }));
                };
                *self = Self::Here(together);
                batch
            }
        };
        if matches!(&batch, Ok(Some(found)) if found.len() >= LONG) {
            self.go_ahead(host);
        }
        batch
    }

    /// Has the batch after this one fetched by a task of its own, so that it comes while this one is applied.
    fn go_ahead(&mut self, host: &Host) {
        let (tell, coming) = oneshot::channel();
        if let Self::Here(mut together) = std::mem::replace(self, Self::Ahead(coming)) {
            host.tasks.spawn(async move {
                let batch = together.next().await;
                // Nobody listens any more if the playback was given up.
                let _ = tell.send((together, batch));
            });
        }
    }
}
