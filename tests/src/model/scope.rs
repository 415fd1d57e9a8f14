//! How much of the world one exploration contains.
//!
//! A scope bounds; it never changes a rule. Each named scope is the smallest that shows what some
//! guard is for, and the guarded protocol is explored over every one of them.

use super::entry::{Bits, Position, Term};

/// Whether an append names the one stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Append {
    /// It does.
    InStream,
    /// It does not.
    Plain,
}

/// The bounds of one exploration.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Units in the chain of term 0.
    pub chain: u8,
    /// Blank units that a later term may list.
    pub spares: u8,
    /// One past the highest position that is issued.
    pub positions: Position,
    /// How many terms, the first included.
    pub terms: Term,
    /// For every writer its appends, in order.
    pub writers: Vec<Vec<Append>>,
    /// How many proposers seal side by side.
    pub proposers: u8,
    /// How many times anybody settles a position that is not his own.
    pub settles: u8,
    /// How many times a unit restarts.
    pub restarts: u8,
    /// How many of those restarts may lose entries.
    pub losses: u8,
    /// How many times a sequencer restarts.
    pub sequencer_restarts: u8,
    /// How many writes arrive a second time, or late.
    pub duplicates: u8,
    /// How many times a unit trims.
    pub trims: u8,
    /// How many positions of closed ranges are copied to units that joined later. With any, those that hold a closed range
    /// are listed for it by the next term.
    pub copies: u8,
    /// Whether proposers may seal the sequencer too.
    pub seal_sequencer: bool,
    /// Whether seals of a decided term may still arrive.
    pub late_seals: bool,
    /// The setting of rule 6.3: honest disks.
    pub trust_restarted: bool,
}

impl Scope {
    /// Two units, one writer with one append, one proposer, two terms, no faults.
    pub fn smallest() -> Scope {
        Scope {
            chain: 2,
            spares: 0,
            positions: 2,
            terms: 2,
            writers: vec![vec![Append::InStream]],
            proposers: 1,
            settles: 0,
            restarts: 0,
            losses: 0,
            sequencer_restarts: 0,
            duplicates: 0,
            trims: 0,
            copies: 0,
            seal_sequencer: false,
            late_seals: false,
            trust_restarted: false,
        }
    }

    /// A term change under an append, with a late duplicate, late seals and a sealed sequencer.
    pub fn term_change() -> Scope {
        Scope {
            settles: 1,
            duplicates: 1,
            seal_sequencer: true,
            late_seals: true,
            ..Scope::smallest()
        }
    }

    /// Two proposers of the same term, and two writers.
    pub fn race() -> Scope {
        Scope {
            writers: vec![vec![Append::InStream], vec![Append::InStream]],
            proposers: 2,
            ..Scope::term_change()
        }
    }

    /// The head is evicted, a spare joins, and then only the spare is left.
    pub fn eviction() -> Scope {
        Scope {
            spares: 1,
            terms: 3,
            writers: vec![vec![Append::InStream], vec![Append::InStream]],
            ..Scope::smallest()
        }
    }

    /// A spare joins, is copied to, is listed, and may be the only one left.
    pub fn healing() -> Scope {
        Scope {
            spares: 1,
            terms: 4,
            copies: 1,
            ..Scope::smallest()
        }
    }

    /// A unit leaves, its positions are issued again, and it is there again as it was.
    pub fn leaver() -> Scope {
        Scope {
            terms: 4,
            copies: 1,
            ..Scope::smallest()
        }
    }

    /// A unit restarts without some of its entries.
    pub fn forgetful_unit() -> Scope {
        Scope {
            settles: 1,
            restarts: 1,
            losses: 1,
            late_seals: true,
            ..Scope::smallest()
        }
    }

    /// The same, and a second term change before it is whole again.
    pub fn forgetful_for_two_terms() -> Scope {
        Scope {
            terms: 3,
            ..Scope::forgetful_unit()
        }
    }

    /// The same with a second writer instead of a settler.
    pub fn forgetful_with_two_writers() -> Scope {
        Scope {
            writers: vec![vec![Append::InStream], vec![Append::InStream]],
            settles: 0,
            ..Scope::forgetful_for_two_terms()
        }
    }

    /// A unit of three restarts, and two terms follow.
    pub fn restart_of_three() -> Scope {
        Scope {
            chain: 3,
            terms: 3,
            settles: 1,
            restarts: 1,
            ..Scope::smallest()
        }
    }

    /// Two restarts on disks that are known not to lie.
    pub fn honest_disks() -> Scope {
        Scope {
            terms: 3,
            settles: 1,
            restarts: 2,
            trust_restarted: true,
            ..Scope::smallest()
        }
    }

    /// A sequencer restarts between the appends of two writers.
    pub fn restarted_sequencer() -> Scope {
        Scope {
            positions: 3,
            writers: vec![
                vec![Append::InStream],
                vec![Append::Plain, Append::InStream],
            ],
            settles: 1,
            sequencer_restarts: 1,
            ..Scope::smallest()
        }
    }

    /// One writer with two appends to the stream, and a unit that restarts without some entries.
    pub fn forgetful_index() -> Scope {
        Scope {
            writers: vec![vec![Append::InStream, Append::InStream]],
            ..Scope::forgetful_unit()
        }
    }

    /// Trims before a term change.
    pub fn trims() -> Scope {
        Scope {
            settles: 1,
            trims: 2,
            ..Scope::smallest()
        }
    }

    /// Scopes for a run outside CI: minutes, millions of states.
    pub fn wider() -> Vec<Scope> {
        vec![
            Scope {
                losses: 1,
                ..Scope::restart_of_three()
            },
            Scope {
                proposers: 2,
                restarts: 2,
                losses: 2,
                ..Scope::forgetful_for_two_terms()
            },
            Scope {
                settles: 1,
                ..Scope::forgetful_with_two_writers()
            },
            Scope {
                spares: 1,
                ..Scope::forgetful_for_two_terms()
            },
            Scope {
                settles: 1,
                proposers: 2,
                ..Scope::healing()
            },
            Scope {
                writers: vec![vec![Append::InStream], vec![Append::InStream]],
                copies: 2,
                terms: 3,
                duplicates: 1,
                ..Scope::healing()
            },
            Scope {
                copies: 2,
                restarts: 1,
                losses: 1,
                ..Scope::healing()
            },
            Scope {
                copies: 2,
                trims: 2,
                settles: 1,
                terms: 3,
                ..Scope::healing()
            },
        ]
    }

    /// All units, spares included.
    pub fn units(&self) -> Bits {
        Bits::range(0, self.chain + self.spares)
    }

    /// Every append: its writer and whether it is in the stream. The index is its id.
    pub fn appends(&self) -> impl Iterator<Item = (usize, Append)> {
        let writers = self.writers.iter().enumerate();
        writers.flat_map(|(writer, appends)| appends.iter().map(move |&append| (writer, append)))
    }
}
