//! Leases of maps, between real processes of which some are killed.

#![allow(clippy::unwrap_used)] // Helpers of tests are no tests to the lint.

mod support;

use std::io::{BufRead, BufReader};

use support::{Dev, SMALL, milonga};

/// Keys that are bound to a lease are there while somebody renews it, and go as one: whoever has the map open sees to that.
#[test]
fn keys_go_with_the_lease_that_they_are_bound_to() {
    let dev = Dev::start(&SMALL);
    let json = |args: &[&str]| dev.run(&[args, &["-o", "json"]].concat());
    dev.run(&["kv", "lease", "list"])
        .refused(5, &["no map `default`"]);
    dev.run(&["kv", "lease", "grant", "--ttl", "10ms"])
        .refused(1, &["at least 1s"]);
    let granted = json(&["kv", "lease", "grant", "--ttl", "2s"]).done().json();
    assert_eq!(granted["ttl_ms"], 2_000);
    let lease = &granted["lease"].to_string();
    let renewing = |verb: &[&str]| {
        milonga()
            .args(["--cluster", &dev.file("milonga.toml"), "kv"])
            .args(verb)
            .args(["-o", "json"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut keeper = renewing(&["lease", "keep", lease]);
    let mut kept = BufReader::new(keeper.stdout.take().unwrap()).lines();
    kept.next().unwrap().unwrap();

    let put = |key: &str, more: &[&str]| dev.run(&[&["kv", "put", key, "v"], more].concat());
    put("a", &["--lease", lease]).done();
    put("b", &["--lease", lease, "--idempotency-key", "b"]).done();
    put("c", &[]).done();
    let absent = ["kv", "cas", "d", "--absent", "--new", "v", "--lease", lease];
    dev.run(&absent).done();
    dev.run(&absent).refused(4, &["not expected"]);
    put("d", &[]).done();
    let file = dev.file("txn.json");
    let put_step = serde_json::json!({"key": "e", "value": "v", "lease": granted["lease"]});
    let txn = serde_json::json!({ "then": [{ "put": put_step }] });
    std::fs::write(&file, txn.to_string()).unwrap();
    dev.run(&["kv", "txn", "-f", &file]).done();
    assert_eq!(json(&["kv", "get", "a"]).json()["lease"], granted["lease"]);
    let scanned = json(&["kv", "scan"]).done().lines();
    let bound: Vec<_> = scanned
        .iter()
        .map(|pair| pair.get("lease").is_some())
        .collect();
    assert_eq!(bound, [true, true, false, false, true]);
    let shown = json(&["kv", "lease", "show", lease]).done().json();
    let keys: Vec<_> = shown["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| &key["key"])
        .collect();
    assert_eq!(keys, ["a", "b", "e"]);
    let export = dev.file("export.jsonl");
    std::fs::write(&export, dev.run(&["kv", "export"]).done().out).unwrap();
    let imported = json(&["kv", "import", &export, "--map", "copy"])
        .done()
        .json();
    assert_eq!(
        (&imported["imported"], &imported["passed_over"]),
        (&2.into(), &3.into())
    );

    // Its owner dies; the next to have the map open ends it.
    keeper.kill().unwrap();
    keeper.wait().unwrap();
    let mut watcher = renewing(&["watch", "--from", "0"]);
    let lines = BufReader::new(watcher.stdout.take().unwrap()).lines();
    let changes =
        lines.map(|line| serde_json::from_str::<serde_json::Value>(&line.unwrap()).unwrap());
    let gone: Vec<_> = changes
        .filter(|change| change["value"].is_null())
        .take(3)
        .collect();
    let keys: Vec<_> = gone.iter().map(|change| &change["key"]).collect();
    assert_eq!(keys, ["a", "b", "e"]);
    assert!(
        gone.iter()
            .all(|change| change["position"] == gone[0]["position"]),
        "{gone:?}"
    );
    let late = json(&["kv", "put", "a", "v", "--lease", lease]);
    late.refused(4, &["no lease", "lease grant"]);
    assert_eq!(late.json()["conflict"]["lease"], granted["lease"]);
    dev.run(&["kv", "txn", "-f", &file])
        .refused(4, &["no lease"]);
    dev.run(&["kv", "lease", "keep", lease])
        .refused(4, &["no lease"]);
    for verb in ["show", "revoke"] {
        dev.run(&["kv", "lease", verb, lease])
            .refused(5, &["no lease"]);
    }
    // Its first try took place.
    put("b", &["--lease", lease, "--idempotency-key", "b"]).done();
    dev.run(&["kv", "get", "b"]).refused(5, &["no key `b`"]);

    let second = dev.run(&["kv", "lease", "grant", "--ttl", "1h"]).done().out;
    let second = second.trim();
    put("a", &["--lease", second]).done();
    let mut keeper = renewing(&["lease", "keep", second]);
    let listed = json(&["kv", "lease", "list"]).done().lines();
    assert_eq!((listed.len(), &listed[0]["ttl_ms"]), (1, &3_600_000.into()));
    dev.run(&["kv", "lease", "revoke", second]).done();
    dev.run(&["kv", "get", "a"]).refused(5, &["no key `a`"]);
    for child in [&mut keeper, &mut watcher] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
