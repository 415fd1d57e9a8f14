//! Admission: whether a request may touch a position of this log unit, and what it is told.
//!
//! Pure over the look-ups of a [`Storage`]: no clock, no network, no randomness. It knows positions and terms, not chains
//! or layouts. `server.rs` moves the messages: it admits whatever waits into one [`Batch`], has it committed, and answers.
//!
//! ```text
//! queue ──▶ admit ─ admit ─ admit ──▶ commit (one write, one sync) ──▶ all answers
//!             each decided against what is durable and what the batch will make durable before it
//! ```
//!
//! - U1 One queue: writes, fills, seals, announcements, trims and probes are decided in the order of arrival, and answered
//!   only once the batch they are in is durable. If it is not, all of it is refused and nothing of it has happened.
//! - U2 The term never falls. A command needs exactly the unit's term; a seal raises it, by more than one only if
//!   the layout servers confirm.
//! - U3 The first entry made durable at a position stays until trimmed. A piece is all or nothing, a refused request is nothing.
//! - U4 Only what is durable is read, counted, or told.
//! - U5 Unknown is never called unwritten, and nothing but a copy decides it.
//! - U6 A unit takes entries and junk only in a term that was announced to it, and takes an announcement only if it is blank,
//!   or was sealed since its process started. From the start announced first it is a member: what it lacks there was never
//!   written. Below, what it lacks is unknown.
//! - U7 A write lies at most a window above the larger of the unit's end and the announced start; a fill also below the
//!   end it names; a copy below the announced start.
//! - U8 The trim point never falls, and never passes the settled mark that the request names, or what the unit knows of.
//! - U9 After a failed commit no command is taken until the next process start, and nothing absent is called unwritten.
//! - U10 To a request of an older term a read gives only entries of that term or an earlier one, and trimmed.
//! - U11 A full disk refuses what decides first, then what follows, then fills; reads, trims and seals go on.
//! - U12 A reset ends the identity it names, and only one that no layout of the request's term was announced to. Nothing
//!   that was meant for the old identity is answered by the new one.
//!
//! Source: Balakrishnan et al., *CORFU* (NSDI '12), "Flash Unit" and "Mapping in CORFU" (sealing).

mod batch;
mod read;
mod work;
mod write;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use milonga_wire::{
    Identity, Incarnation, Payload, Position, Refusal, Sealed, Stripes, Term, UnitReply,
};

pub use batch::Batch;
pub use work::{Command, Query, Work};

use crate::storage::{Change, CommitError, Room, Storage};
use batch::{Draft, Small};

/// Ranges that the answer to a seal names at most.
const HELD_MAX: usize = 1_024;
/// Stripes whose settled mark is remembered, so that the next question need not start over.
const MARKS_MAX: usize = 64;

/// A command with all that a decision about it needs.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The term its sender believes in; for a seal, the term that begins.
    pub term: Term,
    /// What is asked.
    pub command: Command,
    /// The bytes of the entries it carries.
    pub payload: Payload,
    /// Whether a layout server confirmed a seal that [`Unit::to_confirm`] asked about.
    pub confirmed: bool,
}

/// What a decision looks at, beside the entries.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
struct State {
    term: Term,
    /// Whether a seal reached this process start.
    sealed: bool,
    announced: Option<(Term, Position)>,
    member_from: Option<Position>,
    trimmed: Position,
    end: Position,
    settled: Position,
    blank: bool,
}

impl State {
    /// U2.
    fn check_term(&self, asked: Term) -> Result<(), Refusal> {
        let current = self.term;
        match asked.cmp(&current) {
            Ordering::Equal => Ok(()),
            Ordering::Less => Err(stale(asked, current)),
            Ordering::Greater => Err(Refusal::FutureTerm { asked, current }),
        }
    }

    /// Where the open segment of the request's term starts, if that is the unit's and was announced (U2, U6).
    fn announced_in(&self, asked: Term) -> Result<Position, Refusal> {
        self.check_term(asked)?;
        match self.announced {
            Some((term, start)) if term == asked => Ok(start),
            Some(_) | None => Err(Refusal::NotAnnounced { term: self.term }),
        }
    }

