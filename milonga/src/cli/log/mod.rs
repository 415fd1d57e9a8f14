//! `milonga log`: appends to and reads the log.

mod append;
mod keeping;
mod read;

use std::str::FromStr;
use std::time::Duration;

use clap::Subcommand;
use milonga_client::{Entry, EntryKind, Log};
use milonga_wire::{Position, StreamId};
use serde::Serialize;

use super::Context;
use crate::failure::{Code, Failure, Outcome};
use crate::look::Sight;
use crate::output::bytes;

pub(super) use keeping::{print_kept, size};

/// How long a server may take to say who it is.
const ANSWER: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum LogCommand {
    /// Appends records: the one given, or the lines of a file, in order.
    #[command(after_help = "Example:
  milonga log append 'hello'
  milonga log append --stream orders --lines orders.jsonl
  tail -f app.log | milonga log append --lines -")]
    Append(append::Append),
    /// Prints what positions hold.
    #[command(after_help = "Example:
  milonga log read 7
  milonga log read 0..100 -o json
  milonga log read 0.. --raw > all.txt")]
    Read(read::Read),
    /// Prints entries as they are appended.
    #[command(after_help = "Example:
  milonga log follow --from 0 --raw")]
    Follow(read::Follow),
    /// Prints the end of the log: at or above every append acknowledged before.
    #[command(after_help = "Example:
  milonga log end -o json")]
    End,
    /// Ends a hole now, without waiting for its writer.
    #[command(after_help = "Example:
  milonga log fill 41")]
    Fill {
        /// Where.
        position: u64,
    },
    /// Gives back the space below a position, as far as no object, cursor or reader needs it.
    #[command(after_help = "Example:
  milonga log needs               # who needs what
  milonga log trim 100000
  milonga log trim 100000 --snapshots")]
    Trim {
        /// The first position kept.
        position: u64,
        /// Even what is needed: objects without a later snapshot are lost, readers are told that it is gone.
        #[arg(long)]
        force: bool,
        /// Write the snapshots first that let it go.
        #[arg(long, conflicts_with = "force")]
        snapshots: bool,
    },
    /// Prints who needs the log, and from where on.
    #[command(after_help = "Example:
  milonga log needs -o json")]
    Needs,
    /// Prints or sets what of the log is given up by itself.
    #[command(after_help = "Example:
  milonga log retention --age 7d --size 20GiB
  milonga log retention --snapshot-updates 100000
  milonga log retention")]
    Retention(keeping::Retain),
    /// Prints the position below which everything was appended before a time.
    #[command(after_help = "Example:
  milonga log retention --note-times
  milonga log at 2h
  milonga log at 2026-11-23T12:00:00")]
    At {
        /// A time in UTC, or how long ago.
        #[arg(value_parser = keeping::time)]
        time: keeping::Time,
    },
    /// Prints sizes, and how fast the log grows.
    #[command(after_help = "Example:
  milonga log stat --interval 5s")]
    Stat {
        /// How long to watch it grow.
        #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
        interval: Duration,
    },
}

#[derive(Serialize)]
struct End {
    end: u64,
    term: u64,
}

#[derive(Serialize)]
struct Filled {
    position: u64,
    outcome: &'static str,
}

#[derive(Serialize)]
struct Stat {
    end: u64,
    settled: u64,
    trimmed: u64,
    positions: u64,
    bytes: u64,
    units: usize,
    records_per_s: f64,
}

impl LogCommand {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        match self {
            Self::Append(append) => Box::pin(append.run(context)).await,
            Self::Read(read) => read.run(context).await,
            Self::Follow(follow) => follow.run(context).await,
            Self::End => end(context).await,
            Self::Fill { position } => fill(context, Position(position)).await,
            Self::Trim {
                position,
                force,
                snapshots,
            } => {
                let to = Position(position);
                if force {
                    Box::pin(keeping::trim_by_force(context, to)).await
                } else {
                    Box::pin(keeping::trim(context, to, snapshots)).await
                }
            }
            Self::Needs => Box::pin(keeping::needs(context)).await,
            Self::Retention(retain) => Box::pin(retain.run(context)).await,
            Self::At { time } => Box::pin(keeping::at(context, time)).await,
            Self::Stat { interval } => stat(context, interval).await,
        }
    }
}

async fn end(context: &Context) -> Outcome {
    let end = context.cluster.connect()?.end().await?;
    let printed = End {
        end: end.position.0,
        term: end.term.0,
    };
    context.output.one(&printed, || end.position.to_string())
}

async fn fill(context: &Context, position: Position) -> Outcome {
    let entry = context.cluster.connect()?.fill(position).await?;
    let outcome = kind(&entry);
    let filled = Filled {
        position: position.0,
        outcome,
    };
    context
        .output
        .one(&filled, || format!("{position} holds {outcome}"))
}

async fn stat(context: &Context, interval: Duration) -> Outcome {
    let log = context.cluster.connect()?;
    let before = log.end().await?.position;
    let began = log.host().clock.now();
    log.host().clock.sleep(interval).await;
    let end = log.end().await?.position;
    let seconds = log.host().clock.now().since(began).as_secs_f64();
    let settled = log.settled().await?;
    let sight = Sight::of(log.host(), &log.layout().await?.layout, ANSWER).await;
    let said = || {
        sight
            .units
            .iter()
            .filter_map(|unit| unit.said.as_ref().ok())
    };
    let trimmed = said().map(|said| said.trimmed).max().unwrap_or_default();
    #[allow(clippy::cast_precision_loss)]
    let stat = Stat {
        end: end.0,
        settled: settled.0.min(end.0),
        trimmed: trimmed.0,
        positions: end.0.saturating_sub(trimmed.0),
        bytes: said().map(|said| said.bytes).sum(),
        units: sight.units.len(),
        records_per_s: end.0.saturating_sub(before.0) as f64 / seconds,
    };
    context.output.one(&stat, || {
        format!(
            "end        {}\nsettled    {}\ntrimmed    {}\npositions  {}\nbytes      {} on {} units\ngrows by   {:.0} records/s",
            stat.end, stat.settled, stat.trimmed, stat.positions, bytes(stat.bytes), stat.units, stat.records_per_s
        )
    })
}

/// A position to start from, which nothing but the end of the log may lie below: else it would be waited for in vain.
pub(super) async fn up_to_the_end(log: &Log, from: Position) -> Outcome<Position> {
    let end = log.end().await?.position;
    if from <= end {
        return Ok(from);
    }
    Err(Failure::new(
        Code::Conflict,
        format!("position {from} lies beyond the end {end}; expected a position up to {end}"),
    ))
}

/// What an entry is, as it is printed.
fn kind(entry: &Entry) -> &'static str {
    match entry.kind {
        EntryKind::Data { .. } => "data",
        EntryKind::Junk { .. } => "junk",
        EntryKind::Trimmed => "trimmed",
        EntryKind::Unwritten => "unwritten",
        EntryKind::Unknown => "unknown",
    }
}

/// A stream's id, or the id of its name.
#[derive(Copy, Clone, Debug)]
struct Stream(StreamId);

impl FromStr for Stream {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err("a stream has a name; expected a name, or 32 hexadecimal digits");
        }
        Ok(Self(
            text.parse().unwrap_or_else(|_| StreamId::of_name(text)),
        ))
    }
}
