//! `milonga kv lease`: keys that go when nobody renews what they are bound to.

use std::time::Duration;

use clap::Subcommand;
use milonga_client::Position;
use milonga_client::object::map::{LeaseError, LeaseState};
use milonga_client::object::{Map, Objects};
use milonga_host::Shutdown;
use serde::Serialize;

use super::pair::{Encoding, encode};
use super::{existing, gone};
use crate::cli::Context;
use crate::failure::{Code, Failure, Outcome};

#[derive(Debug, Subcommand)]
pub(super) enum LeaseCommand {
    /// Grants a lease and prints its name, a position: keys that are bound to it go when it is not renewed for that long.
    ///
    /// Programs that have the map open end it then, and so do `kv watch` and `kv lease keep` for as long as they run, if their
    /// certificates may write.
    #[command(after_help = "Example:
  lease=$(milonga kv lease grant --ttl 10s)
  milonga kv put worker/7 10.0.0.7:80 --lease $lease
  milonga kv lease keep $lease &")]
    Grant {
        /// For how long it lives without a renewal: 1s or more.
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        ttl: Duration,
    },
    /// Renews a lease until Ctrl-C; exits 4 once it is lost. It lives on for its time behind a Ctrl-C.
    #[command(after_help = "Example:
  milonga kv lease keep 4711")]
    Keep { lease: u64 },
    /// Ends a lease: removes all keys that are bound to it, as one; exits 5 if it has ended.
    #[command(after_help = "Example:
  milonga kv lease revoke 4711")]
    Revoke { lease: u64 },
    /// Prints a lease and the keys that are bound to it; exits 5 if it has ended.
    #[command(after_help = "Example:
  milonga kv lease show 4711 -o json")]
    Show { lease: u64 },
    /// Prints all leases that live, the oldest first.
    #[command(after_help = "Example:
  milonga kv lease list -o json")]
    List,
}

#[derive(Serialize)]
struct Granted {
    lease: u64,
    ttl_ms: u64,
}

#[derive(Serialize)]
struct Revoked {
    lease: u64,
    /// How many keys went with it.
    keys: u64,
}

/// A lease, as it is printed.
#[derive(Serialize)]
struct Shown {
    lease: u64,
    ttl_ms: u64,
    /// The position of its last renewal.
    renewed: u64,
    keys: Vec<Key>,
}

#[derive(Serialize)]
struct Key {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_encoding: Option<Encoding>,
}

impl LeaseCommand {
    pub(super) async fn run(self, context: &Context, objects: &Objects, name: &str) -> Outcome {
        match self {
            Self::Grant { ttl } => {
                let map = Map::open(objects, name).await?;
                let lease = map.grant(ttl).await?;
                let granted = Granted {
                    lease: lease.id().0,
                    ttl_ms: millis(ttl),
                };
                context.output.one(&granted, || granted.lease.to_string())
            }
            Self::Keep { lease } => {
                let map = existing(objects, name).await?;
                keep(context, &map, Position(lease)).await
            }
            Self::Revoke { lease } => {
                let map = existing(objects, name).await?;
                match map.revoke(Position(lease)).await {
                    Ok(keys) => {
                        let revoked = Revoked { lease, keys };
                        context
                            .output
                            .one(&revoked, || format!("{keys} keys removed"))
                    }
                    Err(LeaseError::Ended { lease }) => Err(gone(Code::NotFound, lease)),
                    Err(error) => Err(error.into()),
                }
            }
            Self::Show { lease } => {
                let lease = Position(lease);
                let map = existing(objects, name).await?;
                match map.lease(lease).await? {
                    Some(found) => print(context, lease, &found),
                    None => Err(gone(Code::NotFound, lease)),
                }
            }
            Self::List => {
                let map = existing(objects, name).await?;
                for (lease, found) in map.leases().await? {
                    print(context, lease, &found)?;
                }
                Ok(())
            }
        }
    }
}

async fn keep(context: &Context, map: &Map, lease: Position) -> Outcome {
    let shutdown = Shutdown::listen()
        .map_err(|why| Failure::failed(format!("signals cannot be caught: {why}")))?;
    let kept = map.keep(lease).await?;
    let granted = Granted {
        lease: lease.0,
        ttl_ms: millis(kept.ttl()),
    };
    context.output.one(&granted, || {
        format!("lease {lease} is renewed until Ctrl-C")
    })?;
    tokio::select! {
        biased;
        _ = shutdown.requested(&map.view().log().host().tasks) => Ok(()),
        () = kept.lost() => Err(gone(Code::Conflict, lease)),
    }
}

fn print(context: &Context, lease: Position, found: &LeaseState) -> Outcome {
    let keys = found.keys().map(|key| {
        let (key, key_encoding) = encode(key);
        Key { key, key_encoding }
    });
    let shown = Shown {
        lease: lease.0,
        ttl_ms: millis(found.ttl()),
        renewed: found.renewed().0,
        keys: keys.collect(),
    };
    context.output.one(&shown, || {
        let ttl = humantime::format_duration(found.ttl());
        let keys: Vec<&str> = shown.keys.iter().map(|key| key.key.as_str()).collect();
        format!("{lease}\t{ttl}\t{}", keys.join(" "))
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
