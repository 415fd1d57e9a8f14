//! Locks with leases, held by one at a time; elections are the same under another name.
//!
//! ```text
//! owner     acquire ──▶ log … renew ──▶ … renew ──▶ (dies)
//! another   acquire, waits … sees no renewal for as long as the lease by its own clock ──▶ expire(fence, last renewal)
//! log       the owner's renewal and the expiry have positions: whichever comes first counts
//! ```
//! Whether somebody holds a lock is decided by the log alone. But who holds it cannot know at every moment that it still does: what
//! must not be done by two at once is done by transactions that check the fence ([`super::Transaction::fence`]).
//!
//! - J1 At every position at most one owner holds a lock, and its fence is the position at which it came to hold it.
//! - J2 A holder that renewed is not expired by who did not see the renewal.
//! - J3 Who waits gets its turn in the order in which it came, and holds the lock by the lease that it asked for.
//!
//! Source: Burrows, *The Chubby lock service* (OSDI '06), "Locks and sequencers", for fences; Tango (SOSP '13) for the rest.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use milonga_host::Moment;
use milonga_wire::Position;
use serde::{Deserialize, Serialize};

use super::error::{DecideError, OpenError, PlayError};
use super::image::{ImageError, ImageReader, ImageWriter};
use super::renewing::Renewing;
use super::{Keys, Object, Objects, Part, Seen, View};

/// The shortest lease: a change of layout after a crash takes a second or two, in which nobody can renew.
pub const LEASE_MIN: Duration = Duration::from_secs(1);

/// Who holds a lock, or waits for it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Holder {
    /// Who: chosen by itself, and told to all who ask. Two that must not be taken for one have different ones.
    pub owner: Bytes,
    /// The position at which it came to hold the lock, or began to wait.
    pub fence: Position,
    /// The position of its last renewal.
    pub renewed: Position,
    /// For how long it holds it without a renewal.
    pub lease_ms: u64,
}

/// What changes a lock, as it stands in the log.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Update {
    /// Takes the lock if it is free; else waits for it, or not. Who holds it already, renews it.
    Acquire {
        /// Who.
        owner: Bytes,
        /// For how long without a renewal.
        lease_ms: u64,
        /// Whether it waits.
        waits: bool,
    },
    /// Who holds it by this fence still does.
    Renew {
        /// The fence.
        fence: Position,
    },
    /// Who holds it by this fence, or waits since, gives it up.
    Release {
        /// The fence.
        fence: Position,
    },
    /// Who holds it by this fence, and renewed it last there, is gone.
    Expire {
        /// The fence.
        fence: Position,
        /// The last renewal that was seen.
        renewed: Position,
    },
}

/// What an update brought about.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The one who made it holds the lock, by this fence.
    Held {
        /// The fence.
        fence: Position,
    },
    /// It waits, since this position.
    Waits {
        /// Where.
        fence: Position,
    },
    /// It does not hold the lock.
    NotHeld {
        /// Who does.
        by: Option<Holder>,
    },
}

/// A lock after some position.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LockState {
    holder: Option<Holder>,
    waiting: VecDeque<Holder>,
}

impl LockState {
    /// Who holds it.
    pub fn holder(&self) -> Option<&Holder> {
        self.holder.as_ref()
    }

    /// Who waits for it, first come first.
    pub fn waiting(&self) -> impl Iterator<Item = &Holder> {
        self.waiting.iter()
    }

    fn is_held_by(&self, fence: Position) -> bool {
        self.holder
            .as_ref()
            .is_some_and(|holder| holder.fence == fence)
    }

    fn not_held(&self) -> Outcome {
        let by = self.holder.clone();
        Outcome::NotHeld { by }
    }

    /// The next one holds it from `position` on.
    fn pass_on(&mut self, position: Position) {
        self.holder = self.waiting.pop_front().map(|next| Holder {
            fence: position,
            renewed: position,
            ..next
        });
    }

    fn acquire(&mut self, position: Position, owner: Bytes, lease_ms: u64, waits: bool) -> Outcome {
        let asked = Holder {
            owner,
            fence: position,
            renewed: position,
            lease_ms,
        };
        match &mut self.holder {
            None => {
                self.holder = Some(asked);
                Outcome::Held { fence: position }
            }
            Some(holder) if holder.owner == asked.owner => {
                (holder.renewed, holder.lease_ms) = (position, lease_ms);
                Outcome::Held {
                    fence: holder.fence,
                }
            }
            Some(_) if !waits => self.not_held(),
            Some(_) => {
                let mut waiting = self.waiting.iter();
                if let Some(own) = waiting.find(|waiting| waiting.owner == asked.owner) {
                    return Outcome::Waits { fence: own.fence };
                }
                self.waiting.push_back(asked);
                Outcome::Waits { fence: position }
            }
        }
    }
}

