//! Layouts: who holds which positions in a term, and what proves that a layout was decided.
//!
//! Pure data and look-ups. How the next layout is chosen is the client's business
//! (`milonga-client`, `reconfigure/plan.rs`); how it is decided, the layout servers' (`acceptor.rs`).
//!
//! - L1 Segments are in order, none is empty, they cover every position from 0 and only the last is open.
//! - L2 No server stands twice in one chain; names are unique in a layout.
//!
//! Source: CORFU (NSDI '12), "Mapping in CORFU" (projections).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{
    LEFT_MAX, SEGMENTS_MAX, SERVERS_MAX, STRIPE_WIDTH_MAX, STRIPE_WIDTH_MIN, TEXT_BYTES_MAX,
    WINDOW_POSITIONS,
};
use crate::{Address, ClusterId, Identity, Incarnation, Position, ServerName, Span, Stripes, Term};

/// A server as a layout names it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Its name, which its certificate must carry.
    pub name: ServerName,
    /// Where it listens.
    pub address: Address,
    /// Its directory's identity; a sequencer, which has none, derives it from its name ([`Identity::of_name`]).
    pub identity: Identity,
    /// Its process start.
    pub incarnation: Incarnation,
}

/// Units in write order: the first is the head, the last the tail.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Chain {
    /// Never empty.
    pub units: Vec<Identity>,
    /// A chain of a closed segment of which no unit answered when this layout was made. Its reads say who must come back.
    pub unreachable: bool,
}

impl Chain {
    /// A chain of these units.
    pub fn new(units: Vec<Identity>) -> Self {
        Self {
            units,
            unreachable: false,
        }
    }
}

/// A range of positions with one set of chains and one stripe width.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Its first position.
    pub start: Position,
    /// The first position after it; none for the open segment.
    pub end: Option<Position>,
    /// Positions per stripe.
    pub stripe_width: u32,
    /// Position `p` lives on chain `(p / stripe_width) % chains.len()`.
    pub chains: Vec<Chain>,
}

impl Segment {
    /// The positions it covers.
    pub fn span(&self) -> Span {
        Span::new(self.start, self.end.unwrap_or(Position(u64::MAX)))
    }

    /// Which chain holds `position`, if it lies in this segment's stripes.
    pub fn chain_index(&self, position: Position) -> usize {
        ((position.0 / u64::from(self.stripe_width)) % self.chains.len() as u64) as usize
    }

    /// The last position of chain `index` that lies in this segment below `limit`.
    pub fn last_below(&self, index: usize, limit: Position) -> Option<Position> {
        let mut last = Position(limit.0.checked_sub(1)?);
        for _ in &self.chains {
            if last < self.start {
                return None;
            }
            if self.chain_index(last) == index {
                return Some(last);
            }
            let stripe = last.0 - last.0 % u64::from(self.stripe_width);
            last = Position(stripe.checked_sub(1)?);
        }
        None
    }

    /// The positions of chain `index`.
    pub fn stripes(&self, index: usize) -> Stripes {
        Stripes {
            span: self.span(),
            width: self.stripe_width,
            chains: self.chains.len() as u16,
            index: index as u16,
        }
    }
}

/// What an operator set for the whole cluster.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// How many units a chain should have; a shorter one is healed from the spares.
    pub replicas: u16,
    /// Whether a restarted unit whose store shows every batch synced counts as complete (design rule: honest disks).
    pub trust_restarted: bool,
}

/// Who made a layout, why, and what it changed: the history that `cluster layouts` prints.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The certificate name of the proposer.
    pub by: String,
    /// Why.
    pub why: String,
    /// What changed.
    pub change: String,
    /// The proposer's wall clock, in milliseconds since 1970. For people; nothing decides by it.
    pub at_ms: u64,
}

/// For one term: every server, and where each position lives.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    /// The cluster.
    pub cluster: ClusterId,
    /// The term.
    pub term: Term,
    /// The acceptors that decide the next layout: 1, 3 or 5.
    pub layout_servers: Vec<Server>,
    /// Who issues positions in this term.
    pub sequencer: Server,
    /// Who may, in a later one.
    pub standbys: Vec<Server>,
    /// Every log unit that a chain names.
    pub units: Vec<Server>,
    /// Where each position lives.
    pub segments: Vec<Segment>,
    /// Units that stand ready, empty.
    pub spares: Vec<Server>,
    /// Spans an admin declared lost.
    pub lost: Vec<Span>,
    /// Units that were left out because they did not answer, and may come back, empty. Nobody asks them anything else.
    pub left: Vec<Server>,
    /// The cluster's settings.
    pub settings: Settings,
    /// Who made it and why.
    pub origin: Origin,
}

