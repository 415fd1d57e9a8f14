//! A user who gets everything wrong: each mistake is answered by one clear sentence and the right exit code, and costs
//! nobody anything.

#![allow(clippy::unwrap_used)] // Helpers of tests are no tests to the lint.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use support::{Dev, Ran, SMALL, milonga, run};

/// The limit of a record.
const RECORD_BYTES_MAX: usize = 1 << 20;

fn signal(pid: i64, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

impl Dev {
    fn pid(&self, name: &str) -> i64 {
        let listed = self.processes();
        let entry = listed.iter().find(|entry| entry["name"] == name).unwrap();
        entry["pid"].as_i64().unwrap()
    }
}

/// Nothing is asked of a cluster for these.
#[test]
fn a_command_line_that_makes_no_sense_is_bad_usage() {
    for args in [
        &["log", "append", "x", "--deadline", "0s"][..],
        &["log", "append", "x", "--deadline", "nonsense"],
        &["log", "append", "x", "-o", "yaml"],
        &["log", "append", "x", "--colour", "red"],
        &["log", "append", "x", "--lines", "-"],
        &["log", "append", "--resume", "nonsense"],
        &["log", "append", "x", "--stream", ""],
        &["log", "read", "5..3"],
        &["log", "read", "18446744073709551616"],
        &["kv", "cas", "k", "--absent", "--expect", "v", "--new", "w"],
        &["kv", "cas", "k", "--new", "w"],
        &["kv", "get", "k", "--at", "1", "--stale"],
        &["certs", "issue", "--role", "king", "--name", "k"],
        &["completions", "nosh"],
        &["dev", "--chains", "0"],
        &["dev", "--layout-servers", "2"],
        &["dev", "--port-base", "80000"],
    ] {
        let ran = run(args);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{args:?}: {ran:?}");
        assert!(ran.err.starts_with("error: "), "{args:?}: {ran:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["completions", shell]).done().out.contains("milonga"));
    }
}

/// Ports and shapes that cannot work leave nothing behind that a second attempt would stumble over.
#[test]
fn a_dev_cluster_that_cannot_start_says_so_at_once() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("d").to_str().unwrap().to_owned();
    let dev = |args: &[&str]| run(&[&["dev", "--dir", &dir], args].concat());
    let held = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().port().min(65_000).to_string();
    let _held = std::net::UdpSocket::bind(("127.0.0.1", taken.parse().unwrap()));

    dev(&["--port-base", "65530"]).refused(2, &["--port-base 1 to 65523"]);
    dev(&["--port-base", &taken]).refused(1, &[&taken, "in use", "another --port-base"]);
    dev(&["--stripe-width", "0"]).refused(2, &["stripes of 0"]);
    dev(&["stop", "unit-1"]).refused(1, &["no `milonga dev` runs"]);
}

/// Every key of every server, in its file and as a flag; what is wrong is named, on one line.
#[test]
fn a_bad_key_of_any_server_is_named_with_its_file() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("bad.toml");
    let config = file.to_str().unwrap().to_owned();
    for server in ["layout", "sequencer", "logunit"] {
        for (text, words) in [
            ("colour = 1\n", &["unknown field `colour`"][..]),
            ("name = 7\n", &["`name`"]),
            ("name = \"x\n", &["line 1"]),
            ("certs = 7\n", &["`certs` is 7", "path"]),
            ("any_key = 1\n", &["`any_key`", "try `any-key`"]),
        ] {
            std::fs::write(&file, text).unwrap();
            let ran = run(&[server, "--config", &config]);
            ran.refused(1, &[words, &["bad.toml"]].concat());
            assert_eq!(ran.err.lines().count(), 1, "{ran:?}");
        }
        run(&[server, "--colour", "red"]).refused(2, &["--colour"]);
        run(&[server, "--name", "x"]).refused(1, &["is missing"]);
    }
    for (server, flag, value) in [
        ("layout", "reports-max", "0"),
        ("layout", "opinion-ms", "0"),
        ("sequencer", "streams-max", "1"),
        ("sequencer", "confirm-ms", "0"),
        ("logunit", "queue-bytes-max", "1"),
    ] {
        let args = [server, "--name", "x", "--listen", "127.0.0.1:1"];
        let more = ["--layout", "127.0.0.1:1", &format!("--{flag}"), value];
        run(&[&args[..], &more].concat()).refused(1, &[&format!("`{flag}`")]);
    }
}

