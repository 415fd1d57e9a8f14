//! A disk in memory that crashes, tears, lies and fills as its owner says: for simulations and tests.
//!
//! Plain and deterministic: it has no randomness of its own. A [`MemoryDisk`] is the medium, which outlives crashes; a
//! [`MemoryDisk::attach`]ed [`Disk`] is one process's use of it, dead after the next [`MemoryDisk::kill`] or
//! [`MemoryDisk::crash`], so that nothing a dead process left behind can still write.
//!
//! A sector is old or new, never a mix. What was written since the last good sync survives a crash sector by sector as
//! the caller decides; changes of names survive up to the caller's choice, in order. After a *failed* sync the written
//! bytes are still read back, count as clean and are gone after the next crash, as Linux does it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::{Disk, File};

/// Bytes that are written as one.
pub const SECTOR_BYTES: u64 = 512;

/// What a process asks of the disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Operation<'a> {
    /// Make a file.
    Create {
        /// Its name.
        name: &'a str,
    },
    /// Rename one.
    Rename {
        /// Its name.
        from: &'a str,
        /// Its next name.
        to: &'a str,
    },
    /// Remove one.
    Remove {
        /// Its name.
        name: &'a str,
    },
    /// Make names durable.
    SyncNames,
    /// Read from a file.
    Read {
        /// Its name.
        name: &'a str,
        /// From where.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Write into a file.
    Write {
        /// Its name.
        name: &'a str,
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Make a file's bytes durable.
    Sync {
        /// Its name.
        name: &'a str,
    },
}

/// What becomes of an [`Operation`].
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It fails without having done anything (but for a sync, see the module).
    Fail(io::ErrorKind),
    /// A write stops after so many bytes, and fails.
    Stop(u64),
    /// A sync says it is done and does nothing.
    Lie,
}

