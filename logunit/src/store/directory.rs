//! Whose directory it is, and what the names in it mean.

use std::io::{self, IoSlice};

use milonga_host::{Disk, Random};
use milonga_wire::{ClusterId, Identity, ServerName};

use super::format::{FORMAT_VERSION, PAGE, array, u32_at};
use super::scan::read;

pub(super) const IDENTITY: &str = "identity";
const IDENTITY_NEW: &str = "identity.new";
/// What is kept of trimmed streams.
pub(super) const KEPT: &str = "streams";
/// The same, not finished.
pub(super) const KEPT_NEW: &str = "streams.new";
/// There while a process has files mapped: found at opening, that process died.
pub(super) const MAPPING: &str = "mapping";
/// There while the directory is being emptied, to be another server's: found at opening, that is finished first.
pub(super) const RESET: &str = "reset";
/// Made by some file systems.
const NOT_OURS_TO_MIND: &str = "lost+found";

/// Where the identity file's checksum stands.
const SUM_AT: usize = PAGE as usize - 4;
const MAGIC: [u8; 16] = *b"milonga log unit";
/// What the identity files of all kinds of servers begin with.
const PROGRAM: &[u8] = b"milonga";

/// Why a directory cannot be opened as this unit's store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "the directory is in use by another process; stop that one, or give this server a directory of its own"
    )]
    InUse,
    /// It holds something else.
    #[error(
        "the directory is no log unit's (it holds `{name}`); give an empty directory, or the right one"
    )]
    NotAStore {
        /// A name in it.
        name: String,
    },
    /// It holds nothing, where something is looked for.
    #[error("the directory is empty; give a server's")]
    Empty,
    /// It is of this program, but of a server that is no log unit.
    #[error(
        "the directory belongs to another kind of server than a log unit; give an empty directory, or the right one"
    )]
    OtherKind,
    /// Another cluster's.
    #[error(
        "the directory belongs to cluster {found}, expected {expected}; use the right configuration, or an empty directory"
    )]
    OtherCluster {
        /// The cluster it belongs to.
        found: ClusterId,
        /// The cluster that was asked for.
        expected: ClusterId,
    },
    /// Another server's.
    #[error(
        "the directory belongs to server `{found}`, expected `{expected}`; use the right name, or an empty directory"
    )]
    OtherServer {
        /// The server it belongs to.
        found: String,
        /// The server that was asked for.
        expected: ServerName,
    },
    /// Written by a later version of this program.
    #[error(
        "the directory has format version {found}, this program knows up to {known}; use the newer program"
    )]
    FromTheFuture {
        /// The version found.
        found: u32,
        /// The newest version known.
        known: u32,
    },
    /// Its identity cannot be read.
    #[error(
        "the identity file is damaged; restore it from a copy, or format an empty directory and replace this unit"
    )]
    DamagedIdentity,
    /// An option makes no sense.
    #[error("{what} is {found}, expected {expected}; correct the configuration")]
    Option {
        /// Which.
        what: &'static str,
        /// What it was.
        found: u64,
        /// What it may be.
        expected: &'static str,
    },
    /// The disk refused.
    #[error("cannot {what}: {error}; check the disk and the permissions of the directory")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
}

impl OpenError {
    pub(super) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { what, error }
    }
}

/// Whether a name that is no file's of data belongs here all the same.
pub(super) fn is_known(name: &str) -> bool {
    [
        IDENTITY,
        IDENTITY_NEW,
        KEPT,
        KEPT_NEW,
        MAPPING,
        RESET,
        NOT_OURS_TO_MIND,
    ]
    .contains(&name)
}

/// What a name in the directory means.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Name {
    Data(u64),
    Spare(u64),
}

impl Name {
    pub(super) fn of(self) -> String {
        match self {
            Self::Data(number) => format!("{number:020}.data"),
            Self::Spare(number) => format!("{number:020}.spare"),
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        let (number, kind) = name.split_once('.')?;
        let number = number.parse().ok()?;
        let parsed = match kind {
            "data" => Self::Data(number),
            "spare" => Self::Spare(number),
            _ => return None,
        };
        (parsed.of() == name).then_some(parsed)
    }
}

/// What an identity file says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Owned {
    pub(super) cluster: ClusterId,
    pub(super) identity: Identity,
    pub(super) name: String,
}

impl Owned {
    fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE as usize];
        page[0..16].copy_from_slice(&MAGIC);
        page[16..20].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        page[32..48].copy_from_slice(&self.cluster.0);
        page[48..64].copy_from_slice(&self.identity.0);
        let name = self.name.as_bytes();
        page[64] = name.len() as u8;
        page[65..65 + name.len()].copy_from_slice(name);
        let sum = crc32fast::hash(&page[..SUM_AT]);
        page[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        page
    }

    fn decode(page: &[u8]) -> Result<Self, OpenError> {
        if page.starts_with(PROGRAM) && !page.starts_with(&MAGIC) {
            return Err(OpenError::OtherKind);
        }
        if page.len() != PAGE as usize || page[0..16] != MAGIC {
            return Err(OpenError::DamagedIdentity);
        }
        // The checksum stands where it stands in every version, so that damage is not taken for the future.
        if u32_at(page, SUM_AT) != crc32fast::hash(&page[..SUM_AT]) {
            return Err(OpenError::DamagedIdentity);
        }
        let version = u32_at(page, 16);
        if version > FORMAT_VERSION {
            return Err(OpenError::FromTheFuture {
                found: version,
                known: FORMAT_VERSION,
            });
        }
        let name = page[65..65 + usize::from(page[64])].to_vec();
        Ok(Self {
            cluster: ClusterId(array(page, 32)),
            identity: Identity(array(page, 48)),
            name: String::from_utf8(name).map_err(|_| OpenError::DamagedIdentity)?,
        })
    }
}

