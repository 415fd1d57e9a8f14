//! What commands print and how they exit, against a real cluster.

#![allow(clippy::unwrap_used)] // Helpers of tests are no tests to the lint.

mod support;

use std::net::UdpSocket;
use std::path::Path;

use milonga_host::Clock;
use milonga_host::certificates::{self, Pair, Validity};
use milonga_wire::Role;
use support::{Dev, SMALL, milonga, run};

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

/// Scripts decide by these names and numbers.
#[test]
fn commands_print_the_json_that_scripts_rely_on() {
    let dev = Dev::start(&SMALL);
    for listed in dev.processes() {
        for key in ["name", "role", "pid", "address", "dir"] {
            assert!(listed.get(key).is_some(), "{key} in {listed}");
        }
    }

    let appended = dev
        .run(&["log", "append", "a", "--stream", "s", "-o", "json"])
        .done()
        .json();
    assert_eq!(
        (&appended["appended"], &appended["first"], &appended["last"]),
        (&1.into(), &0.into(), &0.into())
    );
    dev.run(&["log", "append", "b"]).done();
    let read = dev
        .run(&["log", "read", "0..10", "-o", "json"])
        .done()
        .lines();
    assert_eq!(read.len(), 2);
    assert_eq!(read[0]["data"], "YQ==");
    for key in ["position", "kind", "term", "streams", "stamp", "data"] {
        assert!(read[0].get(key).is_some(), "{key} in {}", read[0]);
    }
    let stream = dev
        .run(&["log", "read", "0..", "--stream", "s", "--raw"])
        .done();
    assert_eq!(stream.out, "a\n");
    let beyond = dev.run(&["log", "read", "7", "-o", "json"]).done().json();
    assert_eq!(beyond["kind"], "unwritten");
    dev.run(&["log", "read", "7", "--raw"])
        .refused(5, &["unwritten"]);

    let status = dev.run(&["cluster", "status", "-o", "json"]).done().json();
    for key in [
        "term",
        "end",
        "settled",
        "trimmed",
        "layout_servers",
        "sequencer",
        "segments",
        "units",
        "health",
        "issues",
    ] {
        assert!(status.get(key).is_some(), "{key} in {status}");
    }
    assert_eq!(status["health"], "ok", "{status}");
    for key in ["name", "address", "state", "term", "highest", "bytes"] {
        assert!(
            keys(&status["units"][0]).contains(&key),
            "{key} in {status}"
        );
    }
    assert_eq!(
        status["segments"][0]["chains"][0].as_array().unwrap().len(),
        2
    );

    let rebuilt = dev
        .run(&["cluster", "rebuild-sequencer", "-o", "json"])
        .done()
        .json();
    assert!(rebuilt["term"].as_u64().unwrap() > status["term"].as_u64().unwrap());
    let layouts = dev
        .run(&["cluster", "layouts", "-o", "json"])
        .done()
        .lines();
    assert_eq!(layouts[0]["change"], "the first layout");

    dev.run(&["log", "append", "c"]).done();
    let filled = dev.run(&["log", "fill", "0", "-o", "json"]).done().json();
    assert_eq!(filled["outcome"], "data");
    dev.run(&["log", "fill", "1000"])
        .refused(4, &["beyond the end"]);
    let trimmed = dev.run(&["log", "trim", "1", "-o", "json"]).done().json();
    assert_eq!(trimmed["trimmed"], 1);
    let read = dev
        .run(&["log", "read", "0..", "-o", "json"])
        .done()
        .lines();
    assert_eq!(read[0]["kind"], "trimmed");
    let stat = dev
        .run(&["log", "stat", "--interval", "10ms", "-o", "json"])
        .done()
        .json();
    assert_eq!(stat["trimmed"], 1);
}

