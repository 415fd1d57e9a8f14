//! H19, H20, H21: twenty control clients see the same failure at the same moment, and each may die at any step. Some of
//! them begin after a decision that one layout server alone has heard of; sometimes one of the layout servers was wiped, and
//! has no vote.
//!
//! They have to come to one layout within ten seconds, and to make no more than five terms of one failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use milonga_client::{Log, Options, reconfigure};
use milonga_host::{BoxFuture, Random};
use milonga_wire::{Decided, LayoutRequest, Request, Role, Term};

use super::audit::audit;
use super::cluster::{Cluster, Shape, log};
use super::keeper::note;
use super::workload::{Client, Workload};
use crate::sim::faults::{chance, flip, pick};
use crate::sim::{NetworkFaults, NodeId, Profile, World};

/// How many see the failure.
const PROPOSERS: u64 = 20;
/// How many of them live.
const SURVIVORS: u64 = 3;
/// From the first look to the last one that found the cluster well.
const CONVERGED_MAX: Duration = Duration::from_secs(10);
/// Terms made of one failure.
const TERMS_MAX: u64 = 5;

/// Plays it. Messages may be lost, late and repeated, but none of them by minutes: there are ten seconds.
pub fn play(world: World, profile: Profile) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let random = world.random("scenario");
        let shape = Shape {
            layout_servers: *pick(&random, &[3, 3, 5]),
            standbys: 1,
            chains: *pick(&random, &[1, 2]),
            replicas: 3,
            spares: random.below(2),
            stripe_width: 4,
        };
        // With a disk that forgets beside one that is gone, what is lost is lost.
        // And no power fails: that would take more servers away than the failure.
        let mut profile = Profile {
            lying: false,
            torn: false,
            ..profile
        };
        let cluster = match Cluster::start(&world, &profile, &shape).await {
            Ok(cluster) => cluster,
            Err(why) => return world.violation(format!("the cluster does not start: {why}")),
        };
        let workload = Workload::new(&world, &cluster.layout, false);
        let writer = world.add_client("writer", Role::Writer, 0);
        let options = Options::default();
        let writer = log(&world, writer, Role::Writer, &cluster.layout, options);
        let process = workload.processes.fetch_add(1, Ordering::Relaxed);
        let appending = Client::new(workload.clone(), process, writer.clone());
        for _ in 0..5 + random.below(10) {
            appending.append(1 + random.below(3), &[]).await;
        }
        let wipes = random.below(3) == 0;
        if wipes {
            // Without its vote every other one is needed: a message lost is a majority lost.
            profile.network.lose_ppm = 0;
            profile.network.straggle_ppm = 0;
        }
        world.trouble(mild(&profile.network));
        if wipes {
            let wiped = cluster.servers[0][random.below(3) as usize];
            world.crash(wiped);
            cluster.wipe(wiped);
            world.take_vote(wiped);
            world.count("layout server wiped");
            if let Err(why) = world.start(wiped).await {
                return world.violation(why);
            }
        }
        let Ok(before) = writer.newest_layout().await else {
            return world.violation("no layout before the failure".to_owned());
        };
        fail(&world, &cluster, &before, &random).await;
        if flip(&random) {
            die_after_a_decision(&world, &workload, &cluster, &random).await;
        }
        let term = before.layout.term;
        duel(&world, &workload, &cluster, &random, term).await;
        appending.append(1, &[]).await;
        world.calm();
        world.clock().sleep(Duration::from_secs(60)).await;
        audit(&world, &workload, &cluster).await;
    })
}

/// What ten seconds leave time for. A message lost here costs a whole call's deadline, as a broken connection does: QUIC sends
/// lost packets again.
fn mild(network: &NetworkFaults) -> NetworkFaults {
    NetworkFaults {
        latency_us_max: network.latency_us_max.min(10_000),
        latency_us_min: network.latency_us_min.min(5_000),
        straggle_us_max: network.straggle_us_max.min(200_000),
        lose_ppm: network.lose_ppm.min(2_000),
        ..network.clone()
    }
}

/// A unit, the sequencer, or both are gone, or have restarted.
async fn fail(world: &World, cluster: &Cluster, before: &Decided, random: &Random) {
    let (sequencers, units) = (&cluster.servers[1], &cluster.servers[2]);
    let what = random.below(3);
    let mut victims: Vec<NodeId> = vec![];
    if what != 0 {
        let name = &before.layout.sequencer.name;
        victims.extend(sequencers.iter().filter(|id| world.name(**id) == *name));
    }
    if what != 1 {
        let open = &before.layout.open_segment().chains[0];
        let names: Vec<_> = before
            .layout
            .units_of(open)
            .map(|unit| &unit.name)
            .collect();
        let name = *pick(random, &names);
        victims.extend(units.iter().filter(|id| world.name(**id) == *name));
    }
    for victim in victims {
        if random.below(4) > 0 {
            world.bury(victim);
            continue;
        }
        world.crash(victim);
        if let Err(why) = world.start(victim).await {
            world.violation(why);
        }
    }
}

