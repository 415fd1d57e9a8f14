//! A directory that no process has open, looked at: what every position holds, without changing a byte of it.
//!
//! The same recovery as at a start finds what is there; what it would write again, it leaves. So this says what the unit
//! would say after a start, but for what only its process knows: below which position absent means unknown.

use std::collections::BTreeMap;

use milonga_host::Disk;
use milonga_wire::{
    Before, ClusterId, EntryHead, Identity, Payload, Position, Span, StreamId, Term,
};

use super::directory::{self, OpenError};
use super::file::{self, DataFile, Window};
use super::format::{self, Kind, Owner, RECORD_HEAD};
use super::index::Index;
use super::recovery::{self, Access};
use crate::storage::{ReadError, Slot};

/// A log unit's directory, as it stands.
pub struct View {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// The server's identity.
    pub identity: Identity,
    /// The server's name.
    pub name: String,
    /// The highest term sealed.
    pub term: Term,
    /// The first position kept.
    pub trimmed: Position,
    /// The first position above everything held.
    pub end: Position,
    /// The last settled mark that it was told.
    pub settled: Position,
    /// Whether every batch shows that the one before it was synced, and nothing after the last is torn.
    pub synced: bool,
    index: Index,
    files: BTreeMap<u64, DataFile>,
    window: Window,
}

impl View {
    /// Looks at the directory, and keeps other processes from it until `disk` is dropped.
    ///
    /// # Errors
    /// [`OpenError`] if it is in use, or no log unit's directory.
    pub fn open(disk: &dyn Disk) -> Result<Self, OpenError> {
        disk.lock().map_err(|_| OpenError::InUse)?;
        let names = disk.list().map_err(OpenError::io("list the directory"))?;
        let Some(owned) = directory::owner(disk, &names)? else {
            return Err(OpenError::Empty);
        };
        let (cluster, identity) = (owned.cluster, owned.identity);
        let owner = Owner { cluster, identity };
        let found = recovery::recover(disk, owner, &names, Access::Look)?;
        Ok(Self {
            cluster,
            identity,
            name: owned.name,
            term: found.state.term,
            trimmed: found.state.trimmed,
            end: found.state.end,
            settled: found.state.settled,
            synced: found.synced,
            index: found.index,
            files: found.files,
            window: Window::default(),
        })
    }

    /// The longest run from `span.start`, within `span`, that is of one kind. `span` must not be empty.
    pub fn run(&self, span: Span) -> (Slot, Span) {
        self.index.run(span)
    }

    /// The record at `position`, its checksum verified. A damaged one is remembered.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&mut self, position: Position) -> Result<(EntryHead, Payload), ReadError> {
        let (Slot::Data, Some(place)) = self.index.locate(position) else {
            return Err(ReadError::NotData);
        };
        let fetched = file::fetch(
            &mut self.files,
            &mut self.window,
            false,
            place,
            position,
            true,
        );
        let (head, bytes) = fetched.map_err(|why| {
            self.index.put_damaged(position);
            ReadError::Damaged(why)
        })?;
        let Kind::Data(stamp) = head.kind else {
            return Err(ReadError::NotData);
        };
        let at = head.payload_at() as usize;
        let links = format::decode_links(&bytes[RECORD_HEAD..at]);
        let links =
            links.ok_or_else(|| ReadError::Damaged("its streams make no sense".to_owned()))?;
        Ok((head.entry(stamp, links), bytes.slice(at..).into()))
    }

    /// The last positions of each stream after `after`, at most `count_max`; and whether there are more.
    pub fn stream_tails(
        &self,
        after: Option<StreamId>,
        count_max: usize,
    ) -> (Vec<(StreamId, Before)>, bool) {
        self.index.stream_tails(after, count_max)
    }

    /// Positions of `stream` held within `span`, rising, at most `count_max`; and where to go on.
    pub fn stream_positions(
        &self,
        stream: StreamId,
        span: Span,
        count_max: usize,
    ) -> (Vec<Position>, Option<Position>) {
        self.index.stream_positions(stream, span, count_max)
    }
}
