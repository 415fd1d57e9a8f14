//! `milonga log read` and `follow`: entries as rows, as JSON, or as the bytes that were appended.

use std::io::{self, BufWriter, Write};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use milonga_client::object::cursors::If;
use milonga_client::object::{Cursors, Objects};
use milonga_client::{Entry, EntryKind, Log};
use milonga_wire::{Before, Position, Span, StreamId};
use serde::Serialize;

use super::super::cursor::decided;
use super::{Context, Stream, kind};
use crate::failure::{Code, Failure, Outcome};
use crate::output::{ended, json, say};

/// Entries after which a follower moves its cursor, if it has not caught up before.
const PASSED_MAX: u32 = 1_000;

#[derive(Debug, clap::Args)]
pub(crate) struct Read {
    /// A position, or a range: `FROM..TO`, `FROM..` up to the end.
    #[arg(value_name = "FROM[..TO]")]
    range: Range,
    /// Only what belongs to this stream.
    #[arg(long, value_name = "S")]
    stream: Option<Stream>,
    /// Prints the bytes of each record and a line end, nothing else.
    #[arg(long)]
    raw: bool,
    /// Leaves holes as they are, and prints them.
    #[arg(long)]
    no_fill: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Follow {
    /// Where to start [default: the end of the log]; with a cursor, if there is none of that name yet.
    #[arg(long, value_name = "P")]
    from: Option<u64>,
    /// Starts where this cursor is, and moves it behind what was printed: each entry is printed once, or again after a crash.
    #[arg(long, value_name = "NAME", value_parser = super::super::cursor::name)]
    cursor: Option<String>,
    /// Only what belongs to this stream.
    #[arg(long, value_name = "S")]
    stream: Option<Stream>,
    /// Prints the bytes of each record and a line end, nothing else.
    #[arg(long)]
    raw: bool,
}

/// What to read.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
enum Range {
    One(Position),
    /// Up to the end of the log if it has no end of its own.
    Many(Position, Option<Position>),
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let parsed = text.parse().map(Position);
            parsed
                .map_err(|_| format!("`{text}` is no position; expected FROM, FROM..TO or FROM.."))
        };
        match text.split_once("..") {
            None => number(text).map(Self::One),
            Some((from, to)) => {
                let from = if from.is_empty() {
                    Position::FIRST
                } else {
                    number(from)?
                };
                let to = match to {
                    "" | "end" | "END" => None,
                    to => Some(number(to)?),
                };
                match to {
                    Some(to) if to < from => Err(format!(
                        "`{text}` ends before it starts; expected FROM..TO with FROM up to TO"
                    )),
                    Some(_) | None => Ok(Self::Many(from, to)),
                }
            }
        }
    }
}

impl Read {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        let log = context
            .cluster
            .connect_with(|options| options.settle = !self.no_fill)?;
        let stream = self.stream.map(|stream| stream.0);
        let mut printer = Printer::new(context, self.raw, stream);
        match (self.range, stream) {
            (Range::One(position), _) => printer.one(log.read(position).await?)?,
            (Range::Many(from, to), None) => {
                let span = Span::new(from, to.unwrap_or(Position(u64::MAX)));
                read_all(&log, span, &mut printer).await?;
            }
            (Range::Many(from, to), Some(stream)) => {
                read_stream(&log, stream, from, to, &mut printer).await?;
            }
        }
        printer.end()
    }
}

/// Round by round, the next one under way while one is printed: the log need not fit into memory.
async fn read_all(log: &Log, span: Span, printer: &mut Printer) -> Outcome {
    let mut entries = log.read_some(span).await?;
    while let Some(last) = entries.last() {
        let rest = Span::new(last.position.next(), span.end.max(last.position.next()));
        let next = log.read_some(rest);
        let print = async { printer.all(&entries) };
        let (next, done) = tokio::join!(biased; next, print);
        done?;
        entries = next?;
    }
    Ok(())
}

/// Batch by batch: the stream need not fit into memory.
async fn read_stream(
    log: &Log,
    stream: StreamId,
    from: Position,
    to: Option<Position>,
    printer: &mut Printer,
) -> Outcome {
    let end = log.end_of(&[stream]).await?;
    let last: Option<Before> = end.streams.into_iter().next().map(|link| link.before);
    let stop = to.unwrap_or(end.position).min(end.position).max(from);
    let known = last.as_ref().filter(|_| stop == end.counter);
    let mut reader = log.stream_reader(stream, Span::new(from, stop), known);
    while let Some(entries) = reader.next().await? {
        printer.all(&entries)?;
    }
    Ok(())
}

