//! Which layout follows: pure functions from the old layout, what is to change, and what the seals answered.
//!
//! - P1 The open segment starts at the highest of: any sealed unit's end, any trim point, the start of the previous open
//!   segment, the sealed sequencer's counter. Nothing of an older term lies at or above it.
//! - P2 Every unit of the new open segment is sealed in its term.
//! - P3 A unit leaves a chain only if another that stays, and was sealed, is complete there.
//! - P4 An open segment in which nothing was written is replaced, not closed; no segment is empty.
//! - P5 Merging closed segments moves no position: width, and number and order of chains and of units are equal.
//! - P6 A unit is listed for a closed segment only if it holds all of it, or if that part of the log is declared lost.
//! - P7 What an admin's override gives up stands in [`Layout::lost`]; only there is anything given up, and whoever is left
//!   out for it comes back as a new unit or not at all.
//! - P8 Whoever comes into the open segment holds nothing. What a unit held while its chain went on without it proves nothing:
//!   a copy would leave it there.
//! - P9 By hand, nobody who answers leaves to whom knows of damaged records: the last good copy may go with it.

use std::collections::{BTreeMap, BTreeSet};

use milonga_wire::limits::LEFT_MAX;
use milonga_wire::{
    Chain, Identity, Incarnation, Layout, Origin, Position, Sealed, Segment, Server, ServerName,
    Settings, Span,
};

/// Spans that a layout may declare lost.
const LOST_MAX: usize = 1_024;
/// Runs of one chain that are named one by one; more are named as one span, with what lies between them.
const RUNS_MAX: usize = 256;

/// What the next layout is to change besides the term. What must change anyway (process starts, a sequencer that does not
/// answer) changes in every case.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Change {
    /// Units that leave every chain where they are not needed, and the spares.
    pub leave: BTreeSet<Identity>,
    /// Units that take the place of others in the open segment: who leaves, who comes.
    pub replace: BTreeMap<Identity, Server>,
    /// Units that join the open segment at the end of a chain, by its number.
    pub join: Vec<(usize, Server)>,
    /// Chains that the open segment gets.
    pub chains: Vec<Vec<Server>>,
    /// Chains that the open segment loses, by number.
    pub without: BTreeSet<usize>,
    /// Units that stand ready from now on.
    pub spares: Vec<Server>,
    /// Whether chains below their target take spares.
    pub heal: bool,
    /// Units that hold all of a closed chain and are to be listed there: the segment's start, the chain's number.
    pub list: Vec<(Position, usize, Identity)>,
    /// Positions per stripe of the open segment.
    pub stripe_width: Option<u32>,
    /// Which sequencer issues positions, if it answers.
    pub sequencer: Option<ServerName>,
    /// The layout servers.
    pub layout_servers: Option<Vec<Server>>,
    /// Sequencers that stand by from now on.
    pub standbys: Vec<Server>,
    /// Standby sequencers that leave.
    pub retire: BTreeSet<ServerName>,
    /// How many units a chain should have.
    pub replicas: Option<u16>,
    /// Whether a restarted unit whose store shows every batch synced counts as complete.
    pub trust_restarted: Option<bool>,
    /// Of those that leave or are replaced: the units that P3 does not keep. What only they hold is lost (P7).
    pub force: BTreeSet<Identity>,
    /// Spans in which nobody waits any longer for who is silent (P7).
    pub lost: Vec<Span>,
}

impl Change {
    /// Whether `unit` is to leave its chains, with or without a successor.
    pub fn leaves(&self, unit: &Identity) -> bool {
        self.leave.contains(unit) || self.replace.contains_key(unit)
    }

    /// The log units that come.
    pub fn arrivals(&self) -> impl Iterator<Item = &Server> {
        let joining = self.join.iter().map(|(_, unit)| unit);
        joining
            .chain(self.replace.values())
            .chain(self.chains.iter().flatten())
            .chain(&self.spares)
    }
}

