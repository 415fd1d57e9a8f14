//! `milonga completions`: scripts with which a shell completes commands and flags.

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use crate::failure::Outcome;
use crate::output::ended;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  milonga completions bash > /etc/bash_completion.d/milonga")]
pub(super) struct Completions {
    /// Which shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> Outcome {
        let mut script = vec![];
        clap_complete::generate(self.shell, &mut Cli::command(), "milonga", &mut script);
        std::io::Write::write_all(&mut std::io::stdout(), &script).or_else(ended)
    }
}
