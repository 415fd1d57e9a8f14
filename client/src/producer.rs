//! Appends in order, by one handle.

use bytes::Bytes;
use milonga_wire::limits::{PIECE_BYTES_MAX, RUN_RECORDS_MAX};
use milonga_wire::{Position, StreamId};

use crate::append::{AppendError, Appended, Order, check_records};
use crate::log::Log;
use crate::trouble::Unavailable;

impl Log {
    /// A handle that appends in order: each record lies behind the one before it.
    pub fn producer(&self, streams: &[StreamId]) -> Producer {
        Producer {
            log: self.clone(),
            streams: streams.to_vec(),
            broken: None,
        }
    }
}

/// Appends in order: one piece is undecided at a time, so a record is in the log only if every earlier one is, and
/// lies behind it. Large batches, not depth, give it throughput.
#[derive(Clone)]
pub struct Producer {
    log: Log,
    streams: Vec<StreamId>,
    broken: Option<String>,
}

impl Producer {
    /// Appends `records` behind everything this handle appended before, in as many runs as it takes.
    ///
    /// # Errors
    /// [`AppendError`]. `positions` counts from the first of these records. After an unknown outcome the handle refuses
    /// further appends, since their order could not be promised: resume what was saved, then take a new handle.
    pub async fn append(&mut self, records: &[Bytes]) -> Result<Vec<Position>, AppendError> {
        if let Some(saved) = &self.broken {
            let why = format!("this handle had an append {saved}; take a new handle");
            return Err(AppendError::NotAppended {
                why: Unavailable::Protocol { why },
            });
        }
        // Whoever drops this future leaves a piece whose outcome nobody saw.
        self.broken = Some("that was given up half way".to_owned());
        let records_max = self.run_records().await;
        let mut positions = Vec::with_capacity(records.len());
        let mut rest = records;
        while !rest.is_empty() {
            let count = run_length(rest, records_max);
            let (run, behind) = rest.split_at(count);
            let appended = self.append_run(run).await;
            match appended {
                Ok(appended) => positions.extend(appended.positions),
                Err(error) => return Err(self.stopped(&positions, records.len(), error)),
            }
            rest = behind;
        }
        self.broken = None;
        Ok(positions)
    }

    async fn append_run(&self, run: &[Bytes]) -> Result<Appended, AppendError> {
        check_records(run, &self.streams)?;
        let deadline = self.log.options.deadline;
        let ended = self
            .log
            .append_run(run, &self.streams, deadline, Order::Kept)
            .await;
        ended.part(0, run.len())
    }

    /// Records in one run: a stripe's width where there are several chains, since a run's later pieces wait, unwritten,
    /// for its earlier ones, and readers take what waits too long for a hole.
    async fn run_records(&self) -> usize {
        let all = RUN_RECORDS_MAX as usize;
        match self.log.layout().await {
            Ok(decided) if decided.layout.open_segment().chains.len() > 1 => {
                all.min(decided.layout.open_segment().stripe_width as usize)
            }
            Ok(_) | Err(_) => all,
        }
    }

    /// The error of one run, told of the whole call.
    fn stopped(&mut self, before: &[Position], all: usize, error: AppendError) -> AppendError {
        let whole = |of_run: Vec<Option<Position>>| {
            let mut positions: Vec<Option<Position>> = before.iter().copied().map(Some).collect();
            positions.extend(of_run);
            positions.resize(all, None);
            positions
        };
        self.broken = None;
        match error {
            AppendError::NotAppended { why } if before.is_empty() => {
                AppendError::NotAppended { why }
            }
            AppendError::NotAppended { why } => AppendError::Partly {
                positions: whole(vec![]),
                why,
            },
            AppendError::Partly { positions, why } => AppendError::Partly {
                positions: whole(positions),
                why,
            },
            AppendError::Unknown {
                saved,
                positions,
                why,
            } => {
                self.broken = Some(format!("that has no known outcome; resume {saved}"));
                AppendError::Unknown {
                    saved,
                    positions: whole(positions),
                    why,
                }
            }
        }
    }
}

/// How many of `records` fit one run: at least one, so that a record over the limit is refused by name.
fn run_length(records: &[Bytes], records_max: usize) -> usize {
    let mut bytes = 0;
    let fits = records.iter().take(records_max).take_while(|record| {
        bytes += record.len();
        bytes <= PIECE_BYTES_MAX
    });
    fits.count().max(1)
}