/// What the servers answered when the term was sealed.
#[derive(Clone, Debug, Default)]
pub struct Seals {
    /// By unit.
    pub units: BTreeMap<Identity, Sealed>,
    /// The sequencer's counter, if it was sealed and had one.
    pub counter: Option<Position>,
    /// Which units were found to hold every position of a closed chain: the segment's start, the chain's number.
    pub whole: BTreeSet<(Position, usize, Identity)>,
    /// Which units know of records that are damaged on their disks.
    pub damaged: BTreeSet<Identity>,
}

/// Why there is no next layout.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Units that must be in the next layout were not sealed.
    #[error("these log units did not answer: {}; start them again", .0.join(", "))]
    Missing(Vec<String>),
    /// No unit of a chain can vouch for what the chain acknowledged.
    #[error(
        "no unit of the chain {} can vouch for its entries; bring back {}; if that is out of the question, \
         `milonga cluster evict NAME --force-lose-data` gives up what only that one holds (admin)",
        chain.join(" "),
        missing.join(", ")
    )]
    NoCompleteUnit {
        /// The chain's units.
        chain: Vec<String>,
        /// Those that must answer.
        missing: Vec<String>,
    },
    /// A unit that is to come holds entries of its own (P8).
    #[error(
        "{0} holds entries from before; `milonga cluster reset-unit` with its address empties it once no layout lists it"
    )]
    NotEmpty(String),
    /// A unit that answers is to leave its positions to one that knows of damaged records (P9).
    #[error(
        "{leaves} would leave positions to {damaged}, which knows of damaged records; `milonga cluster repair` first"
    )]
    Damaged {
        /// Who leaves.
        leaves: String,
        /// Who would stay.
        damaged: String,
    },
    /// What is asked for makes no sense with this layout.
    #[error("{0}")]
    Refused(String),
    /// The layout has as many segments as it may have.
    #[error("the layout has too many segments; trim the log")]
    TooManySegments,
}

/// The next layout: `old` with `change`, as far as the seals allow, with `sequencer` issuing positions.
///
/// Units that were not sealed leave the open segment; they stay listed where nobody else is complete.
///
/// # Errors
/// [`PlanError`]: nothing may be proposed.
pub fn next(
    old: &Layout,
    change: &Change,
    seals: &Seals,
    sequencer: &Server,
    origin: Origin,
) -> Result<Layout, PlanError> {
    let known = known(old, change);
    let start = start(old, seals);
    let open = open_chains(old, change, seals)?;
    let (segments, given_up) = segments(old, change, seals, start, &open)?;
    let named: BTreeSet<Identity> = segments
        .iter()
        .flat_map(|segment| &segment.chains)
        .flat_map(|chain| chain.units.iter().copied())
        .collect();
    let present = |server: &Server| Server {
        incarnation: incarnation(&seals.units, server),
        ..server.clone()
    };
    let units = named.iter().filter_map(|unit| known.get(unit));
    let spares = known.values().filter(|server| {
        let stands_ready = old.spares.iter().chain(&change.spares);
        let mut stands_ready = stands_ready.map(|spare| spare.identity);
        stands_ready.any(|spare| spare == server.identity)
            && !named.contains(&server.identity)
            && !change.leave.contains(&server.identity)
    });
    let spares: Vec<Server> = spares.map(present).collect();
    let mut layout = Layout {
        term: old.term.next(),
        left: left(old, change, &named, &spares),
        units: units.map(present).collect(),
        spares,
        standbys: standbys(old, change, sequencer),
        sequencer: sequencer.clone(),
        segments,
        lost: all_lost(old, change, start, given_up)?,
        settings: Settings {
            replicas: replicas(old, change),
            trust_restarted: change
                .trust_restarted
                .unwrap_or(old.settings.trust_restarted),
        },
        origin,
        ..old.clone()
    };
    if let Some(servers) = &change.layout_servers {
        layout.layout_servers.clone_from(servers);
    }
    layout
        .validate()
        .map_err(|invalid| PlanError::Refused(invalid.why))?;
    Ok(layout)
}

/// The log units that the next layout may name: those there are, and those that come.
fn known(old: &Layout, change: &Change) -> BTreeMap<Identity, Server> {
    old.units
        .iter()
        .chain(&old.spares)
        .chain(change.arrivals())
        .map(|server| (server.identity, server.clone()))
        .collect()
}

