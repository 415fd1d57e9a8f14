//! What was acknowledged is there after kill -9 of everything, and an append whose outcome nobody saw can be resumed.

#![allow(clippy::unwrap_used)] // Helpers of tests are no tests to the lint.

mod support;

use std::io::Read;
use std::process::Stdio;

use support::{Dev, SMALL, milonga};

fn lines(count: usize) -> String {
    (0..count).fold(String::new(), |text, number| {
        text + &format!("line {number} {}\n", "x".repeat(number % 90))
    })
}

/// Design: an acknowledged entry is at its position, readable, until trimmed. Always.
#[test]
fn two_thousand_lines_survive_kill_9_of_every_process() {
    let mut dev = Dev::start(&[
        "--chains",
        "2",
        "--replicas",
        "2",
        "--standbys",
        "0",
        "--spares",
        "0",
    ]);
    let text = lines(2_000);
    let done = dev
        .feed(
            &["log", "append", "--lines", "-", "-o", "json"],
            text.as_bytes(),
        )
        .done();
    assert_eq!(done.json()["appended"], 2_000);
    assert_eq!(done.json()["first"], 0);

    for parent_first in [true, false] {
        dev.kill_all(parent_first);
        dev.start_again();
        let read = dev.run(&["log", "read", "0..", "--raw"]).done();
        assert!(read.out == text, "what was read is not what was appended");
    }
    let end = dev.run(&["log", "end", "-o", "json"]).done().json();
    assert_eq!(end["end"], 2_000);
    assert_eq!(dev.interrupt(), 0);
}

/// A follower is a copy of the log: byte for byte, whatever happens to the servers meanwhile.
#[test]
fn a_follower_goes_on_byte_for_byte_across_kill_9_of_every_process() {
    let mut dev = Dev::start(&SMALL);
    let file = dev.file("milonga.toml");
    let mut follower = milonga()
        .args(["--cluster", &file, "--deadline", "120s"])
        .args(["log", "follow", "--from", "0", "--raw"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut followed = follower.stdout.take().unwrap();
    let text = lines(600);
    let cut = text[..text.len() / 2].rfind('\n').unwrap() + 1;
    let mut append = |dev: &Dev, part: &str| {
        dev.feed(&["log", "append", "--lines", "-"], part.as_bytes())
            .done();
        let mut seen = vec![0; part.len()];
        followed.read_exact(&mut seen).unwrap();
        assert!(seen == part.as_bytes(), "what was followed is another text");
    };

    append(&dev, &text[..cut]);
    dev.kill_all(true);
    dev.start_again();
    append(&dev, &text[cut..]);
    follower.kill().unwrap();
    follower.wait().unwrap();
}

/// Three outcomes: the head has the record, the tail does not, and the writer is gone before it is known.
#[test]
fn an_append_whose_outcome_is_unknown_prints_a_stamp_that_any_process_resumes() {
    let dev = Dev::start(&[
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
        "--no-caretaker",
    ]);
    dev.run(&["log", "append", "before"]).done();
    dev.tell("stop", "unit-2", &["--kill"]).done();

    // A writer's certificate cannot leave the unit out, and nobody else is there.
    let lonely = [
        "--deadline",
        "1s",
        "-o",
        "json",
        "log",
        "append",
        "in between",
    ];
    let unknown = dev.run_as("writer.toml", &lonely);
    unknown.refused(6, &["try `milonga log append --resume"]);
    let stamp = unknown.json()["stamp"].as_str().unwrap().to_owned();

    dev.tell("restart", "unit-2", &[]).done();
    let resumed = dev
        .run(&[
            "log",
            "append",
            "--resume",
            &stamp,
            "-o",
            "json",
            "in between",
        ])
        .done();
    let again = dev
        .run(&[
            "log",
            "append",
            "--resume",
            &stamp,
            "-o",
            "json",
            "in between",
        ])
        .done();

    let position = resumed.json()["first"].clone();
    let held = dev.run(&["log", "read", "0..", "--raw"]).done().out;
    assert_eq!(
        held.matches("in between").count(),
        1,
        "once and only once: {held}"
    );
    let at = dev
        .run(&["log", "read", &position.to_string(), "--raw"])
        .done()
        .out;
    assert_eq!(at, "in between\n");
    if resumed.json()["outcome"].is_null() {
        assert_eq!(again.json()["first"], position);
    }

    // A stamp of records that are proved not to be in the log: a resume appends them, and the next one finds that.
    let (session, _) = stamp.split_once('-').unwrap();
    // The position was issued in a term that is over, far above where the next one began.
    let lost = format!("{session}-77@0:5000+1/0");
    let args = [
        "-o", "json", "log", "append", "--lines", "-", "--resume", &lost,
    ];
    let first = dev.feed(&args, b"one\ntwo\n").done().json();
    assert_eq!(first["appended"], 2);
    for _ in 0..2 {
        let again = dev.feed(&args, b"one\ntwo\n").done().json();
        assert_eq!(
            (&again["first"], &again["last"]),
            (&first["first"], &first["last"])
        );
    }
    let held = dev.run(&["log", "read", "0..", "--raw"]).done().out;
    assert_eq!(
        (held.matches("one").count(), held.matches("two").count()),
        (1, 1),
        "{held}"
    );
}

/// Design 6.9: beside the layout servers a caretaker acts, so that clients without a control certificate carry on.
#[test]
fn a_caretaker_makes_the_next_term_when_only_writers_are_left_to_notice() {
    let dev = Dev::start(&[
        "--chains",
        "1",
        "--replicas",
        "2",
        "--standbys",
        "1",
        "--spares",
        "0",
    ]);
    let writer = ["--deadline", "60s", "log", "append", "-o", "json"];
    dev.run_as("writer.toml", &[&writer[..], &["before"]].concat())
        .done();
    dev.tell("stop", "sequencer-1", &["--kill"]).done();

    let after = dev
        .run_as("writer.toml", &[&writer[..], &["after"]].concat())
        .done();

    assert!(after.json()["first"].as_u64() >= Some(1));
    let layouts = dev
        .run(&["cluster", "layouts", "-o", "json"])
        .done()
        .lines();
    assert!(layouts.len() >= 2, "{layouts:?}");
    assert!(
        layouts[1..]
            .iter()
            .all(|layout| layout["by"] == "caretaker"),
        "{layouts:?}"
    );
}