/// Reads whose directory it is; none if it is empty (or was left while being formatted).
pub(super) fn owner(disk: &dyn Disk, names: &[String]) -> Result<Option<Owned>, OpenError> {
    if names.iter().any(|name| name == IDENTITY) {
        let file = disk
            .open(IDENTITY)
            .map_err(OpenError::io("open the identity file"))?;
        let page = read(&*file, 0, file.size().min(PAGE) as usize);
        let page = page.map_err(OpenError::io("read the identity file"))?;
        return Owned::decode(&page).map(Some);
    }
    let foreign = names
        .iter()
        .find(|name| *name != IDENTITY_NEW && *name != NOT_OURS_TO_MIND);
    match foreign {
        Some(name) => Err(OpenError::NotAStore { name: name.clone() }),
        None => Ok(None),
    }
}

/// The identity of `cluster`'s server `name` in this directory, which is formatted if it is empty.
pub(super) fn identify(
    disk: &dyn Disk,
    names: &[String],
    cluster: ClusterId,
    name: &ServerName,
    random: &Random,
) -> Result<Identity, OpenError> {
    let Some(found) = owner(disk, names)? else {
        return format(disk, names, cluster, name, random);
    };
    if found.cluster != cluster {
        return Err(OpenError::OtherCluster {
            found: found.cluster,
            expected: cluster,
        });
    }
    if found.name != name.as_str() {
        return Err(OpenError::OtherServer {
            found: found.name,
            expected: name.clone(),
        });
    }
    finish_reset(disk, names, found, random)
}

/// Makes an empty directory this server's. Until the last step it stays an empty one.
fn format(
    disk: &dyn Disk,
    names: &[String],
    cluster: ClusterId,
    name: &ServerName,
    random: &Random,
) -> Result<Identity, OpenError> {
    let owned = Owned {
        cluster,
        identity: Identity(random.id()),
        name: name.as_str().to_owned(),
    };
    own(disk, names, &owned).map_err(OpenError::io("format the directory"))?;
    Ok(owned.identity)
}

/// Makes the directory `owned`'s, whatever it was before.
fn own(disk: &dyn Disk, names: &[String], owned: &Owned) -> io::Result<()> {
    if names.iter().any(|name| name == IDENTITY_NEW) {
        disk.remove(IDENTITY_NEW)?;
    }
    let file = disk.create(IDENTITY_NEW, PAGE)?;
    file.write_at(0, &[IoSlice::new(&owned.encode())])?;
    file.sync()?;
    disk.rename(IDENTITY_NEW, IDENTITY)?;
    disk.sync_names()
}

/// Empties the directory and makes it `owned`'s.
///
/// ```text
/// note ─▶ files removed ─▶ identity replaced ─▶ note removed          (each step durable before the next)
/// ```
/// Who finds the note goes through all of it again. So what was held is gone before the identity is, and comes back never.
pub(super) fn reset(disk: &dyn Disk, names: &[String], owned: &Owned) -> io::Result<()> {
    if !names.iter().any(|name| name == RESET) {
        drop(disk.create(RESET, PAGE)?);
        disk.sync_names()?;
    }
    let ours = |name: &&String| {
        let kept = [KEPT, KEPT_NEW, MAPPING].contains(&name.as_str());
        kept || Name::parse(name).is_some()
    };
    for name in names.iter().filter(ours) {
        disk.remove(name)?;
    }
    disk.sync_names()?;
    own(disk, names, owned)?;
    disk.remove(RESET)?;
    disk.sync_names()
}

/// Finishes what a process began that died over it, if `names` names the note.
fn finish_reset(
    disk: &dyn Disk,
    names: &[String],
    owned: Owned,
    random: &Random,
) -> Result<Identity, OpenError> {
    if !names.iter().any(|name| name == RESET) {
        return Ok(owned.identity);
    }
    let owned = Owned {
        identity: Identity(random.id()),
        ..owned
    };
    reset(disk, names, &owned).map_err(OpenError::io("finish emptying the directory"))?;
    Ok(owned.identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_written_as_ours_is_not_ours() {
        for name in [Name::Data(7), Name::Spare(0)] {
            assert_eq!(Name::parse(&name.of()), Some(name));
        }
        for foreign in [
            "7.data",
            "00000000000000000007.dat",
            "identity",
            "+0000000000000000007.data",
        ] {
            assert_eq!(Name::parse(foreign), None);
        }
    }
}