/// Who left and was not sent away: the last ones, none that is named again.
fn left(
    old: &Layout,
    change: &Change,
    named: &BTreeSet<Identity>,
    spares: &[Server],
) -> Vec<Server> {
    let sent_away = |unit: &Server| {
        change.leave.contains(&unit.identity) || change.replace.contains_key(&unit.identity)
    };
    let is_back = |unit: &Server| {
        let mut new = change.arrivals().chain(spares);
        named.contains(&unit.identity) || new.any(|new| new.address == unit.address)
    };
    let gone = old.units.iter().chain(&old.spares);
    let gone = gone.filter(|unit| !sent_away(unit));
    let mut left: Vec<Server> = old.left.iter().chain(gone).cloned().collect();
    left.retain(|unit| !is_back(unit));
    left.drain(..left.len().saturating_sub(LEFT_MAX));
    left
}

fn replicas(old: &Layout, change: &Change) -> u16 {
    change.replicas.unwrap_or(old.settings.replicas)
}

/// P1.
fn start(old: &Layout, seals: &Seals) -> Position {
    let held = seals
        .units
        .values()
        .flat_map(|sealed| [sealed.end, sealed.trimmed]);
    held.chain([old.open_segment().start])
        .chain(seals.counter)
        .max()
        .unwrap_or(Position::FIRST)
}

/// The chains of the next open segment (P2).
fn open_chains(old: &Layout, change: &Change, seals: &Seals) -> Result<Vec<Chain>, PlanError> {
    let is_sealed = |unit: &Identity| seals.units.contains_key(unit);
    let stays = |unit: &Identity| is_sealed(unit) && !change.leaves(unit);
    let new = |unit: &Server| {
        let Some(sealed) = seals.units.get(&unit.identity) else {
            return Err(PlanError::Missing(vec![unit.name.to_string()]));
        };
        if sealed.end > Position::FIRST {
            return Err(PlanError::NotEmpty(unit.name.to_string()));
        }
        Ok(unit.identity)
    };
    let mut chains: Vec<Vec<Identity>> = vec![];
    let mut kept: Vec<&Chain> = vec![];
    for (number, chain) in old.open_segment().chains.iter().enumerate() {
        if change.without.contains(&number) {
            continue;
        }
        let mut units: Vec<Identity> = vec![];
        for unit in &chain.units {
            match change.replace.get(unit) {
                Some(successor) => units.push(new(successor)?),
                None if stays(unit) => units.push(*unit),
                None => {}
            }
        }
        for (_, unit) in change.join.iter().filter(|(at, _)| *at == number) {
            units.push(new(unit)?);
        }
        chains.push(units);
        kept.push(chain);
    }
    for (at, unit) in &change.join {
        if *at >= old.open_segment().chains.len() || change.without.contains(at) {
            let why = format!("there is no chain {at} for {} to join", unit.name);
            return Err(PlanError::Refused(why));
        }
    }
    for chain in &change.chains {
        chains.push(chain.iter().map(new).collect::<Result<_, _>>()?);
    }
    if change.heal {
        take_spares(old, change, seals, &mut chains);
    }
    let names = |units: &[Identity]| units.iter().map(|unit| name(old, *unit)).collect();
    for (units, before) in chains.iter().zip(kept) {
        if units.is_empty() {
            return Err(PlanError::NoCompleteUnit {
                chain: names(&before.units),
                missing: names(&before.units),
            });
        }
    }
    if chains.iter().any(Vec::is_empty) {
        let why = "a chain needs at least one unit".to_owned();
        return Err(PlanError::Refused(why));
    }
    if chains.is_empty() {
        let why = "a log needs at least one chain".to_owned();
        return Err(PlanError::Refused(why));
    }
    Ok(chains.into_iter().map(Chain::new).collect())
}

