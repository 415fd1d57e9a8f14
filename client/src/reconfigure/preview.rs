//! What a change would bring, from what servers say of themselves: as if all that answer were sealed now.
//!
//! Pure. It supposes the best of what only a seal can tell (that a unit of a chain holds what the chain acknowledged), so
//! what it refuses is refused for good; what it promises may still fail for a unit that lost something.

use std::collections::{BTreeMap, BTreeSet};

use milonga_wire::{
    Description, Identity, Kind, Layout, Origin, Position, Sealed, Segment, Server, Span, Stripes,
};

use crate::reconfigure::heal::{Gap, gaps_without};
use crate::reconfigure::plan::{Change, PlanError, Seals, next};
use crate::reconfigure::words;

/// What servers said of themselves. Who is missing did not answer, or runs on another directory than is listed.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    /// By identity.
    pub(super) servers: BTreeMap<Identity, Description>,
}

impl Said {
    fn answers(&self, unit: &Identity) -> bool {
        self.servers.contains_key(unit)
    }
}

/// How many complete copies of one chain's part of the log there are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Redundancy {
    /// The positions of its segment, as it will be.
    pub span: Span,
    /// Whether it takes new positions.
    pub open: bool,
    /// The chain's number in it.
    pub chain: usize,
    /// Complete copies on units that answer, now.
    pub before: usize,
    /// The same when the last term of the change begins, before anything is copied.
    pub after: usize,
    /// How many there should be.
    pub target: usize,
}

/// What is to be copied to one unit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Copying {
    /// What, and to whom.
    pub gap: Gap,
    /// How many positions, at most: it may hold some of them.
    pub positions: u64,
    /// About how many bytes.
    pub bytes: u64,
}

/// A server that has to take part.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reached {
    /// Which.
    pub server: Server,
    /// As what.
    pub kind: Kind,
    /// Whether it answers now.
    pub answers: bool,
}

/// What a change would bring.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The layout in the end.
    pub layout: Layout,
    /// What is different, in the words of the history.
    pub change: String,
    /// How many terms it takes.
    pub terms: u64,
    /// Copies of every part of the log, before and after.
    pub redundancy: Vec<Redundancy>,
    /// What is to be copied, before a drain leaves or after anything else is decided.
    pub copies: Vec<Copying>,
    /// Who has to be reached.
    pub reach: Vec<Reached>,
    /// What may be lost by it.
    pub lost: Vec<Span>,
}

/// What `changes`, one term each, would make of `old`. `leaving` is who is to leave once the copies are made.
///
/// # Errors
/// [`PlanError`]: it would be refused.
pub(super) fn preview(
    old: &Layout,
    changes: &[Change],
    leaving: &BTreeSet<Identity>,
    said: &Said,
) -> Result<Preview, PlanError> {
    let mut layout = old.clone();
    let mut given = vec![];
    for change in changes {
        let seals = seals(&layout, said, change);
        let sequencer = sequencer(&layout, change, said);
        layout = next(&layout, change, &seals, &sequencer, Origin::default())?;
        given.extend(change.list.clone());
    }
    let copies = gaps_without(&layout, leaving);
    let mut terms = changes.len() as u64 + u64::from(!copies.is_empty());
    let copies: Vec<Copying> = copies
        .into_iter()
        .map(|gap| copying(old, gap, said))
        .collect();
    if !leaving.is_empty() {
        let list = copies.iter().map(|copy| {
            let Gap {
                segment,
                chain,
                unit,
                ..
            } = &copy.gap;
            (*segment, *chain, unit.identity)
        });
        let listed = Change {
            list: list.collect(),
            ..Change::default()
        };
        let gone = Change {
            leave: leaving.clone(),
            ..Change::default()
        };
        for change in [listed, gone] {
            let seals = seals(&layout, said, &change);
            let sequencer = sequencer(&layout, &change, said);
            layout = next(&layout, &change, &seals, &sequencer, Origin::default())?;
            given.extend(change.list);
        }
        terms += 1;
    }
    let known = |span: &Span| old.lost.contains(span);
    Ok(Preview {
        redundancy: redundancy(old, &layout, &given, said),
        reach: reach(old, changes, said),
        lost: layout
            .lost
            .iter()
            .copied()
            .filter(|span| !known(span))
            .collect(),
        terms,
        copies,
        change: words::changed(old, &layout),
        layout,
    })
}

