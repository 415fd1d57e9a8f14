//! `milonga log append`: one record, or the lines of a file in order, and what became of an append that broke off.
//!
//! A stamp to resume with is what the client saved, and how many lines of the input came before it: `SAVED` or
//! `SAVED,LINES`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bytes::Bytes;
use milonga_client::{
    AppendError, EntryKind as Kind, Log, Position, Producer, Resumed, SavedAppend,
};
use milonga_host::Shutdown;
use milonga_wire::limits::ENTRY_BYTES_MAX;
use milonga_wire::{Span, StreamId};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{Context, Stream};
use crate::failure::{Code, Failure, Outcome};
use crate::output::progress;

/// A batch is cut at whichever comes first.
const BATCH_LINES: usize = 4_096;
const BATCH_BYTES: usize = 1 << 20;
/// Batches read ahead of the one under way.
const AHEAD: usize = 2;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("input").args(["data", "lines"]))]
pub(crate) struct Append {
    /// The record.
    data: Option<String>,
    /// A file of which every line is a record; `-` is stdin.
    #[arg(long, value_name = "FILE|-")]
    lines: Option<PathBuf>,
    /// A stream that the records belong to.
    #[arg(long = "stream", value_name = "S")]
    streams: Vec<Stream>,
    /// Finds out about an append whose outcome was unknown; with the same input, appends what is missing. It may be repeated,
    /// one at a time, until it is done: nothing is appended twice.
    #[arg(long, value_name = "STAMP")]
    resume: Option<Stamp>,
}

/// What to resume with.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Stamp {
    saved: SavedAppend,
    /// Lines of the input that are in the log for sure, before the ones saved.
    before: u64,
}

/// What was appended.
#[derive(Clone, Debug, Default, Serialize)]
struct Done {
    appended: u64,
    first: Option<u64>,
    last: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stamp: Option<String>,
    /// What is being resumed: what a resume appends is found again by the same stamp.
    #[serde(skip)]
    resumes: Option<String>,
}

/// Some lines of the input.
#[derive(Default)]
struct Batch {
    lines: Vec<Bytes>,
    bytes: usize,
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.before {
            0 => self.saved.fmt(f),
            lines => write!(f, "{},{lines}", self.saved),
        }
    }
}

impl Stamp {
    /// The stream of what its resumes append.
    fn stream(&self) -> StreamId {
        let SavedAppend {
            session,
            request,
            first,
            ..
        } = &self.saved;
        StreamId::of_name(&format!("resumed/{session}-{request}.{first}"))
    }
}

impl FromStr for Stamp {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (saved, before) = text.split_once(',').unwrap_or((text, "0"));
        let before = before.parse();
        Ok(Self {
            saved: saved
                .parse()
                .map_err(|error: milonga_wire::InvalidName| error.to_string())?,
            before: before.map_err(|_| format!("`{text}` does not end in a number of lines"))?,
        })
    }
}

impl Append {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        if self.data.is_none() && self.lines.is_none() && self.resume.is_none() {
            return Err(Failure::usage(
                "nothing to append; expected DATA or --lines FILE; try `milonga log append --help`",
            ));
        }
        let log = context.cluster.connect()?;
        let mut done = Done::default();
        let skip = match &self.resume {
            Some(stamp) => match done.resume(&log, stamp).await? {
                lines if self.has_input() => lines + done.resumed_before(&log, stamp).await?,
                _ => return done.end(context, stamp),
            },
            None => 0,
        };
        let outcome = self.append(&log, skip, &mut done).await;
        match outcome {
            Ok(()) => context.output.one(&done, || done.text()),
            Err(failure) if context.output.is_json() && done.says_something() => {
                context.output.one(&done, String::new)?;
                Err(failure)
            }
            Err(failure) => Err(failure),
        }
    }

    fn has_input(&self) -> bool {
        self.data.is_some() || self.lines.is_some()
    }

    /// Appends the input behind its first `skip` lines.
    async fn append(self, log: &Log, skip: u64, done: &mut Done) -> Outcome {
        let mut streams: Vec<StreamId> = self.streams.iter().map(|stream| stream.0).collect();
        streams.extend(self.resume.iter().map(Stamp::stream));
        let mut producer = log.producer(&streams);
        let mut before = skip;
        match (self.data, self.lines) {
            (Some(data), _) if skip == 0 => {
                done.batch(&mut producer, &[Bytes::from(data)], &mut before)
                    .await
            }
            (_, Some(file)) => {
                let mut batches = read_ahead(&file, skip)?;
                let bar = progress(None, "records");
                let shutdown = Shutdown::listen()
                    .map_err(|why| Failure::failed(format!("signals cannot be caught: {why}")))?;
                let mut ending = std::pin::pin!(shutdown.requested(&log.host().tasks));
                let ended = loop {
                    let batch = tokio::select! {
                        biased;
                        signal = &mut ending => break Err(interrupted(signal)),
                        batch = batches.recv() => batch,
                    };
                    let batch = match batch {
                        None => break Ok(()),
                        Some(Err(failure)) => break Err(failure),
                        Some(Ok(batch)) => batch,
                    };
                    // What was begun is seen through, so that its outcome is known.
                    let signal = {
                        let mut work =
                            std::pin::pin!(done.batch(&mut producer, &batch.lines, &mut before));
                        tokio::select! {
                            biased;
                            outcome = &mut work => { outcome?; None }
                            signal = &mut ending => { work.await?; Some(signal) }
                        }
                    };
                    bar.set_position(done.appended);
                    if let Some(signal) = signal {
                        break Err(interrupted(signal));
                    }
                };
                bar.finish_and_clear();
                ended.map_err(|failure| match before {
                    0 => failure,
                    lines => failure.about(format!(
                        "stopped behind {lines} lines, which are in the log"
                    )),
                })
            }
            (Some(_), None) if skip > 1 => Err(shorter(skip)),
            (_, None) => Ok(()),
        }
    }
}

