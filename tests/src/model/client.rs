//! What a client does next: the append of a writer, and the settling of a position.
//!
//! A client sends one request at a time and takes its answer in the same step; that a request is
//! slow is modelled by the step coming late, that an answer is lost by a duplicate in flight.
//!
//! - An append is retried with a new token only if the one before is proven not appended.
//! - Settling asks the head first and goes down the chain in its order.
//!
//! Source: CORFU (NSDI '12), "Chained replication in CORFU" (filling holes).

use super::entry::{Bits, Entry, Position, Term, UnitId, Value};
use super::guard::{Guard, Guards};
use super::layout::Layout;
use super::unit::{Kind, Put, Putting, Reading, Unit};
use super::witness::{Event, Witness};

/// What the sequencer gave for one attempt.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Token {
    /// The only term in which it is good.
    pub term: Term,
    /// The position.
    pub position: Position,
    /// The earlier positions of the stream; `None` is unknown.
    pub expect: Option<Bits>,
}

/// Where a writer is in its current append.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Step {
    /// It wants a token.
    Token,
    /// It wants `entry` written at `unit`, then further down.
    Write {
        /// What it holds a token for.
        token: Token,
        /// What it writes.
        entry: Entry,
        /// Who is next.
        unit: UnitId,
    },
    /// Its token went stale: it must learn what became of the position.
    Resolve {
        /// The stale token.
        token: Token,
        /// How far it is.
        settle: Settle,
    },
    /// It met a chain that disagrees with itself, or a trimmed position, and gave up.
    Stopped,
}

/// A writer.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Writer {
    /// The term of the newest layout that it knows.
    pub view: Term,
    /// How many of its appends are done.
    pub done: u8,
    /// Where it is in the next one.
    pub step: Step,
}

/// The settling of one position, in one term.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Settle {
    /// The term that the client believes in.
    pub view: Term,
    /// Which position.
    pub position: Position,
    /// What is next.
    pub phase: Settling,
}

/// What is next in settling a position.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Settling {
    /// Junk to the head, which answers with what is there.
    Fill,
    /// The head does not know: ask every listed unit.
    Ask {
        /// The units that answered and hold nothing.
        asked: Bits,
    },
    /// Put `entry` down the chain.
    Push {
        /// What the position holds.
        entry: Entry,
        /// As a completion or as a restore.
        kind: Kind,
        /// Who is next.
        unit: UnitId,
    },
}

/// What a step of settling led to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// The answer changes nothing: wait for another layout.
    Blocked,
    /// There is more to do.
    Going,
    /// The whole chain holds this.
    Settled(Entry),
    /// The position was trimmed.
    Trimmed,
    /// A unit below the head holds something else.
    Diverged,
}

/// The world that a client acts on in one step.
pub struct Surroundings<'a> {
    /// Every unit.
    pub units: &'a mut [Unit],
    /// The layout of the client's view.
    pub layout: &'a Layout,
    /// The rules in force.
    pub guards: Guards,
    /// Where remarkable events are noted.
    pub witness: &'a Witness,
}

impl Surroundings<'_> {
    /// One unit executes one write.
    pub fn put(&mut self, unit: UnitId, position: Position, entry: Entry, kind: Kind) -> Putting {
        let Some(member) = self.layout.member(unit) else {
            return Putting::Refused;
        };
        let put = Put {
            term: self.layout.term,
            incarnation: member.incarnation,
            position,
            entry,
            kind,
        };
        self.units[usize::from(unit)].put(&put, self.guards)
    }

    /// What one unit answers to a read in the client's term.
    pub fn read(&self, unit: UnitId, position: Position) -> Reading {
        let Some(member) = self.layout.member(unit) else {
            return Reading::Refused;
        };
        self.units[usize::from(unit)].read(
            self.layout.term,
            member.incarnation,
            position,
            self.guards,
        )
    }
}

impl Settle {
    /// Begins to settle `position` in the term of `view`.
    pub fn new(view: Term, position: Position) -> Settle {
        Settle {
            view,
            position,
            phase: Settling::Fill,
        }
    }

    /// One request of a fill or a push.
    pub fn step(&mut self, world: &mut Surroundings<'_>) -> Progress {
        match self.phase {
            Settling::Fill => self.fill(world),
            Settling::Ask { .. } => Progress::Blocked,
            Settling::Push { entry, kind, unit } => self.push(world, entry, kind, unit),
        }
    }

