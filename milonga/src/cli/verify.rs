//! `milonga cluster verify`: that all units hold the same, on a running cluster or on the directories of a stopped one; and
//! `milonga cluster repair`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use milonga_client::verify::{Findings, Held, Record, Sum, Told, Trails, VerifyOptions, judge};
use milonga_client::{Options, reconfigure, verify};
use milonga_host::Disk;
use milonga_host::fs::FsDisk;
use milonga_logunit::storage::Slot;
use milonga_logunit::store::OpenError;
use milonga_logunit::store::view::View;
use milonga_wire::{Decided, Identity, Layout, Position, ServerName, Span, StreamId, StreamLink};
use serde::Serialize;

use super::Context;
use crate::failure::{Code, Failure, Outcome};
use crate::output::progress;

/// Streams of one page of a directory's index.
const STREAMS_PAGE: usize = 4_096;
/// Spans and violations that people are shown of each kind.
const SHOWN_MAX: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Verify {
    /// Directories of a stopped cluster's log units and layout servers, instead of a running cluster.
    #[arg(long, num_args = 1.., value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Bytes read in a second, of all units together.
    #[arg(long, value_name = "BYTES/S", conflicts_with = "dirs", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Repair {
    /// The log unit; all that say they hold damaged records if left out.
    unit: Option<ServerName>,
}

/// What a repair came to, as it is printed.
#[derive(Serialize)]
struct Repaired {
    term: u64,
    restored: u64,
    lost: Vec<Span>,
    units: Vec<String>,
}

impl Verify {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        let findings = if self.dirs.is_empty() {
            self.online(context).await?
        } else {
            offline(&self.dirs)?
        };
        context.output.one(&findings, || text(&findings))?;
        if !findings.is_bad() {
            return whole(&findings);
        }
        let damaged: u64 = findings.damaged.iter().map(|unit| unit.positions).sum();
        Err(Failure::new(
            Code::Damage,
            format!(
                "{} violations, {damaged} damaged positions; \
                 expected none; damage is repaired by `milonga cluster repair`, \
                 a unit that differs from its head must be evicted and heal",
                findings.violations_total
            ),
        ))
    }

    async fn online(&self, context: &Context) -> Outcome<Findings> {
        // It looks and touches nothing: not even a control certificate mends or settles here.
        let log = context.cluster.connect_with(|options| {
            *options = Options {
                mend: false,
                settle: false,
                ..options.clone()
            }
        })?;
        let options = VerifyOptions {
            bytes_per_second: self.rate,
        };
        let bar = progress(Some(0), "positions");
        let show = |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let findings = verify::verify(&log, &options, &show).await;
        bar.finish_and_clear();
        Ok(findings?)
    }
}

impl Repair {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        let log = context.cluster.connect()?;
        let layout = log.newest_layout().await?.layout.clone();
        let units = match self.unit {
            Some(unit) => vec![unit],
            None => layout.units.into_iter().map(|unit| unit.name).collect(),
        };
        let mut all = Repaired {
            term: layout.term.0,
            restored: 0,
            lost: vec![],
            units: vec![],
        };
        for unit in units {
            let done = reconfigure::repair(&log, &unit).await?;
            all.term = done.term.0;
            all.restored += done.restored;
            if done.restored > 0 || !done.lost.is_empty() {
                all.units.push(unit.to_string());
            }
            let new = done
                .lost
                .into_iter()
                .filter(|span| !all.lost.contains(span));
            let new: Vec<Span> = new.collect();
            all.lost.extend(new);
        }
        context.output.one(&all, || {
            format!(
                "{} positions restored in term {}{}",
                all.restored,
                all.term,
                spans("lost on every unit", &all.lost)
            )
        })?;
        if all.lost.is_empty() {
            return Ok(());
        }
        let text = "some positions are lost on every unit that held them; \
                    look for a copy of a unit's directory, or declare them lost";
        Err(Failure::new(Code::Damage, text))
    }
}

/// Nothing bad was found; but who was not asked may hold anything.
fn whole(findings: &Findings) -> Outcome {
    let units: Vec<&str> = findings.unreachable.keys().map(String::as_str).collect();
    if units.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Code::Unavailable,
        format!(
            "not everything was compared: {} could not be asked; expected every log unit that the layout lists; \
             start them, or give their directories",
            units.join(", ")
        ),
    ))
}

fn text(findings: &Findings) -> String {
    let mut text = format!(
        "{} positions and {} streams checked   {} violations",
        findings.checked, findings.streams, findings.violations_total
    );
    for violation in findings.violations.iter().take(SHOWN_MAX) {
        text += &format!("\nviolation: {}: {}", violation.code, violation.text);
    }
    for damage in &findings.damaged {
        let what = format!(
            "damaged on {} ({} positions)",
            damage.unit, damage.positions
        );
        text += &spans(&what, &damage.spans);
    }
    text += &spans("told by no unit", &findings.lost);
    text += &spans("holes", &findings.holes);
    text += &spans("not on their whole chain yet", &findings.incomplete);
    for unit in &findings.trims_behind {
        text += &format!("\nbehind with a trim: {unit}");
    }
    for unit in &findings.torn {
        text += &format!("\nsomething is missing, by a crash or damage: {unit}");
    }
    for (unit, why) in &findings.unreachable {
        text += &format!("\nnot asked: {unit}: {why}");
    }
    text
}

