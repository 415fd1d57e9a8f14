//! Opinions on suspects: who may be probed, who shares a probe, and what its answer says.
//!
//! Pure; `probe.rs` calls the suspects.
//!
//! ```text
//! asked ─▶ probe ────────────▶ answered
//! asked ────▶ probe ────────────▶ answered
//! asked ──────▶ probe ────────────▶ answered     no more at a time:
//! asked ────────┬────────▶ probe ────────────▶   the next begins when one ends,
//! asked ────────┘                                and serves all who came meanwhile
//! ```
//!
//! - E1 An opinion comes from a probe that began after the request for it arrived.
//! - E2 A suspect is probed a few times at once at most, for all who waited when a probe began.
//! - E3 Nobody is probed whom the newest decided layout does not list, by that name, identity and address.
//! - E4 Suspects and those who wait are bounded.
//!
//! A restarted server that answers is alive, whatever process start the layout lists; so is a unit whose disk is full,
//! which reads, seals and trims as before, and whose chain would not get any room by losing it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use milonga_host::{CallError, Peer, net};
use milonga_wire::{
    Address, Decided, Identity, Incarnation, Kind, Layout, Refusal, Reply, Request, SequencerReply,
    SequencerRequest, Server, ServerName, Target, Term, UnitReply, UnitRequest,
};

/// Suspects under probe at a time: a layout server need not have an opinion on half a data centre at once.
const SUSPECTS_MAX: usize = 256;
/// Probes of one suspect at a time.
const PROBES_MAX: usize = 3;
/// How many times longer a durable write may take than a sign of life.
const SLOWER: u32 = 4;
/// Requests for opinions that may wait at a time.
const WAITING_MAX: usize = 4_096;

/// A server on which opinions are asked for, as the newest decided layout lists it.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct Suspect {
    name: ServerName,
    address: Address,
    identity: Identity,
    incarnation: Incarnation,
    kind: Kind,
}

impl Suspect {
    /// The suspect that somebody in `term` asks about, if `newest` lists it (E3).
    ///
    /// # Errors
    /// [`Refusal::Behind`] or [`Refusal::Decided`] if one side has an older layout, which explains it; else
    /// [`Refusal::Malformed`].
    pub(crate) fn find(
        newest: Option<&Decided>,
        term: Term,
        of: &Server,
        kind: Kind,
    ) -> Result<Self, Refusal> {
        let newest = newest.ok_or(Refusal::Behind { newest: None })?;
        let layout = &newest.layout;
        if let Some(listed) = listed(layout, of, kind) {
            return Ok(Self {
                name: listed.name.clone(),
                address: listed.address.clone(),
                identity: listed.identity,
                incarnation: listed.incarnation,
                kind,
            });
        }
        Err(match layout.term.cmp(&term) {
            Ordering::Less => Refusal::Behind {
                newest: Some(layout.term),
            },
            Ordering::Greater => Refusal::Decided {
                newest: Box::new(newest.clone()),
            },
            Ordering::Equal => {
                let (name, address) = (&of.name, &of.address);
                Refusal::malformed(format!(
                    "the layout of term {term} lists no such log unit or sequencer as {name} at {address}, {}; \
                     nobody else is called",
                    of.identity
                ))
            }
        })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &ServerName {
        &self.name
    }

    /// How it is called.
    pub(crate) fn peer(&self) -> Peer {
        Peer {
            name: Some(self.name.clone()),
            address: self.address.clone(),
            kind: self.kind.into(),
        }
    }

    /// Whom a probe means.
    pub(crate) fn target(&self) -> Target {
        Target {
            identity: self.identity,
            incarnation: self.incarnation,
        }
    }

    /// The probe: what it is asked, one after the other, and how much longer than for a sign of life each is waited for.
    /// A unit is probed with a durable write at the end, since there are disks that answer everything but that; but one that
    /// is there and busy is not taken for dead.
    pub(crate) fn probe(&self) -> Vec<(Request, u32)> {
        match self.kind {
            Kind::LogUnit => vec![
                (Request::Describe, 1),
                (Request::Unit(UnitRequest::Probe), SLOWER),
            ],
            Kind::Sequencer => vec![(Request::Sequencer(SequencerRequest::Probe), 1)],
            Kind::Layout => unreachable!("E3: no layout server is a suspect"),
        }
    }

    /// What is wrong with it, if this is what came of a probe.
    pub(crate) fn trouble(&self, answer: Result<net::Response, CallError>) -> Option<String> {
        let reply = match answer {
            Ok(response) => response.reply,
            Err(error) => return Some(error.to_string()),
        };
        match (self.kind, reply) {
            (Kind::LogUnit, Ok(Reply::Described(said))) if said.identity != self.identity => {
                Some(format!("{} runs on another directory", self.name))
            }
            (Kind::LogUnit, Ok(Reply::Described(_) | Reply::Unit(UnitReply::Probed)))
            | (Kind::Sequencer, Ok(Reply::Sequencer(SequencerReply::Probed { .. }))) => None,
            (_, Ok(_)) => Some(format!(
                "{} answers another request than it was sent",
                self.name
            )),
            (kind, Err(refusal)) if is_alive(kind, &refusal) => None,
            (_, Err(refusal)) => Some(format!("{} refuses a probe: {refusal}", self.name)),
        }
    }
}

/// The server that is meant by `of`, if `layout` lists it as a `kind` (E3, B2).
pub(crate) fn listed<'a>(layout: &'a Layout, of: &Server, kind: Kind) -> Option<&'a Server> {
    let same = |listed: &&Server| {
        (&listed.name, &listed.address, listed.identity) == (&of.name, &of.address, of.identity)
    };
    servers(layout, kind).find(same)
}