/// Gives each chain below its target a spare that was sealed, and holds nothing (P8), the shortest first.
fn take_spares(old: &Layout, change: &Change, seals: &Seals, chains: &mut [Vec<Identity>]) {
    let is_empty = |sealed: &Sealed| sealed.end == Position::FIRST;
    let stays =
        |unit: &Identity| seals.units.get(unit).is_some_and(is_empty) && !change.leaves(unit);
    let ready = old.spares.iter().chain(&change.spares);
    let taken: BTreeSet<Identity> = chains.iter().flatten().copied().collect();
    let ready = ready.map(|spare| spare.identity);
    for spare in ready.filter(|spare| stays(spare) && !taken.contains(spare)) {
        let shortest = chains.iter_mut().min_by_key(|chain| chain.len());
        let Some(chain) = shortest else { return };
        if chain.len() >= usize::from(replicas(old, change)) {
            return;
        }
        chain.push(spare);
    }
}

/// A closed part of the log, of one segment as it was.
struct Part<'a> {
    /// The segment it was, which seals and copies speak of.
    before: &'a Segment,
    /// The positions; not empty.
    span: Span,
    /// Whether an admin declares it lost now.
    is_declared: bool,
}

/// What stays of a chain.
struct Rest {
    chain: Vec<Identity>,
    unreachable: bool,
    /// Whether something may be lost by it (P7).
    gives_up: bool,
}

/// P3 to P7: what is closed, and the open segment behind it; and what is given up by force.
fn segments(
    old: &Layout,
    change: &Change,
    seals: &Seals,
    start: Position,
    open: &[Chain],
) -> Result<(Vec<Segment>, Vec<Span>), PlanError> {
    let trims = seals.units.values().map(|sealed| sealed.trimmed);
    let trimmed = trims.max().unwrap_or_default();
    let is_ready = |spare: &&Identity| {
        let sealed = seals.units.get(spare);
        sealed.is_some_and(|sealed| sealed.end == Position::FIRST) && !change.leaves(spare)
    };
    let spares = old.spares.iter().chain(&change.spares);
    let spares: Vec<Identity> = spares.map(|spare| spare.identity).collect();
    let ready: Vec<Identity> = spares.iter().filter(is_ready).copied().collect();
    let (mut segments, mut given_up): (Vec<Segment>, Vec<Span>) = (vec![], vec![]);
    for before in &old.segments {
        let span = Span::new(before.start, before.end.unwrap_or(start));
        if span.is_empty() {
            // P4. What nobody wrote to needs nobody to vouch for it, but a unit that did not answer may hold something.
            for number in 0..before.chains.len() {
                let is_declared = false;
                let part = Part {
                    before,
                    span,
                    is_declared,
                };
                remaining(old, change, seals, &part, number)?;
            }
        }
        for part in parts(before, span, &change.lost) {
            let mut segment = Segment {
                start: part.span.start,
                end: Some(part.span.end),
                ..before.clone()
            };
            for number in 0..before.chains.len() {
                let rest = remaining(old, change, seals, &part, number)?;
                if rest.gives_up {
                    given_up.extend(positions_of(&segment, number, trimmed));
                }
                segment.chains[number] = Chain {
                    units: rest.chain,
                    unreachable: rest.unreachable,
                };
                list_whole(change, seals, &mut segment, before.start, number);
            }
            take_over(&mut segment, open, &ready)?;
            match segments.last_mut() {
                Some(last)
                    if last.stripe_width == segment.stripe_width
                        && last.chains == segment.chains =>
                {
                    last.end = segment.end;
                }
                Some(_) | None => segments.push(segment),
            }
        }
    }
    segments.push(Segment {
        start,
        end: None,
        stripe_width: change
            .stripe_width
            .unwrap_or(old.open_segment().stripe_width),
        chains: open.to_vec(),
    });
    if segments.len() > milonga_wire::limits::SEGMENTS_MAX {
        return Err(PlanError::TooManySegments);
    }
    Ok((segments, given_up))
}

