//! `milonga kv`: puts and gets keys of a replicated map.
//!
//! A command plays the map from the start of its stream: fit for looking and for scripts. Programs keep a view open.

mod lease;
mod pair;
mod txn;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Subcommand;
use futures_util::future::try_join_all;
use milonga_client::Position;
use milonga_client::object::map::{
    Change, Expect, KEY_BYTES_MAX, Keys, MapState, Outcome as Did, Update,
};
use milonga_client::object::{Applied, Map, ONCE_LIVES, Objects, Once};
use milonga_wire::limits::ENTRY_BYTES_MAX;
use serde::Serialize;

use self::pair::Pair;
use super::Context;
use super::lock::{Fence, fence};
use super::log::up_to_the_end;
use crate::failure::{Code, Failure, Outcome};
use crate::output::{json, line, progress};

/// Keys that are fetched at once.
const PAGE: usize = 1_000;
/// Imported lines that are under way at once.
const IMPORTED: usize = 256;

/// What every command takes, and which one it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  milonga kv put colour red
  milonga kv get colour")]
pub(super) struct Kv {
    /// Which map.
    #[arg(long, global = true, default_value = "default", value_name = "NAME")]
    map: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Sets a key.
    #[command(after_help = "Example:
  milonga kv put colour red
  milonga kv put paid yes --idempotency-key order-17
  milonga kv put worker/7 10.0.0.7:80 --lease 4711")]
    Put {
        key: String,
        value: String,
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
  milonga kv get colour --at 41 -o json")]
    Get {
        key: String,
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

/// Which state is read.
#[derive(Debug, clap::Args)]
struct When {
    /// As it was once the entry at this position had been applied.
    #[arg(long, value_name = "P")]
    at: Option<u64>,
    /// As of what is settled: a little old, perhaps.
    #[arg(long, conflicts_with = "at")]
    stale: bool,
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

#[derive(Serialize)]
struct Imported {
    #[serde(rename = "imported")]
    keys: u64,
    position: Option<u64>,
    /// Keys that were bound to a lease, which is not there any more or has other keys.
    passed_over: u64,
}

impl Kv {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        let log = context.cluster.connect()?;
        let objects = Objects::new(&log);
        let name = self.map.as_str();
        match self.verb {
            Verb::Put {
                key,
                value,
                bound,
                again,
                fenced,
            } => {
                let (key, value) = (Bytes::from(key), Bytes::from(value));
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
                import(context, &Map::open(&objects, name).await?, &file).await
            }
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
            Verb::Get { key, when } => {
                get(context, &existing(&objects, name).await?, &key, &when).await
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
                scan(context, &map, keys, limit, &when).await
            }
            Verb::Watch { prefix, from } => {
                let from = match from {
                    Some(from) => up_to_the_end(&log, Position(from)).await?,
                    None => log.end().await?.position,
                };
                let map = existing(&objects, name).await?;
                watch(context, &map, Keys::prefix(prefix), from).await
            }
            Verb::Export { when } => {
                let print = |pair: &Pair| line(&json(pair));
                let map = existing(&objects, name).await?;
                each(&map, Keys::all(), usize::MAX, &when, print).await
            }
        }
    }
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

async fn get(context: &Context, map: &Map, key: &str, when: &When) -> Outcome {
    let look = |state: &MapState| {
        let found = state.get(key.as_bytes())?;
        Some((found, state.lease_of(key.as_bytes())))
    };
    let found = match when.position(map).await? {
        Some(position) => look(&map.at(position).await?),
        None => map.view().read(look).await?,
    };
    let Some((found, lease)) = found else {
        return Err(Failure::new(
            Code::NotFound,
            format!("there is no key `{key}`"),
        ));
    };
    let pair = Pair::of(key.as_bytes(), &found).bound_to(lease);
    context
        .output
        .one(&pair, || String::from_utf8_lossy(&found.value).into_owned())
}

impl When {
    /// The position to read as of; none for now.
    async fn position(&self, map: &Map) -> Outcome<Option<Position>> {
        if !self.stale {
            return Ok(self.at.map(Position));
        }
        let log = map.view().log();
        let settled = log.settled().await?.min(log.end().await?.counter);
        Ok(settled.0.checked_sub(1).map(Position))
    }
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
            Did::Lives { .. } | Did::Ended { .. } => unreachable!("it writes a key"),
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

async fn scan(context: &Context, map: &Map, keys: Keys, limit: usize, when: &When) -> Outcome {
    each(map, keys, limit, when, |pair| {
        context.output.one(pair, || pair.text())
    })
    .await
}

/// Hands every pair on, page by page.
async fn each(
    map: &Map,
    mut keys: Keys,
    limit: usize,
    when: &When,
    print: impl Fn(&Pair) -> Outcome,
) -> Outcome {
    let state = match when.position(map).await? {
        Some(position) => Some(map.at(position).await?),
        None => None,
    };
    let mut left = limit;
    while left > 0 {
        let count = left.min(PAGE);
        let look = |state: &MapState| {
            let page = state.scan(&keys, count);
            let leases = page.entries.iter().map(|(key, _)| state.lease_of(key));
            let leases: Vec<_> = leases.collect();
            (page, leases)
        };
        let (page, leases) = match &state {
            Some(state) => look(state),
            None => map.view().read(look).await?,
        };
        for ((key, found), lease) in page.entries.iter().zip(leases) {
            print(&Pair::of(key, found).bound_to(lease))?;
        }
        left -= page.entries.len();
        match page.entries.last() {
            Some((last, _)) if page.more => keys = keys.after(last.clone()),
            Some(_) | None => break,
        }
    }
    Ok(())
}

async fn watch(context: &Context, map: &Map, keys: Keys, from: Position) -> Outcome {
    let mut watch = map.watch(keys, from);
    loop {
        let Change {
            position,
            key,
            value,
        } = watch.next().await?;
        let mut pair = Pair::new(&key, value.as_deref());
        pair.position = Some(position.0);
        context
            .output
            .one(&pair, || format!("{position}  {}", pair.text()))?;
    }
}

/// Puts lines side by side, but never two of one key: the later one must win.
async fn import(context: &Context, map: &Map, path: &Path) -> Outcome {
    let file = File::open(path).map_err(|why| Failure::file(path, why))?;
    let bar = progress(None, "keys");
    let mut done = Imported {
        keys: 0,
        position: None,
        passed_over: 0,
    };
    let mut keys = BTreeSet::new();
    let mut batch: Vec<(Bytes, Bytes)> = vec![];
    for (number, text) in (1..).zip(BufReader::new(file).lines()) {
        let wrong =
            |why: &dyn std::fmt::Display| Failure::file(path, format!("line {number}: {why}"));
        let text = text.map_err(|why| wrong(&why))?;
        if text.trim().is_empty() {
            continue;
        }
        let pair: Pair = serde_json::from_str(&text).map_err(|why| wrong(&why))?;
        let (key, value) = pair.bytes().map_err(|why| wrong(&why))?;
        if pair.lease.is_some() {
            done.passed_over += 1;
            continue;
        }
        if key.len() > KEY_BYTES_MAX || key.len() + value.len() > ENTRY_BYTES_MAX {
            let (key, value) = (key.len(), value.len());
            return Err(wrong(&format!(
                "a key of {key} and a value of {value} bytes; expected a key up to {KEY_BYTES_MAX}, and {ENTRY_BYTES_MAX} together"
            )));
        }
        if batch.len() == IMPORTED || !keys.insert(key.clone()) {
            done.put(map, &mut batch).await?;
            keys = BTreeSet::from([key.clone()]);
        }
        batch.push((key, value));
        bar.set_position(done.keys);
    }
    done.put(map, &mut batch).await?;
    bar.finish_and_clear();
    context.output.one(&done, || match done.passed_over {
        0 => format!("{} keys imported", done.keys),
        bound => format!(
            "{} keys imported, {bound} passed over that were bound to a lease",
            done.keys
        ),
    })
}

impl Imported {
    async fn put(&mut self, map: &Map, batch: &mut Vec<(Bytes, Bytes)>) -> Outcome {
        let puts = batch.drain(..).map(|(key, value)| map.put(key, value));
        let positions = try_join_all(puts).await?;
        self.keys += positions.len() as u64;
        self.position = positions
            .iter()
            .map(|position| position.0)
            .max()
            .max(self.position);
        Ok(())
    }
}
