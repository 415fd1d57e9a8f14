//! H2: the sequencer is cut off together with a client that still reaches it. On the other side a standby takes over and
//! positions are issued above what the old sequencer knows of. Whoever asks the old one for the end must not be told it.
//!
//! H43 comes with it: questions arrive at every moment of the change, so some confirmation rounds begin before it and end
//! after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use milonga_client::{Log, Options};
use milonga_host::BoxFuture;
use milonga_wire::Role;

use super::cluster::{Cluster, Shape, log};
use super::workload::{Client, Workload};
use crate::history::History;
use crate::invariants;
use crate::sim::faults::{flip, pick};
use crate::sim::{NodeId, Profile, World};

/// How often the sequencer is replaced in one run.
const ROUNDS: u64 = 3;
/// How long the cut-off side is left to itself, at most.
const APART_MAX: Duration = Duration::from_secs(30);
/// Longer than any message is late, and with it all that follow it on its connection.
const LATE_MAX: Duration = Duration::from_secs(130);

/// Plays it. The profile's network is used as it is; there are no crashes.
pub fn play(world: World, profile: Profile) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let random = world.random("scenario");
        let shape = Shape {
            layout_servers: 3,
            standbys: 1,
            chains: 1,
            replicas: *pick(&random, &[1, 2, 3]),
            spares: 0,
            stripe_width: 4,
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
        let old_side = world.add_client("old-side", Role::Reader, 0);
        let new_side = world.add_client("new-side", Role::Control, 0);
        let asking = {
            let options = Options {
                // Longer than the sequencer tries to have an end confirmed, or so short that many ask.
                deadline: Duration::from_millis(*pick(&random, &[50, 3_000])),
                call: Duration::from_millis(*pick(&random, &[20, 2_000])),
                ..Options::default()
            };
            let log = log(&world, old_side, Role::Reader, &cluster.layout, options);
            let loops = 1..=1 + random.below(8);
            let asking: Vec<_> = loops
                .map(|process| tokio::spawn(ask(workload.clone(), log.clone(), process)))
                .collect();
            asking
        };
        let log = log(
            &world,
            new_side,
            Role::Control,
            &cluster.layout,
            Options::default(),
        );
        let appending = Client::new(workload.clone(), 0, log.clone());
        appending.append(1, &[]).await;
        for _ in 0..ROUNDS {
            let Ok(layout) = log.with_deadline(LATE_MAX).layout().await else {
                world.violation("no layout before a round".to_owned());
                break;
            };
            let name = layout.layout.sequencer.name.clone();
            let sequencers = &cluster.servers[1];
            let old = sequencers.iter().find(|id| world.name(**id) == name);
            let old = *old.expect("the sequencer is one of the cluster's");
            let mut rest: Vec<NodeId> = cluster.servers.iter().flatten().copied().collect();
            rest.retain(|id| *id != old);
            rest.push(new_side);
            // Sometimes the old sequencer still hears the others, and only its own messages are lost.
            let pairs = apart(&[old, old_side], &rest, flip(&random));
            for (from, to) in &pairs {
                world.block(*from, *to);
            }
            let before = world.now_us();
            while world.now_us() - before < APART_MAX.as_micros() as u64 {
                appending.append(1 + random.below(3), &[]).await;
                let replaced = log
                    .layout()
                    .await
                    .is_ok_and(|now| now.layout.term > layout.layout.term);
                if replaced && flip(&random) {
                    world.count("replaced while cut off");
                    world
                        .clock()
                        .sleep(Duration::from_millis(random.below(3_000)))
                        .await;
                    break;
                }
            }
            for (from, to) in &pairs {
                world.unblock(*from, *to);
            }
            world
                .clock()
                .sleep(Duration::from_millis(random.below(3_000)))
                .await;
        }
        workload.stop.store(true, Ordering::Relaxed);
        // One that failed has been reported as a panic.
        for asking in asking {
            let _ = asking.await;
        }
        for violation in invariants::check(&workload.history.operations()) {
            world.violation(violation);
        }
    })
}

/// Who no longer reaches whom.
fn apart(inside: &[NodeId], outside: &[NodeId], both: bool) -> Vec<(NodeId, NodeId)> {
    let mut pairs = vec![];
    for one in inside {
        for other in outside {
            pairs.push((*one, *other));
            if both {
                pairs.push((*other, *one));
            }
        }
    }
    pairs
}

/// Asks for the end as fast as answers come.
async fn ask(workload: Workload, log: Log, process: u64) {
    let client = Client::new(workload.clone(), process, log.clone());
    while !workload.stop.load(Ordering::Relaxed) {
        let told = client.end().await;
        workload.world.count(if told.is_some() {
            "end told"
        } else {
            "end not told"
        });
        log.host().clock.sleep(Duration::from_millis(1)).await;
    }
}
