//! Settling: ends what is half done, over all chains that hold it, and restores what a restarted unit cannot tell.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use milonga_wire::limits::SPANS_MAX;
use milonga_wire::{Chain, ConfirmedEnd, Layout, Position, Report, Role, Span};

use crate::log::Log;
use crate::trouble::Trouble;

/// Which positions of which chain: its segment's start, its number in it, and the stripes. (A segment in which nothing
/// was written may be replaced by one of the same start and other stripes.)
pub(crate) type ChainKey = (Position, u16, u32, u16);

/// `spans`, grouped by the chain that holds them.
pub(crate) fn by_chain<'a>(
    layout: &'a Layout,
    spans: &[Span],
) -> BTreeMap<ChainKey, (&'a Chain, Vec<Span>)> {
    let mut groups: BTreeMap<ChainKey, (&Chain, Vec<Span>)> = BTreeMap::new();
    for span in spans {
        for (chain, stripes, piece) in layout.pieces(*span) {
            let key = (
                stripes.span.start,
                stripes.index,
                stripes.width,
                stripes.chains,
            );
            groups
                .entry(key)
                .or_insert_with(|| (chain, vec![]))
                .1
                .push(piece);
        }
    }
    groups
}

impl Log {
    /// Settles `spans`, all below `end`, in the term of `layout`. A reader's certificate reports them instead.
    pub(crate) async fn settle(
        &self,
        layout: &Layout,
        spans: &[Span],
        end: ConfirmedEnd,
    ) -> Result<(), Trouble> {
        debug_assert!(
            spans.iter().all(|span| span.end <= end.end) && end.term == layout.term,
            "C5"
        );
        if !self.may(Role::Writer) {
            self.report(Report::Holes {
                spans: spans.iter().copied().take(SPANS_MAX).collect(),
                end: end.end,
            })
            .await;
            return Ok(());
        }
        let groups = by_chain(layout, spans);
        let settled = join_all(
            groups
                .values()
                .map(|(chain, spans)| self.settle_chain(layout, chain, spans, end)),
        );
        settled.await.into_iter().collect()
    }

    async fn settle_chain(
        &self,
        layout: &Layout,
        chain: &Chain,
        spans: &[Span],
        end: ConfirmedEnd,
    ) -> Result<(), Trouble> {
        Ok(self.chain(layout, chain).settle(spans, end).await?)
    }

    /// Puts back what any unit holds of `span`, which some unit cannot tell. Control only, and only below the open segment
    /// of a decided layout. Says whether it could be done; every refusal leaves things as they are.
    pub(crate) async fn restore(&self, span: Span) -> bool {
        if !self.may(Role::Control) {
            return false;
        }
        let Some(decided) = self.shared.layouts.known() else {
            return false;
        };
        let layout = &decided.layout;
        let start = layout.open_segment().start;
        let span = span.intersect(Span::new(Position::FIRST, start));
        if span.is_empty() {
            return false;
        }
        let end = ConfirmedEnd {
            end: start,
            term: layout.term,
        };
        for (chain, spans) in by_chain(layout, &[span]).values() {
            if let Err(error) = self.chain(layout, chain).restore(spans, end).await {
                tracing::debug!(%error, %span, "could not restore");
                return false;
            }
        }
        true
    }
}
