//! Admission: what one log unit answers to one request.
//!
//! It knows positions and terms, neither chains nor layouts. It is not the store: an entry is
//! durable as soon as it is there, and what a lying disk forgets is taken away by [`Unit::restart`].
//!
//! - An entry, once there, never changes while the unit keeps it.
//! - Nothing of a term below `term` is admitted, and nothing at all before the announcement of a
//!   decided layout that lists this incarnation.
//! - Below `since` what is lacking is unknown, never unwritten.
//!
//! Source: CORFU (NSDI '12), "Mapping in CORFU" (sealing); Milonga's own rules for restarted units.

use super::entry::{Bits, Entry, Incarnation, POSITIONS_MAX, Position, Term};
use super::guard::{Guard, Guards};

/// What a unit has been told of the decided layout of its term. Kept in memory only.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Listing {
    /// Where the open segment starts: copies stay below it.
    pub start: Position,
    /// From here on this incarnation has been a full member; below, what it lacks is unknown.
    pub since: Position,
}

/// One log unit.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Unit {
    /// Durable: the highest term it was sealed at.
    pub term: Term,
    /// Which process start this is.
    pub incarnation: Incarnation,
    /// In memory: the announcement of the layout of `term`, if it came.
    pub listing: Option<Listing>,
    /// Durable: what it holds.
    pub cells: [Option<Entry>; POSITIONS_MAX],
    /// Durable: the first position kept.
    pub trim: Position,
    /// Whether its store shows every batch synced since the last listing (honest disks).
    pub intact: bool,
}

/// Which kind of write.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// At the head: the first to come decides the position.
    Decide,
    /// Below the head: follows what the head holds.
    Follow,
    /// Control only, below the open segment: puts down what a listed unit holds.
    Copy,
}

/// A write of one entry.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Put {
    /// The term that the client believes in.
    pub term: Term,
    /// The incarnation that the layout of that term lists.
    pub incarnation: Incarnation,
    /// Where.
    pub position: Position,
    /// What.
    pub entry: Entry,
    /// In which role.
    pub kind: Kind,
}

/// The answer to a [`Put`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Putting {
    /// It is durable; it was not there before.
    Stored,
    /// This very entry was there.
    Same,
    /// Something else is there.
    Taken(Entry),
    /// The space was given back.
    Trimmed,
    /// The unit may have held something here and lost it.
    Unknown,
    /// Wrong term, wrong incarnation, or not announced. Nothing changed.
    Refused,
}

/// The answer to a read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reading {
    /// What is there.
    Holds(Entry),
    /// The space was given back.
    Trimmed,
    /// Provably never written here.
    Unwritten,
    /// The unit may have held something here and lost it.
    Unknown,
    /// Wrong term, wrong incarnation, or not announced.
    Refused,
}

/// The answer to a seal.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Sealed {
    /// Which process start answered.
    pub incarnation: Incarnation,
    /// The positions it holds.
    pub held: Bits,
    /// Its trim point.
    pub trim: Position,
    /// Whether its store shows every batch synced.
    pub intact: bool,
}

impl Unit {
    /// A formatted unit that has held nothing and was told of nothing.
    pub fn blank() -> Unit {
        Unit {
            term: 0,
            incarnation: 0,
            listing: None,
            cells: [None; POSITIONS_MAX],
            trim: 0,
            intact: true,
        }
    }

    /// What it holds at `position`.
    pub fn cell(&self, position: Position) -> Option<Entry> {
        self.cells[usize::from(position)]
    }

    /// The positions it holds.
    pub fn held(&self) -> Bits {
        (0..POSITIONS_MAX as u8)
            .filter(|&position| self.cell(position).is_some())
            .collect()
    }

    /// Decides and makes durable a write.
    pub fn put(&mut self, put: &Put, guards: Guards) -> Putting {
        let Some(listing) = self.listing_for_put(put, guards) else {
            return Putting::Refused;
        };
        if put.position < self.trim {
            return Putting::Trimmed;
        }
        match self.cell(put.position) {
            Some(entry) if entry == put.entry => Putting::Same,
            Some(entry) => Putting::Taken(entry),
            None => self.put_where_lacking(put, listing, guards),
        }
    }

    fn put_where_lacking(&mut self, put: &Put, listing: Listing, guards: Guards) -> Putting {
        let known = put.position >= listing.since;
        match put.kind {
            Kind::Copy if put.position >= listing.start => return Putting::Refused,
            Kind::Copy => {}
            Kind::Decide | Kind::Follow => {
                let refuses = guards.hold(Guard::UnknownIsNotUnwritten)
                    && guards.hold(Guard::UnknownRefusesFills);
                if !known && refuses {
                    return Putting::Unknown;
                }
            }
        }
        self.cells[usize::from(put.position)] = Some(put.entry);
        Putting::Stored
    }

