//! Which positions are issued, in which term, and where each stream ends.
//!
//! Pure: no clock, no network, no randomness. `server.rs` asks the layout servers and hands in what they decided.
//! No disk anywhere: a process start begins without a term of its own, and issues nothing (H6).
//!
//! - Q3 Positions are issued only between a bootstrap in a term and the end of that term, each at most once in it.
//! - Q4 The term never falls, and nothing is issued below it. A seal of the term it is in changes nothing.
//! - Q5 Only a decided layout that names this very process start begins a term, with the tails of one driver, whole.
//! - Q6 A term more than one above its own is believed only once the layout servers showed it, so no request can carry
//!   the counter to a term that no one will reach.
//!
//! Sources: CORFU (NSDI '12), "The CORFU Sequencer"; Tango (SOSP '13), "Streaming CORFU".

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use milonga_wire::limits::{
    BACKPOINTERS, RUN_RECORDS_MAX, STREAM_TAILS_PAGE_MAX, STREAMS_PER_ENTRY_MAX,
};
use milonga_wire::{
    Before, BootstrapPage, ClusterId, Decided, Identity, Incarnation, Position, Refusal,
    SequencerReply, StreamId, StreamLink, Term, Token,
};

use crate::streams::Streams;

/// Drivers of a bootstrap whose pages are kept at a time. The one that was silent the longest gives way: it may have died.
const DRIVERS_MAX: usize = 4;

/// Pages in one bootstrap.
const PAGES_MAX: u32 = 1 << 20;

/// Where a counter stands.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Standing {
    /// Never sealed, never bootstrapped.
    Blank,
    /// It issues nothing: its term was sealed, or it was never bootstrapped in one.
    Sealed,
    /// It issues positions.
    Serving,
}

/// The sequencer's state.
#[derive(Debug)]
pub struct Counter {
    cluster: ClusterId,
    identity: Identity,
    incarnation: Incarnation,
    streams_max: u32,
    /// All terms below are over.
    term: Term,
    state: State,
    /// The newest decided layout seen, for those who are behind it.
    newest: Option<Arc<Decided>>,
    /// Half-received bootstraps of `term`, oldest first.
    drivers: VecDeque<Driver>,
}

#[derive(Debug)]
enum State {
    Blank,
    /// With the next position it would have issued, if it ever issued.
    Sealed(Option<Position>),
    Serving(Serving),
}

#[derive(Debug)]
struct Serving {
    next: Position,
    streams: Streams,
    decided: Arc<Decided>,
}

#[derive(Debug)]
struct Driver {
    id: [u8; 16],
    streams: Streams,
    received: BTreeSet<u32>,
    last: Option<u32>,
}

impl Counter {
    /// A counter of this process start, in no term. It remembers at most `streams_max` streams.
    pub fn new(
        cluster: ClusterId,
        identity: Identity,
        incarnation: Incarnation,
        streams_max: u32,
    ) -> Self {
        Self {
            cluster,
            identity,
            incarnation,
            streams_max,
            term: Term::GENESIS,
            state: State::Blank,
            newest: None,
            drivers: VecDeque::new(),
        }
    }

    /// The next `count` positions, each in all of `streams`.
    ///
    /// # Errors
    /// [`Refusal::StaleTerm`], [`Refusal::FutureTerm`] or [`Refusal::NotBootstrapped`] if `term` is not the one it
    /// serves; [`Refusal::TooLarge`] and [`Refusal::Malformed`] name a bound. Nothing was issued.
    pub fn tokens(
        &mut self,
        term: Term,
        count: u32,
        streams: &[StreamId],
    ) -> Result<Token, Refusal> {
        if count == 0 {
            return Err(Refusal::malformed(
                "a token for no position; ask for 1 or more",
            ));
        }
        if count > RUN_RECORDS_MAX {
            let asked = count as usize;
            return Err(Refusal::too_large(
                "positions in a token",
                asked,
                RUN_RECORDS_MAX,
            ));
        }
        check_streams(streams)?;
        let serving = match &mut self.state {
            State::Serving(serving) if self.term == term => serving,
            State::Serving(_) | State::Sealed(_) | State::Blank => {
                return Err(self.not_serving(term));
            }
        };
        let first = serving.next;
        let left = u64::MAX - first.0;
        if u64::from(count) > left {
            return Err(Refusal::TooLarge {
                what: format!("positions from {first} on"),
                asked: u64::from(count),
                limit: left,
            });
        }
        serving.next = first.plus(u64::from(count));
        let streams = streams
            .iter()
            .map(|stream| StreamLink {
                stream: *stream,
                before: serving.streams.take(*stream, first, count),
            })
            .collect();
        Ok(Token {
            term,
            first,
            count,
            streams,
        })
    }