/// Told to end while input was left.
fn interrupted(signal: &str) -> Failure {
    Failure::failed(format!(
        "{signal}; nothing else was appended; to go on, give the lines behind those"
    ))
}

/// Another input than the one that the stamp is of.
fn shorter(lines: u64) -> Failure {
    Failure::failed(format!(
        "{lines} lines are in the log already, and the input has fewer; expected the input that the stamp is of"
    ))
}

impl Done {
    /// Appends one batch; `before` counts the lines of the input that are in the log.
    async fn batch(
        &mut self,
        producer: &mut Producer,
        lines: &[Bytes],
        before: &mut u64,
    ) -> Outcome {
        match producer.append(lines).await {
            Ok(positions) => {
                for position in positions {
                    self.note(position);
                }
                *before += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                let positions = match &error {
                    AppendError::NotAppended { .. } => &[][..],
                    AppendError::Partly { positions, .. }
                    | AppendError::Unknown { positions, .. } => positions,
                };
                positions
                    .iter()
                    .flatten()
                    .for_each(|position| self.note(*position));
                Err(self.stopped(error, *before))
            }
        }
    }

    /// Whether it tells more than its error does.
    fn says_something(&self) -> bool {
        self.stamp.is_some() || self.appended > 0
    }

    fn note(&mut self, position: Position) {
        self.appended += 1;
        self.first = Some(self.first.map_or(position.0, |first| first.min(position.0)));
        self.last = Some(self.last.map_or(position.0, |last| last.max(position.0)));
    }

    fn stopped(&mut self, error: AppendError, before: u64) -> Failure {
        let AppendError::Unknown {
            saved,
            positions,
            why,
        } = error
        else {
            let failure = Failure::from(error);
            return match self.appended {
                0 => failure,
                appended => failure.about(format!("stopped behind {appended} records")),
            };
        };
        // The producer counts records from the start of its own run: what it finished before is in the log.
        let run = saved
            .placed
            .iter()
            .map(|placed| u64::from(placed.record))
            .min()
            .unwrap_or(0);
        let known = positions.iter().flatten().count() as u64;
        let stamp = Stamp {
            saved: *saved,
            before: before + known.saturating_sub(run),
        };
        let stamp = self.resumes.clone().unwrap_or_else(|| stamp.to_string());
        self.outcome = Some("unknown");
        self.stamp = Some(stamp.clone());
        Failure::new(
            Code::Unknown,
            format!(
                "whether all was appended is not known yet: {why}; expected an answer within the deadline; \
                 try `milonga log append --resume {stamp}`, with the same input to go on"
            ),
        )
    }

    /// Finds out what became of the records saved, and returns how many lines of the input are in the log.
    async fn resume(&mut self, log: &Log, stamp: &Stamp) -> Outcome<u64> {
        let outcomes = log.resume(&stamp.saved).await?;
        let (mut missing, mut behind) = (None, 0);
        for (record, outcome) in outcomes {
            match outcome {
                Resumed::Appended(position) => {
                    self.note(position);
                    behind = record + 1;
                }
                Resumed::NotAppended => missing = missing.or(Some(record)),
                Resumed::Unknown => {
                    self.outcome = Some("unknown");
                    self.stamp = Some(stamp.to_string());
                    return Err(Failure::new(
                        Code::Unknown,
                        format!(
                            "record {record} cannot be told: it was trimmed, or lost on every unit; \
                             the stamp is {stamp}"
                        ),
                    ));
                }
            }
        }
        Ok(stamp.before + u64::from(missing.unwrap_or(behind)))
    }