fn spans(what: &str, spans: &[Span]) -> String {
    if spans.is_empty() {
        return String::new();
    }
    let shown: Vec<String> = spans.iter().take(SHOWN_MAX).map(Span::to_string).collect();
    let more = spans.len().saturating_sub(SHOWN_MAX);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("\n{what}: {}{more}", shown.join(" "))
}

/// A stopped cluster: its units' directories, locked, and the newest decided layout that any layout server's holds.
struct Stopped {
    units: Vec<View>,
    /// The highest settled mark that any of them was told.
    settled: Position,
    layout: Option<Layout>,
    /// Their locks.
    locks: Vec<FsDisk>,
}

fn offline(dirs: &[PathBuf]) -> Outcome<Findings> {
    let mut stopped = Stopped::open(dirs)?;
    let mut findings = Findings::default();
    stopped.verify(&mut findings);
    Ok(findings)
}

impl Stopped {
    fn open(dirs: &[PathBuf]) -> Outcome<Self> {
        let mut stopped = Self {
            units: vec![],
            settled: Position::FIRST,
            layout: None,
            locks: vec![],
        };
        for dir in dirs {
            stopped
                .add(dir)
                .map_err(|failure| failure.about(dir.display()))?;
        }
        let clusters: BTreeSet<_> = stopped.units.iter().map(|unit| unit.cluster).collect();
        let clusters: BTreeSet<_> = stopped
            .layout
            .iter()
            .map(|layout| layout.cluster)
            .chain(clusters)
            .collect();
        let identities: BTreeSet<Identity> =
            stopped.units.iter().map(|unit| unit.identity).collect();
        if clusters.len() > 1 || identities.len() < stopped.units.len() {
            return Err(Failure::new(
                Code::Conflict,
                "the directories are of different clusters, or two of them are copies of one; expected each directory of one cluster once",
            ));
        }
        Ok(stopped)
    }

    fn add(&mut self, dir: &Path) -> Outcome {
        let disk = FsDisk::existing(dir).map_err(|why| match why.kind() {
            std::io::ErrorKind::NotFound => Failure::new(
                Code::NotFound,
                format!("{why}; expected a server's directory"),
            ),
            _ => Failure::failed(format!("{why}; expected a server's directory")),
        })?;
        match View::open(&disk) {
            Ok(view) => self.units.push(view),
            Err(OpenError::OtherKind) => {
                disk.lock().map_err(|_| Failure::from(OpenError::InUse))?;
                let found = milonga_layout::Store::read(&disk)?;
                let decided = found.and_then(|found| found.decided.into_iter().next_back());
                let newest = self.layout.as_ref().map(|layout| layout.term);
                if let Some(Decided { layout, .. }) = decided
                    && newest.is_none_or(|newest| layout.term > newest)
                {
                    self.layout = Some(layout);
                }
            }
            Err(error @ OpenError::DamagedIdentity) => {
                return Err(Failure::new(Code::Damage, error));
            }
            Err(error) => return Err(error.into()),
        }
        self.locks.push(disk);
        Ok(())
    }

    fn verify(&mut self, findings: &mut Findings) {
        let settled = self.units.iter().map(|unit| unit.settled).max();
        self.settled = settled.unwrap_or_default();
        let torn = self.units.iter().filter(|unit| !unit.synced);
        findings.torn = torn.map(|unit| unit.name.clone()).collect();
        let trims: Vec<(String, Position)> = self
            .units
            .iter()
            .map(|unit| (unit.name.clone(), unit.trimmed))
            .collect();
        let end = self
            .units
            .iter()
            .map(|unit| unit.end)
            .max()
            .unwrap_or_default();
        let named: Vec<(&str, Position)> = trims
            .iter()
            .map(|(name, at)| (name.as_str(), *at))
            .collect();
        findings.trims(&named, end);
        let start = trims.iter().map(|(_, at)| *at).max().unwrap_or_default();
        let all = Span::new(start, end);
        let mut trails = Trails::default();
        for (members, order, span) in self.pieces(all) {
            self.piece(&members, order, span, &mut trails, findings);
        }
        findings.streams = trails.len() as u64;
        self.indexes(all, &trails, findings);
    }