/// Decides what becomes of each operation. Must not use the disk.
pub type Faults = Box<dyn FnMut(&Operation<'_>) -> Outcome + Send>;

/// The medium. Clones are the same one.
#[derive(Clone)]
pub struct MemoryDisk(Arc<Mutex<Medium>>);

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let medium = self.medium();
        f.debug_struct("MemoryDisk")
            .field("names", &medium.names.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

type Shared = Arc<Mutex<Content>>;

struct Medium {
    capacity: u64,
    names: BTreeMap<String, Shared>,
    durable: BTreeMap<String, Shared>,
    /// Changes of names since the last sync of names.
    changes: Vec<NameChange>,
    /// Which start of a process owns the disk now.
    process: u64,
    locked: bool,
    mappable: bool,
    faults: Option<Faults>,
}

enum NameChange {
    Create(String, Shared),
    Rename(String, String),
    Remove(String),
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, Shared>) {
        match self {
            Self::Create(name, content) => {
                names.insert(name.clone(), Arc::clone(content));
            }
            Self::Rename(from, to) => {
                if let Some(content) = names.remove(from) {
                    names.insert(to.clone(), content);
                }
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

/// A file's bytes as they are read, and what its unsynced sectors would fall back to.
struct Content {
    name: String,
    bytes: Vec<u8>,
    /// Written since the last good sync.
    dirty: BTreeMap<u64, Vec<u8>>,
    /// Written before a failed sync, and never written again since: gone at the next crash.
    lost: BTreeMap<u64, Vec<u8>>,
}

impl Content {
    fn sector(&self, number: u64) -> std::ops::Range<usize> {
        let start = (number * SECTOR_BYTES) as usize;
        start..(start + SECTOR_BYTES as usize).min(self.bytes.len())
    }

    fn write(&mut self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let number = offset / SECTOR_BYTES;
            let sector = self.sector(number);
            let at = offset as usize;
            let len = bytes.len().min(sector.end - at);
            let old = self.lost.remove(&number);
            let current = &self.bytes[sector];
            self.dirty
                .entry(number)
                .or_insert_with(|| old.unwrap_or_else(|| current.to_vec()));
            self.bytes[at..at + len].copy_from_slice(&bytes[..len]);
            bytes = &bytes[len..];
            offset += len as u64;
        }
    }

    fn fall_back(&mut self, number: u64, old: &[u8]) {
        let sector = self.sector(number);
        self.bytes[sector].copy_from_slice(old);
    }

    fn crash(&mut self, survives: &mut dyn FnMut(&str, u64) -> bool) {
        for (number, old) in std::mem::take(&mut self.lost) {
            self.fall_back(number, &old);
        }
        for (number, old) in std::mem::take(&mut self.dirty) {
            if !survives(&self.name, number) {
                self.fall_back(number, &old);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Medium {
    fn check(&self, process: u64) -> io::Result<()> {
        if self.process == process {
            Ok(())
        } else {
            Err(io::Error::other("this process has ended"))
        }
    }

    fn outcome(&mut self, operation: &Operation<'_>) -> Outcome {
        self.faults
            .as_mut()
            .map_or(Outcome::Done, |faults| faults(operation))
    }

    fn free(&self) -> u64 {
        let used: u64 = self
            .names
            .values()
            .map(|content| lock(content).bytes.len() as u64)
            .sum();
        self.capacity.saturating_sub(used)
    }

    fn find(&self, name: &str) -> io::Result<Shared> {
        self.names
            .get(name)
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }
}

impl MemoryDisk {
    /// An empty disk of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Self(Arc::new(Mutex::new(Medium {
            capacity,
            names: BTreeMap::new(),
            durable: BTreeMap::new(),
            changes: Vec::new(),
            process: 0,
            locked: false,
            mappable: false,
            faults: None,
        })))
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        lock(&self.0)
    }

    /// The disk as one more handle of the process that owns it now sees it.
    pub fn attach(&self) -> Arc<dyn Disk> {
        Arc::new(Attached {
            medium: self.clone(),
            process: self.medium().process,
            locks: Mutex::new(false),
        })
    }

    /// Decides from now on what becomes of each operation; none: all are done.
    pub fn set_faults(&self, faults: Option<Faults>) {
        self.medium().faults = faults;
    }

    /// Makes the disk larger or smaller. Files stay, whatever their size.
    pub fn set_capacity(&self, capacity: u64) {
        self.medium().capacity = capacity;
    }

    /// Whether [`File::map`] works (it copies); it does not at first.
    pub fn set_mappable(&self, mappable: bool) {
        self.medium().mappable = mappable;
    }

    /// The process ends; the machine goes on, with everything it was given to write.
    pub fn kill(&self) {
        let mut medium = self.medium();
        medium.process += 1;
        medium.locked = false;
    }

    /// The machine loses power. Of the changes of names since the last sync, the first `names_kept` survive; of the
    /// sectors written since the last good sync of their file, those that `survives` says, by name and number.
    pub fn crash(&self, names_kept: usize, survives: &mut dyn FnMut(&str, u64) -> bool) {
        self.kill();
        let mut medium = self.medium();
        let changes = std::mem::take(&mut medium.changes);
        let mut names = medium.durable.clone();
        for change in changes.iter().take(names_kept) {
            change.apply(&mut names);
        }
        for (name, content) in &names {
            let mut content = lock(content);
            content.name.clone_from(name);
            content.crash(survives);
        }
        medium.durable = names.clone();
        medium.names = names;
    }

    /// How many changes of names are not durable yet.
    pub fn unsynced_names(&self) -> usize {
        self.medium().changes.len()
    }

    /// The sectors that are not durable yet, by name and number.
    pub fn unsynced_sectors(&self) -> Vec<(String, u64)> {
        let medium = self.medium();
        let contents = medium.names.iter();
        contents
            .flat_map(|(name, content)| {
                let numbers: Vec<u64> = lock(content).dirty.keys().copied().collect();
                numbers.into_iter().map(|number| (name.clone(), number))
            })
            .collect()
    }

    /// The bytes of a file as a process would read them; none if there is no such file.
    pub fn bytes(&self, name: &str) -> Option<Vec<u8>> {
        let content = self.medium().find(name).ok()?;
        let bytes = lock(&content).bytes.clone();
        Some(bytes)
    }

    /// The names in the directory.
    pub fn names(&self) -> Vec<String> {
        self.medium().names.keys().cloned().collect()
    }

    /// Flips bits of one byte, on the medium itself. Nothing happens beyond the end.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) {
        let Ok(content) = self.medium().find(name) else {
            return;
        };
        let mut content = lock(&content);
        let Content {
            bytes, dirty, lost, ..
        } = &mut *content;
        let (sector, within) = (offset / SECTOR_BYTES, (offset % SECTOR_BYTES) as usize);
        let olds = [dirty.get_mut(&sector), lost.get_mut(&sector)];
        for old in olds.into_iter().flatten() {
            if let Some(byte) = old.get_mut(within) {
                *byte ^= mask;
            }
        }
        if let Some(byte) = bytes.get_mut(offset as usize) {
            *byte ^= mask;
        }
    }

    /// Another disk with the same durable content and names, as a copied directory or a snapshot is.
    pub fn snapshot(&self) -> Self {
        let medium = self.medium();
        let copy = Self::new(medium.capacity);
        let names: BTreeMap<String, Shared> = medium
            .names
            .iter()
            .map(|(name, content)| {
                let content = Content {
                    name: name.clone(),
                    bytes: lock(content).bytes.clone(),
                    dirty: BTreeMap::new(),
                    lost: BTreeMap::new(),
                };
                (name.clone(), Arc::new(Mutex::new(content)))
            })
            .collect();
        {
            let mut target = copy.medium();
            target.durable.clone_from(&names);
            target.names = names;
        }
        copy
    }
}

/// One process's use of the medium.
struct Attached {
    medium: MemoryDisk,
    process: u64,
    locks: Mutex<bool>,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut medium = self.medium.medium();
        if *lock(&self.locks) && medium.process == self.process {
            medium.locked = false;
        }
    }
}

impl Attached {
    /// The medium, if the process lives and the operation is to be done.
    fn admit(&self, operation: &Operation<'_>) -> io::Result<(MutexGuard<'_, Medium>, bool)> {
        let mut medium = self.medium.medium();
        medium.check(self.process)?;
        match medium.outcome(operation) {
            Outcome::Done | Outcome::Stop(_) => Ok((medium, true)),
            Outcome::Lie => Ok((medium, false)),
            Outcome::Fail(kind) => Err(kind.into()),
        }
    }

    fn handle(&self, content: Shared) -> Arc<dyn File> {
        let size = lock(&content).bytes.len() as u64;
        Arc::new(AttachedFile {
            medium: self.medium.clone(),
            process: self.process,
            size,
            content,
        })
    }
}

impl Disk for Attached {
    fn lock(&self) -> io::Result<()> {
        let mut medium = self.medium.medium();
        medium.check(self.process)?;
        if medium.locked && !*lock(&self.locks) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        medium.locked = true;
        *lock(&self.locks) = true;
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let medium = self.medium.medium();
        medium.check(self.process)?;
        Ok(medium.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let medium = self.medium.medium();
        medium.check(self.process)?;
        Ok(self.handle(medium.find(name)?))
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn File>> {
        let (mut medium, _) = self.admit(&Operation::Create { name })?;
        if medium.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if medium.free() < size {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let content = Arc::new(Mutex::new(Content {
            name: name.to_owned(),
            bytes: vec![0; size as usize],
            dirty: BTreeMap::new(),
            lost: BTreeMap::new(),
        }));
        medium.change(NameChange::Create(name.to_owned(), Arc::clone(&content)));
        Ok(self.handle(content))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (mut medium, _) = self.admit(&Operation::Rename { from, to })?;
        let content = medium.find(from)?;
        to.clone_into(&mut lock(&content).name);
        medium.change(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let (mut medium, _) = self.admit(&Operation::Remove { name })?;
        medium.find(name)?;
        medium.change(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let (mut medium, honest) = self.admit(&Operation::SyncNames)?;
        if honest {
            medium.durable = medium.names.clone();
            medium.changes.clear();
        }
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let medium = self.medium.medium();
        medium.check(self.process)?;
        Ok(medium.free())
    }
}

struct AttachedFile {
    medium: MemoryDisk,
    process: u64,
    content: Shared,
    size: u64,
}

impl AttachedFile {
    fn outcome(&self, operation: impl FnOnce(&str) -> Operation<'_>) -> io::Result<Outcome> {
        let mut medium = self.medium.medium();
        medium.check(self.process)?;
        let name = lock(&self.content).name.clone();
        Ok(medium.outcome(&operation(&name)))
    }
}

impl File for AttachedFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let len = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(io::Error::other("a write beyond the end of a file"));
        }
        let outcome = self.outcome(|name| Operation::Write { name, offset, len })?;
        let mut left = match outcome {
            Outcome::Done => len,
            Outcome::Stop(bytes) => bytes.min(len),
            Outcome::Fail(kind) => return Err(kind.into()),
            Outcome::Lie => 0,
        };
        let mut content = lock(&self.content);
        let mut at = offset;
        for part in parts {
            let here = left.min(part.len() as u64);
            content.write(at, &part[..here as usize]);
            at += here;
            left -= here;
        }
        match outcome {
            Outcome::Stop(_) => Err(io::Error::other("the write stopped")),
            Outcome::Done | Outcome::Fail(_) | Outcome::Lie => Ok(()),
        }
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let len = out.len() as u64;
        if let Outcome::Fail(kind) = self.outcome(|name| Operation::Read { name, offset, len })? {
            return Err(kind.into());
        }
        let content = lock(&self.content);
        let end = offset.checked_add(len).filter(|end| *end <= self.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(&content.bytes[offset as usize..end as usize]);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let outcome = self.outcome(|name| Operation::Sync { name })?;
        let mut content = lock(&self.content);
        match outcome {
            Outcome::Done | Outcome::Stop(_) => {
                content.dirty.clear();
                Ok(())
            }
            Outcome::Lie => Ok(()),
            Outcome::Fail(kind) => {
                let dirty = std::mem::take(&mut content.dirty);
                content.lost.extend(dirty);
                Err(kind.into())
            }
        }
    }

    fn map(&self) -> io::Result<Bytes> {
        let medium = self.medium.medium();
        medium.check(self.process)?;
        if medium.mappable {
            Ok(Bytes::from(lock(&self.content).bytes.clone()))
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(disk: &MemoryDisk) -> Arc<dyn File> {
        let attached = disk.attach();
        let file = attached.create("f", 2_048).unwrap();
        attached.sync_names().unwrap();
        file.write_at(0, &[IoSlice::new(&[1; 1_024])]).unwrap();
        file
    }

    /// D1: each unsynced sector is old or new by itself; synced ones stay.
    #[test]
    fn a_crash_takes_unsynced_sectors_one_by_one() {
        let disk = MemoryDisk::new(1 << 20);
        let file = written(&disk);
        file.sync().unwrap();
        file.write_at(0, &[IoSlice::new(&[2; 1_024])]).unwrap();

        disk.crash(0, &mut |_, sector| sector == 1);

        let bytes = disk.bytes("f").unwrap();
        assert_eq!((bytes[0], bytes[511], bytes[512]), (1, 1, 2));
        assert!(file.sync().is_err(), "a dead process writes nothing");
    }

    /// H30, D3: a second sync after a failed one reports success, and the bytes are gone all the same.
    #[test]
    fn what_a_failed_sync_lost_is_read_until_the_crash() {
        let disk = MemoryDisk::new(1 << 20);
        let file = written(&disk);
        disk.set_faults(Some(Box::new(|operation| match operation {
            Operation::Sync { .. } => Outcome::Fail(io::ErrorKind::Other),
            _ => Outcome::Done,
        })));
        assert!(file.sync().is_err());
        disk.set_faults(None);
        file.sync().unwrap();
        let before = disk.bytes("f").unwrap()[0];

        disk.crash(0, &mut |_, _| true);

        assert_eq!((before, disk.bytes("f").unwrap()[0]), (1, 0));
    }

    /// D2: a name that was not synced may be gone, and an earlier one never survives without those before it.
    #[test]
    fn names_survive_in_order() {
        for kept in 0..=3 {
            let disk = MemoryDisk::new(1 << 20);
            let attached = disk.attach();
            drop(attached.create("a", 512).unwrap());
            attached.rename("a", "b").unwrap();
            drop(attached.create("c", 512).unwrap());

            disk.crash(kept, &mut |_, _| true);

            let expected: &[&[&str]] = &[&[], &["a"], &["b"], &["b", "c"]];
            assert_eq!(disk.names(), expected[kept]);
        }
    }

    #[test]
    fn a_full_disk_refuses_and_a_second_owner_is_turned_away() {
        let disk = MemoryDisk::new(1_024);
        let attached = disk.attach();
        attached.lock().unwrap();
        assert_eq!(
            disk.attach().lock().unwrap_err().kind(),
            io::ErrorKind::ResourceBusy
        );
        assert_eq!(
            attached.create("a", 2_048).map(|_| ()).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
        drop(attached.create("a", 1_024).unwrap());
        assert_eq!(attached.free_bytes().unwrap(), 0);
        drop(attached);
        disk.attach().lock().unwrap();
    }
}