    /// The first position above all that this unit can judge.
    fn known_end(&self) -> Position {
        let start = self.announced.map_or(Position::FIRST, |(_, start)| start);
        self.end.max(start)
    }
}

fn stale(asked: Term, current: Term) -> Refusal {
    Refusal::StaleTerm {
        asked,
        current,
        newest: None,
    }
}

/// A log unit's memory: what is durable, as it must know it without asking the disk, and what a restart forgets.
#[derive(Debug)]
pub struct Unit {
    identity: Identity,
    incarnation: Incarnation,
    entry_bytes_max: u32,
    state: State,
    /// Why a commit failed (U9).
    failure: Option<String>,
    /// Per stripes, a position below which nothing is lacking.
    marks: BTreeMap<Stripes, Position>,
    /// A settled mark that the next batch may as well make durable.
    mark: Position,
    /// Positions found damaged since the start.
    damages: u64,
}

impl Unit {
    /// The unit that `storage` makes, as a new process start: it remembers no announcement (U6).
    pub fn new(storage: &dyn Storage, incarnation: Incarnation, entry_bytes_max: u32) -> Self {
        let durable = storage.durable();
        Self {
            identity: storage.identity(),
            incarnation,
            entry_bytes_max,
            state: State {
                term: durable.term,
                sealed: false,
                announced: None,
                member_from: None,
                trimmed: durable.trimmed,
                end: durable.end,
                settled: durable.settled,
                blank: durable.blank,
            },
            failure: None,
            marks: BTreeMap::new(),
            mark: durable.settled,
            damages: 0,
        }
    }

    /// Which server it is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Which process start.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Its term.
    pub fn term(&self) -> Term {
        self.state.term
    }

    /// The first position above everything it held.
    pub fn end(&self) -> Position {
        self.state.end
    }

    /// Its trim point.
    pub fn trimmed(&self) -> Position {
        self.state.trimmed
    }

    /// Why it refuses commands until it is restarted (U9).
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Positions found damaged since the start, by reads and writes.
    pub fn damages(&self) -> u64 {
        self.damages
    }