/// One control client has the next term decided, tells one layout server, and is gone.
async fn die_after_a_decision(
    world: &World,
    workload: &Workload,
    cluster: &Cluster,
    random: &Random,
) {
    let node = world.add_client("first", Role::Control, 0);
    let log = log(
        world,
        node,
        Role::Control,
        &cluster.layout,
        Options::default(),
    );
    let (workload, mending) = (workload.clone(), log.clone());
    world.host(node).tasks.spawn(async move {
        if let Err(error) = reconfigure::mend(&mending, "first", None).await {
            note(&workload, "first", &error);
        }
    });
    // Either while it proposes, or as soon as one server knows.
    let learns = flip(random);
    let step: fn(&Request) -> bool = if learns { is_learnt } else { is_proposed };
    let waiting = world.request(step, if learns { 0 } else { random.below(3) });
    if world
        .clock()
        .within(Duration::from_secs(8), waiting)
        .await
        .is_ok()
    {
        world.count(if learns {
            "gone while it told its decision"
        } else {
            "gone while it proposed"
        });
    }
    // What it has sent is on its way; what it would send is not.
    world.crash(node);
}

fn is_learnt(request: &Request) -> bool {
    matches!(request, Request::Layout(LayoutRequest::Learn { .. }))
}

fn is_proposed(request: &Request) -> bool {
    matches!(request, Request::Layout(LayoutRequest::Propose { .. }))
}

/// All of them at once.
async fn duel(
    world: &World,
    workload: &Workload,
    cluster: &Cluster,
    random: &Random,
    before: Term,
) {
    let began = world.now_us();
    let converged = Arc::new(AtomicU64::new(0));
    let spread = *pick(random, &[1, 50, 500]);
    let mut survivors = vec![];
    for number in 1..=PROPOSERS {
        let node = world.add_client(&format!("p-{number}"), Role::Control, 0);
        let options = Options {
            call: Duration::from_millis(*pick(random, &[200, 1_000])),
            ..Options::default()
        };
        let log = log(world, node, Role::Control, &cluster.layout, options);
        if number > SURVIVORS && flip(random) {
            // Half of them early, half of them anywhere.
            world.crash_after(node, 1 + random.below(*pick(random, &[10, 60])));
        }
        if number <= SURVIVORS {
            survivors.push(log.clone());
        }
        let mortal = number > SURVIVORS;
        let wait = Duration::from_millis(random.below(spread));
        let (workload, converged) = (workload.clone(), Arc::clone(&converged));
        world.host(node).tasks.spawn(async move {
            log.host().clock.sleep(wait).await;
            make_well(&workload, &log).await;
            if !mortal {
                converged.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let clock = world.clock();
    while converged.load(Ordering::Relaxed) < SURVIVORS
        && world.now_us() - began < CONVERGED_MAX.as_micros() as u64
    {
        clock.sleep(Duration::from_millis(10)).await;
    }
    let found = converged.load(Ordering::Relaxed);
    if found < SURVIVORS {
        let passed = world.now_us() - began;
        world.violation(format!(
            "H19: {passed} us after {PROPOSERS} proposers began, {found} of the {SURVIVORS} that live find the cluster well"
        ));
    }
    world.note(&format!("converged after {} us", world.now_us() - began));
    // Whoever is still at it has nothing to do any more.
    clock.sleep(Duration::from_secs(5)).await;
    if let Ok(newest) = survivors[0].newest_layout().await {
        let terms = newest.layout.term.0 - before.0;
        if terms > 1 {
            world.count("more than one term");
        }
        if terms > TERMS_MAX {
            world.violation(format!("H19: one failure made {terms} terms"));
        }
    }
}

/// Mends until there is nothing to mend, as an operation that does not get on would.
async fn make_well(workload: &Workload, log: &Log) {
    loop {
        match reconfigure::mend(log, "a server is gone", None).await {
            Ok(_) => {
                // The term may have been another one's, and its sequencer gone since.
                if log.end().await.is_ok() {
                    return;
                }
            }
            Err(error) => note(workload, "mend", &error),
        }
        let random = &log.host().random;
        let pause = if chance(random, 500_000) { 20 } else { 100 };
        let pause = random.jittered(Duration::from_millis(pause));
        log.host().clock.sleep(pause).await;
    }
}
