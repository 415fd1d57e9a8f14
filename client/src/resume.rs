//! What became of an append whose outcome nobody saw: resolved by position, in a later term or by another process.
//!
//! C3 rests on this: a token is taken again only for records that are proved not to be in the log.

use std::fmt;
use std::str::FromStr;

use milonga_wire::{Position, Session, Span, Stamp, Term};

use crate::entry::Kind;
use crate::log::Log;
use crate::trouble::{Patience, Unavailable};

/// Consecutive records of one append, where its last token put them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Placed {
    /// The token's term.
    pub term: Term,
    /// The position of the first record.
    pub first: Position,
    /// The number of the first record, counted in its append.
    pub record: u32,
    /// How many.
    pub count: u32,
}

impl Placed {
    pub(crate) fn span(&self) -> Span {
        Span::new(self.first, self.first.plus(u64::from(self.count)))
    }

    /// Those of the records that are numbered from `from` up to `to`.
    pub(crate) fn within(&self, from: u32, to: u32) -> Option<Self> {
        let first = self.record.max(from);
        let count = (self.record + self.count).min(to).checked_sub(first)?;
        let skipped = u64::from(first - self.record);
        (count > 0).then(|| Self {
            term: self.term,
            first: self.first.plus(skipped),
            record: first,
            count,
        })
    }
}

/// An append whose outcome is not known yet: enough to find out, from any process. Printed and read as text:
/// `session-request[.first]@term:first+count/record`, the last part repeated for records that lie elsewhere.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SavedAppend {
    /// The client session that appended.
    pub session: Session,
    /// Which append of that session.
    pub request: u64,
    /// What its first record is numbered in its stamps: not 0 if appends before it shared its run.
    pub first: u32,
    /// Where its records may be.
    pub placed: Vec<Placed>,
}

/// What became of one record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Resumed {
    /// It is at this position.
    Appended(Position),
    /// It is not in the log, and never will be.
    NotAppended,
    /// It cannot be told: trimmed meanwhile, or lost on every unit.
    Unknown,
}

impl fmt::Display for SavedAppend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.session, self.request)?;
        if self.first > 0 {
            write!(f, ".{}", self.first)?;
        }
        for placed in &self.placed {
            write!(
                f,
                "@{}:{}+{}/{}",
                placed.term, placed.first, placed.count, placed.record
            )?;
        }
        Ok(())
    }
}

impl FromStr for SavedAppend {
    type Err = milonga_wire::InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.split('@');
            let (session, request) = parts.next()?.split_once('-')?;
            let (request, first) = request.split_once('.').unwrap_or((request, "0"));
            let placed = parts.map(parse_placed).collect::<Option<Vec<_>>>()?;
            let saved = Self {
                session: session.parse().ok()?,
                request: request.parse().ok()?,
                first: first.parse().ok()?,
                placed,
            };
            let mut placed = saved.placed.iter();
            let fits = placed.all(|placed| {
                let last = placed.record + placed.count;
                saved.first.checked_add(last).is_some()
            });
            (fits && !saved.placed.is_empty()).then_some(saved)
        };
        parse().ok_or_else(|| milonga_wire::InvalidName {
            text: text.chars().take(80).collect(),
            what: "saved append",
            expected: "session-request[.first]@term:first+count/record",
        })
    }
}

fn parse_placed(text: &str) -> Option<Placed> {
    let (term, rest) = text.split_once(':')?;
    let (first, rest) = rest.split_once('+')?;
    let (count, record) = rest.split_once('/')?;
    let placed = Placed {
        term: Term(term.parse().ok()?),
        first: Position(first.parse().ok()?),
        record: record.parse().ok()?,
        count: count.parse().ok()?,
    };
    let fits = placed
        .first
        .0
        .checked_add(u64::from(placed.count))
        .is_some()
        && placed.record.checked_add(placed.count).is_some();
    (fits && placed.count > 0 && placed.count <= milonga_wire::limits::RUN_RECORDS_MAX)
        .then_some(placed)
}

