//! `milonga dev`: a whole cluster on this machine, and its servers one by one.

use std::path::PathBuf;

use clap::Subcommand;
use serde::Serialize;

use super::{Context, wait};
use crate::connect::DEV_DIR;
use crate::dev::{self, Care, Run, Shape};
use crate::failure::Outcome;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  milonga dev --dir /tmp/m
  milonga dev --chains 1 --replicas 2 --layout-servers 1
  milonga dev restart unit-2")]
pub(super) struct Dev {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Where everything is kept; a cluster that is there carries on [default: milonga-dev; for `restart` and `stop` the
    /// folder of the cluster file, if there is one].
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    /// How many chains [default: 2].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    chains: Option<u16>,
    /// How many log units per chain [default: 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    replicas: Option<u16>,
    /// How many layout servers: 1, 3 or 5 [default: 3].
    #[arg(long, value_name = "N", value_parser = odd)]
    layout_servers: Option<u16>,
    /// How many sequencers stand by [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=8))]
    standbys: Option<u16>,
    /// How many log units stand ready [default: 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=64))]
    spares: Option<u16>,
    /// Positions per stripe [default: 256].
    #[arg(long, value_name = "N")]
    stripe_width: Option<u32>,
    /// The first of the ports; the first start chooses free ones otherwise, and they stay.
    #[arg(long, value_name = "PORT")]
    port_base: Option<u16>,
    /// Runs all servers in this process, each on a thread of its own.
    #[arg(long)]
    in_process: bool,
    /// Runs no caretakers until it is started again: control clients alone look after the cluster.
    #[arg(long)]
    no_caretaker: bool,
    /// How long a log unit that was left out must have answered before a caretaker takes it back, until it is started again
    /// [default: 60000].
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    steady_ms: Option<u32>,
    /// Ends with the process of this id, which started it.
    #[arg(long, hide = true)]
    parent: Option<u32>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Stops one server if it runs, and starts it.
    #[command(after_help = "Example:
  milonga dev restart sequencer-1 --kill")]
    Restart(One),
    /// Stops one server.
    #[command(after_help = "Example:
  milonga dev stop unit-2")]
    Stop(One),
}

#[derive(Debug, clap::Args)]
struct One {
    /// Its name, as in `processes.json`.
    name: String,
    /// Kills it instead of letting it finish what it accepted.
    #[arg(long)]
    kill: bool,
}

#[derive(Serialize)]
struct Done<'a> {
    name: &'a str,
    pid: Option<u32>,
}

fn odd(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(count @ (1 | 3 | 5)) => Ok(count),
        Ok(_) | Err(_) => Err("expected 1, 3 or 5".to_owned()),
    }
}

impl Dev {
    pub(super) fn run(self, context: &Context) -> Outcome {
        match &self.verb {
            Some(Verb::Restart(one)) => {
                let pid = dev::restart(&self.running(context), &one.name, one.kill)?;
                one.print(context, pid, "runs again")
            }
            Some(Verb::Stop(one)) => {
                let pid = dev::stop(&self.running(context), &one.name, one.kill)?;
                one.print(context, pid, "is stopped")
            }
            None => {
                if let Some(parent) = self.parent {
                    crate::serve::end_with(parent)?;
                }
                let run = Run {
                    shape: self.shape(),
                    dir: self.dir.unwrap_or_else(|| DEV_DIR.into()),
                    port_base: self.port_base,
                    in_process: self.in_process,
                    care: Care {
                        caretaker: !self.no_caretaker,
                        steady_ms: self.steady_ms,
                    },
                };
                wait(context, run.until_a_signal())
            }
        }
    }

    /// The folder of the cluster whose servers are meant.
    fn running(&self, context: &Context) -> PathBuf {
        let beside_file = || {
            let folder = context.cluster.path().ok()?.parent()?.to_owned();
            folder.join("processes.json").exists().then_some(folder)
        };
        let given = self.dir.clone();
        given.or_else(beside_file).unwrap_or_else(|| DEV_DIR.into())
    }

    /// What was asked for, if anything was.
    fn shape(&self) -> Option<Shape> {
        let usual = Shape::default();
        let shape = Shape {
            chains: self.chains.unwrap_or(usual.chains),
            replicas: self.replicas.unwrap_or(usual.replicas),
            layout_servers: self.layout_servers.unwrap_or(usual.layout_servers),
            standbys: self.standbys.unwrap_or(usual.standbys),
            spares: self.spares.unwrap_or(usual.spares),
            stripe_width: self.stripe_width.unwrap_or(usual.stripe_width),
        };
        let counts = [
            self.chains,
            self.replicas,
            self.layout_servers,
            self.standbys,
            self.spares,
        ];
        let asked = counts.iter().any(Option::is_some) || self.stripe_width.is_some();
        asked.then_some(shape)
    }
}

impl One {
    fn print(&self, context: &Context, pid: Option<u32>, what: &str) -> Outcome {
        let done = Done {
            name: &self.name,
            pid,
        };
        context
            .output
            .one(&done, || format!("{} {what}", self.name))
    }
}
