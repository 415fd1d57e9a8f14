//! A control client that does not reach a healthy server, and is the only one there is.

use milonga_wire::{LayoutRequest, Position, Relayed, Request, Role, Term, WriteKind};

use super::tests::{dead, fill_up, numbers, open, records};
use super::*;
use crate::log::Log;
use crate::testing::{Cluster, Fault, Gate, is_write, once};

/// Nothing that `log` sends to `servers` arrives from now on.
fn cut_off(cluster: &Cluster, log: &Log, servers: &[&str]) {
    let name = log.caller().name.to_string();
    for server in servers {
        cluster.cut(&name, server);
    }
}

fn term(cluster: &Cluster) -> Term {
    cluster.layout().term
}

/// Another client, which may mend nothing, appends at once, and reads `before` and what it appended.
async fn goes_on(cluster: &Cluster, before: u8) {
    let writer = cluster.client(Role::Writer);
    let clock = &writer.host().clock;
    let began = clock.now();
    fill_up(&writer, before, before + 3).await;
    assert!(clock.now().since(began) < writer.options().call);
    assert_eq!(records(&writer).await, numbers(before + 3));
}

/// Whether a request asks a layout server to pass on a seal of a unit.
fn is_relayed_seal(request: &Request) -> bool {
    matches!(
        request,
        Request::Layout(LayoutRequest::Relay {
            request: Relayed::SealUnit,
            ..
        })
    )
}

/// 6.2, H29: u-02 died, and nobody but a client that is cut off from u-01 is there to leave it out. It keeps u-01, which
/// others reach, and what it cannot do itself is done through one of those: not through l-0, which is cut off with it.
#[tokio::test(start_paused = true)]
async fn who_does_not_reach_one_unit_leaves_out_another_that_died_and_keeps_the_first() {
    let cluster = Cluster::with_layout_servers(1, 3, 1, 3);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 5).await;
    let before = term(&cluster);
    cut_off(&cluster, &log, &["u-01"]);
    cluster.cut("l-0", "u-01");
    dead(&cluster, "u-02");

    mend(&log, "a test", None).await.unwrap();

    assert_eq!(term(&cluster), before.next());
    assert_eq!(open(&cluster), ["u-00", "u-01"]);
    assert_eq!(cluster.seen("l-0", "relay"), 0, "others reach it");
    assert!(cluster.seen("l-", "relay") > 0);
    cluster.forget();
    goes_on(&cluster, 5).await;
    assert_eq!(cluster.seen("", "seal") + cluster.seen("", "bootstrap"), 0);
}

/// The same where the sequencer is far: it stays the sequencer, and issues positions in the new term to those who reach it.
#[tokio::test(start_paused = true)]
async fn a_far_sequencer_is_sealed_and_started_again_through_others() {
    let cluster = Cluster::with_layout_servers(1, 3, 1, 3);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 5).await;
    let before = cluster.layout();
    cut_off(&cluster, &log, &["q-0"]);
    dead(&cluster, "u-00");

    mend(&log, "a test", None).await.unwrap();

    let layout = cluster.layout();
    assert_eq!(layout.term, before.term.next());
    assert_eq!(layout.sequencer, before.sequencer);
    assert_eq!(layout.open_segment().start, Position(5));
    assert_eq!(open(&cluster), ["u-01", "u-02"]);
    goes_on(&cluster, 5).await;
}

/// A client that reaches layout servers only makes a term all the same, stream tails and all; in closed ranges, too, everybody
/// stays listed.
#[tokio::test(start_paused = true)]
async fn who_reaches_layout_servers_only_makes_a_term() {
    let cluster = Cluster::new(2, 2, 1);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 6).await;
    cluster.next_term().await;
    fill_up(&log, 6, 8).await;
    let before = term(&cluster);
    cut_off(&cluster, &log, &["u-00", "u-01", "u-10", "u-11", "q-0"]);
    dead(&cluster, "u-11");

    mend(&log, "a test", None).await.unwrap();

    let layout = cluster.layout();
    assert_eq!(layout.term, before.next());
    for segment in &layout.segments {
        assert_eq!(segment.chains[0].units.len(), 2, "{segment:?}");
        assert_eq!(segment.chains[1].units.len(), 1, "{segment:?}");
        assert!(segment.chains.iter().all(|chain| !chain.unreachable));
    }
    goes_on(&cluster, 8).await;
}

