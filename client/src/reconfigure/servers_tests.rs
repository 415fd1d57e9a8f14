//! The layout servers change, on a cluster in memory: 1, 3 and 5 of them, dead ones, wiped ones, and proposers that die over it.

use milonga_wire::{Address, LayoutRequest, Request, Role, Server, Term};

use super::*;
use crate::log::Log;
use crate::options::Options;
use crate::testing::{Cluster, Fault};

fn set(servers: &[&Server]) -> Wish {
    let servers = servers.iter().map(|one| one.address.to_string()).collect();
    Wish::SetLayoutServers { servers }
}

fn listed(cluster: &Cluster) -> Vec<Server> {
    cluster.layout().layout_servers
}

fn dead(cluster: &Cluster, names: &'static [&'static str]) {
    cluster.rule(move |server, _| names.contains(&server).then_some(Fault::Down));
}

async fn appends(log: &Log) {
    log.append("a record", &[]).await.unwrap();
    log.end().await.unwrap();
}

fn from(cluster: &Cluster, addresses: Vec<Address>) -> Log {
    cluster.client_from(Role::Control, Options::default(), addresses)
}

fn addresses(servers: &[Server]) -> Vec<Address> {
    servers
        .iter()
        .map(|server| server.address.clone())
        .collect()
}

/// Design 6.7: 1, 3, 5 and back. Whoever knew only the first ones finds the way while they run, and who knew one of
/// those that stayed finds it when the others are gone.
#[tokio::test(start_paused = true)]
async fn layout_servers_are_changed_from_one_to_five_and_back_and_clients_follow() {
    let cluster = Cluster::new(1, 2, 4);
    let log = cluster.client(Role::Control);
    let first = listed(&cluster)[0].clone();
    appends(&log).await;
    let [a, b, c, d] = ["l-1", "l-2", "l-3", "l-4"].map(|name| cluster.add_layout_server(name));

    carry_out(&log, &set(&[&first, &a, &b]), "a test")
        .await
        .unwrap();
    assert_eq!(listed(&cluster).len(), 3);
    let term = cluster.layout().term;
    for name in ["l-0", "l-1", "l-2"] {
        assert_eq!(cluster.knows(name), Some(term), "{name}");
    }
    dead(&cluster, &["l-0"]);
    appends(&log).await;
    rebuild(&log, "a test").await.unwrap();
    cluster.heal();

    carry_out(&log, &set(&[&first, &a, &b, &c, &d]), "a test")
        .await
        .unwrap();
    assert_eq!(listed(&cluster).len(), 5);
    dead(&cluster, &["l-0", "l-1"]);
    rebuild(&log, "a test").await.unwrap();
    appends(&log).await;
    cluster.heal();
    rebuild(&log, "a test").await.unwrap();

    carry_out(&log, &set(&[&d]), "a test").await.unwrap();
    let retired_at = cluster.knows("l-0");
    assert_eq!(
        retired_at,
        Some(cluster.layout().term),
        "they heard who follows them"
    );
    rebuild(&log, "a test").await.unwrap();
    rebuild(&log, "a test").await.unwrap();
    assert_eq!(
        cluster.knows("l-0"),
        retired_at,
        "nobody asks them any more"
    );

    // A client that knows only retired ones, one of which runs.
    dead(&cluster, &["l-1", "l-2", "l-3"]);
    let late = from(&cluster, addresses(&[first, a, b]));
    appends(&late).await;
    assert_eq!(
        late.layout().await.unwrap().layout.term,
        cluster.layout().term
    );
    // And all of them are gone: who knew the one that stayed goes on.
    dead(&cluster, &["l-0"]);
    let late = from(&cluster, addresses(&[c, d]));
    appends(&late).await;
    appends(&log).await;
}

