//! Failures of whole processes under load: killed, stopped for a while, all at once. What was acknowledged is there once,
//! appends go on, and the cluster is at full strength again without an operator.
//!
//! Nothing here is timed: what is waited for has a bound that says no more than that it happens.

#![allow(clippy::unwrap_used)] // Helpers of tests are no tests to the lint.

mod support;

use milonga_client::Layout;
use rustix::process::Signal;
use support::field::Field;
use support::load::{connect, layout, lists, names};
use support::run;

/// Design 6.2, 6.8: units of one chain die one after another, until none is left of those that it began with.
#[tokio::test]
async fn a_chain_outlives_all_its_units_killed_one_after_another() {
    let field = Field::new(&["--spares", "3"]);
    let load = field.load("control.toml", 4);
    load.goes_on(20).await;
    let chain = field.log.layout().await.unwrap();
    let chain = names(&chain.layout)[0].clone();
    let [head, middle, tail] = &chain[..] else {
        panic!("{chain:?}")
    };

    for victim in [head, middle, tail] {
        field.kill(victim);
        load.goes_on(20).await;
        field.heals_without(victim).await;
        load.told().is_in(&field.log).await;
    }
    field.is_well();

    // Nobody is left to take the place of the next one: that is said, and appends go on.
    let next = field.unit(0, 0).await;
    field.kill(&next);
    load.goes_on(20).await;
    field
        .names("short-chain", "chain 0", "add-unit 0 ADDRESS")
        .await;
    field.dev.tell("restart", &next, &[]).done();
    let address = field.dev.address(&next);
    let reset = ["cluster", "reset-unit", &address];
    field.dev.run(&reset).done();
    let add = ["cluster", "add-unit", "0", &address, "--wait"];
    field
        .dev
        .run(&[&add[..], &["--deadline", "120s"]].concat())
        .done();
    load.goes_on(20).await;

    let told = load.stop();
    field.is_well();
    told.all_acknowledged();
    told.is_all_of(&field.log).await;
}

/// Design 6.9: with the caretaker off, control clients alone keep everything going.
#[tokio::test]
async fn without_caretakers_control_clients_mend_and_heal() {
    let field = Field::new(&["--no-caretaker"]);
    let before = field.load("control.toml", 2);
    before.goes_on(10).await;
    let before = before.stop();
    let tail = field.unit(1, 2).await;
    field.kill(&tail);
    field
        .names("silent", &tail, &format!("milonga cluster evict {tail}"))
        .await;
    let standing = field.log.newest_layout().await.unwrap();
    assert!(lists(&standing.layout, &tail), "nobody was there to mend");

    let load = field.load("control.toml", 3);
    load.goes_on(10).await;
    field.heals_without(&tail).await;
    field.kill("sequencer-1");
    load.goes_on(20).await;
    field.kill("layout-2");
    load.goes_on(20).await;
    let middle = field.unit(0, 1).await;
    let before_it = field.log.newest_layout().await.unwrap().layout.clone();
    field.dev.tell("restart", &middle, &["--kill"]).done();
    // Whoever appends to its chain meets its new start, and makes the term that lists it.
    let started = |layout: &Layout| {
        let mut units = layout.units.iter();
        units
            .find(|unit| unit.name.as_str() == middle)
            .map(|unit| unit.incarnation)
    };
    let relisted =
        |layout: &Layout| started(layout).is_some_and(|now| Some(now) != started(&before_it));
    layout(&field.log, "the new start listed", relisted).await;
    load.goes_on(20).await;
    for name in ["sequencer-1", "layout-2"] {
        field.dev.tell("restart", name, &[]).done();
    }

    let told = load.stop();
    field.verify();
    told.all_acknowledged();
    let makers = field.makers();
    assert!(makers.len() >= 3, "{makers:?}");
    assert!(makers.iter().all(|by| by == "control"), "{makers:?}");
    before.and(&told).is_all_of(&field.log).await;
}

/// Design 6.9, 10: writers may neither seal nor propose nor copy; what they report, the caretakers act on.
#[tokio::test]
async fn with_writers_alone_the_caretakers_mend_and_heal() {
    let field = Field::new(&[]);
    let certs = field.dev.file("certs");
    let issue = ["certs", "issue", "--dir", &certs, "--role", "writer"];
    run(&[&issue[..], &["--name", "app"]].concat()).done();
    let file = std::fs::read_to_string(field.dev.file("writer.toml")).unwrap();
    let file = file.replace("writer.", "app.");
    std::fs::write(field.dev.file("app.toml"), file).unwrap();
    let load = field.load("app.toml", 4);
    load.goes_on(20).await;
    for change in [
        &["cluster", "heal"][..],
        &["cluster", "rebuild-sequencer"],
        &["log", "trim", "1"],
    ] {
        let refused = field.dev.run_as("app.toml", change);
        refused.refused(1, &["a writer certificate", "role control"]);
    }

    let head = field.unit(1, 0).await;
    field.kill(&head);
    load.goes_on(20).await;
    field.heals_without(&head).await;
    field.kill("sequencer-1");
    load.goes_on(20).await;
    field
        .names("silent", "sequencer-1", "remove-standby sequencer-1")
        .await;
    field.dev.tell("restart", "sequencer-1", &[]).done();

    let told = load.stop();
    field.is_well();
    told.all_acknowledged();
    told.is_all_of(&field.log).await;
    let makers = field.makers();
    assert!(makers.len() >= 2, "{makers:?}");
    assert!(makers.iter().all(|by| by == "caretaker"), "{makers:?}");
}