/// H29: relays or not, one client's word makes no term. Nobody is sealed, by whatever way.
#[tokio::test(start_paused = true)]
async fn who_merely_does_not_reach_a_server_makes_no_term() {
    for far in ["u-01", "q-0"] {
        let cluster = Cluster::with_layout_servers(1, 3, 1, 3);
        let log = cluster.client(Role::Control);
        fill_up(&log, 0, 3).await;
        let before = term(&cluster);
        cut_off(&cluster, &log, &[far]);

        for _ in 0..3 {
            let unheard = mend(&log, "a test", None).await;
            assert!(
                matches!(unheard, Err(ChangeError::Unconfirmed(_))),
                "{unheard:?}"
            );
        }

        assert_eq!(term(&cluster), before);
        assert_eq!(cluster.seen("", "seal"), 0);
        assert_eq!(cluster.count(|seen| is_relayed_seal(&seen.request)), 0);
        goes_on(&cluster, 3).await;
    }
}

/// Whether anything is wrong with a far server is asked through others; if nobody can, nothing is sealed.
#[tokio::test(start_paused = true)]
async fn nothing_is_sealed_if_a_far_server_cannot_be_asked_through_anybody() {
    let cluster = Cluster::with_layout_servers(1, 3, 1, 3);
    let log = cluster.client(Role::Control);
    let before = term(&cluster);
    cut_off(&cluster, &log, &["u-01"]);
    dead(&cluster, "u-02");
    cluster.rule(|_, request| {
        let what = "relays".to_owned();
        let busy = Fault::Refuse(milonga_wire::Refusal::Busy { what });
        (request.verb() == "relay").then_some(busy)
    });

    let refused = mend(&log, "a test", None).await;

    assert!(
        matches!(&refused, Err(ChangeError::Unconfirmed(name)) if name == "u-01"),
        "{refused:?}"
    );
    assert_eq!((cluster.seen("", "seal"), term(&cluster)), (0, before));
    assert_eq!(cluster.seen("l-", "relay"), 3, "each was tried");
}

/// Who is restarted needs a term, and is as far as before.
#[tokio::test(start_paused = true)]
async fn a_far_unit_that_was_restarted_is_listed_anew() {
    let cluster = Cluster::new(1, 3, 1);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 3).await;
    let before = term(&cluster);
    cut_off(&cluster, &log, &["u-01"]);
    cluster.restart_unit("u-01");

    mend(&log, "a test", None).await.unwrap();

    assert_eq!(term(&cluster), before.next());
    assert_eq!(open(&cluster), ["u-00", "u-01", "u-02"]);
    goes_on(&cluster, 3).await;
}

/// A term was decided, and its proposer died before anybody heard of it. A client that is far from a unit puts it to work:
/// perhaps it is the only one.
#[tokio::test(start_paused = true)]
async fn a_term_that_is_decided_is_put_to_work_through_others() {
    let cluster = Cluster::new(1, 3, 1);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 3).await;
    cluster.rule(|_, request| {
        let tells = ["announce", "bootstrap"].contains(&request.verb());
        tells.then_some(Fault::LoseRequest)
    });
    let dies = cluster.client(Role::Control);
    rebuild(&dies, "a test").await.unwrap_err();
    cluster.heal();
    let decided = term(&cluster);
    cut_off(&cluster, &log, &["u-01", "q-0"]);

    let far = mend(&log, "a test", None).await;

    assert!(matches!(far, Err(ChangeError::Unconfirmed(_))), "{far:?}");
    assert_eq!(term(&cluster), decided);
    goes_on(&cluster, 3).await;
}

