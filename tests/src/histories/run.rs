//! One run: a cluster, clients, faults, and at the end a newcomer who replays everything.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use milonga_client::object::Keys;
use milonga_client::{ClusterConfig, Options};
use milonga_host::{Clock, Random};
use milonga_wire::Position;

use super::client::MAPS;
use super::cluster::Cluster;
use super::faults::Faults;
use super::file::{Recording, read_changes, write_changes};
use super::plant::Plant;
use super::processes::{Plan, Processes};
use super::report::Report;
use crate::invariants::objects::{Truth, contents};
use crate::object_history::{Change, Contents};
use crate::scenarios::maps::{Replica, change_of, contents_now};

/// Between two looks whether it is enough.
const LOOK: Duration = Duration::from_millis(100);
/// Between two lines that say how far it is.
const SAY: Duration = Duration::from_secs(10);
/// How long nobody may be answered: longer than any fault lasts, and everything that follows from it.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// How long a newcomer tries.
const REPLAY_DEADLINE: Duration = Duration::from_secs(120);
/// What a replay found, beside the histories.
const CHANGES: &str = "changes";
/// What was counted by who made the faults.
const FAULTS: &str = "faults.json";

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// How many operations at least.
    pub operations: u64,
    /// How many clients.
    pub clients: u64,
    /// In how many processes.
    pub processes: u64,
    /// How many keys in all maps.
    pub keys: u64,
    /// What is drawn is drawn from this.
    pub seed: u64,
    /// No faults.
    pub calm: bool,
    /// The `milonga` under test.
    pub milonga: PathBuf,
}