    /// How many of the missing records an earlier resume of the same stamp has appended: they stand in a stream of their own,
    /// in order, so that however often it is resumed, each record is in the log once.
    async fn resumed_before(&mut self, log: &Log, stamp: &Stamp) -> Outcome<u64> {
        self.resumes = Some(stamp.to_string());
        let stream = stamp.stream();
        let end = log.end_of(&[stream]).await?;
        // Wherever they are: a later term may have begun below the positions saved, and issued lower ones.
        let span = Span::new(Position::FIRST, end.counter);
        let last = end.streams.first().map(|link| &link.before);
        let mut found = 0;
        for entry in log.read_stream(stream, span, last).await? {
            match entry.kind {
                Kind::Data { .. } => {
                    self.note(entry.position);
                    found += 1;
                }
                Kind::Junk { .. } => {}
                Kind::Trimmed | Kind::Unwritten | Kind::Unknown => {
                    return Err(Failure::new(
                        Code::Unknown,
                        format!(
                            "what an earlier resume appended cannot be told: position {} is trimmed or lost; the stamp is {stamp}",
                            entry.position
                        ),
                    ));
                }
            }
        }
        Ok(found)
    }

    /// What is printed of an append that was only looked at.
    fn end(mut self, context: &Context, stamp: &Stamp) -> Outcome {
        let saved: u64 = stamp
            .saved
            .placed
            .iter()
            .map(|placed| u64::from(placed.count))
            .sum();
        let outcome = match self.appended {
            0 => "not appended",
            appended if appended == saved => "appended",
            _ => "partly appended",
        };
        self.outcome = Some(outcome);
        context.output.one(&self, || {
            format!("{outcome}: {} of {saved} records", self.appended)
        })?;
        if self.appended == saved {
            return Ok(());
        }
        let missing = saved - self.appended;
        Err(Failure::new(
            Code::NotFound,
            format!(
                "{missing} of {saved} records are not in the log and never will be; append them again"
            ),
        ))
    }

    fn text(&self) -> String {
        match (self.first, self.last) {
            (Some(first), Some(last)) if first == last => format!("appended at {first}"),
            (Some(first), Some(last)) => {
                format!("appended {} records at {first}..={last}", self.appended)
            }
            _ => "appended nothing".to_owned(),
        }
    }
}

/// The lines of the input.
struct Lines {
    reader: BufReader<Box<dyn Read + Send>>,
    /// Whether more may be long in coming: then what is there is not held back for a full batch.
    slow: bool,
    /// Lines that are in the log already.
    skip: u64,
    /// Lines read.
    read: u64,
    /// What came behind the last batch.
    trouble: Option<Trouble>,
}

/// Reads batches on a thread of its own, a few ahead of the one that is appended.
fn read_ahead(file: &Path, skip: u64) -> Outcome<mpsc::Receiver<Outcome<Batch>>> {
    let mut lines = Lines::open(file, skip).map_err(|why| Failure::file(file, why))?;
    let file = file.to_owned();
    let (send, batches) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        loop {
            let batch = lines.batch().map_err(|trouble| trouble.failure(&file));
            let ended = matches!(&batch, Ok(batch) if batch.lines.is_empty());
            let failed = batch.is_err();
            if ended || send.blocking_send(batch).is_err() || failed {
                return;
            }
        }
    });
    Ok(batches)
}

/// Why there are no more lines.
#[derive(Debug)]
enum Trouble {
    Io(io::Error),
    /// The line of that number is no record.
    TooLong(u64),
    /// The input ends before the lines that are in the log already, of that number.
    Shorter(u64),
}

impl Trouble {
    fn failure(&self, file: &Path) -> Failure {
        match self {
            Self::Io(why) => Failure::file(file, why),
            Self::TooLong(line) => Failure::failed(format!(
                "line {line} of {} has more than {ENTRY_BYTES_MAX} bytes, the limit of a record; split it",
                file.display()
            )),
            Self::Shorter(lines) => shorter(*lines),
        }
    }
}

impl Lines {
    fn open(file: &Path, skip: u64) -> io::Result<Self> {
        let (input, slow): (Box<dyn Read + Send>, bool) = if file == Path::new("-") {
            (Box::new(io::stdin()), true)
        } else {
            let file = File::open(file)?;
            let slow = !file.metadata()?.is_file();
            (Box::new(file), slow)
        };
        Ok(Self {
            reader: BufReader::with_capacity(1 << 18, input),
            slow,
            skip,
            read: 0,
            trouble: None,
        })
    }

