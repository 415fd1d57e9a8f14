//! A `milonga dev` under test: real processes, one of which looks after the others.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long everything may take to be whole again after a fault.
const WHOLE_WITHIN: &str = "120s";

/// A server, as the cluster lists it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) role: String,
    pid: Option<u32>,
}

/// The cluster. It ends with this.
pub(super) struct Cluster {
    program: PathBuf,
    dir: PathBuf,
    child: Child,
}

impl Cluster {
    /// Starts two chains of three, three layout servers with caretakers, and standbys for all of them.
    pub(super) async fn start(program: &Path, dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let said = dir.join("dev.log");
        let mut child = Command::new(program)
            .arg("dev")
            .arg("--dir")
            .arg(dir)
            .args(["--chains", "2", "--replicas", "3", "--layout-servers", "3"])
            .args(["--standbys", "1", "--spares", "1", "--steady-ms", "2000"])
            // Whatever becomes of this process, its cluster ends with it.
            .args(["--parent", &std::process::id().to_string()])
            .env_remove("MILONGA_CLUSTER")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&said)?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).await?;
        }
        if line.trim() != "ready" {
            let said = std::fs::read_to_string(&said).unwrap_or_default();
            bail!("no cluster: {}", said.lines().next_back().unwrap_or("?"));
        }
        Ok(Self {
            program: program.to_owned(),
            dir: dir.to_owned(),
            child,
        })
    }

    /// The cluster file for a role.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The servers.
    pub(super) fn servers(&self) -> Result<Vec<Server>> {
        let text = std::fs::read_to_string(self.dir.join("processes.json"))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Sends a signal to a server, if it runs.
    pub(super) fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        let servers = self.servers()?;
        let server = servers.iter().find(|server| server.name == name);
        signal_to(server.and_then(|server| server.pid), signal)
    }

    /// Starts a server again.
    pub(super) async fn restart(&self, name: &str) -> Result<()> {
        let dir = self.dir.as_os_str();
        let args = ["dev", "restart", name, "--kill", "--dir"];
        let args = args.iter().map(std::ffi::OsStr::new).chain([dir]);
        self.run(args.collect()).await
    }

    /// Waits until nothing is left to be done.
    pub(super) async fn is_whole(&self) -> Result<()> {
        let file = self.file("milonga.toml");
        let args = ["cluster", "status", "--wait", "--deadline", WHOLE_WITHIN];
        let args = args.iter().map(std::ffi::OsStr::new);
        let args = args.chain(["--cluster".as_ref(), file.as_os_str()]);
        self.run(args.collect()).await
    }

    /// Lets every server finish what it accepted.
    pub(super) async fn stop(mut self) -> Result<()> {
        signal_to(self.child.id(), Signal::TERM)?;
        self.child.wait().await?;
        Ok(())
    }

    /// Compares all units, entry by entry and stream by stream.
    pub(super) async fn verify(&self) -> Result<()> {
        let file = self.file("milonga.toml");
        let args = ["cluster", "verify", "--cluster"];
        let args = args.iter().map(std::ffi::OsStr::new);
        self.run(args.chain([file.as_os_str()]).collect()).await
    }

    async fn run(&self, args: Vec<&std::ffi::OsStr>) -> Result<()> {
        let mut command = Command::new(&self.program);
        let command = command.args(&args).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            bail!("{args:?}: {}", String::from_utf8_lossy(&said));
        }
        Ok(())
    }
}

/// Sends a signal to a process of this one's own, or of its cluster's.
pub(super) fn signal_to(pid: Option<u32>, signal: Signal) -> Result<()> {
    let pid = pid.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    Ok(kill_process(pid.context("it does not run")?, signal)?)
}