/// Runs it in `dir`: histories and all changes are in there afterwards.
///
/// # Errors
/// If the cluster does not come back, or a client cannot go on.
pub async fn record(
    wanted: &Wanted,
    dir: &Path,
    say: impl Fn(std::fmt::Arguments<'_>),
) -> Result<()> {
    let random = Random::seeded(wanted.seed);
    let cluster = Cluster::start(&wanted.milonga, &dir.join("cluster")).await?;
    keep_in_log(&cluster).await?;
    let histories = dir.join("histories");
    std::fs::create_dir_all(&histories)?;
    let of = |slot: u64| (wanted.clients + wanted.processes - 1 - slot) / wanted.processes;
    let plan = Plan {
        program: std::env::current_exe()?,
        clusters: ["control.toml", "writer.toml"]
            .map(|name| cluster.file(name))
            .to_vec(),
        histories,
        clients: (0..wanted.processes).map(of).collect(),
        keys: wanted.keys / MAPS,
    };
    let clients = Processes::start_all(plan, Random::seeded(random.next()))?;
    let faults = Faults::default();
    if wanted.calm {
        faults.stop();
    }
    let (servers, others) = (Random::seeded(random.next()), Random::seeded(random.next()));
    let watch = async {
        let result = enough(wanted, &clients, &faults, &say).await;
        // Also if a client has failed: the others are to find a whole cluster.
        faults.stop();
        result
    };
    let (watched, of_servers, of_clients) = tokio::join!(
        watch,
        stopping(&faults, faults.of_servers(&cluster, servers)),
        stopping(&faults, faults.of_clients(&clients, others)),
    );
    of_servers.and(of_clients).and(watched)?;
    say(format_args!("the last reads"));
    clients.finish().await?;
    say(format_args!("waiting for the cluster to be whole"));
    cluster.is_whole().await?;
    cluster.verify().await?;
    say(format_args!("replaying the log"));
    let (changes, found) = replay(&cluster).await?;
    write_changes(&dir.join(CHANGES), &changes)?;
    let made = serde_json::to_string(&(&*faults.made(), clients.started()))?;
    std::fs::write(dir.join(FAULTS), made)?;
    cluster.stop().await?;
    let truth = Truth::new(changes);
    let end = Position(u64::MAX);
    let wrong = found.iter();
    let mut wrong = wrong.filter_map(|(number, found)| contents(&truth, *number, end, found));
    wrong.next().map_or(Ok(()), |wrong| bail!("{wrong}"))
}

/// Whatever fails ends the faults.
async fn stopping(faults: &Faults, work: impl Future<Output = Result<()>>) -> Result<()> {
    let result = work.await;
    faults.stop();
    result
}

async fn enough(
    wanted: &Wanted,
    clients: &Processes,
    faults: &Faults,
    say: &impl Fn(std::fmt::Arguments<'_>),
) -> Result<()> {
    let clock = Clock::real();
    let began = clock.now();
    let (mut said, mut last) = (began, (0, began));
    loop {
        clock.sleep(LOOK).await;
        clients.all_run()?;
        let (answered, now) = (clients.answered(), clock.now());
        if answered != last.0 {
            last = (answered, now);
        }
        if now.since(last.1) > ANSWER_WITHIN {
            bail!("nobody was answered for {} s", ANSWER_WITHIN.as_secs());
        }
        if answered >= wanted.operations && (wanted.calm || faults.are_enough()) {
            return Ok(());
        }
        if !wanted.calm && faults.is_over() {
            bail!("a fault could not be made");
        }
        if now.since(said) >= SAY {
            said = now;
            let made: u64 = faults.made().values().sum();
            let seconds = now.since(began).as_secs();
            say(format_args!(
                "{answered} operations after {seconds} s, {made} faults"
            ));
        }
    }
}

/// The values of one map stay in the log: they are fetched by whoever reads it, through all faults.
async fn keep_in_log(cluster: &Cluster) -> Result<()> {
    let config = ClusterConfig::load(&cluster.file("writer.toml"))?;
    let (log, transport) = config.connect_with_transport()?;
    Replica::new(&log, [0], [])
        .map(0)
        .keep_in_log(Some(0))
        .await?;
    transport.close().await;
    Ok(())
}

/// All changes there were, as one who was not there before finds them from the start of the log; and the maps as they are, from
/// their newest snapshots on.
async fn replay(cluster: &Cluster) -> Result<(Vec<Change>, Vec<(u64, Contents)>)> {
    let config = ClusterConfig::load(&cluster.file("control.toml"))?;
    let (log, transport) = config.connect_with_transport()?;
    let options = Options {
        deadline: REPLAY_DEADLINE,
        ..log.options().clone()
    };
    let log = log.with_options(options);
    let newcomer = Replica::new(&log, 0..MAPS, []);
    let (mut found, mut changes) = (vec![], vec![]);
    for (number, map) in &newcomer.maps {
        found.push((*number, contents_now(map).await?));
        let mut watch = map.watch(Keys::all(), Position::FIRST);
        while let Some(change) = watch.next_ready().await? {
            let (at, value) = (change.position, change.value.as_ref());
            changes.push(change_of(*number, at, &change.key, value));
        }
    }
    transport.close().await;
    Ok((changes, found))
}

/// Checks what a run left in `dir`.
///
/// # Errors
/// If it cannot be read, or nothing can be changed as asked.
pub fn check(dir: &Path, plant: Option<Plant>, seed: u64) -> Result<Report> {
    let histories = dir.join("histories");
    let listed = std::fs::read_dir(&histories).with_context(|| histories.display().to_string())?;
    let mut files = vec![];
    for entry in listed {
        files.push(entry?.path());
    }
    files.retain(|file| file.extension().is_some_and(|name| name == "history"));
    files.sort();
    let mut recording = Recording::default();
    for file in &files {
        recording.read(file)?;
    }
    let changes = read_changes(&dir.join(CHANGES))?;
    let mut report = Report::of(recording, changes, plant, seed)?;
    let made = std::fs::read_to_string(dir.join(FAULTS))?;
    (report.faults, report.client_processes) = serde_json::from_str(&made)?;
    Ok(report)
}