    /// The next lines, without their ends; none at the end of the input. What comes before trouble is a batch still.
    fn batch(&mut self) -> Result<Batch, Trouble> {
        let mut batch = Batch::default();
        while batch.lines.len() < BATCH_LINES && batch.bytes < BATCH_BYTES {
            let line = match self.line() {
                Ok(Some(line)) => line,
                Ok(None) if self.read < self.skip => return Err(Trouble::Shorter(self.skip)),
                Ok(None) => break,
                Err(trouble) if batch.lines.is_empty() => return Err(trouble),
                Err(trouble) => {
                    self.trouble = Some(trouble);
                    break;
                }
            };
            if self.read <= self.skip {
                continue;
            }
            batch.bytes += line.len();
            batch.lines.push(line.into());
            if self.slow && !self.reader.buffer().contains(&b'\n') {
                break;
            }
        }
        Ok(batch)
    }

    /// The next line. One over the limit is not read to its end, however long it is.
    fn line(&mut self) -> Result<Option<Vec<u8>>, Trouble> {
        if let Some(trouble) = self.trouble.take() {
            return Err(trouble);
        }
        let mut line = vec![];
        let mut bounded = (&mut self.reader).take(ENTRY_BYTES_MAX as u64 + 1);
        if bounded.read_until(b'\n', &mut line).map_err(Trouble::Io)? == 0 {
            return Ok(None);
        }
        self.read += 1;
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.len() > ENTRY_BYTES_MAX {
            return Err(Trouble::TooLong(self.read));
        }
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_into_batches_without_their_ends() {
        let text: String = (0..5_000).fold(String::new(), |text, n| text + &format!("line {n}\n"));
        let mut lines = of(text.into_bytes(), 1);
        let [first, second, third] = [(); 3].map(|()| lines.batch().unwrap());

        assert_eq!(first.lines[0], Bytes::from("line 1"));
        assert_eq!(first.lines.len(), BATCH_LINES);
        assert_eq!(first.lines.len() + second.lines.len(), 4_999);
        assert!(third.lines.is_empty());
    }

    fn of(text: Vec<u8>, skip: u64) -> Lines {
        let input: Box<dyn Read + Send> = Box::new(io::Cursor::new(text));
        Lines {
            reader: BufReader::new(input),
            slow: false,
            skip,
            read: 0,
            trouble: None,
        }
    }

    /// Bytes are bytes: only the line feed is taken off, and the last line needs none.
    #[test]
    fn a_line_may_hold_any_bytes_up_to_the_limit() {
        let longest = vec![b'x'; ENTRY_BYTES_MAX];
        let text = [b"a\r\n\n\xff\0\n", &longest[..], b"\nlast"].concat();
        let mut lines = of(text, 0);
        let first = lines.batch().unwrap().lines;
        let second = lines.batch().unwrap().lines;

        assert_eq!(first[..3], [&b"a\r"[..], b"", b"\xff\0"].map(Bytes::from));
        assert_eq!((first[3].len(), first.len()), (ENTRY_BYTES_MAX, 4));
        assert_eq!(second, [Bytes::from("last")]);
    }

    /// The lines before it are appended, the one that is wrong is named, and its length costs no memory.
    #[test]
    fn a_line_over_the_limit_comes_behind_the_lines_before_it() {
        let endless = vec![b'x'; 3 * ENTRY_BYTES_MAX];
        let mut lines = of([b"one\ntwo\n", &endless[..]].concat(), 0);

        assert_eq!(
            lines.batch().unwrap().lines,
            ["one", "two"].map(Bytes::from)
        );
        let trouble = lines.batch().err().unwrap();
        assert!(matches!(trouble, Trouble::TooLong(3)));
        assert!(
            trouble
                .failure(Path::new("f"))
                .to_string()
                .starts_with("line 3 of f ")
        );
    }

    #[test]
    fn an_input_without_the_lines_that_are_in_the_log_is_another_one() {
        assert!(matches!(
            of(b"one\n".to_vec(), 2).batch(),
            Err(Trouble::Shorter(2))
        ));
        assert!(
            of(b"one\ntwo\n".to_vec(), 2)
                .batch()
                .unwrap()
                .lines
                .is_empty()
        );
    }

    #[test]
    fn a_stamp_reads_back_what_it_prints() {
        let saved = "01010101010101010101010101010101-1@1:2+3/4";
        for text in [saved.to_owned(), format!("{saved},17")] {
            assert_eq!(text.parse::<Stamp>().unwrap().to_string(), text);
        }
        assert!(format!("{saved},x").parse::<Stamp>().is_err());
    }
}