    /// Whether the end may be asked in `term` now. If so, a round of confirmations that begins from here on lets
    /// [`Counter::end`] answer.
    ///
    /// # Errors
    /// As [`Counter::tokens`].
    pub fn check_end(&self, term: Term, streams: &[StreamId]) -> Result<(), Refusal> {
        check_streams(streams)?;
        self.serving(term).map(|_| ())
    }

    /// The end of the log, and where `streams` end. Only to be told to requests that arrived before a round of
    /// confirmations in `term` began, and only after that round (H2, H43). The counter read here is at or above every
    /// position issued before the request, and had a later term begun by then, no majority would have confirmed.
    ///
    /// # Errors
    /// As [`Counter::tokens`]: the term may have ended meanwhile.
    pub fn end(&self, term: Term, streams: &[StreamId]) -> Result<SequencerReply, Refusal> {
        let serving = self.serving(term)?;
        let links = streams.iter().map(|stream| StreamLink {
            stream: *stream,
            before: serving.streams.before(*stream),
        });
        Ok(SequencerReply::End {
            end: serving.next,
            term,
            streams: links.collect(),
        })
    }

    /// Ends every term below `term`, and says the next position it would have issued. Idempotent, since the reply may
    /// be lost: sealing the term it serves does not stop it (Q4).
    ///
    /// # Errors
    /// [`Refusal::StaleTerm`] if a later term was sealed or begun. [`Refusal::TermJump`] (Q6): ask the layout servers
    /// for the newest decided layout, hand it to [`Counter::note_decided`], and seal again.
    pub fn seal(&mut self, term: Term) -> Result<Option<Position>, Refusal> {
        if term < self.term {
            return Err(self.not_serving(term));
        }
        self.check_jump(term)?;
        self.raise(term);
        Ok(self.next())
    }

    /// One page of stream tails, for the term `term`; its first page ends all lower terms. True once it issues
    /// positions in that term. Idempotent: repeated pages and later drivers change nothing.
    ///
    /// # Errors
    /// [`Refusal::StaleTerm`], [`Refusal::WrongServer`] or [`Refusal::WrongIncarnation`] if the layout is not for this
    /// process start now; [`Refusal::TermJump`] as [`Counter::seal`]; [`Refusal::Malformed`] for a page that
    /// contradicts itself, its layout or its driver's other pages: begin again with another driver id.
    pub fn bootstrap(&mut self, term: Term, page: &BootstrapPage) -> Result<bool, Refusal> {
        self.check_layout(term, &page.decided)?;
        if term < self.term {
            return Err(self.not_serving(term));
        }
        self.check_jump(term)?;
        self.check_follows(&page.decided)?;
        if term == self.term && matches!(self.state, State::Serving(_)) {
            return Ok(true); // The first driver won; this one, or this page, is late.
        }
        let start = page.decided.layout.open_segment().start;
        check_tails(page, start)?;
        self.note_decided(&page.decided);
        self.raise(term);
        self.take_page(page)?;
        Ok(self.begin_if_whole(page.driver, start))
    }

    /// A layout server knows this decided layout: all lower terms are over.
    pub fn note_decided(&mut self, decided: &Decided) {
        let term = decided.layout.term;
        if self
            .newest
            .as_ref()
            .is_none_or(|newest| newest.layout.term < term)
        {
            self.newest = Some(Arc::new(decided.clone()));
        }
        if term > self.term {
            self.raise(term);
        }
    }