#[test]
fn keys_are_put_compared_scanned_and_carried_to_another_map() {
    let dev = Dev::start(&SMALL);
    dev.run(&["kv", "get", "k"])
        .refused(5, &["no map `default`"]);
    // Who only looks makes nothing.
    assert_eq!(dev.run(&["log", "end"]).done().out, "0\n");
    let put = dev
        .run(&["kv", "put", "k", "v", "-o", "json"])
        .done()
        .json();
    let got = dev.run(&["kv", "get", "k", "-o", "json"]).done().json();
    assert_eq!(
        (&got["value"], &got["version"]),
        (&"v".into(), &put["position"])
    );
    dev.run(&["kv", "get", "nothing"]).refused(5, &["nothing"]);

    dev.run(&["kv", "cas", "k", "--expect", "v", "--new", "w"])
        .done();
    let lost = dev.run(&["kv", "cas", "k", "--absent", "--new", "x", "-o", "json"]);
    lost.refused(4, &["not expected"]);
    assert_eq!(lost.json()["conflict"]["key"], "k");
    let first = put["position"].to_string();
    let before = dev.run(&["kv", "get", "k", "--at", &first]).done();
    assert_eq!(before.out, "v\n");

    dev.run(&["kv", "put", "l", ""]).done();
    let scanned = dev
        .run(&["kv", "scan", "--prefix", "k", "-o", "json"])
        .done()
        .lines();
    assert_eq!(scanned.len(), 1);
    let exported = dev.run(&["kv", "export"]).done().out;
    let file = dev.file("export.jsonl");
    std::fs::write(&file, &exported).unwrap();
    let imported = dev
        .run(&["kv", "import", &file, "--map", "copy", "-o", "json"])
        .done();
    assert_eq!(imported.json()["imported"], 2);
    let copied = dev.run(&["kv", "get", "k", "--map", "copy"]).done();
    assert_eq!(copied.out, "w\n");
    dev.run(&["kv", "delete", "k"]).done();
    dev.run(&["kv", "get", "k"]).refused(5, &[]);
}

/// `then` is done if all conditions hold, else `else`, in several maps as one; a conflict is only what came in between.
#[test]
fn a_transaction_does_one_branch_in_all_maps() {
    let dev = Dev::start(&SMALL);
    dev.run(&["kv", "put", "stock", "1"]).done();
    let file = dev.file("order.json");
    let order = serde_json::json!({
        "if": [{"key": "stock", "value": "1"}, {"key": "closed", "absent": true}],
        "then": [
            {"put": {"key": "stock", "value": "0"}},
            {"get": {"key": "stock"}},
            {"put": {"key": "7", "value": "/w==", "encoding": "base64", "map": "orders"}},
        ],
        "else": [{"get": {"key": "stock"}}, {"get": {"key": "closed"}}],
    });
    std::fs::write(&file, order.to_string()).unwrap();
    let txn = ["kv", "txn", "-f", &file, "-o", "json"];
    let done = dev
        .run(&[&txn[..], &["--idempotency-key", "order 7"]].concat())
        .done()
        .json();
    assert_eq!(
        (&done["succeeded"], &done["attempts"]),
        (&true.into(), &1.into())
    );
    // It reads what it has written itself, at its own position.
    let own = &done["results"][1];
    assert_eq!(
        (&own["value"], &own["position"]),
        (&"0".into(), &done["position"])
    );
    let ordered = dev
        .run(&["kv", "get", "7", "--map", "orders", "-o", "json"])
        .done()
        .json();
    assert_eq!(
        (&ordered["value"], &ordered["encoding"]),
        (&"/w==".into(), &"base64".into())
    );
    assert_eq!(ordered["version"], done["position"]);

    let other = dev.run(&txn).done().json();
    assert_eq!(
        (&other["succeeded"], &other["position"]),
        (&false.into(), &serde_json::Value::Null)
    );
    assert_eq!(other["results"][0]["value"], "0");
    assert_eq!(other["results"][1]["value"], serde_json::Value::Null);
    // The same order again, by another process that does not know: nothing is done twice.
    dev.run(&["kv", "put", "stock", "1"]).done();
    let again = dev
        .run(&[&txn[..], &["--idempotency-key", "order 7"]].concat())
        .done()
        .json();
    assert_eq!(
        (&again["repeated"], &again["position"]),
        (&true.into(), &done["position"])
    );
    assert_eq!(dev.run(&["kv", "get", "stock"]).done().out, "1\n");

    for (text, why) in [
        ("{\"iff\": []}", "unknown field `iff`"),
        (
            "{\"if\": [{\"key\": \"k\"}]}",
            "expected one of `value`, `version`, `absent` and `exists`",
        ),
        (
            "{\"then\": [{\"put\": {\"key\": \"k\", \"value\": \"?\", \"encoding\": \"base64\"}}]}",
            "order.json",
        ),
        ("then", "expected"),
    ] {
        std::fs::write(&file, text).unwrap();
        dev.run(&txn).refused(1, &[why]);
    }
    dev.run(&["kv", "txn", "-f", "no such file"])
        .refused(1, &["no such file"]);
}

