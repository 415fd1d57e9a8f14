//! Looking after a cluster that is not at full strength, unasked and in the background.
//!
//! Spares take places and get copies (`heal.rs`). A unit that was left out because it was silent comes back when it has
//! answered for a while: reset first, so that it holds nothing that was decided otherwise since (H7, H14), then as a spare.
//! A link that flaps costs one such return in that time ([`crate::Options::steady`]) at most. While the cluster misses
//! anything that it was given, nobody is emptied unasked: the last copy may be there.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use milonga_host::{Host, Moment};
use milonga_wire::{Description, Identity, Kind, Layout, Server};

use crate::log::Log;
use crate::reconfigure::condition::{describe, writing};
use crate::reconfigure::drive::make;
use crate::reconfigure::heal::{heal_unattended, is_short};
use crate::reconfigure::plan::Change;
use crate::reconfigure::reset::reset;

/// The first pause.
const FIRST: Duration = Duration::from_millis(500);
/// The longest pause between two tries; after that many in vain somebody else, or a later occasion, goes on.
const LAST: Duration = Duration::from_secs(64);
/// For how long it is tried, beside twice the time that a unit must answer; a later occasion goes on.
const LIMIT: Duration = Duration::from_secs(300);
/// The longest pause between two looks at a unit that left and answers.
const LOOK: Duration = Duration::from_secs(5);

/// Whether [`attend`] would have something to do.
pub(crate) fn needs_attention(layout: &Layout) -> bool {
    is_short(layout) || !layout.left.is_empty()
}

/// Heals until nothing is left that could be done.
pub(crate) async fn attend(log: &Log) {
    let Host { clock, random, .. } = log.host();
    let mut pause = FIRST;
    let mut steady = BTreeMap::new();
    let began = clock.now();
    let limit = log.options.steady.saturating_mul(2).saturating_add(LIMIT);
    while pause <= LAST && clock.now().since(began) < limit {
        clock.sleep(random.jittered(pause)).await;
        let healed = heal_unattended(log, "the cluster was not at full strength").await;
        let returns = readmit(log, &mut steady).await;
        let known = log.shared.layouts.known();
        if !known.is_some_and(|known| needs_attention(&known.layout)) {
            return;
        }
        pause = match healed {
            _ if returns => log.options.steady.clamp(FIRST, LOOK),
            Ok(Some(_)) => FIRST,
            Ok(None) => pause * 2,
            Err(error) => {
                tracing::info!(%error, "not at full strength yet");
                pause * 2
            }
        };
    }
}

/// Looks at the units that left; those that have answered since long enough come back. Whether any answers.
async fn readmit(log: &Log, steady: &mut BTreeMap<Identity, Moment>) -> bool {
    let Some(known) = log.shared.layouts.known() else {
        return false;
    };
    let now = log.host().clock.now();
    let layout = &known.layout;
    let answers = join_all(layout.left.iter().map(|unit| async move {
        // Another directory is taken if nothing is on it: whatever else answers there is nobody's to empty.
        let said = writing(log, unit, layout.term).await?;
        (said.identity == unit.identity || said.blank).then_some(unit)
    }));
    let answering: Vec<&Server> = answers.await.into_iter().flatten().collect();
    steady.retain(|identity, _| answering.iter().any(|unit| unit.identity == *identity));
    for unit in &answering {
        let since = *steady.entry(unit.identity).or_insert(now);
        if now.since(since) < log.options.steady {
            continue;
        }
        if misses_something(log, &known.layout).await {
            tracing::warn!(unit = %unit.name, "a unit that left is not emptied while the cluster misses something that it may hold");
        } else if let Err(error) = bring_back(log, unit).await {
            tracing::info!(%error, unit = %unit.name, "a unit that left cannot come back yet");
        }
    }
    !answering.is_empty()
}

/// Takes back the units that left and answer now, without waiting whether they go on to. Whether any came.
pub(super) async fn readmit_now(log: &Log) -> bool {
    let Ok(known) = log.shared.layouts.read().await else {
        return false;
    };
    let layout = &known.decided.layout;
    let mut any = false;
    for unit in &layout.left {
        let said = writing(log, unit, layout.term).await;
        let is_it = said.is_some_and(|said| said.identity == unit.identity || said.blank);
        if is_it && !misses_something(log, layout).await {
            match bring_back(log, unit).await {
                Ok(()) => any = true,
                Err(error) => {
                    tracing::info!(%error, unit = %unit.name, "a unit that left cannot come back");
                }
            }
        }
    }
    any
}

/// Whether something is out of reach, damaged or lost, as far as the layout and its units say.
async fn misses_something(log: &Log, layout: &Layout) -> bool {
    let units = layout.units.iter();
    let whole = join_all(units.map(|unit| async move {
        let said = describe(log, unit, Kind::LogUnit).await;
        let is_whole = |said: Description| {
            said.identity == unit.identity && said.damaged == 0 && said.state != "failed"
        };
        said.is_ok_and(is_whole)
    }));
    let mut chains = layout.chains();
    !layout.lost.is_empty()
        || chains.any(|(chain, _)| chain.unreachable)
        || whole.await.contains(&false)
}

async fn bring_back(
    log: &Log,
    unit: &Server,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let reset = reset(log, &unit.address, Some(unit.identity)).await?;
    let change = Change {
        spares: vec![reset.unit],
        heal: true,
        ..Change::default()
    };
    let term = log.shared.layouts.read().await?.decided.layout.term;
    let why = format!("{} answers again", unit.name);
    make(log, term, &change, &why).await?;
    Ok(())
}