/// H1: one of three that decide is gone, and then the sequencer; neither is needed to go on.
#[tokio::test]
async fn a_layout_server_and_the_sequencer_are_killed_and_named() {
    let field = Field::new(&[]);
    let load = field.load("control.toml", 4);
    load.goes_on(20).await;
    field.kill("layout-1");
    load.goes_on(20).await;
    field
        .names("silent", "layout-1", "milonga cluster set-layout-servers")
        .await;
    field.kill("sequencer-1");
    load.goes_on(20).await;
    let second = |layout: &milonga_client::Layout| layout.sequencer.name.as_str() == "sequencer-2";
    layout(&field.log, "the standby takes over", second).await;
    load.told().is_in(&field.log).await;

    for name in ["layout-1", "sequencer-1"] {
        field.dev.tell("restart", name, &[]).done();
    }
    field.is_well();
    field.kill("sequencer-2");
    load.goes_on(20).await;
    let told = load.stop();
    field.verify();
    told.all_acknowledged();
    told.is_all_of(&field.log).await;
}

/// A layout server that was down when a layout was decided has no vote: it is taught when it is back, with no client and no
/// change that would do it.
#[tokio::test]
async fn a_layout_server_that_missed_a_layout_is_taught() {
    let field = Field::new(&[]);
    field.kill("layout-1");
    for _ in 0..2 {
        let again = ["cluster", "rebuild-sequencer"];
        field.dev.run(&again).done();
    }
    field.dev.tell("restart", "layout-1", &[]).done();
    field.is_well();
    let newest = field.log.newest_layout().await.unwrap();
    assert_eq!(field.status()["term"], newest.layout.term.0);
    assert!(newest.layout.term.0 >= 2);
}

/// H6, 7.3: a sequencer that stood still while another took over can make nobody read a stale end, and its tokens are useless.
#[tokio::test]
async fn a_sequencer_that_stood_still_comes_back_to_no_effect() {
    let field = Field::new(&[]);
    let stale = connect(&field.dev.dir().join("writer.toml"));
    let first = stale.append("before", &[]).await.unwrap();
    let load = field.load("control.toml", 3);
    load.goes_on(20).await;

    field.dev.signal("sequencer-1", Signal::STOP);
    load.goes_on(40).await;
    let told = load.told();
    field.dev.signal("sequencer-1", Signal::CONT);
    field.answers("sequencer-1");

    // This one has heard of nothing since: it asks the old sequencer first.
    assert_eq!(stale.layout().await.unwrap().layout.term.0, 0);
    let end = stale.end().await.unwrap();
    assert!(end.position >= told.end() && end.term.0 > 0, "{end:?}");
    let after = stale.append("after", &[]).await.unwrap();
    assert!(after >= told.end() && first < after);
    load.goes_on(20).await;
    let mut told = load.stop();
    told.acknowledge(first, "before");
    told.acknowledge(after, "after");
    field.is_well();
    told.all_acknowledged();
    told.is_all_of(&field.log).await;
    told.is_all_of(&stale).await;
}

/// 3.6, 5.4, H7: a tail that stood still while its chain went on without it says "unwritten" of what was acknowledged since, to
/// whoever still believes in its term. Nobody falls for it.
#[tokio::test]
async fn a_unit_that_stood_still_and_was_left_out_is_not_believed() {
    let field = Field::new(&["--spares", "2"]);
    let load = field.load("control.toml", 3);
    for (chain, place) in [(0, 2), (1, 0)] {
        load.goes_on(20).await;
        let stale = connect(&field.dev.dir().join("reader.toml"));
        load.told().is_in(&stale).await;
        let before = stale.layout().await.unwrap();
        let victim = field.unit(chain, place).await;
        let mut listed = before.layout.units.iter();
        let old = listed.find(|unit| unit.name.as_str() == victim).unwrap();

        field.dev.signal(&victim, Signal::STOP);
        load.goes_on(20).await;
        field.heals_without(&victim).await;
        load.goes_on(20).await;
        let told = load.told();
        field.dev.signal(&victim, Signal::CONT);
        field.answers(&victim);

        let believed = stale.layout().await.unwrap();
        assert_eq!(believed.layout.term, before.layout.term);
        told.is_in(&stale).await;
        load.goes_on(20).await;
        let newest = field.log.newest_layout().await.unwrap();
        let mut all = newest.layout.units.iter().chain(&newest.layout.spares);
        assert!(all.all(|unit| unit.identity != old.identity), "{newest:?}");
    }
    let told = load.stop();
    field.is_well();
    told.all_acknowledged();
    told.is_all_of(&field.log).await;
}

/// 3.6: everything is killed at once under load, and started again: one term later it serves, with all data.
#[tokio::test]
async fn everything_killed_at_once_comes_back_with_all_that_was_acknowledged() {
    let mut field = Field::new(&[]);
    let clock = field.log.host().clock.clone();
    let load = field.load("control.toml", 4);
    for parent_first in [true, false] {
        load.goes_on(20).await;
        let began = clock.now();
        field.dev.kill_all(parent_first);
        field.dev.start_again();
        let ready = clock.now().since(began);
        load.goes_on(1).await;
        let appended = clock.now().since(began);
        println!(
            "everything killed: ready after {ready:?}, every client appends after {appended:?}"
        );
        load.goes_on(20).await;
        load.told().is_in(&field.log).await;
    }
    let told = load.stop();
    field.is_well();
    told.at_most_unknown(8);
    told.is_all_of(&field.log).await;
}
