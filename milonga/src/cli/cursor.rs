//! `milonga cursor`: durable names for places in the log.

use clap::Subcommand;
use milonga_client::Position;
use milonga_client::object::cursors::{Cursor, If, NAME_BYTES_MAX, Outcome as Moved};
use milonga_client::object::{Cursors, Objects};
use serde::Serialize;

use super::Context;
use crate::failure::{Code, Failure, Outcome};
use crate::output::{json, line};

#[derive(Debug, Subcommand)]
pub(super) enum CursorCommand {
    /// Prints where a cursor is.
    #[command(after_help = "Example:
  milonga cursor get billing -o json")]
    Get {
        #[arg(value_parser = name)]
        name: String,
    },
    /// Prints all cursors.
    #[command(after_help = "Example:
  milonga cursor list")]
    List,
    /// Moves a cursor, or makes one; exits 4 if it is not as expected.
    #[command(after_help = "Example:
  milonga cursor set billing 4711
  milonga cursor set billing 4712 --expect-version 4711
  milonga cursor set billing 0 --absent")]
    Set {
        #[arg(value_parser = name)]
        name: String,
        /// The first position that is still to be read.
        position: u64,
        #[command(flatten)]
        expected: Expected,
    },
    /// Removes a cursor.
    #[command(after_help = "Example:
  milonga cursor delete billing")]
    Delete {
        #[arg(value_parser = name)]
        name: String,
        /// The position of its last move.
        #[arg(long, value_name = "P")]
        expect_version: Option<u64>,
    },
}

/// What has to be true of it.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("expected"))]
pub(super) struct Expected {
    /// The position of its last move.
    #[arg(long, group = "expected", value_name = "P")]
    expect_version: Option<u64>,
    /// It must not be there.
    #[arg(long, group = "expected")]
    absent: bool,
}

/// A cursor, as it is printed.
#[derive(Serialize)]
struct Printed<'a> {
    name: &'a str,
    position: u64,
    version: u64,
}

#[derive(Serialize)]
struct Conflict<'a> {
    conflict: At<'a>,
}

#[derive(Serialize)]
struct At<'a> {
    name: &'a str,
    position: Option<u64>,
    version: Option<u64>,
}

pub(super) fn name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.contains(char::is_control) {
        return Err(format!(
            "expected a name of 1 to {NAME_BYTES_MAX} bytes without control characters"
        ));
    }
    Ok(text.to_owned())
}

impl CursorCommand {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        let cursors = Cursors::open(&Objects::new(&context.cluster.connect()?));
        match self {
            Self::Get { name } => match cursors.get(&name).await? {
                Some(cursor) => print(context, &name, cursor),
                None => Err(Failure::new(
                    Code::NotFound,
                    format!("there is no cursor `{name}`"),
                )),
            },
            Self::List => {
                for (name, cursor) in cursors.all().await? {
                    let text = || format!("{name} {}", cursor.position);
                    context.output.one(&printed(&name, cursor), text)?;
                }
                Ok(())
            }
            Self::Set {
                name,
                position,
                expected,
            } => {
                let expect = match (expected.expect_version, expected.absent) {
                    (Some(version), _) => If::Version(Position(version)),
                    (None, true) => If::Absent,
                    (None, false) => If::Always,
                };
                let position = Position(position);
                let (version, moved) = cursors.move_to(&name, position, expect).await?;
                decided(context, &name, moved)?;
                print(context, &name, Cursor { position, version })
            }
            Self::Delete {
                name,
                expect_version,
            } => {
                let expect = expect_version.map_or(If::Always, |at| If::Version(Position(at)));
                let (_, removed) = cursors.remove(&name, expect).await?;
                decided(context, &name, removed)
            }
        }
    }
}

fn printed(name: &str, cursor: Cursor) -> Printed<'_> {
    Printed {
        name,
        position: cursor.position.0,
        version: cursor.version.0,
    }
}

fn print(context: &Context, name: &str, cursor: Cursor) -> Outcome {
    let text = || cursor.position.to_string();
    context.output.one(&printed(name, cursor), text)
}

/// Whether it took place; if not, what stood in the way.
pub(super) fn decided(context: &Context, name: &str, moved: Moved) -> Outcome {
    let Moved::Conflict { found } = moved else {
        return Ok(());
    };
    if context.output.is_json() {
        let conflict = At {
            name,
            position: found.map(|found| found.position.0),
            version: found.map(|found| found.version.0),
        };
        line(&json(&Conflict { conflict }))?;
    }
    let is = match found {
        Some(found) => format!("is at {}, moved there at {}", found.position, found.version),
        None => "is not there".to_owned(),
    };
    Err(Failure::new(
        Code::Conflict,
        format!("cursor `{name}` {is}, which was not expected; nothing was changed"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_can_be_printed() {
        assert!(name("billing/eu").is_ok());
        for bad in ["", "a\nb", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }
}
