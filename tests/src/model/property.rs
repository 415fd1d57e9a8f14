//! What must hold in every state, by name.
//!
//! - M1 An acknowledged entry is at its position: no reader of any term gets anything else there,
//!   and no unit that the newest layout lists for it holds anything else.
//! - M2 No two different values are ever read at one position.
//! - M3 An append yields at most one entry, however often and in however many terms it is retried.
//! - M4 A confirmed `end()` is above every append acknowledged before it.
//! - M5 No reader is told that an acknowledged position is unwritten.
//! - M6 Of two entries of a stream, the later one expects the earlier one, or says unknown.
//! - M7 No client ever finds a chain that disagrees with its head.
//! - M8 The units listed for a position never hold two different entries there.
//! - M9 Somebody who is listed for an acknowledged position still holds it.
//!
//! M4 and M5 speak of answers that are confirmed after a unit or a sequencer gave them. Terms only
//! rise, so an answer confirmed in its term was given while that term was the newest: the
//! properties look at the newest term and need no step for the confirmation.
//!
//! Source: CORFU (NSDI '12), "Interface and guarantees"; Tango (SOSP '13), "Streams".

use stateright::Property;

use super::Milonga;
use super::entry::{Bits, Position, Term, Value};
use super::guard::Guard;
use super::sequencer::Phase;
use super::state::{State, in_stream};
use super::unit::Reading;

/// M1.
pub const ACKNOWLEDGED_STAYS: &str = "M1 acknowledged stays";
/// M2.
pub const ONE_VALUE: &str = "M2 one value per position";
/// M3.
pub const ONE_ENTRY: &str = "M3 one entry per append";
/// M4.
pub const END_ABOVE: &str = "M4 end above acknowledged";
/// M5.
pub const ABSENCE: &str = "M5 no absence of acknowledged";
/// M6.
pub const EXPECTED: &str = "M6 backpointers miss nothing";
/// M7.
pub const NO_DIVERGENCE: &str = "M7 chains follow their head";
/// M8.
pub const AGREEMENT: &str = "M8 listed units agree";
/// M9.
pub const HELD: &str = "M9 acknowledged is held";

/// All of them.
pub fn all() -> Vec<Property<Milonga>> {
    vec![
        Property::always(ACKNOWLEDGED_STAYS, acknowledged_stays),
        Property::always(ONE_VALUE, |_, state: &State| !state.two_values),
        Property::always(ONE_ENTRY, |_, state: &State| one_entry(state)),
        Property::always(END_ABOVE, end_above),
        Property::always(ABSENCE, no_absence),
        Property::always(EXPECTED, expected),
        Property::always(NO_DIVERGENCE, |_, state: &State| !state.diverged),
        Property::always(AGREEMENT, |_, state: &State| agreement(state)),
        Property::always(HELD, |_, state: &State| held(state)),
    ]
}

/// Every acknowledged append, as what its position must hold.
fn acknowledged(state: &State) -> impl Iterator<Item = (Position, Value)> {
    let appends = state.acknowledged.iter().enumerate();
    appends.filter_map(|(id, position)| position.map(|at| (at, Value::Record(id as u8))))
}

fn terms(state: &State) -> impl Iterator<Item = Term> {
    0..state.layouts.len() as Term
}

fn acknowledged_stays(model: &Milonga, state: &State) -> bool {
    acknowledged(state).all(|(position, value)| {
        let read = terms(state).all(
            |term| match state.tail_answer(term, position, model.guards) {
                Reading::Holds(entry) => entry.value == value,
                Reading::Trimmed | Reading::Unwritten | Reading::Unknown | Reading::Refused => true,
            },
        );
        let listed = state.newest().chain(position).iter();
        let mut held = listed.filter_map(|unit| state.unit(unit).cell(position));
        read && held.all(|entry| entry.value == value)
    })
}

fn one_entry(state: &State) -> bool {
    let read = || state.read.iter().flatten().map(|entry| entry.value);
    let records = read().filter(|&value| value != Value::Junk);
    records
        .clone()
        .all(|value| records.clone().filter(|&other| other == value).count() == 1)
}

fn end_above(model: &Milonga, state: &State) -> bool {
    let confirmed = model.guards.hold(Guard::EndConfirmed);
    terms(state).all(|term| {
        let sequencer = state.sequencers[usize::from(term)];
        let answers = sequencer.phase == Phase::Serving;
        let current = term == state.newest().term || !confirmed;
        !(answers && current)
            || acknowledged(state).all(|(position, _)| position < sequencer.counter)
    })
}

fn no_absence(model: &Milonga, state: &State) -> bool {
    let confirmed = model.guards.hold(Guard::AbsenceConfirmed);
    terms(state).all(|term| {
        let current = term == state.newest().term || !confirmed;
        !current
            || acknowledged(state).all(|(position, _)| {
                state.tail_answer(term, position, model.guards) != Reading::Unwritten
            })
    })
}

fn expected(model: &Milonga, state: &State) -> bool {
    let read = state.read.iter().zip(0..);
    let stream = read.filter_map(|(entry, position)| entry.map(|entry| (position, entry)));
    let stream = stream.filter(|&(_, entry)| in_stream(&model.scope, entry));
    let mut before = Bits::EMPTY;
    for (position, entry) in stream {
        if !entry.expect.is_none_or(|expect| expect.covers(before)) {
            return false;
        }
        before = before.with(position);
    }
    true
}

fn agreement(state: &State) -> bool {
    (0..state.read.len() as Position).all(|position| {
        let listed = state.newest().chain(position).iter();
        let mut held = listed.filter_map(|unit| state.unit(unit).cell(position));
        let first = held.next();
        held.all(|entry| Some(entry) == first)
    })
}

fn held(state: &State) -> bool {
    acknowledged(state).all(|(position, value)| {
        let mut listed = state.newest().chain(position).iter();
        listed.any(|unit| {
            let unit = state.unit(unit);
            let trimmed = position < unit.trim;
            trimmed
                || unit
                    .cell(position)
                    .is_some_and(|entry| entry.value == value)
        })
    })
}
