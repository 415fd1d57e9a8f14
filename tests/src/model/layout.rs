//! The layout of a term, and the pure function from an old layout and the seals to the next one.
//!
//! Not Paxos: that one layout is decided for a term is taken for granted here.
//!
//! - Segments follow each other without gap; only the last is open.
//! - Starts never fall from term to term.
//! - For every segment a listed unit is complete, or every unit is still listed that was when the
//!   last complete one was lost.
//!
//! Source: CORFU (NSDI '12), "Changing the mapping"; vCorfu (NSDI '17) leaves restarts open.

use super::entry::{Bits, Incarnation, Position, Term, UNITS_MAX, UnitId};
use super::guard::{Guard, Guards};
use super::unit::Sealed;

/// A range of positions, up to the start of the next segment, and the chain that holds it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Segment {
    /// Its first position.
    pub start: Position,
    /// Its units, head first.
    pub chain: Bits,
}

/// What a layout says of one unit.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Member {
    /// Which process start was sealed.
    pub incarnation: Incarnation,
    /// From here on that incarnation lacks nothing that it should hold.
    pub since: Position,
}

/// The layout of one term.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Layout {
    /// Its number.
    pub term: Term,
    /// Segments that take no appends any more, from the lowest.
    pub closed: Vec<Segment>,
    /// The segment that takes appends.
    pub open: Segment,
    /// What it says of each unit that some segment lists.
    pub members: [Option<Member>; UNITS_MAX],
    /// Units that are listed for closed segments, but were not sealed at this term.
    pub unreachable: Bits,
    /// Units that this layout or an earlier one listed: they do not come back as spares.
    pub known: Bits,
}

/// The answers that a proposer has to its seals.
pub type Seals = [Option<Sealed>; UNITS_MAX];

impl Layout {
    /// The layout of term 0 over one chain.
    pub fn genesis(chain: Bits) -> Layout {
        Layout {
            term: 0,
            closed: Vec::new(),
            open: Segment { start: 0, chain },
            members: members(chain, |_| Member {
                incarnation: 0,
                since: 0,
            }),
            unreachable: Bits::EMPTY,
            known: chain,
        }
    }

    /// The chain that holds `position`.
    pub fn chain(&self, position: Position) -> Bits {
        if position >= self.open.start {
            return self.open.chain;
        }
        self.closed
            .iter()
            .rfind(|segment| segment.start <= position)
            .map_or(Bits::EMPTY, |segment| segment.chain)
    }

    /// What it says of `unit`.
    pub fn member(&self, unit: UnitId) -> Option<Member> {
        self.members[usize::from(unit)]
    }

    /// The units that some segment lists.
    pub fn listed(&self) -> Bits {
        self.closed
            .iter()
            .fold(self.open.chain, |units, segment| units.or(segment.chain))
    }

    /// The next layout, from what the seals answered; `None` where the change must be refused.
    pub fn next(&self, seals: &Seals, counter: Option<Position>, policy: Policy) -> Option<Layout> {
        Planning {
            base: self,
            seals,
            policy,
        }
        .layout(counter)
    }
}

/// What a proposer goes by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policy {
    /// The rules in force.
    pub guards: Guards,
    /// Whether a restarted unit whose store shows every batch synced counts as if it had not.
    pub trust_restarted: bool,
    /// Whether units that hold a closed range are listed for it.
    pub lists: bool,
}

struct Planning<'a> {
    base: &'a Layout,
    seals: &'a Seals,
    policy: Policy,
}

