//! Measures a running cluster beside the bare machine: `measure run --cluster milonga-dev/milonga.toml append -c 256`.
//!
//! What a command of the binary would do: parse, connect, call [`milonga::bench`], print. Bare servers are this same
//! program, so it has their hidden command too.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;

use clap::Parser;
use milonga::bench;
use milonga_client::ClusterConfig;

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[derive(Parser)]
enum Command {
    /// Measures.
    Run {
        /// The cluster file.
        #[arg(long, env = "MILONGA_CLUSTER")]
        cluster: PathBuf,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        args: bench::Args,
    },
    /// Is a bare server.
    #[command(hide = true)]
    BenchNode(bench::NodeArgs),
}

fn main() -> Outcome {
    match Command::parse() {
        Command::BenchNode(args) => Ok(bench::node(&args)?),
        Command::Run {
            cluster,
            json,
            args,
        } => run(&ClusterConfig::load(&cluster)?, json, &args),
    }
}

fn run(cluster: &ClusterConfig, json: bool, args: &bench::Args) -> Outcome {
    milonga_host::ask_for_short_slice();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(async {
        let log = cluster.connect()?;
        Ok::<_, Box<dyn std::error::Error>>(bench::run(&log, args).await?)
    })?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}", report.text());
    }
    Ok(())
}
