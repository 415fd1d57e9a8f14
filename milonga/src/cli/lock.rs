//! `milonga lock`: locks with leases and fences, held by one at a time.

use std::process::Stdio;
use std::time::Duration;

use clap::Subcommand;
use milonga_client::Position;
use milonga_client::object::lock::{Held, Holder, LockState, Outcome as Did, Update};
use milonga_client::object::{Lock, Objects};
use serde::Serialize;

use super::Context;
use crate::failure::{Code, Failure, Outcome};
use crate::output::{json, line};

#[derive(Debug, Subcommand)]
pub(super) enum LockCommand {
    /// Takes a lock and exits: it is held until its lease is over, unless it is renewed. Exits 4 if somebody else holds it.
    #[command(after_help = "Example:
  milonga lock acquire backup --lease 60s --owner host-1 -o json
  milonga kv put last-backup today --fence backup@4711")]
    Acquire {
        name: String,
        #[command(flatten)]
        how: How,
        /// Wait for it.
        #[arg(long)]
        wait: bool,
    },
    /// Renews a lock that is held by this fence; exits 4 if it is lost.
    #[command(after_help = "Example:
  milonga lock renew backup 4711")]
    Renew { name: String, fence: u64 },
    /// Gives a lock up that is held by this fence, or waited for since.
    #[command(after_help = "Example:
  milonga lock release backup 4711")]
    Release { name: String, fence: u64 },
    /// Prints who holds a lock; exits 5 if nobody does.
    #[command(after_help = "Example:
  milonga lock show backup -o json")]
    Show { name: String },
    /// Waits for a lock, runs a command while it is held, and gives it up. The command finds its fence in `MILONGA_FENCE`, as
    /// `--fence` takes it.
    #[command(after_help = "Example:
  milonga lock run backup -- ./backup.sh")]
    Run {
        name: String,
        #[command(flatten)]
        how: How,
        /// What to run.
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct How {
    /// For how long it is held without a renewal.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    lease: Duration,
    /// Who: two that must not be taken for one have different names [default: one for this process].
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
}

impl How {
    fn owner(&self, lock: &Lock) -> String {
        let session = || lock.view().log().session().to_string();
        self.owner.clone().unwrap_or_else(session)
    }
}

/// A lock, as it is printed.
#[derive(Serialize)]
struct Printed<'a> {
    name: &'a str,
    owner: String,
    fence: u64,
    lease_ms: u64,
}

/// Who was in the way.
#[derive(Serialize)]
struct Conflict<'a> {
    conflict: Option<Printed<'a>>,
}

impl LockCommand {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        let log = context.cluster.connect()?;
        let objects = Objects::new(&log);
        match self {
            Self::Acquire { name, how, wait } => {
                let lock = Lock::open(&objects, &name).await?;
                let owner = how.owner(&lock);
                let held = if wait {
                    Some(Box::pin(lock.acquire(owner.clone(), how.lease)).await?)
                } else {
                    lock.try_acquire(owner.clone(), how.lease).await?
                };
                match held {
                    Some(held) => print(
                        context,
                        &Printed {
                            name: &name,
                            owner,
                            fence: held.fence().0,
                            lease_ms: how.lease.as_millis() as u64,
                        },
                    ),
                    None => Err(taken(context, &name, lock.holder().await?)?),
                }
            }
            Self::Renew { name, fence } => {
                let fence = Position(fence);
                let lock = existing(&objects, &name).await?;
                match lock.view().update(&Update::Renew { fence }).await? {
                    (_, Did::Held { .. }) => match lock.holder().await? {
                        Some(holder) => print(context, &printed(&name, &holder)),
                        None => Err(taken(context, &name, None)?),
                    },
                    (_, Did::NotHeld { by }) => Err(taken(context, &name, by)?),
                    (_, Did::Waits { .. }) => unreachable!("a renewal does not wait"),
                }
            }
            Self::Release { name, fence } => {
                let fence = Position(fence);
                let lock = existing(&objects, &name).await?;
                lock.view().update(&Update::Release { fence }).await?;
                Ok(())
            }
            Self::Show { name } => {
                let lock = existing(&objects, &name).await?;
                match lock.holder().await? {
                    Some(holder) => print(context, &printed(&name, &holder)),
                    None => Err(Failure::new(
                        Code::NotFound,
                        format!("nobody holds the lock `{name}`"),
                    )),
                }
            }
            Self::Run { name, how, command } => {
                let lock = Lock::open(&objects, &name).await?;
                let held = Box::pin(lock.acquire(how.owner(&lock), how.lease)).await?;
                run(&name, held, &command).await
            }
        }
    }
}

