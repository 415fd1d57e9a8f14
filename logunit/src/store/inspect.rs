//! Reads and verifies a directory that no process has open: every file, batch, record and footer.
//!
//! Nothing is changed unless a repair is asked for. A repair writes footers anew where they are missing or damaged and
//! everything in the file verifies; it never takes away or makes up an entry.

use std::collections::BTreeMap;
use std::sync::Arc;

use milonga_host::{Disk, File};
use milonga_wire::{ClusterId, Identity, Position, Span, Term};
use serde::Serialize;

use super::OpenError;
use super::directory::{self, Name};
use super::file::{DataFile, Footer};
use super::footer::Summary;
use super::format::{
    BatchHead, FORMAT_VERSION, Key, Kind, Listed, Owner, PAGE, State, read_file_header,
};
use super::kept;
use super::recovery::Scanned;
use super::scan::{Found, Scanner, Step, read};
use super::streams::Tails;

/// What a directory holds, and what is wrong with it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of its format.
    pub format: u32,
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
    /// The last settled mark.
    pub settled: Position,
    /// Data files, oldest first.
    pub files: Vec<FileReport>,
    /// Files with nothing in them.
    pub spares: usize,
    /// Records and junk spans verified.
    pub checked: u64,
    /// What is wrong. Empty: everything verifies.
    pub violations: Vec<Violation>,
    /// What is as a crash leaves it, and no damage.
    pub notes: Vec<Violation>,
}

/// One data file.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FileReport {
    /// Its number.
    pub number: u64,
    /// Its size.
    pub bytes: u64,
    /// Bytes of batches.
    pub data_bytes: u64,
    /// Batches.
    pub batches: u64,
    /// The number of the first batch.
    pub first_batch: u64,
    /// The number of the last batch.
    pub last_batch: u64,
    /// Records.
    pub records: u64,
    /// Spans of junk.
    pub junk: u64,
    /// The lowest position in it, and the first above the highest.
    pub span: Option<Span>,
    /// `written`, `missing` or `damaged`.
    pub footer: &'static str,
}

/// Something found in a directory.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Violation {
    /// The file.
    pub file: String,
    /// Where in it.
    pub offset: u64,
    /// What.
    pub what: String,
}

/// One record, as [`walk`] shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// The file.
    pub file: u64,
    /// Where in it.
    pub offset: u64,
    /// The batch it came in; none if that one is damaged.
    pub batch: Option<u64>,
    /// `data` or `junk`.
    pub kind: &'static str,
    /// Its positions.
    pub span: Span,
    /// Its term.
    pub term: Term,
    /// Its stamp.
    pub stamp: Option<String>,
    /// Its streams.
    pub streams: Vec<String>,
    /// Bytes of payload.
    pub bytes: u32,
}

/// Verifies the directory; with `repair`, writes missing and damaged footers anew.
///
/// # Errors
/// [`OpenError`] if it is in use, or no log unit's directory.
pub fn inspect(disk: &dyn Disk, repair: bool) -> Result<Report, OpenError> {
    let mut inspection = Inspection::start(disk)?;
    inspection.files(repair, &mut |_| {})?;
    Ok(inspection.report)
}

/// Verifies the directory, and shows every record of every file, trimmed ones too, in the order they were written.
///
/// # Errors
/// [`OpenError`] if it is in use, or no log unit's directory.
pub fn walk(disk: &dyn Disk, show: &mut dyn FnMut(&Shown)) -> Result<Report, OpenError> {
    let mut inspection = Inspection::start(disk)?;
    inspection.files(false, show)?;
    Ok(inspection.report)
}

struct Inspection<'a> {
    disk: &'a dyn Disk,
    owner: Owner,
    names: Vec<String>,
    report: Report,
    state: State,
    /// The first batch of the file looked at before: files are gone through newest first.
    before: u64,
    /// The batch that the next file's first one says it follows, and that file.
    after: Option<(u64, Summary)>,
    /// The files that the newest one lists.
    listed: Vec<Listed>,
}

