//! `milonga cluster`, what changes the layout: each command shows with `--plan` what it would bring, and makes it.

use std::time::Duration;

use clap::Subcommand;
use milonga_client::Log;
use milonga_client::reconfigure::{self, Preview, Wish};
use milonga_wire::{Layout, Position, Span};
use serde::Serialize;

use super::{Context, status};
use crate::failure::{Code, Failure, Outcome};
use crate::output::{bytes, progress, say, table};

/// Between two looks at how far a copy is.
const LOOK: Duration = Duration::from_millis(500);
/// What the history shows unless told otherwise.
const WHY: &str = "asked for on the command line";

#[derive(Debug, Subcommand)]
pub(super) enum ChangeCommand {
    /// Takes a unit out of every chain; a spare, if there is one, takes its place at once.
    #[command(after_help = "Example:
  milonga cluster evict unit-2 --plan
  milonga cluster evict unit-2 --wait

A unit that is needed, since nobody else is sure to hold what it holds, is not let go. `remove-unit` leaves its place
empty; `drain` copies first.")]
    Evict {
        /// The unit, by name or address.
        unit: String,
        /// Lets it go even if only it holds some entries: those are lost, and recorded as lost (admin).
        #[arg(long)]
        force_lose_data: bool,
        #[command(flatten)]
        how: How,
    },
    /// Puts one unit in the place of another; closed positions are copied to it afterwards.
    #[command(after_help = "Example:
  milonga cluster replace unit-2 10.0.0.9:7021 --wait
  milonga cluster replace unit-2 unit-7        # unit-7 is a spare")]
    Replace {
        /// Who leaves, by name or address.
        old: String,
        /// Who comes: a spare's name, or a new unit's address.
        new: String,
        /// Lets the old one go even if only it holds some entries: those are lost, and recorded as lost (admin).
        #[arg(long)]
        force_lose_data: bool,
        #[command(flatten)]
        how: How,
    },
    /// Adds a unit to the end of a chain, for new positions.
    #[command(after_help = "Example:
  milonga cluster add-unit 0 10.0.0.9:7021

How many units a chain should have stays as it is: see `milonga cluster set replicas=N`.")]
    AddUnit {
        /// The chain's number, from 0, as `cluster status` lists them.
        chain: usize,
        /// A spare's name, or a new unit's address.
        unit: String,
        #[command(flatten)]
        how: How,
    },
    /// Takes a unit out for good: no spare takes its place.
    #[command(after_help = "Example:
  milonga cluster remove-unit unit-3

`evict` differs in that a spare takes the place at once. A chain that is shorter than `replicas` afterwards is given a
spare by the next heal, if there is one: lower the number with `milonga cluster set replicas=N` if it is to stay so.")]
    RemoveUnit {
        /// The unit or spare, by name or address.
        unit: String,
        #[command(flatten)]
        how: How,
    },
    /// Adds a chain for new positions: more throughput.
    #[command(after_help = "Example:
  milonga cluster add-chain 10.0.0.7:7021,10.0.0.8:7021,10.0.0.9:7021")]
    AddChain {
        /// Its units, head first: spares' names, or new units' addresses.
        #[arg(required = true, value_delimiter = ',')]
        units: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// Takes a chain out of what takes new positions; what it holds stays where it is.
    #[command(after_help = "Example:
  milonga cluster remove-chain 1")]
    RemoveChain {
        /// Its number, from 0, as `cluster status` lists them.
        chain: usize,
        #[command(flatten)]
        how: How,
    },
    /// Makes a unit stand ready for the next one that leaves.
    #[command(after_help = "Example:
  milonga cluster add-spare 10.0.0.9:7021")]
    AddSpare {
        /// A new unit's address.
        unit: String,
        #[command(flatten)]
        how: How,
    },
    /// Takes a unit out, but not before a spare holds all that it holds: no position has fewer copies meanwhile.
    #[command(after_help = "Example:
  milonga cluster drain unit-2

It takes several terms. If it is interrupted, the same command goes on where it ended.")]
    Drain {
        /// The unit, by name or address.
        unit: String,
        #[command(flatten)]
        how: How,
    },
    /// Gives short chains spares, and copies what closed positions lack.
    #[command(after_help = "Example:
  milonga cluster heal --wait")]
    Heal {
        #[command(flatten)]
        how: How,
    },
    /// Lets a standby issue positions from now on.
    #[command(after_help = "Example:
  milonga cluster move-sequencer sequencer-2")]
    MoveSequencer {
        /// The standby, by name or address.
        sequencer: String,
        #[command(flatten)]
        how: How,
    },
    /// Ends the term: the next one lists every server as it runs now, with a fresh sequencer.
    #[command(after_help = "Example:
  milonga cluster rebuild-sequencer")]
    RebuildSequencer {
        #[command(flatten)]
        how: How,
    },
    /// Adds a sequencer that takes over when the present one fails.
    #[command(after_help = "Example:
  milonga cluster add-standby 10.0.0.3:7011")]
    AddStandby {
        /// Its address.
        sequencer: String,
        #[command(flatten)]
        how: How,
    },
    /// Takes a standby sequencer out of the layout.
    #[command(after_help = "Example:
  milonga cluster remove-standby sequencer-2")]
    RemoveStandby {
        /// The standby, by name or address.
        sequencer: String,
        #[command(flatten)]
        how: How,
    },
    /// Changes who decides layouts: all of them, those that stay by name, new ones by address.
    #[command(after_help = "Example:
  milonga cluster set-layout-servers layout-1,layout-2,10.0.0.9:7001    # replaces layout-3
  milonga cluster set-layout-servers layout-1                           # one is enough

It is done when a majority of the new ones hold the history. Then name them in the cluster files of clients and the
configuration of servers (`layout`); those that left tell who asks them of their successors for as long as they run.")]
    SetLayoutServers {
        /// 1, 3 or 5 of them.
        #[arg(required = true, value_delimiter = ',')]
        servers: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// Changes a setting: `stripe-width`, `replicas` or `trust-restarted`.
    #[command(after_help = "Example:
  milonga cluster set stripe-width=512
  milonga cluster set replicas=3 --wait
  milonga cluster set trust-restarted=never")]
    Set {
        /// `stripe-width=N`, `replicas=N`, `trust-restarted=always` or `trust-restarted=never`.
        #[arg(value_parser = setting)]
        setting: Setting,
        #[command(flatten)]
        how: How,
    },
    /// Gives up what no unit that answers holds of these positions: they become junk, and nobody waits for them (admin).
    #[command(after_help = "Example:
  milonga cluster declare-lost 1000..1010 --plan
  milonga cluster declare-lost 1000..1010 --yes-lose-data

What some unit still holds there is restored, and stays readable.")]
    DeclareLost {
        /// The positions: from the first, up to and without the last.
        #[arg(value_name = "FROM..TO", value_parser = span)]
        span: Span,
        /// Says that this is meant.
        #[arg(long, required_unless_present = "plan")]
        yes_lose_data: bool,
        #[command(flatten)]
        how: How,
    },
}

/// What every change takes.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct How {
    /// Shows what it would bring, and changes nothing.
    #[arg(long)]
    plan: bool,
    /// Waits until it is fully in effect: until nothing is left to copy.
    #[arg(long, conflicts_with = "plan")]
    wait: bool,
    /// What the history is to say of it.
    #[arg(long, value_name = "TEXT", default_value = WHY, hide_default_value = true)]
    why: String,
}

/// What `set` sets.
#[derive(Copy, Clone, Debug)]
pub(super) enum Setting {
    StripeWidth(u32),
    Replicas(u16),
    TrustRestarted(bool),
}

fn setting(text: &str) -> Result<Setting, String> {
    let expected = "expected `stripe-width=N`, `replicas=N` or `trust-restarted=always|never`";
    let (key, value) = text.split_once('=').ok_or(expected)?;
    let number = |what: &str| format!("`{value}` is no number of {what}; expected e.g. `{key}=3`");
    match (key, value) {
        ("stripe-width", _) => value
            .parse()
            .map(Setting::StripeWidth)
            .map_err(|_| number("positions")),
        ("replicas", _) => value
            .parse()
            .map(Setting::Replicas)
            .map_err(|_| number("units")),
        ("trust-restarted", "always") => Ok(Setting::TrustRestarted(true)),
        ("trust-restarted", "never") => Ok(Setting::TrustRestarted(false)),
        _ => Err(expected.to_owned()),
    }
}

fn span(text: &str) -> Result<Span, String> {
    let parsed = || {
        let (from, to) = text.split_once("..")?;
        Some(Span::new(
            Position(from.parse().ok()?),
            Position(to.parse().ok()?),
        ))
    };
    let span = parsed().ok_or("expected FROM..TO, e.g. `1000..1010`")?;
    if span.is_empty() {
        return Err(format!("{span} holds no position; expected FROM below TO"));
    }
    Ok(span)
}

/// A change that was made.
#[derive(Serialize)]
struct Made<'a> {
    term: u64,
    layout: &'a Layout,
}

