//! H29: a control client that alone does not reach a healthy server, or with one layout server of three, in one direction or in
//! both, steadily or now and then, has nobody left out: there is no new term at all. And a server that nobody reaches now and then costs at most one
//! change a minute. If somebody else dies while it is cut off, and it is the only control client there, it leaves that one
//! out and keeps the healthy one, which it reaches through layout servers only (6.2).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use milonga_client::{Log, Options};
use milonga_host::{BoxFuture, Random};
use milonga_wire::{Decided, Role, ServerName, StreamId};
use tokio::task::JoinHandle;

use super::audit::audit;
use super::cluster::{Cluster, Shape, log};
use super::keeper::KeeperMachine;
use super::records;
use super::workload::{Client, STREAMS, Workload};
use crate::history::{Fate, Told};
use crate::sim::faults::{flip, pick};
use crate::sim::{NetworkFaults, NodeId, Profile, World};

/// Which way messages are stopped.
#[derive(Copy, Clone, Debug)]
enum Way {
    To,
    From,
    Both,
}

/// Plays it. Nothing else goes wrong but that messages are late by milliseconds, or come twice.
pub fn play(world: World, profile: Profile) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let random = world.random("scenario");
        let shape = Shape {
            layout_servers: *pick(&random, &[3, 3, 1]),
            standbys: random.below(2),
            chains: *pick(&random, &[1, 2]),
            replicas: 3,
            spares: 1,
            stripe_width: 4,
        };
        // Every process runs on: no power fails.
        let profile = Profile {
            torn: false,
            lying: false,
            ..profile
        };
        let cluster = match Cluster::start(&world, &profile, &shape).await {
            Ok(cluster) => cluster,
            Err(why) => return world.violation(format!("the cluster does not start: {why}")),
        };
        let workload = Workload::new(&world, &cluster.layout, false);
        world.trouble(NetworkFaults {
            latency_us_max: profile.network.latency_us_max.min(10_000),
            latency_us_min: profile.network.latency_us_min.min(5_000),
            duplicate_ppm: profile.network.duplicate_ppm,
            duplicate_us_max: profile.network.duplicate_us_max,
            lanes: profile.network.lanes,
            ..NetworkFaults::none()
        });
        let appending = appender(&world, &workload, "writer", Role::Writer);
        let cut = world.add_client("cut", Role::Control, 0);
        let dies = world.random("dies").below(3) == 0;
        let options = options(&random, dies);
        let cut_log = log(&world, cut, Role::Control, &cluster.layout, options);
        let Ok(before) = cut_log.newest_layout().await else {
            return world.violation("no layout before the cut".to_owned());
        };
        let term = before.layout.term.0;
        let process = workload.processes.fetch_add(1, Ordering::Relaxed);
        let client = Client::new(workload.clone(), process, cut_log.clone());
        let trying = tokio::spawn(try_everything(workload.clone(), client, cut_log.clone()));
        let everybody = random.below(3) == 0;
        let dies = dies && !everybody;
        let others = if everybody {
            let servers = cluster.servers.iter().flatten();
            let mut all: Vec<NodeId> = servers.copied().collect();
            all.extend([cut, appending.0]);
            all
        } else {
            // Beside it, somebody whom nothing is wrong with may look for what to mend; unless it is to act alone.
            if flip(&random) && !dies {
                keeper(&world, &workload).await;
            }
            // With it, one layout server may be cut off: it is no majority.
            let alone = cluster.servers[0].len() == 1 || flip(&random);
            let with = cluster.servers[0].iter().copied().filter(|_| !alone);
            with.take(1).chain([cut]).collect()
        };
        let server = server(&cluster, &world, &before.layout, flip(&random), &random);
        // A minute and a half, for everybody; shorter for one client, which must not make any.
        let (seconds, most) = if everybody { (90, 2) } else { (25, 0) };
        let steady = !everybody && flip(&random) || dies;
        let way = *pick(&random, &[Way::To, Way::From, Way::Both]);
        world.note(&format!("{way:?} {}, steady: {steady}", world.name(server)));
        let flapping = flap(&world, &others, server, way, steady, seconds);
        let victim = if dies {
            let killing = kill(&world, &workload, &cluster, &before.layout, server);
            let (victim, ()) = tokio::join!(biased; killing, flapping);
            Some(victim)
        } else {
            flapping.await;
            None
        };
        let newest = cut_log.newest_layout().await;
        let newest = newest.map_or(before.layout.term, |newest| newest.layout.term);
        let made = if everybody {
            // Its place is filled and healed, and it may come back: what counts is how often it is left out.
            let host = cut_log.host();
            let history = records::history(host, &world, &cluster.layout, newest).await;
            times_left_out(&history, &world.name(server))
        } else {
            newest.0 - term
        };
        if made > 0 {
            world.count("terms made");
        }
        if let Some(victim) = &victim {
            let host = cut_log.host();
            let history = records::history(host, &world, &cluster.layout, newest).await;
            only_victim_left(&world, &history, victim, &world.name(server));
        } else if made > most {
            world.violation(format!(
                "H29: {made} changes were made because of {}, cut off for {seconds} s; at most {most} may be",
                world.name(server)
            ));
        }
        workload.stop.store(true, Ordering::Relaxed);
        world.calm();
        world.clock().sleep(Duration::from_secs(130)).await;
        // Those that failed have been reported as panics.
        let _ = (trying.await, appending.1.await);
        audit(&world, &workload, &cluster).await;
    })
}