    /// How it is doing, in one word, as `cluster status` shows it.
    pub fn condition(&self, room: Room) -> &'static str {
        let state = &self.state;
        if self.failure.is_some() {
            "failed"
        } else if state.blank {
            "blank"
        } else if state.member_from.is_none() {
            "restarted"
        } else if state.announced_in(state.term).is_err() {
            "sealed"
        } else if room < Room::Plenty {
            "full"
        } else {
            "serving"
        }
    }

    /// Whether it has never been part of a cluster.
    pub fn is_blank(&self) -> bool {
        self.state.blank
    }

    /// A seal that skips terms needs a layout server that knows a decided layout of this term or a later one (U2).
    /// Since the unit's term only rises, a command that needs no confirmation now needs none when its turn comes.
    pub fn to_confirm(&self, term: Term, command: &Command) -> Option<Term> {
        let skips = matches!(command, Command::Seal) && term > self.state.term.next();
        skips.then(|| Term(term.0 - 1))
    }

    /// Whether [`UnitRequest::Reset`](milonga_wire::UnitRequest::Reset) of `of` may be done in `term` (U12).
    ///
    /// # Errors
    /// Why not.
    pub fn may_reset(&self, term: Term, of: Identity) -> Result<(), Refusal> {
        let current = self.state.term;
        if let Some(why) = &self.failure {
            return Err(Refusal::DiskFailed { why: why.clone() });
        }
        if of != self.identity {
            let here = self.identity;
            return Err(Refusal::WrongServer { asked: of, here });
        }
        if term < current {
            return Err(stale(term, current));
        }
        match self.state.announced {
            Some((announced, _)) if announced == term => Err(Refusal::InUse { term }),
            Some(_) | None => Ok(()),
        }
    }

    /// Forgets everything and is `identity` from now on, as a new process start of it. [`Unit::may_reset`] has allowed it.
    ///
    /// # Errors
    /// [`Refusal::DiskFailed`]: the next process start finishes it (U9).
    pub fn reset(
        &mut self,
        storage: &mut dyn Storage,
        identity: Identity,
        incarnation: Incarnation,
    ) -> Result<UnitReply, Refusal> {
        if let Err(error) = storage.reset(identity) {
            let why = error.to_string();
            self.failure = Some(why.clone());
            self.state.member_from = None;
            return Err(Refusal::DiskFailed { why });
        }
        debug_assert_eq!(storage.identity(), identity, "U12");
        *self = Self::new(storage, incarnation, self.entry_bytes_max);
        Ok(UnitReply::Reset {
            identity,
            incarnation,
        })
    }

    /// Some records were verified, and so many of them found damaged: no mark above them is believed any more.
    pub fn scrubbed(&mut self, damaged: u64) {
        if damaged > 0 {
            self.damages += damaged;
            self.marks.clear();
        }
    }

    /// A batch to admit commands into. There is one at a time, and it is committed or dropped before anything is read.
    pub fn batch(&self) -> Batch {
        Batch::new(self.state)
    }

    /// Decides one command and leaves the answer in `batch`, for [`Unit::commit`] to give (U1).
    pub fn admit(&mut self, storage: &mut dyn Storage, batch: &mut Batch, asked: Asked) {
        let draft = match &self.failure {
            Some(why) => Draft::Ready(Err(Refusal::DiskFailed { why: why.clone() })),
            None => self.decide(storage, batch, asked),
        };
        batch.answer(draft);
    }

    fn decide(&mut self, storage: &mut dyn Storage, batch: &mut Batch, asked: Asked) -> Draft {
        let Asked {
            term,
            command,
            payload,
            confirmed,
        } = asked;
        if !command.stores() {
            batch.keep(Small {
                index: batch.answers(),
                term,
                command: command.clone(),
                confirmed,
            });
        }
        Draft::Ready(match command {
            Command::Write { kind, pieces } => {
                self.write(storage, batch, term, kind, &pieces, &payload)
            }
            Command::Fill(fill) => self.fill(storage, batch, term, &fill),
            Command::Seal => match seal(batch, term, confirmed) {
                Ok(()) => return Draft::Sealed,
                Err(refusal) => Err(refusal),
            },
            Command::Announce { start } => announce(batch, term, start),
            Command::Trim { to, settled } => trim(batch, term, to, settled),
            Command::Probe => {
                batch.push(Change::Probe);
                Ok(UnitReply::Probed)
            }
        })
    }

    /// Makes `batch` durable and gives the answers, in the order of admission (U1).
    pub fn commit(
        &mut self,
        storage: &mut dyn Storage,
        mut batch: Batch,
    ) -> Vec<Result<UnitReply, Refusal>> {
        if !batch.is_empty() && self.mark > batch.state.settled {
            batch.state.settled = self.mark;
            batch.push(Change::Settled(self.mark));
        }
        match batch.commit_to(storage) {
            Ok(()) => {
                self.state = batch.state;
                self.check(storage);
                batch
                    .into_drafts()
                    .map(|draft| self.finish(storage, draft))
                    .collect()
            }
            Err(CommitError::Full) => self.commit_small(storage, batch),
            Err(CommitError::Failed(why)) => {
                self.failure = Some(why.clone());
                self.state.member_from = None;
                let refused = Err(Refusal::DiskFailed { why });
                batch.into_drafts().map(|_| refused.clone()).collect()
            }
        }
    }

    /// U11: what stored nothing is decided again, without what the disk has no room for.
    fn commit_small(
        &mut self,
        storage: &mut dyn Storage,
        batch: Batch,
    ) -> Vec<Result<UnitReply, Refusal>> {
        let mut answers = vec![Err(Refusal::DiskFull); batch.answers()];
        if !batch.stores() {
            return answers;
        }
        let mut again = self.batch();
        let mut indexes = Vec::new();
        for small in batch.into_small() {
            indexes.push(small.index);
            let asked = Asked {
                term: small.term,
                command: small.command,
                payload: Payload::new(),
                confirmed: small.confirmed,
            };
            self.admit(storage, &mut again, asked);
        }
        let replies = self.commit(storage, again);
        for (index, reply) in indexes.into_iter().zip(replies) {
            answers[index] = reply;
        }
        answers
    }

    fn finish(&self, storage: &dyn Storage, draft: Draft) -> Result<UnitReply, Refusal> {
        match draft {
            Draft::Ready(reply) => reply,
            Draft::Sealed => Ok(UnitReply::Sealed(self.sealed(storage).into())),
        }
    }

    /// What the unit holds, now that a seal is durable and with it all that was admitted before (U1, U4).
    fn sealed(&self, storage: &dyn Storage) -> Sealed {
        let state = &self.state;
        Sealed {
            identity: self.identity,
            incarnation: self.incarnation,
            end: state.end,
            trimmed: state.trimmed,
            member_from: state.member_from,
            synced: storage.durable().synced,
            settled: state.settled,
            held: storage.held(state.settled.max(state.trimmed), HELD_MAX),
            announced: state.announced,
        }
    }

    /// Both ends of the seam agree on what is durable.
    fn check(&self, storage: &dyn Storage) {
        debug_assert!(
            {
                let (state, durable) = (&self.state, storage.durable());
                (state.term, state.trimmed) == (durable.term, durable.trimmed)
                    && (state.blank, state.settled) == (durable.blank, durable.settled)
            },
            "U1: {:?} is not {:?}",
            self.state,
            storage.durable()
        );
    }

    /// A position turned out to be damaged: no mark above it stands.
    fn note_damage(&mut self, position: Position) {
        self.damages += 1;
        self.marks.retain(|_, mark| *mark <= position);
    }

    /// The store looked after itself and may have found damage: no mark is believed any more.
    pub fn forget_marks(&mut self) {
        self.marks.clear();
    }
}

