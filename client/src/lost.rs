//! Positions that an admin declared lost: whoever reads them is told so, instead of waiting for what nobody holds.
//!
//! The layout names the spans. What some unit of a chain still holds there is restored as anywhere else; what none holds
//! is junk from the term on that declared it, even before a control client has put the junk there: every unit that is
//! listed for it has answered, in that term or a later one, and nobody else can bring it back.

use futures_util::future::join_all;
use milonga_wire::{Layout, Position, Span};

use crate::chain::Found;
use crate::entry::{Entry, Kind};
use crate::log::Log;

/// The span that `layout` declares lost around `position`.
pub(crate) fn declared(layout: &Layout, position: Position) -> Option<Span> {
    let mut lost = layout.lost.iter().copied();
    lost.find(|span| span.contains(position))
}

impl Log {
    /// What `span`, of which a unit cannot tell, is for good, as far from its start as that is known: junk, if it was
    /// declared lost and no unit of its chain holds it.
    pub(crate) async fn read_lost(&self, layout: &Layout, span: Span) -> Option<Vec<Entry>> {
        let closed = Span::new(Position::FIRST, layout.open_segment().start);
        let lost = declared(layout, span.start)?
            .intersect(span)
            .intersect(closed);
        let (chain, _, piece) = layout.pieces(lost).next()?;
        let chain = self.chain(layout, chain);
        let asked = [piece];
        let asked = &asked;
        let told = chain.all().map(|unit| chain.read_all(unit, asked));
        let mut end = piece.end;
        for found in join_all(told).await {
            for found in found.ok()? {
                match found {
                    Found::Data(..) | Found::Junk(..) | Found::Trimmed(_) => {
                        end = end.min(found.span().start);
                    }
                    Found::Unwritten(_) | Found::Unknown(_) | Found::Damaged(_) => {}
                }
            }
        }
        let gone = Span::new(piece.start, end);
        let term = layout.term;
        let junk = gone.positions().map(|position| Entry {
            position,
            kind: Kind::Junk { term },
        });
        (!gone.is_empty()).then(|| junk.collect())
    }
}
