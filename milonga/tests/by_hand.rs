//! Every command that changes the layout, on real processes: shown first, then made, with records appended in between;
//! and the refusals.

#![allow(clippy::unwrap_used)] // Helpers of tests are no tests to the lint.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::Value;
use support::{Dev, milonga, run};
use tempfile::TempDir;

/// One chain of two units, one layout server, a standby.
const SHAPE: [&str; 10] = [
    "--chains",
    "1",
    "--replicas",
    "2",
    "--layout-servers",
    "1",
    "--standbys",
    "1",
    "--spares",
    "0",
];

/// Servers that are no part of the dev cluster's own plan.
struct Extras {
    home: TempDir,
    children: Vec<Child>,
}

impl Drop for Extras {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Extras {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let children = vec![];
        Self { home, children }
    }

    /// Starts a server with a certificate issued in `certs`, and says where it listens.
    fn start(&mut self, role: &str, name: &str, certs: &str, layout: &str) -> String {
        let issue = [
            "certs", "issue", "--dir", certs, "--role", "server", "--name", name,
        ];
        run(&issue).done();
        let mut command = milonga();
        command.args([role, "--name", name, "--certs", certs, "--layout", layout]);
        command.args(["--listen", "127.0.0.1:0"]);
        if role != "sequencer" {
            command.arg("--dir").arg(self.home.path().join(name));
        }
        if role == "logunit" {
            command.args(["--file-bytes", "33554432"]);
        }
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        self.children.push(child);
        let address = line.trim().rsplit(' ').next().unwrap();
        assert!(address.starts_with("127.0.0.1:"), "{name}: {line:?}");
        address.to_owned()
    }
}

/// A dev cluster, servers to add to it, and how many records were appended.
struct Bench {
    dev: Dev,
    extras: Extras,
    records: usize,
}

impl Bench {
    fn new(shape: &[&str]) -> Self {
        Self {
            dev: Dev::start(shape),
            extras: Extras::new(),
            records: 0,
        }
    }

    fn server(&mut self, role: &str, name: &str) -> String {
        let layout = self.dev.address("layout-1");
        self.extras
            .start(role, name, &self.dev.file("certs"), &layout)
    }

    fn append(&mut self, count: usize) {
        let lines: String = (0..count)
            .map(|line| format!("{}\n", self.records + line))
            .collect();
        let appended = self
            .dev
            .feed(&["log", "append", "--lines", "-"], lines.as_bytes());
        appended.done();
        self.records += count;
    }

    fn status(&self) -> Value {
        let status = self.dev.run(&["cluster", "status", "-o", "json"]);
        status.done().json()
    }

    /// How many layouts were made by hand: caretakers make some of their own.
    fn by_hand(&self) -> usize {
        let history = self.dev.run(&["cluster", "layouts", "-o", "json"]).done();
        let history = history.lines();
        history.iter().filter(|past| past["by"] == "admin").count()
    }

    fn term(&self) -> u64 {
        self.status()["term"].as_u64().unwrap()
    }

    /// Shows the change, which changes nothing; makes it, and appends.
    fn change(&mut self, args: &[&str]) -> Value {
        let before = self.by_hand();
        let command = [&["cluster"], args, &["-o", "json"]].concat();
        let shown = self.dev.run(&[&command[..], &["--plan"]].concat()).done();
        let shown = shown.json();
        assert_eq!(shown["plan"]["lost"], serde_json::json!([]), "{args:?}");
        for key in ["terms", "redundancy", "copies", "copy_bytes", "reach"] {
            assert!(shown["plan"].get(key).is_some(), "{key} in {shown}");
        }
        assert_eq!(self.by_hand(), before, "a plan changes nothing: {args:?}");
        let made = self.dev.run(&command).done().json();
        assert_eq!(made["term"], made["layout"]["term"]);
        self.append(3);
        made
    }

    #[track_caller]
    fn refuse(&self, code: i32, args: &[&str], words: &[&str]) {
        let refused = self.dev.run(&[&["cluster"], args].concat());
        refused.refused(code, words);
    }

    /// Every record is there once, in order.
    fn check(&self) {
        let read = self.dev.run(&["log", "read", "0..", "--raw"]).done();
        let expected: String = (0..self.records).map(|line| format!("{line}\n")).collect();
        assert_eq!(read.out, expected);
    }
}