impl Object for LockState {
    const KIND: &'static str = "lock";
    type Update = Update;
    type Outcome = Outcome;

    fn apply(&mut self, position: Position, update: Update) -> Outcome {
        match update {
            Update::Acquire {
                owner,
                lease_ms,
                waits,
            } => return self.acquire(position, owner, lease_ms, waits),
            Update::Renew { fence } => {
                if let Some(holder) = self.holder.as_mut().filter(|holder| holder.fence == fence) {
                    holder.renewed = position;
                    return Outcome::Held { fence };
                }
            }
            Update::Release { fence } => {
                self.waiting.retain(|waiting| waiting.fence != fence);
                if self.is_held_by(fence) {
                    self.pass_on(position);
                }
            }
            Update::Expire { fence, renewed } => {
                // J2.
                let holder = self.holder.as_ref();
                if holder.is_some_and(|holder| (holder.fence, holder.renewed) == (fence, renewed)) {
                    self.pass_on(position);
                }
            }
        }
        self.not_held()
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        to.write(&self.holder);
        self.waiting.iter().for_each(|waiting| to.write(waiting));
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        let holder = from.read()?.unwrap_or_default();
        let mut waiting = VecDeque::new();
        while let Some(one) = from.read()? {
            waiting.push_back(one);
        }
        Ok(Self { holder, waiting })
    }

    fn seen(&self, part: &Part) -> Option<Seen> {
        // The one key that it has is the fence: renewals leave it as it is.
        Keys::seen(part, |_| {
            Seen::one(self.holder.as_ref().map(|holder| holder.fence))
        })
    }

    fn reset(&mut self, _: Position, _: Self) {
        // Who held it in the past must not hold it again: the present stays.
    }
}

/// A lock. Clones share one copy of it.
#[derive(Clone)]
pub struct Lock {
    view: View<LockState>,
}

/// The lock was not to be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LockError {
    /// Leases must be longer.
    #[error(
        "a lease of {asked:?}; expected at least {LEASE_MIN:?}, so that a crash of a server does not end it"
    )]
    TooShort {
        /// What was asked.
        asked: Duration,
    },
    /// What was asked of it could not be played.
    #[error(transparent)]
    Play(#[from] PlayError),
    /// What was asked of it is not known to have been done.
    #[error(transparent)]
    Decide(#[from] DecideError),
}

impl Lock {
    /// The lock of that name; if there is none, a new one, which is free.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(objects: &Objects, name: &str) -> Result<Self, OpenError> {
        let view = objects.open(name).await?;
        Ok(Self { view })
    }

    /// The lock that this view is of.
    pub fn of(view: View<LockState>) -> Self {
        Self { view }
    }

    /// The view that it is.
    pub fn view(&self) -> &View<LockState> {
        &self.view
    }

    /// Who holds it once everything acknowledged before this call is known: of an election, the leader.
    ///
    /// # Errors
    /// [`PlayError`].
    pub async fn holder(&self) -> Result<Option<Holder>, PlayError> {
        self.view.read(|state| state.holder.clone()).await
    }

    /// Takes the lock if it is free. None if somebody holds it, be it one that is gone: only who waits
    /// ([`Lock::acquire`]) finds that out, and takes it then.
    ///
    /// # Errors
    /// [`LockError`].
    pub async fn try_acquire(
        &self,
        owner: impl Into<Bytes>,
        lease: Duration,
    ) -> Result<Option<Held>, LockError> {
        let asked = Asked::new(owner, lease, false)?;
        let began = self.now();
        let (_, outcome) = self
            .view
            .update(&asked.update())
            .await
            .map_err(LockError::from)?;
        Ok(match outcome {
            Outcome::Held { fence } => Some(Held::new(self, fence, lease, began)),
            Outcome::Waits { .. } | Outcome::NotHeld { .. } => None,
        })
    }

    /// Takes the lock, and waits for it as long as it takes: the others have their turns first. Holders that do not renew it are
    /// gone when their leases are over. Dropping the future gives up waiting, sooner or later.
    ///
    /// # Errors
    /// [`LockError`].
    pub async fn acquire(
        &self,
        owner: impl Into<Bytes>,
        lease: Duration,
    ) -> Result<Held, LockError> {
        let asked = Asked::new(owner, lease, true)?;
        let mut watched = None;
        let mut began = self.now();
        let (_, outcome) = self
            .view
            .update(&asked.update())
            .await
            .map_err(LockError::from)?;
        if let Outcome::Held { fence } = outcome {
            return Ok(Held::new(self, fence, lease, began));
        }
        loop {
            self.pause(lease).await;
            began = self.now();
            let (holder, waits) = self
                .view
                .read(|state| {
                    let waits = state
                        .waiting
                        .iter()
                        .any(|waiting| waiting.owner == asked.owner);
                    (state.holder.clone(), waits)
                })
                .await?;
            match holder {
                Some(holder) if holder.owner == asked.owner => {
                    let held = Held::new(self, holder.fence, lease, began);
                    // It was taken for gone before it noticed that its turn had come: then it asks again.
                    if held.renew().await? {
                        return Ok(held);
                    }
                }
                // Somebody took this one for gone, or gave up in its name.
                Some(_) | None if !waits => drop(self.view.update(&asked.update()).await?),
                Some(holder) => self.expire_if_gone(&holder, &mut watched).await?,
                None => {}
            }
        }
    }

    fn now(&self) -> Moment {
        self.view.log().host().clock.now()
    }

    async fn pause(&self, lease: Duration) {
        let host = self.view.log().host();
        let pause = (lease / 20).clamp(Duration::from_millis(5), Duration::from_millis(250));
        host.clock.sleep(host.random.jittered(pause)).await;
    }

    /// Ends the turn of a holder that was seen not to renew for as long as its lease, by this process's own clock.
    async fn expire_if_gone(
        &self,
        holder: &Holder,
        watched: &mut Option<(Position, Moment)>,
    ) -> Result<(), LockError> {
        let now = self.now();
        let since = match watched {
            Some((renewed, since)) if *renewed == holder.renewed => *since,
            Some(_) | None => {
                *watched = Some((holder.renewed, now));
                now
            }
        };
        if now.since(since) > Duration::from_millis(holder.lease_ms) {
            let (fence, renewed) = (holder.fence, holder.renewed);
            self.view.update(&Update::Expire { fence, renewed }).await?;
        }
        Ok(())
    }
}

