//! Disjoint spans of positions, each with a value: junk, and what is damaged. Pure.
//!
//! Neighbours with equal values are one span, so a filled stretch costs one, however it was filled.

use std::collections::BTreeMap;

use milonga_wire::{Position, Span};

#[derive(Clone, Debug)]
pub(super) struct SpanMap<V>(BTreeMap<Position, (Position, V)>);

impl<V> Default for SpanMap<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V: Copy + Eq> SpanMap<V> {
    /// The span that holds `position`.
    pub(super) fn at(&self, position: Position) -> Option<(Span, V)> {
        let (start, (end, value)) = self.0.range(..=position).next_back()?;
        (position < *end).then(|| (Span::new(*start, *end), *value))
    }

    /// The first position in any span at or after `from`.
    pub(super) fn first_from(&self, from: Position) -> Option<Position> {
        if self.at(from).is_some() {
            return Some(from);
        }
        self.0.range(from..).next().map(|(start, _)| *start)
    }

    /// The spans that overlap `span`, cut to it.
    pub(super) fn overlapping(&self, span: Span) -> impl Iterator<Item = (Span, V)> {
        let first = self
            .at(span.start)
            .map_or(span.start, |(found, _)| found.start);
        let range = first..span.end.max(first);
        self.0
            .range(range)
            .map(move |(start, (end, value))| (Span::new(*start, *end).intersect(span), *value))
    }

    /// Gives all of `span` that value, whatever it had.
    pub(super) fn insert(&mut self, mut span: Span, value: V) {
        if span.is_empty() {
            return;
        }
        self.remove(span);
        if let Some((start, (end, before))) = self.0.range(..span.start).next_back()
            && *end == span.start
            && *before == value
        {
            span.start = *start;
        }
        if let Some((end, after)) = self.0.get(&span.end)
            && *after == value
        {
            let joined = *end;
            self.0.remove(&span.end);
            span.end = joined;
        }
        self.0.insert(span.start, (span.end, value));
    }

    /// Takes all of `span` out.
    pub(super) fn remove(&mut self, span: Span) {
        if span.is_empty() || self.0.is_empty() {
            return;
        }
        let overlapping: Vec<Position> = self.overlapping(span).map(|(cut, _)| cut.start).collect();
        for start in overlapping {
            let (whole, value) = self.at(start).expect("it overlaps");
            self.0.remove(&whole.start);
            if whole.start < span.start {
                self.0.insert(whole.start, (span.start, value));
            }
            if whole.end > span.end {
                self.0.insert(span.end, (whole.end, value));
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Span, V)> {
        self.0
            .iter()
            .map(|(start, (end, value))| (Span::new(*start, *end), *value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span(start: u64, end: u64) -> Span {
        Span::new(Position(start), Position(end))
    }

    proptest! {
        /// Whatever is put in and taken out, each position has the value it was given last.
        #[test]
        fn spans_agree_with_a_plain_array(
            steps in prop::collection::vec((0_u64..40, 0_u64..12, prop::option::of(0_u8..3)), 0..40),
        ) {
            let mut map = SpanMap::default();
            let mut plain = [None; 64];
            for (start, len, value) in steps {
                let span = span(start, start + len);
                match value {
                    Some(value) => map.insert(span, value),
                    None => map.remove(span),
                }
                plain[start as usize..(start + len) as usize].fill(value);
            }
            for (position, value) in plain.iter().enumerate() {
                prop_assert_eq!(map.at(Position(position as u64)).map(|(_, found)| found), *value);
                let next = (position..64).find(|later| plain[*later].is_some());
                prop_assert_eq!(map.first_from(Position(position as u64)), next.map(|p| Position(p as u64)));
            }
            let spans: Vec<(Span, u8)> = map.iter().collect();
            for pair in spans.windows(2) {
                prop_assert!(pair[0].0.end < pair[1].0.start || pair[0].1 != pair[1].1, "neighbours are merged");
            }
        }
    }

    #[test]
    fn what_overlaps_is_cut_to_what_was_asked() {
        let mut map = SpanMap::default();
        map.insert(span(2, 5), 'a');
        map.insert(span(7, 9), 'b');

        let found: Vec<_> = map.overlapping(span(4, 8)).collect();

        assert_eq!(found, [(span(4, 5), 'a'), (span(7, 8), 'b')]);
    }
}
