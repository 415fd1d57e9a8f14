//! A `milonga dev` that another command runs underneath itself.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::failure::{Failure, Outcome};

/// It ends with this.
pub(crate) struct Child {
    child: std::process::Child,
    dir: PathBuf,
}

impl Child {
    /// Starts it in `dir` with these arguments more, and waits until it is ready.
    pub(crate) fn start(dir: &Path, more: &[&str]) -> Outcome<Self> {
        let failed = |why| Failure::failed(format!("no cluster: {why}"));
        let program = std::env::current_exe().map_err(failed)?;
        std::fs::create_dir_all(dir).map_err(|why| Failure::file(dir, why))?;
        let log = dir.join("dev.log");
        let stderr = std::fs::File::create(&log).map_err(|why| Failure::file(&log, why))?;
        let mut child = Command::new(program)
            .arg("dev")
            .arg("--dir")
            .arg(dir)
            .args(["--parent", &std::process::id().to_string()])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .map_err(failed)?;
        let stdout = child.stdout.take();
        let cluster = Self {
            child,
            dir: dir.to_owned(),
        };
        let mut line = String::new();
        let read = stdout.map(|stdout| BufReader::new(stdout).read_line(&mut line));
        if matches!(read, Some(Ok(_))) && line.trim() == "ready" {
            return Ok(cluster);
        }
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let last = said.lines().next_back().unwrap_or("it said nothing");
        Err(Failure::failed(format!("no cluster: {last}")))
    }

    /// Where it is kept.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Kills every process there is, the one that looks after the others first, and starts again on what they left.
    pub(crate) fn start_anew(mut self) -> Outcome<Self> {
        let all = self.listed()?;
        let _ = self.child.kill();
        for pid in all.iter().filter_map(pid) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.child.wait();
        Self::start(&self.dir, &[])
    }

    /// Kills one server, without a word of warning.
    pub(crate) fn kill(&self, name: &str) -> Outcome {
        let listed = self.listed()?;
        let entry = listed.iter().find(|entry| entry["name"] == name);
        let pid = entry
            .and_then(pid)
            .ok_or_else(|| Failure::failed(format!("{name} does not run")))?;
        kill_process(pid, Signal::KILL)
            .map_err(|why| Failure::failed(format!("{name} cannot be killed: {why}")))
    }

    /// What `processes.json` says.
    fn listed(&self) -> Outcome<Vec<serde_json::Value>> {
        let file = self.dir.join("processes.json");
        let text = std::fs::read_to_string(&file).map_err(|why| Failure::file(&file, why))?;
        serde_json::from_str(&text).map_err(|why| Failure::file(&file, why))
    }
}

/// The process that an entry of it names.
fn pid(entry: &serde_json::Value) -> Option<Pid> {
    Pid::from_raw(i32::try_from(entry["pid"].as_i64()?).ok()?)
}

impl Drop for Child {
    fn drop(&mut self) {
        // One that has ended has given its number back.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}
