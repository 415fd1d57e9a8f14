//! Leases of a map: keys that are bound to one are removed together when it ends.
//!
//! ```text
//! owner     grant ──▶ put (bound) ──▶ renew ──▶ … renew ──▶ (dies)
//! another   has the map open … sees no renewal for as long as the lease lives, by its own clock ──▶ expire(lease, renewal)
//! log       the owner's renewal and the expiry have positions: whichever comes first counts
//! ```
//! A lease is named by the position of its grant. It lives until an entry ends it, and only the positions of entries decide:
//! every replica and every replay have the same keys at the same position. Time only decides when somebody appends the entry.
//!
//! Any process that has the map open, and whose certificate may write, appends it: a lease that is not renewed ends between
//! once and about twice its time after its last renewal, as long as there is such a process. Where nobody has the map open, keys stay until
//! somebody has had it open for that long. That costs a few questions for the end of the log in the shortest time that a lease
//! lives, and nothing while a map has no leases.
//!
//! - Y1 A key is bound to one lease that lives, or to none.
//! - Y2 A lease that ended does not come back, and no key that was bound to it: not by a renewal, and not by going back to a
//!   snapshot.
//! - Y3 A lease that was renewed is not expired by who did not see the renewal.
//! - Y4 All keys that are bound to a lease go where it ends, at one position.
//!
//! Source: etcd's leases, for what they are to their users; Tango (SOSP '13) for the rest.

mod keeper;
mod state;

use std::time::Duration;

use bytes::Bytes;
use milonga_host::Moment;
use milonga_wire::Position;

use super::{Cas, Expect, Map, Outcome, Update, checked};
use crate::object::error::{DecideError, PlayError, UpdateError};
pub use crate::object::lock::LEASE_MIN;
use crate::object::renewing::Renewing;

pub(in crate::object) use keeper::{Kept, keep};
pub use state::LeaseState;
pub(super) use state::Leases;

/// Why something with a lease was not done, or is not known to have been.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LeaseError {
    /// Definite: nothing was appended. Leases must live longer.
    #[error(
        "a lease of {asked:?}; expected at least {LEASE_MIN:?}, so that a crash of a server does not end it"
    )]
    TooShort {
        /// What was asked.
        asked: Duration,
    },
    /// Definite: nothing was changed. The lease has ended, with all keys that were bound to it, and does not come back: grant
    /// another, and put what has to be there again.
    #[error("there is no lease {lease} (any more), and nothing was changed; grant another")]
    Ended {
        /// The lease.
        lease: Position,
    },
    /// Whether it is in the log, or what it brought about there, is not known. A grant that is found by
    /// [`crate::Log::resume`] is a lease: [`Map::keep`] renews it. If nobody does, it ends by itself.
    #[error(transparent)]
    Decide(#[from] DecideError),
}

impl From<UpdateError> for LeaseError {
    fn from(error: UpdateError) -> Self {
        Self::Decide(error.into())
    }
}

impl Map {
    /// Grants a lease that lives for `ttl` without a renewal, and renews it in the background until the handle is dropped.
    ///
    /// # Errors
    /// [`LeaseError::TooShort`], and [`LeaseError::Decide`]: then there may be a lease of which nobody knows, which ends by itself.
    pub async fn grant(&self, ttl: Duration) -> Result<Lease, LeaseError> {
        if ttl < LEASE_MIN {
            return Err(LeaseError::TooShort { asked: ttl });
        }
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let began = self.now();
        let (lease, _) = self.view.update(&Update::Grant { ttl_ms }).await?;
        Ok(Lease::new(self, lease, ttl, began))
    }

