//! `milonga object`: the objects that have names, whatever they are.

use clap::Subcommand;
use milonga_client::Position;
use milonga_client::object::Objects;
use serde::Serialize;

use super::Context;
use crate::failure::{Code, Failure, Outcome};

#[derive(Debug, Subcommand)]
pub(super) enum ObjectCommand {
    /// Prints all objects that have names.
    #[command(after_help = "Example:
  milonga object list -o json")]
    List,
    /// Takes objects back to what they were at a position, all at once, by a new record.
    #[command(
        visible_alias = "rollback",
        after_help = "Example:
  milonga kv get stock --at 4711          # what it was
  milonga object roll-back default orders --to 4711"
    )]
    RollBack {
        /// Their names: of a map, what `--map` says.
        #[arg(required = true)]
        names: Vec<String>,
        /// The last position whose update is to be in them.
        #[arg(long, value_name = "P")]
        to: u64,
    },
    /// Takes the name from an object that nobody uses any more.
    #[command(after_help = "Example:
  milonga object remove old-orders")]
    Remove { name: String },
}

#[derive(Serialize)]
struct Listed {
    name: String,
    kind: String,
    stream: String,
    since: u64,
}

#[derive(Serialize)]
struct RolledBack {
    position: u64,
    to: u64,
}

impl ObjectCommand {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        let objects = Objects::new(&context.cluster.connect()?);
        match self {
            Self::List => {
                let all = objects.all().await?.into_iter();
                let all: Vec<Listed> = all
                    .map(|(name, listed)| Listed {
                        name,
                        kind: listed.kind,
                        stream: listed.stream.to_string(),
                        since: listed.since.0,
                    })
                    .collect();
                let head = ["name", "kind", "since", "stream"];
                context.output.list(&all, &head, |one| {
                    let since = one.since.to_string();
                    vec![
                        one.name.clone(),
                        one.kind.clone(),
                        since,
                        one.stream.clone(),
                    ]
                })
            }
            Self::RollBack { names, to } => {
                let position = Box::pin(objects.roll_back(&names, Position(to))).await?;
                let done = RolledBack {
                    position: position.0,
                    to,
                };
                context.output.one(&done, || {
                    let names = names.join(", ");
                    format!("{names} went back to {to}, by the record at {position}")
                })
            }
            Self::Remove { name } => match objects.remove(&name).await? {
                Some(removed) => {
                    let text = format!("removed {name}, which was a {}", removed.kind);
                    let removed = Listed {
                        name,
                        kind: removed.kind,
                        stream: removed.stream.to_string(),
                        since: removed.since.0,
                    };
                    context.output.one(&removed, || text)
                }
                None => Err(Failure::new(
                    Code::NotFound,
                    format!("no object is called `{name}`; see `milonga object list`"),
                )),
            },
        }
    }
}