impl Planning<'_> {
    fn layout(&self, counter: Option<Position>) -> Option<Layout> {
        let base = self.base;
        let sealed: Bits = (0..UNITS_MAX as u8)
            .filter(|&unit| self.seal(unit).is_some())
            .collect();
        let survivors = base.open.chain.and(sealed);
        let all = survivors == base.open.chain;
        let complete = survivors.iter().any(|unit| self.same(unit));
        if survivors.is_empty() || !(complete || all || !self.hold(Guard::SurvivorIsComplete)) {
            return None;
        }

        let start = self.start(sealed, counter);
        let absent = if self.hold(Guard::LeaverComesBackEmpty) {
            base.known
        } else {
            base.listed()
        };
        let spares = sealed.minus(absent);
        let joining = if self.hold(Guard::LeaverComesBackEmpty) {
            survivors
        } else {
            survivors.or(spares)
        };
        let closed = self.closed(sealed, start, joining);
        let unsealed = if self.hold(Guard::ListedIsSealed) {
            survivors
        } else {
            base.open.chain
        };
        let mut next = Layout {
            term: base.term + 1,
            closed,
            open: Segment {
                start,
                chain: unsealed.or(spares),
            },
            members: [None; UNITS_MAX],
            unreachable: Bits::EMPTY,
            known: base.known.or(spares),
        };
        let listed = next.listed();
        next.members = members(listed, |unit| self.member(unit, start));
        if self.hold(Guard::ListedIsSealed) {
            next.unreachable = listed.minus(sealed);
        }
        Some(next)
    }

    /// Where the new open segment starts. If nothing was written in the old one, it is replaced.
    fn start(&self, sealed: Bits, counter: Option<Position>) -> Position {
        let seals = || sealed.iter().filter_map(|unit| self.seal(unit));
        let above = |guard, position| if self.hold(guard) { position } else { 0 };
        let held = seals().filter_map(|seal| seal.held.last()).max();
        let held = above(Guard::StartAboveHeld, held.map_or(0, |highest| highest + 1));
        let trim = above(
            Guard::StartAboveTrim,
            seals().map(|seal| seal.trim).max().unwrap_or(0),
        );
        let previous = above(Guard::StartAbovePrevious, self.base.open.start);
        if held.max(trim) <= previous {
            return previous;
        }
        let counter = above(Guard::StartAboveCounter, counter.unwrap_or(0));
        held.max(trim).max(previous).max(counter)
    }

    /// The segments below `start`. One that would be empty is left out.
    fn closed(&self, sealed: Bits, start: Position, joining: Bits) -> Vec<Segment> {
        let mut closed = Vec::new();
        let mut end = start;
        for segment in self.base.closed.iter().chain([&self.base.open]).rev() {
            if segment.start < end {
                let range = segment.start..end;
                let whole = self.whole(joining, &range).minus(segment.chain);
                let chain = self.closed_chain(segment.chain, sealed, whole, &range);
                closed.insert(0, Segment { chain, ..*segment });
                end = segment.start;
            }
        }
        closed
    }

    /// Who stays listed for a range that takes no appends any more.
    fn closed_chain(
        &self,
        chain: Bits,
        sealed: Bits,
        whole: Bits,
        range: &std::ops::Range<Position>,
    ) -> Bits {
        let answered = chain.and(sealed).or(whole);
        let complete = answered.iter().any(|unit| self.complete(unit, range));
        let keeps = self.hold(Guard::ClosedKeepsIncomplete) || answered.is_empty();
        if (!complete && keeps) || !self.hold(Guard::ListedIsSealed) {
            chain.or(whole)
        } else {
            answered
        }
    }

    /// Who of `joining`, the units of the open chain, is to be listed for a range that was closed before.
    fn whole(&self, joining: Bits, range: &std::ops::Range<Position>) -> Bits {
        if !self.policy.lists || range.start >= self.base.open.start {
            return Bits::EMPTY;
        }
        let sealed = joining.iter().filter(|&unit| self.seal(unit).is_some());
        sealed
            .filter(|&unit| !self.hold(Guard::ListedIsWhole) || self.holds(unit, range))
            .collect()
    }

    /// Whether `unit` lacks nothing of `range` that was ever acknowledged.
    fn complete(&self, unit: UnitId, range: &std::ops::Range<Position>) -> bool {
        let since = self.base.member(unit).map(|member| member.since);
        let member = self.same(unit) && since.is_some_and(|since| since <= range.start);
        member || self.holds(unit, range) || !self.hold(Guard::ListedIsWhole)
    }

    fn holds(&self, unit: UnitId, range: &std::ops::Range<Position>) -> bool {
        self.seal(unit).is_some_and(|seal| {
            let kept = seal.held.or(Bits::range(0, seal.trim));
            kept.covers(Bits::range(range.start, range.end))
        })
    }

    /// Whether `unit` is the process that the old layout lists, or as good as it.
    fn same(&self, unit: UnitId) -> bool {
        match (self.base.member(unit), self.seal(unit)) {
            (Some(member), Some(seal)) => {
                let trusted = self.policy.trust_restarted && seal.intact;
                member.incarnation == seal.incarnation || trusted
            }
            (None, _) | (_, None) => false,
        }
    }

    fn member(&self, unit: UnitId, start: Position) -> Member {
        let before = self.base.member(unit);
        match (self.seal(unit), before) {
            (Some(seal), _) => {
                let stays = before.filter(|_| self.same(unit));
                let mut since = stays.map_or(start, |member| member.since);
                // The naive planner takes whoever joins, or is listed, for one that was there all the time.
                let fresh = before.is_none() && !self.hold(Guard::JoinerKnowsSince);
                if fresh || !self.hold(Guard::ListedIsWhole) {
                    since = 0;
                }
                while since > 0 && (seal.held.contains(since - 1) || since <= seal.trim) {
                    since -= 1;
                }
                Member {
                    incarnation: seal.incarnation,
                    since,
                }
            }
            (None, Some(member)) => member,
            (None, None) => unreachable!("only sealed units and members are listed"),
        }
    }

    fn seal(&self, unit: UnitId) -> Option<Sealed> {
        self.seals[usize::from(unit)]
    }

    fn hold(&self, guard: Guard) -> bool {
        self.policy.guards.hold(guard)
    }
}

fn members(units: Bits, member: impl Fn(UnitId) -> Member) -> [Option<Member>; UNITS_MAX] {
    std::array::from_fn(|unit| {
        let unit = unit as u8;
        units.contains(unit).then(|| member(unit))
    })
}
