//! Failures of the network between real processes, in network namespaces made by the test: cuts that only one client
//! sees, cuts of one way only, a link that flaps. Nobody is left out on one client's word, and nothing acknowledged is lost.
//!
//! Needs root and `ip`; each test says so and does nothing where it has not got them.

#![allow(clippy::unwrap_used)] // Helpers of tests are no tests to the lint.

mod support;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use milonga_client::{AppendError, Log, Position, Resumed};
use serde_json::Value;
use support::link::Slow;
use support::load::{Load, connect, is_full, layout, lists, names};
use support::net::{Net, Way};
use support::{Ran, milonga, run};
use tempfile::TempDir;

const LAYOUT: [&str; 3] = ["layout-1", "layout-2", "layout-3"];
const SEQUENCERS: [&str; 2] = ["sequencer-1", "sequencer-2"];
/// Three in a chain, and spares.
const UNITS: [&str; 5] = ["unit-1", "unit-2", "unit-3", "unit-4", "unit-5"];
/// Where clients run.
const CLIENTS: [&str; 4] = ["client-1", "client-2", "client-3", "office"];
const PORT: u16 = 7_000;
/// How long an append that cannot succeed is tried.
const SHORT: Duration = Duration::from_secs(5);
/// Half a period of a link that flaps, and how many of them.
const FLAP: (Duration, u32) = (Duration::from_secs(1), 20);

/// One cluster at a time: on a busy machine servers are in trouble that should not be.
static ALONE: Mutex<()> = Mutex::new(());

