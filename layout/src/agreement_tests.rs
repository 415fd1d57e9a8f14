//! Agreement, in any network that loses, repeats and reorders, and with acceptors that crash at any point.

use std::collections::{BTreeMap, BTreeSet};

use milonga_wire::Acceptance;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::tests::{CLUSTER, acceptor, decided, does, identity, layout};
use super::*;

/// One thing that happens. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Event {
    /// A proposer begins a new attempt above every rank it has seen.
    Begin { proposer: usize },
    /// A message in flight arrives, and stays in flight if it is `again` to.
    Deliver { message: usize, again: bool },
    /// A message in flight is lost.
    Lose { message: usize },
    /// An acceptor restarts with what is durable.
    Crash { acceptor: usize },
    /// A message arrives, and its acceptor crashes: before its change was durable, or after, and before the answer.
    CrashOn { message: usize, durable: bool },
}

#[derive(Clone, Debug)]
enum Message {
    Prepare(usize, u8, Rank),
    Promised(usize, u8, Promise),
    Propose(usize, u8, Rank, Box<Layout>),
    Accepted(usize, u8, Rank),
}

#[derive(Debug, Default)]
struct Proposer {
    seen: u64,
    attempt: Option<Attempt>,
}

#[derive(Debug)]
struct Attempt {
    rank: Rank,
    promises: BTreeMap<u8, Promise>,
    proposed: Option<Layout>,
    accepted: BTreeSet<u8>,
}

/// What survives a crash of an acceptor.
#[derive(Clone, Debug, Default)]
struct Durable {
    decided: Vec<Decided>,
    vote: Option<Vote>,
}

struct World {
    durable: BTreeMap<u8, Durable>,
    acceptors: BTreeMap<u8, Acceptor>,
    proposers: Vec<Proposer>,
    messages: Vec<Message>,
    chosen: Vec<Decided>,
    /// Whether proposers follow the rule that Paxos rests on.
    adopts: bool,
}

impl World {
    fn new(adopts: bool) -> Self {
        let durable = Durable {
            decided: vec![decided(layout(0, "-"))],
            vote: None,
        };
        Self {
            durable: (1..=3).map(|number| (number, durable.clone())).collect(),
            acceptors: (1..=3)
                .map(|number| (number, acceptor(number, 1)))
                .collect(),
            proposers: (0..3).map(|_| Proposer::default()).collect(),
            messages: vec![],
            chosen: vec![],
            adopts,
        }
    }

