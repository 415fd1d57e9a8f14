//! The client processes: one of each slot at a time, and after a kill the next.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use milonga_host::{Clock, Random};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::cluster::signal_to;

/// How long a client process may take to end: longer than any of its operations goes on.
const END_WITHIN: Duration = Duration::from_secs(120);

/// How they are started.
pub(super) struct Plan {
    /// This program.
    pub(super) program: PathBuf,
    /// The cluster files; processes take them in turn.
    pub(super) clusters: Vec<PathBuf>,
    /// Where their histories go.
    pub(super) histories: PathBuf,
    /// How many clients each has; one entry for each process.
    pub(super) clients: Vec<u64>,
    /// How many keys a map has.
    pub(super) keys: u64,
}

/// All of them. They end with this.
pub(super) struct Processes {
    plan: Plan,
    random: Random,
    started: AtomicU64,
    slots: Mutex<Vec<Slot>>,
}

#[derive(Default)]
struct Slot {
    child: Option<Child>,
    histories: Vec<PathBuf>,
    /// How many operations were answered, by the processes before and by this one.
    before: u64,
    answered: Arc<AtomicU64>,
}

impl Processes {
    /// Starts all.
    pub(super) fn start_all(plan: Plan, random: Random) -> Result<Self> {
        let slots = plan.clients.iter().map(|_| Slot::default()).collect();
        let all = Self {
            plan,
            random,
            started: AtomicU64::new(0),
            slots: Mutex::new(slots),
        };
        for slot in 0..all.plan.clients.len() {
            all.start(slot)?;
        }
        Ok(all)
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many slots there are.
    pub(super) fn count(&self) -> u64 {
        self.plan.clients.len() as u64
    }

    /// How many were started.
    pub(super) fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// How many operations were answered, as far as is known.
    pub(super) fn answered(&self) -> u64 {
        let slots = self.slots();
        let answered = slots
            .iter()
            .map(|slot| slot.before + slot.answered.load(Ordering::Relaxed));
        answered.sum()
    }

    /// Starts the next one of a slot.
    pub(super) fn start(&self, slot: usize) -> Result<()> {
        let plan = &self.plan;
        let process = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        let history = plan.histories.join(format!("{slot}-{process}.history"));
        let said = plan.histories.join(format!("{slot}-{process}.log"));
        let first: u64 = plan.clients[..slot].iter().sum();
        let mut command = Command::new(&plan.program);
        command
            .arg("client")
            .arg("--cluster")
            .arg(&plan.clusters[slot % plan.clusters.len()])
            .arg("--history")
            .arg(&history)
            .args(["--process", &process.to_string()])
            .args(["--first", &(first + 1).to_string()])
            .args(["--clients", &plan.clients[slot].to_string()])
            .args(["--keys", &plan.keys.to_string()])
            .args(["--seed", &self.random.next().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&said)?)
            .kill_on_drop(true);
        let mut slots = self.slots();
        let slot = &mut slots[slot];
        if let Some(before) = slot.histories.last() {
            command.arg("--before").arg(before);
        }
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("it has an output")?;
        slot.before += slot.answered.load(Ordering::Relaxed);
        slot.answered = Arc::default();
        slot.child = Some(child);
        slot.histories.push(history);
        let answered = Arc::clone(&slot.answered);
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(count) = line.parse() {
                    answered.store(count, Ordering::Relaxed);
                }
            }
        });
        Ok(())
    }

    /// Fails if one has ended by itself: it says why.
    pub(super) fn all_run(&self) -> Result<()> {
        for slot in self.slots().iter_mut() {
            if let Some(child) = &mut slot.child
                && let Some(status) = child.try_wait()?
            {
                let said = slot.histories.last().map(|path| path.with_extension("log"));
                let said = said.and_then(|path| std::fs::read_to_string(path).ok());
                bail!("a client ended ({status}): {}", said.unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Kills the one of a slot, without a word of warning.
    pub(super) async fn kill(&self, slot: usize) -> Result<()> {
        let child = self.slots()[slot].child.take();
        let mut child = child.context("it runs")?;
        child.start_kill()?;
        child.wait().await?;
        Ok(())
    }

    /// Sends a signal to the one of a slot.
    pub(super) fn signal(&self, slot: usize, signal: Signal) -> Result<()> {
        let pid = self.slots()[slot].child.as_ref().and_then(Child::id);
        signal_to(pid, signal)
    }

    /// Lets all of them read everything once more, and end.
    pub(super) async fn finish(&self) -> Result<()> {
        let mut children: Vec<Child> = {
            let mut slots = self.slots();
            let children = slots.iter_mut().filter_map(|slot| slot.child.take());
            children.collect()
        };
        let clock = Clock::real();
        for child in &mut children {
            drop(child.stdin.take());
        }
        for mut child in children {
            let status = clock.within(END_WITHIN, child.wait()).await;
            let status = status.context("a client does not end")??;
            if !status.success() {
                bail!("a client ended: {status}");
            }
        }
        Ok(())
    }
}