/// Ends all terms below `term`. Idempotent, since the answer to a seal may be lost (U2).
fn seal(batch: &mut Batch, term: Term, confirmed: bool) -> Result<(), Refusal> {
    let current = batch.state.term;
    if term < current {
        return Err(stale(term, current));
    }
    if term > current.next() && !confirmed {
        let asked = term;
        return Err(Refusal::TermJump { asked, current });
    }
    batch.state.sealed = true;
    if term > current {
        batch.state.term = term;
        batch.state.blank = false;
        batch.push(Change::Term(term));
    }
    Ok(())
}

/// The decided layout of `term` lists this process start, and opens its segment at `start` (U6).
fn announce(batch: &mut Batch, term: Term, start: Position) -> Result<UnitReply, Refusal> {
    batch.state.check_term(term)?;
    match batch.state.announced {
        Some((announced, earlier)) if announced == term && earlier != start => {
            let why = format!("term {term} was announced to open at {earlier}, not {start}");
            return Err(Refusal::malformed(why));
        }
        Some((announced, _)) if announced == term => {}
        Some(_) | None if batch.state.blank || batch.state.sealed => {}
        Some(_) | None => {
            let why = format!(
                "this process start was not sealed in term {term}, so no layout of it lists it; a new term must"
            );
            return Err(Refusal::malformed(why));
        }
    }
    if batch.state.blank {
        batch.state.blank = false;
        batch.push(Change::Listed);
    }
    batch.state.announced = Some((term, start));
    batch.state.member_from.get_or_insert(start);
    Ok(UnitReply::Announced)
}

/// Gives back the space below `to`, as far as anybody may (U8).
fn trim(
    batch: &mut Batch,
    term: Term,
    to: Position,
    settled: Position,
) -> Result<UnitReply, Refusal> {
    let state = batch.state;
    state.check_term(term)?;
    let known = state.known_end();
    let limit = settled.min(known);
    if to > limit.max(state.trimmed) {
        return Err(Refusal::Unsettled { asked: to, limit });
    }
    if to > state.trimmed {
        batch.state.trimmed = to;
        batch.state.blank = false;
        batch.push(Change::Trim(to));
    }
    if limit > state.settled {
        batch.state.settled = limit;
        batch.state.blank = false;
        batch.push(Change::Settled(limit));
    }
    Ok(UnitReply::Trimmed(batch.state.trimmed))
}
