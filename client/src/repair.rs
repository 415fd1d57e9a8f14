//! Repair in place: what a unit cannot read any more is put back from its peers, down the whole chain.
//!
//! ```text
//! Lacking? (every range the unit is listed for) ─▶ damage in the open segment: a later term first ─▶ restore, chain by chain
//! ```
//! What is unknown or damaged is resolved in a later term than it arose in, when whoever could still be writing it is
//! fenced: a closed segment's writers are, and a new term closes the open one. What no unit holds any more and some unit
//! did is lost: it is named, and nothing takes its place until an admin says so.

use std::sync::PoisonError;

use milonga_host::BoxFuture;
use milonga_wire::limits::SPANS_MAX;
use milonga_wire::{
    ConfirmedEnd, Decided, Layout, Position, Report, Role, Server, ServerName, Span, Stripes, Term,
};

use crate::chain::{ChainError, Found};
use crate::layouts::LayoutsError;
use crate::log::Log;
use crate::reconfigure::{self, ChangeError};
use crate::settle::by_chain;
use crate::trouble::Unavailable;

/// Positions that one step of a repair covers.
const STEP_POSITIONS: u64 = 256;

/// What a repair came to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Repaired {
    /// Positions that the unit could not tell, and now holds as its peers do.
    pub restored: u64,
    /// Positions that every unit listed for them lost. Trying again changes nothing: an admin declares them lost.
    pub lost: Vec<Span>,
    /// The term in which it was done.
    pub term: Term,
}

