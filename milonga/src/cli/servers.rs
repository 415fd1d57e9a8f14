//! `milonga layout`, `sequencer` and `logunit`: one server each, until a signal ends it.

use std::path::PathBuf;

use milonga_host::Shutdown;
use serde::Serialize;

use crate::failure::{Failure, Outcome};
use crate::output::{line, say};
use crate::serve::{self, Role, Settings, runtime};

/// What every server takes.
#[derive(Debug, clap::Args, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shared {
    /// The configuration file; flags come first.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Its name, as its certificate has it.
    #[arg(long)]
    name: Option<String>,
    /// Where it listens, `host:port`.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where `/metrics`, `/livez` and `/readyz` are served: `ip:port`, or a port of the loopback address.
    #[arg(long, value_name = "ADDR")]
    admin: Option<String>,
    /// The layout servers, `host:port` each, with commas.
    #[arg(long, value_delimiter = ',', value_name = "ADDRS")]
    layout: Option<Vec<String>>,
    /// A folder with `ca.pem`, `NAME.pem` and `NAME.key`, in place of the three below.
    #[arg(long, value_name = "DIR")]
    certs: Option<PathBuf>,
    /// The cluster's certificate authority.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The server's certificate.
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The certificate's key.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Ends with the process of this id, which started it.
    #[arg(long, hide = true)]
    #[serde(skip)]
    parent: Option<u32>,
}

/// A layout server: a durable acceptor that, with the others, decides the layout of every term.
#[derive(Debug, clap::Args, Serialize)]
#[command(after_help = "Example:
  milonga layout --config /etc/milonga/layout-1.toml
  milonga layout --name layout-1 --listen 10.0.0.1:7001 --dir /var/lib/milonga/layout-1 \\
      --layout 10.0.0.1:7001,10.0.0.2:7001,10.0.0.3:7001 --certs /etc/milonga/certs")]
#[serde(rename_all = "kebab-case")]
pub(super) struct Layout {
    #[command(flatten)]
    #[serde(flatten)]
    shared: Shared,
    /// Its directory.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Whether a caretaker runs beside it, if it has a certificate.
    #[arg(long)]
    caretaker: Option<bool>,
    /// The caretaker's certificate, of role control.
    #[arg(long, value_name = "FILE")]
    caretaker_cert: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE")]
    caretaker_key: Option<PathBuf>,
    /// How long a log unit that was left out must have answered before the caretaker takes it back, in milliseconds.
    #[arg(long, value_name = "MS")]
    steady_ms: Option<u64>,
    /// How many reports of clients are kept for the caretaker.
    #[arg(long, value_name = "N")]
    reports_max: Option<u64>,
    /// How long it waits for a suspect's answer to a probe, in milliseconds.
    #[arg(long, value_name = "MS")]
    opinion_ms: Option<u64>,
}

/// A sequencer: issues positions, in memory only.
#[derive(Debug, clap::Args, Serialize)]
#[command(after_help = "Example:
  milonga sequencer --config /etc/milonga/sequencer-1.toml")]
#[serde(rename_all = "kebab-case")]
pub(super) struct Sequencer {
    #[command(flatten)]
    #[serde(flatten)]
    shared: Shared,
    /// How many streams it remembers.
    #[arg(long, value_name = "N")]
    streams_max: Option<u64>,
    /// How long it waits for the layout servers, in milliseconds.
    #[arg(long, value_name = "MS")]
    confirm_ms: Option<u64>,
    /// How many questions for the end may wait at a time.
    #[arg(long, value_name = "N")]
    ends_max: Option<u64>,
}

/// A log unit: a durable write-once store.
#[derive(Debug, clap::Args, Serialize)]
#[command(after_help = "Example:
  milonga logunit --config /etc/milonga/unit-1.toml
  milonga logunit --config unit-1.toml --listen 10.0.0.1:7021 --admin 9721")]
#[serde(rename_all = "kebab-case")]
pub(super) struct Logunit {
    #[command(flatten)]
    #[serde(flatten)]
    shared: Shared,
    /// Its directory.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Bytes of the largest record it takes.
    #[arg(long, value_name = "BYTES")]
    entry_bytes_max: Option<u64>,
    /// Bytes of requests that may wait for a commit.
    #[arg(long, value_name = "BYTES")]
    queue_bytes_max: Option<u64>,
    /// Bytes of each of its files.
    #[arg(long, value_name = "BYTES")]
    file_bytes: Option<u64>,
    /// Whether closed files are read through a memory map.
    #[arg(long)]
    map: Option<bool>,
    /// Seconds from one round of verifying all records to the next; 0 for none.
    #[arg(long, value_name = "SECONDS")]
    scrub_every: Option<u64>,
    /// Bytes of records verified in a second; 0 for none.
    #[arg(long, value_name = "BYTES")]
    scrub_bytes_per_second: Option<u64>,
}

impl Layout {
    pub(super) fn run(self) -> Outcome {
        serve(Role::Layout, &self.shared, &self)
    }
}

impl Sequencer {
    pub(super) fn run(self) -> Outcome {
        serve(Role::Sequencer, &self.shared, &self)
    }
}

impl Logunit {
    pub(super) fn run(self) -> Outcome {
        serve(Role::LogUnit, &self.shared, &self)
    }
}

fn serve(role: Role, shared: &Shared, flags: &impl Serialize) -> Outcome {
    if let Some(parent) = shared.parent {
        serve::end_with(parent)?;
    }
    let flags = toml::Table::try_from(flags)
        .map_err(|why| Failure::usage(format!("a path is no text: {why}")))?;
    let settings = Settings::gather(shared.config.as_deref(), flags)?;
    runtime(Some(role))?.block_on(until_a_signal(role, settings))
}

async fn until_a_signal(role: Role, settings: Settings) -> Outcome {
    let shutdown = Shutdown::listen()
        .map_err(|why| Failure::failed(format!("signals cannot be caught: {why}")))?;
    let running = serve::start(role, settings).await?;
    line(&format!("{} listens at {}", running.name, running.address))?;
    let signal = shutdown.requested(running.tasks()).await;
    say(format_args!("{}: {signal}, draining", running.name));
    running.drain().await;
    Ok(())
}
