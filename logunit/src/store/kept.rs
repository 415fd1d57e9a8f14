//! What is kept of streams that were trimmed: their last positions, in one file, written anew before data files are freed.
//!
//! - T5 Before a data file goes, this file holds the tail of every stream of which a trimmed position is among its last K:
//!   else the stream's next entry would name nothing before it, and be read as its first (H39). All other tails are told
//!   by the data files that stay.
//! - T6 It is bounded: beyond [`super::Options::streams_kept`] streams the one trimmed first is dropped. A unit that
//!   dropped any tells of at least so many; that is more than a sequencer remembers, so none takes them for all there are.
//!
//! ```text
//! file    head: magic, version, cluster, server, trim point, streams, bytes, flags, checksums │ tails
//! ```
//! The next one is written into a second file, which is there before it is needed: a full disk can be trimmed. If the
//! first is damaged or gone the unit is as one that lost entries: the others of its chain still know.

use std::io::{self, IoSlice};
use std::sync::Arc;

use milonga_host::{Disk, File};
use milonga_wire::{ClusterId, Identity, Position, Span};

use super::Store;
use super::directory::{KEPT, KEPT_NEW, OpenError};
use super::format::{FORMAT_VERSION, Owner, PAGE, array, u32_at, u64_at};
use super::index::Index;
use super::scan::read;
use super::space::is_full;
use super::streams::Tails;

const MAGIC: [u8; 8] = *b"mlngkept";
/// Where the checksum of the head stands.
const SUM_AT: usize = 76;
const HEAD: usize = 80;
/// Bytes that one step writes.
const AT_ONCE: usize = 1 << 20;

/// How far the file on the disk goes.
#[derive(Default)]
pub(super) struct Kept {
    /// It holds what is below this position.
    upto: Position,
    /// Below this position, files were freed.
    owed: Position,
    /// Where the next one goes.
    spare: Option<Arc<dyn File>>,
    writing: Option<Writing>,
}

/// The next one, being written.
struct Writing {
    file: Arc<dyn File>,
    bytes: Vec<u8>,
    done: usize,
    upto: Position,
}