/// Runs a command for as long as the lock is held; a command that goes on when it is lost is ended.
async fn run(name: &str, held: Held, command: &[String]) -> Outcome {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Failure::usage("expected a command behind --"));
    };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env("MILONGA_FENCE", format!("{name}@{}", held.fence()))
        .stdin(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|why| Failure::failed(format!("cannot run `{program}`: {why}")))?;
    let mut look = tokio::time::interval(Duration::from_millis(100));
    let status = loop {
        tokio::select! {
            biased;
            status = child.wait() => break status.map_err(Failure::failed)?,
            _ = look.tick() => if !held.is_held() {
                let _ = child.kill().await;
                let text = format!("the lock `{name}` was lost while `{program}` ran; it was ended");
                return Err(Failure::new(Code::Conflict, text));
            },
        }
    };
    held.release().await?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::failed(format!("`{program}` ended with {status}")))
}

async fn existing(objects: &Objects, name: &str) -> Outcome<Lock> {
    let found = objects.find::<LockState>(name).await?;
    found.map(Lock::of).ok_or_else(|| {
        let text = format!("there is no lock `{name}`; `milonga lock acquire` makes it");
        Failure::new(Code::NotFound, text)
    })
}

fn printed<'a>(name: &'a str, holder: &Holder) -> Printed<'a> {
    Printed {
        name,
        owner: String::from_utf8_lossy(&holder.owner).into_owned(),
        fence: holder.fence.0,
        lease_ms: holder.lease_ms,
    }
}

fn print(context: &Context, lock: &Printed<'_>) -> Outcome {
    context.output.one(lock, || {
        let (name, owner) = (lock.name, &lock.owner);
        format!("{name} is held by {owner}, fence {name}@{}", lock.fence)
    })
}

fn taken(context: &Context, name: &str, by: Option<Holder>) -> Outcome<Failure> {
    let conflict = by.as_ref().map(|holder| printed(name, holder));
    let who = match &conflict {
        Some(held) => format!("by {} since {}", held.owner, held.fence),
        None => "by nobody any more".to_owned(),
    };
    if context.output.is_json() {
        line(&json(&Conflict { conflict }))?;
    }
    let text = format!(
        "the lock `{name}` is held {who}; expected it free, or held by that fence; try --wait"
    );
    Ok(Failure::new(Code::Conflict, text))
}

/// A lock and the fence that it must be held by, as NAME@POSITION.
#[derive(Clone, Debug)]
pub(super) struct Fence {
    pub(super) lock: String,
    pub(super) fence: Position,
}

pub(super) fn fence(text: &str) -> Result<Fence, String> {
    let parsed = text.rsplit_once('@').and_then(|(lock, fence)| {
        let fence = Position(fence.parse().ok()?);
        let lock = lock.to_owned();
        Some(Fence { lock, fence })
    });
    parsed.ok_or_else(|| "expected LOCK@POSITION, as `milonga lock acquire` prints it".to_owned())
}

impl Fence {
    pub(super) async fn open(&self, objects: &Objects) -> Outcome<Lock> {
        existing(objects, &self.lock).await
    }
}
