//! `milonga kv`: puts and gets keys of a replicated map.
//!
//! A command plays the map from the start of its stream: fit for looking and for scripts. Programs keep a view open.

mod import;
mod lease;
mod pair;
mod read;
mod txn;
mod values;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Subcommand;
use milonga_client::Position;
use milonga_client::object::map::{Expect, KEY_BYTES_MAX, Keys, Outcome as Did, Update};
use milonga_client::object::{Applied, Map, ONCE_LIVES, Objects, Once};
use milonga_wire::limits::ENTRY_BYTES_MAX;
use serde::Serialize;

use self::pair::Pair;
use self::read::{When, each};
use super::Context;
use super::lock::{Fence, fence};
use super::log::{size, up_to_the_end};
use crate::failure::{Code, Failure, Outcome};
use crate::output::{json, line};

/// What every command takes, and which one it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  milonga kv put colour red
  milonga kv get colour")]
pub(super) struct Kv {
    /// Which map.
    #[arg(long, global = true, default_value = "default", value_name = "NAME")]
    map: String,
    /// How many bytes of values that stay in the log are held in memory at most [default: 64MiB].
    #[arg(long, global = true, value_parser = size, value_name = "SIZE")]
    memory: Option<u64>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Sets a key.
    #[command(after_help = "Example:
  milonga kv put colour red
  milonga kv put paid yes --idempotency-key order-17
  milonga kv put worker/7 10.0.0.7:80 --lease 4711
  milonga kv put logo --file logo.png")]
    Put {
        key: String,
        #[arg(required_unless_present = "file")]
        value: Option<String>,
        /// The value is what this file holds; - for standard input.
        #[arg(long, conflicts_with = "value")]
        file: Option<PathBuf>,
        #[command(flatten)]
        bound: Bound,
        #[command(flatten)]
        again: Again,
        #[command(flatten)]
        fenced: Fenced,
    },
    /// Prints a key's value.
    #[command(after_help = "Example:
  milonga kv get colour
  milonga kv get colour --at 41 -o json
  milonga kv get logo --raw > logo.png")]
    Get {
        key: String,
        /// Write the bytes of the value, and nothing else.
        #[arg(long)]
        raw: bool,
        #[command(flatten)]
        when: When,
    },
    /// Removes a key.
    #[command(after_help = "Example:
  milonga kv delete colour")]
    Delete {
        key: String,
        #[command(flatten)]
        again: Again,
        #[command(flatten)]
        fenced: Fenced,
    },
    /// Sets a key if it is as expected; exits 4 if it is not.
    #[command(after_help = "Example:
  milonga kv cas colour --expect red --new blue
  milonga kv cas lock --absent --new mine
  milonga kv cas leader --absent --new host-1 --lease 4711")]
    Cas(CasArgs),
    /// Prints keys in order.
    #[command(after_help = "Example:
  milonga kv scan --prefix user/ --limit 10")]
    Scan {
        /// Only keys that begin with it.
        #[arg(long, default_value = "")]
        prefix: String,
        /// Only keys behind this one.
        #[arg(long)]
        after: Option<String>,
        /// How many at most.
        #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
        limit: usize,
        #[command(flatten)]
        when: When,
    },
    /// Prints changes as they come: each once, in order.
    #[command(after_help = "Example:
  milonga kv watch --prefix user/ --from 0")]
    Watch {
        /// Only keys that begin with it.
        #[arg(long, default_value = "")]
        prefix: String,
        /// Where to start [default: the end of the log].
        #[arg(long, value_name = "P")]
        from: Option<u64>,
    },
    /// Reads and writes keys as one: all of it, or nothing.
    ///
    /// The file holds `if` (conditions, which must all hold), `then` and `else` (lists of `put`, `get` and `delete`), in JSON.
    #[command(after_help = "Example:
  milonga kv txn -f - <<< '{\"if\": [{\"key\": \"stock\", \"value\": \"1\"}],
    \"then\": [{\"put\": {\"key\": \"stock\", \"value\": \"0\"}}, {\"put\": {\"key\": \"order\", \"value\": \"7\", \"map\": \"orders\"}}],
    \"else\": [{\"get\": {\"key\": \"stock\"}}]}'

A condition is {\"key\": K} with \"value\": V, \"version\": P, \"absent\": true or \"exists\": true. A put may name a \"lease\". Every condition and step may name
another \"map\"; bytes that are no text go in base64, with \"key_encoding\" or \"encoding\": \"base64\".")]
    Txn {
        /// The file; - for standard input.
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        again: Again,
        #[command(flatten)]
        fenced: Fenced,
    },
    /// Leases: keys that go when nobody renews what they are bound to.
    #[command(
        subcommand,
        after_help = "Example:
  milonga kv lease grant --ttl 10s
  milonga kv lease list"
    )]
    Lease(lease::LeaseCommand),
    /// Shows and says where values are: in memory, or in the log.
    ///
    /// A map that is larger than memory leaves large values in the log, and keeps where they are. What was put before stays where it is
    /// until it is put again.
    #[command(after_help = "Example:
  milonga kv values
  milonga kv values --in-log-from 4KiB --map images")]
    Values(values::Values),
    /// Writes a snapshot into the log: who opens the map later starts from there.
    #[command(after_help = "Example:
  milonga kv snapshot")]
    Snapshot,
    /// Puts every line of a file: `{\"key\": …, \"value\": …}`. Passes over keys that were bound to a lease.
    #[command(after_help = "Example:
  milonga kv import backup.jsonl")]
    Import { file: PathBuf },
    /// Prints every key as a line of JSON.
    #[command(after_help = "Example:
  milonga kv export > backup.jsonl
  milonga kv export --at 1000")]
    Export {
        #[command(flatten)]
        when: When,
    },
}

