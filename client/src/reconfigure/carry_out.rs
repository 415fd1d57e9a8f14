//! Carries out what people ask for: looks what it would bring, makes it, and looks whether it took effect.
//!
//! Another proposer may be first each time, and whoever dies half way leaves a layout that says how far it got: a wish is
//! built again from the newest layout until it holds there, so every command can be repeated.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use milonga_host::Host;
use milonga_wire::{Decided, Identity, Kind, Layout, Server};

use crate::log::Log;
use crate::reconfigure::attend::readmit_now;
use crate::reconfigure::by_hand::{build, took_effect};
use crate::reconfigure::condition::describe;
use crate::reconfigure::drive::{is_closed_only, make};
use crate::reconfigure::finish::complete;
use crate::reconfigure::heal::{Gap, copy, gaps_without, heal, is_whole};
use crate::reconfigure::plan::{Change, PlanError};
use crate::reconfigure::preview::{Preview, Said, positions_in, preview};
use crate::reconfigure::wish::{HandError, Wish};

/// How often others may come first.
const TRIES: u32 = 8;
/// How often what was refused is looked at again while somebody is silent, and the pause before.
const LOOKS: u32 = 2;
const LOOK: Duration = Duration::from_millis(500);
/// Steps of a drain: a unit in, what was closed meanwhile copied, the unit out; and some more for what others change.
const DRAIN_STEPS: u32 = 32;

/// What `wish` would bring. Nothing is sealed, and nothing changes.
///
/// # Errors
/// [`HandError`]: it would be refused.
pub async fn plan(log: &Log, wish: &Wish) -> Result<Preview, HandError> {
    may(log, wish)?;
    let newest = log.newest_layout().await?;
    let layout = &newest.layout;
    let change = build(log, layout, wish).await?;
    look_ahead(log, layout, wish, &change).await
}

/// Makes `wish` true, and says which layout did. A drain is done when the unit has left; a heal when everything that
/// could be copied is listed; anything else when its term serves.
///
/// # Errors
/// [`HandError`].
pub async fn carry_out(log: &Log, wish: &Wish, why: &str) -> Result<Arc<Decided>, HandError> {
    may(log, wish)?;
    match wish {
        Wish::Drain { unit } => return drain(log, wish, unit, why).await,
        Wish::Heal => {
            heal_all(log, why).await?;
            return Ok(log.newest_layout().await?);
        }
        _ => {}
    }
    let Host { clock, random, .. } = log.host();
    let (mut looks, mut last) = (0, None);
    for _ in 0..TRIES {
        let newest = log.newest_layout().await?;
        let old = &newest.layout;
        let change = match build(log, old, wish).await {
            Ok(change) => change,
            Err(refused) => {
                // Another's change may have come between the layout and the look at who comes.
                if log.newest_layout().await?.layout.term == old.term {
                    return Err(refused);
                }
                last = Some(refused);
                continue;
            }
        };
        let tried = match look_ahead(log, old, wish, &change).await {
            Ok(_) => make(log, old.term, &change, why)
                .await
                .map_err(HandError::from),
            Err(refused) => Err(refused),
        };
        let error = match tried {
            Ok(decided) if took_effect(&change, old, &decided.layout) => return Ok(decided),
            Ok(_) => continue,
            Err(error) => error,
        };
        // Others at work make servers slow, and layouts old: what was refused is looked at again before it is said.
        let is_old = log.newest_layout().await?.layout.term > old.term;
        if !is_old && (looks >= LOOKS || all_answer(log, old, &change).await) {
            return Err(error);
        }
        looks += u32::from(!is_old);
        last = Some(error);
        clock.sleep(random.jittered(LOOK)).await;
    }
    Err(last.unwrap_or(HandError::Overtaken(TRIES)))
}

/// Whether every server of `layout`, and all that come, can be asked now: nothing was refused for a silence that passes.
async fn all_answer(log: &Log, layout: &Layout, change: &Change) -> bool {
    let said = ask(log, layout, change).await;
    let units = layout.units.iter().chain(&layout.spares);
    let mut servers = units.chain(change.arrivals()).chain([&layout.sequencer]);
    servers.all(|server| said.servers.contains_key(&server.identity))
}

/// Takes spares, and if those are too few units that left and answer, copies and lists until nothing is left to do.
///
/// # Errors
/// [`HandError`]. What was copied stays copied.
pub async fn heal_all(log: &Log, why: &str) -> Result<(), HandError> {
    for _ in 0..DRAIN_STEPS {
        let healed = heal(log, why).await?.is_some();
        let newest = log.newest_layout().await?;
        if healed || !is_whole(&newest.layout) && readmit_now(log).await {
            continue;
        }
        restore(log).await?;
        return Ok(());
    }
    Err(HandError::Overtaken(DRAIN_STEPS))
}

/// Puts back, on every unit, what it lacks of what is closed, as far as another one holds it. A new term begins that in the
/// background; whoever is about to end waits for it here.
///
/// # Errors
/// [`HandError`] if the layout cannot be read.
pub async fn restore(log: &Log) -> Result<(), HandError> {
    complete(log, &log.newest_layout().await?.layout).await;
    Ok(())
}

