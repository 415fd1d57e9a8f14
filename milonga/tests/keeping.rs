//! What of a log is kept, and going back, between real processes.

#![allow(clippy::unwrap_used)] // Helpers of tests are no tests to the lint.

mod support;

use support::{Dev, SMALL};

/// What somebody needs is not trimmed but by force, and it is said who needs it; objects go back to what they were.
#[test]
fn a_log_is_trimmed_no_further_than_it_is_needed() {
    let dev = Dev::start(&SMALL);
    dev.run(&["log", "append", "of nobody"]).done();
    dev.run(&["kv", "put", "stock", "1"]).done();
    let put = dev
        .run(&["kv", "put", "stock", "2", "-o", "json"])
        .done()
        .json();
    dev.run(&["kv", "put", "stock", "3"]).done();
    let needs = dev.run(&["log", "needs", "-o", "json"]).done();
    assert!(needs.out.contains("\"object default\""), "{}", needs.out);
    let end = dev.run(&["log", "end"]).done().out.trim().to_owned();
    let trimmed = dev.run(&["log", "trim", &end, "-o", "json"]).done();
    assert!(trimmed.err.contains("only: object d"), "{}", trimmed.err);
    let trimmed = trimmed.json();
    assert_eq!(trimmed["trimmed"], 1);
    assert_eq!(trimmed["held_by"]["from"], 1);

    let to = put["position"].to_string();
    let back = dev
        .run(&["object", "roll-back", "default", "--to", &to, "-o", "json"])
        .done()
        .json();
    let found = dev.run(&["kv", "get", "stock", "-o", "json"]).done().json();
    assert_eq!(
        (&found["value"], &found["version"]),
        (&"2".into(), &back["position"])
    );
    dev.run(&["object", "roll-back", "nothing", "--to", "1"])
        .refused(5, &["no object is called `nothing`"]);
    let listed = dev.run(&["object", "list", "-o", "json"]).done().json();
    assert_eq!(
        (&listed["name"], &listed["kind"]),
        (&"default".into(), &"map".into())
    );

    dev.run(&["log", "at", "1h"]).refused(5, &["--note-times"]);
    let kept = dev
        .run(&[
            "log",
            "retention",
            "--size",
            "1",
            "--snapshot-updates",
            "3",
            "-o",
            "json",
        ])
        .done()
        .json();
    assert_eq!(
        (
            &kept["bytes"],
            &kept["age_ms"],
            &kept["snapshots"]["updates"]
        ),
        (&1.into(), &serde_json::Value::Null, &3.into())
    );
    dev.run(&["kv", "put", "stock", "4"]).done();
    let kept = dev.run(&["keep", "--once", "-o", "json"]).done().json();
    // How long the log was is known from now on only.
    assert_eq!(kept.get("trimmed"), Some(&serde_json::Value::Null));
    let manifest = dev.run(&["kv", "snapshot", "-o", "json"]).done();
    assert!(!manifest.out.is_empty());
    dev.run(&["log", "retention", "--keep-all"]).done();

    let end = dev.run(&["log", "end"]).done().out.trim().to_owned();
    let forced = dev
        .run(&["log", "trim", &end, "--force", "-o", "json"])
        .done()
        .json();
    assert_eq!(forced["trimmed"].to_string(), end);
    dev.run(&["log", "trim", "99999"])
        .refused(4, &["beyond the end"]);
}