/// On what a write depends.
#[derive(Clone, Debug, clap::Args)]
struct Fenced {
    /// Only if this lock is still held by this fence, where the write comes to lie in the log.
    #[arg(long, value_name = "LOCK@POSITION", value_parser = fence)]
    fence: Option<Fence>,
}

/// What a key is bound to.
#[derive(Clone, Debug, clap::Args)]
struct Bound {
    /// Bind the key to this lease: it goes when that ends. Exits 4 if it has.
    #[arg(long, value_name = "LEASE")]
    lease: Option<u64>,
}

/// What makes a write take place once however often it is given.
#[derive(Clone, Debug, clap::Args)]
struct Again {
    /// Do it only if nothing was done with this key before, by whatever process.
    #[arg(long, value_name = "K")]
    idempotency_key: Option<String>,
    /// For how many positions of the log the key is remembered.
    #[arg(long, value_name = "N", default_value_t = ONCE_LIVES, requires = "idempotency_key")]
    idempotency_positions: u64,
}

impl Again {
    fn once(&self) -> Option<Once> {
        let key = self.idempotency_key.as_ref()?;
        Some(Once {
            key: Bytes::from(key.clone()),
            lives: self.idempotency_positions,
        })
    }
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("expected").required(true))]
struct CasArgs {
    key: String,
    /// Its value now.
    #[arg(long, group = "expected", value_name = "VALUE")]
    expect: Option<String>,
    /// It must not be there.
    #[arg(long, group = "expected")]
    absent: bool,
    /// The position of its last write.
    #[arg(long, group = "expected", value_name = "P")]
    expect_version: Option<u64>,
    /// What to set it to.
    #[arg(long, value_name = "VALUE")]
    new: String,
    #[command(flatten)]
    bound: Bound,
    #[command(flatten)]
    again: Again,
}

/// A write.
#[derive(Serialize)]
struct Written<'a> {
    key: &'a str,
    position: u64,
    version: u64,
    /// It had been written before with the same idempotency key: there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    repeated: bool,
}

#[derive(Serialize)]
struct Snapshotted {
    position: u64,
    as_of: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Conflict<'a> {
    conflict: At<'a>,
}

#[derive(Serialize)]
struct At<'a> {
    key: &'a str,
    /// The write that stood in the way; none if the key is not there.
    position: Option<u64>,
    /// The lease that it was to be bound to, which has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<u64>,
}

