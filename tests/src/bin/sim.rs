//! Runs the simulator: a scenario for as many seeds as asked, and one line that replays the first that fails.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use milonga_host::{Clock, Random};
use tests::scenarios;
use tests::sim::{Outcome, Profile, run};

/// Plays a scenario on a simulated network from seeds. The same seed gives the same run.
///
/// `SIM_TRACE=1` in the environment prints every message of every run.
#[derive(Debug, Parser)]
#[command(after_help = "Example: sim --scenario echo --seeds 100 --from 1")]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The first seed; without it, one from the operating system.
    #[arg(long)]
    from: Option<u64>,
    /// Which faults: swarm, calm, network or crash.
    #[arg(long, default_value = "swarm", value_parser = Profile::NAMES)]
    profile: String,
    /// What is played; without it, every scenario.
    #[arg(long, value_parser = scenarios::names())]
    scenario: Option<String>,
    /// Seconds of real time after which no new seed is begun.
    #[arg(long)]
    seconds: Option<u64>,
    /// Prints the hash of every run.
    #[arg(long)]
    hashes: bool,
}

fn main() -> io::Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut out = io::stdout();
    let print = std::env::var_os("SIM_TRACE").is_some_and(|value| value == "1");
    let first = arguments
        .from
        .unwrap_or_else(|| Random::real().below(1 << 48));
    let clock = Clock::real();
    let until_ms = arguments
        .seconds
        .map(|seconds| clock.wall_ms() + seconds * 1_000);
    writeln!(
        out,
        "simulating from seed {first}, profile {}",
        arguments.profile
    )?;
    let mut total = Total::default();
    'seeds: for seed in first..first.saturating_add(arguments.seeds) {
        for (name, scenario) in scenarios::ALL {
            if arguments
                .scenario
                .as_deref()
                .is_some_and(|only| only != name)
            {
                continue;
            }
            if until_ms.is_some_and(|until_ms| clock.wall_ms() >= until_ms) {
                break 'seeds;
            }
            let Some(outcome) = run(seed, &arguments.profile, scenario, print) else {
                return Ok(ExitCode::from(2));
            };
            if arguments.hashes {
                writeln!(
                    out,
                    "{name} seed {seed}: hash {:016x}, {} lines, {} virtual ms",
                    outcome.hash, outcome.lines, outcome.virtual_ms
                )?;
            }
            report(&mut out, name, &arguments.profile, &outcome)?;
            total.add(name, &outcome);
        }
    }
    total.print(&mut out)?;
    Ok(ExitCode::from(u8::from(total.failed > 0)))
}

/// Says what a run violated, and how to see it again.
fn report(out: &mut impl Write, name: &str, profile: &str, outcome: &Outcome) -> io::Result<()> {
    const SHOWN: usize = 5;
    if outcome.violations.is_empty() {
        return Ok(());
    }
    let seed = outcome.seed;
    writeln!(out, "FAILED: {name}, seed {seed}")?;
    for violation in outcome.violations.iter().take(SHOWN) {
        writeln!(out, "  {violation}")?;
    }
    if outcome.violations.len() > SHOWN {
        writeln!(out, "  and {} more", outcome.violations.len() - SHOWN)?;
    }
    writeln!(
        out,
        "replay: SIM_TRACE=1 cargo run -p tests --bin sim -- --scenario {name} --profile {profile} --seeds 1 --from {seed}"
    )
}

/// What all runs met.
#[derive(Default)]
struct Total {
    runs: BTreeMap<&'static str, u64>,
    failed: u64,
    virtual_ms: u64,
    /// Per scenario and counter: in how many runs, and how often.
    counters: BTreeMap<(&'static str, &'static str), (u64, u64)>,
}

impl Total {
    fn add(&mut self, name: &'static str, outcome: &Outcome) {
        *self.runs.entry(name).or_default() += 1;
        self.failed += u64::from(!outcome.violations.is_empty());
        self.virtual_ms += outcome.virtual_ms;
        for (what, times) in &outcome.counters {
            let (runs, sum) = self.counters.entry((name, what)).or_default();
            *runs += 1;
            *sum += times;
        }
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        for (name, runs) in &self.runs {
            writeln!(
                out,
                "{name}: {runs} runs; how many met what, and how often:"
            )?;
            let met = self.counters.iter().filter(|((of, _), _)| of == name);
            for ((_, what), (in_runs, times)) in met {
                writeln!(out, "  {what}: {in_runs} runs, {times} times")?;
            }
        }
        let runs: u64 = self.runs.values().sum();
        let (failed, seconds) = (self.failed, self.virtual_ms / 1_000);
        writeln!(
            out,
            "simulation: {runs} runs, {failed} failed, {seconds} virtual seconds"
        )
    }
}