/// How many positions are still to be copied for `wish`, as the units that are copied to say.
///
/// # Errors
/// [`HandError`] if the layout cannot be read.
pub async fn left_to_copy(log: &Log, wish: &Wish) -> Result<u64, HandError> {
    let newest = log.newest_layout().await?;
    let layout = &newest.layout;
    let left = gaps_without(layout, &leaving(layout, wish))
        .into_iter()
        .map(|gap| async move {
            let chain = &layout.segment_of(gap.segment).chains[gap.chain];
            let chain = log.chain(layout, chain);
            let lacking = chain.settled_at(&gap.unit, gap.stripes).await;
            let mut rest = gap.stripes.span;
            rest.start = lacking.unwrap_or(rest.start).max(rest.start);
            positions_in(&gap.stripes, rest)
        });
    Ok(join_all(left).await.into_iter().sum())
}

/// Refuses by role before anybody is asked anything.
fn may(log: &Log, wish: &Wish) -> Result<(), HandError> {
    let (has, needs) = (log.caller().role, wish.needs());
    if log.may(needs) {
        Ok(())
    } else {
        Err(HandError::Role { has, needs })
    }
}

/// The unit that a drain is of, if the layout has it.
fn leaving(layout: &Layout, wish: &Wish) -> BTreeSet<Identity> {
    let Wish::Drain { unit } = wish else {
        return BTreeSet::new();
    };
    let mut all = layout.units.iter().chain(&layout.spares);
    let named = all.find(|one| one.name.as_str() == unit || one.address.as_str() == unit);
    named.map(|unit| unit.identity).into_iter().collect()
}

/// What `change` would bring, from what everybody says of themselves now.
async fn look_ahead(
    log: &Log,
    layout: &Layout,
    wish: &Wish,
    change: &Change,
) -> Result<Preview, HandError> {
    let said = ask(log, layout, change).await;
    let (changes, leaving) = match wish {
        Wish::Drain { .. } => {
            let leaving = leaving(layout, wish);
            let goal = goal(layout, &leaving);
            let joins = match step(layout, &leaving, goal, &said)? {
                Step::Join(change) => vec![change],
                Step::Copy(_) | Step::Leave(_) => vec![],
            };
            (joins, leaving)
        }
        _ => (vec![change.clone()], BTreeSet::new()),
    };
    let shown = preview(layout, &changes, &leaving, &said)
        .map_err(|error| refused(layout, change, error))?;
    // Who is silent, and needed for what is closed only, cannot leave: a term would change nothing.
    let closed_only = layout.units.iter().find(|unit| {
        change.leaves(&unit.identity)
            && is_closed_only(layout, unit)
            && shown.layout.unit(unit.identity).is_some()
    });
    if let (Some(unit), false) = (closed_only, matches!(wish, Wish::Drain { .. })) {
        let name = &unit.name;
        return Err(HandError::Precondition(format!(
            "{name} cannot leave: it does not answer, and nobody else is sure to hold the closed positions that it is listed for; \
             start it; or, if it never comes back, as an admin `milonga cluster evict {name} --force-lose-data`"
        )));
    }
    Ok(shown)
}

/// A plan that is refused because of somebody who leaves by hand is nobody's failure to answer.
fn refused(layout: &Layout, change: &Change, error: PlanError) -> HandError {
    let PlanError::NoCompleteUnit { chain, missing } = &error else {
        return match error {
            PlanError::Refused(why) => HandError::Precondition(why),
            error => HandError::Change(error.into()),
        };
    };
    let leaves = |name: &&String| {
        let mut units = layout.units.iter();
        units.any(|unit| unit.name.as_str() == name.as_str() && change.leaves(&unit.identity))
    };
    let leaving: Vec<&str> = missing.iter().filter(leaves).map(String::as_str).collect();
    let silent = missing.iter().filter(|name| !leaves(name));
    let silent: Vec<&str> = silent.map(String::as_str).collect();
    if leaving.is_empty() {
        return HandError::Change(error.into());
    }
    let back = if silent.is_empty() {
        "another unit that holds the same".to_owned()
    } else {
        format!("{} back", silent.join(", "))
    };
    HandError::Precondition(format!(
        "{} cannot leave: no other unit of the chain {} is sure to hold everything that was acknowledged there; \
         expected {back}; try `milonga cluster heal --wait` first, or as an admin --force-lose-data",
        leaving.join(", "),
        chain.join(" ")
    ))
}

