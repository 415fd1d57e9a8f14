//! `milonga kv`: puts and gets keys of a replicated map.
//!
//! A command plays the map from the start of its stream: fit for looking and for scripts. Programs keep a view open.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Subcommand;
use futures_util::future::try_join_all;
use milonga_client::Position;
use milonga_client::object::Map;
use milonga_client::object::map::{Cas, Change, Expect, KEY_BYTES_MAX, Keys, Versioned};
use milonga_wire::limits::ENTRY_BYTES_MAX;
use serde::{Deserialize, Serialize};

use super::Context;
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
  milonga kv put colour red")]
    Put { key: String, value: String },
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
    Delete { key: String },
    /// Sets a key if it is as expected; exits 4 if it is not.
    #[command(after_help = "Example:
  milonga kv cas colour --expect red --new blue
  milonga kv cas lock --absent --new mine")]
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
    /// Puts every line of a file: `{\"key\": …, \"value\": …}`.
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
}

/// A key and its value, as they are printed and imported.
#[derive(Debug, Deserialize, Serialize)]
struct Pair {
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_encoding: Option<Encoding>,
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    position: Option<u64>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Base64,
}

/// A write.
#[derive(Serialize)]
struct Written<'a> {
    key: &'a str,
    position: u64,
    version: u64,
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
}

#[derive(Serialize)]
struct Imported {
    imported: u64,
    position: Option<u64>,
}

impl Kv {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        let log = context.cluster.connect()?;
        let map = Map::open(&log, &self.map);
        match self.verb {
            Verb::Put { key, value } => {
                let position = map.put(key.clone(), value).await?;
                written(context, &key, position)
            }
            Verb::Get { key, when } => get(context, &map, &key, &when).await,
            Verb::Delete { key } => {
                let position = map.delete(key.clone()).await?;
                written(context, &key, position)
            }
            Verb::Cas(cas) => cas.run(context, &map).await,
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
                scan(context, &map, keys, limit, &when).await
            }
            Verb::Watch { prefix, from } => {
                let from = match from {
                    Some(from) => up_to_the_end(&log, Position(from)).await?,
                    None => log.end().await?.position,
                };
                watch(context, &map, Keys::prefix(prefix), from).await
            }
            Verb::Import { file } => import(context, &map, &file).await,
            Verb::Export { when } => {
                let print = |pair: &Pair| line(&json(pair));
                each(&map, Keys::all(), usize::MAX, &when, print).await
            }
        }
    }
}

fn written(context: &Context, key: &str, position: Position) -> Outcome {
    let written = Written {
        key,
        position: position.0,
        version: position.0,
    };
    context
        .output
        .one(&written, || format!("{key} at {position}"))
}

async fn get(context: &Context, map: &Map, key: &str, when: &When) -> Outcome {
    let found = match when.position(map).await? {
        Some(position) => map.get_at(key.as_bytes(), position).await?,
        None => map.get(key.as_bytes()).await?,
    };
    let Some(found) = found else {
        return Err(Failure::new(
            Code::NotFound,
            format!("there is no key `{key}`"),
        ));
    };
    let pair = Pair::of(key.as_bytes(), &found);
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
        match map.cas(self.key.clone(), expect, self.new).await? {
            Cas::Done { position } => written(context, &self.key, position),
            Cas::Conflict { found, .. } => {
                let at = found.as_ref().map(|found| found.version);
                let key = self.key.as_str();
                let conflict = Conflict {
                    conflict: At {
                        key,
                        position: at.map(|at| at.0),
                    },
                };
                let is = match at {
                    Some(at) => format!("was written at {at}"),
                    None => "is not there".to_owned(),
                };
                if context.output.is_json() {
                    line(&json(&conflict))?;
                }
                let text = format!(
                    "`{key}` {is}, which was not expected; nothing was changed; read it, then try again"
                );
                Err(Failure::new(Code::Conflict, text))
            }
        }
    }
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
        let page = match &state {
            Some(state) => state.scan(&keys, count),
            None => map.scan(&keys, count).await?,
        };
        for (key, found) in &page.entries {
            print(&Pair::of(key, found))?;
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
        imported: 0,
        position: None,
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
        bar.set_position(done.imported);
    }
    done.put(map, &mut batch).await?;
    bar.finish_and_clear();
    context
        .output
        .one(&done, || format!("{} keys imported", done.imported))
}

impl Imported {
    async fn put(&mut self, map: &Map, batch: &mut Vec<(Bytes, Bytes)>) -> Outcome {
        let puts = batch.drain(..).map(|(key, value)| map.put(key, value));
        let positions = try_join_all(puts).await?;
        self.imported += positions.len() as u64;
        self.position = positions
            .iter()
            .map(|position| position.0)
            .max()
            .max(self.position);
        Ok(())
    }
}

impl Pair {
    fn new(key: &[u8], value: Option<&[u8]>) -> Self {
        let (key, key_encoding) = encode(key);
        let (value, encoding) = value.map(encode).unzip();
        Self {
            key,
            key_encoding,
            value,
            encoding: encoding.flatten(),
            version: None,
            position: None,
        }
    }

    fn of(key: &[u8], found: &Versioned) -> Self {
        Self {
            version: Some(found.version.0),
            ..Self::new(key, Some(&found.value))
        }
    }

    fn text(&self) -> String {
        match &self.value {
            Some(value) => format!("{}\t{value}", self.key),
            None => format!("{}\t(deleted)", self.key),
        }
    }

    /// Key and value, decoded.
    fn bytes(&self) -> Result<(Bytes, Bytes), String> {
        let value = self.value.as_ref().ok_or("it has no value")?;
        Ok((
            decode(&self.key, self.key_encoding)?,
            decode(value, self.encoding)?,
        ))
    }
}

/// Text as it is; bytes that are none in base64.
fn encode(bytes: &[u8]) -> (String, Option<Encoding>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (STANDARD.encode(bytes), Some(Encoding::Base64)),
    }
}

fn decode(text: &str, encoding: Option<Encoding>) -> Result<Bytes, String> {
    match encoding {
        None => Ok(Bytes::from(text.to_owned())),
        Some(Encoding::Base64) => {
            let decoded = STANDARD.decode(text).map_err(|why| why.to_string())?;
            Ok(Bytes::from(decoded))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `export` prints, `import` reads.
    #[test]
    fn pairs_read_back_what_they_print_whatever_the_bytes() {
        for value in [&b"text"[..], b"", b"\xff\x00", "grün".as_bytes()] {
            let pair = Pair::new(value, Some(value));
            let read: Pair = serde_json::from_str(&json(&pair)).unwrap();
            let expected = Bytes::copy_from_slice(value);
            assert_eq!(read.bytes(), Ok((expected.clone(), expected)));
        }
    }
}
