//! One server's directory, as a trait: what a log unit and a layout server may assume of a disk, and no more.
//!
//! - D1 What was written and then synced is read back after a crash. What was not synced may be there, in part, or not.
//! - D2 A new, renamed or removed name is durable only after [`Disk::sync_names`].
//! - D3 After a failed sync nothing is known about what was written since the last good one; nobody syncs again and goes on.
//!
//! Calls block. A shell decides on which thread that may happen; a simulated disk answers at once.

use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;

/// A directory that one process owns.
pub trait Disk: Send + Sync + 'static {
    /// Takes the directory for this process, until the disk is dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if another process has it.
    fn lock(&self) -> io::Result<()>;

    /// The names in it, sorted.
    ///
    /// # Errors
    /// The machine's.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is none.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Makes a file of `size` zero bytes whose space is really there: writing into it later cannot run out of it.
    /// The zeros need not be durable before the first sync of the file.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] without leaving anything behind; [`io::ErrorKind::AlreadyExists`].
    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn File>>;

    /// Gives a file another name, replacing what had it.
    ///
    /// # Errors
    /// The machine's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name.
    ///
    /// # Errors
    /// The machine's.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes all changes of names durable.
    ///
    /// # Errors
    /// The machine's; D3 holds.
    fn sync_names(&self) -> io::Result<()>;

    /// Bytes that could still be written.
    ///
    /// # Errors
    /// The machine's.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// An open file of fixed size.
pub trait File: Send + Sync + 'static {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Writes all of `parts`, one after the other, from `offset`.
    ///
    /// # Errors
    /// The machine's; part of it may have been written.
    fn write_at(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends first.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// The machine's; D3 holds.
    fn sync(&self) -> io::Result<()>;

    /// The bytes of a file that is never written again, to be shared without copying: mapped where the machine can
    /// and the caller allows it, else read on demand.
    ///
    /// # Errors
    /// The machine's. [`io::ErrorKind::Unsupported`]: use [`File::read_at`].
    fn map(&self) -> io::Result<Bytes>;
}
