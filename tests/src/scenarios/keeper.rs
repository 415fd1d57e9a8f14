//! A control client that keeps the cluster going, as a caretaker does: it looks, mends and heals, again and again.
//!
//! It is a machine, so it may die at any step, and there may be several at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use milonga_client::reconfigure::{self, ChangeError, PlanError};
use milonga_client::{Log, Options};
use milonga_host::{BoxFuture, Host, Random, Service};
use milonga_wire::{Caller, Role, ServerName};

use super::workload::{NoService, Workload};
use crate::sim::Machine;
use crate::sim::faults::pick;

/// The machine of one keeper.
pub struct KeeperMachine {
    /// What all clients of the run share.
    pub workload: Workload,
    /// Its name.
    pub name: ServerName,
}

impl Machine for KeeperMachine {
    fn start(&self, host: Host) -> BoxFuture<'_, Result<Arc<dyn Service>, String>> {
        let caller = Caller {
            cluster: self.workload.world.cluster(),
            role: Role::Control,
            name: self.name.clone(),
        };
        let options = Options {
            call: Duration::from_millis(*pick(&host.random, &[200, 1_000])),
            ..Options::default()
        };
        let tasks = host.tasks.clone();
        let log = Log::new(host, caller, self.workload.layout.clone(), options);
        tasks.spawn(keep(self.workload.clone(), log));
        Box::pin(std::future::ready(Ok(
            Arc::new(NoService) as Arc<dyn Service>
        )))
    }

    fn crashed(&self, _: &Random) {}
}

async fn keep(workload: Workload, log: Log) {
    let (clock, random) = (log.host().clock.clone(), log.host().random.clone());
    while !workload.stop.load(Ordering::Relaxed) {
        let pause = Duration::from_millis(*pick(&random, &[100, 500, 1_500]));
        clock.sleep(random.jittered(pause)).await;
        if let Err(error) = reconfigure::mend(&log, "it does not serve", None).await {
            note(&workload, "mend", &error);
            continue;
        }
        match reconfigure::heal(&log, "a chain is short").await {
            Ok(Some(_)) => workload.world.count("healed"),
            Ok(None) => {}
            Err(error) => note(&workload, "heal", &error),
        }
    }
}

/// What came of an attempt that failed: that all kinds were met is worth knowing.
pub fn note(workload: &Workload, what: &str, error: &ChangeError) {
    workload.world.note(&format!("{what}: {error}"));
    workload.world.count(match error {
        ChangeError::Layouts(_) => "change failed: no layout",
        ChangeError::Plan(PlanError::NoCompleteUnit { .. }) => "change failed: nobody complete",
        ChangeError::Plan(PlanError::Missing(_)) => "change failed: a unit is missing",
        ChangeError::Plan(PlanError::NotEmpty(_)) => "change failed: who comes is not empty",
        ChangeError::Plan(PlanError::Damaged { .. }) => "change failed: who stays is damaged",
        ChangeError::Plan(PlanError::Refused(_)) => "change failed: refused",
        ChangeError::Plan(PlanError::TooManySegments) => "change failed: too many segments",
        ChangeError::Server(_) => "change failed: a server did not answer",
        ChangeError::Unproved(_) => "change failed: unproved",
        ChangeError::Copy(_) => "change failed: a copy stopped",
        ChangeError::Stuck { .. } => "change failed: a copy is stuck",
        ChangeError::NotHeld { .. } => "change failed: the history is not held",
        ChangeError::NoSequencer(_) => "change failed: no sequencer",
        ChangeError::Unconfirmed(_) => "change failed: unconfirmed",
        ChangeError::Outranked => "change failed: outranked",
        ChangeError::NoMajority { .. } => "change failed: no majority",
    });
}