/// Design 6.7, H20: a dead one is replaced, and a wiped one does not vote before a layout names its new identity.
#[tokio::test(start_paused = true)]
async fn a_dead_layout_server_is_replaced_and_a_wiped_one_comes_back_as_a_new_one() {
    let cluster = Cluster::with_layout_servers(1, 2, 4, 3);
    let log = cluster.client(Role::Control);
    let [one, two, three] = <[Server; 3]>::try_from(listed(&cluster)).unwrap();
    rebuild(&log, "a test").await.unwrap();
    dead(&cluster, &["l-2"]);
    let new = cluster.add_layout_server("l-9");
    carry_out(&log, &set(&[&one, &two, &new]), "a test")
        .await
        .unwrap();
    assert_eq!(cluster.knows("l-9"), Some(cluster.layout().term));
    cluster.heal();

    cluster.wipe_layout_server("l-1");
    let wiped = listed(&cluster)[1].clone();
    rebuild(&log, "a test").await.unwrap();
    assert_eq!(cluster.knows("l-1"), None, "it took no part");
    carry_out(&log, &set(&[&one, &two, &new]), "a test")
        .await
        .unwrap();
    assert_ne!(listed(&cluster)[1].identity, wiped.identity);
    assert_eq!(cluster.knows("l-1"), Some(cluster.layout().term));
    dead(&cluster, &["l-0"]);
    rebuild(&log, "a test").await.unwrap();
    appends(&log).await;
    assert_eq!(three.name.as_str(), "l-2");
}

/// Design 6.7: before the decision a majority of those to come must hold the history, so nothing is decided that they
/// could not go on from.
#[tokio::test(start_paused = true)]
async fn layout_servers_that_cannot_learn_the_history_are_not_named() {
    let cluster = Cluster::new(1, 2, 4);
    let log = cluster.client(Role::Control);
    let first = listed(&cluster)[0].clone();
    let [a, b] = ["l-1", "l-2"].map(|name| cluster.add_layout_server(name));
    cluster.rule(|server, request| {
        let learns = matches!(request, Request::Layout(LayoutRequest::Learn { .. }));
        (learns && ["l-1", "l-2"].contains(&server)).then_some(Fault::Down)
    });
    let error = carry_out(&log, &set(&[&first, &a, &b]), "a test")
        .await
        .unwrap_err();
    assert!(
        matches!(error, HandError::Change(ChangeError::NotHeld { .. })),
        "{error}"
    );
    assert_eq!(cluster.layout().term, Term::GENESIS);
    assert_eq!(cluster.seen("u-", "seal"), 0);
    appends(&log).await;
}

/// Design 6.7: whoever proposes may die at any step; any control client that knows the present ones finishes it.
#[tokio::test(start_paused = true)]
async fn a_change_of_layout_servers_is_finished_by_anyone_wherever_its_proposer_died() {
    // The last request that the proposer gets through, counted over all it sends to layout servers.
    for last in 0..40 {
        let cluster = Cluster::new(1, 2, 4);
        let log = cluster.client(Role::Control);
        let first = listed(&cluster)[0].clone();
        appends(&log).await;
        rebuild(&log, "a test").await.unwrap();
        let [a, b] = ["l-1", "l-2"].map(|name| cluster.add_layout_server(name));
        let mut sent = 0;
        cluster.rule(move |server, request| {
            let counts = server.starts_with("l-") && !matches!(request, Request::Describe);
            sent += u32::from(counts);
            (sent > last).then_some(Fault::Down)
        });
        let quick = log.with_deadline(std::time::Duration::from_millis(500));
        let finished = carry_out(&quick, &set(&[&first, &a, &b]), "a test")
            .await
            .is_ok();
        cluster.heal();

        let other = from(&cluster, vec![first.address.clone()]);
        appends(&other).await;
        mend(&other, "a test", None).await.unwrap();
        let layout = cluster.layout();
        assert!([1, 3].contains(&layout.layout_servers.len()), "{last}");
        assert!(!finished || layout.layout_servers.len() == 3, "{last}");
        let holding = layout.layout_servers.iter();
        let holding = holding.filter(|one| cluster.knows(one.name.as_str()) == Some(layout.term));
        assert!(holding.count() >= layout.majority(), "{last}");
        carry_out(&other, &set(&[&first, &a, &b]), "a test")
            .await
            .unwrap();
        dead(&cluster, &["l-0"]);
        rebuild(&other, "a test").await.unwrap();
        appends(&other).await;
    }
}
