//! Appends: a token, then the pieces of its run down their chains; retried until the outcome is known.
//!
//! ```text
//!  records ─▶ token(term, first, count) ─▶ pieces, one per stripe ─▶ head … tail ─▶ appended
//!                 ▲                               │ taken at the head: complete the winner
//!                 │                               │ the term ended: settle the positions in the new one
//!                 └────── proved not in the log ◀─┘
//! ```
//! C3: a token is never kept into another term, and a new one is taken only for records that are proved not to be in
//! the log. What was sent and cannot be proved either way by the deadline is [`AppendError::Unknown`].
//!
//! Source: CORFU (NSDI '12), "Append"; the three outcomes are this project's own.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use milonga_wire::limits::{
    ENTRY_BYTES_MAX, PIECE_BYTES_MAX, RUN_RECORDS_MAX, STREAMS_PER_ENTRY_MAX,
};
use milonga_wire::{
    ConfirmedEnd, Decided, Payload, Piece, Position, Refusal, SequencerReply, SequencerRequest,
    Session, Span, Stamp, StreamId, Term, Token,
};

use crate::calls::unexpected;
use crate::chain::{ChainError, Written};
use crate::gather;
use crate::log::Log;
use crate::resume::{Placed, Resumed, SavedAppend};
use crate::trouble::{Patience, Trouble, Unavailable};

/// What was appended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Appended {
    /// The position of each record, in order.
    pub positions: Vec<Position>,
    /// The stamp of the first record; the others count on.
    pub stamp: Stamp,
}

/// Why not every record is known to be in the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// Definite: none of the records is in the log, and none will be. Append again, or mend what `why` names.
    #[error("not appended: {why}")]
    NotAppended {
        /// What stood in the way.
        why: Unavailable,
    },
    /// Definite for each record: `positions` says which are in the log; the others are not, and will not be.
    #[error("only a part was appended: {why}")]
    Partly {
        /// The position of each record that is in the log, in order.
        positions: Vec<Option<Position>>,
        /// What stood in the way of the others.
        why: Unavailable,
    },
    /// The deadline passed. [`Log::resume`] finds out about the records in `saved`; the others stand as `positions` says.
    #[error("the outcome is not known yet ({why}); resume with {saved}")]
    Unknown {
        /// Enough to find out, from any process.
        saved: Box<SavedAppend>,
        /// The position of each record that is known to be in the log.
        positions: Vec<Option<Position>>,
        /// The last trouble.
        why: Unavailable,
    },
}

/// Whether a record may be in the log only if every earlier one of its run is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// It must.
    Kept,
    /// It need not.
    None,
}

/// One append on its way.
struct Append<'a> {
    log: &'a Log,
    records: &'a [Bytes],
    streams: &'a [StreamId],
    request: u64,
    patience: Patience,
    positions: Vec<Option<Position>>,
}

/// What became of one piece.
struct PieceEnd {
    /// Per record.
    outcomes: Vec<Resumed>,
    /// What makes a further try useless, or the last trouble of one that ran out of time.
    stop: Option<Unavailable>,
}

impl PieceEnd {
    fn all(piece: &Piece, outcome: Resumed, stop: Option<Unavailable>) -> Self {
        Self {
            outcomes: vec![outcome; piece.lengths.len()],
            stop,
        }
    }
}

/// What is left of a run.
#[derive(Default)]
struct Left {
    /// Ranges of record numbers that are proved not to be in the log.
    lost: Vec<(u32, u32)>,
    /// Records that may be.
    unknown: Vec<Placed>,
    /// What makes a further try useless.
    stop: Option<Unavailable>,
}

impl Log {
    /// Appends one record to the log, in all of `streams`, and returns its position once the whole chain has it durably.
    ///
    /// Calls made at the same time are independent: many may be in flight, in any order. For one record after the other
    /// use [`Log::producer`].
    ///
    /// # Errors
    /// [`AppendError`]: one of three outcomes, never a guess.
    pub async fn append(
        &self,
        record: impl Into<Bytes>,
        streams: &[StreamId],
    ) -> Result<Position, AppendError> {
        let appended = self.append_batch(&[record.into()], streams).await?;
        Ok(appended.positions[0])
    }