/// What the client that is cut off waits for, at most.
fn options(random: &Random, acts: bool) -> Options {
    let defaults = Options::default();
    let call = Duration::from_millis(*pick(random, &[100, 1_000]));
    let deadline = Duration::from_millis(*pick(random, &[1_000, 10_000]));
    Options {
        call,
        // A change ends with the operation that met the trouble: who has little time may not get to its end.
        deadline: if acts { defaults.deadline } else { deadline },
        ..defaults
    }
}

/// A client that appends as long as the run goes on.
fn appender(
    world: &World,
    workload: &Workload,
    name: &str,
    role: Role,
) -> (NodeId, JoinHandle<()>) {
    let node = world.add_client(name, role, 0);
    let log = log(world, node, role, &workload.layout, Options::default());
    let process = workload.processes.fetch_add(1, Ordering::Relaxed);
    let client = Client::new(workload.clone(), process, log.clone());
    let workload = workload.clone();
    let appending = async move {
        while !workload.stop.load(Ordering::Relaxed) {
            client.append(1, &STREAMS.map(StreamId::of_name)).await;
            log.host().clock.sleep(Duration::from_millis(200)).await;
        }
    };
    (node, tokio::spawn(appending))
}

/// Appends, reads, asks: everything that could make a client suspect somebody.
async fn try_everything(workload: Workload, client: Client, log: Log) {
    while !workload.stop.load(Ordering::Relaxed) {
        client.append(1 + log.host().random.below(5), &[]).await;
        if let Some(end) = client.end().await {
            let back = log.host().random.below(20);
            let from = milonga_wire::Position(end.0.saturating_sub(back));
            client.read_from(from, 20).await;
        }
        log.host().clock.sleep(Duration::from_millis(150)).await;
    }
}

/// A keeper that nothing is wrong with; it looks around too.
async fn keeper(world: &World, workload: &Workload) {
    let machine = KeeperMachine {
        workload: workload.clone(),
        name: "keeper".parse().expect("a server name"),
    };
    let node = world.add_server("keeper", Role::Control, 0, Arc::new(machine));
    if let Err(why) = world.start(node).await {
        world.violation(why);
    }
}

/// The sequencer, or a unit that takes appends.
fn server(
    cluster: &Cluster,
    world: &World,
    layout: &milonga_wire::Layout,
    unit: bool,
    random: &Random,
) -> NodeId {
    let (of, names) = if unit {
        let names = layout.units.iter().map(|unit| unit.name.clone());
        (2, names.collect())
    } else {
        (1, vec![layout.sequencer.name.clone()])
    };
    let name = pick(random, &names);
    let mut servers = cluster.servers[of].iter();
    let found = servers.find(|id| world.name(**id) == *name);
    *found.expect("a layout lists servers of the cluster")
}

