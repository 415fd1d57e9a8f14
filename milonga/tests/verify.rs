//! A cluster of real processes whose disk turns bytes over: it is noticed, named, and repaired from the peer.

#![allow(clippy::unwrap_used)] // Helpers of tests are no tests to the lint.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use support::{Dev, Ran, SMALL, run};

fn filled() -> Dev {
    let dev = Dev::start(&SMALL);
    let append = ["log", "append", "--stream", "s", "--lines", "-"];
    // More than one batch: the last one of a file is believed whole or not at all.
    for batch in [0..200, 200..300] {
        let lines = batch.fold(String::new(), |text, number| {
            text + &format!("line {number} {}\n", "x".repeat(number % 90))
        });
        dev.feed(&append, lines.as_bytes()).done();
    }
    dev
}

fn dir_of(dev: &Dev, name: &str) -> PathBuf {
    let listed = dev.processes();
    let entry = listed.iter().find(|entry| entry["name"] == name).unwrap();
    PathBuf::from(entry["dir"].as_str().unwrap())
}

/// Turns over one bit of the record that begins with `text` in a unit's files.
fn flip(dev: &Dev, unit: &str, text: &str) {
    use std::os::unix::fs::FileExt;
    for entry in fs::read_dir(dir_of(dev, unit)).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let found = bytes
            .windows(text.len())
            .position(|window| window == text.as_bytes());
        if let Some(at) = found {
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_at(&[bytes[at] ^ 4], at as u64).unwrap();
            file.sync_all().unwrap();
            return;
        }
    }
    panic!("{unit} does not hold `{text}`");
}

/// The directories of the log units and layout servers.
fn dirs(dev: &Dev) -> Vec<String> {
    let listed = dev.processes();
    let stores = listed.iter().filter(|entry| entry["role"] != "sequencer");
    let dirs = stores.filter_map(|entry| Some(entry["dir"].as_str()?.to_owned()));
    dirs.collect()
}

fn offline(dirs: &[String]) -> Ran {
    let mut args = vec!["cluster", "verify", "-o", "json", "--dirs"];
    args.extend(dirs.iter().map(String::as_str));
    run(&args)
}

fn contents(dirs: &[String]) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = dirs.iter().flat_map(|dir| fs::read_dir(dir).unwrap());
    let files = files.map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.is_file())
        .map(|path| {
            let bytes = fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect()
}

fn damaged(found: &Value) -> Vec<(&str, u64)> {
    let units = found["damaged"].as_array().unwrap().iter();
    let each = |unit: &'_ Value| unit["positions"].as_u64().unwrap();
    units
        .map(|unit| (unit["unit"].as_str().unwrap(), each(unit)))
        .collect()
}

/// K1: damage under a running unit is found by verifying and ends with 10, then repaired, and nothing is found any more.
#[test]
fn damage_under_a_running_unit_is_found_and_repaired() {
    let dev = filled();
    flip(&dev, "unit-1", "line 150 ");
    let verify = ["cluster", "verify", "-o", "json"];
    let found = dev.run(&verify);
    assert_eq!(found.code, 10, "{found:?}");
    let json: Value = serde_json::from_str(found.out.lines().next().unwrap()).unwrap();
    assert_eq!(json["checked"], 300);
    assert_eq!(json["violations"], Value::Array(vec![]));
    assert_eq!(damaged(&json), [("unit-1", 1)]);
    assert_eq!(json["damaged"][0]["spans"][0]["start"], 150);

    let repaired = dev.run(&["cluster", "repair", "-o", "json"]).done().json();
    assert_eq!(repaired["lost"], Value::Array(vec![]));
    let found = dev.run(&verify).done().json();
    assert_eq!(found["damaged"], Value::Array(vec![]));
    assert_eq!(
        (&found["checked"], &found["streams"]),
        (&300.into(), &1.into())
    );
}

/// K2: the directories of a stopped cluster are compared without changing a byte; a running one's are refused. What was
/// found there is repaired from the peer after the next start.
#[test]
fn a_stopped_cluster_is_verified_and_repaired_after_its_next_start() {
    let mut dev = filled();
    let dirs = dirs(&dev);
    assert_eq!(dirs.len(), 3);
    offline(&dirs).refused(1, &["in use"]);
    assert_eq!(dev.interrupt(), 0);

    let before = contents(&dirs);
    let found = offline(&dirs).done().json();
    assert_eq!(
        (&found["checked"], &found["streams"]),
        (&300.into(), &1.into())
    );
    assert_eq!(found["violations"], Value::Array(vec![]));
    let units: Vec<String> = dirs
        .iter()
        .filter(|dir| dir.contains("unit"))
        .cloned()
        .collect();
    assert_eq!(offline(&units).done().json()["checked"], 300);
    assert!(contents(&dirs) == before, "something was written");

    for text in ["line 40 ", "line 199 "] {
        flip(&dev, "unit-2", text);
    }
    let before = contents(&dirs);
    let found = offline(&dirs);
    assert_eq!(found.code, 10, "{found:?}");
    assert!(contents(&dirs) == before, "something was written");

    dev.start_again();
    dev.run(&["cluster", "repair"]).done();
    let found = dev.run(&["cluster", "verify", "-o", "json"]).done().json();
    assert_eq!(found["checked"], 300);
    let read = dev.run(&["log", "read", "40", "--raw"]).done();
    assert!(read.out.starts_with("line 40 "), "{read:?}");
    assert_eq!(dev.interrupt(), 0);
    offline(&dirs).done();
}