/// A change that was only shown.
#[derive(Serialize)]
struct Planned<'a> {
    term: u64,
    layout: &'a Layout,
    plan: Plan,
}

#[derive(Serialize)]
struct Plan {
    terms: u64,
    change: String,
    redundancy: Vec<Redundancy>,
    copies: Vec<Copying>,
    copy_positions: u64,
    copy_bytes: u64,
    reach: Vec<Reached>,
    lost: Vec<String>,
}

#[derive(Serialize)]
struct Redundancy {
    start: u64,
    end: Option<u64>,
    chain: usize,
    before: usize,
    after: usize,
    target: usize,
}

#[derive(Serialize)]
struct Copying {
    unit: String,
    start: u64,
    chain: usize,
    positions: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Reached {
    name: String,
    address: String,
    answers: bool,
}

impl ChangeCommand {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        let (wish, how) = self.asked();
        // What is asked for, and nothing beside it.
        let log = context
            .cluster
            .connect_with(|options| options.attend = false)?;
        if how.plan {
            return show(context, &reconfigure::plan(&log, &wish).await?);
        }
        if wish.may_lose() {
            warn(&log, &wish).await?;
        }
        let work = make(&log, &wish, &how);
        let layout = if how.wait || matches!(wish, Wish::Drain { .. } | Wish::Heal) {
            watched(&log, &wish, work).await?
        } else {
            work.await?
        };
        let term = layout.term.0;
        let made = Made {
            term,
            layout: &layout,
        };
        context.output.one(&made, || {
            format!(
                "term {term}: {}\n\n{}",
                layout.origin.change,
                drawn(&layout)
            )
        })
    }