/// Roles are in certificates, and a file that is no certificate is named.
#[test]
fn a_server_under_another_kinds_certificate_or_on_its_directory_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let certs = path("certs");
    run(&["certs", "init", "--dir", &certs]).done();
    for (name, role) in [
        ("u", "logunit"),
        ("s", "sequencer"),
        ("l", "layout"),
        ("any", "server"),
    ] {
        run(&[
            "certs", "issue", "--dir", &certs, "--role", role, "--name", name,
        ])
        .done();
    }
    let start = |server: &str, name: &str, dir: &str, more: &[&str]| -> Ran {
        let args = [
            server,
            "--name",
            name,
            "--listen",
            "203.0.113.1:1",
            "--certs",
            &certs,
        ];
        let layout = ["--layout", "127.0.0.1:1"];
        let dir = if server == "sequencer" {
            vec![]
        } else {
            vec!["--dir", dir]
        };
        run(&[&args[..], &layout, &dir, more].concat())
    };
    for (server, name, role) in [
        ("sequencer", "u", "logunit"),
        ("layout", "u", "logunit"),
        ("logunit", "s", "sequencer"),
        ("logunit", "l", "layout"),
    ] {
        start(server, name, &path("none"), &[])
            .refused(1, &[role, "may not serve", "--role server"]);
    }
    let key = path("certs/u.key");
    start("logunit", "u", &path("none"), &["--cert", &key]).refused(1, &["u.key", "certificate"]);
    run(&["certs", "show", &key]).refused(1, &["u.key"]);

    // Each formats its directory before it finds that the address is not this machine's.
    start("logunit", "any", &path("unit"), &[]).refused(1, &["203.0.113.1"]);
    start("layout", "any", &path("layout"), &[]).refused(1, &["203.0.113.1"]);
    start("logunit", "any", &path("layout"), &[]).refused(1, &["another kind of server"]);
    start("layout", "any", &path("unit"), &[]).refused(1, &["no layout server's"]);
}

/// A damaged directory exits 10, whoever's it is.
#[test]
fn directories_of_both_kinds_are_inspected() {
    let mut dev = Dev::start(&SMALL);
    dev.run(&["log", "append", "kept"]).done();
    assert_eq!(dev.interrupt(), 0);

    let unit = run(&["inspect", &dev.file("unit-1"), "-o", "json"])
        .done()
        .json();
    assert_eq!(
        (&unit["role"], &unit["checked"]),
        (&"logunit".into(), &1.into())
    );
    let layout = run(&["inspect", &dev.file("layout-1"), "-o", "json"])
        .done()
        .json();
    assert_eq!(
        (&layout["role"], &layout["term"]),
        (&"layout".into(), &0.into())
    );
    assert_eq!(layout["violations"], serde_json::json!([]));

    std::fs::create_dir(dev.dir().join("empty")).unwrap();
    run(&["inspect", &dev.file("empty")]).refused(5, &["empty"]);
    run(&["inspect", &dev.file("nowhere")]).refused(5, &["nowhere"]);
    run(&["inspect", &dev.file("certs")]).refused(1, &["no log unit's"]);
    run(&["inspect", &dev.file("milonga.toml")]).refused(1, &["milonga.toml"]);
    for file in ["layout-1/decided-00000000000000000000", "unit-1/identity"] {
        let path = dev.dir().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let dir = file.split('/').next().unwrap();
        run(&["inspect", &dev.file(dir)]).refused(10, &[dir]);
    }
}

