//! How busy the disk has been lately: what part of the last ten seconds commits, new files and verifying took.

use std::time::Duration;

use milonga_host::Moment;

/// Seconds looked back.
const SECONDS: usize = 10;

/// The time that work took in each of the last seconds.
#[derive(Clone, Debug)]
pub(super) struct Load {
    began: Moment,
    /// The second that `took[second % SECONDS]` is about.
    second: u64,
    took: [Duration; SECONDS],
}

impl Load {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            began: now,
            second: 0,
            took: [Duration::ZERO; SECONDS],
        }
    }

    /// Work that ended `now` after it took so long.
    pub(super) fn note(&mut self, now: Moment, took: Duration) {
        self.turn(now);
        let whole = Duration::from_secs(1);
        let mut second = self.second;
        let mut here = now.since(self.began).saturating_sub(whole * second as u32);
        let mut rest = took;
        loop {
            let part = rest.min(here);
            self.took[slot(second)] += part;
            rest -= part;
            let oldest = self.second.saturating_sub(SECONDS as u64 - 1);
            if rest.is_zero() || second == oldest {
                return;
            }
            (second, here) = (second - 1, whole);
        }
    }

    /// Per mille of the last seconds, the one under way not counted unless it is the first.
    pub(super) fn per_mille(&mut self, now: Moment) -> u32 {
        self.turn(now);
        let here = slot(self.second);
        let of = |(number, took): (usize, &Duration)| (number != here).then_some(*took);
        let past = self.second.min(SECONDS as u64 - 1) as u32;
        let (took, time) = if past == 0 {
            (self.took[here], now.since(self.began))
        } else {
            let took = self.took.iter().enumerate().filter_map(of).sum();
            (took, Duration::from_secs(1) * past)
        };
        let share = took.as_micros() * 1_000 / time.as_micros().max(1);
        share.min(1_000) as u32
    }

    /// Forgets the seconds that are over.
    fn turn(&mut self, now: Moment) {
        let second = now.since(self.began).as_secs();
        let passed = second.saturating_sub(self.second).min(SECONDS as u64);
        for number in 0..passed {
            self.took[slot(second - number)] = Duration::ZERO;
        }
        self.second = second.max(self.second);
    }
}

fn slot(second: u64) -> usize {
    (second % SECONDS as u64) as usize
}

#[cfg(test)]
mod tests {
    use milonga_host::Clock;

    use super::*;

    /// What is said is the mean of whole seconds, and a unit that has nothing to do is idle ten seconds later.
    #[test]
    fn the_load_is_that_of_the_last_seconds() {
        let began = Clock::real().now();
        let at = |millis| began.plus(Duration::from_millis(millis));
        let mut load = Load::new(began);
        assert_eq!(load.per_mille(at(0)), 0);
        load.note(at(100), Duration::from_millis(50));
        assert_eq!(
            load.per_mille(at(200)),
            250,
            "the first second as far as it has come"
        );
        for second in 0..20 {
            load.note(at(second * 1_000 + 900), Duration::from_millis(400));
        }
        assert_eq!(load.per_mille(at(20_500)), 400);
        assert_eq!(load.per_mille(at(25_500)), 400 * 4 / 9);
        load.note(at(25_600), Duration::from_secs(60));
        assert_eq!(load.per_mille(at(26_000)), 1_000);
        assert_eq!(load.per_mille(at(99_000)), 0);
        load.note(at(99_100), Duration::from_secs(3));
        assert_eq!(
            load.per_mille(at(99_100)),
            2_900 / 9,
            "it counts for the seconds it took"
        );
    }
}
