//! Files that are not in use: the next one, the reserve, and what trimming gave back.

use std::io;

use milonga_host::Disk;
use milonga_wire::Position;

use super::directory::Name;
use super::file::{DataFile, Footer, Spare};
use super::format::{Key, LISTED_BYTES, Listed, PAGE};
use super::recovery::Recovered;
use super::{Options, Store};
use crate::storage::{CommitError, Room};

/// Trimmed files kept beyond the reserve, to be written again.
const POOL_FILES_MAX: usize = 4;
/// With less than this left, a batch may not fit.
const SMALL_BATCH_BYTES: u64 = 64 << 10;

/// Files that are not in use, and what the disk has left.
pub(super) struct Space {
    /// The next data file, ready.
    next: Option<DataFile>,
    /// What becomes the next data file.
    preparing: Option<Spare>,
    spares: Vec<Spare>,
    /// The highest number of a data file, and of a spare one.
    number: u64,
    spare_number: u64,
    free_bytes: u64,
}

impl Space {
    /// What is not in use in a directory just opened.
    pub(super) fn found(
        disk: &dyn Disk,
        options: &Options,
        names: &[String],
        recovered: &mut Recovered,
    ) -> io::Result<Self> {
        let spares = names.iter().filter_map(|name| match Name::parse(name) {
            Some(Name::Spare(number)) => Some(number),
            Some(Name::Data(_)) | None => None,
        });
        let mut space = Self {
            next: None,
            preparing: None,
            spares: Vec::new(),
            number: recovered.number,
            spare_number: spares.clone().max().unwrap_or(0),
            free_bytes: 0,
        };
        for number in std::mem::take(&mut recovered.unused) {
            let name = space.spare_name();
            disk.rename(&Name::Data(number).of(), &name)?;
            space.keep(disk, options, name)?;
        }
        for number in spares {
            space.keep(disk, options, Name::Spare(number).of())?;
        }
        // What is written anew must not be found under its old name (T2).
        disk.sync_names()?;
        while space.spares.len() < options.reserve_files
            && space.create(disk, options.file_bytes)?
        {}
        disk.sync_names()?;
        space.free_bytes = disk.free_bytes()?;
        Ok(space)
    }

    /// Keeps a file that is not in use, if it is of the usual size and there is need of it.
    fn keep(&mut self, disk: &dyn Disk, options: &Options, name: String) -> io::Result<()> {
        let file = disk.open(&name)?;
        let wanted = self.spares.len() < options.reserve_files + POOL_FILES_MAX;
        if wanted && file.size() == options.file_bytes {
            let filled = file.size();
            self.spares.push(Spare { name, file, filled });
            return Ok(());
        }
        drop(file);
        disk.remove(&name)
    }

    fn spare_name(&mut self) -> String {
        self.spare_number += 1;
        Name::Spare(self.spare_number).of()
    }

