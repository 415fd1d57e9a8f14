//! Runs clients of replicated maps on a cluster of real processes that fail, and checks all that they were told.
//!
//! This program is `milonga`, too, so that what is run is what was built: `histories dev` is `milonga dev`.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use milonga_host::Random;
use tests::histories::client::{self, ClientArgs, MAPS};
use tests::histories::plant::Plant;
use tests::histories::run::{self, Wanted};

/// What `milonga` is asked by those who run a cluster.
const MILONGA: [&str; 5] = ["dev", "layout", "sequencer", "logunit", "cluster"];

/// Runs clients of replicated maps on real processes that are killed and stopped, and checks everything that they were told
/// against a replay of the log.
///
/// Exit codes: 0 if it can all be so, 1 if not, 2 if there was nothing to check.
#[derive(Debug, Parser)]
#[command(
    max_term_width = 110,
    args_conflicts_with_subcommands = true,
    after_help = "Example:
  histories --operations 1000000
  histories --operations 20000 --keep /tmp/h && histories check /tmp/h --plant stale-read"
)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    checked: CheckArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Checks what a run kept.
    Check {
        /// Where it kept it.
        dir: PathBuf,
        #[command(flatten)]
        checked: CheckArgs,
    },
    /// Is one client process of a run.
    #[command(hide = true)]
    Client(ClientArgs),
}

#[derive(Clone, Debug, clap::Args)]
struct RunArgs {
    /// How many operations at least.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    operations: u64,
    /// How many clients.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1_024))]
    clients: u64,
    /// In how many processes, which are killed one by one.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    processes: u64,
    /// How many keys, in four maps.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(MAPS..=4_096))]
    keys: u64,
    /// Makes no faults.
    #[arg(long)]
    calm: bool,
    /// Keeps the histories, and the changes that a replay found, in this folder, which must not be there yet.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Another `milonga` than the one that was built with this.
    #[arg(long, value_name = "FILE")]
    milonga: Option<PathBuf>,
}

#[derive(Clone, Debug, clap::Args)]
struct CheckArgs {
    /// What clients, faults and plants draw is drawn from this; without it, from the operating system's choice.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Changes one answer before the check, which must find it.
    #[arg(long, value_enum)]
    plant: Option<Plant>,
    /// How the result is printed.
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Copy, Clone, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

fn main() -> ExitCode {
    let first = std::env::args().nth(1).unwrap_or_default();
    if MILONGA.contains(&first.as_str()) {
        return milonga::cli::main();
    }
    let cli = Cli::parse();
    match work(cli) {
        Ok(code) => code,
        Err(why) => {
            say(format_args!("error: {why:#}"));
            ExitCode::from(2)
        }
    }
}

/// What is no result.
fn say(text: Arguments<'_>) {
    // Who does not want to hear it need not.
    let _ = writeln!(io::stderr(), "{text}");
}

fn work(cli: Cli) -> Result<ExitCode> {
    match cli.verb {
        Some(Verb::Client(args)) => client::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Verb::Check { dir, checked }) => check(&dir, &checked),
        None => record_and_check(&cli.run, cli.checked),
    }
}

fn record_and_check(args: &RunArgs, mut checked: CheckArgs) -> Result<ExitCode> {
    let seed = checked
        .seed
        .unwrap_or_else(|| Random::real().below(1 << 48));
    checked.seed = Some(seed);
    let own = tempfile::Builder::new()
        .prefix("milonga-histories-")
        .tempdir()?;
    let dir = match &args.keep {
        Some(dir) => {
            std::fs::create_dir(dir).with_context(|| dir.display().to_string())?;
            dir.canonicalize()?
        }
        None => own.path().to_owned(),
    };
    let this = std::env::current_exe()?;
    let wanted = Wanted {
        operations: args.operations,
        clients: args.clients.max(args.processes),
        processes: args.processes,
        keys: args.keys,
        seed,
        calm: args.calm,
        milonga: args.milonga.clone().unwrap_or(this),
    };
    say(format_args!("seed {seed}, in {}", dir.display()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(run::record(&wanted, &dir, say));
    let result = result.and_then(|()| {
        say(format_args!("checking"));
        check(&dir, &checked)
    });
    let is_sound = matches!(result, Ok(ExitCode::SUCCESS));
    if is_sound || checked.plant.is_some() && result.is_ok() {
        // What is kept is the histories; the cluster was what it should be.
        std::fs::remove_dir_all(dir.join("cluster"))?;
    } else {
        let kept = own.keep();
        let kept = args.keep.as_ref().unwrap_or(&kept);
        say(format_args!("everything is kept in {}", kept.display()));
    }
    result
}

fn check(dir: &std::path::Path, args: &CheckArgs) -> Result<ExitCode> {
    let report = run::check(dir, args.plant, args.seed.unwrap_or(0))?;
    let text = match args.output {
        Format::Table => report.text(),
        Format::Json => serde_json::to_string(&report)? + "\n",
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::from(u8::from(!report.violations.is_empty())))
}