    fn asked(self) -> (Wish, How) {
        match self {
            Self::Evict {
                unit,
                force_lose_data: force,
                how,
            } => (Wish::Evict { unit, force }, how),
            Self::Replace {
                old,
                new,
                force_lose_data: force,
                how,
            } => (Wish::Replace { old, new, force }, how),
            Self::AddUnit { chain, unit, how } => (Wish::AddUnit { chain, unit }, how),
            Self::RemoveUnit { unit, how } => (Wish::RemoveUnit { unit }, how),
            Self::AddChain { units, how } => (Wish::AddChain { units }, how),
            Self::RemoveChain { chain, how } => (Wish::RemoveChain { chain }, how),
            Self::AddSpare { unit, how } => (Wish::AddSpare { unit }, how),
            Self::Drain { unit, how } => (Wish::Drain { unit }, how),
            Self::Heal { how } => (Wish::Heal, how),
            Self::MoveSequencer { sequencer: to, how } => (Wish::MoveSequencer { to }, how),
            Self::RebuildSequencer { how } => (Wish::Rebuild, how),
            Self::AddStandby { sequencer, how } => (Wish::AddStandby { sequencer }, how),
            Self::RemoveStandby { sequencer, how } => (Wish::RemoveStandby { sequencer }, how),
            Self::SetLayoutServers { servers, how } => (Wish::SetLayoutServers { servers }, how),
            Self::Set { setting, how } => match setting {
                Setting::StripeWidth(width) => (Wish::StripeWidth(width), how),
                Setting::Replicas(replicas) => (Wish::Replicas(replicas), how),
                Setting::TrustRestarted(trusted) => (Wish::TrustRestarted(trusted), how),
            },
            Self::DeclareLost { span, how, .. } => (Wish::DeclareLost(span), how),
        }
    }
}

async fn make(log: &Log, wish: &Wish, how: &How) -> Outcome<Layout> {
    let decided = reconfigure::carry_out(log, wish, &how.why).await?;
    if matches!(wish, Wish::Heal) {
        return match status::short(&decided.layout).first() {
            None => Ok(decided.layout.clone()),
            Some(issue) => Err(Failure::new(
                Code::Conflict,
                format!("not at full strength: {issue}"),
            )),
        };
    }
    // What units lack of what is closed is put back by the process that made the term, which is about to end.
    let clock = &log.host().clock;
    let _ = clock
        .within(log.options().deadline, reconfigure::restore(log))
        .await;
    // Nobody is to take the place of a unit that is removed.
    if !how.wait || matches!(wish, Wish::RemoveUnit { .. }) {
        return Ok(decided.layout.clone());
    }
    reconfigure::heal_all(log, &how.why).await?;
    Ok(log.newest_layout().await?.layout.clone())
}

/// What may be lost is said before anything is done.
async fn warn(log: &Log, wish: &Wish) -> Outcome {
    let shown = reconfigure::plan(log, wish).await?;
    let lost = spans(&shown.lost);
    if lost.is_empty() {
        say("nothing is lost by it: other units hold the same");
    } else {
        say(format_args!(
            "lost for good, unless a unit that answers still holds it: {}",
            lost.join(", ")
        ));
    }
    Ok(())
}