impl Log {
    /// Finds out what became of a saved append, record by record, in the order they were saved. Whatever was half done
    /// is settled by it: after the answer it stays as it is.
    ///
    /// # Errors
    /// [`Unavailable`]: nothing is known yet.
    pub async fn resume(&self, saved: &SavedAppend) -> Result<Vec<(u32, Resumed)>, Unavailable> {
        let mut outcomes = vec![];
        for placed in &saved.placed {
            let stamp = Stamp {
                session: saved.session,
                request: saved.request,
                record: saved.first + placed.record,
            };
            let resolved = self.resolve(*placed, stamp).await?;
            outcomes.extend((placed.record..).zip(resolved));
        }
        Ok(outcomes)
    }

    /// What became of `placed`, whose first record carries `stamp`. Settles its positions under the newest layout.
    pub(crate) async fn resolve(
        &self,
        placed: Placed,
        stamp: Stamp,
    ) -> Result<Vec<Resumed>, Unavailable> {
        let mut retries = self.patience();
        self.resolve_within(placed, stamp, &mut retries).await
    }

    async fn resolve_within(
        &self,
        placed: Placed,
        stamp: Stamp,
        retries: &mut Patience,
    ) -> Result<Vec<Resumed>, Unavailable> {
        let newest = self.newest_layout().await?;
        let mut held_below = placed.span().end;
        if newest.layout.term > placed.term {
            // At or above the start that the very next term opened, nothing of this token's term was held (H41).
            let mut patience = self.patience();
            held_below = loop {
                match self.shared.layouts.at(placed.term.next()).await {
                    Ok(Some(next)) => break next.open_segment().start,
                    Ok(None) => return Ok(vec![Resumed::Unknown; placed.count as usize]),
                    Err(error) => {
                        self.after(&mut patience, newest.layout.term, error.into())
                            .await?;
                    }
                }
            };
        }
        let mut outcomes = vec![];
        let mut position = placed.first;
        while position < placed.span().end {
            if position >= held_below {
                outcomes.push(Resumed::NotAppended);
                position = position.next();
                continue;
            }
            let span = Span::new(position, placed.span().end.min(held_below));
            let mut patience = self.patience();
            match self.round(span, &mut patience).await? {
                crate::read::Round::Entries(entries) => {
                    if entries
                        .first()
                        .is_none_or(|entry| entry.position != position)
                    {
                        let why = format!("a read of position {position} brought something else");
                        return Err(Unavailable::Protocol { why });
                    }
                    for entry in entries {
                        let mine = stamp.plus(entry.position.since(placed.first) as u32);
                        outcomes.push(match entry.kind {
                            Kind::Data { stamp, .. } if stamp == mine => Resumed::Appended(entry.position),
                            Kind::Data { .. } | Kind::Junk { .. } => Resumed::NotAppended,
                            Kind::Trimmed | Kind::Unknown => Resumed::Unknown,
                            Kind::Unwritten => {
                                return Err(Unavailable::Protocol {
                                    why: "reads of this client do not settle holes; an append cannot be resolved so".to_owned(),
                                });
                            }
                        });
                        position = entry.position.next();
                    }
                }
                // In its own term, a position that was issued lies below the end: no sequencer issued this one.
                crate::read::Round::Ended(end) if end.term == placed.term => {
                    outcomes.push(Resumed::Unknown);
                    position = position.next();
                }
                // The term changed between the two questions: which positions count is another matter now.
                crate::read::Round::Ended(_) => {
                    retries
                        .pause(|| "the layout is changing".to_owned())
                        .await?;
                    return Box::pin(self.resolve_within(placed, stamp, retries)).await;
                }
            }
        }
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_append_reads_back_what_it_prints() {
        let placed = |first| Placed {
            term: Term(3),
            first: Position(first),
            record: 2,
            count: 5,
        };
        let saved = SavedAppend {
            session: Session([1; 16]),
            request: 9,
            first: 0,
            placed: vec![placed(7), placed(90)],
        };
        let shared = SavedAppend {
            first: 4,
            ..saved.clone()
        };

        assert_eq!(saved.to_string().parse::<SavedAppend>(), Ok(saved));
        assert_eq!(shared.to_string().parse::<SavedAppend>(), Ok(shared));
        for bad in [
            "",
            "x",
            "00-1@1:2+3/4",
            "01010101010101010101010101010101-1@1:2+0/4",
            "01010101010101010101010101010101-1.4294967295@1:2+1/4",
        ] {
            assert!(bad.parse::<SavedAppend>().is_err(), "{bad}");
        }
    }
}
