//! H5, H6: the sequencer dies and takes its counter along, again and again, while many appends are on their way. What
//! the units hold is all that tells where the next term may begin, and what was sent before must not come in after it.
//!
//! Some appenders freeze before the change and go on after it with what they had: tokens of an ended term, retries, late
//! duplicates. Units freeze for a moment, so that seals and writes stand in one queue. Right after each change somebody
//! asks for the end: if the new term began too low, it lies below what was acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use milonga_client::{Log, Options};
use milonga_host::{BoxFuture, Random};
use milonga_wire::{Role, StreamId};
use tokio::task::JoinHandle;

use super::audit::audit;
use super::cluster::{Cluster, Shape, log};
use super::workload::{Client, STREAMS, Workload};
use crate::history::History;
use crate::sim::faults::{chance, flip, pick};
use crate::sim::{NodeId, Profile, World};

/// How often the sequencer dies in one run.
const ROUNDS: u64 = 4;
/// Longer than any append of this scenario goes on, and than any message is late: a late request still takes tokens.
const QUIET: Duration = Duration::from_secs(130);

/// Plays it. The profile's network and disks are used as they are; only sequencers crash.
pub fn play(world: World, profile: Profile) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let random = world.random("scenario");
        // Nobody may be left out who shares a chain with a disk that lies.
        let profile = if profile.lying {
            profile.steadied()
        } else {
            profile
        };
        let shape = Shape {
            layout_servers: *pick(&random, &[1, 3]),
            standbys: random.below(2),
            chains: *pick(&random, &[1, 1, 2]),
            replicas: *pick(&random, &[1, 2, 3]),
            spares: 0,
            stripe_width: *pick(&random, &[1, 4, 64]),
        };
        let cluster = match Cluster::start(&world, &profile, &shape).await {
            Ok(cluster) => cluster,
            Err(why) => return world.violation(format!("the cluster does not start: {why}")),
        };
        let workload = Workload {
            world: world.clone(),
            history: History::default(),
            layout: cluster.layout.clone(),
            stop: Arc::new(AtomicBool::new(false)),
            processes: Arc::new(AtomicU64::new(1)),
            trims: false,
        };
        world.trouble(profile.network.clone());
        let (writers, appending) = appenders(&world, &workload, &cluster, &random);
        let mender = world.add_client("mender", Role::Control, 0);
        let process = workload.processes.fetch_add(1, Ordering::Relaxed);
        let options = Options {
            call: Duration::from_millis(200),
            ..Options::default()
        };
        let mender = log(&world, mender, Role::Control, &cluster.layout, options);
        let mending = Client::new(workload.clone(), process, mender.clone());
        for _ in 0..ROUNDS {
            world
                .clock()
                .sleep(Duration::from_millis(random.below(1_000)))
                .await;
            disturb(&world, &cluster, &writers, &random);
            if let Err(why) = lose_the_counter(&world, &cluster, &mender).await {
                world.violation(why);
                break;
            }
            // Whoever appends first finds the sequencer gone, and mends.
            mending.append(1, &[]).await;
            mending.end().await;
            if flip(&random) {
                mending
                    .read_stream(StreamId::of_name(STREAMS[0]), true)
                    .await;
            }
        }
        world.calm();
        if let Err(why) = start_sequencers(&world, &cluster).await {
            world.violation(why);
        }
        workload.stop.store(true, Ordering::Relaxed);
        for appending in appending {
            // One that failed has been reported as a panic.
            let _ = appending.await;
        }
        world.clock().sleep(QUIET).await;
        audit(&world, &workload, &cluster).await;
    })
}

/// Clients that append as fast as they are answered, in several loops each.
fn appenders(
    world: &World,
    workload: &Workload,
    cluster: &Cluster,
    random: &Random,
) -> (Vec<NodeId>, Vec<JoinHandle<()>>) {
    let (mut nodes, mut loops) = (vec![], vec![]);
    for number in 1..=2 + random.below(3) {
        // Who may mend does so at the same moment as the mender: proposers meet (H19, H21).
        let role = *pick(random, &[Role::Writer, Role::Control]);
        let node = world.add_client(&format!("writer-{number}"), role, 0);
        let options = Options {
            deadline: Duration::from_millis(*pick(random, &[300, 2_000, 8_000])),
            call: Duration::from_millis(*pick(random, &[50, 200, 1_000])),
            hole_wait_min: Duration::from_millis(*pick(random, &[0, 5])),
            ..Options::default()
        };
        let log = log(world, node, role, &cluster.layout, options);
        let process = workload.processes.fetch_add(1, Ordering::Relaxed);
        let streams = STREAMS.map(StreamId::of_name)[..random.below(3) as usize].to_vec();
        for _ in 0..=random.below(4) {
            let client = Client::new(workload.clone(), process, log.clone());
            loops.push(tokio::spawn(append(
                workload.clone(),
                client,
                log.clone(),
                streams.clone(),
            )));
        }
        nodes.push(node);
    }
    (nodes, loops)
}

async fn append(workload: Workload, client: Client, log: Log, streams: Vec<StreamId>) {
    let (random, clock) = (log.host().random.clone(), log.host().clock.clone());
    while !workload.stop.load(Ordering::Relaxed) {
        client.append(1 + random.below(3), &streams).await;
        // Not at once: a run that does nothing but append is long, and no better.
        clock
            .sleep(Duration::from_millis(1 + random.below(20)))
            .await;
        if chance(&random, 50_000) {
            client.end().await;
        }
    }
}

/// Some appenders and some units stand still for a while.
fn disturb(world: &World, cluster: &Cluster, writers: &[NodeId], random: &Random) {
    for writer in writers {
        if flip(random) {
            world.freeze(*writer, Duration::from_millis(random.below(1_500)));
        }
    }
    for unit in &cluster.servers[2] {
        if flip(random) {
            world.freeze(*unit, Duration::from_millis(random.below(50)));
        }
    }
}

/// The process of the sequencer ends, and another one starts; or it stays away for a while, and a standby takes over.
async fn lose_the_counter(world: &World, cluster: &Cluster, log: &Log) -> Result<(), String> {
    // Messages may be late by longer than anybody waits: then no layout is known here yet.
    let Ok(layout) = log.layout().await else {
        return Ok(());
    };
    let name = &layout.layout.sequencer.name;
    let sequencers = &cluster.servers[1];
    let serving = sequencers.iter().find(|id| world.name(**id) == *name);
    start_sequencers(world, cluster).await?;
    let serving = *serving.ok_or("the sequencer is none of the cluster's")?;
    world.crash(serving);
    world.count("counter lost");
    if sequencers.len() == 1 || log.host().random.below(2) == 0 {
        world.start(serving).await?;
    }
    Ok(())
}

async fn start_sequencers(world: &World, cluster: &Cluster) -> Result<(), String> {
    for sequencer in &cluster.servers[1] {
        world.start(*sequencer).await?;
    }
    Ok(())
}