/// The names of the units that take new positions, chain by chain.
fn open(made: &Value) -> Vec<Vec<String>> {
    let layout = &made["layout"];
    let name = |identity: &Value| {
        let mut units = layout["units"].as_array().unwrap().iter();
        let unit = units.find(|unit| unit["identity"] == *identity).unwrap();
        unit["name"].as_str().unwrap().to_owned()
    };
    let segments = layout["segments"].as_array().unwrap();
    let chains = segments.last().unwrap()["chains"]
        .as_array()
        .unwrap()
        .iter();
    let chains = chains.map(|chain| {
        chain["units"]
            .as_array()
            .unwrap()
            .iter()
            .map(name)
            .collect()
    });
    chains.collect()
}

/// Design 6.7: one command for each, all of them in one life of a cluster.
#[test]
fn every_change_by_hand_is_shown_and_then_made_and_loses_nothing() {
    let mut bench = Bench::new(&SHAPE);
    bench.append(40);
    let units: Vec<String> = (0..7)
        .map(|number| bench.server("logunit", &format!("e-{number}")))
        .collect();

    let made = bench.change(&["add-spare", &units[0], "--why", "one in reserve"]);
    assert_eq!(made["layout"]["spares"][0]["name"], "e-0");
    let made = bench.change(&["evict", "unit-2"]);
    assert_eq!(open(&made), [["unit-1", "e-0"]]);
    bench.dev.run(&["cluster", "heal", "--wait"]).done();
    let made = bench.change(&["replace", "unit-1", &units[1]]);
    assert_eq!(open(&made), [["e-1", "e-0"]]);
    let made = bench.change(&["heal"]);
    let closed = made["layout"]["segments"][0]["chains"][0]["units"].as_array();
    assert_eq!(closed.unwrap().len(), 2, "{made}");
    let made = bench.change(&["add-unit", "0", &units[2]]);
    assert_eq!(open(&made), [["e-1", "e-0", "e-2"]]);
    let made = bench.change(&["remove-unit", "e-2"]);
    assert_eq!(open(&made), [["e-1", "e-0"]]);
    let chain = format!("{},{}", units[3], units[4]);
    let made = bench.change(&["add-chain", &chain]);
    assert_eq!(open(&made), [["e-1", "e-0"], ["e-3", "e-4"]]);
    bench.change(&["set", "stripe-width=2"]);
    bench.append(20);
    let made = bench.change(&["remove-chain", "0"]);
    assert_eq!(open(&made), [["e-3", "e-4"]]);
    bench.change(&["set", "trust-restarted=never"]);
    bench.change(&["set", "trust-restarted=always"]);
    bench.change(&["set", "replicas=1"]);
    bench.change(&["set", "replicas=2"]);
    bench.change(&["add-spare", &units[5]]);
    let made = bench.change(&["drain", "e-4"]);
    assert_eq!(open(&made), [["e-3", "e-5"]]);
    bench.check();

    let made = bench.change(&["move-sequencer", "sequencer-2"]);
    assert_eq!(made["layout"]["sequencer"]["name"], "sequencer-2");
    bench.change(&["rebuild-sequencer"]);
    bench.change(&["remove-standby", "sequencer-1"]);
    let sequencer = bench.server("sequencer", "q-9");
    bench.change(&["add-standby", &sequencer]);
    let made = bench.change(&["move-sequencer", "q-9"]);
    assert_eq!(made["layout"]["standbys"][0]["name"], "sequencer-2");

    let (two, three) = (bench.server("layout", "l-2"), bench.server("layout", "l-3"));
    let set = format!("layout-1,{two},{three}");
    let made = bench.change(&["set-layout-servers", &set]);
    assert_eq!(
        made["layout"]["layout_servers"].as_array().unwrap().len(),
        3
    );
    // The cluster file still names the first one alone; without it the others decide.
    bench.change(&["rebuild-sequencer"]);
    let made = bench.change(&["set-layout-servers", "layout-1"]);
    assert_eq!(
        made["layout"]["layout_servers"].as_array().unwrap().len(),
        1
    );

    let history = bench.dev.run(&["cluster", "layouts", "-o", "json"]).done();
    let history = history.lines();
    assert!(
        history
            .iter()
            .any(|past| past["why"] == "one in reserve" && past["by"] == "admin")
    );
    assert!(
        history
            .iter()
            .any(|past| past["change"].as_str().unwrap().contains("stripes of 2"))
    );
    let text = bench
        .dev
        .run(&["cluster", "evict", "e-5", "--plan"])
        .done()
        .out;
    for words in [
        "nothing was changed",
        "COPIES NOW",
        "must be reached: layout-1",
    ] {
        assert!(text.contains(words), "{text}");
    }
    bench.check();
}

