//! `milonga kv txn`: conditions, and what is done if they hold or do not, as one.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use milonga_client::Position;
use milonga_client::object::lock::LockState;
use milonga_client::object::map::{Held, Versioned};
use milonga_client::object::{
    Committed, Map, Object, Objects, Once, Part, PlayError, TransactError, Transaction,
};
use serde::{Deserialize, Serialize};

use super::pair::{Encoding, Pair, decode, encode};
use super::{Again, Fenced, checked, conflict, no_lease};
use crate::cli::Context;
use crate::cli::lock::Fence;
use crate::failure::{Code, Failure, Outcome};

/// What the file holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    #[serde(default, rename = "if")]
    conditions: Vec<Condition>,
    #[serde(default)]
    then: Vec<Step>,
    #[serde(default, rename = "else")]
    otherwise: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    map: Option<String>,
    key: String,
    key_encoding: Option<Encoding>,
    value: Option<String>,
    encoding: Option<Encoding>,
    version: Option<u64>,
    #[serde(default)]
    absent: bool,
    #[serde(default)]
    exists: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Step {
    Put(Put),
    Get(Named),
    Delete(Named),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    map: Option<String>,
    key: String,
    key_encoding: Option<Encoding>,
    value: String,
    encoding: Option<Encoding>,
    lease: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    map: Option<String>,
    key: String,
    key_encoding: Option<Encoding>,
}

/// What came of it.
#[derive(Serialize)]
struct Done {
    /// Whether all conditions held: `then` was done, else `else`.
    succeeded: bool,
    /// Where it is; none if nothing was written.
    position: Option<u64>,
    attempts: u32,
    /// It had been done before with the same idempotency key: there.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    repeated: bool,
    /// Of each step, in order: what it read, or wrote.
    results: Vec<Pair>,
}

/// A condition, with its bytes decoded.
struct Check {
    map: Map,
    key: Bytes,
    expect: Expect,
}

enum Expect {
    Absent,
    Exists,
    Value(Bytes),
    Version(Position),
}

enum Do {
    Put(Map, Bytes, Bytes, Option<Position>),
    Get(Map, Bytes),
    Delete(Map, Bytes),
}

/// What a step read or wrote.
enum Did {
    Found(Bytes, Option<Versioned>),
    Wrote(Bytes, Option<Bytes>),
}

/// Runs `body` if the lock is held by its fence.
pub(super) async fn fenced<T>(
    context: &Context,
    map: &Map,
    fence: &Fence,
    once: Option<Once>,
    mut body: impl FnMut(&mut Transaction<'_>) -> Result<T, PlayError>,
) -> Outcome<Committed<T>> {
    let objects = map.view().objects();
    let lock = fence.open(objects).await?;
    let mut transaction = objects.transaction();
    if let Some(once) = once {
        transaction = transaction.once(once);
    }
    let body = |txn: &mut Transaction<'_>| {
        txn.fence(&lock, fence.fence);
        body(txn)
    };
    match transaction.run(body).await {
        Ok(done) => Ok(done),
        Err(error) => Err(failed(context, error)?),
    }
}

/// The failure that it ends with; of a conflict, what was in the way is printed.
fn failed(context: &Context, error: TransactError<PlayError>) -> Outcome<Failure> {
    Ok(match error {
        TransactError::Conflict(abort) if abort.object.kind == LockState::KIND => {
            let since = abort
                .position
                .map_or(String::new(), |at| format!(" since {at}"));
            let text = format!(
                "the lock is not held by that fence any more{since}; nothing was changed; acquire it again"
            );
            Failure::new(Code::Conflict, text)
        }
        TransactError::Conflict(abort) => {
            let key = match &abort.part {
                Part::Lease(lease) => return no_lease(context, "", *lease),
                Part::Key(key) => encode(key).0,
                Part::Whole | Part::Keys(_) => String::new(),
            };
            conflict(context, &key, abort.position)?.about(*abort)
        }
        TransactError::Body(error) | TransactError::Play(error) => error.into(),
        TransactError::Update(error) => error.into(),
        error @ TransactError::Undecided { .. } => Failure::new(Code::Unknown, error),
    })
}

pub(super) async fn run(
    context: &Context,
    objects: &Objects,
    map: &str,
    file: &Path,
    again: &Again,
    fenced: &Fenced,
) -> Outcome {
    let asked = read(file)?;
    let wrong = |why: String| Failure::file(file, why);
    let mut maps = Maps {
        objects,
        usual: map,
        open: BTreeMap::new(),
    };
    let mut checks = vec![];
    for condition in &asked.conditions {
        checks.push(maps.check(condition).await?.map_err(wrong)?);
    }
    let (mut then, mut otherwise) = (vec![], vec![]);
    for (steps, done) in [(&asked.then, &mut then), (&asked.otherwise, &mut otherwise)] {
        for step in steps {
            done.push(maps.step(step).await?.map_err(wrong)?);
        }
    }
    let lock = match &fenced.fence {
        Some(fence) => Some((fence.open(objects).await?, fence.fence)),
        None => None,
    };
    let mut transaction = objects.transaction();
    if let Some(once) = again.once() {
        transaction = transaction.once(once);
    }
    let body = |txn: &mut Transaction<'_>| {
        if let Some((lock, fence)) = &lock {
            txn.fence(lock, *fence);
        }
        let mut holds = true;
        for check in &checks {
            let found = txn.get_held(&check.map, &check.key)?;
            holds &= check.expect.holds(found.as_ref());
        }
        let steps = if holds { &then } else { &otherwise };
        let did: Result<Vec<Did>, PlayError> =
            steps.iter().map(|step| step.carry_out(txn)).collect();
        Ok::<_, PlayError>((holds, did?))
    };
    match transaction.run(body).await {
        Ok(committed) => show(context, committed),
        Err(error) => Err(failed(context, error)?),
    }
}

