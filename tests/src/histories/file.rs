//! What a client process writes down as it goes on: a file of events, readable up to wherever its process was killed.
//!
//! An event is one write to the file, behind its length, before the client goes on: what was asked is in the file before any
//! server hears of it. An event that was cut off at the end of a file did not happen.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use milonga_wire::Position;
use rustix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::object_history::{Asked, Change, Operation, Told, Watched};

/// No event is longer.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Nanoseconds of the one clock that all processes of this machine share.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// What an operation is, to people who count them.
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A value is set, whatever there was.
    Put,
    /// A key is removed, whatever there was.
    Delete,
    /// A value is set, or a key removed, if it is as expected.
    Cas,
    /// A value is set under an idempotency key.
    PutOnce,
    /// The same again, by a process that does not know what became of it when it was killed.
    Retry,
    /// Several are set or removed together, whatever there was.
    Together,
    /// A serializable transaction.
    Serializable,
    /// One of snapshot isolation.
    Snapshot,
    /// One that only minds who wrote what it read and writes.
    WriteWrite,
    /// One key is read.
    Get,
    /// All keys of a map are read.
    Scan,
    /// All keys of this process's copy are read.
    ScanStale,
    /// A map as of a position is read.
    At,
}

/// One thing that happened to a client.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// It asked.
    Asked {
        /// Its own number of it, from 0 on, in the order of the file.
        number: u64,
        /// Which client of the process.
        client: u64,
        /// When.
        at: u64,
        /// As what it is counted.
        kind: Kind,
        /// What.
        what: Asked,
    },
    /// It was told.
    Told {
        /// Of what it asked.
        number: u64,
        /// When.
        at: u64,
        /// What.
        told: Told,
    },
    /// A watch began.
    Watch {
        /// Its own number, likewise.
        watch: u64,
        /// Of which map.
        map: u64,
        /// From where on.
        from: Position,
    },
    /// It told a change.
    Changed {
        /// Which watch.
        watch: u64,
        /// When.
        at: u64,
        /// What.
        change: Change,
    },
    /// It said that there is no more.
    CaughtUp {
        /// Which watch.
        watch: u64,
        /// When it was asked.
        asked: u64,
    },
}

/// Writes events as they happen.
pub struct Recorder {
    file: File,
    operations: AtomicU64,
    watches: AtomicU64,
    answered: AtomicU64,
}

impl Recorder {
    /// Into a new file.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create_new(path).with_context(|| path.display().to_string())?;
        Ok(Self {
            file,
            operations: AtomicU64::new(0),
            watches: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        })
    }

    /// A client asks.
    pub fn ask(&self, client: u64, kind: Kind, what: Asked) -> u64 {
        let number = self.operations.fetch_add(1, Ordering::Relaxed);
        let at = now_ns();
        self.write(&Event::Asked {
            number,
            client,
            at,
            kind,
            what,
        });
        number
    }

    /// It is told.
    pub fn tell(&self, number: u64, told: Told) {
        let at = now_ns();
        self.write(&Event::Told { number, at, told });
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    /// A watch begins.
    pub fn watch(&self, map: u64, from: Position) -> u64 {
        let watch = self.watches.fetch_add(1, Ordering::Relaxed);
        self.write(&Event::Watch { watch, map, from });
        watch
    }

    /// A watch tells a change.
    pub fn changed(&self, watch: u64, change: Change) {
        let at = now_ns();
        self.write(&Event::Changed { watch, at, change });
    }

    /// A watch that was asked at `asked` says that there is no more.
    pub fn caught_up(&self, watch: u64, asked: u64) {
        self.write(&Event::CaughtUp { watch, asked });
    }

    /// How many operations were answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// A process that cannot write down what it does must not do it.
    fn write(&self, event: &Event) {
        // Appended by one call, so that events of several tasks do not mix.
        let written = frame(event).and_then(|frame| Ok((&self.file).write_all(&frame)?));
        written.expect("a history can be written");
    }
}

/// A value behind its length.
fn frame(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut frame = postcard::to_extend(value, vec![0; 4])?;
    let length = frame.len() - 4;
    if length > EVENT_BYTES_MAX {
        bail!("an event of {length} bytes");
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// The values of a file, one after another; the last one may be cut off.
struct Frames<T> {
    path: PathBuf,
    file: BufReader<File>,
    frame: Vec<u8>,
    kind: std::marker::PhantomData<T>,
}

impl<T: DeserializeOwned> Frames<T> {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(1 << 18, file),
            frame: vec![],
            kind: std::marker::PhantomData,
        })
    }

    /// The next one; none at the end, and where the rest was cut off.
    fn next(&mut self) -> Result<Option<T>> {
        let mut length = [0; 4];
        if !fill(&mut self.file, &mut length)? {
            return Ok(None);
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > EVENT_BYTES_MAX {
            bail!("{} is damaged", self.path.display());
        }
        self.frame.resize(length, 0);
        if !fill(&mut self.file, &mut self.frame)? {
            return Ok(None);
        }
        let value = postcard::from_bytes(&self.frame);
        value
            .map(Some)
            .with_context(|| format!("{} is damaged", self.path.display()))
    }
}