/// `span` of `before`, cut where a declared loss begins or ends: a cut moves no position.
fn parts<'a>(before: &'a Segment, span: Span, declared: &[Span]) -> Vec<Part<'a>> {
    let ends = declared.iter().flat_map(|lost| [lost.start, lost.end]);
    let mut cuts: BTreeSet<Position> = ends.filter(|cut| span.contains(*cut)).collect();
    cuts.extend([span.start, span.end]);
    let cuts: Vec<Position> = cuts.into_iter().collect();
    let parts = cuts.windows(2).map(|cut| Part {
        before,
        span: Span::new(cut[0], cut[1]),
        is_declared: declared.iter().any(|lost| lost.contains(cut[0])),
    });
    parts.collect()
}

/// P6.
fn list_whole(
    change: &Change,
    seals: &Seals,
    segment: &mut Segment,
    start: Position,
    number: usize,
) {
    let listed = change.list.iter();
    for (_, _, unit) in listed.filter(|(at, of, _)| (*at, *of) == (start, number)) {
        let holds_all = seals.whole.contains(&(start, number, *unit));
        let chain = &mut segment.chains[number].units;
        if holds_all && !chain.contains(unit) {
            chain.push(*unit);
        }
    }
}

/// P7: a chain of which nobody is left becomes the open segment's units', or a spare's: they hold nothing of it, and fill it with
/// junk.
fn take_over(segment: &mut Segment, open: &[Chain], spares: &[Identity]) -> Result<(), PlanError> {
    for number in 0..segment.chains.len() {
        if !segment.chains[number].units.is_empty() {
            continue;
        }
        let named: BTreeSet<Identity> = segment
            .chains
            .iter()
            .flat_map(|chain| chain.units.iter().copied())
            .collect();
        let is_free = |unit: &&Identity| !named.contains(unit);
        let same = open[number % open.len()].units.iter().filter(is_free);
        let mut heirs: Vec<Identity> = same.copied().collect();
        if heirs.is_empty() {
            let all = open
                .iter()
                .flat_map(|chain| chain.units.iter())
                .chain(spares);
            heirs = all.filter(is_free).take(1).copied().collect();
        }
        if heirs.is_empty() {
            let span = segment.span();
            let why = format!(
                "every unit serves positions of {span} already, so none can take over the chain that is given up there; expected a spare that answers and holds nothing; try `milonga cluster add-spare ADDRESS`"
            );
            return Err(PlanError::Refused(why));
        }
        segment.chains[number] = Chain::new(heirs);
    }
    Ok(())
}

/// The positions of one chain of a closed segment, from `trimmed` on: run by run if those are few.
fn positions_of(segment: &Segment, number: usize, trimmed: Position) -> Vec<Span> {
    let kept = Span::new(trimmed, Position(u64::MAX)).intersect(segment.span());
    if kept.is_empty() {
        return vec![];
    }
    let runs = segment.stripes(number).runs_from(kept.start);
    let runs: Vec<Span> = runs.take(RUNS_MAX + 1).collect();
    if runs.len() > RUNS_MAX {
        vec![kept]
    } else {
        runs
    }
}

/// Everything lost so far and now, in order, in as few spans as it takes.
fn all_lost(
    old: &Layout,
    change: &Change,
    start: Position,
    given_up: Vec<Span>,
) -> Result<Vec<Span>, PlanError> {
    let written = Span::new(Position::FIRST, start);
    let declared = change.lost.iter().map(|span| span.intersect(written));
    if let Some(beyond) = change.lost.iter().find(|span| span.start >= start) {
        let why = format!("{beyond} lies beyond what was ever written, which ends at {start}");
        return Err(PlanError::Refused(why));
    }
    let mut all: Vec<Span> = old.lost.clone();
    all.extend(declared);
    all.extend(given_up);
    all.retain(|span| !span.is_empty());
    all.sort_unstable();
    let mut merged: Vec<Span> = vec![];
    for span in all {
        match merged.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            Some(_) | None => merged.push(span),
        }
    }
    if merged.len() > LOST_MAX {
        let why = format!("more than {LOST_MAX} spans are declared lost; declare a larger one");
        return Err(PlanError::Refused(why));
    }
    Ok(merged)
}

