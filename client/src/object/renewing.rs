//! What is held for as long as it is renewed, and renewed in the background until nobody holds it.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use milonga_host::{Clock, Host, Moment};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::error::DecideError;
use super::group::locked;

/// Until when something is held for sure, by this process's own clock. Dropping it ends the renewals.
pub(super) struct Renewing {
    known: Arc<Known>,
    _until_dropped: DropGuard,
}

struct Known {
    clock: Clock,
    time: Duration,
    /// Nobody can have ended it before; none once it is known to be over.
    until: Mutex<Option<Moment>>,
    over: CancellationToken,
}

impl Renewing {
    /// It was taken for `time`, by an update that was made after `began`: whoever watches starts to count when it sees that,
    /// which is later. `renew` says whether it still is; it is asked each third of that time.
    pub(super) fn new<F>(
        host: &Host,
        time: Duration,
        began: Moment,
        renew: impl Fn() -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<bool, DecideError>> + Send + 'static,
    {
        let known = Arc::new(Known {
            clock: host.clock.clone(),
            time,
            until: Mutex::new(Some(began.plus(time))),
            over: CancellationToken::new(),
        });
        let dropped = CancellationToken::new();
        let renewing = Self {
            known: Arc::clone(&known),
            _until_dropped: dropped.clone().drop_guard(),
        };
        let asking = async move {
            loop {
                known.clock.sleep(time / 3).await;
                if matches!(known.renewed(renew()).await, Ok(false)) {
                    return;
                }
            }
        };
        host.tasks.spawn(async move {
            dropped.run_until_cancelled(asking).await;
        });
        renewing
    }

    pub(super) fn is_held(&self) -> bool {
        self.known.is_held_until().is_some()
    }

    /// Renews it now. False if it is lost.
    pub(super) async fn renewed(
        &self,
        renewal: impl Future<Output = Result<bool, DecideError>>,
    ) -> Result<bool, DecideError> {
        self.known.renewed(renewal).await
    }

    /// It is about to be given up.
    pub(super) fn give_up(&self) {
        *locked(&self.known.until) = None;
        self.known.over.cancel();
    }

    /// Waits until it is not held any more.
    pub(super) async fn lost(&self) {
        while let Some(until) = self.known.is_held_until() {
            let over = self.known.clock.sleep_until(until);
            self.known.over.run_until_cancelled(over).await;
        }
    }
}

impl Known {
    fn is_held_until(&self) -> Option<Moment> {
        let until = *locked(&self.until);
        until.filter(|until| self.clock.now() < *until)
    }

    async fn renewed(
        &self,
        renewal: impl Future<Output = Result<bool, DecideError>>,
    ) -> Result<bool, DecideError> {
        let began = self.clock.now();
        let is_held = renewal.await?;
        let mut until = locked(&self.until);
        *until = match *until {
            Some(until) if is_held => Some(until.max(began.plus(self.time))),
            Some(_) | None => None,
        };
        if until.is_none() {
            self.over.cancel();
        }
        Ok(is_held)
    }
}