impl<'a> Inspection<'a> {
    fn start(disk: &'a dyn Disk) -> Result<Self, OpenError> {
        disk.lock().map_err(|_| OpenError::InUse)?;
        let names = disk.list().map_err(OpenError::io("list the directory"))?;
        let Some(owned) = directory::owner(disk, &names)? else {
            return Err(OpenError::Empty);
        };
        Ok(Self {
            disk,
            owner: Owner {
                cluster: owned.cluster,
                identity: owned.identity,
            },
            names,
            report: Report {
                format: FORMAT_VERSION,
                cluster: owned.cluster,
                identity: owned.identity,
                name: owned.name,
                term: Term::GENESIS,
                trimmed: Position::FIRST,
                end: Position::FIRST,
                settled: Position::FIRST,
                files: Vec::new(),
                spares: 0,
                checked: 0,
                violations: Vec::new(),
                notes: Vec::new(),
            },
            state: State::default(),
            before: u64::MAX,
            after: None,
            listed: Vec::new(),
        })
    }

    fn files(&mut self, repair: bool, show: &mut dyn FnMut(&Shown)) -> Result<(), OpenError> {
        let mut data = BTreeMap::new();
        for name in &self.names {
            match Name::parse(name) {
                Some(Name::Data(number)) => {
                    data.insert(number, name.clone());
                }
                Some(Name::Spare(_)) => self.report.spares += 1,
                None if directory::is_known(name) => {}
                None => self.report.violations.push(Violation {
                    file: name.clone(),
                    offset: 0,
                    what: "a file that is not this program's".to_owned(),
                }),
            }
        }
        for (number, name) in data.into_iter().rev() {
            let file = self
                .disk
                .open(&name)
                .map_err(OpenError::io("open a data file"))?;
            self.file(number, &name, &file, repair, show)?;
        }
        self.report.files.reverse();
        self.missing();
        let kept = kept::load(self.disk, self.owner, &self.names, &mut Tails::default())?;
        if let Err(why) = kept {
            self.violation(directory::KEPT, 0, why.to_string());
        }
        let state = self.state;
        self.report.term = state.term;
        self.report.trimmed = state.trimmed;
        self.report.settled = state.settled;
        self.report.end = state.end;
        Ok(())
    }

    fn violation(&mut self, file: &str, offset: u64, what: impl Into<String>) {
        self.report.violations.push(Violation {
            file: file.to_owned(),
            offset,
            what: what.into(),
        });
    }

    fn file(
        &mut self,
        number: u64,
        name: &str,
        file: &Arc<dyn File>,
        repair: bool,
        show: &mut dyn FnMut(&Shown),
    ) -> Result<(), OpenError> {
        let page = read(&**file, 0, file.size().min(PAGE) as usize);
        let page = page.map_err(OpenError::io("read a data file"))?;
        let key = match read_file_header(&page, self.owner, number) {
            Ok(key) => key,
            Err(why) => {
                self.violation(name, 0, why.to_string());
                return Ok(());
            }
        };
        let mut found = FileReport {
            number,
            bytes: file.size(),
            footer: "missing",
            ..FileReport::default()
        };
        let scanned = self.batches(name, &**file, key, &mut found, show);
        let newest = self.after.is_none();
        if scanned.torn {
            let at = scanned.summary.data_end;
            let what = "what is left of a batch that was never acknowledged, if the disk is honest";
            self.report.notes.push(Violation {
                file: name.to_owned(),
                offset: at,
                what: what.to_owned(),
            });
        }
        if scanned.summary.last > 0 {
            if newest {
                self.listed.clone_from(&scanned.summary.listed);
            }
            self.footer(name, file, &scanned, &mut found, repair && !newest, key)?;
            self.follow(name, &scanned.summary);
            self.state = self.state.merge(scanned.summary.state);
            self.state.end = self.state.end.max(scanned.index.end);
            self.before = scanned.summary.first;
            self.after = Some((scanned.summary.after, scanned.summary));
            self.report.files.push(found);
        } else {
            self.report.spares += 1;
        }
        Ok(())
    }

