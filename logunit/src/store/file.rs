//! One data file: what is known of it beside its index, and how its bytes are read.
//!
//! - A1 Bytes handed out never change: what is committed stays, and a file is used again only when nobody holds
//!   bytes of its map.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use milonga_host::{Disk, File};
use milonga_wire::Position;

use super::directory::Name;
use super::footer::{self, Summary, TRAILER, Trailer};
use super::format::{
    ALIGN, Key, Kind, Listed, Owner, PAGE, RECORD_HEAD, RecordHead, State, file_header,
};
use super::index::{FileIndex, Place};
use super::scan::read;

/// Bytes read ahead where reads follow each other.
const AHEAD: u64 = 64 << 10;

/// A data file in use.
pub(super) struct DataFile {
    pub(super) key: Key,
    pub(super) file: Arc<dyn File>,
    pub(super) summary: Summary,
    /// How its index is kept at its end.
    pub(super) footer: Footer,
    map: Option<Mapped>,
}

/// Whether a file's index stands at its end.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Footer {
    /// It does.
    Written,
    /// Not yet.
    Missing,
    /// There is no room for it.
    NoRoom,
}

/// A map, and what tells whether anybody else holds bytes of it (A1).
struct Mapped {
    bytes: Bytes,
    held: Arc<Bytes>,
}

struct Holder(Arc<Bytes>);

impl AsRef<[u8]> for Holder {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl DataFile {
    pub(super) fn new(key: Key, file: Arc<dyn File>, summary: Summary) -> Self {
        Self {
            key,
            file,
            summary,
            footer: Footer::Missing,
            map: None,
        }
    }

    /// A file that begins with nothing in it, the header excepted.
    pub(super) fn empty(key: Key, file: Arc<dyn File>) -> Self {
        let summary = Summary {
            state: State::default(),
            after: 0,
            first: 0,
            last: 0,
            data_end: PAGE,
            whole: true,
            listed: Vec::new(),
        };
        Self::new(key, file, summary)
    }

    pub(super) fn listed(&self, index: &FileIndex) -> Listed {
        Listed {
            number: self.key.number,
            end: index.end,
        }
    }

    fn trailer(key: &Key, file: &dyn File) -> Option<Trailer> {
        let size = file.size();
        let at = size.checked_sub(TRAILER as u64)?;
        Trailer::decode(key, size, &read(file, at, TRAILER).ok()?)
    }

    /// Whether a footer was written, whatever has become of it.
    pub(super) fn has_trailer(key: &Key, file: &dyn File) -> bool {
        Self::trailer(key, file).is_some()
    }

    /// Its index and summary, if its footer verifies.
    pub(super) fn read_footer(key: &Key, file: &dyn File) -> Option<(Summary, FileIndex)> {
        let trailer = Self::trailer(key, file)?;
        let bytes = read(file, trailer.start, trailer.len as usize).ok()?;
        trailer.footer(key, &bytes)
    }

    /// Writes its index at its end, where there is room.
    pub(super) fn write_footer(&mut self, index: &FileIndex) -> io::Result<()> {
        let size = self.file.size();
        let footer = footer::encode(&self.key, size, &self.summary, index);
        let Some(footer) =
            footer.filter(|bytes| size - bytes.len() as u64 >= self.summary.data_end)
        else {
            self.footer = Footer::NoRoom;
            return Ok(());
        };
        self.file
            .write_at(size - footer.len() as u64, &[IoSlice::new(&footer)])?;
        self.file.sync()?;
        self.footer = Footer::Written;
        Ok(())
    }

    /// The map of a file that is never written again while it is in use; none where it has to be read instead.
    fn mapped(&mut self) -> Option<&Mapped> {
        if self.map.is_none() && self.footer != Footer::Missing {
            let held = Arc::new(self.file.map().ok()?);
            let bytes = Bytes::from_owner(Holder(Arc::clone(&held)));
            self.map = Some(Mapped { bytes, held });
        }
        self.map.as_ref()
    }

