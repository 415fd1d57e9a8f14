//! Trimming a prefix of the log, filling one position by hand, and the log's settled mark.
//!
//! A trim goes at most to the settled mark: every hole below it is ended first, so no unit ever has to remember that a
//! trimmed position was undecided.

use milonga_wire::{
    ConfirmedEnd, Layout, Payload, Position, Refusal, Server, Span, UnitReply, UnitRequest,
};

use crate::calls::{Failure, unexpected};
use crate::entry::{Entry, Kind};
use crate::log::Log;
use crate::trouble::{Trouble, Unavailable};

/// Why a trim or a fill was not done, or not wholly.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrimError {
    /// Definite: the log is not that long.
    #[error("position {asked} lies beyond the end {end}; expected a position up to {end}")]
    BeyondEnd {
        /// What was asked.
        asked: Position,
        /// The end.
        end: Position,
    },
    /// Some units may have trimmed, others not. Repeating it finishes it.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Log {
    /// Gives back the space below `to`, on every unit, and returns the trim point achieved.
    ///
    /// # Errors
    /// [`TrimError`].
    pub async fn trim(&self, to: Position) -> Result<Position, TrimError> {
        let end = self.end().await?;
        if to > end.counter {
            return Err(TrimError::BeyondEnd {
                asked: to,
                end: end.counter,
            });
        }
        let mut patience = self.patience();
        loop {
            let decided = self.layout().await?;
            match self.try_trim(&decided.layout, to).await {
                Ok(achieved) => return Ok(achieved),
                Err(trouble) => {
                    self.after(&mut patience, decided.layout.term, trouble)
                        .await?;
                }
            }
        }
    }

    async fn try_trim(&self, layout: &Layout, to: Position) -> Result<Position, Trouble> {
        let settled = self.settle_below(layout, to).await?;
        let mut achieved = to.max(settled);
        for unit in &layout.units {
            achieved = achieved.min(self.trim_unit(layout, unit, to, settled).await?);
        }
        Ok(achieved)
    }

    /// A unit whose chain holds nothing up to `to` refuses to go beyond what it knows of: its limit is all there is.
    async fn trim_unit(
        &self,
        layout: &Layout,
        unit: &Server,
        to: Position,
        settled: Position,
    ) -> Result<Position, Trouble> {
        let calls = &self.shared.calls;
        let trim = |to| {
            calls.unit(
                unit,
                layout.term,
                UnitRequest::Trim { to, settled },
                Payload::new(),
            )
        };
        let (answer, whole) = match trim(to).await {
            Err(Failure::Refused {
                refusal: Refusal::Unsettled { limit, .. },
                ..
            }) if limit < to => (trim(limit).await?, true),
            answer => (answer?, false),
        };
        match answer {
            (UnitReply::Trimmed(_), _) if whole => Ok(to),
            (UnitReply::Trimmed(point), _) => Ok(point),
            _ => Err(unexpected(unit.name.as_str()).into()),
        }
    }

    /// Settles every hole below `to`, and returns a settled mark of the log that is at least `to`.
    async fn settle_below(&self, layout: &Layout, to: Position) -> Result<Position, Trouble> {
        loop {
            let settled = self.settled_in(layout).await?;
            if settled >= to {
                return Ok(settled);
            }
            let span = Span::new(settled, to);
            self.read_some(span)
                .await
                .map_err(|crate::read::ReadError::Unavailable(error)| error)?;
            if self.settled_in(layout).await? <= settled {
                let why = format!("positions from {settled} could not be settled");
                return Err(Trouble::GaveUp(Unavailable::Protocol { why }));
            }
        }
    }

    /// The log's settled mark: everything below it is decided on every chain and readable for ever, or trimmed.
    ///
    /// # Errors
    /// [`Unavailable`].
    pub async fn settled(&self) -> Result<Position, Unavailable> {
        let mut patience = self.patience();
        loop {
            let decided = self.layout().await?;
            match self.settled_in(&decided.layout).await {
                Ok(settled) => return Ok(settled),
                Err(trouble) => {
                    self.after(&mut patience, decided.layout.term, trouble)
                        .await?;
                }
            }
        }
    }

    async fn settled_in(&self, layout: &Layout) -> Result<Position, Trouble> {
        let marks = layout.chains().map(|(chain, stripes)| async move {
            let mark = self.chain(layout, chain).settled(stripes).await?;
            // A chain of a closed segment that lacks nothing says nothing about what comes after it.
            let complete = stripes.run_from(mark).is_none();
            Ok::<_, Trouble>(if complete { Position(u64::MAX) } else { mark })
        });
        let marks = futures_util::future::join_all(marks)
            .await
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        Ok(marks.into_iter().min().unwrap_or(Position::FIRST))
    }

    /// Ends the hole at `position` now, without waiting for its writer, and says what the position holds.
    ///
    /// # Errors
    /// [`TrimError::BeyondEnd`]: nothing there was issued, so nothing is filled.
    pub async fn fill(&self, position: Position) -> Result<Entry, TrimError> {
        let end = self.end().await?;
        if position >= end.counter {
            return Err(TrimError::BeyondEnd {
                asked: position,
                end: end.counter,
            });
        }
        let mut patience = self.patience();
        loop {
            let decided = self.layout().await?;
            let layout = &decided.layout;
            let based_on = self
                .confirmed(layout.term)
                .filter(|known| position < known.end);
            let trouble = match based_on {
                Some(end) => self.settle(layout, &[Span::one(position)], end).await.err(),
                None => self.end().await.err().map(Trouble::GaveUp),
            };
            match (trouble, based_on) {
                (Some(trouble), _) => self.after(&mut patience, layout.term, trouble).await?,
                (None, Some(ConfirmedEnd { .. })) => break,
                (None, None) => {
                    patience
                        .pause(|| "the end is not confirmed yet".to_owned())
                        .await?;
                }
            }
        }
        match self.read(position).await {
            Ok(entry) => Ok(entry),
            Err(crate::read::ReadError::Unavailable(error)) => Err(error.into()),
        }
    }

    /// Whether an entry was ended by a fill.
    pub fn is_junk(entry: &Entry) -> bool {
        matches!(entry.kind, Kind::Junk { .. })
    }
}

#[cfg(test)]
mod tests;