/// What has an idempotency key is done once, whoever gives it again; a compare and set says again what it said.
#[test]
fn writes_with_an_idempotency_key_are_done_once() {
    let dev = Dev::start(&SMALL);
    let put = |value: &str| {
        let again = ["--idempotency-key", "a", "-o", "json"];
        dev.run(&[&["kv", "put", "k", value][..], &again].concat())
            .done()
            .json()
    };
    let (first, second) = (put("v"), put("w"));
    assert_eq!(second["position"], first["position"]);
    assert_eq!(
        (first.get("repeated"), &second["repeated"]),
        (None, &true.into())
    );
    assert_eq!(dev.run(&["kv", "get", "k"]).done().out, "v\n");

    let cas = |key: &str, expect: &str, new: &str| {
        dev.run(&[
            "kv",
            "cas",
            "k",
            "--expect",
            expect,
            "--new",
            new,
            "--idempotency-key",
            key,
        ])
    };
    cas("b", "nothing", "x").refused(4, &["not expected"]);
    cas("c", "v", "x").done();
    cas("c", "v", "y").done();
    assert_eq!(dev.run(&["kv", "get", "k"]).done().out, "x\n");
    cas("b", "x", "z").refused(4, &["not expected"]);
    let delete = ["kv", "delete", "k", "--idempotency-key", "c"];
    dev.run(&delete).done();
    assert_eq!(dev.run(&["kv", "get", "k"]).done().out, "x\n");
}

/// A lock is held by one; what is written by a fence of before does not take place.
#[test]
fn a_lock_is_held_by_one_and_its_fence_keeps_others_from_writing() {
    let dev = Dev::start(&SMALL);
    dev.run(&["lock", "show", "l"]).refused(5, &["no lock `l`"]);
    let acquire = |owner: &str, lease: &str| {
        let asked = ["lock", "acquire", "l", "--owner", owner, "--lease", lease];
        dev.run(&[&asked[..], &["-o", "json"]].concat())
    };
    acquire("a", "10ms").refused(1, &["at least 1s"]);
    let held = acquire("a", "1s").done().json();
    let fence = format!("l@{}", held["fence"]);
    let refused = acquire("b", "30s");
    refused.refused(4, &["held by a since"]);
    assert_eq!(refused.json()["conflict"]["owner"], "a");
    dev.run(&["kv", "put", "k", "by a", "--fence", &fence])
        .done();

    // Nobody renews it: whoever waits gets it when the lease is over.
    let run = ["lock", "run", "l", "--owner", "b", "--lease", "30s", "--"];
    let shown = dev.run(&[&run[..], &["sh", "-c", "echo $MILONGA_FENCE"]].concat());
    let newer = shown.done().out.trim().to_owned();
    assert_ne!(newer, fence);
    dev.run(&["kv", "put", "k", "late", "--fence", &fence])
        .refused(4, &["not held by that fence"]);
    let again = acquire("c", "30s").done().json();
    let again = format!("l@{}", again["fence"]);
    let late = ["kv", "put", "k", "late", "--fence", &newer];
    dev.run(&late).refused(4, &["not held by that fence"]);
    dev.run(&["kv", "put", "k", "by c", "--fence", &again])
        .done();
    assert_eq!(dev.run(&["kv", "get", "k"]).done().out, "by c\n");
    assert_eq!(
        dev.run(&["lock", "show", "l", "-o", "json"]).done().json()["owner"],
        "c"
    );
    let number = again.trim_start_matches("l@");
    dev.run(&["lock", "renew", "l", number]).done();
    dev.run(&["lock", "release", "l", number]).done();
    dev.run(&["lock", "renew", "l", number])
        .refused(4, &["by nobody"]);
    dev.run(&["lock", "show", "l"]).refused(5, &["nobody"]);
    dev.run(&["kv", "put", "k", "v", "--fence", "l"])
        .refused(2, &["LOCK@POSITION"]);
    let fails = dev.run(&[&run[..], &["sh", "-c", "exit 3"]].concat());
    fails.refused(1, &["ended with"]);
}

