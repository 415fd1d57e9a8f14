//! What several units say of the same positions, compared. Pure.

use std::collections::BTreeMap;

use milonga_wire::{Before, EntryHead, Position, Span, Stamp, StreamLink, Term};
use serde::Serialize;

/// Violations that are told one by one; more are only counted.
const VIOLATIONS_MAX: usize = 1_000;
/// Spans of one kind that are told one by one.
const SPANS_MAX: usize = 10_000;

/// Everything that makes an entry the same on two units.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// Whose it is.
    pub stamp: Stamp,
    /// The term of the write that decided it.
    pub term: Term,
    /// Bytes of its payload, and their checksum.
    pub bytes: (u32, u32),
    /// The checksum of its streams and backpointers.
    pub links: u32,
}

impl Record {
    /// What `head` with bytes of that checksum is.
    pub fn of(head: &EntryHead, bytes_crc: u32) -> Self {
        Self {
            stamp: head.stamp,
            term: head.term,
            bytes: (head.len, bytes_crc),
            links: links_crc(&head.streams),
        }
    }
}

/// A checksum over streams and what came before in each.
pub fn links_crc(links: &[StreamLink]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for link in links {
        hasher.update(&link.stream.0);
        match &link.before {
            Before::Unknown => hasher.update(&[1]),
            Before::Known(before) => {
                hasher.update(&[2, before.len() as u8]);
                for position in before {
                    hasher.update(&position.0.to_le_bytes());
                }
            }
        }
    }
    hasher.finalize()
}

/// What one unit says of a position.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Told {
    /// A record.
    Data(Record),
    /// Junk of that term.
    Junk(Term),
    /// Trimmed.
    Trimmed,
    /// Never written there.
    Unwritten,
    /// It lacks it, and cannot tell whether it ever had it.
    Unknown,
    /// It had it, and cannot read it any more.
    Damaged,
    /// Nothing: it did not answer, or is not there.
    Silent,
}

/// What the units of a chain say of a position, taken together.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Held {
    /// The same on all that can tell.
    Whole,
    /// Given back, at one unit at least.
    Trimmed,
    /// By the first units of the chain and not by the last: under way, or left so by a writer that died.
    Incomplete,
    /// By none: issued and not written yet, or never.
    Hole,
    /// By none that can tell.
    Untold,
    /// C2 is broken: these two, by their place in the chain, hold different entries.
    Differs(usize, usize),
    /// C2 is broken: the first lacks what the second, behind it, holds.
    Lacks(usize, usize),
}

impl Held {
    /// Whether another look may say something else.
    pub fn may_change(self) -> bool {
        match self {
            Self::Whole | Self::Trimmed | Self::Untold => false,
            Self::Incomplete | Self::Hole | Self::Differs(..) | Self::Lacks(..) => true,
        }
    }
}

/// What `told`, head first, comes to. Without an `order`, who lacks something is not asked why.
pub fn judge(told: &[Told], order: bool) -> Held {
    let mut held = told
        .iter()
        .enumerate()
        .filter(|(_, told)| matches!(told, Told::Data(_) | Told::Junk(_)));
    let first = held.next();
    if let Some((at, one)) = first
        && let Some((other, _)) = held.clone().find(|(_, other)| *other != one)
    {
        return Held::Differs(at, other);
    }
    if told.contains(&Told::Trimmed) {
        return Held::Trimmed;
    }
    let last = held.next_back().or(first).map(|(at, _)| at);
    let unwritten = told.iter().position(|told| *told == Told::Unwritten);
    match (last, unwritten) {
        (Some(_), None) => Held::Whole,
        (Some(_), Some(_)) if !order => Held::Whole,
        (Some(last), Some(lacks)) if lacks < last => Held::Lacks(lacks, last),
        (Some(_), Some(_)) => Held::Incomplete,
        (None, _) if told.iter().any(|told| is_untold(*told)) => Held::Untold,
        (None, _) => Held::Hole,
    }
}

fn is_untold(told: Told) -> bool {
    matches!(told, Told::Unknown | Told::Damaged | Told::Silent)
}

/// Something that must not be.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Violation {
    /// `diverged`, `lacks`, `trim`, `stream` or `index`.
    pub code: &'static str,
    /// Where.
    pub position: Position,
    /// The units that it is about, with commas.
    pub units: String,
    /// What, in words.
    pub text: String,
}

