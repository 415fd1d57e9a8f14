//! What is kept of the log: retention, who needs what, trims, and when the log was how long.

use std::time::{Duration, SystemTime};

use milonga_client::object::keeping::{self, Every, Keeper, KeepingState, Need, Retention};
use milonga_client::object::{Keeping, Objects};
use milonga_wire::Position;
use serde::Serialize;

use crate::cli::Context;
use crate::failure::{Code, Failure, Outcome};
use crate::output::{bytes, say};

/// What is given up by itself, and after how much objects get snapshots.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Retain {
    /// Give up what is older, e.g. `7d`.
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    age: Option<Duration>,
    /// Give up what lies further from the end than this, e.g. `20GiB` of records, each counted once.
    #[arg(long, value_parser = size, value_name = "SIZE")]
    size: Option<u64>,
    /// Give up nothing by itself.
    #[arg(long, conflicts_with_all = ["age", "size"])]
    keep_all: bool,
    /// Write a snapshot of an object after this many updates of it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    snapshot_updates: Option<u64>,
    /// Write a snapshot of an object after so many bytes of updates, e.g. `64MiB`.
    #[arg(long, value_parser = size, value_name = "SIZE")]
    snapshot_bytes: Option<u64>,
    /// Note at what time the log is how long, for `milonga log at`.
    #[arg(long, value_name = "YES", num_args = 0..=1, default_missing_value = "true")]
    note_times: Option<bool>,
}

#[derive(Serialize)]
struct Kept {
    age_ms: Option<u64>,
    bytes: Option<u64>,
    snapshots: EveryOf,
    notes_times: bool,
    /// What lies below may go if nobody needs it.
    retained_from: u64,
}

#[derive(Serialize)]
struct EveryOf {
    updates: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Trimmed {
    /// None if nothing was to go.
    trimmed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_by: Option<NeedOf>,
}

#[derive(Serialize)]
struct NeedOf {
    what: String,
    from: u64,
}

#[derive(Serialize)]
struct At {
    position: u64,
    wall_ms: u64,
}

impl From<Need> for NeedOf {
    fn from(need: Need) -> Self {
        let (what, from) = (need.what, need.from.0);
        Self { what, from }
    }
}

/// Bytes, as people write them.
pub(in crate::cli) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let shift = match unit.trim() {
        "" | "B" => Some(0),
        "KiB" | "K" => Some(10),
        "MiB" | "M" => Some(20),
        "GiB" | "G" => Some(30),
        "TiB" | "T" => Some(40),
        _ => None,
    };
    let bytes = shift.and_then(|shift| number.parse::<u64>().ok()?.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes > 0 => Ok(bytes),
        Some(_) | None => Err("expected a size, e.g. `512MiB` or `20GiB`".to_owned()),
    }
}

/// A time, or how long ago.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::cli) enum Time {
    At(SystemTime),
    Ago(Duration),
}

pub(super) fn time(text: &str) -> Result<Time, &'static str> {
    let ago = humantime::parse_duration(text.trim_end_matches(" ago"));
    ago.map(Time::Ago)
        .or_else(|_| humantime::parse_rfc3339_weak(text).map(Time::At))
        .map_err(
            |_| "expected a time in UTC, e.g. `2026-11-23T12:00:00`, or how long ago, e.g. `2h`",
        )
}

impl Time {
    /// In milliseconds since 1970.
    fn wall_ms(self, now_ms: u64) -> u64 {
        match self {
            Self::At(time) => {
                let since = time.duration_since(SystemTime::UNIX_EPOCH);
                since.map_or(0, |since| since.as_millis() as u64)
            }
            Self::Ago(ago) => now_ms.saturating_sub(ago.as_millis() as u64),
        }
    }
}

fn opened(context: &Context) -> Outcome<Keeping> {
    Ok(Keeping::open(&Objects::new(&context.cluster.connect()?)))
}

impl Retain {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        let keeping = opened(context)?;
        let known = |state: &KeepingState| (state.retention(), state.every());
        let (before, every) = keeping.view().read(known).await?;
        let age_ms = self.age.map(|age| age.as_millis() as u64);
        let retention = if self.keep_all {
            Retention::default()
        } else {
            Retention {
                age_ms: age_ms.or(before.age_ms),
                bytes: self.size.or(before.bytes),
            }
        };
        if retention != before {
            keeping.retain(retention).await?;
        }
        let new = Every {
            updates: self.snapshot_updates.unwrap_or(every.updates),
            bytes: self.snapshot_bytes.unwrap_or(every.bytes),
        };
        if new != every {
            keeping.snapshot_every(new).await?;
        }
        if let Some(noted) = self.note_times {
            keeping.note_times(noted).await?;
        }
        let now_ms = keeping.view().log().host().clock.wall_ms();
        let kept = |state: &KeepingState| Kept {
            age_ms: state.retention().age_ms,
            bytes: state.retention().bytes,
            snapshots: EveryOf {
                updates: state.every().updates,
                bytes: state.every().bytes,
            },
            notes_times: state.notes_times(),
            retained_from: state.retained_from(now_ms).0,
        };
        let kept = keeping.view().read(kept).await?;
        context.output.one(&kept, || kept.text())
    }
}