/// Whether there was enough to fill it.
fn fill(file: &mut impl Read, bytes: &mut [u8]) -> Result<bool> {
    match file.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// All that the clients of some processes wrote down.
#[derive(Debug, Default)]
pub struct Recording {
    /// What they asked and were told.
    pub operations: Vec<Operation>,
    /// As what each is counted.
    pub kinds: Vec<Kind>,
    /// What watches told.
    pub watches: Vec<Watched>,
}

impl Recording {
    /// Adds what is in the file of one process, up to where it was cut off.
    ///
    /// # Errors
    /// If it cannot be read, or is no file of events.
    pub fn read(&mut self, path: &Path) -> Result<()> {
        let (first, first_watch) = (self.operations.len(), self.watches.len());
        let mut frames = Frames::open(path)?;
        // Several clients write to it, so that the numbers of two that ask at once may be the other way round.
        let (mut places, mut watches) = (BTreeMap::new(), BTreeMap::new());
        let strange = || format!("{} names what it does not have", path.display());
        while let Some(event) = frames.next()? {
            match event {
                Event::Asked {
                    number,
                    client,
                    at,
                    kind,
                    what,
                } => {
                    places.insert(number, first + places.len());
                    self.kinds.push(kind);
                    self.operations.push(Operation {
                        client,
                        asked: at,
                        what,
                        told: None,
                    });
                }
                Event::Told { number, at, told } => {
                    let place = places.get(&number).with_context(strange)?;
                    self.operations[*place].told = Some((at, told));
                }
                Event::Watch { watch, map, from } => {
                    watches.insert(watch, first_watch + watches.len());
                    self.watches.push(Watched {
                        map,
                        from,
                        changes: vec![],
                        caught_up: vec![],
                    });
                }
                Event::Changed { watch, at, change } => {
                    let place = watches.get(&watch).with_context(strange)?;
                    self.watches[*place].changes.push((at, change));
                }
                Event::CaughtUp { watch, asked } => {
                    let place = watches.get(&watch).with_context(strange)?;
                    let watch = &mut self.watches[*place];
                    watch.caught_up.push((asked, watch.changes.len()));
                }
            }
        }
        Ok(())
    }
}

/// Writes all changes that a replay found.
///
/// # Errors
/// If they cannot be written.
pub fn write_changes(path: &Path, changes: &[Change]) -> Result<()> {
    let file = File::create_new(path).with_context(|| path.display().to_string())?;
    let mut file = std::io::BufWriter::new(file);
    for change in changes {
        file.write_all(&frame(change)?)?;
    }
    Ok(file.flush()?)
}

/// Reads them.
///
/// # Errors
/// If they cannot be read.
pub fn read_changes(path: &Path) -> Result<Vec<Change>> {
    let mut frames = Frames::open(path)?;
    let mut changes = vec![];
    while let Some(change) = frames.next()? {
        changes.push(change);
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object_history::Mode;

    fn write() -> Asked {
        Asked::Write {
            writes: vec![((1, 2), Some(3))],
            mode: Mode::Serializable,
            once: Some(4),
        }
    }

    fn recorded(path: &Path) {
        let recorder = Recorder::create(path).unwrap();
        let first = recorder.ask(7, Kind::PutOnce, write());
        let watch = recorder.watch(1, Position(5));
        recorder.tell(first, Told::Done(Position(6), vec![]));
        recorder.ask(8, Kind::Get, Asked::Read);
        let change = Change {
            position: Position(6),
            key: (1, 2),
            value: Some(3),
        };
        recorder.changed(watch, change);
        recorder.caught_up(watch, now_ns());
    }

    #[test]
    fn what_was_recorded_is_read_again_and_what_was_not_told_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        recorded(&path);
        let mut recording = Recording::default();
        recording.read(&path).unwrap();

        let [first, second] = &recording.operations[..] else {
            panic!("{recording:?}")
        };
        assert_eq!((first.client, &first.what), (7, &write()));
        let (told, what) = first.told.clone().unwrap();
        assert!(told > first.asked && second.asked >= told);
        assert_eq!(what, Told::Done(Position(6), vec![]));
        assert_eq!(second.told, None);
        assert_eq!(recording.kinds, [Kind::PutOnce, Kind::Get]);
        assert_eq!(recording.watches[0].changes.len(), 1);
        assert_eq!(recording.watches[0].caught_up[0].1, 1);
    }

    /// A process may be killed within a write.
    #[test]
    fn a_file_is_readable_up_to_wherever_it_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        recorded(&path);
        let whole = std::fs::read(&path).unwrap();
        let mut seen = 0;
        for length in 0..=whole.len() {
            let cut = dir.path().join(format!("cut {length}"));
            std::fs::write(&cut, &whole[..length]).unwrap();
            let mut recording = Recording::default();
            recording.read(&cut).unwrap();
            let now = recording.operations.len() + recording.watches.len();
            assert!(now >= seen);
            seen = now;
        }
        assert_eq!(seen, 3);
    }

    #[test]
    fn a_file_of_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        std::fs::write(&path, [255; 64]).unwrap();
        assert!(Recording::default().read(&path).is_err());
    }
}