/// Design 12: typed, one sentence, with the exit code that scripts decide by.
#[test]
fn refused_changes_say_why_and_what_to_do() {
    let mut bench = Bench::new(&SHAPE);
    bench.append(5);
    let new = bench.server("logunit", "e-0");
    let used = bench.server("logunit", "e-1");
    bench.change(&["add-unit", "0", &used]);
    bench.change(&["remove-unit", "e-1"]);
    let foreign = bench.dev.file("elsewhere");
    run(&["certs", "init", "--dir", &foreign]).done();
    let layout = bench.dev.address("layout-1");
    let stranger = bench.extras.start("logunit", "e-2", &foreign, &layout);
    let term = bench.term();

    bench.refuse(5, &["evict", "unit-9"], &["unit-9", "unit-1, unit-2"]);
    bench.refuse(5, &["add-unit", "4", &new], &["no chain 4"]);
    bench.refuse(5, &["move-sequencer", "sequencer-9"], &["sequencer-2"]);
    bench.refuse(
        4,
        &["move-sequencer", "sequencer-1"],
        &["rebuild-sequencer"],
    );
    bench.refuse(
        4,
        &["add-unit", "0", &used],
        &["e-1", "not blank", "reset-unit"],
    );
    bench.refuse(
        3,
        &["add-unit", "0", &layout],
        &["may not serve as a log unit"],
    );
    bench.refuse(
        3,
        &["add-unit", "0", &stranger],
        &["of this cluster", "certificate"],
    );
    bench.refuse(4, &["remove-chain", "0"], &["the last one", "add-chain"]);
    bench.refuse(4, &["add-chain", "unit-1"], &["unit-1 serves in chain 0"]);
    bench.refuse(4, &["drain", "unit-1"], &["no spare answers", "add-spare"]);
    bench.refuse(2, &["replace", "unit-1", "unit-1"], &["by itself"]);
    bench.refuse(2, &["set", "stripe-width=0"], &["expected 1 to"]);
    bench.refuse(2, &["set", "colour=red"], &["stripe-width=N"]);
    bench.refuse(2, &["declare-lost", "0..3"], &["--yes-lose-data"]);
    bench.refuse(
        2,
        &["set-layout-servers", "layout-1,layout-1"],
        &["1, 3 or 5"],
    );
    bench.change(&["remove-unit", "unit-2"]);
    bench.refuse(
        4,
        &["evict", "unit-1"],
        &["only unit of chain 0", "add-unit 0"],
    );
    bench.refuse(4, &["remove-unit", "unit-1"], &["only unit of chain 0"]);
    let term = bench.term().max(term);

    let as_writer = bench.dev.run_as("writer.toml", &["cluster", "heal"]);
    as_writer.refused(1, &["a writer certificate", "role control"]);
    let forced = ["cluster", "evict", "unit-1", "--force-lose-data"];
    let as_control = bench.dev.run_as("control.toml", &forced);
    as_control.refused(1, &["a control certificate", "role admin"]);
    assert_eq!(bench.term(), term);
    bench.check();
}

/// P7: what may be lost is said first, and recorded.
#[test]
fn an_admin_gives_up_what_only_a_dead_unit_held() {
    let shape = [
        "--chains",
        "1",
        "--replicas",
        "1",
        "--layout-servers",
        "1",
        "--standbys",
        "0",
        "--spares",
        "1",
    ];
    let mut bench = Bench::new(&shape);
    bench.append(10);
    // Nothing is lost that a unit still holds.
    let declared = ["cluster", "declare-lost", "2..4", "--yes-lose-data"];
    bench.dev.run(&declared).done();
    bench.check();
    bench.dev.tell("stop", "unit-1", &["--kill"]).done();
    let evict = [
        "cluster",
        "evict",
        "unit-1",
        "--force-lose-data",
        "-o",
        "json",
    ];
    let shown = bench.dev.run(&[&evict[..], &["--plan"]].concat()).done();
    assert_eq!(shown.json()["plan"]["lost"], serde_json::json!(["0..10"]));
    bench
        .dev
        .run(&evict[..3])
        .refused(4, &["unit-1 cannot leave"]);

    let made = bench.dev.run(&evict).done();

    assert!(made.err.contains("lost for good"), "{made:?}");
    let made = made.json();
    assert_eq!(open(&made), [["unit-2"]]);
    assert_eq!(made["layout"]["lost"][0]["end"], 10);
    bench.dev.run(&["log", "append", "after"]).done();
    let read = bench.dev.run(&["log", "read", "0..", "-o", "json"]).done();
    let kinds: Vec<Value> = read
        .lines()
        .iter()
        .map(|line| line["kind"].clone())
        .collect();
    assert_eq!(kinds.len(), 11);
    assert!(kinds[..10].iter().all(|kind| kind == "junk"), "{kinds:?}");
    let status = bench.status();
    assert_eq!(status["health"], "ok", "{status}");
}