/// Who of `layout` may be called, being listed as a `kind`.
fn servers(layout: &Layout, kind: Kind) -> Box<dyn Iterator<Item = &Server> + '_> {
    match kind {
        Kind::LogUnit => Box::new(layout.units.iter().chain(&layout.spares)),
        Kind::Sequencer => Box::new(std::iter::once(&layout.sequencer).chain(&layout.standbys)),
        Kind::Layout => Box::new(std::iter::empty()),
    }
}

/// Whether that refusal shows the suspect to be well.
fn is_alive(kind: Kind, refusal: &Refusal) -> bool {
    let another = matches!(
        refusal,
        Refusal::WrongCluster { .. } | Refusal::WrongServer { .. } | Refusal::WrongKind { .. }
    );
    match kind {
        Kind::LogUnit => matches!(refusal, Refusal::DiskFull),
        // One that leaves is no use, all else was said by a sequencer that is there.
        Kind::Sequencer => !another && !matches!(refusal, Refusal::Draining),
        Kind::Layout => false,
    }
}

/// What became of a request for an opinion.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Joined<W> {
    /// A round of probes must be started, which asks [`Rounds::begin`] for whom.
    Begin,
    /// It waits for the next round.
    Waits,
    /// There are too many already (E4).
    Refused(W),
}

/// Who waits for which probe. `W` is whatever is needed to answer.
#[derive(Debug)]
pub(crate) struct Rounds<W> {
    suspects: BTreeMap<Suspect, Round<W>>,
    /// For whom the probes under way are, by their numbers.
    probing: BTreeMap<u64, Vec<W>>,
    /// Probes begun.
    begun: u64,
    /// All who wait for a probe to begin or to end.
    count: usize,
    suspects_max: usize,
    waiting_max: usize,
}

#[derive(Debug)]
struct Round<W> {
    waiting: Vec<W>,
    /// Probes under way, and to be started.
    probes: usize,
}

impl<W> Default for Rounds<W> {
    fn default() -> Self {
        Self::new(SUSPECTS_MAX, WAITING_MAX)
    }
}

impl<W> Rounds<W> {
    fn new(suspects_max: usize, waiting_max: usize) -> Self {
        Self {
            suspects: BTreeMap::new(),
            probing: BTreeMap::new(),
            begun: 0,
            count: 0,
            suspects_max,
            waiting_max,
        }
    }

    /// `waiter` asks about `suspect`, and is served by a probe that begins from now on (E1).
    pub(crate) fn join(&mut self, suspect: &Suspect, waiter: W) -> Joined<W> {
        let is_new = !self.suspects.contains_key(suspect);
        if self.count >= self.waiting_max || is_new && self.suspects.len() >= self.suspects_max {
            return Joined::Refused(waiter);
        }
        let round = self.suspects.entry(suspect.clone()).or_insert(Round {
            waiting: vec![],
            probes: 0,
        });
        round.waiting.push(waiter);
        self.count += 1;
        if round.probes >= PROBES_MAX {
            return Joined::Waits;
        }
        round.probes += 1;
        Joined::Begin
    }

