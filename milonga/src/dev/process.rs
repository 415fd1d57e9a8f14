//! One server as a process of its own: this very program, started as a child that dies with its parent.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use milonga_host::Clock;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use super::files::{config_file, log_file};
use super::plan::Planned;
use crate::failure::{Failure, Outcome};

/// How long a server may take to listen.
const START_WITHIN: Duration = Duration::from_secs(30);
/// How long it may take to drain before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// A running child.
pub(super) struct Process {
    child: Child,
    pub(super) pid: u32,
}

impl Process {
    /// Starts `server` and waits until it listens.
    pub(super) async fn start(dir: &Path, server: &Planned, clock: &Clock) -> Outcome<Self> {
        let mut child = spawn(dir, server)?;
        let pid = child.id().unwrap_or(0);
        let stdout = child.stdout.take();
        let listens = clock.within(START_WITHIN, first_line(stdout)).await;
        if matches!(listens, Ok(Some(_))) {
            return Ok(Self { child, pid });
        }
        let log = log_file(dir, server);
        let why = std::fs::read_to_string(&log).unwrap_or_default();
        let last = why.lines().next_back().unwrap_or("it said nothing");
        let last = last.strip_prefix("error: ").unwrap_or(last);
        Err(Failure::failed(format!(
            "{} did not start: {last}",
            server.name
        )))
    }

    /// Waits until it ends, and says how. May be asked again.
    pub(super) async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(why) => why.to_string(),
        }
    }

    /// Lets it drain, or not, and waits for its end.
    pub(super) async fn stop(mut self, kill: bool, clock: &Clock) {
        let signal = if kill { Signal::KILL } else { Signal::TERM };
        self.signal(signal);
        if clock.within(STOP_WITHIN, self.child.wait()).await.is_err() {
            self.signal(Signal::KILL);
            let _ = self.child.wait().await;
        }
    }

    /// The child was not waited for yet, so its id cannot be another's.
    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }
}

fn spawn(dir: &Path, server: &Planned) -> Outcome<Child> {
    let failed = |why| Failure::failed(format!("{} cannot be started: {why}", server.name));
    let program = std::env::current_exe().map_err(failed)?;
    let log = log_file(dir, server);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .map_err(|why| Failure::file(&log, why))?;
    Command::new(program)
        .arg(server.role.as_str())
        .arg("--config")
        .arg(config_file(dir, server))
        .args(["--parent", &std::process::id().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        // An interrupt from the terminal is for the parent: it drains the children.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)
}

/// What a server prints once it listens; none if it ends before.
async fn first_line(stdout: Option<ChildStdout>) -> Option<String> {
    let mut lines = BufReader::new(stdout?).lines();
    lines.next_line().await.ok().flatten()
}

/// When the process of that id was started, in ticks since the machine was: tells it from a later one with the same id.
pub(super) fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything; the start is the twentieth field behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let is_dead = matches!(state, "Z" | "X");
    fields.nth(18)?.parse().ok().filter(|_| !is_dead)
}

/// Ends what an earlier parent left behind, if it is still that process.
pub(super) async fn end_leftover(pid: u32, since: u64, clock: &Clock) {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(raw) = raw.filter(|_| started(pid) == Some(since)) else {
        return;
    };
    let _ = kill_process(raw, Signal::KILL);
    while started(pid) == Some(since) {
        clock.sleep(Duration::from_millis(2)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_was_started_once_and_the_first_one_is_another() {
        let me = std::process::id();
        assert!(started(me).is_some());
        assert_eq!(started(me), started(me));
        assert_ne!(started(me), started(1));
        assert_eq!(started(u32::MAX), None);
    }
}
