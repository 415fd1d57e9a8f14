//! A layout server's directory: who it is, its vote, and every decided layout.
//!
//! ```text
//! identity                       cluster, name, identity
//! vote                           the vote in the newest term voted in
//! decided-00000000000000000000   the layout of term 0, and so on without a gap
//! new                            one of these, half written
//! ```
//! Each file is written whole under the name `new`, synced, and renamed: it is there as it was meant, or not at all.
//! Before its body (postcard) stand a magic number, the format version, the body's length and a crc32 over all of them.
//!
//! - V1 After [`Store::commit`] returns `Ok`, the change is found again after any crash.
//! - V2 After it returns `Err`, every later one does: nothing is known about the disk any more (D3).
//! - V3 A directory of another cluster, server or format is refused, never changed; a damaged one never votes.

use std::io::{self, IoSlice};
use std::sync::Arc;

use milonga_host::Disk;
use milonga_wire::{ClusterId, Decided, Identity, ServerName, Term};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::acceptor::{Change, InvalidHistory, Vote};

const MAGIC: [u8; 8] = *b"milongaL";
/// The format that this program writes, and the newest it reads.
const VERSION: u32 = 1;
/// Magic, version, length of the body, crc.
const HEADER: usize = 20;
/// No body is larger: a layout and its acceptances, with room to spare.
const BODY_BYTES_MAX: usize = 8 << 20;

const IDENTITY: &str = "identity";
const VOTE: &str = "vote";
const DECIDED: &str = "decided-";
const NEW: &str = "new";

/// Whose directory this is.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Format {
    /// The cluster.
    pub cluster: ClusterId,
    /// The server's name.
    pub name: ServerName,
    /// Random, written when the directory was formatted.
    pub identity: Identity,
}

/// What a directory holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    /// Whose it is.
    pub format: Format,
    /// Decided layouts, from term 0.
    pub decided: Vec<Decided>,
    /// The last vote.
    pub vote: Option<Vote>,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Why a directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the directory is in use by another process; stop that, or use another directory")]
    Locked,
    /// It belongs to another cluster.
    #[error(
        "the directory belongs to cluster {has}, the certificate to {asked}; use the directory of this cluster"
    )]
    WrongCluster {
        /// The directory's.
        has: ClusterId,
        /// The certificate's.
        asked: ClusterId,
    },
    /// It belongs to another server.
    #[error(
        "the directory belongs to the layout server {has}, not to {asked}; use that server's own directory"
    )]
    WrongServer {
        /// The directory's.
        has: ServerName,
        /// The configuration's.
        asked: ServerName,
    },
    /// It is no layout server's directory, and not empty.
    #[error(
        "the directory holds `{file}`, which is no layout server's; use an empty directory or a layout server's"
    )]
    Foreign {
        /// A file in it.
        file: String,
    },
    /// A newer program wrote it.
    #[error(
        "`{file}` has format version {found}, this program reads up to {VERSION}; use a newer one"
    )]
    Version {
        /// The file.
        file: String,
        /// Its version.
        found: u32,
    },
    /// A file is damaged or missing.
    #[error(
        "`{file}` is damaged ({why}); move the directory away and let `set-layout-servers` replace this server"
    )]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// The stored decisions contradict each other.
    #[error("{0}; move the directory away and let `set-layout-servers` replace this server")]
    History(#[from] InvalidHistory),
    /// The machine refuses.
    #[error("cannot {doing} in the directory: {why}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The machine's reason.
        why: io::Error,
    },
}

/// An open directory.
pub struct Store {
    disk: Arc<dyn Disk>,
    bytes: u64,
    failed: Option<String>,
}