/// What the seals would answer.
fn seals(layout: &Layout, said: &Said, change: &Change) -> Seals {
    let units = layout
        .units
        .iter()
        .chain(&layout.spares)
        .chain(change.arrivals());
    let units = units.filter_map(|unit| {
        let said = said.servers.get(&unit.identity)?;
        let segments = layout.segments.iter();
        let mut listing = segments.filter(|segment| names(segment, &unit.identity));
        let sealed = Sealed {
            identity: unit.identity,
            incarnation: said.incarnation,
            end: said.end,
            trimmed: said.trimmed,
            member_from: listing.next().map(|segment| segment.start),
            synced: true,
            settled: Position::FIRST,
            held: vec![],
            announced: None,
        };
        Some((unit.identity, sealed))
    });
    let units: BTreeMap<Identity, Sealed> = units.collect();
    let is_damaged = |unit: &&Identity| {
        let said = said.servers.get(*unit);
        said.is_some_and(|said| said.damaged > 0)
    };
    let damaged: BTreeSet<Identity> = units.keys().filter(is_damaged).copied().collect();
    let mut whole: BTreeSet<(Position, usize, Identity)> = change.list.iter().copied().collect();
    for segment in layout
        .segments
        .iter()
        .filter(|segment| segment.end.is_some())
    {
        for (number, chain) in segment.chains.iter().enumerate() {
            let answering = chain.units.iter().filter(|unit| units.contains_key(unit));
            let answering = answering.filter(|unit| !damaged.contains(unit));
            whole.extend(answering.map(|unit| (segment.start, number, *unit)));
        }
    }
    let counter = said.servers.get(&layout.sequencer.identity);
    Seals {
        units,
        counter: counter.map(|said| said.end),
        whole,
        damaged,
    }
}

fn names(segment: &Segment, unit: &Identity) -> bool {
    let mut chains = segment.chains.iter();
    chains.any(|chain| chain.units.contains(unit))
}

/// Who would issue positions.
fn sequencer(layout: &Layout, change: &Change, said: &Said) -> Server {
    let all = || std::iter::once(&layout.sequencer).chain(&layout.standbys);
    let wanted = all().find(|one| change.sequencer.as_ref() == Some(&one.name));
    let answering = || all().find(|one| said.answers(&one.identity));
    let chosen = wanted.or_else(answering).unwrap_or(&layout.sequencer);
    chosen.clone()
}

/// Copies of every part of `new`, as units that answer hold them.
fn redundancy(
    old: &Layout,
    new: &Layout,
    given: &[(Position, usize, Identity)],
    said: &Said,
) -> Vec<Redundancy> {
    let mut rows = vec![];
    for segment in &new.segments {
        let is_open = segment.end.is_none();
        let before = if is_open {
            old.open_segment()
        } else {
            old.segment_of(segment.start)
        };
        for (chain, units) in segment.chains.iter().enumerate() {
            let units = || units.units.iter().filter(|unit| said.answers(unit));
            let had = before.chains.get(chain);
            let had: Vec<Identity> = had.map_or(vec![], |had| had.units.clone());
            let is_given = |unit: &Identity| {
                let mut given = given.iter();
                given.any(|(_, of, to)| (*of, to) == (chain, unit))
            };
            // A unit that took over what is given up holds nothing of it.
            let holds = |unit: &&Identity| is_open || had.contains(unit) || is_given(unit);
            rows.push(Redundancy {
                span: segment.span(),
                open: is_open,
                chain,
                before: had.iter().filter(|unit| said.answers(unit)).count(),
                after: units().filter(holds).count(),
                target: usize::from(new.settings.replicas),
            });
        }
    }
    rows
}