    /// `all`, cut where other units hold it: who does, head first, and whether their order is known.
    fn pieces(&self, all: Span) -> Vec<(Vec<Member>, bool, Span)> {
        let Some(layout) = &self.layout else {
            let everyone = (0..self.units.len()).map(|number| self.member(number));
            return vec![(everyone.collect(), false, all)];
        };
        let numbers: BTreeMap<Identity, usize> = self
            .units
            .iter()
            .enumerate()
            .map(|(number, unit)| (unit.identity, number))
            .collect();
        let pieces = layout.pieces(all).map(|(chain, _, span)| {
            let members = layout.units_of(chain).map(|unit| Member {
                name: unit.name.to_string(),
                number: numbers.get(&unit.identity).copied(),
            });
            (members.collect(), true, span)
        });
        pieces.collect()
    }

    fn member(&self, number: usize) -> Member {
        Member {
            name: self.units[number].name.clone(),
            number: Some(number),
        }
    }

    fn piece(
        &mut self,
        members: &[Member],
        order: bool,
        span: Span,
        trails: &mut Trails,
        findings: &mut Findings,
    ) {
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        for member in members.iter().filter(|member| member.number.is_none()) {
            let why = "its directory was not given";
            let unreachable = &mut findings.unreachable;
            unreachable
                .entry(member.name.clone())
                .or_insert_with(|| why.to_owned());
        }
        for position in span.positions() {
            let mut links: Option<Vec<StreamLink>> = None;
            let told: Vec<Told> = members
                .iter()
                .map(|member| self.tell(member.number, position, &mut links))
                .collect();
            let held = judge(&told, order);
            if held == Held::Hole && !order {
                continue;
            }
            if let Some(links) = links {
                let holders = members.iter().zip(&told).filter_map(|(member, told)| {
                    let holds = matches!(told, Told::Data(_));
                    member.number.filter(|_| holds).map(|number| number as u16)
                });
                trails.note(position, &links, holders, findings);
            }
            findings.note(position, &names, &told, held);
        }
    }

    fn tell(
        &mut self,
        number: Option<usize>,
        position: Position,
        links: &mut Option<Vec<StreamLink>>,
    ) -> Told {
        let settled = self.settled;
        let Some(view) = number.map(|number| &mut self.units[number]) else {
            return Told::Silent;
        };
        match view.run(Span::one(position)).0 {
            // What is settled was on every unit, so a store that shows a gap has lost it.
            Slot::Absent if !view.synced && position < settled => Told::Unknown,
            Slot::Absent => Told::Unwritten,
            Slot::Junk(term) => Told::Junk(term),
            Slot::Trimmed => Told::Trimmed,
            Slot::Damaged => Told::Damaged,
            Slot::Data => match view.read(position) {
                Ok((head, payload)) => {
                    let mut crc = crc32fast::Hasher::new();
                    payload.chunks().iter().for_each(|chunk| crc.update(chunk));
                    let record = Record::of(&head, crc.finalize());
                    if !head.streams.is_empty() {
                        links.get_or_insert(head.streams);
                    }
                    Told::Data(record)
                }
                Err(_) => Told::Damaged,
            },
        }
    }

    /// Compares every directory's index of streams with what was read of it.
    fn indexes(&self, all: Span, trails: &Trails, findings: &mut Findings) {
        let listed: Option<BTreeSet<Identity>> = self
            .layout
            .as_ref()
            .map(|layout| layout.units.iter().map(|unit| unit.identity).collect());
        if trails.is_partial() {
            return;
        }
        for (number, view) in self.units.iter().enumerate() {
            if listed
                .as_ref()
                .is_some_and(|listed| !listed.contains(&view.identity))
            {
                continue;
            }
            for stream in streams_of(view, trails) {
                let (mut sum, mut from, mut first) = (Sum::default(), Some(all.start), None);
                while let Some(start) = from {
                    let span = Span::new(start, all.end);
                    let (positions, next) = view.stream_positions(stream, span, STREAMS_PAGE);
                    first = first.or(positions.first().copied());
                    positions.into_iter().for_each(|at| sum.add(at));
                    from = next;
                }
                if sum != trails.sum(stream, number as u16) {
                    let text = format!(
                        "the index of {} does not name the records of stream {stream} that it holds",
                        view.name
                    );
                    let at = first.unwrap_or(all.start);
                    findings.violate("index", at, view.name.clone(), text);
                }
            }
        }
    }
}

fn streams_of(view: &View, trails: &Trails) -> BTreeSet<StreamId> {
    let mut streams: BTreeSet<StreamId> = trails.streams().collect();
    let mut after = None;
    loop {
        let (tails, more) = view.stream_tails(after, STREAMS_PAGE);
        after = tails.last().map(|(stream, _)| *stream).or(after);
        let is_empty = tails.is_empty();
        streams.extend(tails.into_iter().map(|(stream, _)| stream));
        if !more || is_empty {
            return streams;
        }
    }
}

/// A unit of a chain, by its place among the directories, if its own was given.
struct Member {
    name: String,
    number: Option<usize>,
}