    /// Its term.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Where it stands.
    pub fn standing(&self) -> Standing {
        match self.state {
            State::Blank => Standing::Blank,
            State::Sealed(_) => Standing::Sealed,
            State::Serving(_) => Standing::Serving,
        }
    }

    /// The next position it issues, or would have issued; none if it was never bootstrapped.
    pub fn next(&self) -> Option<Position> {
        match &self.state {
            State::Blank => None,
            State::Sealed(next) => *next,
            State::Serving(serving) => Some(serving.next),
        }
    }

    /// The layout of the term it serves.
    pub fn layout(&self) -> Option<Arc<Decided>> {
        match &self.state {
            State::Serving(serving) => Some(Arc::clone(&serving.decided)),
            State::Blank | State::Sealed(_) => None,
        }
    }

    /// The newest decided layout it has seen.
    pub fn newest(&self) -> Option<Arc<Decided>> {
        self.newest.clone()
    }

    /// How many streams it remembers.
    pub fn streams(&self) -> usize {
        match &self.state {
            State::Serving(serving) => serving.streams.len(),
            State::Blank | State::Sealed(_) => 0,
        }
    }

    fn serving(&self, term: Term) -> Result<&Serving, Refusal> {
        match &self.state {
            State::Serving(serving) if self.term == term => Ok(serving),
            State::Serving(_) | State::Sealed(_) | State::Blank => Err(self.not_serving(term)),
        }
    }

    #[cold]
    fn not_serving(&self, asked: Term) -> Refusal {
        let current = self.term;
        let newest = || {
            self.newest
                .as_ref()
                .filter(|newest| newest.layout.term > asked)
                .map(|newest| Box::new(Decided::clone(newest)))
        };
        match asked.cmp(&current) {
            std::cmp::Ordering::Less => Refusal::StaleTerm {
                asked,
                current,
                newest: newest(),
            },
            std::cmp::Ordering::Equal => Refusal::NotBootstrapped { term: current },
            std::cmp::Ordering::Greater => Refusal::FutureTerm { asked, current },
        }
    }

    /// Whether `term` skips terms, so that the layout servers must show it first (Q6).
    pub fn jumps(&self, term: Term) -> bool {
        term > self.term.next()
    }

    fn check_jump(&self, term: Term) -> Result<(), Refusal> {
        if self.jumps(term) {
            return Err(Refusal::TermJump {
                asked: term,
                current: self.term,
            });
        }
        Ok(())
    }

    /// Q5.
    fn check_layout(&self, term: Term, decided: &Decided) -> Result<(), Refusal> {
        let layout = &decided.layout;
        if layout.cluster != self.cluster {
            return Err(Refusal::WrongCluster {
                asked: layout.cluster,
                here: self.cluster,
            });
        }
        if layout.term != term {
            return Err(Refusal::malformed(format!(
                "a bootstrap in term {term} with the layout of term {}",
                layout.term
            )));
        }
        if layout.sequencer.identity != self.identity {
            return Err(Refusal::WrongServer {
                asked: layout.sequencer.identity,
                here: self.identity,
            });
        }
        if layout.sequencer.incarnation != self.incarnation {
            return Err(Refusal::WrongIncarnation {
                asked: layout.sequencer.incarnation,
                here: self.incarnation,
            });
        }
        layout
            .validate()
            .map_err(|invalid| Refusal::malformed(invalid.to_string()))
    }

    /// What can be checked of a decision without its whole history.
    fn check_follows(&self, decided: &Decided) -> Result<(), Refusal> {
        let Some(newest) = &self.newest else {
            return Ok(());
        };
        if decided.layout.term == newest.layout.term && decided.layout != newest.layout {
            return Err(Refusal::malformed(format!(
                "term {} has another decided layout",
                newest.layout.term
            )));
        }
        if decided.layout.term == newest.layout.term.next() {
            decided
                .check(&newest.layout)
                .map_err(|invalid| Refusal::malformed(invalid.to_string()))?;
        }
        Ok(())
    }

    /// Ends all terms below `term`.
    fn raise(&mut self, term: Term) {
        debug_assert!(term >= self.term, "Q4");
        if term > self.term || matches!(self.state, State::Blank) {
            self.state = State::Sealed(self.next());
            self.term = term;
            self.drivers.clear();
        }
    }