impl Follow {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        let log = context.cluster.connect()?;
        let mut place = match self.cursor {
            Some(name) => Some(Place::find(&log, name).await?),
            None => None,
        };
        let stopped = place.as_ref().and_then(|place| place.at);
        let from = match (stopped, self.from) {
            (Some(at), _) => at,
            (None, Some(from)) => super::up_to_the_end(&log, Position(from)).await?,
            (None, None) => log.end().await?.position,
        };
        let stream = self.stream.map(|stream| stream.0);
        let mut printer = Printer::new(context, self.raw, stream);
        let mut follower = log.follow(from);
        // What was passed by since the cursor was moved.
        let mut passed = 0;
        loop {
            let next = match follower.next_ready().await {
                Ok(None) => {
                    printer.flush()?;
                    printer.told();
                    if let Some(place) = place.as_mut().filter(|_| passed > 0) {
                        place.move_to(context, follower.position()).await?;
                    }
                    passed = 0;
                    follower.next().await
                }
                Ok(Some(entry)) => Ok(entry),
                Err(error) => Err(error),
            };
            match next {
                // Its own moves would lead to the next ones.
                Ok(entry) if place.as_ref().is_some_and(|place| place.made(&entry)) => {}
                Ok(entry) => {
                    printer.all(&[entry])?;
                    passed += 1;
                    if let Some(place) = place.as_mut().filter(|_| passed >= PASSED_MAX) {
                        printer.flush()?;
                        passed = 0;
                        place.move_to(context, follower.position()).await?;
                    }
                }
                Err(error) => {
                    printer.flush()?;
                    let next = follower.position();
                    let text = format!(
                        "{}; go on with `--from {next}`",
                        Failure::from(error.clone())
                    );
                    return Err(Failure::new(Failure::from(error).code, text));
                }
            }
        }
    }
}

/// Where a follower stopped, under a name.
struct Place {
    cursors: Cursors,
    name: String,
    at: Option<Position>,
    /// What the next move asks for.
    expect: If,
}

impl Place {
    async fn find(log: &Log, name: String) -> Outcome<Self> {
        let cursors = Cursors::open(&Objects::new(log));
        let found = cursors.get(&name).await?;
        Ok(Self {
            cursors,
            name,
            at: found.map(|found| found.position),
            expect: found.map_or(If::Absent, |found| If::Version(found.version)),
        })
    }

    /// Whether `entry` is a move of a cursor.
    fn made(&self, entry: &Entry) -> bool {
        let own = self.cursors.view().stream();
        let EntryKind::Data { streams, .. } = &entry.kind else {
            return false;
        };
        !streams.is_empty() && streams.iter().all(|link| link.stream == own)
    }

    /// Everything below `to` is printed.
    async fn move_to(&mut self, context: &Context, to: Position) -> Outcome {
        if self.at == Some(to) {
            return Ok(());
        }
        let (version, moved) = self.cursors.move_to(&self.name, to, self.expect).await?;
        decided(context, &self.name, moved)?;
        (self.at, self.expect) = (Some(to), If::Version(version));
        Ok(())
    }
}

/// How entries are printed.
struct Printer {
    out: BufWriter<io::Stdout>,
    form: Form,
    stream: Option<StreamId>,
    gaps: Gaps,
}

/// Records that bytes alone cannot show to be missing.
#[derive(Default)]
struct Gaps {
    /// The first position kept, if some that were asked for are trimmed.
    trimmed: Option<Position>,
    /// The first position that was lost.
    lost: Option<Position>,
}

#[derive(Copy, Clone)]
enum Form {
    Raw,
    Json,
    Text,
}

#[derive(Serialize)]
struct Printed {
    position: u64,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    streams: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

impl Printer {
    fn new(context: &Context, raw: bool, stream: Option<StreamId>) -> Self {
        let form = match (raw, context.output.is_json()) {
            (true, _) => Form::Raw,
            (false, true) => Form::Json,
            (false, false) => Form::Text,
        };
        Self {
            out: BufWriter::with_capacity(1 << 16, io::stdout()),
            form,
            stream,
            gaps: Gaps::default(),
        }
    }

    /// The only entry asked for: raw, it must be a record.
    fn one(&mut self, entry: Entry) -> Outcome {
        if matches!(self.form, Form::Raw) && entry.payload().is_none() {
            let text = format!(
                "position {} holds no record: {}",
                entry.position,
                kind(&entry)
            );
            let code = match entry.kind {
                EntryKind::Unknown => Code::Damage,
                _ => Code::NotFound,
            };
            return Err(Failure::new(code, text));
        }
        self.all(&[entry])
    }

