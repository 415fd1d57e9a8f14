//! One run: a seed, a profile, a scenario, and what came of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Once;
use std::time::Duration;

use milonga_host::{BoxFuture, Random};

use super::faults::Profile;
use super::world::World;

/// Virtual time after which a run is taken for one that hangs.
const RUN_MAX: Duration = Duration::from_secs(3_600);

/// What a run plays: it builds a cluster in the world, troubles it, and checks it. What it finds wrong it reports
/// through [`World::violation`].
pub type Scenario = fn(World, Profile) -> BoxFuture<'static, ()>;

/// What came of a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// The hash of its trace.
    pub hash: u64,
    /// The lines of its trace.
    pub lines: u64,
    /// Virtual milliseconds it took.
    pub virtual_ms: u64,
    /// What was counted.
    pub counters: BTreeMap<&'static str, u64>,
    /// What must not happen and did.
    pub violations: Vec<String>,
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(vec![]) };
}

/// Plays `scenario` with the profile that `profile` gives for `seed`; nothing if there is no profile of that name.
///
/// # Panics
/// If the runtime cannot be made.
pub fn run(seed: u64, profile: &str, scenario: Scenario, print: bool) -> Option<Outcome> {
    let profile = Profile::named(profile, &Random::seeded(seed))?;
    keep_panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime of one thread can be made");
    let outcome = runtime.block_on(async move {
        let world = World::new(seed, print);
        world.note(&format!("{profile:?}"));
        let clock = world.clock().clone();
        // In a task of its own: an assertion that fails in it is a violation, not the end of the program.
        let played = tokio::spawn(scenario(world.clone(), profile));
        let in_time = clock.within(RUN_MAX, played).await;
        let virtual_ms = world.now_us() / 1_000;
        let (mut violations, trace) = world.end();
        if in_time.is_err() {
            violations.push(format!(
                "the run hangs: no end after {RUN_MAX:?} of virtual time"
            ));
        }
        // A task that a server started may have failed, too: its runtime swallows that.
        violations.extend(PANICS.with(RefCell::take));
        Outcome {
            seed,
            hash: trace.hash(),
            lines: trace.lines(),
            virtual_ms,
            counters: trace.counters().clone(),
            violations,
        }
    });
    Some(outcome)
}

/// From now on, what panics in a thread is remembered there.
fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.push(format!("panic: {panic}")));
            before(panic);
        }));
    });
    PANICS.with(RefCell::take);
}