/// A relay whose answer is lost has sealed the unit, and is made once more over another layout server: one term, and nothing
/// is there twice.
#[tokio::test(start_paused = true)]
async fn relays_whose_answers_are_lost_are_made_again_through_another() {
    for (server, verb) in [
        ("u-01", "describe"),
        ("u-01", "seal"),
        ("u-01", "announce"),
        ("u-01", "stream-tails"),
        ("q-0", "describe"),
        ("q-0", "seal"),
        ("q-0", "bootstrap"),
    ] {
        let cluster = Cluster::with_layout_servers(1, 3, 1, 3);
        let log = cluster.client(Role::Control);
        fill_up(&log, 0, 5).await;
        let before = term(&cluster);
        cut_off(&cluster, &log, &["u-01", "q-0"]);
        dead(&cluster, "u-02");
        cluster.rule(once(server, verb, Fault::LoseReply));

        mend(&log, "a test", None).await.unwrap();

        assert_eq!(term(&cluster), before.next(), "{server} {verb}");
        assert_eq!(open(&cluster), ["u-00", "u-01"]);
        goes_on(&cluster, 5).await;
    }
}

/// While a layout server is about to pass a seal on, others decide two terms: the relay is refused with the newest layout, and
/// the client takes that for what it is.
#[tokio::test(start_paused = true)]
async fn a_relay_of_a_term_that_is_over_ends_the_change_that_it_was_for() {
    let cluster = Cluster::new(1, 3, 1);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 3).await;
    let before = term(&cluster);
    cut_off(&cluster, &log, &["u-01"]);
    dead(&cluster, "u-02");
    let gate = Gate::new();
    let held = gate.clone();
    let mut seals = 0;
    cluster.rule(move |_, request| {
        seals += u32::from(is_relayed_seal(request));
        (is_relayed_seal(request) && seals == 1).then(|| Fault::Hold(held.clone()))
    });
    let mending = {
        let log = log.clone();
        tokio::spawn(async move { mend(&log, "a test", None).await })
    };
    gate.arrived().await;
    cluster.next_term().await;
    cluster.next_term().await;
    gate.open();

    let newest = mending.await.unwrap().unwrap();

    assert_eq!(newest.layout.term, before.next().next());
    assert_eq!(term(&cluster), before.next().next());
    assert_eq!(cluster.count(|seen| is_relayed_seal(&seen.request)), 1);
    goes_on(&cluster, 3).await;
}

/// One client leaves room for others at a layout server, however many servers it does not reach.
#[tokio::test(start_paused = true)]
async fn one_client_has_a_few_relays_under_way_at_a_time() {
    let cluster = Cluster::new(5, 4, 1);
    let log = cluster.client(Role::Control);
    let units = cluster.layout().units;
    let names: Vec<&str> = units.iter().map(|unit| unit.name.as_str()).collect();
    cut_off(&cluster, &log, &names);
    let gate = Gate::new();
    let held = gate.clone();
    cluster.rule(move |_, request| (request.verb() == "relay").then(|| Fault::Hold(held.clone())));
    let mending = tokio::spawn(async move { mend(&log, "a test", None).await });
    for _ in 0..RELAYS_MAX {
        gate.arrived().await;
    }
    tokio::time::advance(std::time::Duration::from_millis(100)).await;
    tokio::task::yield_now().await;

    assert_eq!(cluster.seen("l-0", "relay"), RELAYS_MAX);
    gate.open();
    mending.await.unwrap().unwrap_err();
    assert!(cluster.seen("l-0", "relay") > 20);
}

/// What may be passed on ends where the term is at work: no entry goes through a layout server, and what this client cannot
/// copy itself is left to others.
#[tokio::test(start_paused = true)]
async fn no_entry_goes_through_a_layout_server() {
    let cluster = Cluster::new(1, 3, 1);
    let log = cluster.client(Role::Control);
    fill_up(&log, 0, 3).await;
    cluster.burn(&log, 2, &[]).await;
    cut_off(&cluster, &log, &["u-01"]);
    dead(&cluster, "u-02");
    cluster.forget();

    mend(&log, "a test", None).await.unwrap();
    log.host()
        .clock
        .sleep(std::time::Duration::from_secs(10))
        .await;

    let is_entry = |request: &Request| {
        let writes = [WriteKind::Decide, WriteKind::Follow, WriteKind::Copy];
        writes.iter().any(|kind| is_write(request, *kind))
            || ["read", "fill", "trim"].contains(&request.verb())
    };
    let at_far = cluster.count(|seen| seen.server == "u-01" && is_entry(&seen.request));
    assert_eq!(at_far, 0, "this client does not reach it");
    for verb in ["seal", "announce"] {
        assert!(cluster.seen("u-01", verb) > 0, "{verb} went through others");
    }
}
