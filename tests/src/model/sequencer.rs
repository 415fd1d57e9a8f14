//! The sequencer of one term: a counter and the positions of the one stream, in memory only.
//!
//! Each term has its own instance, as if the sequencer moved every time; the old one goes on until
//! it is sealed, if anybody seals it.
//!
//! Source: CORFU (NSDI '12), "Finding the tail: sequencer"; Tango (SOSP '13), "Streams".

use super::entry::{Bits, Position};

/// What an instance is doing.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Phase {
    /// Named by a layout, not bootstrapped.
    Blank,
    /// Issues tokens.
    Serving,
    /// Ended by a proposer of the next term.
    Sealed,
    /// Restarted: it remembers nothing.
    Restarted,
}

/// The sequencer of one term.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Sequencer {
    /// What it is doing.
    pub phase: Phase,
    /// Everything that was issued is below it.
    pub counter: Position,
    /// The positions of the stream so far; `None` where that could not be found out.
    pub stream: Option<Bits>,
}

impl Sequencer {
    /// One that waits for its bootstrap.
    pub const BLANK: Sequencer = Sequencer {
        phase: Phase::Blank,
        counter: 0,
        stream: Some(Bits::EMPTY),
    };

    /// Begins to serve.
    pub fn bootstrap(&mut self, counter: Position, stream: Option<Bits>) {
        *self = Sequencer {
            phase: Phase::Serving,
            counter,
            stream,
        };
    }

    /// Issues one position, with what a reader of the stream must expect before it.
    pub fn issue(&mut self, in_stream: bool) -> (Position, Option<Bits>) {
        let position = self.counter;
        self.counter += 1;
        if !in_stream {
            return (position, Some(Bits::EMPTY));
        }
        let expect = self.stream;
        self.stream = expect.map(|stream| stream.with(position));
        (position, expect)
    }
}