/// Why a layout cannot be one.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the layout of term {term} is not valid: {why}")]
pub struct InvalidLayout {
    /// Its term.
    pub term: Term,
    /// What is wrong with it.
    pub why: String,
}

impl Layout {
    /// The segment that takes new positions.
    ///
    /// # Panics
    /// Only on a layout that was never checked with [`Layout::validate`].
    pub fn open_segment(&self) -> &Segment {
        self.segments
            .last()
            .expect("a valid layout has an open segment (L1)")
    }

    /// The segment that holds `position`.
    pub fn segment_of(&self, position: Position) -> &Segment {
        let after = self
            .segments
            .partition_point(|segment| segment.start <= position);
        &self.segments[after.saturating_sub(1)]
    }

    /// The chain that holds `position` (W2), with the positions it holds in that segment.
    pub fn chain_of(&self, position: Position) -> (&Chain, Stripes) {
        let segment = self.segment_of(position);
        let index = segment.chain_index(position);
        (&segment.chains[index], segment.stripes(index))
    }

    /// The log unit of that identity.
    pub fn unit(&self, identity: Identity) -> Option<&Server> {
        self.units.iter().find(|unit| unit.identity == identity)
    }

    /// The units of `chain`, head first.
    pub fn units_of<'a>(&'a self, chain: &'a Chain) -> impl DoubleEndedIterator<Item = &'a Server> {
        chain
            .units
            .iter()
            .filter_map(|identity| self.unit(*identity))
    }

    /// How many layout servers make a majority.
    pub fn majority(&self) -> usize {
        self.layout_servers.len() / 2 + 1
    }

    /// `span` cut where the chain changes: at stripes and segments, in order.
    pub fn pieces(&self, span: Span) -> Pieces<'_> {
        Pieces {
            layout: self,
            rest: span,
        }
    }

    /// Every chain of every segment with its positions, oldest segment first.
    pub fn chains(&self) -> impl Iterator<Item = (&Chain, Stripes)> {
        self.segments.iter().flat_map(|segment| {
            segment
                .chains
                .iter()
                .enumerate()
                .map(|(index, chain)| (chain, segment.stripes(index)))
        })
    }

    /// Checks L1, L2 and every bound.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn validate(&self) -> Result<(), InvalidLayout> {
        let wrong = |why: String| InvalidLayout {
            term: self.term,
            why,
        };
        if !matches!(self.layout_servers.len(), 1 | 3 | 5) {
            let count = self.layout_servers.len();
            return Err(wrong(format!("{count} layout servers; expected 1, 3 or 5")));
        }
        let servers = || {
            let sequencers = std::iter::once(&self.sequencer).chain(&self.standbys);
            self.layout_servers
                .iter()
                .chain(sequencers)
                .chain(&self.units)
                .chain(&self.spares)
        };
        if servers().count() > SERVERS_MAX || self.segments.len() > SEGMENTS_MAX {
            return Err(wrong(
                "more servers or segments than the limits allow".to_owned(),
            ));
        }
        if self.left.len() > LEFT_MAX {
            return Err(wrong(format!("more than {LEFT_MAX} units have left")));
        }
        let mut names = BTreeSet::new();
        let mut identities = BTreeSet::new();
        for server in servers() {
            if !names.insert(&server.name) {
                return Err(wrong(format!("the name {} stands twice", server.name)));
            }
            if !identities.insert(server.identity) {
                return Err(wrong(format!(
                    "{} has the identity of another server",
                    server.name
                )));
            }
        }
        self.validate_segments().map_err(wrong)?;
        let origin = [&self.origin.by, &self.origin.why, &self.origin.change];
        if origin.iter().any(|text| text.len() > TEXT_BYTES_MAX) {
            return Err(wrong("its origin is too long".to_owned()));
        }
        Ok(())
    }

    fn validate_segments(&self) -> Result<(), String> {
        let mut expected = Position::FIRST;
        for (index, segment) in self.segments.iter().enumerate() {
            let last = index + 1 == self.segments.len();
            if segment.start != expected {
                return Err(format!(
                    "segment {index} starts at {}, not {expected}",
                    segment.start
                ));
            }
            match segment.end {
                Some(end) if !last && end > segment.start => expected = end,
                None if last => {}
                Some(_) | None => {
                    return Err(format!("segment {index} is empty, or open before the last"));
                }
            }
            if !(STRIPE_WIDTH_MIN..=STRIPE_WIDTH_MAX).contains(&segment.stripe_width) {
                return Err(format!(
                    "segment {index} has a stripe width of {}",
                    segment.stripe_width
                ));
            }
            let round = u64::from(segment.stripe_width) * segment.chains.len() as u64;
            if round > WINDOW_POSITIONS / 2 {
                return Err(format!(
                    "segment {index} has stripes so wide, for so many chains, that a chain's first lies out of its window"
                ));
            }
            if segment.chains.is_empty() || segment.chains.len() > usize::from(u16::MAX) {
                return Err(format!(
                    "segment {index} has {} chains",
                    segment.chains.len()
                ));
            }
            let mut seen = BTreeMap::new();
            for (number, chain) in segment.chains.iter().enumerate() {
                if chain.units.is_empty() {
                    return Err(format!("chain {number} of segment {index} has no unit"));
                }
                for unit in &chain.units {
                    if self.unit(*unit).is_none() {
                        return Err(format!(
                            "chain {number} of segment {index} names no listed unit"
                        ));
                    }
                    if seen.insert(*unit, number).is_some() {
                        return Err(format!("a unit stands twice in segment {index}"));
                    }
                }
            }
        }
        if self.segments.is_empty() {
            Err("there is no segment".to_owned())
        } else {
            Ok(())
        }
    }
}

