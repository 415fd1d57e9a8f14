//! A short history of clients on real processes, two of each kind of fault at least; what is planted in it is found.

#![allow(clippy::unwrap_used)] // Helpers of tests are no tests to the lint.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn histories(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_histories"));
    command.args(args).output().unwrap()
}

/// What it printed, and how it ended.
fn checked(dir: &Path, more: &[&str]) -> (Option<i32>, Value) {
    let args = [&["check", dir.to_str().unwrap(), "-o", "json"], more].concat();
    let output = histories(&args);
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code(), report.unwrap())
}

/// O2 to O9, X1, X3; and that each of them would be missed.
#[test]
fn a_history_on_real_processes_that_fail_is_sound_and_what_is_planted_in_it_is_found() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("kept");
    let keep = ["--operations", "3000", "--keep", dir.to_str().unwrap()];
    let output = histories(&[&keep[..], &["-o", "json"]].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    let (code, report) = checked(&dir, &[]);
    assert_eq!(code, Some(0), "{report}");
    let count = |name: &str| report[name].as_u64().unwrap();
    assert!(count("operations") >= 3_000, "{report}");
    assert!(report["writes_percent"].as_f64().unwrap() >= 30.0);
    assert!(count("client_processes") >= 4);
    let faults = report["faults"].as_object().unwrap();
    let of = |what| {
        let own = faults.iter().filter(|(name, _)| name.starts_with(what));
        own.map(|(_, times)| times.as_u64().unwrap()).sum::<u64>()
    };
    assert!(of("server") >= 2 && of("client") >= 2, "{report}");

    for (plant, invariant) in [
        ("stale-read", "O4: "),
        ("lost-update", "X3: "),
        ("reordered-watch", "O3: "),
    ] {
        let (code, report) = checked(&dir, &["--plant", plant, "--seed", "1"]);
        assert_eq!(code, Some(1), "{report}");
        assert!(report["planted"].is_string());
        let mut violations = report["violations"].as_array().unwrap().iter();
        let is_it = |found: &Value| found.as_str().unwrap().starts_with(invariant);
        assert!(violations.any(is_it), "{report}");
    }
}

/// Who is to check is told that there is nothing to be checked.
#[test]
fn a_folder_without_histories_is_no_sound_history() {
    let home = tempfile::tempdir().unwrap();
    let output = histories(&["check", home.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