fn encode(owner: Owner, upto: Position, tails: &Tails) -> Vec<u8> {
    let mut bytes = vec![0; HEAD];
    let count = tails.encode_below(upto, &mut bytes);
    let body = bytes.len() - HEAD;
    let sum = crc32fast::hash(&bytes[HEAD..]);
    bytes[0..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    bytes[16..32].copy_from_slice(&owner.cluster.0);
    bytes[32..48].copy_from_slice(&owner.identity.0);
    bytes[48..56].copy_from_slice(&upto.0.to_le_bytes());
    bytes[56..64].copy_from_slice(&count.to_le_bytes());
    bytes[64..72].copy_from_slice(&(body as u64).to_le_bytes());
    bytes[72..76].copy_from_slice(&u32::from(tails.is_forgetful()).to_le_bytes());
    let sum = crc32fast::hash(&bytes[..SUM_AT]);
    bytes[SUM_AT..HEAD].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Why a file of kept streams is not believed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum BadKept {
    #[error("it is damaged")]
    Damaged,
    #[error("it has format version {0}")]
    Version(u32),
    #[error("it belongs to server {} of cluster {}", .0.identity, .0.cluster)]
    Foreign(Owner),
}

/// Up to where a file of kept streams goes; `tails` are told what it says.
fn decode(bytes: &[u8], owner: Owner, tails: &mut Tails) -> Result<Position, BadKept> {
    let (head, body) = bytes.split_at_checked(HEAD).ok_or(BadKept::Damaged)?;
    if head[0..8] != MAGIC || u32_at(head, SUM_AT) != crc32fast::hash(&head[..SUM_AT]) {
        return Err(BadKept::Damaged);
    }
    match u32_at(head, 8) {
        version if version > FORMAT_VERSION => return Err(BadKept::Version(version)),
        _ => {}
    }
    let found = Owner {
        cluster: ClusterId(array(head, 16)),
        identity: Identity(array(head, 32)),
    };
    if found != owner {
        return Err(BadKept::Foreign(found));
    }
    let body = usize::try_from(u64_at(head, 64))
        .ok()
        .and_then(|len| body.get(..len))
        .filter(|body| crc32fast::hash(body) == u32_at(head, 12));
    if u32_at(head, 72) != 0 {
        tails.forget();
    }
    body.and_then(|body| tails.decode_below(body, u64_at(head, 56)))
        .map(|()| Position(u64_at(head, 48)))
        .ok_or(BadKept::Damaged)
}

/// Reads the file of kept streams, if `names` names one, and tells `tails`.
pub(super) fn load(
    disk: &dyn Disk,
    owner: Owner,
    names: &[String],
    tails: &mut Tails,
) -> Result<Result<Position, BadKept>, OpenError> {
    if !names.iter().any(|name| name == KEPT) {
        return Ok(Ok(Position::FIRST));
    }
    let file = disk
        .open(KEPT)
        .map_err(OpenError::io("open the file of kept streams"))?;
    let Ok(bytes) = read(&*file, 0, file.size() as usize) else {
        return Ok(Err(BadKept::Damaged));
    };
    match decode(&bytes, owner, tails) {
        Err(BadKept::Version(found)) => Err(OpenError::FromTheFuture {
            found,
            known: FORMAT_VERSION,
        }),
        decoded => Ok(decoded),
    }
}

/// What the file of kept streams, if there is one, says to `index`; whether it is to be believed.
pub(super) fn recover(
    disk: &dyn Disk,
    owner: Owner,
    names: &[String],
    index: &mut Index,
) -> Result<(Kept, bool), OpenError> {
    let spare = if names.iter().any(|name| name == KEPT_NEW) {
        disk.open(KEPT_NEW).map(Some)
    } else {
        create(disk, PAGE)
    };
    let found = load(disk, owner, names, index.tails())?;
    if let Err(why) = &found {
        index.tails().forget();
        tracing::warn!(%why, "what is kept of trimmed streams is not believed");
    }
    let is_sound = found.is_ok();
    let kept = Kept {
        upto: found.unwrap_or_default(),
        spare: spare.map_err(OpenError::io("prepare a file for trimmed streams"))?,
        ..Kept::default()
    };
    Ok((kept, is_sound))
}

/// A file for the next one; none if the disk is full.
fn create(disk: &dyn Disk, size: u64) -> io::Result<Option<Arc<dyn File>>> {
    match disk.create(KEPT_NEW, size) {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_full(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Store {
    /// Keeps what is left of the streams of a file that ends at `end`, which may be freed then (T5). True while there is
    /// more to do before.
    pub(super) fn keep_streams(&mut self, end: Option<Position>) -> io::Result<bool> {
        let end = end.unwrap_or_default().max(self.kept.owed);
        if let Some(writing) = self.kept.writing.take() {
            return self.keep_more(writing).map(|()| true);
        }
        if end <= self.kept.upto {
            return Ok(false);
        }
        let trimmed = self.state.trimmed;
        let since = Span::new(self.kept.upto, trimmed.max(self.kept.upto));
        if !self.index.tails().any_within(since) {
            self.kept.upto = trimmed;
            return Ok(false);
        }
        self.index.tails().shed(trimmed, self.options.streams_kept);
        let bytes = encode(self.owner, trimmed, self.index.tails());
        let Some(file) = self.large_enough(bytes.len() as u64)? else {
            return self.make_room(end);
        };
        self.kept.writing = Some(Writing {
            file,
            bytes,
            done: 0,
            upto: trimmed,
        });
        Ok(true)
    }

    /// The second file, if it has room for `bytes`, or another in its place; none if the disk is full.
    fn large_enough(&mut self, bytes: u64) -> io::Result<Option<Arc<dyn File>>> {
        match self.kept.spare.take() {
            Some(file) if file.size() >= bytes => return Ok(Some(file)),
            Some(_) => self.disk.remove(KEPT_NEW)?,
            None => {}
        }
        create(&*self.disk, bytes.next_multiple_of(PAGE))
    }

    /// One more step.
    fn keep_more(&mut self, mut writing: Writing) -> io::Result<()> {
        let rest = &writing.bytes[writing.done..];
        if !rest.is_empty() {
            let some = &rest[..rest.len().min(AT_ONCE)];
            writing
                .file
                .write_at(writing.done as u64, &[IoSlice::new(some)])?;
            writing.done += some.len();
            self.kept.writing = Some(writing);
            return Ok(());
        }
        writing.file.sync()?;
        self.disk.rename(KEPT_NEW, KEPT)?;
        self.disk.sync_names()?;
        self.kept.upto = writing.upto;
        // With room to grow, if the disk has it now: once it is full, there may be more streams.
        let bytes = writing.bytes.len() as u64;
        self.kept.spare = create(&*self.disk, (2 * bytes).next_multiple_of(PAGE))?;
        if self.kept.spare.is_none() {
            self.kept.spare = create(&*self.disk, bytes.next_multiple_of(PAGE))?;
        }
        Ok(())
    }

    /// The disk is full: a file that is not in use goes. If there is none, one that ends at `end` may go first; it is made
    /// up for as soon as it has.
    fn make_room(&mut self, end: Position) -> io::Result<bool> {
        if self.give_up()? {
            return Ok(true);
        }
        self.kept.owed = self.kept.owed.max(end);
        Ok(false)
    }
}