/// Runs of consecutive positions that one chain holds; see [`Layout::pieces`].
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    layout: &'a Layout,
    rest: Span,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = (&'a Chain, Stripes, Span);

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let (chain, stripes) = self.layout.chain_of(self.rest.start);
        let run = match stripes.chains {
            1 => stripes.span,
            _ => stripes.run_from(self.rest.start)?,
        };
        let piece = run.intersect(self.rest);
        self.rest.start = piece.end;
        Some((chain, stripes, piece))
    }
}

/// Orders proposers within a term: a higher number wins, and the proposer's random id breaks ties.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Serialize, Deserialize)]
pub struct Rank {
    /// Chosen above every rank the proposer has seen.
    pub number: u64,
    /// 128 random bits of the proposer's attempt.
    pub proposer: [u8; 16],
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:04x}",
            self.number,
            u16::from_be_bytes([self.proposer[0], self.proposer[1]])
        )
    }
}

/// A layout server's word that it accepted the layout this stands beside, at `rank`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Acceptance {
    /// The layout server.
    pub server: Identity,
    /// The rank at which it accepted.
    pub rank: Rank,
}

/// A decided layout, with the acceptances that make it one. Term 0 needs none: `cluster init` decides it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// The layout.
    pub layout: Layout,
    /// One per layout server of the *previous* layout that accepted it, all at one rank.
    pub acceptances: Vec<Acceptance>,
}