/// Who asks for a lock, and how.
struct Asked {
    owner: Bytes,
    lease_ms: u64,
    waits: bool,
}

impl Asked {
    fn new(owner: impl Into<Bytes>, lease: Duration, waits: bool) -> Result<Self, LockError> {
        if lease < LEASE_MIN {
            return Err(LockError::TooShort { asked: lease });
        }
        Ok(Self {
            owner: owner.into(),
            lease_ms: lease.as_millis() as u64,
            waits,
        })
    }

    fn update(&self) -> Update {
        Update::Acquire {
            owner: self.owner.clone(),
            lease_ms: self.lease_ms,
            waits: self.waits,
        }
    }
}

/// A lock that is held, and renewed in the background until this is dropped. Then it is free when the lease is over, or at once
/// after [`Held::release`].
pub struct Held {
    lock: Lock,
    fence: Position,
    renewing: Renewing,
}

impl Held {
    fn new(lock: &Lock, fence: Position, lease: Duration, began: Moment) -> Self {
        let renewed = lock.clone();
        let renew = move || renew(renewed.clone(), fence);
        Self {
            lock: lock.clone(),
            fence,
            renewing: Renewing::new(lock.view.log().host(), lease, began, renew),
        }
    }

    /// The position at which it came to be held: what transactions check, so that nobody who held it before can do harm.
    pub fn fence(&self) -> Position {
        self.fence
    }

    /// Whether, by this process's own clock, nobody else can hold the lock yet. A process that was stopped between this and what
    /// it does next may be wrong: see [`super::Transaction::fence`].
    pub fn is_held(&self) -> bool {
        self.renewing.is_held()
    }

    /// Renews it now. False if it is lost.
    ///
    /// # Errors
    /// [`DecideError`].
    pub async fn renew(&self) -> Result<bool, DecideError> {
        let renewal = renew(self.lock.clone(), self.fence);
        self.renewing.renewed(renewal).await
    }

    /// Gives it up.
    ///
    /// # Errors
    /// [`DecideError`]; it is free when the lease is over, whatever became of this.
    pub async fn release(self) -> Result<(), DecideError> {
        self.renewing.give_up();
        let fence = self.fence;
        self.lock.view.update(&Update::Release { fence }).await?;
        Ok(())
    }
}

async fn renew(lock: Lock, fence: Position) -> Result<bool, DecideError> {
    let (_, outcome) = lock.view.update(&Update::Renew { fence }).await?;
    Ok(matches!(outcome, Outcome::Held { .. }))
}

impl super::Transaction<'_> {
    /// The transaction takes place only if `lock` is held by this fence where it comes to lie in the log. If it is not now, it is
    /// a conflict each time it is tried.
    pub fn fence(&mut self, lock: &Lock, fence: Position) {
        self.expect(lock.view(), Part::Key(Bytes::new()), Seen::one(Some(fence)));
    }
}

#[cfg(test)]
mod tests;