    /// A probe begins, for all who wait (E2): its number. None: nobody does any more, and whoever comes next begins again.
    pub(crate) fn begin(&mut self, suspect: &Suspect) -> Option<u64> {
        let round = self.suspects.get_mut(suspect)?;
        let served = std::mem::take(&mut round.waiting);
        if !served.is_empty() {
            self.begun += 1;
            self.probing.insert(self.begun, served);
            return Some(self.begun);
        }
        round.probes -= 1;
        if round.probes == 0 {
            self.suspects.remove(suspect);
        }
        None
    }

    /// A probe is over: for whom it was.
    pub(crate) fn end(&mut self, probe: u64) -> Vec<W> {
        let served = self.probing.remove(&probe).unwrap_or_default();
        self.count -= served.len();
        served
    }

    /// Takes out all who wait, whatever about.
    pub(crate) fn take(&mut self) -> Vec<W> {
        self.count = 0;
        let probing = std::mem::take(&mut self.probing);
        let waiting = self.suspects.values_mut();
        let waiting = waiting.flat_map(|round| round.waiting.drain(..));
        probing.into_values().flatten().chain(waiting).collect()
    }
}

#[cfg(test)]
mod tests {
    use milonga_wire::{ClusterId, Payload};

    use super::*;
    use crate::acceptor::tests::layout;

    fn suspect(number: u8) -> Suspect {
        Suspect {
            name: format!("u-{number}").parse().unwrap(),
            address: "host:1".parse().unwrap(),
            identity: Identity([number; 16]),
            incarnation: Incarnation(1),
            kind: Kind::LogUnit,
        }
    }

    /// E1, E2, H29 (the mistake of H43): a probe that was under way when somebody asked says nothing to them.
    #[test]
    fn a_probe_serves_only_those_who_asked_before_it_began() {
        let mut rounds = Rounds::default();
        let one = suspect(1);
        let mut probes = vec![];
        for asker in ["a", "b", "c"] {
            assert_eq!(rounds.join(&one, asker), Joined::Begin);
            probes.push(rounds.begin(&one).unwrap());
        }
        assert_eq!(rounds.join(&one, "d"), Joined::Waits);
        assert_eq!(rounds.join(&suspect(2), "x"), Joined::Begin);
        assert_eq!(rounds.join(&one, "e"), Joined::Waits);

        assert_eq!(rounds.end(probes[1]), ["b"]);
        let next = rounds.begin(&one).unwrap();
        assert_eq!(rounds.end(next), ["d", "e"]);
        assert_eq!(rounds.begin(&one), None);
        assert_eq!(rounds.join(&one, "f"), Joined::Begin);
        let last = rounds.begin(&one).unwrap();
        assert_eq!(rounds.end(last), ["f"]);
        for _ in 0..3 {
            assert_eq!(rounds.begin(&one), None);
        }
        assert!(!rounds.suspects.contains_key(&one));
    }

    /// Two ask before either probe has begun: one probe serves both, and the other has nothing to do. Whoever waits for one
    /// under way may be told sooner.
    #[test]
    fn a_round_may_find_that_another_served_its_waiters() {
        let mut rounds = Rounds::default();
        let one = suspect(1);
        assert_eq!(rounds.join(&one, "a"), Joined::Begin);
        assert_eq!(rounds.join(&one, "b"), Joined::Begin);
        let probe = rounds.begin(&one).unwrap();
        assert_eq!(rounds.begin(&one), None);
        assert_eq!(rounds.join(&one, "c"), Joined::Begin);
        assert_eq!(rounds.take(), ["a", "b", "c"]);
        assert_eq!(rounds.end(probe), Vec::<&str>::new());
        assert_eq!(rounds.begin(&one), None);
        assert_eq!(rounds.begin(&one), None);
        assert!(rounds.suspects.is_empty() && rounds.probing.is_empty());
    }

    /// E4: what waits is memory, and room comes back with the answers.
    #[test]
    fn there_is_a_bound_to_suspects_and_to_those_who_wait() {
        let mut rounds = Rounds::new(2, 3);
        for number in [1, 2] {
            assert_eq!(rounds.join(&suspect(number), 0), Joined::Begin);
        }
        assert_eq!(rounds.join(&suspect(3), 7), Joined::Refused(7));
        assert_eq!(rounds.join(&suspect(1), 1), Joined::Begin);
        assert_eq!(rounds.join(&suspect(1), 8), Joined::Refused(8));

        let probe = rounds.begin(&suspect(1)).unwrap();
        assert_eq!(
            rounds.join(&suspect(2), 9),
            Joined::Refused(9),
            "0 and 1 still wait"
        );
        assert_eq!(rounds.end(probe), [0, 1]);
        assert_eq!(rounds.join(&suspect(1), 2), Joined::Begin);
        assert_eq!(rounds.join(&suspect(2), 3), Joined::Begin);
        assert_eq!(rounds.join(&suspect(2), 4), Joined::Refused(4));
        assert_eq!(rounds.take(), [2, 0, 3]);
        for _ in 0..3 {
            assert_eq!(rounds.begin(&suspect(1)), None);
            assert_eq!(rounds.begin(&suspect(2)), None);
        }
        assert_eq!((rounds.count, rounds.suspects.len()), (0, 0));
    }

