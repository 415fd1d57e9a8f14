//! What the store's tests share.
#![allow(dead_code, clippy::unwrap_used)]

use milonga_host::{MemoryDisk, Random};
use milonga_logunit::storage::{Change, Storage};
use milonga_logunit::store::{OpenError, Options, Store};
use milonga_wire::{
    Before, ClusterId, EntryHead, Payload, Position, Session, Span, Stamp, StreamId, StreamLink,
    Term,
};

pub(crate) const FILE_BYTES: u64 = 32 << 10;

pub(crate) fn options() -> Options {
    Options {
        file_bytes: FILE_BYTES,
        reserve_files: 1,
        map: false,
        scrub_records: 8,
        ..Options::new(ClusterId([1; 16]), "u1".parse().unwrap())
    }
}

pub(crate) fn try_open(disk: &MemoryDisk) -> Result<Store, OpenError> {
    Store::open(disk.attach(), options(), &Random::seeded(7))
}

pub(crate) fn open(disk: &MemoryDisk) -> Store {
    try_open(disk).unwrap()
}

/// A disk with room for `files` files.
pub(crate) fn disk(files: u64) -> MemoryDisk {
    MemoryDisk::new(files * FILE_BYTES + 16_384)
}

/// A record whose bytes tell which it is: position, then `mark` over and over.
pub(crate) fn payload(position: u64, mark: u8, len: usize) -> Payload {
    let mut bytes = position.to_le_bytes().to_vec();
    bytes.resize(8 + len, mark);
    // In two chunks, as payloads arrive.
    let mut payload = Payload::from(bytes[..3].to_vec());
    payload.push(bytes[3..].to_vec().into());
    payload
}

pub(crate) fn head(position: u64, mark: u8, len: usize) -> EntryHead {
    EntryHead {
        position: Position(position),
        term: Term(u64::from(mark)),
        stamp: Stamp {
            session: Session([mark; 16]),
            request: position,
            record: 3,
        },
        streams: vec![],
        len: len as u32 + 8,
    }
}

pub(crate) fn entry(position: u64, mark: u8, len: usize) -> Change {
    Change::Entry {
        head: head(position, mark, len),
        payload: payload(position, mark, len),
    }
}

pub(crate) fn in_stream(position: u64, stream: u8, before: &[u64]) -> Change {
    let before = Before::Known(before.iter().map(|p| Position(*p)).collect());
    linked(position, stream, before)
}

pub(crate) fn linked(position: u64, stream: u8, before: Before) -> Change {
    let mut head = head(position, 1, 20);
    head.streams.push(StreamLink {
        stream: stream_id(stream),
        before,
    });
    Change::Entry {
        head,
        payload: payload(position, 1, 20),
    }
}

pub(crate) fn stream_id(stream: u8) -> StreamId {
    StreamId([stream; 16])
}

pub(crate) fn span(start: u64, end: u64) -> Span {
    Span::new(Position(start), Position(end))
}

pub(crate) fn bytes_of(store: &mut Store, position: u64) -> Vec<u8> {
    store
        .read(Position(position))
        .unwrap()
        .1
        .into_bytes()
        .to_vec()
}

/// Does all there is to do.
pub(crate) fn tidy(store: &mut Store) {
    while store.housekeep() {}
}

/// The data files on the disk, oldest first.
pub(crate) fn data_files(disk: &MemoryDisk) -> Vec<String> {
    let names = disk.names().into_iter();
    names
        .filter(|name| name.split_once('.').is_some_and(|(_, kind)| kind == "data"))
        .collect()
}