/// Nothing that was acknowledged is harmed, and what was asked for and is not there is said, not left out.
#[test]
fn positions_and_records_out_of_bounds_are_refused_and_gaps_are_told() {
    let dev = Dev::start(&SMALL);
    let longest = vec![b'x'; RECORD_BYTES_MAX];
    let lines = [
        b"one\n\n",
        &longest[..],
        b"\nxy\r\n\xff\0\n",
        &longest,
        b"x\nnever\n",
    ]
    .concat();
    let file = dev.file("lines");
    std::fs::write(&file, &lines).unwrap();

    let stopped = dev.run(&["log", "append", "--lines", &file, "-o", "json"]);
    stopped.refused(1, &["line 6 of", "behind 5 lines", "split it"]);
    assert_eq!(
        (&stopped.json()["appended"], &stopped.json()["last"]),
        (&5.into(), &4.into())
    );
    assert_eq!(
        dev.run(&["log", "read", "0..2", "--raw"]).done().out,
        "one\n\n"
    );
    let kept = dev.run(&["log", "read", "4", "-o", "json"]).done().json();
    assert_eq!(kept["data"], "/wA=");

    dev.run(&["log", "trim", "99"])
        .refused(4, &["beyond the end"]);
    dev.run(&["log", "fill", "18446744073709551615"])
        .refused(4, &["beyond the end"]);
    dev.run(&["log", "follow", "--from", "18446744073709551615"])
        .refused(4, &["beyond the end 5"]);
    dev.run(&["kv", "put", "of the map", "v"]).done();
    dev.run(&["kv", "watch", "--from", "99"])
        .refused(4, &["beyond the end 7"]);
    let all = dev
        .run(&["log", "read", "3..18446744073709551615", "-o", "json"])
        .done();
    assert_eq!(all.lines().len(), 4);
    dev.run(&["kv", "put", &"k".repeat(70_000), "v"])
        .refused(1, &["limit is 65536"]);
    let big = serde_json::json!({"key": "big", "value": "x".repeat(RECORD_BYTES_MAX)});
    let imported = dev.file("import.jsonl");
    std::fs::write(
        &imported,
        format!("{{\"key\":\"a\",\"value\":\"b\"}}\n{big}\n"),
    )
    .unwrap();
    dev.run(&["kv", "import", &imported])
        .refused(1, &["line 2", "import.jsonl"]);
    dev.run(&["kv", "put", "", "v"]).done();
    assert_eq!(dev.run(&["kv", "get", ""]).done().out, "v\n");
    let saved = "01010101010101010101010101010101-1@0:9+1/7";
    dev.run(&["log", "append", "x", "--resume", saved])
        .refused(6, &[saved]);

    dev.run(&["log", "trim", "4"]).done();
    let read = dev.run(&["log", "read", "3..5", "--raw"]);
    assert!(
        read.err.contains("below position 4 is trimmed"),
        "{}",
        read.err
    );
    dev.run(&["log", "read", "3", "--raw"])
        .refused(5, &["trimmed"]);
    let end = dev.run(&["log", "end"]).done().out;
    dev.run(&["log", "trim", end.trim(), "--force"]).done();
    dev.run(&["kv", "watch", "--from", "0"])
        .refused(1, &["trimmed"]);

    dev.run_as("writer.toml", &["cluster", "rebuild-sequencer"])
        .refused(1, &["a writer certificate may not", "role control"]);
    let layout = dev.address("layout-1");
    let unit = dev.address("unit-1");
    let init = [
        "cluster",
        "init",
        "--layout",
        &layout,
        "--sequencer",
        &unit,
        "--chain",
        &unit,
    ];
    dev.run(&init).refused(4, &["not blank"]);
    dev.run(&["log", "append", "after all that"]).done();
}

