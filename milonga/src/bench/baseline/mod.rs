//! What the same machine does with nothing in between: bare servers in processes of their own, over the same transport.
//!
//! ```text
//! this process (client) ─▶ echo        round trips: `ping` is one at a time
//!                       ─▶ write ×n    each: crc, one write, one fdatasync for all that came, then all answers
//! path: echo (as the sequencer), then every write node in turn
//! ```
//! No index, no terms, no write-once check, no entries' heads, no chains: what is lost against it is what they cost.
//! `…-tasks` means one task per operation, as in a client library; without, one driver moves every operation.

mod disk;
mod frames;
mod link;
mod node;
mod path;

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use milonga_host::quic::{Transport, TransportOptions};
use milonga_host::{CredentialFiles, Credentials, Host, Peer, PeerKind, certificates};
use milonga_wire::{Role, ServerName};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

pub use node::{NodeArgs, node};

use super::figures::{Latency, Line, Report};
use super::meter::{Plan, Sample};
use super::{BaselineArgs, BenchError};
use node::NodeKind;

/// Days that the throw-away certificates are good for.
const DAYS: u32 = 2;

/// What of the machine is measured.
#[derive(Copy, Clone, Debug)]
pub(super) enum Probe {
    /// Round trips to one process.
    Echo {
        /// Bytes of a request.
        asked: u32,
        /// Bytes of an answer.
        answered: u32,
    },
    /// The bare append path, with that many payload bytes.
    Path {
        /// Payload bytes.
        bytes: u32,
    },
}

impl Probe {
    /// The least: 16 bytes, answered by 8.
    pub(super) const ECHO: Self = Self::Echo {
        asked: 16,
        answered: 8,
    };
}

/// Who moves an operation on.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Moved {
    /// Its own task.
    ByTasks,
    /// Whoever reads the answers.
    ByDriver,
}

/// Bare servers that run, and this process's end of the network to them. They end when this is dropped.
pub(super) struct Bare {
    host: Host,
    transport: Transport,
    echo: Peer,
    units: Vec<Peer>,
    _children: Vec<Child>,
    _folder: tempfile::TempDir,
}

impl Bare {
    /// Starts an echo process and `units` processes that write to a folder in `dir`.
    pub(super) async fn start(host: &Host, dir: &Path, units: usize) -> Result<Self, BenchError> {
        let failed = |error: &dyn std::error::Error| BenchError::Baseline(error.to_string());
        let folder = tempfile::Builder::new()
            .prefix(".milonga-bench-")
            .tempdir_in(dir)
            .map_err(|error| failed(&error))?;
        let certs = folder.path();
        certificates::create_authority(certs, &host.clock, &host.random, DAYS, false)
            .map_err(|error| failed(&error))?;
        let mut children = vec![];
        let mut peers = vec![];
        let kinds = std::iter::once(NodeKind::Echo).chain((0..units).map(|_| NodeKind::Write));
        for (number, kind) in kinds.enumerate() {
            let name = format!("bare-{number}");
            let files = credential_files(host, certs, Role::Server, &name)?;
            let (child, address) = spawn(kind, &name, certs, &files).await?;
            children.push(child);
            peers.push(Peer {
                name: Some(server_name(&name)),
                address: address.parse().map_err(|error| failed(&error))?,
                kind: PeerKind::Any,
            });
        }
        let files = credential_files(host, certs, Role::Writer, "client")?;
        let credentials = Credentials::load(&files, &host.clock).map_err(|error| failed(&error))?;
        let (clock, random) = (host.clock.clone(), host.random.clone());
        let options = TransportOptions::default();
        let transport = Transport::bind(options, credentials, clock, random, &host.tasks)
            .map_err(|error| failed(&error))?;
        let units = peers.split_off(1);
        Ok(Self {
            host: host.clone(),
            transport,
            echo: peers.remove(0),
            units,
            _children: children,
            _folder: folder,
        })
    }

    /// One round by tasks: what a client library is compared with.
    pub(super) async fn measure(
        &self,
        probe: Probe,
        concurrency: u32,
        plan: Plan,
    ) -> Result<Sample, BenchError> {
        self.measure_moved(probe, concurrency, plan, Moved::ByTasks)
            .await
    }

