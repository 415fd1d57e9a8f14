//! Real processes for tests: the binary itself, and a dev cluster that ends with the test. Nothing here waits for time to
//! pass: a cluster is there when it says `ready`, a process is gone when it was waited for.

#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod field;
pub(crate) mod link;
pub(crate) mod load;
pub(crate) mod net;
pub(crate) mod volume;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// A cluster of the fewest servers that copy.
pub(crate) const SMALL: [&str; 10] = [
    "--chains",
    "1",
    "--replicas",
    "2",
    "--layout-servers",
    "1",
    "--standbys",
    "0",
    "--spares",
    "0",
];

/// The binary under test.
pub(crate) fn milonga() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_milonga"));
    command
        .env_remove("MILONGA_CLUSTER")
        .env_remove("MILONGA_LOG")
        .stdin(Stdio::null());
    command
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// The only line of JSON that it printed.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|why| panic!("{why}: {self:?}"))
    }

    /// Every line of JSON that it printed.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let lines = self.out.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// It was refused in one sentence that contains `words`, with that exit code.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        let last = self.err.lines().next_back().unwrap_or_default();
        if code != 2 {
            assert!(last.starts_with("error: "), "{self:?}");
        }
        for word in words {
            assert!(self.err.contains(word), "no `{word}` in {self:?}");
        }
    }

    /// It did what it was asked.
    #[track_caller]
    pub(crate) fn done(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            // Records may be any bytes.
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Runs the binary to its end.
pub(crate) fn run(args: &[&str]) -> Ran {
    milonga().args(args).output().unwrap().into()
}

/// A `milonga dev` and its directory.
pub(crate) struct Dev {
    home: TempDir,
    child: Child,
}

impl Dev {
    /// Starts a cluster in a new directory.
    pub(crate) fn start(shape: &[&str]) -> Self {
        Self::start_on(shape, &[])
    }

    /// The same, with the directories of some servers elsewhere.
    pub(crate) fn start_on(shape: &[&str], elsewhere: &[(&str, PathBuf)]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("d");
        for (name, path) in elsewhere {
            std::fs::create_dir_all(&dir).unwrap();
            std::os::unix::fs::symlink(path, dir.join(name)).unwrap();
        }
        let child = spawn(&dir, shape);
        Self { home, child }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.home.path().join("d")
    }

    /// A file in the directory, as text for a flag.
    pub(crate) fn file(&self, name: &str) -> String {
        self.dir().join(name).to_str().unwrap().to_owned()
    }

    /// Runs a command on this cluster.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.run_as("milonga.toml", args)
    }

    /// The same with the certificate of another cluster file.
    pub(crate) fn run_as(&self, file: &str, args: &[&str]) -> Ran {
        let output = milonga()
            .arg("--cluster")
            .arg(self.dir().join(file))
            .args(args)
            .output();
        output.unwrap().into()
    }

    /// Runs a command that is given `input`.
    pub(crate) fn feed(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut command = milonga();
        command
            .arg("--cluster")
            .arg(self.dir().join("milonga.toml"))
            .args(args);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input).unwrap();
        drop(stdin);
        child.wait_with_output().unwrap().into()
    }

    /// `dev restart` or `dev stop`.
    pub(crate) fn tell(&self, verb: &str, name: &str, flags: &[&str]) -> Ran {
        let dir = self.file("");
        run(&[&["dev", "--dir", &dir, verb, name], flags].concat())
    }

    /// What `processes.json` says.
    pub(crate) fn processes(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir().join("processes.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// The port of one server.
    pub(crate) fn address(&self, name: &str) -> String {
        let listed = self.processes();
        let entry = listed.iter().find(|entry| entry["name"] == name).unwrap();
        entry["address"].as_str().unwrap().to_owned()
    }

    /// Sends a signal to one server.
    pub(crate) fn signal(&self, name: &str, signal: Signal) {
        let listed = self.processes();
        let entry = listed.iter().find(|entry| entry["name"] == name).unwrap();
        let pid = i32::try_from(entry["pid"].as_i64().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Kills every process there is, the parent first or last.
    pub(crate) fn kill_all(&mut self, parent_first: bool) {
        let pids: Vec<i64> = self
            .processes()
            .iter()
            .filter_map(|entry| entry["pid"].as_i64())
            .collect();
        if parent_first {
            self.child.kill().unwrap();
        }
        for pid in pids {
            let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Starts on the same directory again.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(&self.dir(), &[]);
    }

    /// Ctrl-C, and how it ended.
    pub(crate) fn interrupt(&mut self) -> i32 {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `milonga dev` and waits until it is ready.
fn spawn(dir: &Path, shape: &[&str]) -> Child {
    let mut child = milonga()
        .arg("dev")
        .arg("--dir")
        .arg(dir)
        // Whatever becomes of the test, its cluster ends with it.
        .args(["--parent", &std::process::id().to_string()])
        .args(shape)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    if line != "ready\n" {
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        panic!("not ready: {line}{said}");
    }
    // Nobody reads on: a pipe that nobody reads would fill up.
    let mut stderr = child.stderr.take().unwrap();
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    child
}
