//! What a directory holds when it is opened.
//!
//! - V1 Every batch that was acknowledged is found, unless the disk lied; where it did and that shows, `synced` is false.
//! - V2 The last batch found is written again and synced before it is believed: after a failed sync the machine may
//!   show bytes that are not on the disk, and call them clean.
//! - V3 Behind what might be remains of a batch nothing is written: the next batch goes into a new file.
//!
//! ```text
//! file found                          its index comes from
//! footer verifies                     the footer
//! no footer, not the newest           a scan, up to the first batch of the next file
//! no footer, the newest with batches  a scan; it is written on, unless it is torn
//! no batch                            nothing: it is the next file, prepared
//! header damaged, or another file's   nothing: it is left alone, and what it held is missed
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::sync::Arc;

use milonga_host::{Disk, File};
use milonga_wire::Span;

use super::directory::{Name, OpenError};
use super::file::{DataFile, Footer};
use super::footer::Summary;
use super::format::{
    ALIGN, BadFile, FORMAT_VERSION, Key, Kind, Owner, PAGE, State, read_file_header,
};
use super::index::{FileIndex, Index};
use super::kept::{self, Kept};
use super::scan::{Found, Scanner, Step, read};

/// Everything found in a directory.
pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) files: BTreeMap<u64, DataFile>,
    /// The file that is written on.
    pub(super) current: Option<u64>,
    /// Files with nothing in them: the next ones, were it not for their names.
    pub(super) unused: Vec<u64>,
    pub(super) state: State,
    /// The last batch found.
    pub(super) last: u64,
    /// The highest number that any batch had, believed or not.
    pub(super) sequence: u64,
    pub(super) synced: bool,
    /// The highest number that any data file has.
    pub(super) number: u64,
    /// What is kept of trimmed streams.
    pub(super) kept: Kept,
}

/// A data file whose header is its own.
struct Candidate {
    key: Key,
    file: Arc<dyn File>,
}

impl Candidate {
    /// What it holds, by its footer or a scan.
    fn contents(&self, before: u64) -> Scanned {
        match DataFile::read_footer(&self.key, &*self.file) {
            Some((summary, index)) => Scanned {
                seen: summary.last,
                summary,
                index,
                footer: Footer::Written,
                last: None,
                torn: false,
            },
            None => scan(&*self.file, self.key, before),
        }
    }
}

/// What a file holds.
pub(super) struct Scanned {
    pub(super) summary: Summary,
    pub(super) index: FileIndex,
    /// Whether its footer said so.
    pub(super) footer: Footer,
    /// The last batch: where it stands, and its bytes.
    pub(super) last: Option<(u64, u32)>,
    /// Something behind the last batch verifies, or could not be read.
    pub(super) torn: bool,
    /// The highest number that any batch had, believed or not.
    pub(super) seen: u64,
}

/// Whether what is found may be changed.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Access {
    /// The store will be written.
    Change,
    /// It is only looked at: nothing is written, not even what makes the last batch believed (V2).
    Look,
}

/// Opens the data files that `names` names.
pub(super) fn recover(
    disk: &dyn Disk,
    owner: Owner,
    names: &[String],
    access: Access,
) -> Result<Recovered, OpenError> {
    let numbers: BTreeSet<u64> = names
        .iter()
        .filter_map(|name| match Name::parse(name) {
            Some(Name::Data(number)) => Some(number),
            Some(Name::Spare(_)) | None => None,
        })
        .collect();
    let mut recovered = Recovered {
        index: Index::default(),
        files: BTreeMap::new(),
        current: None,
        unused: Vec::new(),
        state: State::default(),
        last: 0,
        sequence: 0,
        synced: true,
        number: numbers.last().copied().unwrap_or(0),
        kept: Kept::default(),
    };
    let mut candidates = Vec::new();
    for number in &numbers {
        match candidate(disk, owner, *number)? {
            Some(candidate) => candidates.push(candidate),
            None => recovered.synced = false,
        }
    }
    // Newest first: what a file may hold ends where the next one begins.
    let mut before = u64::MAX;
    let mut scans = Vec::new();
    for candidate in candidates.into_iter().rev() {
        let scanned = candidate.contents(before);
        if scanned.summary.last > 0 {
            before = before.min(scanned.summary.first);
        }
        scans.push((candidate.key, candidate.file, scanned));
    }
    let newest = scans
        .iter()
        .find(|(_, _, scanned)| scanned.summary.last > 0);
    let newest = newest.map(|(key, _, _)| key.number);
    for (key, file, scanned) in scans.into_iter().rev() {
        recovered.take(key, file, scanned, newest, access)?;
    }
    recovered.miss_files();
    match access {
        Access::Change => {
            let (kept, is_sound) = kept::recover(disk, owner, names, &mut recovered.index)?;
            recovered.kept = kept;
            recovered.synced &= is_sound;
        }
        Access::Look => {
            let kept = kept::load(disk, owner, names, recovered.index.tails())?;
            recovered.synced &= kept.is_ok();
        }
    }
    let state = recovered.state;
    recovered.index.loaded(state.trimmed);
    Ok(recovered)
}