/// Who has to answer for it: those that decide, those that issue, those that are sealed, and those that come.
fn reach(old: &Layout, changes: &[Change], said: &Said) -> Vec<Reached> {
    let reached = |server: &Server, kind: Kind| Reached {
        server: server.clone(),
        kind,
        answers: said.answers(&server.identity),
    };
    let mut all: Vec<Reached> = vec![];
    let coming = changes
        .iter()
        .filter_map(|change| change.layout_servers.as_ref());
    let layout_servers = old.layout_servers.iter().chain(coming.flatten());
    all.extend(layout_servers.map(|server| reached(server, Kind::Layout)));
    let new = changes.iter().flat_map(|change| &change.standbys);
    let sequencers = std::iter::once(&old.sequencer)
        .chain(&old.standbys)
        .chain(new);
    all.extend(sequencers.map(|server| reached(server, Kind::Sequencer)));
    let new = changes.iter().flat_map(Change::arrivals);
    let units = old.units.iter().chain(&old.spares).chain(new);
    all.extend(units.map(|server| reached(server, Kind::LogUnit)));
    let mut seen = BTreeSet::new();
    all.retain(|one| seen.insert(one.server.identity));
    all
}

fn copying(old: &Layout, gap: Gap, said: &Said) -> Copying {
    let trims = said.servers.values().map(|said| said.trimmed);
    let kept = Span::new(trims.max().unwrap_or_default(), gap.stripes.span.end);
    let positions = positions_in(&gap.stripes, kept);
    let (bytes, held) = bytes_and_positions(old, said);
    let bytes = u128::from(bytes) * u128::from(positions) / u128::from(held.max(1));
    Copying {
        gap,
        positions,
        bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
    }
}

/// What the units that answer say they keep: bytes, and about how many positions those are.
fn bytes_and_positions(layout: &Layout, said: &Said) -> (u64, u64) {
    let (mut bytes, mut positions) = (0_u64, 0_u64);
    for unit in &layout.units {
        let Some(said) = said.servers.get(&unit.identity) else {
            continue;
        };
        let held = Span::new(said.trimmed, said.end);
        let listed = layout
            .chains()
            .filter(|(chain, _)| chain.units.contains(&unit.identity));
        let held: u64 = listed
            .map(|(_, stripes)| positions_in(&stripes, held))
            .sum();
        if held > 0 {
            bytes = bytes.saturating_add(said.bytes);
            positions = positions.saturating_add(held);
        }
    }
    (bytes, positions)
}

/// How many positions of `stripes` lie in `span`.
pub(super) fn positions_in(stripes: &Stripes, span: Span) -> u64 {
    let span = span.intersect(stripes.span);
    if span.is_empty() {
        return 0;
    }
    let width = u64::from(stripes.width);
    let round = width * u64::from(stripes.chains);
    let first = width * u64::from(stripes.index);
    let below = |position: Position| {
        let rest = (position.0 % round).saturating_sub(first).min(width);
        position.0 / round * width + rest
    };
    below(span.end) - below(span.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// W2.
    #[test]
    fn positions_of_a_chain_are_counted_as_its_runs_are() {
        let stripes = |index| Stripes {
            span: Span::new(Position(5), Position(90)),
            width: 4,
            chains: 3,
            index,
        };
        for (start, end, index) in [
            (0, 100, 0),
            (7, 30, 1),
            (11, 12, 2),
            (40, 41, 1),
            (89, 95, 1),
        ] {
            let span = Span::new(Position(start), Position(end));
            let counted = span
                .positions()
                .filter(|p| stripes(index).contains(*p))
                .count();
            assert_eq!(positions_in(&stripes(index), span), counted as u64);
        }
    }
}
