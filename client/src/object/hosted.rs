//! One object as the runtime hosts it: its state, where that stands, and what stopped it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use milonga_wire::Position;
use serde::de::DeserializeOwned;

use super::Object;
use super::codec::{Once, OperationError, bytes_of, decode};
use super::image::{ImageError, ImageReader, ImageWriter};
use super::once::{Noted, Table};
use super::part::{Part, Seen};
use super::waiting::Waiting;

/// What an update brought about, or the one with the same idempotency key before it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Applied<T> {
    /// It took place.
    First(T),
    /// It did not, since one with its key had.
    Repeated {
        /// Where.
        first: Position,
        /// What that brought about; none if it was too long to be remembered.
        outcome: Option<T>,
    },
}

/// An object of any type.
pub(crate) trait Hosted: Any + Send {
    fn kind(&self) -> &'static str;
    /// Everything of its stream below this position is in it from its start on: it came from a snapshot.
    fn from(&self) -> Position;
    fn stopped(&self) -> Option<&Stopped>;
    fn stop(&mut self, why: Stopped);
    /// Applies an update, and keeps the outcome for those who wait if it is `mine`.
    fn update(&mut self, at: Position, mine: bool, update: &[u8]);
    /// The same, unless one with that key took place before.
    fn update_once(&mut self, at: Position, mine: bool, once: &Once, update: &[u8]);
    /// Back to a snapshot.
    fn reset(&mut self, at: Position, image: ImageReader);
    fn seen(&self, part: &Part) -> Seen;
    /// Whether an update changes something of `part`, or may.
    fn touches(&self, update: &[u8], part: &Part) -> bool;
    fn first_of(&self, at: Position, key: &[u8]) -> Option<Position>;
    fn note_once(&mut self, at: Position, once: &Once);
    /// What it has taken since the newest snapshot that this process knows of.
    fn fed(&self) -> Fed;
    /// Of what it has taken, so much is in a snapshot now.
    fn is_kept(&mut self, fed: Fed);
    fn snapshot(&self) -> ImageWriter;
    fn refers_to(&self) -> Option<Position>;
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

/// What an object cannot go on from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Stopped {
    /// A record that it cannot apply.
    Operation(Position, OperationError),
    /// Records from here on were trimmed.
    Trimmed(Position),
}

/// How many updates an object has taken.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Fed {
    pub(crate) updates: u64,
    pub(crate) bytes: u64,
}

/// How a type of object comes into being.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) fresh: fn() -> Box<dyn Hosted>,
    pub(crate) restored: fn(Position, ImageReader) -> Result<Box<dyn Hosted>, ImageError>,
}

impl Kind {
    pub(crate) fn of<O: Object>() -> Self {
        Self {
            name: O::KIND,
            fresh: || Box::new(Cell::<O>::default()),
            restored: |as_of, image| Ok(Box::new(Cell::<O>::restored(as_of, image)?)),
        }
    }
}

/// An object of one type.
pub(crate) struct Cell<O: Object> {
    pub(crate) state: O,
    from: Position,
    /// The position of the last update.
    pub(crate) changed: Option<Position>,
    stopped: Option<Stopped>,
    fed: Fed,
    once: Table,
    pub(crate) waiting: Waiting<Applied<O::Outcome>>,
}

impl<O: Object> Default for Cell<O> {
    fn default() -> Self {
        Self::new(O::default())
    }
}

impl<O: Object> Cell<O> {
    fn new(state: O) -> Self {
        Self {
            state,
            from: Position::FIRST,
            changed: None,
            stopped: None,
            fed: Fed::default(),
            once: Table::default(),
            waiting: Waiting::default(),
        }
    }

    /// An object in the place of this one, with `state` made of a copy of its state, to be played on from `from`.
    pub(crate) fn copied<P: Object>(&self, state: P, from: Position) -> Cell<P> {
        Cell {
            from,
            changed: self.changed,
            once: self.once.clone(),
            ..Cell::new(state)
        }
    }

    fn restored(from: Position, mut image: ImageReader) -> Result<Self, ImageError> {
        let (changed, once) = read_heading(&mut image)?;
        let state = O::restore(&mut image)?;
        Ok(Self {
            from,
            changed,
            once,
            ..Self::new(state)
        })
    }