impl Kv {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        let log = context.cluster.connect()?;
        let objects = Objects::new(&log);
        if let Some(memory) = self.memory {
            objects.hold(memory);
        }
        let name = self.map.as_str();
        match self.verb {
            Verb::Put {
                key,
                value,
                file,
                bound,
                again,
                fenced,
            } => {
                let value = match file {
                    Some(file) => content(&file)?,
                    None => Bytes::from(value.unwrap_or_default()),
                };
                let key = Bytes::from(key);
                let update = match bound.lease.map(Position) {
                    None => Update::Put { key, value },
                    Some(lease) => Update::PutLeased {
                        key,
                        value,
                        lease,
                        expect: None,
                    },
                };
                let map = Map::open(&objects, name).await?;
                write(context, &map, &update, &again, &fenced).await
            }
            Verb::Delete { key, again, fenced } => {
                let update = Update::Delete {
                    key: Bytes::from(key),
                };
                let map = Map::open(&objects, name).await?;
                write(context, &map, &update, &again, &fenced).await
            }
            Verb::Cas(cas) => cas.run(context, &Map::open(&objects, name).await?).await,
            Verb::Txn {
                file,
                again,
                fenced,
            } => Box::pin(txn::run(context, &objects, name, &file, &again, &fenced)).await,
            Verb::Import { file } => {
                import::import(context, &Map::open(&objects, name).await?, &file).await
            }
            Verb::Values(values) => values.run(context, &objects, name).await,
            Verb::Lease(lease) => lease.run(context, &objects, name).await,
            Verb::Snapshot => {
                let written = existing(&objects, name).await?.view().snapshot().await?;
                let shown = Snapshotted {
                    position: written.manifest.0,
                    as_of: written.as_of.0,
                    bytes: written.bytes,
                };
                context.output.one(&shown, || {
                    let (bytes, as_of) = (shown.bytes, shown.as_of);
                    format!("{bytes} bytes as of {as_of}, at {}", shown.position)
                })
            }
            Verb::Get { key, raw, when } => {
                let map = existing(&objects, name).await?;
                read::get(context, &map, &key, &when, raw).await
            }
            Verb::Scan {
                prefix,
                after,
                limit,
                when,
            } => {
                let keys = Keys::prefix(prefix);
                let keys = match after {
                    Some(after) => keys.after(after),
                    None => keys,
                };
                let map = existing(&objects, name).await?;
                read::scan(context, &map, keys, limit, &when).await
            }
            Verb::Watch { prefix, from } => {
                let from = match from {
                    Some(from) => up_to_the_end(&log, Position(from)).await?,
                    None => log.end().await?.position,
                };
                let map = existing(&objects, name).await?;
                read::watch(context, &map, Keys::prefix(prefix), from).await
            }
            Verb::Export { when } => {
                let print = |pair: &Pair| line(&json(pair));
                let map = existing(&objects, name).await?;
                each(&map, Keys::all(), usize::MAX, &when, print).await
            }
        }
    }
}

/// What a file holds, if a record may hold as much.
fn content(file: &Path) -> Outcome<Bytes> {
    let failed = |why: std::io::Error| Failure::file(file, why);
    let mut bytes = vec![];
    let limit = ENTRY_BYTES_MAX as u64 + 1;
    let read = if file == Path::new("-") {
        std::io::stdin().take(limit).read_to_end(&mut bytes)
    } else {
        let opened = File::open(file).map_err(failed)?;
        opened.take(limit).read_to_end(&mut bytes)
    };
    read.map_err(failed)?;
    if bytes.len() > ENTRY_BYTES_MAX {
        return Err(Failure::file(
            file,
            format!("more than {ENTRY_BYTES_MAX} bytes; a value fits a record; split it"),
        ));
    }
    Ok(Bytes::from(bytes))
}

/// The map of that name. Who reads makes none.
async fn existing(objects: &Objects, name: &str) -> Outcome<Map> {
    let found = Map::find(objects, name).await?;
    found.ok_or_else(|| {
        let text =
            format!("there is no map `{name}`; the first write makes it, e.g. `milonga kv put`");
        Failure::new(Code::NotFound, text)
    })
}

