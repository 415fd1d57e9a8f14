//! Which faults a run meets, and how often: derived from the seed, so that a thousand seeds are a thousand mixtures.
//!
//! Turning everything on at once hides what only shows when most things work; each fault is off in half of the seeds.

use std::time::Duration;

use milonga_host::Random;

/// What may happen to a message. Rates are per million.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetworkFaults {
    /// The least time a message travels, in microseconds.
    pub latency_us_min: u64,
    /// The most, but for stragglers.
    pub latency_us_max: u64,
    /// How many messages are stragglers.
    pub straggle_ppm: u64,
    /// The most time a straggler travels.
    pub straggle_us_max: u64,
    /// How many messages are lost.
    pub lose_ppm: u64,
    /// How many requests arrive a second time, perhaps much later.
    pub duplicate_ppm: u64,
    /// The most time by which a duplicate is late.
    pub duplicate_us_max: u64,
    /// How many calls break all calls in flight between their two nodes.
    pub break_ppm: u64,
    /// Over how many independent lanes a caller spreads its calls: with one, requests never overtake each other (N3).
    pub lanes: u64,
}

impl NetworkFaults {
    /// Messages take up to a millisecond and nothing happens to them.
    pub fn none() -> Self {
        Self {
            latency_us_min: 100,
            latency_us_max: 1_000,
            straggle_ppm: 0,
            straggle_us_max: 0,
            lose_ppm: 0,
            duplicate_ppm: 0,
            duplicate_us_max: 0,
            break_ppm: 0,
            lanes: 1,
        }
    }
}

/// What a run may meet. A scenario takes from it what it has a use for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Profile {
    /// What may happen to messages.
    pub network: NetworkFaults,
    /// The mean time between two crashes of a process; none: no crashes.
    pub crash_every: Option<Duration>,
    /// How long a crashed process stays away at most.
    pub down_max: Duration,
    /// The mean time between two partitions.
    pub partition_every: Option<Duration>,
    /// How long a partition stands at most.
    pub partition_max: Duration,
    /// Whether partitions may block one direction only.
    pub one_way: bool,
    /// The mean time between two freezes of a process.
    pub freeze_every: Option<Duration>,
    /// How long a freeze lasts at most.
    pub freeze_max: Duration,
    /// Millionths by which clocks run fast or slow at most.
    pub skew_ppm_max: i32,
    /// Whether unsynced bytes may survive a crash in part (else they all vanish).
    pub torn: bool,
    /// Whether one disk of each group of replicas lies: it says that bytes are synced, and forgets them in a crash.
    pub lying: bool,
    /// How many clients there are.
    pub clients: u64,
    /// How long clients keep asking.
    pub busy: Duration,
}

/// Less than anybody waits for a sign of life.
const LATE_UNNOTICED: Duration = Duration::from_millis(150);

impl Profile {
    /// Whether nobody is taken for dead who is not: nobody is cut off or frozen, and no message is lost or very late.
    pub fn is_steady(&self) -> bool {
        self.partition_every.is_none()
            && self.freeze_every.is_none()
            && self.network.lose_ppm == 0
            && (self.network.straggle_ppm == 0
                || Duration::from_micros(self.network.straggle_us_max) <= LATE_UNNOTICED)
    }

    /// The profile without whatever gets a healthy server left out.
    #[must_use]
    pub fn steadied(self) -> Self {
        let late = self
            .network
            .straggle_us_max
            .min(LATE_UNNOTICED.as_micros() as u64);
        Self {
            partition_every: None,
            freeze_every: None,
            network: NetworkFaults {
                lose_ppm: 0,
                straggle_us_max: late,
                ..self.network
            },
            ..self
        }
    }

