//! Watching a map: its changes from a position on, each once and in order.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use milonga_wire::Position;

use super::{Keys, MapState, Outcome, Update, Versioned};
use crate::object::playback::Playback;
use crate::object::{Object, PlayError, View};

/// How long a watch that has caught up waits before it looks again: from the first to the second, doubling.
const PAUSES: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// One change of one key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// The position of the write that made it.
    pub position: Position,
    /// The key.
    pub key: Bytes,
    /// Its new value; none if it was removed.
    pub value: Option<Bytes>,
}

/// Follows the changes of some keys. Writes that changed nothing (a conflict, a delete of what was not there) are none.
pub struct Watch {
    view: View<MapState>,
    keys: Keys,
    from: Position,
    state: MapState,
    playback: Playback,
    ready: VecDeque<Change>,
    pause: Duration,
}

impl Watch {
    pub(super) fn new(view: &View<MapState>, keys: Keys, from: Position) -> Self {
        let (state, playback) = view.copy_below(from).unwrap_or_else(|| {
            let playback = Playback::behind(view.log(), view.stream(), None);
            (MapState::default(), playback)
        });
        Self {
            view: view.clone(),
            keys,
            from,
            state,
            playback,
            ready: VecDeque::new(),
            pause: PAUSES.0,
        }
    }

    /// The next change. Waits for as long as it takes.
    ///
    /// # Errors
    /// [`PlayError`]. The watch stays where it is: after [`PlayError::Unavailable`], call again and nothing is missed.
    pub async fn next(&mut self) -> Result<Change, PlayError> {
        loop {
            if let Some(change) = self.next_ready().await? {
                self.pause = PAUSES.0;
                return Ok(change);
            }
            self.view.log().host().clock.sleep(self.pause).await;
            self.pause = (self.pause * 2).min(PAUSES.1);
        }
    }

    /// The next change; none if it has told every change that was acknowledged before this call.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub async fn next_ready(&mut self) -> Result<Option<Change>, PlayError> {
        let mut has_asked = false;
        loop {
            if let Some(change) = self.ready.pop_front() {
                return Ok(Some(change));
            }
            if !self.playback.has_begun() {
                if has_asked {
                    return Ok(None);
                }
                // All watches of a view share its rounds, and ask no server themselves if it brought nothing new.
                has_asked = true;
                let end = self.view.synced().await?;
                if self.view.applied() == self.playback.applied() {
                    return Ok(None);
                }
                self.playback.begin(&end);
            }
            self.play_some().await?;
        }
    }

    async fn play_some(&mut self) -> Result<(), PlayError> {
        let (state, ready) = (&mut self.state, &mut self.ready);
        let (keys, from) = (&self.keys, self.from);
        let mut apply = |position, _, update: Update| {
            let key = update.key().clone();
            let value = match state.apply(position, update) {
                Outcome::Put => state.get(&key).map(|Versioned { value, .. }| value),
                Outcome::Deleted { existed: true } => None,
                Outcome::Deleted { existed: false } | Outcome::Conflict { .. } => return,
            };
            if position >= from && keys.contains(&key) {
                ready.push_back(Change {
                    position,
                    key,
                    value,
                });
            }
        };
        self.playback.play_some(&mut apply).await.map(drop)
    }
}
