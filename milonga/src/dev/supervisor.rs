//! All servers of a dev cluster, started, watched and ended together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, pending};
use futures_util::stream::{FuturesUnordered, StreamExt};
use milonga_client::{ClusterConfig, Log, reconfigure};
use milonga_host::fs::FsDisk;
use milonga_host::{Clock, Disk, Random, Transport};
use serde::{Deserialize, Serialize};

use super::Care;
use super::files;
use super::plan::{Plan, Planned, Shape, write};
use super::process::{self, Process};
use super::thread::Thread;
use crate::failure::{Failure, Outcome};
use crate::output::json;
use crate::serve::Role;

/// How long a cluster may take to take appends.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long one attempt to learn the end may take.
const END_WITHIN: Duration = Duration::from_secs(2);
/// Between two attempts to get it there.
const PAUSE: Duration = Duration::from_millis(50);

/// How servers run.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(super) enum Mode {
    /// Each is a process of its own.
    Processes,
    /// Each is a thread of this process.
    Threads,
}

/// A line of `processes.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Listed {
    pub(super) name: String,
    role: Role,
    /// None while it is stopped.
    pub(super) pid: Option<u32>,
    address: String,
    dir: Option<PathBuf>,
    /// When it was started, as the machine counts: tells it from a later process with the same id.
    started: Option<u64>,
}

impl std::fmt::Display for Listed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, address, .. } = self;
        let pid = self.pid.map_or("-".to_owned(), |pid| pid.to_string());
        write!(f, "{name:<12} {address:<16} process {pid}")
    }
}

/// A server that runs.
enum Live {
    Process(Process),
    Thread(Thread),
}

impl Live {
    async fn ended(&mut self) -> String {
        match self {
            Self::Process(process) => process.ended().await,
            Self::Thread(thread) => thread.ended().await,
        }
    }

    async fn stop(self, kill: bool, clock: &Clock) {
        match self {
            Self::Process(process) => process.stop(kill, clock).await,
            Self::Thread(thread) => thread.stop(kill).await,
        }
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Process(process) => process.pid,
            Self::Thread(_) => std::process::id(),
        }
    }
}

/// One server of the plan, running or not.
struct Slot {
    planned: Planned,
    live: Option<Live>,
}

/// The cluster of one directory.
pub(super) struct Supervisor {
    dir: PathBuf,
    mode: Mode,
    plan: Plan,
    slots: Vec<Slot>,
    clock: Clock,
    /// Holds the directory, so that no second supervisor works on it.
    _lock: Arc<dyn Disk>,
}

impl Supervisor {
    /// Prepares the directory; nothing runs yet.
    pub(super) async fn open(
        dir: &Path,
        mode: Mode,
        shape: Option<Shape>,
        port_base: Option<u16>,
        care: Care,
    ) -> Outcome<Self> {
        let (clock, random) = (Clock::real(), Random::real());
        let disk = FsDisk::at(dir).map_err(|why| Failure::file(dir, why))?;
        disk.lock().map_err(|why| match why.kind() {
            std::io::ErrorKind::ResourceBusy => Failure::failed(format!(
                "another `milonga dev` runs on {}; stop it, or use another --dir",
                dir.display()
            )),
            _ => Failure::file(dir, why),
        })?;
        let dir = dir.canonicalize().map_err(|why| Failure::file(dir, why))?;
        end_leftovers(&dir, &clock).await;
        let plan = Plan::open(&dir, shape, port_base, &random)?;
        files::prepare(&dir, &plan, care, &clock, &random)?;
        let servers = plan.servers.iter().cloned();
        Ok(Self {
            slots: servers
                .map(|planned| Slot {
                    planned,
                    live: None,
                })
                .collect(),
            dir,
            mode,
            plan,
            clock,
            _lock: Arc::new(disk),
        })
    }

    /// Starts all servers, decides the first layout if there is none, and waits until appends work.
    pub(super) async fn start(&mut self) -> Outcome<(Log, Transport)> {
        let starts = self.slots.iter().map(|slot| self.launch(&slot.planned));
        let started = join_all(starts).await;
        for (slot, live) in self.slots.iter_mut().zip(started) {
            slot.live = Some(live?);
        }
        self.list()?;
        let config = ClusterConfig::load(&self.cluster_file())?;
        let (log, transport) = config.connect_with_transport()?;
        let began = self.clock.now();
        while let Err(failure) = self.make_ready(&log).await {
            if self.clock.now().since(began) > READY_WITHIN {
                return Err(failure.about("the cluster did not get ready"));
            }
            tracing::debug!(%failure, "not ready yet");
            self.clock.sleep(PAUSE).await;
        }
        Ok((log, transport))
    }