fn candidate(disk: &dyn Disk, owner: Owner, number: u64) -> Result<Option<Candidate>, OpenError> {
    let file = disk
        .open(&Name::Data(number).of())
        .map_err(OpenError::io("open a data file"))?;
    let page = read(&*file, 0, file.size().min(PAGE) as usize);
    let header = match page {
        Ok(page) => read_file_header(&page, owner, number),
        Err(_) => Err(BadFile::Damaged),
    };
    let key = match header {
        Ok(key) => key,
        Err(BadFile::Version(found)) => {
            return Err(OpenError::FromTheFuture {
                found,
                known: FORMAT_VERSION,
            });
        }
        Err(why) => {
            tracing::warn!(file = number, %why, "a data file is not believed");
            return Ok(None);
        }
    };
    Ok(Some(Candidate { key, file }))
}

impl Recovered {
    fn take(
        &mut self,
        key: Key,
        file: Arc<dyn File>,
        scanned: Scanned,
        newest: Option<u64>,
        access: Access,
    ) -> Result<(), OpenError> {
        self.sequence = self.sequence.max(scanned.seen);
        if scanned.summary.last == 0 {
            // Nothing in it is believed. What stands in it all the same is torn.
            self.synced &= !scanned.torn;
            self.unused.push(key.number);
            return Ok(());
        }
        if newest == Some(key.number) && scanned.footer == Footer::Missing {
            if let (Some((at, bytes)), Access::Change) = (scanned.last, access) {
                rewrite(&*file, at, bytes).map_err(OpenError::io("write the last batch again"))?;
            }
            self.synced &= !scanned.torn;
            self.current = (!scanned.torn).then_some(key.number);
        }
        self.add(key, file, scanned);
        Ok(())
    }

    fn add(&mut self, key: Key, file: Arc<dyn File>, scanned: Scanned) {
        let summary = scanned.summary;
        let follows = summary.listed.last().map(|listed| listed.number);
        let before = self.files.last_key_value().map(|(number, _)| *number);
        let contiguous = follows != before || summary.after == self.last;
        self.synced &= summary.whole && (contiguous || before.is_none());
        self.state = self.state.merge(summary.state);
        self.state.end = self.state.end.max(scanned.index.end);
        self.last = self.last.max(summary.last);
        let mut found = DataFile::new(key, file, summary);
        found.footer = scanned.footer;
        self.files.insert(key.number, found);
        self.index.load(key.number, scanned.index);
    }

    /// Files that the newest one knew, and that are not there though something of them is kept.
    fn miss_files(&mut self) {
        let Some((_, newest)) = self.files.last_key_value() else {
            return;
        };
        let trimmed = self.state.trimmed;
        let missing = newest
            .summary
            .listed
            .iter()
            .filter(|listed| listed.end > trimmed && !self.files.contains_key(&listed.number));
        for listed in missing {
            tracing::warn!(file = listed.number, "a data file is missing");
            self.synced = false;
        }
    }
}

/// Writes bytes that were read just now where they came from, durably (V2).
fn rewrite(file: &dyn File, at: u64, bytes: u32) -> std::io::Result<()> {
    let bytes = read(file, at, bytes as usize)?;
    file.write_at(at, &[IoSlice::new(&bytes)])?;
    file.sync()
}

/// Reads a file's batches below number `before`.
pub(super) fn scan(file: &dyn File, key: Key, before: u64) -> Scanned {
    let mut scanner = Scanner::new(file, key, before);
    let mut contents = Scanned::nothing();
    while let Some(step) = scanner.step() {
        contents.apply(&step);
    }
    contents.finish(&scanner);
    contents
}

impl Scanned {
    /// What a file holds before its first batch.
    pub(super) fn nothing() -> Self {
        Self {
            summary: Summary {
                state: State::default(),
                after: 0,
                first: 0,
                last: 0,
                data_end: PAGE,
                whole: true,
                listed: Vec::new(),
            },
            index: FileIndex::default(),
            footer: Footer::Missing,
            last: None,
            torn: false,
            seen: 0,
        }
    }

    pub(super) fn apply(&mut self, step: &Step) {
        let summary = &mut self.summary;
        match step {
            Step::Batch { at, head, records } => {
                if summary.first == 0 {
                    summary.first = head.sequence;
                    summary.after = head.synced;
                } else {
                    summary.whole &= head.synced == summary.last;
                }
                summary.last = head.sequence;
                summary.state = summary.state.merge(head.state);
                summary.data_end = at + u64::from(head.bytes);
                self.last = Some((*at, head.bytes));
                self.put(records);
            }
            Step::Damage {
                at,
                end,
                records,
                damaged,
            } => {
                tracing::warn!(from = at, to = end, "damaged batches");
                summary.whole = false;
                summary.data_end = *end;
                self.put(records);
                for position in damaged {
                    self.index.put_damaged(Span::one(*position));
                }
            }
            Step::End { torn } => self.torn = *torn,
        }
    }

    pub(super) fn finish(&mut self, scanner: &Scanner<'_>) {
        self.torn |= scanner.unreadable;
        self.seen = scanner.seen;
    }

    fn put(&mut self, records: &[Found]) {
        for found in records {
            match found.head.kind {
                Kind::Data(_) => {
                    let slot = (found.at / ALIGN) as u32;
                    self.index
                        .put_record(found.head.position, slot, &found.streams);
                }
                Kind::Junk(_) => self.index.put_junk(found.head.span(), found.head.term),
                Kind::Files => self.summary.listed.clone_from(&found.listed),
            }
        }
    }
}