/// What lies before a snapshot may be trimmed; a map, and its history from there on, are as they were.
#[test]
fn a_map_outlives_the_trim_of_what_its_snapshot_holds() {
    let dev = Dev::start(&SMALL);
    dev.run(&["kv", "put", "k", "v"]).done();
    dev.run(&["kv", "put", "l", "v"]).done();
    dev.run(&["kv", "put", "l", "w"]).done();
    let snapshot = dev.run(&["kv", "snapshot", "-o", "json"]).done().json();
    let export = dev.run(&["kv", "export"]).done().out;
    dev.run(&["kv", "snapshot", "--map", "none"])
        .refused(5, &["no map `none`"]);
    assert_eq!(snapshot["as_of"], 4);
    let at = ["kv", "export", "--at", "3"];
    assert_eq!(dev.run(&at).done().out, export);
    dev.run(&["kv", "get", "k", "--at", "1"]).done();
}

/// Findings of an operator start here.
#[test]
fn every_server_serves_metrics_and_says_whether_it_is_ready() {
    use std::io::{Read, Write};
    let dev = Dev::start(&SMALL);
    dev.run(&["log", "append", "x"]).done();
    let ask = |name: &str, path: &str| {
        let mut stream = std::net::TcpStream::connect(dev.address(name)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    for (name, metric) in [
        ("layout-1", "milonga_term"),
        ("sequencer-1", "milonga_sequencer_tokens_total"),
        ("unit-1", "milonga_logunit_writes_total"),
    ] {
        assert!(ask(name, "/livez").starts_with("HTTP/1.1 200"), "{name}");
        assert!(ask(name, "/readyz").starts_with("HTTP/1.1 200"), "{name}");
        let metrics = ask(name, "/metrics");
        assert!(metrics.contains(metric), "{name}: {metrics}");
    }
}

/// A figure is printed with what it is compared to.
#[test]
fn a_bench_prints_figures_with_their_ratio_to_bare_servers() {
    let dev = Dev::start(&SMALL);
    let dir = dev.file("");
    let short = [
        "--rounds",
        "1",
        "--records",
        "200",
        "--warm-up",
        "10ms",
        "--dir",
        &dir,
        "-o",
        "json",
    ];
    for bench in ["append", "token"] {
        let report = dev
            .run(&[&["bench", bench], &short[..]].concat())
            .done()
            .json();
        for key in [
            "ops",
            "seconds",
            "ops_per_s",
            "mb_per_s",
            "latency_us",
            "errors",
            "ratio",
            "concurrency",
        ] {
            assert!(report.get(key).is_some(), "{key} in {report}");
        }
        for key in ["p50", "p90", "p99", "p999", "max"] {
            assert!(report["latency_us"].get(key).is_some(), "{key} in {report}");
        }
        assert_eq!(report["errors"], 0, "{report}");
    }
    dev.run(&[
        "bench",
        "read",
        "--rounds",
        "1",
        "--records",
        "200",
        "--among",
        "1000",
    ])
    .done();
}

/// A watcher and a follower print what comes, as it comes.
#[test]
fn a_follower_prints_a_record_that_is_appended_while_it_waits() {
    use std::io::{BufRead, BufReader};
    let dev = Dev::start(&SMALL);
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
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    for text in ["first", "second"] {
        dev.run(&["log", "append", text]).done();
        assert_eq!(lines.next().unwrap().unwrap(), text);
    }
    follower.kill().unwrap();
    follower.wait().unwrap();
}

/// Runs a follower with the cursor `c` until it has printed `wanted`, and the cursor is behind that.
fn followed(dev: &Dev, wanted: &[&str], behind: u64) {
    use std::io::{BufRead, BufReader};
    let mut follower = milonga()
        .args(["--cluster", &dev.file("milonga.toml"), "log", "follow"])
        .args(["--cursor", "c", "--from", "0", "--raw"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    for text in wanted {
        assert_eq!(lines.next().unwrap().unwrap(), *text);
    }
    let place = || dev.run(&["cursor", "get", "c", "-o", "json"]);
    while place().json()["position"].as_u64() < Some(behind) {}
    follower.kill().unwrap();
    follower.wait().unwrap();
}

/// Each follower with a cursor goes on where the last one stopped; its moves are no entries to follow.
#[test]
fn a_follower_with_a_cursor_goes_on_where_the_last_one_stopped() {
    let dev = Dev::start(&SMALL);
    dev.feed(&["log", "append", "--lines", "-"], b"a\nb\n")
        .done();
    dev.run(&["cursor", "set", "c", "0", "--absent"]).done();
    followed(&dev, &["a", "b"], 2);
    dev.feed(&["log", "append", "--lines", "-"], b"c\nd\n")
        .done();
    followed(&dev, &["c", "d"], 6);

    let at = dev.run(&["cursor", "get", "c", "-o", "json"]).done().json();
    let version = at["version"].to_string();
    dev.run(&["cursor", "set", "c", "9", "--absent"])
        .refused(4, &["cursor `c` is at"]);
    dev.run(&["cursor", "set", "c", "1", "--expect-version", &version])
        .done();
    let late = ["cursor", "delete", "c", "--expect-version", &version];
    dev.run(&late).refused(4, &["nothing was changed"]);
    assert_eq!(dev.run(&["cursor", "list"]).done().out, "c 1\n");
    dev.run(&["cursor", "delete", "c"]).done();
    dev.run(&["cursor", "get", "c"])
        .refused(5, &["no cursor `c`"]);
}

/// Design 12: every refusal is typed and says what was wrong; nothing acknowledged is affected.
#[test]
fn callers_without_the_right_certificate_are_refused_and_random_bytes_hurt_nobody() {
    let dev = Dev::start(&SMALL);
    dev.run(&["log", "append", "kept"]).done();

    dev.run_as("reader.toml", &["log", "append", "x"])
        .refused(1, &["a reader certificate may not"]);
    assert_eq!(
        dev.run_as("reader.toml", &["log", "read", "0", "--raw"])
            .done()
            .out,
        "kept\n"
    );
    dev.run_as("writer.toml", &["log", "trim", "1"])
        .refused(1, &["a writer certificate may not"]);
    foreign_cluster_file(&dev);
    dev.run_as("foreign.toml", &["--deadline", "1s", "log", "append", "x"])
        .refused(3, &["authority"]);
    expired_cluster_file(&dev);
    dev.run_as("expired.toml", &["log", "end"])
        .refused(1, &["expired", "certs issue"]);

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for name in ["unit-1", "sequencer-1", "layout-1"] {
        for seed in 0..200_u32 {
            let noise: Vec<u8> = (0..1_200_u32)
                .map(|n| (n.wrapping_mul(2_654_435_761) ^ seed) as u8)
                .collect();
            socket.send_to(&noise, dev.address(name)).unwrap();
        }
    }
    dev.run(&["log", "append", "after the noise"]).done();
    assert_eq!(
        dev.run(&["log", "read", "0..", "--raw"]).done().out,
        "kept\nafter the noise\n"
    );
}

/// A cluster file like the admin's, with a certificate of another authority.
fn foreign_cluster_file(dev: &Dev) {
    let certs = dev.file("foreign");
    run(&["certs", "init", "--dir", &certs]).done();
    run(&[
        "certs", "issue", "--dir", &certs, "--role", "admin", "--name", "admin",
    ])
    .done();
    let text = std::fs::read_to_string(dev.file("milonga.toml")).unwrap();
    std::fs::write(dev.file("foreign.toml"), text.replace("certs/", "foreign/")).unwrap();
}

/// The same, with a certificate of the right authority that is over.
fn expired_cluster_file(dev: &Dev) {
    let ca = dev.dir().join("certs");
    let leaf = expired(&ca, Role::Admin, "late");
    write_pair(&ca, "late", &leaf);
    let text = std::fs::read_to_string(dev.file("milonga.toml")).unwrap();
    std::fs::write(
        dev.file("expired.toml"),
        text.replace("certs/admin", "certs/late"),
    )
    .unwrap();
}

fn expired(ca: &Path, role: Role, name: &str) -> Pair {
    let authority = Pair {
        certificate: std::fs::read_to_string(ca.join("ca.pem")).unwrap(),
        key: std::fs::read_to_string(ca.join("ca.key")).unwrap(),
    };
    let valid = Validity {
        from_ms: Clock::real().wall_ms() - 3 * 86_400_000,
        days: 1,
    };
    certificates::new_leaf(&authority, role, &name.parse().unwrap(), &[], valid).unwrap()
}

fn write_pair(dir: &Path, name: &str, pair: &Pair) {
    std::fs::write(dir.join(format!("{name}.pem")), &pair.certificate).unwrap();
    std::fs::write(dir.join(format!("{name}.key")), &pair.key).unwrap();
}

/// Design 12, at the start of a server: non-zero exit and one clear sentence.
#[test]
fn servers_that_cannot_start_say_why_in_one_sentence() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let certs = path("certs");
    run(&["certs", "init", "--dir", &certs]).done();
    for (name, role) in [
        ("unit-1", "server"),
        ("unit-2", "logunit"),
        ("app", "writer"),
    ] {
        run(&[
            "certs", "issue", "--dir", &certs, "--role", role, "--name", name,
        ])
        .done();
    }
    let busy = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = busy.local_addr().unwrap().to_string();
    let unit = |name: &str, dir: &str, listen: &str, more: &[&str]| {
        let args = [
            "logunit", "--name", name, "--dir", dir, "--listen", listen, "--certs", &certs,
        ];
        run(&[&args, more].concat())
    };
    let dir = path("data");

    run(&["logunit", "--colour", "red"]).refused(2, &["--colour"]);
    run(&["log", "append"]).refused(2, &["nothing to append"]);
    run(&["logunit", "--name", "unit-1"]).refused(1, &["is missing"]);
    let config = path("bad.toml");
    std::fs::write(&config, "name = \"unit-1\"\ncolour = \"red\"\n").unwrap();
    run(&["logunit", "--config", &config]).refused(1, &["colour", "bad.toml"]);
    run(&["logunit", "--config", &path("none.toml")]).refused(1, &["none.toml"]);
    unit("unit-1", &dir, &taken, &[]).refused(1, &["in use by another program"]);
    unit("unit-2", &dir, "127.0.0.1:0", &[]).refused(1, &["unit-1"]);
    unit("unit-3", &dir, "127.0.0.1:0", &[]).refused(1, &["unit-3.pem"]);
    unit("app", &path("other"), "127.0.0.1:0", &[]).refused(1, &["writer", "--role server"]);
    unit("unit-1", &dir, "127.0.0.1:0", &["--file-bytes", "7"]).refused(1, &["file-bytes"]);
    let stranger = format!("{certs}/unit-2.pem");
    let key = format!("{certs}/unit-2.key");
    unit(
        "unit-1",
        &dir,
        "127.0.0.1:0",
        &["--cert", &stranger, "--key", &key],
    )
    .refused(1, &["unit-2", "expected `unit-1`"]);
    let late = expired(Path::new(&certs), Role::LogUnit, "late");
    write_pair(Path::new(&certs), "late", &late);
    unit("late", &path("other"), "127.0.0.1:0", &[]).refused(1, &["expired"]);
    std::fs::create_dir(path("photos")).unwrap();
    std::fs::write(home.path().join("photos/a.jpg"), "x").unwrap();
    unit("unit-1", &path("photos"), "127.0.0.1:0", &[]).refused(1, &["photos"]);
}

#[test]
fn a_second_dev_cluster_on_the_same_directory_is_refused() {
    let mut dev = Dev::start(&SMALL);
    let dir = dev.file("");
    run(&["dev", "--dir", &dir]).refused(1, &["another `milonga dev` runs"]);
    dev.tell("restart", "unit-9", &[])
        .refused(5, &["unit-9", "unit-1"]);
    let unit = dev.run(&["inspect", &dev.file("unit-1")]);
    unit.refused(1, &["in use"]);
    assert_eq!(dev.interrupt(), 0);
    run(&["dev", "--dir", &dir, "--chains", "3"]).refused(1, &["holds a cluster of 1 chains"]);
    let inspected = run(&["inspect", &dev.file("unit-1"), "-o", "json"])
        .done()
        .json();
    assert_eq!(inspected["violations"], serde_json::json!([]));
    run(&["dev", "--dir", &dir, "stop", "unit-1"]).refused(1, &["no `milonga dev` runs"]);
}