    /// Appends several records with one token. They lie one after the other unless a piece of them lost its place to a
    /// fill and was appended again further on; `positions` says.
    ///
    /// Small appends to the same streams that are made at the same time share a token and the writes down the chain.
    /// Dropping the future gives the answer up, not the append.
    ///
    /// # Errors
    /// [`AppendError`].
    pub async fn append_batch(
        &self,
        records: &[Bytes],
        streams: &[StreamId],
    ) -> Result<Appended, AppendError> {
        check_records(records, streams)?;
        if gather::shares(records) {
            return gather::append(self, records, streams).await;
        }
        let deadline = self.options.deadline;
        let ended = self
            .append_run(records, streams, deadline, Order::None)
            .await;
        ended.part(0, records.len())
    }

    /// Appends one run, which is within the bounds, within `deadline`: its pieces at once, or one after the other.
    pub(crate) async fn append_run(
        &self,
        records: &[Bytes],
        streams: &[StreamId],
        deadline: Duration,
        order: Order,
    ) -> Ended {
        let append = Append::new(self, records, streams, deadline);
        append.run(order).await
    }
}

/// The bounds of one append, met before anything is asked of a server.
pub(crate) fn check_records(records: &[Bytes], streams: &[StreamId]) -> Result<(), AppendError> {
    check(records, streams).map_err(|refusal| AppendError::NotAppended {
        why: Unavailable::Refused {
            server: "this client".to_owned(),
            refusal,
        },
    })
}

fn check(records: &[Bytes], streams: &[StreamId]) -> Result<(), Refusal> {
    if records.is_empty() || records.len() > RUN_RECORDS_MAX as usize {
        return Err(Refusal::too_large(
            "records in an append (at least 1)",
            records.len(),
            RUN_RECORDS_MAX,
        ));
    }
    if let Some(record) = records.iter().find(|record| record.len() > ENTRY_BYTES_MAX) {
        return Err(Refusal::too_large(
            "bytes in a record",
            record.len(),
            ENTRY_BYTES_MAX as u32,
        ));
    }
    let bytes: usize = records.iter().map(Bytes::len).sum();
    if bytes > PIECE_BYTES_MAX {
        return Err(Refusal::too_large(
            "bytes in an append",
            bytes,
            PIECE_BYTES_MAX as u32,
        ));
    }
    if streams.len() > STREAMS_PER_ENTRY_MAX {
        return Err(Refusal::too_large(
            "streams of a record",
            streams.len(),
            STREAMS_PER_ENTRY_MAX as u32,
        ));
    }
    if (1..streams.len()).any(|index| streams[..index].contains(&streams[index])) {
        return Err(Refusal::malformed("a record names a stream twice"));
    }
    Ok(())
}

impl<'a> Append<'a> {
    fn new(
        log: &'a Log,
        records: &'a [Bytes],
        streams: &'a [StreamId],
        deadline: Duration,
    ) -> Self {
        let host = &log.shared.host;
        Self {
            log,
            records,
            streams,
            request: log.next_request(),
            patience: Patience::new(&host.clock, &host.random, deadline),
            positions: vec![None; records.len()],
        }
    }

    /// Tokens and pieces until every record is in the log.
    async fn run(mut self, order: Order) -> Ended {
        let began = self.log.shared.host.clock.now();
        // Ranges of record numbers that are proved not to be in the log yet.
        let mut missing = vec![(0, self.records.len() as u32)];
        while let Some((from, to)) = missing.pop() {
            let (decided, token) = match self.token(to - from).await {
                Ok(token) => token,
                Err(why) => return self.ended(vec![], Some(why)),
            };
            let pieces = self.pieces(&decided, &token, from);
            let left = match order {
                Order::Kept => self.in_order(&decided, &pieces, to).await,
                Order::None => self.at_once(&decided, &pieces).await,
            };
            if !left.unknown.is_empty() {
                let why = left.stop.unwrap_or_else(|| Unavailable::Protocol {
                    why: "its position was trimmed or lost before the outcome was seen".to_owned(),
                });
                return self.ended(left.unknown, Some(why));
            }
            if let Some(why) = left.stop.filter(|_| !left.lost.is_empty()) {
                return self.ended(vec![], Some(why));
            }
            missing.extend(left.lost);
            if !missing.is_empty() && self.patience.is_over() {
                let why = Unavailable::Deadline {
                    waited: self.patience.waited(),
                    last: "its positions were taken by others each time".to_owned(),
                };
                return self.ended(vec![], Some(why));
            }
        }
        self.log.took(self.log.shared.host.clock.now().since(began));
        self.ended(vec![], None)
    }

