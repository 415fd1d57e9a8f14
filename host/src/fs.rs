//! A server's directory on a real file system: the only file here that names it, beside the one that loads certificates.
//!
//! Writes go through `pwritev` and `fdatasync`, never through a map; maps are read-only, and only of files that are
//! not written again. An I/O error on a mapped page kills the process (SIGBUS): who cannot afford that reads instead.

use std::fs::{self, DirBuilder};
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{AtFlags, FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::{Disk, File};

/// Parts that one call of the system takes.
const PARTS_MAX: usize = 1024;

/// A directory of the machine.
#[derive(Debug)]
pub struct FsDisk {
    directory: OwnedFd,
    path: PathBuf,
}

impl FsDisk {
    /// The directory at `path`, made (readable by its owner alone) if there is none.
    ///
    /// # Errors
    /// The machine's.
    pub fn at(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Self::existing(path)
    }

    /// The directory at `path`, which must exist.
    ///
    /// # Errors
    /// The machine's.
    pub fn existing(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            directory: rustix::fs::open(path, flags, Mode::empty())?,
            path: path.to_owned(),
        })
    }

    fn open_at(&self, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = flags | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(&self.directory, name, flags, mode)?)
    }
}

impl Disk for FsDisk {
    fn lock(&self) -> io::Result<()> {
        match rustix::fs::flock(&self.directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(io::ErrorKind::ResourceBusy.into()),
            other => Ok(other?),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(&self.path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let fd = self.open_at(name, OFlags::empty())?;
        let size = u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0);
        Ok(Arc::new(FsFile { fd, size }))
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn File>> {
        let fd = self.open_at(name, OFlags::CREATE | OFlags::EXCL)?;
        match rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, size) {
            Ok(()) => Ok(Arc::new(FsFile { fd, size })),
            Err(error) => {
                rustix::fs::unlinkat(&self.directory, name, AtFlags::empty())?;
                Err(error.into())
            }
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(
            &self.directory,
            from,
            &self.directory,
            to,
        )?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(
            &self.directory,
            name,
            AtFlags::empty(),
        )?)
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.directory)?)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.directory)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// An open file of the machine.
#[derive(Debug)]
struct FsFile {
    fd: OwnedFd,
    size: u64,
}

impl File for FsFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn write_at(&self, mut offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        for group in parts.chunks(PARTS_MAX) {
            let mut rest: Vec<IoSlice<'_>>;
            let mut left = group;
            while left.iter().any(|part| !part.is_empty()) {
                let written = match rustix::io::pwritev(&self.fd, left, offset) {
                    Err(Errno::INTR) => continue,
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    other => other?,
                };
                offset += written as u64;
                rest = behind(left, written);
                left = &rest;
            }
        }
        Ok(())
    }

    fn read_at(&self, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            match rustix::io::pread(&self.fd, &mut *out, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    out = &mut out[read..];
                    offset += read as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.fd)?)
    }

    #[allow(unsafe_code)]
    fn map(&self) -> io::Result<Bytes> {
        // SAFETY: the caller says that the file is never written again, and the directory is locked against other
        // processes of this program. That nobody else cuts or rewrites it is what a server's directory is for.
        let map = unsafe { memmap2::Mmap::map(&self.fd)? };
        Ok(Bytes::from_owner(map))
    }
}

/// What of `parts` lies behind its first `written` bytes.
fn behind<'a>(parts: &[IoSlice<'a>], mut written: usize) -> Vec<IoSlice<'a>> {
    let mut rest = Vec::new();
    for part in parts {
        let mut part = *part;
        let here = written.min(part.len());
        written -= here;
        part.advance(here);
        if !part.is_empty() {
            rest.push(part);
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, FsDisk) {
        let temporary = tempfile::tempdir().unwrap();
        let disk = FsDisk::at(&temporary.path().join("unit")).unwrap();
        (temporary, disk)
    }

    #[test]
    fn a_file_reads_back_what_was_written_in_more_parts_than_one_call_takes() {
        let (_temporary, disk) = directory();
        let file = disk.create("a", 16_384).unwrap();
        let bytes: Vec<u8> = (0..3_000_u32).map(|n| (n % 251) as u8).collect();
        let parts: Vec<IoSlice<'_>> = bytes.chunks(1).map(IoSlice::new).collect();

        file.write_at(7, &parts).unwrap();
        file.sync().unwrap();
        disk.sync_names().unwrap();

        let mut read = vec![0; 3_000];
        disk.open("a").unwrap().read_at(7, &mut read).unwrap();
        assert_eq!(read, bytes);
        assert_eq!(file.map().unwrap()[7..3_007], bytes);
        assert_eq!(file.size(), 16_384);
        let beyond = file.read_at(16_380, &mut [0; 8]).unwrap_err();
        assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
    }

    /// Two processes on one directory would each overwrite what the other acknowledged.
    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let (temporary, disk) = directory();
        let other = FsDisk::existing(&temporary.path().join("unit")).unwrap();

        disk.lock().unwrap();
        let refused = other.lock().unwrap_err().kind();
        drop(disk);

        assert_eq!(refused, io::ErrorKind::ResourceBusy);
        other.lock().unwrap();
    }

    #[test]
    fn names_come_and_go() {
        let (_temporary, disk) = directory();
        drop(disk.create("b", 4_096).unwrap());
        disk.rename("b", "a").unwrap();
        let twice = disk.create("a", 1).map(|_| ()).unwrap_err();
        let listed = disk.list().unwrap();
        disk.remove("a").unwrap();

        assert_eq!(twice.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(listed, ["a"]);
        assert!(disk.list().unwrap().is_empty());
        assert!(disk.free_bytes().unwrap() > 0);
    }

    /// A file that does not fit must not leave its name behind: it would be taken for a data file.
    #[test]
    fn a_file_that_does_not_fit_leaves_nothing_behind() {
        let (_temporary, disk) = directory();
        assert!(disk.create("huge", 1 << 60).is_err());
        assert!(disk.list().unwrap().is_empty());
    }

    #[test]
    fn a_write_cut_short_goes_on_where_it_stopped() {
        let parts = [
            IoSlice::new(b"abc"),
            IoSlice::new(b""),
            IoSlice::new(b"def"),
        ];
        for written in 0..=6 {
            let rest: Vec<u8> = behind(&parts, written)
                .iter()
                .flat_map(|part| part.to_vec())
                .collect();
            assert_eq!(rest, b"abcdef"[written..]);
        }
    }
}