/// Why a repair did not come to its end. What was restored by then is; trying again goes on from there.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RepairError {
    /// Repairing needs a control certificate.
    #[error("a {0} certificate may not repair; use one of role control")]
    WrongRole(Role),
    /// No unit of that name is in the newest layout.
    #[error("no log unit of the newest layout is named {0}; look with `milonga cluster status`")]
    NotListed(ServerName),
    /// No majority of the layout servers was read.
    #[error(transparent)]
    Layouts(#[from] LayoutsError),
    /// The open segment is damaged, and no later term came about.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// A unit of the chain refused or did not answer: every one must, or be left out by a later layout.
    #[error(transparent)]
    Unit(#[from] Unavailable),
}

impl From<ChainError> for RepairError {
    fn from(error: ChainError) -> Self {
        Self::Unit(match error {
            ChainError::Unit(failure) => match failure.refusal() {
                Some(refusal) => Unavailable::Refused {
                    server: failure
                        .server()
                        .map_or_else(String::new, |name| name.to_string()),
                    refusal: refusal.clone(),
                },
                None => Unavailable::Protocol {
                    why: failure.to_string(),
                },
            },
            error @ ChainError::Diverged { .. } => Unavailable::Diverged {
                why: error.to_string(),
            },
            error @ ChainError::Unknown { .. } => Unavailable::Protocol {
                why: error.to_string(),
            },
        })
    }
}

/// Repairs everything that the unit of that name cannot tell, in every range for which the newest layout lists it.
///
/// Nothing is done and no term is made for a unit that is well. May be called by any number of control clients at once.
///
/// # Errors
/// [`RepairError`].
pub async fn repair(log: &Log, unit: &ServerName) -> Result<Repaired, RepairError> {
    if !log.may(Role::Control) {
        return Err(RepairError::WrongRole(log.caller().role));
    }
    let mut decided = log.shared.layouts.read().await?.decided;
    let mut spans = lacking(log, &decided.layout, unit).await?;
    let start = decided.layout.open_segment().start;
    if spans.iter().any(|span| span.end > start) {
        decided = later(log, &decided).await?;
        spans = lacking(log, &decided.layout, unit).await?;
    }
    let layout = &decided.layout;
    let mut repaired = Repaired {
        term: layout.term,
        ..Repaired::default()
    };
    let start = layout.open_segment().start;
    let closed = Span::new(Position::FIRST, start);
    let end = ConfirmedEnd {
        end: start,
        term: layout.term,
    };
    for step in spans.iter().flat_map(|span| steps(span.intersect(closed))) {
        for (chain, spans) in by_chain(layout, &[step]).values() {
            let lost = log.chain(layout, chain).restore_all(spans, end).await?;
            let count: u64 = spans.iter().map(|span| span.len()).sum();
            let gone: u64 = lost.iter().map(|span| span.len()).sum();
            repaired.restored += count - gone;
            lost.into_iter()
                .for_each(|span| join(&mut repaired.lost, span));
        }
    }
    metrics::counter!("milonga_client_repaired_positions_total").increment(repaired.restored);
    Ok(repaired)
}

/// The next term, in which nobody writes any more what is open now. The same servers; whoever came first made it.
async fn later(log: &Log, decided: &Decided) -> Result<Decided, ChangeError> {
    let why = "an entry of the open segment is damaged";
    let same = reconfigure::Change::default();
    let next = reconfigure::make(log, decided.layout.term, &same, why).await?;
    Ok((*next).clone())
}

/// What the unit says that it cannot tell, of all that the layout lists it for. Bounded: the rest is found the next time.
async fn lacking(log: &Log, layout: &Layout, unit: &ServerName) -> Result<Vec<Span>, RepairError> {
    let named = layout.units.iter().find(|server| server.name == *unit);
    let server = named.ok_or_else(|| RepairError::NotListed(unit.clone()))?;
    let mut spans = vec![];
    let listed = layout
        .chains()
        .filter(|(chain, _)| chain.units.contains(&server.identity));
    for (chain, stripes) in listed {
        let chain = log.chain(layout, chain);
        let mut from = Some(stripes.span.start);
        while let Some(at) = from.filter(|_| spans.len() < SPANS_MAX) {
            let (more, next) = chain.lacking(server, stripes, at).await?;
            spans.extend(more.into_iter().filter(|span| is_of(span, stripes)));
            from = next;
        }
    }
    Ok(spans)
}

/// Whether a unit speaks of what it was asked.
fn is_of(span: &Span, stripes: Stripes) -> bool {
    let whole = stripes.run_from(span.start);
    whole.is_some_and(|run| run.start == span.start && (span.end <= run.end || stripes.chains == 1))
}

fn steps(span: Span) -> impl Iterator<Item = Span> {
    let starts = (span.start.0..span.end.0.max(span.start.0)).step_by(STEP_POSITIONS as usize);
    starts.map(move |start| {
        let start = Position(start);
        Span::new(start, start.plus(STEP_POSITIONS)).intersect(span)
    })
}

fn join(spans: &mut Vec<Span>, span: Span) {
    match spans.last_mut() {
        Some(last) if last.end == span.start => last.end = span.end,
        Some(_) | None => spans.push(span),
    }
}

impl Log {
    /// `unit` answered a read with `found`. What of it is damaged is told to those who repair, or repaired: whoever asked gets
    /// the answer from another unit meanwhile, and nobody would ever notice. At most once in the time of a call.
    pub(crate) fn note_damage(&self, unit: &Server, found: &[Found]) {
        let damaged = found.iter().filter_map(|found| match found {
            Found::Damaged(span) => Some(*span),
            Found::Data(..)
            | Found::Junk(..)
            | Found::Trimmed(_)
            | Found::Unwritten(_)
            | Found::Unknown(_) => None,
        });
        let spans: Vec<Span> = damaged.take(SPANS_MAX).collect();
        if spans.is_empty() {
            return;
        }
        let now = self.host().clock.now();
        let told = &self.shared.damage_told;
        {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.is_some_and(|last| now.since(last) < self.options.call) {
                return;
            }
            *told = Some(now);
        }
        tracing::warn!(unit = %unit.name, first = %spans[0], "records are damaged");
        let server = unit.name.clone();
        self.background(|log| log.care(server, spans));
    }

    /// In a box: mending reads, and reading mends.
    fn care(self, server: ServerName, spans: Vec<Span>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if self.may(Role::Control) && self.options.mend {
                match repair(&self, &server).await {
                    Ok(repaired) => tracing::info!(unit = %server, ?repaired, "repaired"),
                    Err(error) => tracing::info!(unit = %server, %error, "not repaired"),
                }
            } else {
                self.report(Report::Damaged { server, spans }).await;
            }
        })
    }
}

#[cfg(test)]
mod tests;