    /// Goes through a file's batches.
    fn batches(
        &mut self,
        name: &str,
        file: &dyn File,
        key: Key,
        found: &mut FileReport,
        show: &mut dyn FnMut(&Shown),
    ) -> Scanned {
        let mut scanner = Scanner::new(file, key, self.before);
        let mut contents = Scanned::nothing();
        let mut last = None;
        while let Some(step) = scanner.step() {
            match &step {
                Step::Batch { at, head, records } => {
                    if last.is_some_and(|last| head.synced != last) {
                        self.violation(name, *at, "the batch before this one is missing");
                    }
                    last = Some(head.sequence);
                    found.batch(head, at + u64::from(head.bytes));
                    self.records(found, records, last, show);
                }
                Step::Damage {
                    at,
                    end,
                    records,
                    damaged,
                } => {
                    self.violation(name, *at, format!("damaged up to {end}"));
                    for position in damaged {
                        let what = format!("the record of position {position} is damaged");
                        self.violation(name, *at, what);
                    }
                    self.records(found, records, None, show);
                    last = None;
                }
                Step::End { .. } => {}
            }
            contents.apply(&step);
        }
        if scanner.unreadable {
            let end = contents.summary.data_end;
            self.violation(name, end, "the disk refuses to read part of it");
        }
        contents.finish(&scanner);
        contents
    }

    fn records(
        &mut self,
        found: &mut FileReport,
        records: &[Found],
        batch: Option<u64>,
        show: &mut dyn FnMut(&Shown),
    ) {
        for record in records {
            let (kind, stamp) = match record.head.kind {
                Kind::Data(stamp) => ("data", Some(stamp.to_string())),
                Kind::Junk(_) => ("junk", None),
                Kind::Files => continue,
            };
            self.report.checked += 1;
            found.records += u64::from(stamp.is_some());
            found.junk += u64::from(stamp.is_none());
            let span = record.head.span();
            let whole = found.span.unwrap_or(span);
            found.span = Some(Span::new(
                whole.start.min(span.start),
                whole.end.max(span.end),
            ));
            let links = record.streams.iter();
            show(&Shown {
                file: found.number,
                offset: record.at,
                batch,
                kind,
                span,
                term: record.head.term,
                stamp,
                streams: links.map(|link| link.stream.to_string()).collect(),
                bytes: record.head.len,
            });
        }
    }

    /// Compares a file's footer with what its batches say.
    fn footer(
        &mut self,
        name: &str,
        file: &Arc<dyn File>,
        scanned: &Scanned,
        found: &mut FileReport,
        repair: bool,
        key: Key,
    ) -> Result<(), OpenError> {
        let frozen = scanned.index.freeze();
        let good = if let Some((summary, index)) = DataFile::read_footer(&key, &**file) {
            let same = summary.last == scanned.summary.last && index.same_records(&frozen);
            let good = same || !summary.whole;
            found.footer = if good { "written" } else { "damaged" };
            good
        } else {
            if DataFile::has_trailer(&key, &**file) {
                found.footer = "damaged";
            }
            false
        };
        if found.footer == "damaged" {
            self.violation(
                name,
                file.size(),
                "the footer does not say what the batches say",
            );
        }
        if repair && !good && scanned.summary.whole {
            let mut data = DataFile::new(key, Arc::clone(file), scanned.summary.clone());
            data.write_footer(&frozen)
                .map_err(OpenError::io("write a footer"))?;
            if data.footer == Footer::Written {
                found.footer = "written";
            }
        }
        Ok(())
    }

    /// Whether the file looked at before, the next newer one, begins where this one ends.
    fn follow(&mut self, name: &str, summary: &Summary) {
        let Some((after, newer)) = &self.after else {
            return;
        };
        let is_previous = newer
            .listed
            .last()
            .is_some_and(|listed| Name::Data(listed.number).of() == name);
        if is_previous && *after != summary.last {
            let what = format!("batches behind {} are missing", summary.last);
            self.violation(name, summary.data_end, what);
        }
    }

    /// Files that the newest one lists, and that are not there though something of them is kept.
    fn missing(&mut self) {
        let present: Vec<u64> = self.report.files.iter().map(|file| file.number).collect();
        let trimmed = self.state.trimmed;
        for listed in std::mem::take(&mut self.listed) {
            if listed.end > trimmed && !present.contains(&listed.number) {
                let name = Name::Data(listed.number).of();
                self.violation(&name, 0, "the file is missing");
            }
        }
    }
}

impl FileReport {
    fn batch(&mut self, head: &BatchHead, end: u64) {
        self.batches += 1;
        self.last_batch = head.sequence;
        self.data_bytes = end - PAGE;
        if self.first_batch == 0 {
            self.first_batch = head.sequence;
        }
    }
}