/// Kills a server that takes appends or issues positions, another one than `spared`, for good; and sees to it that a client
/// which may mend nothing goes on meanwhile.
async fn kill(
    world: &World,
    workload: &Workload,
    cluster: &Cluster,
    layout: &milonga_wire::Layout,
    spared: NodeId,
) -> ServerName {
    let random = world.random("victim");
    let wait = Duration::from_millis(1_000 + random.below(3_000));
    world.clock().sleep(wait).await;
    let units = layout.units.iter().map(|unit| &unit.name);
    let sequencer = Some(&layout.sequencer.name).filter(|_| !layout.standbys.is_empty());
    let names = units.chain(sequencer).cloned();
    let names: Vec<ServerName> = names.filter(|name| *name != world.name(spared)).collect();
    let victim = pick(&random, &names).clone();
    let mut servers = cluster.servers.iter().flatten();
    let node = servers.find(|id| world.name(**id) == victim);
    world.bury(*node.expect("a layout lists servers of the cluster"));
    // Somebody may have learnt of it only a moment ago.
    world.clock().sleep(Duration::from_secs(1)).await;
    let witness = world.add_client("witness", Role::Writer, 0);
    let options = Options {
        deadline: Duration::from_secs(18),
        ..Options::default()
    };
    let process = workload.processes.fetch_add(1, Ordering::Relaxed);
    let witness = log(world, witness, Role::Writer, &cluster.layout, options);
    let witness = Client::new(workload.clone(), process, witness);
    // On every chain.
    witness.append(20, &[]).await;
    let history = workload.history.operations();
    let told = history
        .iter()
        .filter(|operation| operation.client == process);
    let mut told = told.filter_map(|operation| operation.told.as_ref());
    let is_at = |fate: &Fate| matches!(fate, Fate::At(_));
    let goes_on = told.any(|(_, told)| match told {
        Told::Fates(fates) => fates.iter().all(is_at),
        Told::Entries(_) | Told::End { .. } | Told::Trimmed(_) | Told::Failed(_) => false,
    });
    if !goes_on {
        world.violation(format!(
            "6.2: {victim} is dead, and appends do not go on: nobody left it out but perhaps who does not reach {}",
            world.name(spared)
        ));
    }
    victim
}

/// H29: of who served, `victim` is left out, once, and the one that only one client did not reach never is.
fn only_victim_left(world: &World, history: &[Decided], victim: &ServerName, far: &ServerName) {
    let (left, kept) = (
        times_left_out(history, victim),
        times_left_out(history, far),
    );
    if left != 1 || kept != 0 {
        world.violation(format!(
            "H29: {victim}, which died, was left out {left} times, and {far}, which is well, {kept} times"
        ));
    }
    if left == 1 {
        world.count("acted for others while cut off");
    }
}

/// How often `name` served appends in one term, and not in the next.
fn times_left_out(history: &[Decided], name: &ServerName) -> u64 {
    let serves = |decided: &Decided| {
        let layout = &decided.layout;
        let open = &layout.open_segment().chains;
        let mut units = open.iter().flat_map(|chain| layout.units_of(chain));
        layout.sequencer.name == *name || units.any(|unit| unit.name == *name)
    };
    let left = |pair: &&[Decided]| serves(&pair[0]) && !serves(&pair[1]);
    history.windows(2).filter(left).count() as u64
}

/// Stops what `others` and `server` send each other, as `way` says, all the time or now and then.
async fn flap(
    world: &World,
    others: &[NodeId],
    server: NodeId,
    way: Way,
    steady: bool,
    seconds: u64,
) {
    let random = world.random("flaps");
    let until = world.now_us() + seconds * 1_000_000;
    let (down, up) = (
        *pick(&random, &[300, 1_500, 4_000]),
        *pick(&random, &[300, 1_500, 20_000]),
    );
    let mut pairs = vec![];
    for other in others.iter().filter(|other| **other != server) {
        if matches!(way, Way::To | Way::Both) {
            pairs.push((*other, server));
        }
        if matches!(way, Way::From | Way::Both) {
            pairs.push((server, *other));
        }
    }
    while world.now_us() < until {
        for (from, to) in &pairs {
            world.block(*from, *to);
        }
        let left = until.saturating_sub(world.now_us()) / 1_000 + 1;
        let wait = if steady {
            left
        } else {
            left.min(1 + random.below(2 * down))
        };
        world.clock().sleep(Duration::from_millis(wait)).await;
        for (from, to) in &pairs {
            world.unblock(*from, *to);
        }
        let wait = Duration::from_millis(1 + random.below(2 * up));
        world.clock().sleep(wait).await;
    }
}
