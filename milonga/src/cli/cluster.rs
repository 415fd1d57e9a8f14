//! `milonga cluster`: decides the first layout, looks at the newest one, and makes the next.

use std::time::Duration;

use clap::Subcommand;
use milonga_client::reconfigure::{self, Genesis};
use milonga_wire::{Address, Layout, Term};
use serde::Serialize;

use super::change::ChangeCommand;
use super::{Context, status, verify};
use crate::failure::Outcome;
use crate::look;

/// Positions per stripe: few enough that many writers keep all chains busy, enough for large batches.
const STRIPE_WIDTH: u32 = 256;
/// How long a layout server may take to show a layout.
const ANSWER: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Decides the first layout. The servers must run, and be blank.
    #[command(after_help = "Example:
  milonga cluster init --layout 10.0.0.1:7001,10.0.0.2:7001,10.0.0.3:7001 \\
      --sequencer 10.0.0.1:7011 --standby 10.0.0.2:7011 \\
      --chain 10.0.0.1:7021,10.0.0.2:7021 --chain 10.0.0.2:7022,10.0.0.3:7021")]
    Init(Init),
    /// Shows the newest layout, who answers, and what to do about what is wrong.
    #[command(after_help = "Example:
  milonga cluster status
  milonga cluster status -o json --wait --deadline 30s")]
    Status {
        /// Waits until its health is `ok`.
        #[arg(long)]
        wait: bool,
    },
    /// Shows the history of layouts: who made them, why, and what they changed.
    #[command(after_help = "Example:
  milonga cluster layouts")]
    Layouts,
    /// Compares what all units hold, entry by entry and stream by stream. Changes nothing.
    #[command(after_help = "Example:
  milonga cluster verify
  milonga cluster verify --rate 20000000 -o json
  milonga cluster verify --dirs milonga-dev/unit-* milonga-dev/layout-*    # of a stopped cluster")]
    Verify(verify::Verify),
    /// Restores what log units cannot read any more from their peers.
    #[command(after_help = "Example:
  milonga cluster repair
  milonga cluster repair unit-2")]
    Repair(verify::Repair),
    /// Empties a log unit that left the cluster, so that it can come back as a new one. Refused for one that any layout lists.
    #[command(after_help = "Example:
  milonga cluster reset-unit 10.0.0.9:7021
  milonga cluster add-spare 10.0.0.9:7021")]
    ResetUnit {
        /// Its address.
        address: Address,
    },
    #[command(flatten)]
    Change(ChangeCommand),
}

#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// The layout servers: 1, 3 or 5.
    #[arg(long, value_delimiter = ',', required = true, value_name = "ADDRS")]
    layout: Vec<Address>,
    /// Who issues positions.
    #[arg(long, value_name = "ADDR")]
    sequencer: Address,
    /// Who takes over from it.
    #[arg(long = "standby", value_delimiter = ',', value_name = "ADDR")]
    standbys: Vec<Address>,
    /// Log units of one chain, head first.
    #[arg(long = "chain", required = true, value_name = "ADDRS", value_parser = chain)]
    chains: Vec<Units>,
    /// A log unit that stands ready.
    #[arg(long = "spare", value_delimiter = ',', value_name = "ADDR")]
    spares: Vec<Address>,
    /// Positions per stripe.
    #[arg(long, default_value_t = STRIPE_WIDTH, value_name = "N")]
    stripe_width: u32,
}

/// The units of one chain.
#[derive(Clone, Debug)]
struct Units(Vec<Address>);

fn chain(text: &str) -> Result<Units, milonga_wire::InvalidName> {
    let units: Result<Vec<Address>, _> = text.split(',').map(str::parse).collect();
    units.map(Units)
}

/// A term that was made.
#[derive(Serialize)]
struct Made<'a> {
    term: u64,
    layout: &'a Layout,
}

/// One line of the history.
#[derive(Serialize)]
struct Past {
    term: u64,
    time: String,
    by: String,
    why: String,
    change: String,
}

impl ClusterCommand {
    pub(super) async fn run(self, context: &Context) -> Outcome {
        match self {
            Self::Init(init) => init.run(context).await,
            Self::Status { wait } => status::run(context, wait).await,
            Self::Layouts => layouts(context).await,
            Self::Verify(verify) => verify.run(context).await,
            Self::Repair(repair) => repair.run(context).await,
            Self::ResetUnit { address } => reset(context, &address).await,
            Self::Change(change) => change.run(context).await,
        }
    }
}

impl Init {
    async fn run(self, context: &Context) -> Outcome {
        let log = context.cluster.connect()?;
        let genesis = Genesis {
            layout_servers: self.layout,
            sequencer: self.sequencer,
            standbys: self.standbys,
            chains: self.chains.into_iter().map(|units| units.0).collect(),
            spares: self.spares,
            stripe_width: self.stripe_width,
        };
        let decided = reconfigure::init(&log, &genesis).await?;
        print(context, &decided.layout, "initialised")
    }
}

fn print(context: &Context, layout: &Layout, what: &str) -> Outcome {
    let term = layout.term.0;
    let made = Made { term, layout };
    context.output.one(&made, || {
        format!(
            "{what}: term {term}, {} chains, {} issues positions from {}",
            layout.open_segment().chains.len(),
            layout.sequencer.name,
            layout.open_segment().start
        )
    })
}

/// A unit that was emptied.
#[derive(Serialize)]
struct Emptied {
    name: String,
    identity: String,
    /// What it was before; none if it was blank.
    before: Option<String>,
}

async fn reset(context: &Context, address: &Address) -> Outcome {
    let log = context.cluster.connect()?;
    log.layout().await?;
    let reset = reconfigure::reset_left_unit(&log, address).await?;
    let emptied = Emptied {
        name: reset.unit.name.to_string(),
        identity: reset.unit.identity.to_string(),
        before: reset.before.map(|before| before.to_string()),
    };
    context.output.one(&emptied, || {
        let name = &emptied.name;
        if emptied.before.is_some() {
            format!(
                "{name} is empty now, and another unit: {}",
                emptied.identity
            )
        } else {
            format!("{name} was blank already")
        }
    })
}

async fn layouts(context: &Context) -> Outcome {
    let log = context.cluster.connect()?;
    let newest = log.newest_layout().await?;
    let mut history = vec![];
    for term in 0..newest.layout.term.0 {
        let past = look::layout_of(log.host(), &newest.layout, Term(term), ANSWER).await;
        history.extend(past.as_ref().map(Past::of));
    }
    history.push(Past::of(&newest.layout));
    let head = ["TERM", "TIME", "BY", "WHY", "CHANGE"];
    context.output.list(&history, &head, |past| {
        vec![
            past.term.to_string(),
            past.time.clone(),
            past.by.clone(),
            past.why.clone(),
            past.change.clone(),
        ]
    })
}

impl Past {
    fn of(layout: &Layout) -> Self {
        let origin = &layout.origin;
        let time = std::time::UNIX_EPOCH + Duration::from_millis(origin.at_ms);
        Self {
            term: layout.term.0,
            time: humantime::format_rfc3339_seconds(time).to_string(),
            by: origin.by.clone(),
            why: origin.why.clone(),
            change: origin.change.clone(),
        }
    }
}