    fn happen(&mut self, events: &[Event]) {
        for event in events {
            self.happens(event);
        }
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Begin { proposer } => self.begin(proposer % self.proposers.len()),
            Event::Crash { acceptor } => self.restart(1 + (acceptor % 3) as u8),
            Event::Deliver { message, again } => {
                if let Some(message) = self.take(*message) {
                    if *again {
                        self.messages.push(message.clone());
                    }
                    self.deliver(message, None);
                }
            }
            Event::Lose { message } => drop(self.take(*message)),
            Event::CrashOn { message, durable } => {
                if let Some(message) = self.take(*message) {
                    self.deliver(message, Some(*durable));
                }
            }
        }
    }

    fn take(&mut self, number: usize) -> Option<Message> {
        let index = number.checked_rem(self.messages.len())?;
        Some(self.messages.swap_remove(index))
    }

    fn begin(&mut self, index: usize) {
        let proposer = &mut self.proposers[index];
        let rank = Rank {
            number: proposer.seen + 1,
            proposer: [index as u8; 16],
        };
        proposer.seen += 1;
        proposer.attempt = Some(Attempt {
            rank,
            promises: BTreeMap::new(),
            proposed: None,
            accepted: BTreeSet::new(),
        });
        self.messages
            .extend((1..=3).map(|number| Message::Prepare(index, number, rank)));
    }

    fn restart(&mut self, number: u8) {
        let Durable { decided, vote } = self.durable[&number].clone();
        let recovered = Acceptor::recover(CLUSTER, identity(number), decided, vote).unwrap();
        self.acceptors.insert(number, recovered);
    }

    /// What an acceptor answers, with the crash in between; none if nobody hears of it.
    fn acts(
        &mut self,
        number: u8,
        crash: Option<bool>,
        step: Result<Step, Refusal>,
    ) -> Option<Result<LayoutReply, Refusal>> {
        if crash == Some(false) {
            self.restart(number);
            return None;
        }
        let answer = step.map(|step| {
            if let Some(change) = step.durable {
                let durable = self.durable.get_mut(&number).unwrap();
                match &change {
                    Change::Vote(vote) => durable.vote = Some(vote.clone()),
                    Change::Decided(decided) => durable.decided.push(Decided::clone(decided)),
                }
                self.acceptors.get_mut(&number).unwrap().apply(change);
            }
            step.reply
        });
        if crash == Some(true) {
            self.restart(number);
            return None;
        }
        Some(answer)
    }

    fn deliver(&mut self, message: Message, crash: Option<bool>) {
        match message {
            Message::Prepare(to, number, rank) => {
                let step = self.acceptors[&number].prepare(Term(1), rank);
                match self.acts(number, crash, step) {
                    Some(Ok(LayoutReply::Promised(promise))) => {
                        self.messages.push(Message::Promised(to, number, promise));
                    }
                    Some(Err(Refusal::Outranked { promised })) => {
                        let seen = &mut self.proposers[to].seen;
                        *seen = promised.number.max(*seen);
                    }
                    Some(_) | None => {}
                }
            }
            Message::Propose(to, number, rank, layout) => {
                let step = self.acceptors[&number].propose(Term(1), rank, *layout);
                if let Some(Ok(LayoutReply::Accepted { rank })) = self.acts(number, crash, step) {
                    self.messages.push(Message::Accepted(to, number, rank));
                }
            }
            Message::Promised(to, number, promise) => self.promised(to, number, promise),
            Message::Accepted(to, number, rank) => self.accepted(to, number, rank),
        }
    }

    fn promised(&mut self, index: usize, number: u8, promise: Promise) {
        let adopts = self.adopts;
        let Some(attempt) = &mut self.proposers[index].attempt else {
            return;
        };
        if promise.rank != attempt.rank || attempt.proposed.is_some() {
            return;
        }
        attempt.promises.insert(number, promise);
        if attempt.promises.len() < 2 {
            return;
        }
        let highest = attempt
            .promises
            .values()
            .filter_map(|promise| promise.accepted.clone())
            .max_by_key(|(rank, _)| *rank);
        let own = layout(1, &format!("{index} at {}", attempt.rank.number));
        let proposed = match highest {
            Some((_, layout)) if adopts => *layout,
            Some(_) | None => own,
        };
        attempt.proposed = Some(proposed.clone());
        let rank = attempt.rank;
        let message = |number| Message::Propose(index, number, rank, Box::new(proposed.clone()));
        self.messages.extend((1..=3).map(message));
    }

    fn accepted(&mut self, index: usize, number: u8, rank: Rank) {
        let Some(attempt) = &mut self.proposers[index].attempt else {
            return;
        };
        let Some(proposed) = attempt.proposed.clone() else {
            return;
        };
        if rank != attempt.rank {
            return;
        }
        attempt.accepted.insert(number);
        if attempt.accepted.len() < 2 {
            return;
        }
        let acceptances = attempt.accepted.iter().map(|number| Acceptance {
            server: identity(*number),
            rank,
        });
        self.chosen.push(Decided {
            layout: proposed,
            acceptances: acceptances.collect(),
        });
    }

    /// Whether all that was chosen is one layout, and is learnt by all.
    fn agrees(&mut self) -> bool {
        let chosen = self.chosen.clone();
        chosen.iter().all(|decision| {
            self.acceptors.values_mut().all(|acceptor| {
                let step = acceptor.learn(decision.clone());
                does(acceptor, step).is_ok()
            })
        })
    }
}

fn event() -> impl Strategy<Value = Event> {
    let message = any::<u16>().prop_map(usize::from);
    prop_oneof![
        2 => (0_usize..3).prop_map(|proposer| Event::Begin { proposer }),
        12 => (message.clone(), prop::bool::weighted(0.2)).prop_map(|(message, again)| Event::Deliver { message, again }),
        1 => message.clone().prop_map(|message| Event::Lose { message }),
        1 => (0_usize..3).prop_map(|acceptor| Event::Crash { acceptor }),
        1 => (message, any::<bool>()).prop_map(|(message, durable)| Event::CrashOn { message, durable }),
    ]
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(event(), 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// A1, A2; Paxos Made Simple, "The Problem": only a single value is chosen.
    #[test]
    fn all_proposers_decide_the_same_layout(events in events()) {
        let mut world = World::new(true);
        world.happen(&events);
        prop_assert!(world.agrees(), "{:?}", world.chosen);
    }
}

/// H21: the property above has teeth. Proposers that ignore what was accepted are caught by it.
#[test]
fn proposers_that_ignore_the_accepted_layout_are_caught() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut caught = false;
    for _ in 0..1_000 {
        let events = events().new_tree(&mut runner).unwrap().current();
        let mut world = World::new(false);
        world.happen(&events);
        caught |= !world.agrees();
    }
    assert!(caught);
}

/// The property is not kept by deciding nothing.
#[test]
fn most_runs_decide() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut decided = 0;
    for _ in 0..200 {
        let events = events().new_tree(&mut runner).unwrap().current();
        let mut world = World::new(true);
        world.happen(&events);
        decided += usize::from(!world.chosen.is_empty());
    }
    assert!(decided > 50, "{decided} of 200");
}