/// Who stays listed for what chain `number` held in `part` (P3). In a segment that was closed before, where nobody is
/// complete, nobody leaves, and where nobody answered, the chain is out of reach; unless that is given up (P7).
fn remaining(
    old: &Layout,
    change: &Change,
    seals: &Seals,
    part: &Part<'_>,
    number: usize,
) -> Result<Rest, PlanError> {
    let (segment, chain) = (part.before, &part.before.chains[number]);
    let is_closed = segment.end.is_some();
    let answered = |unit: &Identity| seals.units.contains_key(unit);
    let members = chain.units.iter().copied();
    let staying: Vec<Identity> = members
        .filter(|unit| answered(unit) && !change.leaves(unit))
        .collect();
    let vouches = |unit: &Identity| {
        let whole = is_closed && seals.whole.contains(&(segment.start, number, *unit));
        whole || is_complete(old, seals, segment, *unit)
    };
    let is_sent =
        |unit: &&Identity| change.leaves(unit) && answered(unit) && !change.force.contains(unit);
    if staying.len() == chain.units.len() || staying.iter().any(vouches) {
        let is_sound = |unit: &Identity| {
            vouches(unit)
                && (!seals.damaged.contains(unit)
                    || seals.whole.contains(&(segment.start, number, *unit)))
        };
        if let Some(leaves) = chain.units.iter().find(is_sent)
            && !staying.iter().any(is_sound)
            && let Some(damaged) = staying.first()
        {
            return Err(PlanError::Damaged {
                leaves: name(old, *leaves),
                damaged: name(old, *damaged),
            });
        }
        return Ok(Rest {
            chain: staying,
            unreachable: false,
            gives_up: false,
        });
    }
    let mut gone = chain.units.iter().filter(|unit| !staying.contains(unit));
    if part.is_declared || gone.clone().all(|unit| change.force.contains(unit)) {
        return Ok(Rest {
            chain: staying,
            unreachable: false,
            gives_up: true,
        });
    }
    // Whoever answered keeps a chain that is short of others from being lost.
    if is_closed && !chain.units.iter().any(|unit| is_sent(&unit)) {
        let kept = chain.units.iter().copied();
        let kept: Vec<Identity> = kept.filter(|unit| !change.force.contains(unit)).collect();
        return Ok(Rest {
            unreachable: !kept.iter().any(answered),
            chain: kept,
            gives_up: false,
        });
    }
    let names = |units: &mut dyn Iterator<Item = &Identity>| {
        units.map(|unit| name(old, *unit)).collect::<Vec<_>>()
    };
    Err(PlanError::NoCompleteUnit {
        chain: names(&mut chain.units.iter()),
        missing: names(&mut gone),
    })
}

/// Whether a unit that was sealed has everything that was acknowledged in `segment`: it was a member all the time and ran on,
/// or its store shows every batch synced and the cluster trusts that.
fn is_complete(old: &Layout, seals: &Seals, segment: &Segment, unit: Identity) -> bool {
    let Some(sealed) = seals.units.get(&unit) else {
        return false;
    };
    let ran_on = old
        .unit(unit)
        .is_some_and(|listed| listed.incarnation == sealed.incarnation);
    let was_member = sealed.member_from.is_some_and(|from| from <= segment.start);
    (ran_on && was_member) || (old.settings.trust_restarted && sealed.synced)
}

fn name(old: &Layout, unit: Identity) -> String {
    old.unit(unit)
        .map_or_else(|| unit.to_string(), |unit| unit.name.to_string())
}

fn incarnation(units: &BTreeMap<Identity, Sealed>, unit: &Server) -> Incarnation {
    units
        .get(&unit.identity)
        .map_or(unit.incarnation, |sealed| sealed.incarnation)
}

/// The other sequencers: whoever issues next leaves the standbys, whoever issued joins them at the end, then who is new.
fn standbys(old: &Layout, change: &Change, sequencer: &Server) -> Vec<Server> {
    let issued = std::iter::once(&old.sequencer);
    let standing_by = old.standbys.iter().chain(issued).chain(&change.standbys);
    let standing_by = standing_by
        .filter(|standby| standby.name != sequencer.name && !change.retire.contains(&standby.name));
    standing_by.cloned().collect()
}

#[cfg(test)]
mod tests;
