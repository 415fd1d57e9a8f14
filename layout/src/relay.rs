//! Relays: what control clients ask of a server through this one, because they do not reach it themselves.
//!
//! - B1 Only what [`milonga_wire::Relayed`] can say is passed on, for who may ask it without a relay: `admit` has checked that.
//! - B2 Nobody is called whom the newest decided layout does not list, by that name, identity, address and kind (as E3),
//!   and nothing of a term but that layout's own and the next.
//! - B3 The server gets what was asked, in the term and for the process start that were asked, and what it says is passed
//!   back as it is. Whether it is right is its own to decide: a relay is no more than a longer way.
//! - B4 Relays under way are bounded, and each ends before its client stops waiting. None touches the acceptor.
//!
//! An answer that is lost says nothing: the server may have been asked, or may be yet. Everything that is passed on can be
//! repeated, over another layout server as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{Counter as Count, counter};
use milonga_host::{Host, Network, Peer, Responder, WeakTasks, net};
use milonga_wire::{
    Brought, ClusterId, Decided, LayoutReply, Payload, Refusal, Relayed, Reply, Request,
    RequestHead, Server, ServerName, Target, Term,
};

use crate::opinion::listed;

/// Relays under way at a time: a client has a few.
const RELAYS_MAX: usize = 64;
/// How long an answer is waited for: shorter than by clients, who want to hear that there is none.
const WITHIN: Duration = Duration::from_secs(2);

/// A relay that may be made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Errand {
    to: Server,
    term: Term,
    request: Relayed,
}

impl Errand {
    /// The relay of `request` in `term` to `to`, if `newest` allows it (B2).
    ///
    /// # Errors
    /// [`Refusal::Behind`] or [`Refusal::Decided`]: one side has an older layout, or one that was not decided.
    pub(crate) fn find(
        newest: Option<&Decided>,
        term: Term,
        to: Server,
        request: Relayed,
    ) -> Result<Self, Refusal> {
        let newest = newest.ok_or(Refusal::Behind { newest: None })?;
        let known = newest.layout.term;
        let is_listed = listed(&newest.layout, &to, request.kind()).is_some();
        // An unlisted server of the newest term belongs to another layout of that term, which was not decided.
        if term < known || term == known && !is_listed {
            let newest = Box::new(newest.clone());
            return Err(Refusal::Decided { newest });
        }
        if term > known.next() || !is_listed {
            let newest = Some(known);
            return Err(Refusal::Behind { newest });
        }
        Ok(Self { to, term, request })
    }

    /// How the server is called.
    fn peer(&self) -> Peer {
        Peer {
            name: Some(self.to.name.clone()),
            address: self.to.address.clone(),
            kind: self.request.kind().into(),
        }
    }

    /// What it is asked (B3).
    fn request(self, cluster: ClusterId) -> net::Request {
        let to = Target {
            identity: self.to.identity,
            incarnation: self.to.incarnation,
        };
        let request = Request::from(self.request);
        let head = RequestHead {
            id: 0,
            cluster,
            to: (request != Request::Describe).then_some(to),
            term: self.term,
            request,
        };
        let payload = Payload::new();
        net::Request { head, payload }
    }
}

/// Makes relays.
pub(crate) struct Relays {
    cluster: ClusterId,
    net: Arc<dyn Network>,
    /// Not [`milonga_host::Tasks`]: whoever holds the server would keep the node's tasks alive.
    tasks: WeakTasks,
    under_way: Arc<AtomicUsize>,
    metrics: Metrics,
}

/// One of those under way, until it is dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Relays {
    pub(crate) fn new(host: &Host, cluster: ClusterId, name: &ServerName) -> Self {
        Self {
            cluster,
            net: Arc::clone(&host.net),
            tasks: host.tasks.downgrade(),
            under_way: Arc::default(),
            metrics: Metrics::new(name),
        }
    }

    /// Asks the server, and tells `respond` what it said. Must be called inside a runtime.
    pub(crate) fn make(&self, errand: Errand, respond: Responder) {
        let under_way = self.under_way.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(&self.under_way));
        if under_way >= RELAYS_MAX {
            self.refused();
            let what = "relays".to_owned();
            return respond.send(Err(Refusal::Busy { what }));
        }
        let (net, metrics) = (Arc::clone(&self.net), self.metrics.clone());
        let peer = errand.peer();
        let request = errand.request(self.cluster);
        self.tasks.spawn(async move {
            let _place = place;
            let (of, verb) = (peer.to_string(), request.head.request.verb());
            let brought = match net.call(&peer, request, WITHIN).await {
                Ok(response) => Brought::from(response.reply),
                Err(error) => Brought::silent(error.to_string()),
            };
            metrics.brought(&brought);
            tracing::info!(%of, verb, "asked for a client that does not reach it");
            let reply = LayoutReply::Relayed(Box::new(brought));
            respond.send(Ok(Reply::Layout(reply)));
        });
    }

    /// Counts a request that is not served.
    pub(crate) fn refused(&self) {
        self.metrics.refused.increment(1);
    }
}