    /// Adds a page to what its driver sent before.
    fn take_page(&mut self, page: &BootstrapPage) -> Result<(), Refusal> {
        let known = self
            .drivers
            .iter()
            .position(|driver| driver.id == page.driver);
        let driver = known.and_then(|index| self.drivers.remove(index));
        let mut driver = driver.unwrap_or_else(|| Driver {
            id: page.driver,
            streams: Streams::new(self.streams_max, true),
            received: BTreeSet::new(),
            last: None,
        });
        // A driver whose page is refused is forgotten: half of it may have been taken.
        driver.take(page)?;
        if self.drivers.len() == DRIVERS_MAX {
            self.drivers.pop_front();
        }
        self.drivers.push_back(driver);
        Ok(())
    }

    /// Serves, if all pages of `driver` are here.
    fn begin_if_whole(&mut self, driver: [u8; 16], start: Position) -> bool {
        let whole = |candidate: &Driver| candidate.id == driver && candidate.is_whole();
        let Some(index) = self.drivers.iter().position(whole) else {
            return false;
        };
        let Some(decided) = self.newest.clone() else {
            return false;
        };
        debug_assert_eq!(decided.layout.term, self.term, "Q5");
        if let Some(driver) = self.drivers.remove(index) {
            self.state = State::Serving(Serving {
                next: start,
                streams: driver.streams,
                decided,
            });
            self.drivers.clear();
        }
        true
    }
}

impl Driver {
    fn take(&mut self, page: &BootstrapPage) -> Result<(), Refusal> {
        let beyond_last = self.last.is_some_and(|last| page.page > last);
        let last_moves = page.last && self.last.is_some_and(|last| page.page != last);
        let behind = page.last
            && self
                .received
                .last()
                .is_some_and(|highest| *highest > page.page);
        if beyond_last || last_moves || behind || page.page >= PAGES_MAX {
            return Err(Refusal::malformed(
                "a bootstrap page that does not fit its driver's others",
            ));
        }
        if page.last {
            self.last = Some(page.page);
        }
        if !self.received.insert(page.page) {
            return Ok(());
        }
        if !page.complete {
            self.streams.forget_completeness();
        }
        for tail in &page.tails {
            if !self.streams.restore(tail) {
                return Err(Refusal::malformed(format!(
                    "stream {} has two tails in one bootstrap",
                    tail.stream
                )));
            }
        }
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.last
            .is_some_and(|last| self.received.len() as u64 == u64::from(last) + 1)
    }
}

/// No stream twice, and no more than an entry may name.
fn check_streams(streams: &[StreamId]) -> Result<(), Refusal> {
    if streams.len() > STREAMS_PER_ENTRY_MAX {
        return Err(Refusal::too_large(
            "streams of a request",
            streams.len(),
            STREAMS_PER_ENTRY_MAX as u32,
        ));
    }
    for (index, stream) in streams.iter().enumerate() {
        if streams[..index].contains(stream) {
            return Err(Refusal::malformed("a request names a stream twice"));
        }
    }
    Ok(())
}

/// Tails fall, from below the segment that the term opens: whatever was held when the term was sealed lies below it.
fn check_tails(page: &BootstrapPage, start: Position) -> Result<(), Refusal> {
    if page.tails.len() > STREAM_TAILS_PAGE_MAX as usize {
        return Err(Refusal::too_large(
            "stream tails in a page",
            page.tails.len(),
            STREAM_TAILS_PAGE_MAX,
        ));
    }
    let fits = |last: &Before| match last {
        Before::Unknown => true,
        Before::Known(positions) => {
            positions.len() <= BACKPOINTERS
                && positions.windows(2).all(|pair| pair[0] > pair[1])
                && positions.first().is_none_or(|newest| *newest < start)
        }
    };
    match page.tails.iter().find(|tail| !fits(&tail.last)) {
        None => Ok(()),
        Some(tail) => Err(Refusal::malformed(format!(
            "the tail of stream {} must fall, from below {start}",
            tail.stream
        ))),
    }
}

#[cfg(test)]
#[path = "counter_tests.rs"]
pub(crate) mod tests;