/// What a unit cannot tell.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Damage {
    /// The unit.
    pub unit: String,
    /// How many positions.
    pub positions: u64,
    /// Where.
    pub spans: Vec<Span>,
}

/// What verifying came to.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Findings {
    /// Positions that were compared.
    pub checked: u64,
    /// Streams whose backpointers and indexes were compared with what was read.
    pub streams: u64,
    /// What must not be.
    pub violations: Vec<Violation>,
    /// How many there are, those not listed included.
    pub violations_total: u64,
    /// Positions that were issued, and that hold nothing.
    pub holes: Vec<Span>,
    /// Positions that are not on their whole chain yet.
    pub incomplete: Vec<Span>,
    /// What units cannot tell, by unit.
    pub damaged: Vec<Damage>,
    /// Positions that no unit can tell.
    pub lost: Vec<Span>,
    /// Units that are behind with a trim: it is finished by the next one.
    pub trims_behind: Vec<String>,
    /// Units whose stores show that something is missing: damage, or a crash. What was acknowledged of it, a peer holds.
    pub torn: Vec<String>,
    /// Units that could not be asked, and why not.
    pub unreachable: BTreeMap<String, String>,
}

impl Findings {
    /// Whether anything is wrong that does not pass by itself.
    pub fn is_bad(&self) -> bool {
        self.violations_total > 0 || !self.damaged.is_empty()
    }

    /// Takes note of one position that `units`, head first, hold so.
    pub fn note(&mut self, position: Position, units: &[&str], told: &[Told], held: Held) {
        self.checked += 1;
        for (unit, told) in units.iter().zip(told) {
            if matches!(told, Told::Unknown | Told::Damaged) {
                self.damage(unit, Span::one(position));
            }
        }
        match held {
            Held::Whole | Held::Trimmed => {}
            Held::Incomplete => add(&mut self.incomplete, Span::one(position)),
            Held::Hole => add(&mut self.holes, Span::one(position)),
            Held::Untold => {
                if !told.contains(&Told::Silent) {
                    add(&mut self.lost, Span::one(position));
                }
            }
            Held::Differs(one, other) => {
                let what = difference(told[one], told[other]);
                let (one, other) = (units[one], units[other]);
                self.violate(
                    "diverged",
                    position,
                    format!("{one},{other}"),
                    format!("{one} and {other} hold different entries at {position}: {what}"),
                );
            }
            Held::Lacks(lacks, holds) => {
                let (lacks, holds) = (units[lacks], units[holds]);
                self.violate(
                    "lacks",
                    position,
                    format!("{lacks},{holds}"),
                    format!(
                        "{lacks} lacks what {holds}, behind it in the chain, holds at {position}"
                    ),
                );
            }
        }
    }

    /// Takes note of what `unit` cannot tell.
    pub fn damage(&mut self, unit: &str, span: Span) {
        let at = self.damaged.iter().position(|damage| damage.unit == unit);
        let at = at.unwrap_or_else(|| {
            self.damaged.push(Damage {
                unit: unit.to_owned(),
                ..Damage::default()
            });
            self.damaged.len() - 1
        });
        let damage = &mut self.damaged[at];
        damage.positions += span.len();
        add(&mut damage.spans, span);
    }

    /// Whether `unit` is known not to be able to tell `position`.
    pub fn is_damaged(&self, unit: &str, position: Position) -> bool {
        let mut of_unit = self.damaged.iter().filter(|damage| damage.unit == unit);
        of_unit.any(|damage| damage.spans.iter().any(|span| span.contains(position)))
    }

    /// Takes note of a violation.
    pub fn violate(&mut self, code: &'static str, position: Position, units: String, text: String) {
        self.violations_total += 1;
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(Violation {
                code,
                position,
                units,
                text,
            });
        }
    }

    /// Compares trim points: none lies above the end, and who is behind the others is named.
    pub fn trims(&mut self, trims: &[(&str, Position)], end: Position) {
        let highest = trims.iter().map(|(_, trimmed)| *trimmed).max();
        for (unit, trimmed) in trims {
            if *trimmed > end {
                let text = format!("{unit} is trimmed to {trimmed}, above the end {end}");
                self.violate("trim", *trimmed, (*unit).to_owned(), text);
            }
            if Some(*trimmed) < highest {
                self.trims_behind.push((*unit).to_owned());
            }
        }
    }
}