/// Handles kept.
#[derive(Clone)]
struct Metrics {
    answered: Count,
    silent: Count,
    refused: Count,
}

impl Metrics {
    fn new(name: &ServerName) -> Self {
        let server = name.to_string();
        metrics::describe_counter!(
            "milonga_layout_relays_total",
            "Relays that were asked for, by whether the server answered; refused: not made."
        );
        let relays = |outcome: &'static str| counter!("milonga_layout_relays_total", "server" => server.clone(), "outcome" => outcome);
        Self {
            answered: relays("answered"),
            silent: relays("silent"),
            refused: relays("refused"),
        }
    }

    fn brought(&self, brought: &Brought) {
        match brought {
            Brought::Silent { .. } => self.silent.increment(1),
            Brought::Described(_)
            | Brought::Unit(_)
            | Brought::Sequencer(_)
            | Brought::Refused(_) => self.answered.increment(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use milonga_wire::{Incarnation, Kind, Position};

    use super::*;
    use crate::acceptor::tests::layout;

    /// B2: a layout server is not there to send seals to whomever somebody names, nor of any term.
    #[test]
    fn only_who_is_listed_is_asked_and_only_in_this_term_and_the_next() {
        let newest = Decided {
            layout: layout(3, "a"),
            acceptances: vec![],
        };
        let find = |term, to: &Server, request| {
            Errand::find(Some(&newest), Term(term), to.clone(), request)
        };
        let (unit, sequencer) = (&newest.layout.units[0], &newest.layout.sequencer);
        for term in [3, 4] {
            find(term, unit, Relayed::SealUnit).unwrap();
            find(term, sequencer, Relayed::SealSequencer).unwrap();
        }
        for request in [Relayed::SealUnit, Relayed::Describe(Kind::LogUnit)] {
            let decided = Box::new(newest.clone());
            assert_eq!(
                find(2, unit, request.clone()),
                Err(Refusal::Decided { newest: decided })
            );
            let newest = Some(Term(3));
            assert_eq!(find(5, unit, request), Err(Refusal::Behind { newest }));
        }

        // Another layout of this term may have been proposed, which lists it; it was not decided.
        let decided = |found| matches!(found, Err(Refusal::Decided { .. }));
        assert!(decided(find(3, unit, Relayed::SealSequencer)));
        assert!(decided(find(3, sequencer, Relayed::SealUnit)));
        let voter = &newest.layout.layout_servers[0];
        assert!(decided(find(3, voter, Relayed::Describe(Kind::Layout))));
        for other in [
            Server {
                name: "other".parse().unwrap(),
                ..unit.clone()
            },
            Server {
                address: "elsewhere:53".parse().unwrap(),
                ..unit.clone()
            },
            Server {
                identity: milonga_wire::Identity([0x77; 16]),
                ..unit.clone()
            },
        ] {
            assert!(decided(find(3, &other, Relayed::SealUnit)));
            // The next layout, which this server has not learnt, may list it.
            let newest = Some(Term(3));
            assert_eq!(
                find(4, &other, Relayed::SealUnit),
                Err(Refusal::Behind { newest })
            );
        }
        assert_eq!(
            Errand::find(None, Term(3), unit.clone(), Relayed::SealUnit),
            Err(Refusal::Behind { newest: None })
        );
    }

    /// B3, H17: an announcement that was meant for the process before must not reach the one that took its place as if it
    /// were meant for that one; so it is the client that says which process start, not the layout.
    #[test]
    fn the_server_gets_the_term_and_the_process_start_that_were_asked() {
        let newest = Decided {
            layout: layout(3, "a"),
            acceptances: vec![],
        };
        let unit = Server {
            incarnation: Incarnation(99),
            ..newest.layout.units[0].clone()
        };
        let start = Position(7);
        let announce = Relayed::Announce { start };
        let errand = Errand::find(Some(&newest), Term(4), unit.clone(), announce.clone()).unwrap();
        assert_eq!(errand.peer().kind, Kind::LogUnit.into());
        let asked = errand.request(ClusterId([9; 16]));

        assert_eq!(asked.head.term, Term(4));
        assert_eq!(asked.head.cluster, ClusterId([9; 16]));
        let to = asked.head.to.unwrap();
        assert_eq!(
            (to.identity, to.incarnation),
            (unit.identity, unit.incarnation)
        );
        assert_eq!(asked.head.request, Request::from(announce));
        let describe = Relayed::Describe(Kind::LogUnit);
        let errand = Errand::find(Some(&newest), Term(4), unit, describe).unwrap();
        assert_eq!(errand.request(ClusterId([9; 16])).head.to, None);
    }
}
