//! `milonga keep`: writes snapshots and trims, as the log was told to be kept.

use milonga_client::object::Objects;
use milonga_client::object::keeping::{Keeper, MEMORY};

use super::Context;
use super::log::{print_kept, size};
use crate::failure::Outcome;
use crate::output::say;

/// Keeps the log in order: writes the snapshots that are due, and trims what is given up and nobody needs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  milonga keep --memory 4GiB      # beside caretakers, for objects that are larger than what these hold
  milonga keep --once")]
pub(super) struct Keep {
    /// Leave objects alone whose snapshots are larger [default: 256MiB].
    #[arg(long, value_parser = size, value_name = "SIZE")]
    memory: Option<u64>,
    /// Do what is due now, and end.
    #[arg(long)]
    once: bool,
}

impl Keep {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        let objects = Objects::new(&context.cluster.connect()?);
        let mut keeper = Keeper::new(&objects).memory(self.memory.unwrap_or(MEMORY));
        if !self.once {
            say("keeping the log in order, until Ctrl-C");
            keeper.run().await;
            return Ok(());
        }
        let kept = Box::pin(keeper.work()).await?;
        print_kept(context, kept)
    }
}
