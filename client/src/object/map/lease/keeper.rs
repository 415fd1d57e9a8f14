//! Who ends the leases of a map that nobody renews: every process that has the map open and may write, for as long as there
//! are leases in its copy. Whose entry comes first does it; those of the others change nothing.
//!
//! A keeper looks at the log a few times in the shortest time that a lease lives, and counts for each what passed between the
//! look that showed its last renewal first and the one that showed no other. What it could not see it does not count: while
//! the log was out of reach, those who renew had no chance either.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use milonga_host::{Clock, Moment, Random};
use milonga_wire::Position;

use super::LEASE_MIN;
use crate::object::codec::{Named, update};
use crate::object::map::Update;
use crate::object::objects::{Objects, WeakObjects};

/// The longest between two looks at the copy.
const PAUSE: Duration = LEASE_MIN.checked_div(3).expect("three is not zero");
/// Looks at the log in the time that the shortest lease lives.
const LOOKS: u32 = 3;
/// Leases that are ended with one token.
const ENDED_AT_ONCE: usize = 256;

/// A lease of the copy, as far as a keeper is concerned.
pub(in crate::object) struct Kept {
    pub(in crate::object) lease: Position,
    pub(in crate::object) renewed: Position,
    pub(in crate::object) ttl: Duration,
}

/// A lease, and when its last renewal was seen first.
struct Watched {
    renewed: Position,
    since: Moment,
    ttl: Duration,
}

struct Keeper {
    objects: WeakObjects,
    map: Named,
    clock: Clock,
    random: Random,
    watched: BTreeMap<Position, Watched>,
    /// When the log was looked at last.
    looked: Moment,
}

/// Watches over the leases of `map` until there are none, or nobody here has it open.
pub(in crate::object) fn keep(
    objects: &Objects,
    map: Named,
) -> impl Future<Output = ()> + Send + use<> {
    let host = objects.log().host();
    let mut keeper = Keeper {
        objects: objects.downgrade(),
        map,
        clock: host.clock.clone(),
        random: host.random.clone(),
        watched: BTreeMap::new(),
        looked: host.clock.now(),
    };
    async move { while keeper.looks().await {} }
}

impl Keeper {
    /// Looks at the copy, and at the log when it is time to. False once there is nothing to keep.
    async fn looks(&mut self) -> bool {
        // Nothing of this process is held while it waits.
        let Some(leases) = self
            .objects
            .upgrade()
            .and_then(|all| all.leases_of(&self.map))
        else {
            return false;
        };
        self.note(leases);
        self.clock.sleep(self.random.jittered(PAUSE)).await;
        let Some(objects) = self.objects.upgrade() else {
            return false;
        };
        let began = self.clock.now();
        let shortest = self.watched.values().map(|watched| watched.ttl).min();
        if began.since(self.looked) < shortest.unwrap_or_default() / LOOKS {
            return true;
        }
        let synced = objects.sync_for(&self.map).await;
        self.looked = self.clock.now();
        if let Err(error) = synced {
            tracing::debug!(%error, "leases could not be watched");
            self.watched.clear();
            return true;
        }
        let Some(leases) = objects.leases_of(&self.map) else {
            return false;
        };
        self.note(leases);
        self.expire(&objects, began).await;
        true
    }

    fn note(&mut self, leases: Vec<Kept>) {
        let now = self.clock.now();
        let mut before = std::mem::take(&mut self.watched);
        for Kept {
            lease,
            renewed,
            ttl,
        } in leases
        {
            let same = before.remove(&lease);
            let same = same.filter(|watched| watched.renewed == renewed);
            let since = same.map_or(now, |watched| watched.since);
            let watched = Watched {
                renewed,
                since,
                ttl,
            };
            self.watched.insert(lease, watched);
        }
    }

    /// Ends the leases of which a look that began then has shown no renewal for as long as they live.
    async fn expire(&self, objects: &Objects, began: Moment) {
        let over = self
            .watched
            .iter()
            .filter(|(_, watched)| began.since(watched.since) >= watched.ttl);
        let records: Vec<Bytes> = over
            .filter_map(|(lease, watched)| {
                let (lease, renewed) = (*lease, watched.renewed);
                update(&Update::Expire { lease, renewed }).ok()
            })
            .collect();
        for some in records.chunks(ENDED_AT_ONCE) {
            if let Err(error) = objects.log().append_batch(some, &[self.map.stream]).await {
                tracing::debug!(%error, "leases could not be ended");
                return;
            }
        }
    }
}