impl Kept {
    fn text(&self) -> String {
        let age = self.age_ms.map(Duration::from_millis);
        let age = age.map(|age| format!("what is older than {}", humantime::format_duration(age)));
        let size = self.bytes.map(|size| format!("more than {}", bytes(size)));
        let goes: Vec<String> = age.into_iter().chain(size).collect();
        let goes = if goes.is_empty() {
            "nothing by itself".to_owned()
        } else {
            format!("{}, if nobody needs it", goes.join(", and "))
        };
        let EveryOf {
            updates,
            bytes: size,
        } = self.snapshots;
        let times = if self.notes_times { "yes" } else { "no" };
        format!(
            "gives up    {goes}\nsnapshots   every {updates} updates, or {}\nnotes time  {times}\nkept from   {}",
            bytes(size),
            self.retained_from
        )
    }
}

pub(super) async fn needs(context: &Context) -> Outcome {
    let needs = opened(context)?.needs().await?;
    let needs: Vec<NeedOf> = needs.into_iter().map(NeedOf::from).collect();
    context.output.list(&needs, &["from", "needed by"], |need| {
        vec![need.from.to_string(), need.what.clone()]
    })
}

pub(super) async fn trim(context: &Context, to: Position, with_snapshots: bool) -> Outcome {
    let kept = if with_snapshots {
        let objects = Objects::new(&context.cluster.connect()?);
        Box::pin(Keeper::new(&objects).trim(to)).await?
    } else {
        opened(context)?.trim(to).await?
    };
    print_kept(context, Some(kept))
}

pub(super) async fn trim_by_force(context: &Context, to: Position) -> Outcome {
    let (trimmed, lose) = Box::pin(opened(context)?.trim_by_force(to)).await?;
    for need in lose {
        let (what, from) = (need.what, need.from);
        say(format_args!("{what} needed what lay from {from} on"));
    }
    let kept = keeping::Kept {
        trimmed,
        held_by: None,
    };
    print_kept(context, Some(kept))
}

/// Prints how far the log was trimmed, and what kept more from going; none if nothing was to go.
pub(in crate::cli) fn print_kept(context: &Context, kept: Option<keeping::Kept>) -> Outcome {
    let held_by = kept.as_ref().and_then(|kept| kept.held_by.as_ref());
    if let (Some(kept), Some(need)) = (&kept, held_by) {
        say(format_args!(
            "trimmed to {} only: {} needs what lies from {} on; see `milonga log needs`; --snapshots writes what lets it go",
            kept.trimmed, need.what, need.from
        ));
    }
    let printed = Trimmed {
        trimmed: kept.as_ref().map(|kept| kept.trimmed.0),
        held_by: held_by.cloned().map(NeedOf::from),
    };
    context.output.one(&printed, || match &kept {
        Some(kept) => format!("trimmed to {}", kept.trimmed),
        None => "nothing is to go".to_owned(),
    })
}

pub(super) async fn at(context: &Context, time: Time) -> Outcome {
    let keeping = opened(context)?;
    let wall_ms = time.wall_ms(keeping.view().log().host().clock.wall_ms());
    let known = |state: &KeepingState| {
        let first = state.first_mark().filter(|mark| mark.wall_ms <= wall_ms);
        (
            first.is_some(),
            state.position_at(wall_ms),
            state.notes_times(),
        )
    };
    let (is_known, position, is_noted) = keeping.view().read(known).await?;
    if !is_known {
        let hint = if is_noted {
            "it is noted since later; expected a later time"
        } else {
            "times are not noted; try `milonga log retention --note-times`"
        };
        return Err(Failure::new(
            Code::NotFound,
            format!("how long the log was then is not known: {hint}"),
        ));
    }
    let at = At {
        position: position.0,
        wall_ms,
    };
    context.output.one(&at, || position.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_as_people_write_them() {
        assert_eq!(size("20GiB"), Ok(20 << 30));
        assert_eq!(size("512 MiB"), Ok(512 << 20));
        assert_eq!(size("7"), Ok(7));
        for bad in ["", "0", "GiB", "1.5GiB", "9999999999TiB", "7 parsecs"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        let at = |text| time(text).map(|time| time.wall_ms(10_000_000));
        assert_eq!(at("1970-01-01T00:00:01"), Ok(1_000));
        assert_eq!(at("1970-01-02 00:00:00"), Ok(86_400_000));
        assert_eq!(at("2h ago"), at("2h"));
        assert_eq!(at("1h"), Ok(6_400_000));
        assert!(time("noon").is_err());
    }
}