fn read(file: &Path) -> Outcome<Asked> {
    let wrong = |why: &dyn std::fmt::Display| Failure::file(file, why);
    let text = if file == Path::new("-") {
        let mut text = String::new();
        let read = std::io::stdin().read_to_string(&mut text);
        read.map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.map_err(|why| wrong(&why))?;
    serde_json::from_str(&text).map_err(|why| {
        let expected =
            "expected an object with `if`, `then` and `else`; see `milonga kv txn --help`";
        wrong(&format!("{why}; {expected}"))
    })
}

/// The maps that the file names, each opened once.
struct Maps<'a> {
    objects: &'a Objects,
    usual: &'a str,
    open: BTreeMap<String, Map>,
}

impl Maps<'_> {
    async fn open(&mut self, name: Option<&String>) -> Outcome<Map> {
        let name = name.map_or(self.usual, String::as_str);
        if let Some(map) = self.open.get(name) {
            return Ok(map.clone());
        }
        let map = Map::open(self.objects, name).await?;
        self.open.insert(name.to_owned(), map.clone());
        Ok(map)
    }

    async fn check(&mut self, asked: &Condition) -> Outcome<Result<Check, String>> {
        let map = self.open(asked.map.as_ref()).await?;
        let key = key_of(&asked.key, asked.key_encoding)?;
        let value = asked
            .value
            .as_ref()
            .map(|value| decode(value, asked.encoding));
        let expect = match (value, asked.version, asked.absent, asked.exists) {
            (Some(Ok(value)), None, false, false) => Expect::Value(value),
            (Some(Err(why)), ..) => return Ok(Err(why)),
            (None, Some(version), false, false) => Expect::Version(Position(version)),
            (None, None, true, false) => Expect::Absent,
            (None, None, false, true) => Expect::Exists,
            _ => {
                let key = &asked.key;
                return Ok(Err(format!(
                    "the condition on `{key}`: expected one of `value`, `version`, `absent` and `exists`"
                )));
            }
        };
        Ok(Ok(Check { map, key, expect }))
    }

    async fn step(&mut self, asked: &Step) -> Outcome<Result<Do, String>> {
        Ok(match asked {
            Step::Put(put) => {
                let map = self.open(put.map.as_ref()).await?;
                let key = key_of(&put.key, put.key_encoding)?;
                let lease = put.lease.map(Position);
                decode(&put.value, put.encoding).map(|value| Do::Put(map, key, value, lease))
            }
            Step::Get(get) => {
                let map = self.open(get.map.as_ref()).await?;
                Ok(Do::Get(map, key_of(&get.key, get.key_encoding)?))
            }
            Step::Delete(delete) => {
                let map = self.open(delete.map.as_ref()).await?;
                Ok(Do::Delete(map, key_of(&delete.key, delete.key_encoding)?))
            }
        })
    }
}

fn key_of(text: &str, encoding: Option<Encoding>) -> Outcome<Bytes> {
    let key = decode(text, encoding).map_err(Failure::failed)?;
    checked(&key)?;
    Ok(key)
}

impl Expect {
    fn holds(&self, found: Option<&Held>) -> bool {
        match (self, found) {
            (Self::Absent, found) => found.is_none(),
            (Self::Exists, found) => found.is_some(),
            (Self::Value(value), found) => found.is_some_and(|found| found.value.is(value)),
            (Self::Version(version), found) => found.is_some_and(|found| found.version == *version),
        }
    }
}

impl Do {
    fn carry_out(&self, txn: &mut Transaction<'_>) -> Result<Did, PlayError> {
        Ok(match self {
            Self::Put(map, key, value, lease) => {
                match lease {
                    None => txn.put(map, key.clone(), value.clone()),
                    Some(lease) => txn.put_leased(map, key.clone(), value.clone(), *lease),
                }
                Did::Wrote(key.clone(), Some(value.clone()))
            }
            Self::Get(map, key) => match txn.written(map, key) {
                Some(own) => Did::Wrote(key.clone(), own.cloned()),
                None => Did::Found(key.clone(), txn.get_versioned(map, key)?),
            },
            Self::Delete(map, key) => {
                txn.delete(map, key.clone());
                Did::Wrote(key.clone(), None)
            }
        })
    }
}

fn show(context: &Context, committed: Committed<(bool, Vec<Did>)>) -> Outcome {
    let (succeeded, did) = committed.value;
    let position = committed.repeats.or(committed.position);
    let result = |did: Did| match did {
        Did::Found(key, Some(found)) => Pair::of(&key, &found),
        Did::Found(key, None) => Pair::new(&key, None),
        Did::Wrote(key, value) => {
            let mut pair = Pair::new(&key, value.as_deref());
            pair.position = position.map(|position| position.0);
            pair
        }
    };
    let done = Done {
        succeeded,
        position: position.map(|position| position.0),
        attempts: committed.attempts,
        repeated: committed.repeats.is_some(),
        results: did.into_iter().map(result).collect(),
    };
    context.output.one(&done, || {
        let branch = if succeeded { "then" } else { "else" };
        let place = position.map_or(String::new(), |position| format!(" at {position}"));
        let steps: Vec<String> = done.results.iter().map(Pair::text).collect();
        let mut lines = vec![format!("{branch}{place}")];
        lines.extend(steps);
        lines.join("\n")
    })
}