/// Who answers, on the directory that is listed.
async fn ask(log: &Log, layout: &Layout, change: &Change) -> Said {
    let list = |servers: &[Server], kind: Kind| -> Vec<(Server, Kind)> {
        servers.iter().map(|one| (one.clone(), kind)).collect()
    };
    let mut all = list(&layout.layout_servers, Kind::Layout);
    if let Some(coming) = &change.layout_servers {
        all.extend(list(coming, Kind::Layout));
    }
    all.extend(list(
        std::slice::from_ref(&layout.sequencer),
        Kind::Sequencer,
    ));
    all.extend(list(&layout.standbys, Kind::Sequencer));
    all.extend(list(&change.standbys, Kind::Sequencer));
    all.extend(list(&layout.units, Kind::LogUnit));
    all.extend(list(&layout.spares, Kind::LogUnit));
    all.extend(change.arrivals().map(|unit| (unit.clone(), Kind::LogUnit)));
    let asked = all.into_iter().map(|(server, kind)| async move {
        let said = describe(log, &server, kind).await.ok()?;
        (said.identity == server.identity).then_some((server.identity, said))
    });
    Said {
        servers: join_all(asked).await.into_iter().flatten().collect(),
    }
}

/// The next step of a drain.
enum Step {
    /// A spare comes beside the unit.
    Join(Change),
    /// These are copied, then listed.
    Copy(Vec<Gap>),
    /// The unit leaves.
    Leave(Change),
}

/// How many units besides the leaving one its open chain must have: as many as it has with it, up to the target.
fn goal(layout: &Layout, leaving: &BTreeSet<Identity>) -> usize {
    let open = layout.open_segment().chains.iter();
    let mut open = open.filter(|chain| chain.units.iter().any(|unit| leaving.contains(unit)));
    let has = open.next().map_or(0, |chain| chain.units.len());
    has.min(usize::from(layout.settings.replicas))
}

/// What a drain needs next: the layout says how far it got.
fn step(
    layout: &Layout,
    leaving: &BTreeSet<Identity>,
    goal: usize,
    said: &Said,
) -> Result<Step, HandError> {
    let gone = |unit: &&Identity| leaving.contains(unit);
    let open = layout.open_segment().chains.iter().enumerate();
    for (number, chain) in open.filter(|(_, chain)| chain.units.iter().any(|u| gone(&u))) {
        if chain.units.len() > goal {
            continue;
        }
        let mut spares = layout.spares.iter();
        let answers = |spare: &&Server| said.servers.contains_key(&spare.identity);
        let spare = spares.find(|spare| answers(spare) && !leaving.contains(&spare.identity));
        let spare = spare.ok_or_else(|| {
            HandError::Precondition(format!(
                "chain {number} would be left with fewer copies than it has, and no spare answers; expected one; \
                 try `milonga cluster add-spare ADDRESS`"
            ))
        })?;
        return Ok(Step::Join(Change {
            join: vec![(number, spare.clone())],
            ..Change::default()
        }));
    }
    let concerned = |gap: &Gap| {
        let chain = &layout.segment_of(gap.segment).chains[gap.chain];
        chain.units.iter().any(|unit| gone(&unit))
    };
    let mut gaps = gaps_without(layout, leaving);
    gaps.retain(concerned);
    if !gaps.is_empty() {
        return Ok(Step::Copy(gaps));
    }
    let replicas = usize::from(layout.settings.replicas);
    for segment in layout
        .segments
        .iter()
        .filter(|segment| segment.end.is_some())
    {
        for chain in segment
            .chains
            .iter()
            .filter(|one| one.units.iter().any(|u| gone(&u)))
        {
            let others = chain.units.iter().filter(|unit| !gone(unit)).count();
            if others < chain.units.len().min(replicas) {
                let span = segment.span();
                return Err(HandError::Precondition(format!(
                    "positions {span} would be left with {others} copies, and nobody is there to take one more; \
                     expected a unit that holds nothing of them; try `milonga cluster add-spare ADDRESS`"
                )));
            }
        }
    }
    Ok(Step::Leave(Change {
        leave: leaving.clone(),
        ..Change::default()
    }))
}

async fn drain(log: &Log, wish: &Wish, unit: &str, why: &str) -> Result<Arc<Decided>, HandError> {
    let newest = log.newest_layout().await?;
    let change = build(log, &newest.layout, wish).await?;
    look_ahead(log, &newest.layout, wish, &change).await?;
    let leaving = change.leave;
    let goal = goal(&newest.layout, &leaving);
    for _ in 0..DRAIN_STEPS {
        let newest = log.newest_layout().await?;
        let layout = &newest.layout;
        let said = ask(log, layout, &Change::default()).await;
        let change = match step(layout, &leaving, goal, &said)? {
            Step::Join(change) => change,
            Step::Copy(gaps) => {
                let mut list = vec![];
                for gap in gaps {
                    copy(log, layout, &gap).await?;
                    list.push((gap.segment, gap.chain, gap.unit.identity));
                }
                Change {
                    list,
                    ..Change::default()
                }
            }
            Step::Leave(change) => {
                let decided = make(log, layout.term, &change, why).await?;
                if took_effect(&change, layout, &decided.layout) {
                    return Ok(decided);
                }
                continue;
            }
        };
        make(log, layout.term, &change, why).await?;
        tracing::info!(unit, term = %layout.term.next(), "one step of a drain is done");
    }
    Err(HandError::Overtaken(DRAIN_STEPS))
}