    /// Applies an update that was encoded. An object whose code panics is stopped there, everywhere alike.
    fn apply(&mut self, at: Position, update: &[u8]) -> Option<O::Outcome> {
        self.fed.updates += 1;
        self.fed.bytes += update.len() as u64;
        let applied = decode(update).and_then(|update| {
            let state = AssertUnwindSafe(&mut self.state);
            let apply = move || {
                let AssertUnwindSafe(state) = { state };
                state.apply(at, update)
            };
            catch_unwind(AssertUnwindSafe(apply)).map_err(|panic| OperationError::Panicked {
                why: said(panic.as_ref()),
            })
        });
        match applied {
            Ok(outcome) => {
                self.changed = Some(at);
                Some(outcome)
            }
            Err(why) => {
                self.stopped = Some(Stopped::Operation(at, why));
                None
            }
        }
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

/// What stands in front of the object's own items.
fn read_heading(image: &mut ImageReader) -> Result<(Option<Position>, Table), ImageError> {
    let missing = || ImageError {
        why: "its heading is missing".to_owned(),
    };
    let (changed, count): (Option<Position>, u64) = image.read()?.ok_or_else(missing)?;
    let mut once = Table::default();
    for _ in 0..count {
        let (key, noted): (Bytes, Noted) = image.read()?.ok_or_else(missing)?;
        once.insert(key, noted);
    }
    Ok((changed, once))
}

impl<O: Object> Hosted for Cell<O> {
    fn kind(&self) -> &'static str {
        O::KIND
    }

    fn from(&self) -> Position {
        self.from
    }

    fn stopped(&self) -> Option<&Stopped> {
        self.stopped.as_ref()
    }

    fn stop(&mut self, why: Stopped) {
        self.stopped.get_or_insert(why);
    }

    fn update(&mut self, at: Position, mine: bool, update: &[u8]) {
        if let Some(outcome) = self.apply(at, update)
            && mine
        {
            self.waiting.note(at, Applied::First(outcome));
        }
    }

    fn update_once(&mut self, at: Position, mine: bool, once: &Once, update: &[u8]) {
        if let Some(noted) = self.once.first(at, &once.key) {
            if mine {
                let outcome = noted.outcome.as_ref();
                let repeated = Applied::Repeated {
                    first: noted.position,
                    outcome: outcome.and_then(|bytes| remembered(bytes)),
                };
                self.waiting.note(at, repeated);
            }
            return;
        }
        if let Some(outcome) = self.apply(at, update) {
            self.once.note(at, once, Some(bytes_of(&outcome)));
            if mine {
                self.waiting.note(at, Applied::First(outcome));
            }
        }
    }

    fn reset(&mut self, at: Position, image: ImageReader) {
        let mut image = image;
        let restored = read_heading(&mut image).and_then(|_| O::restore(&mut image));
        match restored {
            // What took place stays known: a retry of it must not take place again.
            Ok(state) => {
                self.state.reset(at, state);
                self.changed = Some(at);
            }
            Err(why) => {
                let why = OperationError::malformed(why);
                self.stopped = Some(Stopped::Operation(at, why));
            }
        }
    }

    fn seen(&self, part: &Part) -> Seen {
        let whole = Seen {
            count: 0,
            newest: self.changed,
        };
        match part {
            Part::Whole => whole,
            Part::Key(_) | Part::Keys(_) | Part::Lease(_) => self.state.seen(part).unwrap_or(whole),
        }
    }

    fn touches(&self, update: &[u8], part: &Part) -> bool {
        let Ok(update) = decode(update) else {
            return false;
        };
        match (part, O::part(&update)) {
            (Part::Key(one), Part::Key(other)) => *one == other,
            (Part::Keys(keys), Part::Key(key)) => keys.contains(&key),
            (Part::Whole, _) | (_, Part::Whole) => true,
            (_, Part::Keys(keys)) => keys.bounds().is_some(),
            // Which keys went with a lease cannot be told any more.
            (Part::Lease(_), _) | (_, Part::Lease(_)) => false,
        }
    }

    fn first_of(&self, at: Position, key: &[u8]) -> Option<Position> {
        self.once.first(at, key).map(|noted| noted.position)
    }

    fn note_once(&mut self, at: Position, once: &Once) {
        self.once.note(at, once, None);
    }

    fn fed(&self) -> Fed {
        self.fed
    }

    fn is_kept(&mut self, fed: Fed) {
        self.fed.updates = self.fed.updates.saturating_sub(fed.updates);
        self.fed.bytes = self.fed.bytes.saturating_sub(fed.bytes);
    }

    fn snapshot(&self) -> ImageWriter {
        let mut image = ImageWriter::default();
        image.write(&(self.changed, self.once.len() as u64));
        self.once.all().for_each(|noted| image.write(&noted));
        self.state.snapshot(&mut image);
        image
    }

    fn refers_to(&self) -> Option<Position> {
        self.state.refers_to()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

fn remembered<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}