/// Large values stay in the log: they are read as they were put, are not trimmed while they are needed, and a snapshot is small.
#[test]
fn large_values_stay_in_the_log() {
    let dev = Dev::start(&SMALL);
    let file = dev.file("image");
    let image: String = ('a'..='z').cycle().take(300_000).collect();
    std::fs::write(&file, &image).unwrap();
    let set = ["kv", "values", "--in-log-from", "1KiB", "-o", "json"];
    assert_eq!(dev.run(&set).done().json()["in_log_from"], 1_024);
    dev.run(&["kv", "put", "image", "--file", &file]).done();
    dev.run(&["kv", "put", "small", "s"]).done();
    let read = |dev: &Dev| dev.run(&["kv", "get", "image", "--raw"]).done().out;
    assert!(read(&dev) == image);
    let shown = dev.run(&["kv", "values", "-o", "json"]).done().json();
    assert_eq!(
        [
            &shown["keys"],
            &shown["in_log"],
            &shown["in_log_bytes"],
            &shown["in_memory_bytes"]
        ],
        [2, 1, 300_000, 1]
    );
    let snapshot = dev.run(&["kv", "snapshot", "-o", "json"]).done().json();
    assert!(snapshot["bytes"].as_u64() < Some(1_000), "{snapshot}");
    let end = dev.run(&["log", "end"]).done().out.trim().to_owned();
    let trimmed = dev.run(&["log", "trim", &end, "-o", "json"]).done().json();
    assert!(
        trimmed["trimmed"].as_u64() <= shown["lowest"].as_u64(),
        "{trimmed}"
    );
    assert!(read(&dev) == image);
    dev.run(&["kv", "put", "k", "--file", "no such file"])
        .refused(1, &["no such file"]);
    let large = dev.file("too large");
    std::fs::write(&large, vec![0; (1 << 20) + 1]).unwrap();
    dev.run(&["kv", "put", "k", "--file", &large])
        .refused(1, &["split it"]);
    dev.run(&["kv", "values", "--in-memory"]).done();
    assert!(read(&dev) == image);

    // By force it goes, and only that: names, keys and all other values are there.
    let end = dev.run(&["log", "end"]).done().out.trim().to_owned();
    let forced = dev.run(&["log", "trim", &end, "--force"]).done();
    assert!(
        forced.err.contains("object default needed"),
        "{}",
        forced.err
    );
    dev.run(&["kv", "get", "small"]).refused(1, &["trimmed"]);
    let listed = dev.run(&["object", "list", "-o", "json"]).done().json();
    assert_eq!(listed["name"], "default");
}

/// A value that was trimmed by force is told by its key, and keeps nothing else from being read or trimmed.
#[test]
fn a_value_that_is_gone_is_told_and_holds_nothing_up() {
    let dev = Dev::start(&SMALL);
    dev.run(&["kv", "values", "--in-log-from", "100B"]).done();
    let long = "v".repeat(200);
    let put = |key: &str| {
        let put = dev
            .run(&["kv", "put", key, &long, "-o", "json"])
            .done()
            .json();
        put["position"].as_u64().unwrap()
    };
    put("gone");
    let to = put("there").to_string();
    dev.run(&["kv", "snapshot"]).done();
    dev.run(&["log", "trim", &to, "--force"]).done();
    dev.run(&["kv", "get", "gone"])
        .refused(1, &["put the key again"]);
    let export = dev.run(&["kv", "export"]);
    export.refused(1, &["1 keys", "`gone`"]);
    assert_eq!(export.json()["key"], "there");
    let txn = dev.file("txn.json");
    let text = r#"{"if": [{"key": "gone", "exists": true}], "then": [{"put": {"key": "saw", "value": "it"}}]}"#;
    std::fs::write(&txn, text).unwrap();
    dev.run(&["kv", "txn", "-f", &txn]).done();
    let end = dev.run(&["log", "end"]).done().out.trim().to_owned();
    let trimmed = dev.run(&["log", "trim", &end, "--snapshots", "-o", "json"]);
    assert_eq!(trimmed.done().json()["trimmed"].to_string(), end);
    assert_eq!(dev.run(&["kv", "get", "there"]).done().out.trim(), long);
    dev.run(&["kv", "get", "gone"])
        .refused(1, &["put the key again"]);
    dev.run(&["kv", "put", "gone", "back"]).done();
    assert_eq!(dev.run(&["kv", "get", "gone"]).done().out, "back\n");
}