    /// Renews a lease that somebody granted, now and in the background until the handle is dropped.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub async fn keep(&self, lease: Position) -> Result<Lease, LeaseError> {
        let began = self.now();
        let ttl = self.renew(lease).await?;
        Ok(Lease::new(self, lease, ttl, began))
    }

    /// Renews a lease once, and says how long it lives from there on without another renewal.
    ///
    /// # Errors
    /// [`LeaseError`].
    pub async fn renew(&self, lease: Position) -> Result<Duration, LeaseError> {
        match self.view.update(&Update::Renew { lease }).await?.1 {
            Outcome::Lives { ttl_ms, .. } => Ok(Duration::from_millis(ttl_ms)),
            _ => Err(LeaseError::Ended { lease }),
        }
    }

    /// Ends a lease: all keys that are bound to it are removed at one position. Says how many.
    ///
    /// # Errors
    /// [`LeaseError`]. After [`LeaseError::Ended`] its keys are gone, too: whoever asks again because a reply was lost gets that.
    pub async fn revoke(&self, lease: Position) -> Result<u64, LeaseError> {
        match self.view.update(&Update::Revoke { lease }).await?.1 {
            Outcome::Ended { keys } => Ok(keys),
            _ => Err(LeaseError::Ended { lease }),
        }
    }

    /// A lease as it stands once everything acknowledged before this call is known; none if it has ended.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn lease(&self, lease: Position) -> Result<Option<LeaseState>, PlayError> {
        self.view.read(|state| state.lease(lease).cloned()).await
    }

    /// All leases that live, the oldest first.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn leases(&self) -> Result<Vec<(Position, LeaseState)>, PlayError> {
        let all = |(lease, state): (Position, &LeaseState)| (lease, state.clone());
        self.view
            .read(|state| state.leases().map(all).collect())
            .await
    }

    /// The lease that `key` is bound to; none if it is bound to none, or not there.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn lease_of(&self, key: &[u8]) -> Result<Option<Position>, PlayError> {
        self.view.read(|state| state.lease_of(key)).await
    }

    /// Sets `key` to `value` and binds it to `lease`, if that lives where the write comes to lie in the log; plays up to there, and
    /// returns the position. What the key was bound to before does not matter any more. Any later write of the key that names no
    /// lease unbinds it.
    ///
    /// # Errors
    /// [`LeaseError`]. After [`LeaseError::Ended`] the key is as it was.
    pub async fn put_leased(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        lease: Position,
    ) -> Result<Position, LeaseError> {
        let (key, value) = (checked(key)?, value.into());
        let decided = self.decide_leased(key, value, lease, None).await?;
        let (Cas::Done { position } | Cas::Conflict { position, .. }) = decided;
        Ok(position)
    }

    /// The same if `expect` holds, too, as in [`Map::cas`].
    ///
    /// # Errors
    /// [`LeaseError`]. A conflict is no error.
    pub async fn cas_leased(
        &self,
        key: impl Into<Bytes>,
        expect: Expect,
        value: impl Into<Bytes>,
        lease: Position,
    ) -> Result<Cas, LeaseError> {
        let (key, value) = (checked(key)?, value.into());
        self.decide_leased(key, value, lease, Some(expect)).await
    }

    async fn decide_leased(
        &self,
        key: Bytes,
        value: Bytes,
        lease: Position,
        expect: Option<Expect>,
    ) -> Result<Cas, LeaseError> {
        let update = Update::PutLeased {
            key,
            value,
            lease,
            expect,
        };
        let (position, outcome) = self.view.update(&update).await?;
        Cas::of(position, outcome).ok_or(LeaseError::Ended { lease })
    }

    fn now(&self) -> Moment {
        self.view.log().host().clock.now()
    }
}

/// A lease that is renewed in the background, at a third of its time, until this is dropped. Then it ends when that time is
/// over, or at once after [`Lease::revoke`].
///
/// ```no_run
/// # async fn use_it(map: milonga_client::object::Map) -> Result<(), Box<dyn std::error::Error>> {
/// let lease = map.grant(std::time::Duration::from_secs(10)).await?;
/// map.put_leased("worker/7", "10.0.0.7:80", lease.id()).await?;
/// // The key is there for as long as this process renews the lease, and goes soon after it died.
/// lease.lost().await;
/// # Ok(())
/// # }
/// ```
pub struct Lease {
    map: Map,
    id: Position,
    ttl: Duration,
    renewing: Renewing,
}

impl Lease {
    fn new(map: &Map, id: Position, ttl: Duration, began: Moment) -> Self {
        let renewed = map.clone();
        let renew = move || renew(renewed.clone(), id);
        Self {
            map: map.clone(),
            id,
            ttl,
            renewing: Renewing::new(map.view.log().host(), ttl, began, renew),
        }
    }

    /// The position of its grant, which names it: see [`Map::put_leased`].
    pub fn id(&self) -> Position {
        self.id
    }

    /// For how long it lives without a renewal.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Whether, by this process's own clock, nobody can have expired it yet.
    pub fn is_held(&self) -> bool {
        self.renewing.is_held()
    }

    /// Waits until [`Lease::is_held`] is false: it has ended, or may have.
    pub async fn lost(&self) {
        self.renewing.lost().await;
    }

    /// Renews it now. False if it has ended.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn renew(&self) -> Result<bool, DecideError> {
        let renewal = renew(self.map.clone(), self.id);
        self.renewing.renewed(renewal).await
    }

    /// Ends it, and removes all keys that are bound to it at one position. It is no error if it had ended before.
    ///
    /// # Errors
    /// [`DecideError`]; it ends when its time is over, whatever became of this.
    pub async fn revoke(self) -> Result<(), DecideError> {
        self.renewing.give_up();
        let lease = self.id;
        self.map.view.update(&Update::Revoke { lease }).await?;
        Ok(())
    }
}

async fn renew(map: Map, lease: Position) -> Result<bool, DecideError> {
    let (_, outcome) = map.view.update(&Update::Renew { lease }).await?;
    Ok(matches!(outcome, Outcome::Lives { .. }))
}

#[cfg(test)]
mod tests;
