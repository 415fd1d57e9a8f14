//! A pin by a reader that plays nothing: it appends what pins and unpins, and no more.

use std::time::Duration;

use milonga_host::Moment;
use milonga_wire::{Position, StreamId};

use super::{KeepingState, Pin, Update};
use crate::log::Log;
use crate::object::{Object, codec};

/// How long it lasts without being renewed.
const LEASE: Duration = Duration::from_secs(60);

/// What keeps the log from a position on from being trimmed, if it could be had.
pub(crate) struct Pinned {
    log: Log,
    from: Position,
    name: Option<Position>,
    since: Moment,
}

impl Pinned {
    pub(crate) async fn new(log: &Log, from: Position) -> Self {
        let mut pinned = Self {
            log: log.clone(),
            from,
            name: None,
            since: log.host().clock.now(),
        };
        pinned.pin().await;
        pinned
    }

    /// To be called now and then.
    pub(crate) async fn renew_if_due(&mut self) {
        if self.log.host().clock.now().since(self.since) > LEASE / 3 {
            let last = self.name.take();
            self.pin().await;
            self.unpin(last).await;
        }
    }

    pub(crate) async fn release(self) {
        self.unpin(self.name).await;
    }

    async fn pin(&mut self) {
        self.since = self.log.host().clock.now();
        let (from, lease_ms) = (self.from, LEASE.as_millis() as u64);
        self.name = self.append(&Update::Pin(Pin { from, lease_ms })).await;
    }

    async fn unpin(&self, name: Option<Position>) {
        if let Some(name) = name {
            self.append(&Update::Unpin(name)).await;
        }
    }

    /// Without a pin the reader may be told that what it reads was trimmed, and then it starts again.
    async fn append(&self, update: &Update) -> Option<Position> {
        let record = codec::update(update).ok()?;
        let stream = StreamId::of_name(KeepingState::KIND);
        let appended = self.log.append(record, &[stream]).await;
        appended
            .inspect_err(|error| tracing::debug!(%error, "a snapshot is read without a pin"))
            .ok()
    }
}
