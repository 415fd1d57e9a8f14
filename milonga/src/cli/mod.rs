//! The command line: what there is to say, and who does it. One file per group of commands.

mod bench;
mod certs;
mod change;
mod cluster;
mod completions;
mod cursor;
mod demo;
mod dev;
mod inspect;
mod keep;
mod kv;
mod lock;
mod log;
mod object;
mod servers;
mod status;
mod verify;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::connect::Cluster;
use crate::failure::{Failure, Outcome};
use crate::output::{Format, Output, say};

/// A shared log: one durable, totally ordered, write-once log that many clients append to and read at once.
#[derive(Debug, Parser)]
#[command(
    name = "milonga",
    version,
    propagate_version = true,
    max_term_width = 110
)]
#[command(after_help = "Example:
  milonga dev                        # a whole cluster on this machine
  milonga log append 'hello'         # in another terminal
  milonga log read 0..

Exit codes: 0 done, 1 refused or failed, 2 bad usage, 3 unavailable (a retry may help), 4 conflict,
5 not found, 6 unknown outcome (prints the stamp to resume with), 10 damage or violation found.")]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, clap::Args)]
struct Globals {
    /// How results are printed on stdout.
    #[arg(short = 'o', long, global = true, value_enum, default_value = "table")]
    output: Format,
    /// What is logged on stderr, e.g. `info` or `milonga_client=debug`.
    #[arg(
        long = "log",
        id = "log_filter",
        global = true,
        env = "MILONGA_LOG",
        value_name = "FILTER"
    )]
    log: Option<String>,
    /// The cluster file [default: ./milonga.toml, ./milonga-dev/milonga.toml, or the user's].
    #[arg(long, global = true, env = "MILONGA_CLUSTER", value_name = "FILE")]
    cluster: Option<PathBuf>,
    /// How long an operation may take, e.g. `5s`.
    #[arg(long, global = true, value_parser = deadline)]
    deadline: Option<Duration>,
}

fn deadline(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("nothing can be done in no time; expected e.g. `5s`".to_owned()),
        Ok(deadline) => Ok(deadline),
        Err(why) => Err(format!("{why}; expected a time, e.g. `5s` or `200ms`")),
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a whole cluster on this machine.
    Dev(dev::Dev),
    /// Shows what Milonga does, on a cluster of its own.
    Demo(demo::Demo),
    /// Runs a layout server.
    Layout(servers::Layout),
    /// Runs a sequencer.
    Sequencer(servers::Sequencer),
    /// Runs a log unit.
    Logunit(servers::Logunit),
    /// Makes and shows certificates.
    #[command(
        subcommand,
        after_help = "Example:
  milonga certs init --dir certs
  milonga certs issue --dir certs --role writer --name app"
    )]
    Certs(certs::Certs),
    /// Starts, looks at and changes a cluster.
    #[command(
        subcommand,
        after_help = "Example:
  milonga cluster status
  milonga cluster evict unit-2 --plan
  milonga cluster layouts -o json"
    )]
    Cluster(cluster::ClusterCommand),
    /// Appends to and reads the log.
    #[command(
        subcommand,
        after_help = "Example:
  milonga log append 'hello'
  milonga log read 0.."
    )]
    Log(log::LogCommand),
    /// Keeps named places in the log: where a reader stopped.
    #[command(
        subcommand,
        after_help = "Example:
  milonga log follow --cursor billing --raw    # goes on where the last one stopped
  milonga cursor list"
    )]
    Cursor(cursor::CursorCommand),
    /// Locks: held by one at a time, with leases and fences.
    #[command(
        subcommand,
        after_help = "Example:
  milonga lock run backup -- ./backup.sh
  milonga lock show backup"
    )]
    Lock(lock::LockCommand),
    /// Puts and gets keys of a replicated map.
    Kv(kv::Kv),
    /// The objects that have names: what there is, and going back to what they were.
    #[command(
        subcommand,
        after_help = "Example:
  milonga object list
  milonga object roll-back default --to 4711"
    )]
    Object(object::ObjectCommand),
    /// Keeps the log in order: snapshots, and trims.
    Keep(keep::Keep),
    /// Measures, with the ratio to a bare baseline.
    Bench(bench::Bench),
    /// Is one bare server of a baseline.
    #[command(
        hide = true,
        after_help = "Example: `milonga bench` starts it by itself."
    )]
    BenchNode(crate::bench::NodeArgs),
    /// Prints and checks a server's directory while it is stopped.
    Inspect(inspect::Inspect),
    /// Prints a completion script for a shell.
    Completions(completions::Completions),
}

/// What a command works with.
#[derive(Clone)]
struct Context {
    output: Output,
    cluster: Cluster,
    log: Option<String>,
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(format_args!("error: {failure}"));
            failure.code.into()
        }
    }
}

fn run(cli: Cli) -> Outcome {
    let Globals {
        output,
        log,
        cluster,
        deadline,
    } = cli.globals;
    let context = Context {
        output: Output::new(output),
        cluster: Cluster {
            file: cluster,
            deadline,
            open: Arc::default(),
        },
        log,
    };
    context.start_logging(&cli.command)?;
    match cli.command {
        Command::Dev(dev) => dev.run(&context),
        Command::Demo(demo) => demo.run(&context),
        Command::Layout(server) => server.run(),
        Command::Sequencer(server) => server.run(),
        Command::Logunit(server) => server.run(),
        Command::Certs(certs) => certs.run(&context),
        Command::Cluster(cluster) => wait(&context, cluster.run(&context)),
        Command::Log(log) => wait(&context, log.run(&context)),
        Command::Cursor(cursor) => wait(&context, cursor.run(&context)),
        Command::Lock(lock) => wait(&context, lock.run(&context)),
        Command::Kv(kv) => wait(&context, kv.run(&context)),
        Command::Object(object) => wait(&context, object.run(&context)),
        Command::Keep(keep) => wait(&context, keep.run(&context)),
        Command::Bench(bench) => bench.run(&context),
        Command::BenchNode(node) => Ok(crate::bench::node(&node)?),
        Command::Inspect(inspect) => inspect.run(&context),
        Command::Completions(completions) => completions.run(),
    }
}

impl Context {
    /// Servers say what they do; other commands only what is wrong.
    fn start_logging(&self, command: &Command) -> Outcome {
        let usual = match command {
            Command::Layout(_) | Command::Sequencer(_) | Command::Logunit(_) | Command::Keep(_) => {
                "info"
            }
            _ => "warn",
        };
        let filter = self.log.as_deref().unwrap_or(usual);
        let filter = EnvFilter::try_new(filter)
            .map_err(|why| Failure::usage(format!("--log says `{filter}`: {why}; try `info`")))?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .init();
        Ok(())
    }
}

/// Runs a command's work on a runtime of its own.
fn wait(context: &Context, work: impl Future<Output = Outcome>) -> Outcome {
    crate::serve::runtime(None)?.block_on(async {
        let outcome = work.await;
        context.cluster.leave().await;
        outcome
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Clap finds contradictions only when a command is built.
    #[test]
    fn every_command_is_well_formed_and_shows_an_example() {
        fn leaves(command: &clap::Command, path: &str, found: &mut Vec<String>) {
            let path = format!("{path} {}", command.get_name());
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            if !help.contains("Example") {
                found.push(path.clone());
            }
            command
                .get_subcommands()
                .for_each(|sub| leaves(sub, &path, found));
        }
        let command = Cli::command();
        command.clone().debug_assert();
        let mut without = vec![];
        leaves(&command, "", &mut without);
        assert_eq!(without, Vec::<String>::new());
    }
}