/// A cluster with every server in a namespace of its own.
struct Field {
    /// In this order: the processes end before their namespaces.
    children: Vec<Child>,
    net: Net,
    home: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Drop for Field {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Field {
    fn new() -> Option<Self> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = [&LAYOUT[..], &SEQUENCERS, &UNITS, &CLIENTS].concat();
        let mut field = Self {
            net: Net::new(&nodes)?,
            children: vec![],
            home: tempfile::tempdir().unwrap(),
            _alone: alone,
        };
        field.certify();
        for (role, names) in [
            ("layout", &LAYOUT[..]),
            ("sequencer", &SEQUENCERS),
            ("logunit", &UNITS),
        ] {
            for name in names {
                let child = field.serve(role, name);
                field.children.push(child);
            }
        }
        let (chain, spares) = UNITS.split_at(3);
        field
            .run(&[
                "cluster",
                "init",
                "--layout",
                &field.addresses(&LAYOUT),
                "--sequencer",
                &field.addresses(&SEQUENCERS[..1]),
                "--standby",
                &field.addresses(&SEQUENCERS[1..]),
                "--chain",
                &field.addresses(chain),
                "--spare",
                &field.addresses(spares),
            ])
            .done();
        Some(field)
    }

    /// Certificates for all, and the cluster files of clients.
    fn certify(&self) {
        let certs = self.text("certs");
        run(&["certs", "init", "--dir", &certs]).done();
        let servers = [&LAYOUT[..], &SEQUENCERS, &UNITS].concat();
        let servers = servers.iter().map(|name| ("server", *name));
        let clients = [
            ("control", "caretaker"),
            ("control", "control"),
            ("admin", "admin"),
            ("reader", "reader"),
        ];
        for (role, name) in servers.chain(clients) {
            let issue = ["certs", "issue", "--dir", &certs, "--role", role];
            run(&[&issue[..], &["--name", name]].concat()).done();
        }
        let layout: Vec<String> = LAYOUT
            .iter()
            .map(|name| format!("\"{}:{PORT}\"", self.net.host(name)))
            .collect();
        for name in ["control", "admin", "reader"] {
            let text = format!(
                "layout = [{}]\nca = \"certs/ca.pem\"\ncert = \"certs/{name}.pem\"\nkey = \"certs/{name}.key\"\n",
                layout.join(", ")
            );
            std::fs::write(self.file(&format!("{name}.toml")), text).unwrap();
        }
    }

    fn serve(&self, role: &str, name: &str) -> Child {
        let mut command = milonga();
        command.args([role, "--name", name, "--certs", &self.text("certs")]);
        command.args(["--listen", &format!("{}:{PORT}", self.net.host(name))]);
        command.args(["--layout", &self.addresses(&LAYOUT)]);
        // Whatever becomes of the test, its servers end with it.
        command.args(["--parent", &std::process::id().to_string()]);
        if role != "sequencer" {
            command.args(["--dir", &self.text(name)]);
        }
        if role == "logunit" {
            command.args(["--file-bytes", "33554432"]);
        }
        if role == "layout" {
            command.args(["--caretaker-cert", &self.text("certs/caretaker.pem")]);
            command.args(["--caretaker-key", &self.text("certs/caretaker.key")]);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = self.net.inside(name, || command.spawn().unwrap());
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert!(line.contains(&self.net.host(name)), "{name}: {line:?}");
        child
    }

    fn addresses(&self, names: &[&str]) -> String {
        let addresses = names
            .iter()
            .map(|name| format!("{}:{PORT}", self.net.host(name)));
        addresses.collect::<Vec<_>>().join(",")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    /// Runs a command with the admin's certificate, from the office.
    fn run(&self, args: &[&str]) -> Ran {
        let mut command = milonga();
        let command = command
            .arg("--cluster")
            .arg(self.file("admin.toml"))
            .args(args);
        let output = self.net.inside("office", || command.output());
        output.unwrap().into()
    }

    /// A client with a certificate of that name, on a node.
    fn client(&self, node: &str, name: &str) -> Log {
        let file = self.file(&format!("{name}.toml"));
        self.net.inside(node, || connect(&file))
    }

    /// Appending control clients on a node.
    fn load(&self, node: &str, clients: usize) -> Load {
        Load::start_in(&self.file("control.toml"), clients, self.net.door(node))
    }

    fn layouts(&self) -> Vec<Value> {
        let layouts = self.run(&["cluster", "layouts", "-o", "json"]);
        layouts.done().lines()
    }

    /// Whether `name` left a chain, ever. Then it has not come back since: who leaves once at most, leaves for good.
    fn left_for_good(&self, name: &str) -> bool {
        let layouts = self.layouts();
        let changes = layouts.iter().filter_map(|past| past["change"].as_str());
        let clauses = changes.flat_map(|change| change.split("; "));
        let mut is_gone = false;
        for clause in clauses.filter(|clause| clause.contains(name)) {
            let is_back = clause.ends_with("added") || clause.ends_with("ready");
            assert!(!(is_gone && is_back), "{layouts:?}");
            is_gone |= clause.ends_with("removed") || clause.contains("kept");
        }
        is_gone
    }

    /// Nothing is left to be done, and all units hold the same.
    fn is_well(&self) {
        let wait = ["cluster", "status", "--wait", "--deadline", "120s"];
        self.run(&wait).done();
        self.run(&["cluster", "verify"]).done();
    }
}

/// H29: three control clients are cut off from one server each: one does not reach it, one does not hear it, one neither. They
/// are the only ones in trouble, so nothing is sealed and nobody is left out; what they could not finish is told once they can.
#[tokio::test]
async fn a_client_that_alone_is_cut_off_from_a_server_changes_nothing() {
    let Some(field) = Field::new() else { return };
    let lonely: Vec<Log> = CLIENTS[..3]
        .iter()
        .map(|node| field.client(node, "control"))
        .collect();
    let load = field.load("office", 2);
    load.goes_on(10).await;
    let reader = field.client("office", "reader");
    let mut records: Vec<(Position, String)> = vec![];
    for (number, log) in lonely.iter().enumerate() {
        let record = format!("before {number}");
        let position = log.append(record.clone(), &[]).await.unwrap();
        records.push((position, record));
    }
    let before = field.layouts();

    for victims in [["unit-1", "unit-2", "unit-3"], ["sequencer-1"; 3]] {
        let record = |number| format!("{victims:?} cut off: {number}");
        let cuts: Vec<Way<'_>> = CLIENTS
            .iter()
            .zip(victims)
            .enumerate()
            .flat_map(|(number, (client, server))| {
                let ways = [Way::Between(client, server), Way::Between(server, client)];
                let ways = ways.into_iter().enumerate();
                ways.filter(move |(way, _)| number == 2 || number == *way)
                    .map(|(_, way)| way)
            })
            .collect();
        for cut in &cuts {
            field.net.cut(*cut);
        }
        let tries = lonely.iter().enumerate().map(|(number, log)| {
            let (log, record) = (log.with_deadline(SHORT), record(number));
            async move { log.append(record, &[]).await }
        });
        let tried = join_all(tries).await;
        load.goes_on(10).await;
        assert_eq!(field.layouts(), before, "{victims:?}");
        for cut in &cuts {
            field.net.mend(*cut);
        }
        for ((number, log), outcome) in lonely.iter().enumerate().zip(tried) {
            let record = record(number);
            let position = match outcome.expect_err("it reached a server that was cut off") {
                AppendError::Unknown { saved, .. } => match log.resume(&saved).await.unwrap()[..] {
                    [(_, Resumed::Appended(position))] => position,
                    [(_, Resumed::NotAppended)] => log.append(record.clone(), &[]).await.unwrap(),
                    ref other => panic!("{other:?}"),
                },
                AppendError::NotAppended { .. } => log.append(record.clone(), &[]).await.unwrap(),
                error @ AppendError::Partly { .. } => panic!("{error}"),
            };
            records.push((position, record));
        }
    }

    let told = load.stop();
    field.is_well();
    assert_eq!(field.layouts(), before);
    told.all_acknowledged();
    told.is_in(&reader).await;
    for (position, record) in records {
        let entry = reader.read(position).await.unwrap();
        assert_eq!(entry.payload().unwrap(), record.as_bytes());
    }
}

/// H29: a unit that hears nobody, and one that nobody hears, are in trouble for all alike: each is left out once, a spare takes
/// its place, and when it is back it is not believed.
#[tokio::test]
async fn a_unit_that_is_cut_off_one_way_from_everybody_is_replaced_once() {
    let Some(field) = Field::new() else { return };
    let load = field.load("client-1", 3);
    let reader = field.client("office", "reader");
    load.goes_on(20).await;
    for (victim, way) in [
        ("unit-1", Way::To("unit-1")),
        ("unit-3", Way::From("unit-3")),
    ] {
        field.net.cut(way);
        load.goes_on(20).await;
        let what = format!("full strength without {victim}");
        layout(&reader, &what, |layout| {
            !lists(layout, victim) && is_full(layout)
        })
        .await;
        field.net.mend(way);
        load.goes_on(20).await;
        load.told().is_in(&reader).await;
    }
    let told = load.stop();
    field.is_well();
    told.all_acknowledged();
    told.is_all_of(&reader).await;
    let newest = reader.newest_layout().await.unwrap();
    assert_eq!(names(&newest.layout), [["unit-2", "unit-4", "unit-5"]]);
    for victim in ["unit-1", "unit-3"] {
        assert!(field.left_for_good(victim), "{:?}", field.layouts());
    }
}

/// Issue of flapping links: one second down, one second up, and again: at most one change a minute for it.
#[tokio::test]
async fn a_link_that_flaps_costs_its_unit_at_most_one_eviction() {
    let Some(field) = Field::new() else { return };
    let load = field.load("client-1", 3);
    let reader = field.client("office", "reader");
    load.goes_on(20).await;
    let clock = reader.host().clock.clone();
    for half in 0..FLAP.1 {
        field.net.link("unit-2", half % 2 == 1);
        clock.sleep(FLAP.0).await;
    }
    load.goes_on(20).await;
    let told = load.stop();
    field.is_well();
    told.all_acknowledged();
    told.is_all_of(&reader).await;
    let left = UNITS.iter().filter(|unit| field.left_for_good(unit));
    let left: Vec<&str> = left.copied().collect();
    assert!(
        left.is_empty() || left == ["unit-2"],
        "{:?}",
        field.layouts()
    );
}

/// A unit behind a slow link is healthy: nobody leaves it out, appends wait for it, and are as quick as before once the link is.
#[tokio::test]
async fn a_unit_behind_a_slow_link_is_not_left_out() {
    let Some(field) = Field::new() else { return };
    let load = field.load("client-1", 3);
    let reader = field.client("office", "reader");
    load.goes_on(20).await;
    let before = field.layouts();
    for (unit, delay_ms) in [("unit-2", 50), ("unit-3", 150)] {
        let slow = Slow {
            delay: Duration::from_millis(delay_ms),
            ..Slow::default()
        };
        let Some(link) = field.net.slow(unit, slow) else {
            return;
        };
        load.goes_on(20).await;
        assert!(link.carried() > 100, "{}", link.carried());
        drop(link);
        load.goes_on(20).await;
    }
    assert_eq!(field.layouts(), before);
    let told = load.stop();
    field.is_well();
    assert_eq!(field.layouts(), before);
    told.all_acknowledged();
    told.is_all_of(&reader).await;
}

/// Clients behind a slow link that loses packets append and read, and suspect nobody for it.
#[tokio::test]
async fn clients_behind_a_slow_and_lossy_link_append_and_read_and_change_nothing() {
    let Some(field) = Field::new() else { return };
    let load = field.load("client-1", 3);
    let reader = field.client("client-1", "reader");
    load.goes_on(20).await;
    let before = field.layouts();
    let slow = Slow {
        delay: Duration::from_millis(20),
        jitter: Duration::from_millis(5),
        lost: 10,
    };
    let Some(link) = field.net.slow("client-1", slow) else {
        return;
    };
    for _ in 0..4 {
        load.goes_on(25).await;
        load.told().is_in(&reader).await;
    }
    assert_eq!(field.layouts(), before);
    assert!(link.carried() > 100, "{}", link.carried());
    drop(link);
    load.goes_on(20).await;
    let told = load.stop();
    field.is_well();
    assert_eq!(field.layouts(), before);
    told.all_acknowledged();
    told.is_all_of(&reader).await;
}