    /// All pieces in parallel.
    async fn at_once(&mut self, decided: &Decided, pieces: &[(Piece, Payload)]) -> Left {
        let ends: Vec<PieceEnd> = if let [(piece, payload)] = pieces {
            vec![write_piece(self.log, &mut self.patience, decided, piece, payload).await]
        } else {
            let (log, limit) = (
                self.log,
                self.log
                    .options
                    .deadline
                    .saturating_sub(self.patience.waited()),
            );
            join_all(pieces.iter().map(|(piece, payload)| async move {
                let mut patience =
                    Patience::new(&log.shared.host.clock, &log.shared.host.random, limit);
                write_piece(log, &mut patience, decided, piece, payload).await
            }))
            .await
        };
        let mut left = Left::default();
        for ((piece, _), end) in pieces.iter().zip(ends) {
            self.note(piece, end, &mut left);
        }
        left
    }

    /// One piece after the other; the first that is not in the log takes all behind it along.
    async fn in_order(&mut self, decided: &Decided, pieces: &[(Piece, Payload)], to: u32) -> Left {
        for (piece, payload) in pieces {
            let end = write_piece(self.log, &mut self.patience, decided, piece, payload).await;
            let mut left = Left::default();
            self.note(piece, end, &mut left);
            if let Some((from, _)) = left.lost.first().copied() {
                // What lies behind it of this piece is not to be appended again if some of it is in the log.
                let behind = &self.positions[from as usize..to as usize];
                if behind.iter().any(Option::is_some) {
                    let why =
                        "an earlier record lost its place, and later ones of its piece did not"
                            .to_owned();
                    left.stop.get_or_insert(Unavailable::Protocol { why });
                } else {
                    left.lost = vec![(from, to)];
                }
            }
            if !left.lost.is_empty() || !left.unknown.is_empty() {
                return left;
            }
        }
        Left::default()
    }

    /// Notes each record's outcome.
    fn note(&mut self, piece: &Piece, end: PieceEnd, left: &mut Left) {
        let all = placed(piece);
        for (index, outcome) in (0..).zip(end.outcomes) {
            let record = all.record + index;
            match outcome {
                Resumed::Appended(position) => self.positions[record as usize] = Some(position),
                Resumed::NotAppended => match left.lost.last_mut() {
                    Some((_, to)) if *to == record => *to += 1,
                    Some(_) | None => left.lost.push((record, record + 1)),
                },
                Resumed::Unknown => match left.unknown.last_mut() {
                    Some(last) if last.span().end == all.first.plus(u64::from(index)) => {
                        last.count += 1;
                    }
                    Some(_) | None => {
                        let first = all.first.plus(u64::from(index));
                        left.unknown.push(Placed {
                            first,
                            record,
                            count: 1,
                            ..all
                        });
                    }
                },
            }
        }
        left.stop = end.stop.or(left.stop.take());
    }

    /// The next `count` positions. A lost reply burns them, and nothing else: nothing was written with them.
    async fn token(&mut self, count: u32) -> Result<(std::sync::Arc<Decided>, Token), Unavailable> {
        loop {
            let decided = self.log.layout().await?;
            let layout = &decided.layout;
            let request = SequencerRequest::Tokens {
                count,
                streams: self.streams.to_vec(),
            };
            let calls = &self.log.shared.calls;
            let call = calls.sequencer(&layout.sequencer, layout.term, request);
            let limit = self.patience.left().max(self.log.grace());
            let trouble = match self.log.within(limit, call).await? {
                Ok(SequencerReply::Token(token)) if is_good(&token, layout.term, count) => {
                    return Ok((decided, token));
                }
                Ok(_) => unexpected("the sequencer").into(),
                Err(failure) => failure.into(),
            };
            self.log
                .after(&mut self.patience, layout.term, trouble)
                .await?;
        }
    }