    /// Decides the first layout if there is none, and puts a term to work that lists every server as it runs now.
    async fn make_ready(&mut self, log: &Log) -> Outcome {
        if !self.plan.initialised {
            reconfigure::init(log, &self.plan.genesis()).await?;
            self.plan.initialised = true;
            self.plan.save(&self.dir)?;
        }
        reconfigure::mend(log, "the dev cluster was started", None).await?;
        log.with_deadline(END_WITHIN).end().await?;
        Ok(())
    }

    async fn launch(&self, planned: &Planned) -> Outcome<Live> {
        match self.mode {
            Mode::Processes => {
                let process = Process::start(&self.dir, planned, &self.clock).await;
                process.map(Live::Process)
            }
            Mode::Threads => Thread::start(&self.dir, planned).await.map(Live::Thread),
        }
    }

    /// The next server that ends by itself, and how; forever if none runs.
    pub(super) async fn next_end(&mut self) -> (String, String) {
        let running = self.slots.iter_mut().filter_map(|slot| {
            let live = slot.live.as_mut()?;
            let name = slot.planned.name.clone();
            Some(async move { (name, live.ended().await) })
        });
        let mut running: FuturesUnordered<_> = running.collect();
        match running.next().await {
            Some(end) => end,
            None => pending().await,
        }
    }

    /// Notes that a server has ended.
    pub(super) fn note_end(&mut self, name: &str) -> Outcome {
        if let Ok(slot) = self.slot(name) {
            slot.live = None;
        }
        self.list()
    }

    /// Whether none runs any more.
    pub(super) fn is_dead(&self) -> bool {
        self.slots.iter().all(|slot| slot.live.is_none())
    }

    /// Stops one server: it drains first, unless it is to be killed.
    pub(super) async fn stop_one(&mut self, name: &str, kill: bool) -> Outcome {
        let clock = self.clock.clone();
        if let Some(live) = self.slot(name)?.live.take() {
            live.stop(kill, &clock).await;
        }
        self.list()
    }

    /// Stops one server if it runs, and starts it again. Returns its process id.
    pub(super) async fn restart_one(&mut self, name: &str, kill: bool) -> Outcome<u32> {
        self.stop_one(name, kill).await?;
        let planned = self.slot(name)?.planned.clone();
        let live = self.launch(&planned).await?;
        let pid = live.pid();
        self.slot(name)?.live = Some(live);
        self.list()?;
        Ok(pid)
    }

    /// Drains all at once.
    pub(super) async fn stop_all(&mut self) -> Outcome {
        let live = self.slots.iter_mut().filter_map(|slot| slot.live.take());
        join_all(live.map(|live| live.stop(false, &self.clock))).await;
        self.list()
    }

    fn slot(&mut self, name: &str) -> Outcome<&mut Slot> {
        let names: Vec<&str> = self
            .plan
            .servers
            .iter()
            .map(|server| server.name.as_str())
            .collect();
        let unknown = format!(
            "there is no server `{name}`; expected one of {}",
            names.join(", ")
        );
        let slot = self.slots.iter_mut().find(|slot| slot.planned.name == name);
        slot.ok_or_else(|| Failure::new(crate::failure::Code::NotFound, unknown))
    }

    /// The cluster file for all commands.
    pub(super) fn cluster_file(&self) -> PathBuf {
        files::cluster_file(&self.dir)
    }

    /// The directory, absolute.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What runs now.
    pub(super) fn listed(&self) -> Vec<Listed> {
        self.slots.iter().map(|slot| self.entry(slot)).collect()
    }

    fn entry(&self, slot: &Slot) -> Listed {
        let Planned { name, role, .. } = &slot.planned;
        let pid = slot.live.as_ref().map(Live::pid);
        Listed {
            name: name.clone(),
            role: *role,
            pid,
            address: slot.planned.address(),
            dir: (*role != Role::Sequencer).then(|| self.dir.join(name)),
            started: pid.and_then(process::started),
        }
    }

    fn list(&self) -> Outcome {
        write(&processes_file(&self.dir), &(json(&self.listed()) + "\n"))
    }
}

/// Where the running processes are listed.
pub(super) fn processes_file(dir: &Path) -> PathBuf {
    dir.join("processes.json")
}

/// Servers outlive their parent only for a moment; but two of a kind must not run on one directory.
async fn end_leftovers(dir: &Path, clock: &Clock) {
    let text = std::fs::read_to_string(processes_file(dir)).unwrap_or_default();
    let listed: Vec<Listed> = serde_json::from_str(&text).unwrap_or_default();
    for entry in listed {
        if let (Some(pid), Some(since)) = (entry.pid, entry.started)
            && pid != std::process::id()
        {
            process::end_leftover(pid, since, clock).await;
        }
    }
}