/// A unit stands still, and nobody is there who may leave it out: a clear outcome within the deadline's order, and then all
/// goes on.
#[test]
fn a_unit_that_stands_still_costs_an_outcome_at_most() {
    let dev = Dev::start(&[&SMALL[..], &["--no-caretaker"]].concat());
    dev.run(&["log", "append", "before"]).done();
    signal(dev.pid("unit-2"), Signal::STOP);
    let held_up = ["--deadline", "3s", "log", "append", "held up", "-o", "json"];
    let unknown = dev.run_as("writer.toml", &held_up);
    signal(dev.pid("unit-2"), Signal::CONT);
    unknown.refused(6, &["--resume"]);
    let stamp = unknown.json()["stamp"].as_str().unwrap().to_owned();

    dev.run(&["log", "append", "held up", "--resume", &stamp])
        .done();
    dev.run(&["log", "append", "after"]).done();
    assert_eq!(
        dev.run(&["log", "read", "0..", "--raw"]).done().out,
        "before\nheld up\nafter\n"
    );
}

/// A unit stands still, and is left out. What it says when it comes back is believed by nobody.
#[test]
fn a_unit_that_stands_still_is_left_out() {
    let dev = Dev::start(&SMALL);
    dev.run(&["log", "append", "before"]).done();
    signal(dev.pid("unit-2"), Signal::STOP);
    dev.run(&["log", "append", "without it"]).done();
    signal(dev.pid("unit-2"), Signal::CONT);
    dev.run(&["log", "append", "after"]).done();
    assert_eq!(
        dev.run(&["log", "read", "0..", "--raw"]).done().out,
        "before\nwithout it\nafter\n"
    );
    dev.run(&["cluster", "verify"]).done();
}

/// What was begun is seen through, and the user is told how far it came.
#[test]
fn an_append_that_is_told_to_end_says_how_many_lines_are_in_the_log() {
    let dev = Dev::start(&SMALL);
    let mut child = milonga()
        .args([
            "--cluster",
            &dev.file("milonga.toml"),
            "log",
            "append",
            "--lines",
            "-",
            "-o",
            "json",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo\n").unwrap();
    let mut follower = milonga()
        .args([
            "--cluster",
            &dev.file("milonga.toml"),
            "log",
            "follow",
            "--from",
            "0",
            "--raw",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    for text in ["one", "two"] {
        assert_eq!(lines.next().unwrap().unwrap(), text);
    }
    signal(child.id().into(), Signal::TERM);

    let ran = Ran::from(child.wait_with_output().unwrap());
    ran.refused(1, &["behind 2 lines", "SIGTERM"]);
    assert_eq!(ran.json()["appended"], 2);
    drop(stdin);
    follower.kill().unwrap();
    follower.wait().unwrap();
}

/// The text format of Prometheus: every sample has a type and a help before it, and a number.
#[test]
fn every_server_serves_metrics_that_prometheus_reads() {
    let dev = Dev::start(&SMALL);
    dev.run(&["log", "append", "x"]).done();
    for name in ["layout-1", "sequencer-1", "unit-1"] {
        let mut stream = std::net::TcpStream::connect(dev.address(name)).unwrap();
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");

        let (mut helped, mut typed) = (vec![], vec![]);
        for line in body.lines().filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["#", "HELP", metric, ..] => helped.push(metric),
                ["#", "TYPE", metric, _] => typed.push(metric),
                _ => {
                    let (sample, number) = line.rsplit_once(' ').unwrap();
                    assert!(number.parse::<f64>().is_ok(), "{line}");
                    let metric = sample.split('{').next().unwrap();
                    let base = ["_bucket", "_sum", "_count"]
                        .iter()
                        .find_map(|end| metric.strip_suffix(end))
                        .filter(|base| typed.contains(base));
                    let base = base.unwrap_or(metric);
                    assert!(
                        typed.contains(&base) && helped.contains(&base),
                        "{name}: {line}"
                    );
                }
            }
        }
        assert!(typed.contains(&"milonga_term"), "{name}: {body}");
    }
}
