//! What goes wrong while clients go on: servers and client processes are killed and started again, or stand still for a while.
//!
//! One server at a time, and only once the cluster is whole again after the last: what a cluster survives is bounded, and every
//! fault here is one that it must survive. Clients have faults of their own meanwhile.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use milonga_host::{Clock, Random};
use rustix::process::Signal;

use super::cluster::Cluster;
use super::processes::Processes;
use crate::sim::faults::{flip, pick};

/// Between the faults of servers, at most.
const SERVERS_EVERY: Duration = Duration::from_secs(6);
/// Between those of clients, at most.
const CLIENTS_EVERY: Duration = Duration::from_secs(8);
/// For how long a server is gone or stands still, at most.
const SERVER_AWAY: Duration = Duration::from_secs(4);
/// For how long a client is.
const CLIENT_AWAY: Duration = Duration::from_secs(2);
/// How many there are at least of each kind, however short the history.
const LEAST: u64 = 2;

/// What was done, and when it is to end.
#[derive(Default)]
pub(super) struct Faults {
    made: Mutex<BTreeMap<String, u64>>,
    stop: AtomicBool,
}

impl Faults {
    /// What was done, and how often.
    pub(super) fn made(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No more begin.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether enough went wrong for a history to be worth checking.
    pub(super) fn are_enough(&self) -> bool {
        let made = self.made();
        let of = |what: &str| {
            let made = made.iter().filter(|(name, _)| name.starts_with(what));
            made.map(|(_, times)| times).sum::<u64>()
        };
        of("server") >= LEAST && of("client") >= LEAST
    }

    /// Whether no more begin.
    pub(super) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn note(&self, what: String) {
        *self.made().entry(what).or_default() += 1;
    }

    async fn pause(&self, clock: &Clock, time: Duration) {
        let until = clock.now().plus(time);
        while !self.is_over() && until.since(clock.now()) > Duration::ZERO {
            clock.sleep(Duration::from_millis(20)).await;
        }
    }

    /// Breaks servers until it is to stop; everything runs then, and the cluster is whole.
    pub(super) async fn of_servers(&self, cluster: &Cluster, random: Random) -> Result<()> {
        let clock = Clock::real();
        loop {
            self.pause(&clock, random.jittered(SERVERS_EVERY)).await;
            if self.is_over() {
                return Ok(());
            }
            // As many of each role as of every other: there are more log units than anything else.
            let role = *pick(&random, &["sequencer", "logunit", "logunit", "layout"]);
            let mut servers = cluster.servers()?;
            servers.retain(|server| server.role == role);
            let name = &pick(&random, &servers).name;
            let away = random.jittered(SERVER_AWAY);
            if random.below(3) > 0 {
                cluster.signal(name, Signal::KILL)?;
                self.note(format!("server killed: {role}"));
                self.pause(&clock, away).await;
                cluster.restart(name).await?;
            } else {
                cluster.signal(name, Signal::STOP)?;
                self.note(format!("server stopped for a while: {role}"));
                self.pause(&clock, away).await;
                cluster.signal(name, Signal::CONT)?;
            }
            cluster.is_whole().await?;
        }
    }

    /// Breaks client processes until it is to stop; all of them run then.
    pub(super) async fn of_clients(&self, clients: &Processes, random: Random) -> Result<()> {
        let clock = Clock::real();
        loop {
            self.pause(&clock, random.jittered(CLIENTS_EVERY)).await;
            if self.is_over() {
                return Ok(());
            }
            let slot = random.below(clients.count()) as usize;
            let away = random.jittered(CLIENT_AWAY);
            if flip(&random) {
                clients.kill(slot).await?;
                self.note("client killed".to_owned());
                self.pause(&clock, away).await;
                clients.start(slot)?;
            } else {
                clients.signal(slot, Signal::STOP)?;
                self.note("client stopped for a while".to_owned());
                self.pause(&clock, away).await;
                clients.signal(slot, Signal::CONT)?;
            }
        }
    }
}
