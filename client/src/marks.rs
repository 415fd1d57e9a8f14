//! Settled marks by chain: below one, every unit of the chain holds what the tail held, so any of them may be read.
//!
//! A mark is taken only from that chain's tail, in this client's term (H42), and stays good for the same process starts.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use milonga_host::{Clock, Moment};
use milonga_wire::{Chain, Identity, Incarnation, Layout, Position};

use crate::settle::ChainKey;

/// How long a mark is used before the tail is asked for a newer one.
const REFRESH: Duration = Duration::from_millis(20);

/// What one chain's tail said.
struct Mark {
    units: Vec<(Identity, Incarnation)>,
    position: Position,
    learnt: Moment,
    /// Since when the tail has said the same.
    since: Moment,
    /// Somebody settles what keeps it down.
    is_pushed: bool,
}

/// The marks this client knows.
#[derive(Default)]
pub(crate) struct Marks(Mutex<BTreeMap<ChainKey, Mark>>);

impl Marks {
    /// The mark of `chain`, if it was learnt from these very process starts; else the first position.
    pub(crate) fn of(&self, layout: &Layout, chain: &Chain, key: ChainKey) -> Position {
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match marks.get(&key) {
            Some(mark) if mark.units == units(layout, chain) => mark.position,
            Some(_) | None => Position::FIRST,
        }
    }

    /// Whether the tail of `chain` should be asked again.
    pub(crate) fn is_due(&self, key: ChainKey, clock: &Clock) -> bool {
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        marks
            .get(&key)
            .is_none_or(|mark| clock.now().since(mark.learnt) > REFRESH)
    }

    /// Remembers what the tail of `chain` said. Says whether it has said the same for `long` and nobody settles what keeps it
    /// down: the caller does, then says [`Marks::pushed`]. One at a time, or a hole that cannot be settled yet draws a crowd.
    pub(crate) fn note(
        &self,
        layout: &Layout,
        chain: &Chain,
        key: ChainKey,
        position: Position,
        clock: &Clock,
        long: Duration,
    ) -> bool {
        let learnt = clock.now();
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = marks.get(&key).filter(|mark| mark.position == position);
        let since = same.map_or(learnt, |mark| mark.since);
        let is_stuck = learnt.since(since) >= long;
        let was_pushed = marks.get(&key).is_some_and(|mark| mark.is_pushed);
        let mark = Mark {
            units: units(layout, chain),
            position,
            learnt,
            since: if is_stuck { learnt } else { since },
            is_pushed: is_stuck || was_pushed,
        };
        marks.insert(key, mark);
        is_stuck && !was_pushed
    }

    /// Nobody settles what keeps the mark of `key` down any more.
    pub(crate) fn pushed(&self, key: ChainKey) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mark) = marks.get_mut(&key) {
            mark.is_pushed = false;
        }
    }
}

fn units(layout: &Layout, chain: &Chain) -> Vec<(Identity, Incarnation)> {
    layout
        .units_of(chain)
        .map(|unit| (unit.identity, unit.incarnation))
        .collect()
}

#[cfg(test)]
mod tests {
    use milonga_wire::Role;

    use super::*;
    use crate::testing::Cluster;

    /// H42: another process start may lack what the mark speaks of; a mere change of term takes nothing away.
    #[tokio::test(start_paused = true)]
    async fn a_mark_is_good_for_the_process_starts_it_was_learnt_from() {
        let cluster = Cluster::new(1, 2, 1);
        let log = cluster.client(Role::Reader);
        let marks = Marks::default();
        let key = (Position::FIRST, 0, 1, 1);
        let of = |layout: &Layout| marks.of(layout, &layout.segments[0].chains[0], key);
        let layout = cluster.layout();
        let chain = &layout.segments[0].chains[0];
        let clock = &log.host().clock;
        assert_eq!(of(&layout), Position::FIRST);
        marks.note(&layout, chain, key, Position(7), clock, Duration::MAX);
        assert_eq!(of(&layout), Position(7));

        assert_eq!(of(&cluster.next_term().await), Position(7));
        cluster.restart_unit("u-00");
        assert_eq!(of(&cluster.next_term().await), Position::FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn what_keeps_a_mark_down_is_settled_by_one_at_a_time() {
        let cluster = Cluster::new(1, 2, 1);
        let log = cluster.client(Role::Reader);
        let (marks, clock) = (Marks::default(), &log.host().clock);
        let key = (Position::FIRST, 0, 1, 1);
        let layout = cluster.layout();
        let chain = &layout.segments[0].chains[0];
        let note = |position| marks.note(&layout, chain, key, position, clock, REFRESH);
        assert!(!note(Position(7)));
        clock.sleep(REFRESH).await;
        assert!(note(Position(7)));
        clock.sleep(REFRESH).await;
        assert!(!note(Position(7)), "somebody is at it");
        marks.pushed(key);
        assert!(!note(Position(8)), "it moved");
        clock.sleep(REFRESH).await;
        assert!(note(Position(8)));
    }
}