impl Store {
    /// Opens the directory of layout server `name`, and formats it with `identity` if it is empty.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        disk: Arc<dyn Disk>,
        cluster: ClusterId,
        name: &ServerName,
        identity: Identity,
    ) -> Result<(Self, Found), OpenError> {
        disk.lock().map_err(|why| match why.kind() {
            io::ErrorKind::ResourceBusy => OpenError::Locked,
            _ => io_error("take the lock")(why),
        })?;
        let found = Self::read(disk.as_ref())?;
        let mut store = Self {
            disk,
            bytes: 0,
            failed: None,
        };
        let found = match found {
            Some(found) => found,
            None => store.format(cluster, name, identity)?,
        };
        check_owner(&found.format, cluster, name)?;
        store.bytes = found.bytes;
        Ok((store, found))
    }

    /// What the directory holds; none if it is empty. Changes nothing and takes no lock: for inspection, too.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn read(disk: &dyn Disk) -> Result<Option<Found>, OpenError> {
        let names = disk.list().map_err(io_error("list the files"))?;
        if !names.iter().any(|name| name == IDENTITY) {
            return match names.into_iter().find(|name| !is_nobodys(name)) {
                Some(file) => Err(OpenError::Foreign { file }),
                None => Ok(None),
            };
        }
        let mut bytes = 0;
        let format: Format = read_file(disk, IDENTITY, &mut bytes)?;
        let mut vote = None;
        if names.iter().any(|name| name == VOTE) {
            vote = Some(read_file(disk, VOTE, &mut bytes)?);
        }
        // Names are sorted, and terms written at full width.
        let mut decided = Vec::new();
        for name in names.iter().filter(|name| name.starts_with(DECIDED)) {
            let expected = decided_name(Term(decided.len() as u64));
            if *name != expected {
                return Err(OpenError::Damaged {
                    file: expected,
                    why: format!("it is missing; `{name}` is there"),
                });
            }
            decided.push(read_file(disk, name, &mut bytes)?);
        }
        Ok(Some(Found {
            format,
            decided,
            vote,
            bytes,
        }))
    }

    /// Makes a change durable (V1).
    ///
    /// # Errors
    /// What the disk said first. Nothing is known about the change, and every later one fails too (V2).
    pub fn commit(&mut self, change: &Change) -> Result<(), String> {
        if let Some(why) = &self.failed {
            return Err(why.clone());
        }
        let written = match change {
            Change::Vote(vote) => self.write_whole(VOTE, vote),
            Change::Decided(decided) => {
                self.write_whole(&decided_name(decided.layout.term), decided.as_ref())
            }
        };
        written.map_err(|error| {
            let why = error.to_string();
            self.failed = Some(why.clone());
            why
        })
    }

    /// Why it takes no changes any more, if so.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Bytes written; replaced votes are counted once more.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn format(
        &mut self,
        cluster: ClusterId,
        name: &ServerName,
        identity: Identity,
    ) -> Result<Found, OpenError> {
        let format = Format {
            cluster,
            name: name.clone(),
            identity,
        };
        self.write_whole(IDENTITY, &format)
            .map_err(io_error("write a new identity"))?;
        Ok(Found {
            format,
            decided: Vec::new(),
            vote: None,
            bytes: self.bytes,
        })
    }

    fn write_whole(&mut self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let file_bytes = encode(value)?;
        let size = file_bytes.len() as u64;
        // What a crash left half written is nobody's.
        match self.disk.remove(NEW) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = self.disk.create(NEW, size)?;
        file.write_at(0, &[IoSlice::new(&file_bytes)])?;
        file.sync()?;
        self.disk.rename(NEW, name)?;
        self.disk.sync_names()?;
        self.bytes += size;
        Ok(())
    }
}

fn check_owner(format: &Format, cluster: ClusterId, name: &ServerName) -> Result<(), OpenError> {
    if format.cluster != cluster {
        return Err(OpenError::WrongCluster {
            has: format.cluster,
            asked: cluster,
        });
    }
    if format.name != *name {
        return Err(OpenError::WrongServer {
            has: format.name.clone(),
            asked: name.clone(),
        });
    }
    Ok(())
}

/// Files that may lie in a directory that was never formatted.
fn is_nobodys(name: &str) -> bool {
    name == NEW || name == "lock" || name == "lost+found" || name.starts_with('.')
}

fn decided_name(term: Term) -> String {
    format!("{DECIDED}{:020}", term.0)
}

fn io_error(doing: &'static str) -> impl Fn(io::Error) -> OpenError {
    move |why| OpenError::Io { doing, why }
}

fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(value).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(crc(&bytes, &body).to_le_bytes());
    bytes.extend(body);
    Ok(bytes)
}

/// Over everything before the checksum, and everything after it.
fn crc(before: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(before);
    hasher.update(body);
    hasher.finalize()
}

fn read_file<T: DeserializeOwned>(
    disk: &dyn Disk,
    name: &str,
    total_bytes: &mut u64,
) -> Result<T, OpenError> {
    let damaged = |why: &str| OpenError::Damaged {
        file: name.to_owned(),
        why: why.to_owned(),
    };
    let file = disk.open(name).map_err(io_error("open a file"))?;
    let size = file.size();
    if size < HEADER as u64 || size > (HEADER + BODY_BYTES_MAX) as u64 {
        return Err(damaged("its size is impossible"));
    }
    let mut bytes = vec![0; size as usize];
    file.read_at(0, &mut bytes)
        .map_err(io_error("read a file"))?;
    let (header, body) = bytes.split_at(HEADER);
    if header[..8] != MAGIC {
        return Err(if name == IDENTITY {
            OpenError::Foreign {
                file: name.to_owned(),
            }
        } else {
            damaged("it does not begin as one")
        });
    }
    let number = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    if number(8) > VERSION {
        return Err(OpenError::Version {
            file: name.to_owned(),
            found: number(8),
        });
    }
    let body = body
        .get(..number(12) as usize)
        .ok_or_else(|| damaged("it is too short"))?;
    if number(16) != crc(&header[..16], body) {
        return Err(damaged("its checksum is wrong"));
    }
    *total_bytes += size;
    postcard::from_bytes(body).map_err(|error| damaged(&error.to_string()))
}

#[cfg(test)]
#[path = "store_tests.rs"]
pub(crate) mod tests;