    /// Whether the file may be written anew (A1).
    pub(super) fn let_go(&mut self) -> bool {
        match self.map.take() {
            None => true,
            Some(Mapped { bytes, held }) => {
                drop(bytes);
                Arc::strong_count(&held) == 1
            }
        }
    }
}

/// Bytes of a file read ahead. What is committed never changes, so they stay right (A1).
#[derive(Debug, Default)]
pub(super) struct Window {
    file: u64,
    at: u64,
    bytes: Bytes,
}

impl Window {
    /// `len` bytes of `file` from `at`: of its map if it has one, else read. They are part of the bytes returned, from
    /// the index returned.
    pub(super) fn load<'a>(
        &'a mut self,
        file: &'a mut DataFile,
        map: bool,
        at: u64,
        len: u64,
    ) -> io::Result<(&'a Bytes, usize)> {
        let data_end = file.summary.data_end;
        let end = at.checked_add(len).filter(|end| *end <= data_end);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let number = file.key.number;
        if map && file.mapped().is_some() {
            let mapped = file.map.as_ref().map(|map| &map.bytes);
            let mapped = mapped.filter(|bytes| end <= bytes.len() as u64);
            let bytes = mapped.ok_or(io::ErrorKind::UnexpectedEof)?;
            return Ok((bytes, at as usize));
        }
        let window_end = self.at + self.bytes.len() as u64;
        if self.file != number || at < self.at || end > window_end {
            let follows = self.file == number && at > self.at && at <= window_end + PAGE;
            let ahead = if follows { AHEAD } else { PAGE };
            let most = (at + ahead.max(len)).min(data_end) - at;
            let mut bytes = BytesMut::zeroed(most as usize);
            file.file.read_at(at, &mut bytes)?;
            *self = Self {
                file: number,
                at,
                bytes: bytes.freeze(),
            };
        }
        Ok((&self.bytes, (at - self.at) as usize))
    }
}

/// Reads the record of `position`, which stands at `place`; with its payload, or the head alone.
pub(super) fn fetch(
    files: &mut BTreeMap<u64, DataFile>,
    window: &mut Window,
    map: bool,
    place: Place,
    position: Position,
    whole: bool,
) -> Result<(RecordHead, Bytes), String> {
    let file = files.get_mut(&place.file).ok_or("its file is gone")?;
    let (key, at) = (file.key, u64::from(place.slot) * ALIGN);
    let failed = |error: io::Error| error.to_string();
    let (bytes, start) = window
        .load(file, map, at, RECORD_HEAD as u64)
        .map_err(failed)?;
    let len = RecordHead::bytes_at(&bytes[start..], whole);
    let (bytes, start) = window.load(file, map, at, len).map_err(failed)?;
    let bytes = bytes.slice(start..start + len as usize);
    let head = RecordHead::decode(&key, &bytes).ok_or("its head does not verify")?;
    if head.position != position || !matches!(head.kind, Kind::Data(_)) {
        return Err("another record stands there".to_owned());
    }
    if whole && !head.verifies(&bytes[head.payload_at() as usize..]) {
        return Err("its payload does not verify".to_owned());
    }
    Ok((head, bytes))
}

/// A file being made ready to be the next one.
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) file: Arc<dyn File>,
    /// How far it has been written before, so that writing again needs no new blocks.
    pub(super) filled: u64,
}

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Zeros, at most 64 KiB.
pub(super) fn zeros(len: u64) -> IoSlice<'static> {
    IoSlice::new(&ZEROS[..len as usize])
}

impl Spare {
    /// Writes some more zeros. Returns whether there is more to do.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        const AT_ONCE: u64 = 512 << 10;
        let end = (self.filled + AT_ONCE).min(self.file.size());
        if end == self.filled {
            return Ok(false);
        }
        let whole = (end - self.filled) / ZEROS.len() as u64;
        let rest = (end - self.filled) % ZEROS.len() as u64;
        let mut parts = vec![zeros(ZEROS.len() as u64); whole as usize];
        parts.push(zeros(rest));
        self.file.write_at(self.filled, &parts)?;
        self.file.sync()?;
        self.filled = end;
        Ok(true)
    }

    /// Makes it the data file of `key`, durably: header first, then the name.
    pub(super) fn begin(self, disk: &dyn Disk, owner: Owner, key: Key) -> io::Result<DataFile> {
        let header = file_header(owner, &key, self.file.size());
        self.file.write_at(0, &[IoSlice::new(&header)])?;
        self.file.sync()?;
        disk.rename(&self.name, &Name::Data(key.number).of())?;
        disk.sync_names()?;
        Ok(DataFile::empty(key, self.file))
    }
}