    /// The run of `token`, cut at stripes, with the records from number `from` on.
    fn pieces(&self, decided: &Decided, token: &Token, from: u32) -> Vec<(Piece, Payload)> {
        let run = Span::new(token.first, token.first.plus(u64::from(token.count)));
        let piece = |span: Span| {
            let record = from + span.start.since(run.start) as u32;
            let records = &self.records[record as usize..][..span.len() as usize];
            let piece = Piece {
                first: span.start,
                term: token.term,
                stamp: Stamp {
                    session: self.log.session(),
                    request: self.request,
                    record,
                },
                run: run.start,
                streams: token.streams.clone(),
                lengths: records.iter().map(|record| record.len() as u32).collect(),
            };
            (piece, joined(records))
        };
        decided
            .layout
            .pieces(run)
            .map(|(_, _, span)| piece(span))
            .collect()
    }

    fn ended(self, unknown: Vec<Placed>, why: Option<Unavailable>) -> Ended {
        Ended {
            session: self.log.session(),
            request: self.request,
            positions: self.positions,
            unknown,
            why,
        }
    }
}

/// What became of a run, record by record.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) session: Session,
    pub(crate) request: u64,
    pub(crate) positions: Vec<Option<Position>>,
    /// Records that may be in the log: all others without a position are proved not to be.
    pub(crate) unknown: Vec<Placed>,
    /// What stood in the way, if a position is missing.
    pub(crate) why: Option<Unavailable>,
}

impl Ended {
    /// What became of the records from number `from` up to `to`, as an append of its own.
    pub(crate) fn part(&self, from: usize, to: usize) -> Result<Appended, AppendError> {
        let positions = &self.positions[from..to];
        if let Some(positions) = positions.iter().copied().collect() {
            let stamp = Stamp {
                session: self.session,
                request: self.request,
                record: from as u32,
            };
            return Ok(Appended { positions, stamp });
        }
        let why = self.why.clone().unwrap_or_else(|| Unavailable::Protocol {
            why: "a position is missing, and nobody knows why".to_owned(),
        });
        let placed: Vec<Placed> = self
            .unknown
            .iter()
            .filter_map(|placed| placed.within(from as u32, to as u32))
            .map(|placed| Placed {
                record: placed.record - from as u32,
                ..placed
            })
            .collect();
        if !placed.is_empty() {
            return Err(AppendError::Unknown {
                saved: Box::new(SavedAppend {
                    session: self.session,
                    request: self.request,
                    first: from as u32,
                    placed,
                }),
                positions: positions.to_vec(),
                why,
            });
        }
        Err(if positions.iter().all(Option::is_none) {
            AppendError::NotAppended { why }
        } else {
            let positions = positions.to_vec();
            AppendError::Partly { positions, why }
        })
    }
}

/// Whether a token is of this term, as long as was asked, and leaves room above itself.
fn is_good(token: &Token, term: Term, count: u32) -> bool {
    let ends = token.first.0.checked_add(u64::from(count));
    token.term == term && token.count == count && ends.is_some_and(|end| end < u64::MAX)
}

fn placed(piece: &Piece) -> Placed {
    Placed {
        term: piece.term,
        first: piece.first,
        record: piece.stamp.record,
        count: piece.lengths.len() as u32,
    }
}

/// Small records side by side in one buffer, so that a run travels as one chunk; large ones as they are.
fn joined(records: &[Bytes]) -> Payload {
    const SMALL: usize = 4 << 10;
    let bytes: usize = records.iter().map(Bytes::len).sum();
    let mut payload = Payload::new();
    if records.len() > 1 && bytes / records.len() < SMALL {
        let mut buffer = BytesMut::with_capacity(bytes);
        for record in records {
            buffer.extend_from_slice(record);
        }
        payload.push(buffer.freeze());
    } else {
        for record in records {
            payload.push(record.clone());
        }
    }
    payload
}

