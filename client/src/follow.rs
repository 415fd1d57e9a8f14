//! Following: every entry from a position on, once, in order, as the log grows.

use std::collections::VecDeque;
use std::time::Duration;

use milonga_wire::{Position, Span};

use crate::entry::{Entry, Kind};
use crate::log::Log;
use crate::read::{ReadError, Round};
use crate::trouble::Patience;

/// How long a follower that has caught up waits before it looks again: from the first to the second, doubling.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// A place in the log that moves on. It waits at the end for more.
pub struct Follower {
    log: Log,
    next: Position,
    ready: VecDeque<Entry>,
    pause: Duration,
}

impl Log {
    /// Follows the log from `position` on.
    pub fn follow(&self, position: Position) -> Follower {
        Follower {
            log: self.clone(),
            next: position,
            ready: VecDeque::new(),
            pause: PAUSES.0,
        }
    }
}

impl Follower {
    /// The position of the entry that [`Follower::next`] brings.
    pub fn position(&self) -> Position {
        self.ready.front().map_or(self.next, |entry| entry.position)
    }

    /// The next entry: data, junk, trimmed or lost, never a gap. Waits for as long as it takes at the end of the log.
    ///
    /// # Errors
    /// [`ReadError`] if the log could not be read for the client's deadline. The follower stays where it is: call again.
    pub async fn next(&mut self) -> Result<Entry, ReadError> {
        loop {
            if let Some(entry) = self.next_ready().await? {
                return Ok(entry);
            }
            // Holes below the end are settled by the read; only the end itself is waited at (H34).
            self.log.host().clock.sleep(self.pause).await;
            self.pause = (self.pause * 2).min(PAUSES.1);
        }
    }

    /// The next entry, or none if the follower has caught up with the end of the log (or, if the client settles nothing,
    /// with a hole).
    ///
    /// # Errors
    /// As [`Follower::next`].
    pub async fn next_ready(&mut self) -> Result<Option<Entry>, ReadError> {
        if self.ready.is_empty() {
            let span = Span::new(self.next, Position(u64::MAX));
            let host = self.log.host();
            let mut patience = Patience::new(&host.clock, &host.random, self.log.options.deadline);
            match self.log.round(span, &mut patience).await? {
                // A client that settles nothing is shown holes. What is in flight there must not be passed by.
                Round::Entries(entries) if entries[0].kind == Kind::Unwritten => return Ok(None),
                Round::Entries(entries) => {
                    self.pause = PAUSES.0;
                    self.ready = entries.into();
                }
                Round::Ended(_) => return Ok(None),
            }
        }
        let entry = self.ready.pop_front();
        if let Some(entry) = &entry {
            self.next = entry.position.next();
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests;