    fn fill(&mut self, world: &mut Surroundings<'_>) -> Progress {
        let chain = world.layout.chain(self.position);
        let Some(head) = chain.first() else {
            return Progress::Blocked;
        };
        let junk = Entry::junk(self.view);
        match world.put(head, self.position, junk, Kind::Decide) {
            Putting::Stored => {
                world.witness.saw(Event::HoleFilled);
                self.go_on(chain, head, junk, Kind::Follow)
            }
            Putting::Same => self.go_on(chain, head, junk, Kind::Follow),
            Putting::Taken(entry) => self.go_on(chain, head, entry, Kind::Follow),
            Putting::Trimmed => Progress::Trimmed,
            Putting::Unknown if world.guards.hold(Guard::RestoreAsksEveryUnit) => {
                self.phase = Settling::Ask { asked: Bits::EMPTY };
                Progress::Going
            }
            Putting::Unknown => self.restore(head, junk),
            Putting::Refused => Progress::Blocked,
        }
    }

    fn push(
        &mut self,
        world: &mut Surroundings<'_>,
        entry: Entry,
        kind: Kind,
        unit: UnitId,
    ) -> Progress {
        let chain = world.layout.chain(self.position);
        match world.put(unit, self.position, entry, kind) {
            Putting::Stored => {
                note_stored(world.witness, entry, kind);
                self.go_on(chain, unit, entry, kind)
            }
            Putting::Same => self.go_on(chain, unit, entry, kind),
            // Only the head decides between two restores.
            Putting::Taken(winner) if Some(unit) == chain.first() => {
                self.go_on(chain, unit, winner, kind)
            }
            Putting::Taken(_) => Progress::Diverged,
            Putting::Trimmed => Progress::Trimmed,
            // Everything above has it: go on as control.
            Putting::Unknown => {
                self.phase = Settling::Push {
                    entry,
                    kind: Kind::Copy,
                    unit,
                };
                Progress::Going
            }
            Putting::Refused => Progress::Blocked,
        }
    }

    /// One listed unit is asked what it holds.
    pub fn ask(&mut self, world: &Surroundings<'_>, unit: UnitId) -> Progress {
        let chain = world.layout.chain(self.position);
        let (Some(head), Some(tail)) = (chain.first(), chain.last()) else {
            return Progress::Blocked;
        };
        let in_order = world.guards.hold(Guard::RestoreHeadFirst);
        let asked = match self.phase {
            Settling::Ask { asked } => asked,
            // The naive reader restores the tail that does not know, and looks at nothing else.
            Settling::Fill if !in_order && world.read(tail, self.position) == Reading::Unknown => {
                Bits::EMPTY
            }
            Settling::Fill | Settling::Push { .. } => return Progress::Blocked,
        };
        if asked.contains(unit) || !chain.contains(unit) {
            return Progress::Blocked;
        }
        match world.read(unit, self.position) {
            Reading::Holds(entry) => self.restore(if in_order { head } else { tail }, entry),
            Reading::Unwritten | Reading::Unknown => {
                let asked = asked.with(unit);
                if asked == chain {
                    return self.restore(head, Entry::junk(self.view));
                }
                self.phase = Settling::Ask { asked };
                Progress::Going
            }
            Reading::Trimmed => Progress::Trimmed,
            Reading::Refused => Progress::Blocked,
        }
    }

    fn restore(&mut self, unit: UnitId, entry: Entry) -> Progress {
        let kind = Kind::Copy;
        self.phase = Settling::Push { entry, kind, unit };
        Progress::Going
    }

    fn go_on(&mut self, chain: Bits, unit: UnitId, entry: Entry, kind: Kind) -> Progress {
        match chain.after(unit) {
            Some(unit) => {
                self.phase = Settling::Push { entry, kind, unit };
                Progress::Going
            }
            None => Progress::Settled(entry),
        }
    }
}

fn note_stored(witness: &Witness, entry: Entry, kind: Kind) {
    match (kind, entry.value) {
        (Kind::Copy, Value::Junk) => witness.saw(Event::UnknownFilled),
        (Kind::Copy, Value::Record(_)) => witness.saw(Event::EntryRestored),
        (Kind::Decide | Kind::Follow, Value::Junk) => {}
        (Kind::Decide | Kind::Follow, Value::Record(_)) => {
            witness.saw(Event::EntryCompleted);
        }
    }
}