    /// Makes one more file, if the disk has room for it.
    fn create(&mut self, disk: &dyn Disk, size: u64) -> io::Result<bool> {
        let name = self.spare_name();
        match disk.create(&name, size) {
            Ok(file) => {
                self.free_bytes = self.free_bytes.saturating_sub(size);
                let filled = 0;
                self.spares.push(Spare { name, file, filled });
                Ok(true)
            }
            Err(error) if is_full(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn take_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// How much room is left, `remaining` bytes in the current file (T4).
    pub(super) fn room(&self, options: &Options, remaining: u64) -> Room {
        let ready = usize::from(self.next.is_some()) + usize::from(self.preparing.is_some());
        let spare = (ready + self.spares.len()) as u64;
        let possible = spare + self.free_bytes / options.file_bytes;
        let reserve = options.reserve_files as u64;
        let ample = remaining >= options.file_bytes / 4;
        if possible > reserve || (possible == reserve && ample) {
            Room::Plenty
        } else if possible > 0 || remaining >= options.file_bytes / 2 {
            Room::Reserve
        } else if remaining >= SMALL_BATCH_BYTES.min(options.file_bytes / 8) {
            Room::Little
        } else {
            Room::None
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let next = self.next.as_ref().map_or(0, |file| file.file.size());
        let preparing = self.preparing.as_ref().map_or(0, |spare| spare.file.size());
        let spares: u64 = self.spares.iter().map(|spare| spare.file.size()).sum();
        next + preparing + spares
    }
}

/// Whether the disk has no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

impl Store {
    fn new_key(&mut self) -> Key {
        let number = self.space.take_number();
        Key::new(self.owner, number, self.random.next())
    }

    /// The data files that there are, but for `number`, and where each ends.
    pub(super) fn listed(&self, number: u64) -> Vec<Listed> {
        let others = self.files.iter().filter(|(other, _)| **other != number);
        others
            .filter_map(|(other, file)| Some(file.listed(self.index.file(*other)?)))
            .collect()
    }

    /// Opens the next data file, with room for `bytes` beside what every file has.
    ///
    /// # Errors
    /// [`CommitError::Full`] if there is none, and no room for one: nothing has changed then.
    pub(super) fn roll(&mut self, bytes: u64) -> Result<(), CommitError> {
        let list = (self.files.len() * LISTED_BYTES) as u64;
        let needed = PAGE + bytes + 2 * list + 512;
        let file = match self.next_file(needed) {
            Ok(Some(file)) => file,
            Ok(None) => return Err(CommitError::Full),
            Err(error) => return Err(self.fail(&error)),
        };
        let number = file.key.number;
        self.current = Some(number);
        self.files.insert(number, file);
        self.index.begin(number);
        Ok(())
    }

    /// The next data file, ready or made so now; none if the disk is full.
    fn next_file(&mut self, needed: u64) -> io::Result<Option<DataFile>> {
        if needed > self.options.file_bytes {
            return self.large_file(needed.next_multiple_of(PAGE));
        }
        if let Some(next) = self.space.next.take() {
            return Ok(Some(next));
        }
        let size = self.options.file_bytes;
        let empty = self.space.preparing.is_none() && self.space.spares.is_empty();
        if empty && !self.space.create(&*self.disk, size)? {
            return Ok(None);
        }
        let preparing = self.space.preparing.take();
        let spare = preparing.unwrap_or_else(|| self.space.spares.remove(0));
        let key = self.new_key();
        spare.begin(&*self.disk, self.owner, key).map(Some)
    }

    /// A file of its own for a batch that is larger than the usual file.
    fn large_file(&mut self, size: u64) -> io::Result<Option<DataFile>> {
        if !self.space.create(&*self.disk, size)? {
            return Ok(None);
        }
        let spare = self.space.spares.pop().expect("it was just made");
        // A number that was given to a file made ready before would be lower than the files begun since.
        if let Some(ready) = self.space.next.take() {
            self.put_back(ready)?;
        }
        let key = self.new_key();
        spare.begin(&*self.disk, self.owner, key).map(Some)
    }

    /// Removes a file that is not in use, if there is one.
    pub(super) fn give_up(&mut self) -> io::Result<bool> {
        if self.space.spares.is_empty() {
            self.space.spares.extend(self.space.preparing.take());
        }
        if self.space.spares.is_empty()
            && let Some(ready) = self.space.next.take()
        {
            self.put_back(ready)?;
        }
        let Some(Spare { name, file, .. }) = self.space.spares.pop() else {
            return Ok(false);
        };
        drop(file);
        self.disk.remove(&name)?;
        self.disk.sync_names()?;
        Ok(true)
    }

    /// A data file without a batch becomes a spare one again.
    fn put_back(&mut self, file: DataFile) -> io::Result<()> {
        let name = self.space.spare_name();
        self.disk.rename(&Name::Data(file.key.number).of(), &name)?;
        self.disk.sync_names()?;
        let filled = file.file.size();
        self.space.spares.push(Spare {
            name,
            file: file.file,
            filled,
        });
        Ok(())
    }

    /// Does one thing that need not be done while a client waits. Returns whether there may be more.
    pub(super) fn tidy(&mut self) -> io::Result<bool> {
        self.space.free_bytes = self.disk.free_bytes()?;
        Ok(self.free_one()? || self.prepare()? || self.close_one()? || self.reserve()?)
    }

    /// The oldest file whose positions are all trimmed (T3), and its end.
    fn trimmed_file(&self) -> Option<(u64, Position)> {
        let newest = self.files.keys().next_back().copied();
        let with_batch = self.files.iter().rfind(|(_, file)| file.summary.last > 0);
        let state_at = with_batch
            .map(|(number, _)| *number)
            .max(self.current)
            .or(newest);
        let trimmed = self.state.trimmed;
        let older = self.files.keys().copied();
        older
            .take_while(|number| Some(*number) < state_at)
            .filter_map(|number| Some((number, self.index.file(number)?.end)))
            .find(|(_, end)| *end <= trimmed)
    }

    /// Frees a file whose positions are all trimmed (T3), once what is left of its streams is kept (T5).
    fn free_one(&mut self) -> io::Result<bool> {
        let trimmed = self.trimmed_file();
        if self.keep_streams(trimmed.map(|(_, end)| end))? {
            return Ok(true);
        }
        let Some((number, _)) = trimmed else {
            return Ok(false);
        };
        let mut file = self.files.remove(&number).expect("it was just found");
        self.index.remove(number);
        let unheld = file.let_go();
        let usual = file.file.size() == self.options.file_bytes;
        let pool = self.options.reserve_files + POOL_FILES_MAX;
        if unheld && usual && self.space.spares.len() < pool {
            self.put_back(file)?;
        } else {
            drop(file);
            self.disk.remove(&Name::Data(number).of())?;
            self.disk.sync_names()?;
        }
        Ok(true)
    }

    /// Makes the next file ready, step by step.
    fn prepare(&mut self) -> io::Result<bool> {
        if self.space.next.is_some() {
            return Ok(false);
        }
        if let Some(spare) = &mut self.space.preparing {
            if spare.fill()? {
                return Ok(true);
            }
            let key = self.new_key();
            if let Some(spare) = self.space.preparing.take() {
                self.space.next = Some(spare.begin(&*self.disk, self.owner, key)?);
            }
            return Ok(true);
        }
        let enough = self.space.spares.len() > self.options.reserve_files;
        if !enough && !self.space.create(&*self.disk, self.options.file_bytes)? {
            return Ok(false);
        }
        self.space.preparing = self.space.spares.pop();
        Ok(true)
    }

    /// Writes the index of a closed file at its end.
    fn close_one(&mut self) -> io::Result<bool> {
        let current = self.current;
        let open = self
            .files
            .iter_mut()
            .find(|(number, file)| Some(**number) != current && file.footer == Footer::Missing);
        let Some((number, file)) = open else {
            return Ok(false);
        };
        let Some(frozen) = self
            .index
            .file(*number)
            .map(super::index::FileIndex::freeze)
        else {
            file.footer = Footer::NoRoom;
            return Ok(true);
        };
        file.write_footer(&frozen)?;
        let number = *number;
        self.index.replace(number, frozen);
        Ok(true)
    }

    /// Fills the reserve up, where the disk has room again.
    fn reserve(&mut self) -> io::Result<bool> {
        let missing = self.space.spares.len() < self.options.reserve_files;
        Ok(missing && self.space.create(&*self.disk, self.options.file_bytes)?)
    }
}