    /// One round.
    pub(super) async fn measure_moved(
        &self,
        probe: Probe,
        concurrency: u32,
        plan: Plan,
        moved: Moved,
    ) -> Result<Sample, BenchError> {
        let route = match probe {
            Probe::Echo { asked, answered } => {
                path::Route::echo(&self.transport, &self.echo, asked, answered).await
            }
            Probe::Path { bytes } => {
                path::Route::append(&self.transport, &self.echo, &self.units, bytes).await
            }
        };
        let route = Arc::new(route.map_err(BenchError::Baseline)?);
        let sample = match moved {
            Moved::ByTasks => path::by_tasks(&self.host, &route, concurrency, plan).await,
            Moved::ByDriver => path::by_driver(&self.host, &route, concurrency, plan).await,
        };
        sample.map_err(BenchError::Baseline)
    }
}

/// Everything, one line each.
pub(super) async fn table(host: &Host, args: &BaselineArgs) -> Result<Report, BenchError> {
    let bare = Bare::start(host, &args.dir, args.replicas as usize).await?;
    let plan = Plan {
        warm_up: args.warm_up,
        lasts: args.seconds,
        operations: None,
    };
    let mut lines = vec![];
    let ping = bare
        .measure_moved(Probe::ECHO, 1, plan, Moved::ByDriver)
        .await?;
    lines.push(line("ping", 16, 1, &ping));
    for (asked, answered) in [(16, 8), (128, 128)] {
        let probe = Probe::Echo { asked, answered };
        for concurrency in args.concurrency.iter().copied() {
            for (what, moved) in [("echo", Moved::ByDriver), ("echo-tasks", Moved::ByTasks)] {
                let sample = bare.measure_moved(probe, concurrency, plan, moved).await?;
                lines.push(line(what, asked, concurrency, &sample));
            }
        }
    }
    for size in args.size.iter().copied() {
        for group in [1, 16, 64, 256, 1024] {
            let sample = disk::measure(host, &args.dir, size, group, plan)
                .map_err(|error| BenchError::Baseline(error.to_string()))?;
            lines.push(line("sync", size, group, &sample));
        }
    }
    let mut whole = None;
    for bytes in args.size.iter().copied() {
        let probe = Probe::Path { bytes };
        for concurrency in args.concurrency.iter().copied() {
            for (what, moved) in [("path", Moved::ByDriver), ("path-tasks", Moved::ByTasks)] {
                let sample = bare.measure_moved(probe, concurrency, plan, moved).await?;
                lines.push(line(what, bytes, concurrency, &sample));
                whole = Some((sample, bytes, concurrency));
            }
        }
    }
    let Some((sample, bytes, concurrency)) = whole else {
        let why = "give at least one --size and one --concurrency".to_owned();
        return Err(BenchError::Baseline(why));
    };
    Ok(Report {
        bench: "baseline",
        replicas: Some(args.replicas as usize),
        concurrency,
        lines,
        ..Report::of(&sample).sized(bytes, 1)
    })
}

fn line(what: &'static str, size: u32, concurrency: u32, sample: &Sample) -> Line {
    Line {
        what,
        size,
        concurrency,
        ops_per_s: sample.per_second(),
        client_cpu_us: sample.cpu_us(),
        latency_us: Latency::of(sample),
    }
}

fn server_name(name: &str) -> ServerName {
    name.parse()
        .expect("letters, digits and a hyphen are a name")
}

fn credential_files(
    host: &Host,
    dir: &Path,
    role: Role,
    name: &str,
) -> Result<CredentialFiles, BenchError> {
    let issued = certificates::issue(dir, role, &server_name(name), &[], &host.clock, DAYS, false)
        .map_err(|error| BenchError::Baseline(error.to_string()))?;
    Ok(CredentialFiles {
        certificate: issued.certificate,
        key: issued.key,
        authorities: issued.authority,
    })
}

/// This very program, as a bare server. It ends when its stdin does: with this process, however that ends.
async fn spawn(
    kind: NodeKind,
    name: &str,
    dir: &Path,
    files: &CredentialFiles,
) -> Result<(Child, String), BenchError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        BenchError::Baseline(format!("a bare server {what}: {error}"))
    };
    let program = std::env::current_exe().map_err(|error| failed("has no program", &error))?;
    let mut child = Command::new(program)
        .arg("bench-node")
        .arg(kind.as_str())
        .arg("--ca")
        .arg(&files.authorities)
        .arg("--cert")
        .arg(&files.certificate)
        .arg("--key")
        .arg(&files.key)
        .arg("--dir")
        .arg(dir.join(name))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed("did not start", &error))?;
    let stdout = child.stdout.take().expect("it was asked for");
    let first = BufReader::new(stdout).lines().next_line().await;
    match first {
        Ok(Some(address)) => Ok((child, address)),
        Ok(None) => Err(failed("ended at once", &"its message is above")),
        Err(error) => Err(failed("said nothing", &error)),
    }
}