fn difference(one: Told, other: Told) -> String {
    match (one, other) {
        (Told::Data(one), Told::Data(other)) if one.stamp != other.stamp => {
            format!("stamps {} and {}", one.stamp, other.stamp)
        }
        (Told::Data(one), Told::Data(other)) if one.bytes != other.bytes => {
            "the same stamp, other bytes".to_owned()
        }
        (Told::Data(one), Told::Data(other)) if one.term != other.term => {
            format!("the same stamp, terms {} and {}", one.term, other.term)
        }
        (Told::Data(_), Told::Data(_)) => "the same stamp, other streams".to_owned(),
        (Told::Junk(one), Told::Junk(other)) => format!("junk of terms {one} and {other}"),
        _ => "a record and junk".to_owned(),
    }
}

/// Adds `span` behind what is listed, joined where they touch.
fn add(spans: &mut Vec<Span>, span: Span) {
    let has_room = spans.len() < SPANS_MAX;
    match spans.last_mut() {
        Some(last) if last.end == span.start => last.end = span.end,
        Some(_) | None if has_room => spans.push(span),
        Some(_) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use milonga_wire::Session;

    use super::*;

    fn data(mark: u8) -> Told {
        Told::Data(Record {
            stamp: Stamp {
                session: Session([mark; 16]),
                request: 1,
                record: 0,
            },
            term: Term(1),
            bytes: (3, 7),
            links: 0,
        })
    }

    /// K1, C2: below the head a position holds what the head holds, or nothing.
    #[test]
    fn what_no_crash_explains_is_told_from_what_passes() {
        use Told::{Damaged, Silent, Trimmed, Unknown, Unwritten};
        let (a, b, junk) = (data(1), data(2), Told::Junk(Term(3)));
        let cases = [
            (vec![a, a, a], Held::Whole),
            (vec![junk, junk], Held::Whole),
            (vec![a, a, b], Held::Differs(0, 2)),
            (vec![Damaged, a, b], Held::Differs(1, 2)),
            (vec![a, junk], Held::Differs(0, 1)),
            (vec![junk, Told::Junk(Term(4))], Held::Differs(0, 1)),
            (vec![a, Unwritten, Unwritten], Held::Incomplete),
            (vec![Unwritten, a], Held::Lacks(0, 1)),
            (vec![a, Unwritten, a], Held::Lacks(1, 2)),
            (vec![a, Unknown, a], Held::Whole),
            (vec![Unwritten, Unwritten], Held::Hole),
            (vec![Unwritten, Damaged], Held::Untold),
            (vec![Unknown, Damaged], Held::Untold),
            (vec![Silent, a], Held::Whole),
            (vec![Trimmed, a], Held::Trimmed),
            (vec![Trimmed, a, b], Held::Differs(1, 2)),
            (vec![Trimmed, Unwritten], Held::Trimmed),
        ];
        for (told, held) in cases {
            assert_eq!(judge(&told, true), held, "{told:?}");
        }
        assert_eq!(judge(&[Unwritten, a], false), Held::Whole);
        assert_eq!(judge(&[Unwritten, a, b], false), Held::Differs(1, 2));
    }

    /// What is wrong is named with its unit, and neighbours are one span.
    #[test]
    fn findings_name_units_and_join_neighbours() {
        let mut findings = Findings::default();
        let units = ["u-1", "u-2"];
        for position in [3, 4, 5, 9] {
            let told = [data(1), Told::Damaged];
            let held = judge(&told, true);
            findings.note(Position(position), &units, &told, held);
        }
        let told = [data(1), data(2)];
        findings.note(Position(10), &units, &told, judge(&told, true));
        findings.trims(&[("u-1", Position(2)), ("u-2", Position(0))], Position(20));

        let span = |start, end| Span::new(Position(start), Position(end));
        assert_eq!(findings.damaged.len(), 1);
        assert_eq!(findings.damaged[0].spans, [span(3, 6), span(9, 10)]);
        assert_eq!(findings.violations[0].code, "diverged");
        assert_eq!(findings.trims_behind, ["u-2"]);
        assert!(findings.is_bad() && findings.checked == 5);
        findings.trims(&[("u-1", Position(30))], Position(20));
        assert_eq!(findings.violations_total, 2);
    }
}