/// `work`, with a bar on a terminal that says how much is left to copy.
async fn watched(
    log: &Log,
    wish: &Wish,
    work: impl Future<Output = Outcome<Layout>>,
) -> Outcome<Layout> {
    let bar = progress(Some(0), "positions copied");
    if bar.is_hidden() {
        return work.await;
    }
    let look = async {
        let mut most = 0;
        loop {
            if let Ok(left) = reconfigure::left_to_copy(log, wish).await {
                most = left.max(most);
                bar.set_length(most);
                bar.set_position(most - left);
            }
            log.host().clock.sleep(LOOK).await;
        }
    };
    let outcome = tokio::select! {
        biased;
        outcome = work => outcome,
        () = look => Err(Failure::failed("the watch ended before the work")),
    };
    bar.finish_and_clear();
    outcome
}

fn spans(spans: &[Span]) -> Vec<String> {
    spans.iter().map(ToString::to_string).collect()
}

impl Plan {
    fn of(shown: &Preview) -> Self {
        let copies: Vec<Copying> = shown
            .copies
            .iter()
            .map(|copy| Copying {
                unit: copy.gap.unit.name.to_string(),
                start: copy.gap.segment.0,
                chain: copy.gap.chain,
                positions: copy.positions,
                bytes: copy.bytes,
            })
            .collect();
        let redundancy = shown.redundancy.iter().map(|row| Redundancy {
            start: row.span.start.0,
            end: (!row.open).then_some(row.span.end.0),
            chain: row.chain,
            before: row.before,
            after: row.after,
            target: row.target,
        });
        let reach = shown.reach.iter().map(|one| Reached {
            name: one.server.name.to_string(),
            address: one.server.address.to_string(),
            answers: one.answers,
        });
        Self {
            terms: shown.terms,
            change: shown.change.clone(),
            redundancy: redundancy.collect(),
            copy_positions: copies.iter().map(|copy| copy.positions).sum(),
            copy_bytes: copies.iter().map(|copy| copy.bytes).sum(),
            copies,
            reach: reach.collect(),
            lost: spans(&shown.lost),
        }
    }
}

fn show(context: &Context, shown: &Preview) -> Outcome {
    let plan = Plan::of(shown);
    let text = text(&plan, shown);
    let planned = Planned {
        term: shown.layout.term.0,
        layout: &shown.layout,
        plan,
    };
    context.output.one(&planned, || text)
}

/// The chains of every segment, a line each.
fn drawn(layout: &Layout) -> String {
    let lines = layout.segments.iter().map(|segment| {
        let chains = segment.chains.iter().map(|chain| {
            let units = layout.units_of(chain).map(|unit| unit.name.to_string());
            units.collect::<Vec<_>>().join(" > ")
        });
        let end = segment.end.map_or(String::new(), |end| end.to_string());
        let chains = chains.collect::<Vec<_>>().join("   ");
        format!("{}..{end}  {chains}", segment.start)
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn text(plan: &Plan, shown: &Preview) -> String {
    let terms = match plan.terms {
        1 => "one term".to_owned(),
        terms => format!("{terms} terms"),
    };
    let mut parts = vec![
        format!("would take {terms}: {}; nothing was changed", shown.change),
        drawn(&shown.layout),
    ];
    let head = ["POSITIONS", "CHAIN", "COPIES NOW", "AFTER", "TARGET"];
    let rows = plan.redundancy.iter().map(|row| {
        let end = row.end.map_or(String::new(), |end| end.to_string());
        vec![
            format!("{}..{end}", row.start),
            row.chain.to_string(),
            row.before.to_string(),
            row.after.to_string(),
            row.target.to_string(),
        ]
    });
    parts.push(table(&head, rows));
    if plan.copies.is_empty() {
        parts.push("nothing to copy".to_owned());
    } else {
        let head = ["COPY TO", "FROM POSITION", "CHAIN", "POSITIONS", "BYTES"];
        let rows = plan.copies.iter().map(|copy| {
            vec![
                copy.unit.clone(),
                copy.start.to_string(),
                copy.chain.to_string(),
                copy.positions.to_string(),
                format!("about {}", bytes(copy.bytes)),
            ]
        });
        parts.push(table(&head, rows));
    }
    let silent: Vec<&str> = plan
        .reach
        .iter()
        .filter(|one| !one.answers)
        .map(|one| one.name.as_str())
        .collect();
    let all = plan.reach.iter().map(|one| one.name.as_str());
    parts.push(format!(
        "must be reached: {}",
        all.collect::<Vec<_>>().join(", ")
    ));
    if !silent.is_empty() {
        parts.push(format!("do not answer now: {}", silent.join(", ")));
    }
    if !plan.lost.is_empty() {
        parts.push(format!("may be lost for good: {}", plan.lost.join(", ")));
    }
    parts.join("\n\n")
}