    fn all(&mut self, entries: &[Entry]) -> Outcome {
        let is_raw = matches!(self.form, Form::Raw);
        for entry in entries {
            self.gaps.note(entry, is_raw);
        }
        let wanted = entries.iter().filter(|entry| names(entry, self.stream));
        let out = &mut self.out;
        let mut print = wanted.map(|entry| match self.form {
            Form::Raw => raw(out, entry),
            Form::Json => writeln!(out, "{}", json(&Printed::of(entry))),
            Form::Text => text(out, entry),
        });
        print.try_for_each(|written| written).or_else(ended)
    }

    fn flush(&mut self) -> Outcome {
        self.out.flush().or_else(ended)
    }

    /// Says once which records are trimmed.
    fn told(&mut self) {
        if let Some(kept) = self.gaps.trimmed.take() {
            say(format_args!(
                "note: what was asked for below position {kept} is trimmed and not printed"
            ));
        }
    }

    /// The end of what was asked for.
    fn end(&mut self) -> Outcome {
        self.flush()?;
        self.told();
        match self.gaps.lost {
            None => Ok(()),
            Some(position) => Err(Failure::new(
                Code::Damage,
                format!(
                    "position {position}, and perhaps others, is lost or damaged on every unit; \
                     expected what was appended; try `milonga cluster repair`; look with `milonga log read {position}.. -o json`; \
                     what no unit holds any more can be declared lost (`milonga cluster declare-lost`)"
                ),
            )),
        }
    }
}

impl Gaps {
    /// What is trimmed need not be told where it is printed.
    fn note(&mut self, entry: &Entry, is_raw: bool) {
        match &entry.kind {
            EntryKind::Trimmed if is_raw => self.trimmed = Some(entry.position.next()),
            EntryKind::Unknown => self.lost = self.lost.or(Some(entry.position)),
            EntryKind::Trimmed
            | EntryKind::Data { .. }
            | EntryKind::Junk { .. }
            | EntryKind::Unwritten => {}
        }
    }
}

/// Whether the entry belongs to the stream, or hides what was there.
fn names(entry: &Entry, stream: Option<StreamId>) -> bool {
    match (&entry.kind, stream) {
        (_, None) | (EntryKind::Trimmed | EntryKind::Unknown, _) => true,
        (EntryKind::Data { streams, .. }, Some(stream)) => {
            streams.iter().any(|link| link.stream == stream)
        }
        (EntryKind::Junk { .. } | EntryKind::Unwritten, Some(_)) => false,
    }
}

fn raw(out: &mut impl Write, entry: &Entry) -> io::Result<()> {
    match entry.payload() {
        Some(payload) => {
            out.write_all(payload)?;
            out.write_all(b"\n")
        }
        None => Ok(()),
    }
}

/// A position and what is there; bytes that are no text are shown as such.
fn text(out: &mut impl Write, entry: &Entry) -> io::Result<()> {
    write!(out, "{:>10}  ", entry.position)?;
    match entry.payload().map(|payload| std::str::from_utf8(payload)) {
        Some(Ok(text)) => writeln!(out, "{text}"),
        Some(Err(_)) => writeln!(
            out,
            "({} bytes)",
            entry.payload().map_or(0, bytes::Bytes::len)
        ),
        None => writeln!(out, "({})", kind(entry)),
    }
}

impl Printed {
    fn of(entry: &Entry) -> Self {
        let mut printed = Self {
            position: entry.position.0,
            kind: kind(entry),
            term: None,
            streams: None,
            stamp: None,
            data: None,
        };
        match &entry.kind {
            EntryKind::Data {
                term,
                stamp,
                streams,
                payload,
            } => {
                printed.term = Some(term.0);
                printed.stamp = Some(stamp.to_string());
                printed.streams =
                    Some(streams.iter().map(|link| link.stream.to_string()).collect());
                printed.data = Some(STANDARD.encode(payload));
            }
            EntryKind::Junk { term } => printed.term = Some(term.0),
            EntryKind::Trimmed | EntryKind::Unwritten | EntryKind::Unknown => {}
        }
        printed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_half_open_and_may_end_with_the_log() {
        let many = |from, to: Option<u64>| Range::Many(Position(from), to.map(Position));
        assert_eq!("7".parse(), Ok(Range::One(Position(7))));
        assert_eq!("7..9".parse(), Ok(many(7, Some(9))));
        for open in ["0..", "..", "0..end", "..END"] {
            assert_eq!(open.parse(), Ok(many(0, None)), "{open}");
        }
        for bad in ["", "x", "1..y", "-1", "1.2", "5..3"] {
            assert!(bad.parse::<Range>().is_err(), "{bad}");
        }
    }
}