    /// E3: a layout server is not there to send packets to whomever somebody names.
    #[test]
    fn only_who_is_listed_is_probed() {
        let newest = Decided {
            layout: layout(3, "a"),
            acceptances: vec![],
        };
        let find = |term, of: &Server, kind| Suspect::find(Some(&newest), Term(term), of, kind);
        let unit = newest.layout.units[0].clone();
        let later_start = Server {
            incarnation: Incarnation(99),
            ..unit.clone()
        };
        for term in [2, 3, 4] {
            let found = find(term, &later_start, Kind::LogUnit).unwrap();
            assert_eq!(
                found.target().incarnation,
                unit.incarnation,
                "as it is listed"
            );
        }
        find(3, &newest.layout.sequencer, Kind::Sequencer).unwrap();

        let malformed = |refused| matches!(refused, Err(Refusal::Malformed { .. }));
        assert!(malformed(find(3, &unit, Kind::Sequencer)));
        assert!(malformed(find(
            3,
            &newest.layout.layout_servers[0],
            Kind::Layout
        )));
        let others = [
            Server {
                name: "other".parse().unwrap(),
                ..unit.clone()
            },
            Server {
                address: "elsewhere:53".parse().unwrap(),
                ..unit.clone()
            },
            Server {
                identity: Identity([0x77; 16]),
                ..unit.clone()
            },
        ];
        for other in &others {
            assert!(malformed(find(3, other, Kind::LogUnit)));
            assert!(matches!(
                find(2, other, Kind::LogUnit),
                Err(Refusal::Decided { .. })
            ));
            assert_eq!(
                find(4, other, Kind::LogUnit),
                Err(Refusal::Behind {
                    newest: Some(Term(3))
                })
            );
        }
        assert_eq!(
            Suspect::find(None, Term(3), &unit, Kind::LogUnit),
            Err(Refusal::Behind { newest: None })
        );
    }

    fn told(kind: Kind, reply: Result<Reply, Refusal>) -> Option<String> {
        let suspect = Suspect { kind, ..suspect(1) };
        suspect.trouble(Ok(net::Response {
            reply,
            payload: Payload::new(),
        }))
    }

    /// H29: no server is left out for being restarted, full or new to its task; but a disk that failed is trouble, however
    /// quickly it says so.
    #[test]
    fn who_writes_or_is_merely_full_or_restarted_is_well() {
        let restarted = || Refusal::WrongIncarnation {
            asked: Incarnation(1),
            here: Incarnation(2),
        };
        let other = || Refusal::WrongServer {
            asked: Identity([1; 16]),
            here: Identity([2; 16]),
        };
        let why = || "no such luck".to_owned();
        let probed = Reply::Sequencer(SequencerReply::Probed { serving: false });
        for well in [Ok(Reply::Unit(UnitReply::Probed)), Err(Refusal::DiskFull)] {
            assert_eq!(told(Kind::LogUnit, well), None);
        }
        for well in [Ok(probed.clone()), Err(restarted())] {
            assert_eq!(told(Kind::Sequencer, well), None);
        }
        for ill in [
            Ok(probed),
            Err(Refusal::DiskFailed { why: why() }),
            Err(Refusal::Draining),
            Err(Refusal::Busy { what: why() }),
            Err(restarted()),
            Err(other()),
        ] {
            let trouble = told(Kind::LogUnit, ill).unwrap();
            assert!(trouble.contains("u-1"), "{trouble}");
        }
        for ill in [
            Ok(Reply::Unit(UnitReply::Probed)),
            Err(other()),
            Err(Refusal::Draining),
            Err(Refusal::WrongCluster {
                asked: ClusterId([1; 16]),
                here: ClusterId([2; 16]),
            }),
        ] {
            assert!(told(Kind::Sequencer, ill).is_some());
        }
        let silent = CallError::Deadline {
            peer: "u-1".to_owned(),
            waited: std::time::Duration::from_millis(500),
        };
        let trouble = suspect(1).trouble(Err(silent)).unwrap();
        assert!(trouble.contains("500 ms"), "{trouble}");
    }
}