impl Decided {
    /// Whether `self` is proved to follow `previous`: its term is the next, it is valid, of the same cluster, and
    /// a majority of `previous`'s layout servers accepted it at one rank.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self, previous: &Layout) -> Result<(), InvalidLayout> {
        let wrong = |why: &str| InvalidLayout {
            term: self.layout.term,
            why: why.to_owned(),
        };
        self.layout.validate()?;
        if self.layout.cluster != previous.cluster {
            return Err(wrong("it is of another cluster"));
        }
        if self.layout.term != previous.term.next() {
            return Err(wrong(&format!("it does not follow term {}", previous.term)));
        }
        let ranks: BTreeSet<Rank> = self
            .acceptances
            .iter()
            .map(|acceptance| acceptance.rank)
            .collect();
        let servers: BTreeSet<Identity> = self
            .acceptances
            .iter()
            .map(|acceptance| acceptance.server)
            .filter(|identity| {
                previous
                    .layout_servers
                    .iter()
                    .any(|server| server.identity == *identity)
            })
            .collect();
        if ranks.len() != 1 || servers.len() < previous.majority() {
            return Err(wrong("too few layout servers accepted it at one rank"));
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn server(number: u8) -> Server {
        Server {
            name: format!("s-{number}").parse().unwrap(),
            address: format!("127.0.0.1:{}", 7000 + u16::from(number))
                .parse()
                .unwrap(),
            identity: Identity([number; 16]),
            incarnation: Incarnation(u64::from(number)),
        }
    }

    /// Three layout servers (1 to 3), a sequencer (4), two chains of two units (10, 11 and 12, 13).
    pub(crate) fn layout() -> Layout {
        let chain = |units: &[u8]| Chain::new(units.iter().map(|n| Identity([*n; 16])).collect());
        Layout {
            cluster: ClusterId([9; 16]),
            term: Term::GENESIS,
            layout_servers: (1..=3).map(server).collect(),
            sequencer: server(4),
            standbys: vec![],
            units: (10..=13).map(server).collect(),
            segments: vec![Segment {
                start: Position::FIRST,
                end: None,
                stripe_width: 4,
                chains: vec![chain(&[10, 11]), chain(&[12, 13])],
            }],
            spares: vec![],
            lost: vec![],
            left: vec![],
            settings: Settings {
                replicas: 2,
                trust_restarted: true,
            },
            origin: Origin::default(),
        }
    }

    /// W2.
    #[test]
    fn pieces_cover_a_span_once_each_on_the_chain_that_holds_it() {
        let mut layout = layout();
        layout.segments[0].end = Some(Position(10));
        let mut open = layout.segments[0].clone();
        (open.start, open.end, open.stripe_width) = (Position(10), None, 3);
        layout.segments.push(open);
        layout.validate().unwrap();

        let span = Span::new(Position(2), Position(23));
        let mut next = span.start;
        for (chain, _, piece) in layout.pieces(span) {
            assert_eq!(piece.start, next);
            next = piece.end;
            assert!(piece.positions().all(|p| layout.chain_of(p).0 == chain));
        }
        assert_eq!(next, span.end);
    }

    /// W2.
    #[test]
    fn the_last_position_of_a_chain_below_a_limit_is_found_across_stripes() {
        let mut segment = layout().segments[0].clone();
        (segment.start, segment.stripe_width) = (Position(4), 3);
        let chains = segment.chains.len();
        for (index, limit) in (0..chains).flat_map(|i| (0..40).map(move |limit| (i, limit))) {
            let expected = (4..limit)
                .map(Position)
                .rfind(|p| segment.chain_index(*p) == index);
            assert_eq!(segment.last_below(index, Position(limit)), expected);
        }
    }

    /// L1, L2.
    #[test]
    fn a_layout_with_gaps_or_repeats_is_not_valid() {
        let valid = layout();
        assert_eq!(valid.validate(), Ok(()));
        let break_it = |breaks: fn(&mut Layout)| {
            let mut layout = layout();
            breaks(&mut layout);
            layout.validate()
        };
        assert!(break_it(|l| l.segments[0].start = Position(1)).is_err());
        assert!(break_it(|l| l.segments[0].end = Some(Position(4))).is_err());
        assert!(break_it(|l| l.segments[0].chains[0].units.clear()).is_err());
        assert!(break_it(|l| l.segments[0].stripe_width = 0).is_err());
        assert!(break_it(|l| l.layout_servers.truncate(2)).is_err());
        assert!(break_it(|l| l.units[0].name = l.units[1].name.clone()).is_err());
        assert!(break_it(|l| l.segments[0].chains[1] = l.segments[0].chains[0].clone()).is_err());
    }

    /// H20; Paxos Made Simple, "Learning a Chosen Value".
    #[test]
    fn a_decision_needs_a_majority_of_the_previous_layouts_servers_at_one_rank() {
        let previous = layout();
        let next = Layout {
            term: Term(1),
            ..layout()
        };
        let rank = Rank {
            number: 1,
            proposer: [1; 16],
        };
        let accept = |n: u8, rank: Rank| Acceptance {
            server: Identity([n; 16]),
            rank,
        };
        let decided = |acceptances| {
            Decided {
                layout: next.clone(),
                acceptances,
            }
            .check(&previous)
        };

        assert_eq!(decided(vec![accept(1, rank), accept(3, rank)]), Ok(()));
        assert!(decided(vec![accept(1, rank)]).is_err());
        assert!(decided(vec![accept(1, rank), accept(1, rank)]).is_err());
        assert!(decided(vec![accept(1, rank), accept(77, rank)]).is_err());
        assert!(decided(vec![accept(1, rank), accept(2, Rank { number: 2, ..rank })]).is_err());
    }
}