/// Writes one piece until its outcome is known: acknowledged, lost to another, or overtaken by a new term.
async fn write_piece(
    log: &Log,
    patience: &mut Patience,
    decided: &Decided,
    piece: &Piece,
    payload: &Payload,
) -> PieceEnd {
    let layout = &decided.layout;
    let (chain, _) = layout.chain_of(piece.first);
    let chain = log.chain(layout, chain);
    // In a box, like all that is rare.
    if log.shared.full.any()
        && let Some(why) = Box::pin(log.full_below_head(&chain)).await
    {
        return PieceEnd::all(piece, Resumed::NotAppended, Some(why));
    }
    // Whether the head may have got it.
    let mut is_sent = false;
    loop {
        let limit = patience.left().max(log.grace());
        let written = log.within(limit, chain.write(piece, payload)).await;
        is_sent |= match &written {
            Ok(Err(error)) => !chain.is_untouched(error),
            Ok(Ok(_)) | Err(_) => true,
        };
        let written = match written {
            Ok(written) => written,
            Err(why) => return Box::pin(resolve(log, patience, piece, Some(why))).await,
        };
        let trouble: Trouble = match written {
            Ok(Written::Done) => {
                let outcomes = piece.span().positions().map(Resumed::Appended).collect();
                return PieceEnd {
                    outcomes,
                    stop: None,
                };
            }
            Ok(Written::Lost { position }) => {
                // The winner is completed so that nobody waits for it; if that fails, a reader will do it.
                let end = ConfirmedEnd {
                    end: piece.span().end,
                    term: piece.term,
                };
                if let Err(error) = Box::pin(chain.settle(&[Span::one(position)], end)).await {
                    tracing::debug!(%error, %position, "the winner is left to readers");
                }
                metrics::counter!("milonga_client_append_retries_total", "reason" => "taken")
                    .increment(1);
                return PieceEnd::all(piece, Resumed::NotAppended, None);
            }
            Err(error @ ChainError::Diverged { .. }) => {
                let stop = Unavailable::Diverged {
                    why: error.to_string(),
                };
                return PieceEnd::all(piece, Resumed::Unknown, Some(stop));
            }
            Err(error) => match chain.next_step(&error, piece.first) {
                Some(step) => {
                    let end = ConfirmedEnd {
                        end: piece.first,
                        term: piece.term,
                    };
                    let moved = Box::pin(chain.settle(&[Span::one(step)], end)).await;
                    match moved {
                        Ok(()) => continue,
                        Err(error) => error.into(),
                    }
                }
                None => error.into(),
            },
        };
        if let Trouble::Server(failure) = &trouble
            && matches!(failure.refusal(), Some(Refusal::Trimmed { .. }))
        {
            return resolve(log, patience, piece, None).await;
        }
        if let Err(why) = log.after(patience, piece.term, trouble).await {
            if !is_sent {
                return PieceEnd::all(piece, Resumed::NotAppended, Some(why));
            }
            return Box::pin(resolve(log, patience, piece, Some(why))).await;
        }
        if log
            .shared
            .layouts
            .known()
            .is_some_and(|known| known.layout.term > piece.term)
        {
            metrics::counter!("milonga_client_append_retries_total", "reason" => "term")
                .increment(1);
            return Box::pin(resolve(log, patience, piece, None)).await;
        }
    }
}

/// What became of a piece that cannot be written any more: its positions are settled and looked at.
async fn resolve(
    log: &Log,
    patience: &Patience,
    piece: &Piece,
    why: Option<Unavailable>,
) -> PieceEnd {
    let left = patience.left().max(log.grace());
    let brief = log.with_deadline(left);
    let resolved = brief.resolve(placed(piece), piece.stamp);
    match log.within(left, resolved).await {
        Ok(Ok(outcomes)) => PieceEnd {
            outcomes,
            stop: why,
        },
        Ok(Err(error)) | Err(error) => {
            PieceEnd::all(piece, Resumed::Unknown, Some(why.unwrap_or(error)))
        }
    }
}

#[cfg(test)]
mod tests;