    /// The announcement under which a write is judged, if it may be judged at all.
    fn listing_for_put(&self, put: &Put, guards: Guards) -> Option<Listing> {
        let everything = Listing {
            start: POSITIONS_MAX as u8,
            since: POSITIONS_MAX as u8,
        };
        let in_term = put.term == self.term;
        let incarnate = self.is(put.incarnation, guards);
        if !guards.hold(Guard::WriteNeedsTerm) && incarnate {
            let admits_all = Listing {
                start: POSITIONS_MAX as u8,
                since: 0,
            };
            return Some(self.listing.unwrap_or(admits_all));
        }
        if !guards.hold(Guard::UnknownWaitsForLaterTerm) && in_term && self.waits(put.incarnation) {
            return Some(everything);
        }
        let early = put.kind == Kind::Copy && !guards.hold(Guard::RestoreFollowsDecision);
        if early && in_term && incarnate {
            return Some(everything);
        }
        if in_term && incarnate {
            return self.listing;
        }
        None
    }

    /// Decides a read; nothing changes.
    pub fn read(
        &self,
        term: Term,
        incarnation: Incarnation,
        position: Position,
        guards: Guards,
    ) -> Reading {
        if let Some(entry) = self.cell(position) {
            let visible = entry.term <= term || !guards.hold(Guard::ReadChecksEntryTerm);
            return if visible {
                Reading::Holds(entry)
            } else {
                Reading::Refused
            };
        }
        if position < self.trim {
            return Reading::Trimmed;
        }
        self.read_where_lacking(term, incarnation, position, guards)
    }

    fn read_where_lacking(
        &self,
        term: Term,
        incarnation: Incarnation,
        position: Position,
        guards: Guards,
    ) -> Reading {
        if !guards.hold(Guard::UnknownWaitsForLaterTerm)
            && term == self.term
            && self.waits(incarnation)
        {
            return Reading::Unknown;
        }
        if !self.is(incarnation, guards) {
            return Reading::Refused;
        }
        if term < self.term && !guards.hold(Guard::UnwrittenNeedsTerm) {
            return Reading::Unwritten;
        }
        match self.listing {
            Some(listing) if term == self.term => {
                let known = position >= listing.since;
                if known || !guards.hold(Guard::UnknownIsNotUnwritten) {
                    Reading::Unwritten
                } else {
                    Reading::Unknown
                }
            }
            Some(_) | None => Reading::Refused,
        }
    }

    /// Ends all terms below `term`. The same term again changes nothing and is answered.
    pub fn seal(&mut self, term: Term) -> Option<Sealed> {
        if term < self.term {
            return None;
        }
        if term > self.term {
            self.term = term;
            self.listing = None;
        }
        Some(Sealed {
            incarnation: self.incarnation,
            held: self.held(),
            trim: self.trim,
            intact: self.intact,
        })
    }

    /// Takes the announcement of a decided layout. Returns whether anything changed.
    pub fn announce(
        &mut self,
        term: Term,
        incarnation: Incarnation,
        listing: Listing,
        guards: Guards,
    ) -> bool {
        let sealed = term == self.term;
        let raised = term > self.term && !guards.hold(Guard::ListedIsSealed);
        let fresh = raised || self.listing.is_none();
        if !(self.is(incarnation, guards) && (sealed || raised) && fresh) {
            return false;
        }
        self.term = term;
        self.listing = Some(listing);
        self.intact = true;
        true
    }

    /// Starts anew. What was only in memory is gone; if anything is `lost`, so is the
    /// term: the disk was rolled back.
    pub fn restart(&mut self, lost: Bits, guards: Guards) {
        for position in lost.iter() {
            self.cells[usize::from(position)] = None;
        }
        if !guards.hold(Guard::RestartedWaitsForListing) {
            return; // The naive unit goes on as if nothing had happened.
        }
        self.incarnation += 1;
        self.listing = None;
        self.intact &= lost.is_empty();
        if !lost.is_empty() {
            self.term = 0;
        }
    }

    /// Gives back everything below `position`.
    pub fn trim(&mut self, position: Position) {
        self.trim = self.trim.max(position);
        for lower in 0..self.trim {
            self.cells[usize::from(lower)] = None;
        }
    }

    fn is(&self, incarnation: Incarnation, guards: Guards) -> bool {
        incarnation == self.incarnation || !guards.hold(Guard::RequestNamesIncarnation)
    }

    /// Whether it has restarted since the layout that lists `incarnation`.
    fn waits(&self, incarnation: Incarnation) -> bool {
        self.listing.is_none() && self.incarnation != incarnation
    }
}