async fn write(
    context: &Context,
    map: &Map,
    update: &Update,
    again: &Again,
    fenced: &Fenced,
) -> Outcome {
    let key = update.key().expect("it writes a key");
    checked(key)?;
    let key = &*String::from_utf8_lossy(key);
    if let Some(fence) = &fenced.fence {
        let done = txn::fenced(context, map, fence, again.once(), |txn| {
            match update.clone() {
                Update::PutLeased {
                    key, value, lease, ..
                } => txn.put_leased(map, key, value, lease),
                update => txn.update(map.view(), &update),
            }
            Ok(())
        });
        let done = Box::pin(done).await?;
        let position = done.repeats.or(done.position).unwrap_or_default();
        return written(context, key, position, done.repeats.is_some());
    }
    let (position, did, repeated) = match again.once() {
        Some(once) => match map.view().update_once(once, update).await? {
            (position, Applied::First(did)) => (position, Some(did), false),
            (_, Applied::Repeated { first, outcome }) => (first, outcome, true),
        },
        None if matches!(update, Update::PutLeased { .. }) => {
            let (position, did) = map.view().update(update).await?;
            (position, Some(did), false)
        }
        // What it brings about is known.
        None => (map.view().append(update).await?, None, false),
    };
    match did {
        Some(Did::NoLease { lease }) => Err(no_lease(context, key, lease)?),
        Some(_) | None => written(context, key, position, repeated),
    }
}

fn checked(key: &[u8]) -> Outcome {
    if key.len() <= KEY_BYTES_MAX {
        return Ok(());
    }
    let text = format!("a key of {} bytes; the limit is {KEY_BYTES_MAX}", key.len());
    Err(Failure::failed(text))
}

fn written(context: &Context, key: &str, position: Position, repeated: bool) -> Outcome {
    let written = Written {
        key,
        position: position.0,
        version: position.0,
        repeated,
    };
    let before = if repeated { " (done before)" } else { "" };
    context
        .output
        .one(&written, || format!("{key} at {position}{before}"))
}

impl CasArgs {
    async fn run(self, context: &Context, map: &Map) -> Outcome {
        let expect = match (self.expect, self.expect_version) {
            (Some(value), _) => Expect::value(value),
            (None, Some(version)) => Expect::Version(Position(version)),
            (None, None) => Expect::Absent,
        };
        checked(self.key.as_bytes())?;
        let (key, value) = (Bytes::from(self.key.clone()), Bytes::from(self.new));
        let update = match self.bound.lease.map(Position) {
            None => Update::Cas {
                key,
                expect,
                value: Some(value),
            },
            Some(lease) => Update::PutLeased {
                key,
                value,
                lease,
                expect: Some(expect),
            },
        };
        let (position, did, repeated) = match self.again.once() {
            None => {
                let (position, did) = map.view().update(&update).await?;
                (position, did, false)
            }
            Some(once) => match map.view().update_once(once, &update).await? {
                (position, Applied::First(did)) => (position, did, false),
                (_, Applied::Repeated { first, outcome }) => {
                    let again = map.view().outcome_at(first);
                    let did = match outcome {
                        Some(did) => Some(did),
                        None => again.await?,
                    };
                    (first, did.unwrap_or(Did::Put), true)
                }
            },
        };
        match did {
            Did::Put | Did::Deleted { .. } => written(context, &self.key, position, repeated),
            Did::Conflict { found } => Err(conflict(
                context,
                &self.key,
                found.map(|found| found.version),
            )?),
            Did::NoLease { lease } => Err(no_lease(context, &self.key, lease)?),
            Did::Lives { .. } | Did::Ended { .. } | Did::Kept => unreachable!("it writes a key"),
        }
    }
}

/// Tells of a conflict, and is the failure that it ends with.
fn conflict(context: &Context, key: &str, position: Option<Position>) -> Outcome<Failure> {
    let conflict = Conflict {
        conflict: At {
            key,
            position: position.map(|at| at.0),
            lease: None,
        },
    };
    if context.output.is_json() {
        line(&json(&conflict))?;
    }
    let is = match position {
        Some(at) => format!("was written at {at}"),
        None => "is not there".to_owned(),
    };
    let text = format!(
        "`{key}` {is}, which was not expected; nothing was changed; read it, then try again"
    );
    Ok(Failure::new(Code::Conflict, text))
}

/// Tells that a key could not be bound, and is the failure that it ends with.
fn no_lease(context: &Context, key: &str, lease: Position) -> Outcome<Failure> {
    let conflict = Conflict {
        conflict: At {
            key,
            position: None,
            lease: Some(lease.0),
        },
    };
    if context.output.is_json() {
        line(&json(&conflict))?;
    }
    Ok(gone(Code::Conflict, lease))
}

fn gone(code: Code, lease: Position) -> Failure {
    let text = format!(
        "there is no lease {lease} (any more), and nothing was changed; expected one that lives; try `milonga kv lease grant`"
    );
    Failure::new(code, text)
}