    /// The names that [`Profile::named`] takes.
    pub const NAMES: [&'static str; 4] = ["swarm", "calm", "network", "crash"];

    /// Nothing goes wrong.
    pub fn calm() -> Self {
        Self {
            network: NetworkFaults::none(),
            crash_every: None,
            down_max: Duration::from_secs(1),
            partition_every: None,
            partition_max: Duration::from_secs(2),
            one_way: false,
            freeze_every: None,
            freeze_max: Duration::from_secs(2),
            skew_ppm_max: 0,
            torn: false,
            lying: false,
            clients: 3,
            busy: Duration::from_secs(10),
        }
    }

    /// The profile of `name` for the seed behind `random`: `swarm` draws everything, `network` only what happens to
    /// messages and clocks, `crash` only what happens to processes and disks, `calm` nothing.
    pub fn named(name: &str, random: &Random) -> Option<Self> {
        let swarm = Self::swarm(random);
        let calm = Self {
            clients: swarm.clients,
            busy: swarm.busy,
            ..Self::calm()
        };
        match name {
            "swarm" => Some(swarm),
            "calm" => Some(calm),
            "network" => Some(Self {
                crash_every: None,
                freeze_every: None,
                torn: false,
                lying: false,
                ..swarm
            }),
            "crash" => Some(Self {
                network: NetworkFaults::none(),
                partition_every: None,
                skew_ppm_max: 0,
                crash_every: Some(swarm.crash_every.unwrap_or(Duration::from_secs(3))),
                ..swarm
            }),
            _ => None,
        }
    }

    fn swarm(random: &Random) -> Self {
        Self {
            network: swarm_network(random),
            crash_every: maybe(random, || seconds(random, 1, 15)),
            down_max: *pick(
                random,
                &[
                    Duration::from_millis(50),
                    Duration::from_secs(1),
                    Duration::from_secs(10),
                ],
            ),
            partition_every: maybe(random, || seconds(random, 1, 6)),
            partition_max: Duration::from_secs(*pick(random, &[2, 10, 40])),
            one_way: flip(random),
            freeze_every: maybe(random, || seconds(random, 3, 20)),
            freeze_max: seconds(random, 1, 15),
            skew_ppm_max: *pick(random, &[0, 0, 500, 200_000]),
            torn: flip(random),
            lying: chance(random, 300_000),
            clients: 1 + random.below(5),
            busy: seconds(random, 3, 20),
        }
    }
}

fn swarm_network(random: &Random) -> NetworkFaults {
    let latency_us_max = *pick(random, &[500, 2_000, 10_000, 50_000]);
    NetworkFaults {
        latency_us_min: *pick(random, &[0, 100, latency_us_max / 2]),
        latency_us_max,
        straggle_ppm: *pick(random, &[0, 0, 1_000, 50_000]),
        straggle_us_max: *pick(random, &[100_000, 2_000_000, 60_000_000]),
        lose_ppm: *pick(random, &[0, 0, 100, 10_000, 50_000]),
        duplicate_ppm: *pick(random, &[0, 0, 1_000, 50_000]),
        duplicate_us_max: *pick(random, &[10_000, 5_000_000, 60_000_000]),
        break_ppm: *pick(random, &[0, 0, 100, 5_000]),
        lanes: *pick(random, &[1, 1, 2, 4]),
    }
}

/// One of `choices`.
///
/// # Panics
/// If there is none.
pub fn pick<'a, T>(random: &Random, choices: &'a [T]) -> &'a T {
    &choices[random.below(choices.len() as u64) as usize]
}

/// True in half of all draws.
pub fn flip(random: &Random) -> bool {
    random.below(2) == 1
}

/// True in `ppm` of a million draws.
pub fn chance(random: &Random, ppm: u64) -> bool {
    ppm > 0 && random.below(1_000_000) < ppm
}

/// What `draw` gives, in half of all draws. It draws in the other half too, so that one choice does not shift the rest.
fn maybe<T>(random: &Random, draw: impl FnOnce() -> T) -> Option<T> {
    let wanted = flip(random);
    Some(draw()).filter(|_| wanted)
}

fn seconds(random: &Random, least: u64, most: u64) -> Duration {
    Duration::from_secs(least + random.below(most - least + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_comes_from_the_seed_alone() {
        for seed in 0..50 {
            for name in Profile::NAMES {
                let again = || Profile::named(name, &Random::seeded(seed));
                assert!(again().is_some());
                assert_eq!(again(), again());
            }
        }
        assert_eq!(Profile::named("none such", &Random::seeded(1)), None);
    }

    /// Every fault has to be on in some seeds and off in others, or it hides what happens without it.
    #[test]
    fn every_fault_is_on_in_some_seeds_and_off_in_others() {
        let profiles: Vec<Profile> = (0..200)
            .filter_map(|seed| Profile::named("swarm", &Random::seeded(seed)))
            .collect();
        let faults: [fn(&Profile) -> bool; 10] = [
            |p| p.network.straggle_ppm > 0,
            |p| p.network.lose_ppm > 0,
            |p| p.network.duplicate_ppm > 0,
            |p| p.network.break_ppm > 0,
            |p| p.network.lanes > 1,
            |p| p.crash_every.is_some(),
            |p| p.partition_every.is_some(),
            |p| p.freeze_every.is_some(),
            |p| p.torn,
            |p| p.lying,
        ];
        for (index, fault) in faults.iter().enumerate() {
            let on = profiles.iter().filter(|profile| fault(profile)).count();
            assert!(
                (20..=180).contains(&on),
                "fault {index} is on in {on} of 200"
            );
        }
    }
}
