//! The way to a server that a change of layout needs: straight, or through a layout server that reaches it.
//!
//! A server that does not answer this client but most of the layout servers is well (H29): it stays, and no term begins for
//! it. But if another one really fails and nobody else is there to act, this client must be able to. What seals a term and
//! puts it to work goes to the far server through a layout server then, and counts like what was asked directly.
//!
//! A relay whose answer is lost may have done its work, and may do it later. Another layout server is asked the same: all of
//! it can be repeated ([`Relayed`]).

use std::collections::BTreeMap;
use std::time::Duration;

use milonga_host::CallError;
use milonga_wire::{
    Brought, Decided, Description, Identity, Kind, Layout, LayoutReply, LayoutRequest, Payload,
    Refusal, Relayed, Reply, Request, SequencerReply, SequencerRequest, Server, Term, UnitReply,
    UnitRequest,
};

use crate::calls::{Failure, peer, unexpected};
use crate::log::Log;
use crate::reconfigure::drive::teach;

/// How long a relay is waited for, at least: longer than by the layout server that makes it.
const WAIT: Duration = Duration::from_secs(3);
/// Relays that one client has under way at a time: few of those that one layout server makes.
pub(crate) const RELAYS_MAX: usize = 16;

/// Servers that do not answer this client, each with the layout servers that said they reach it.
#[derive(Clone, Debug, Default)]
pub(super) struct Far(BTreeMap<Identity, Vec<Identity>>);

impl Far {
    /// One server, reached by `through`.
    pub(super) fn one(server: Identity, through: Vec<Identity>) -> Self {
        Self(BTreeMap::from([(server, through)]))
    }

    /// Adds those of `others`.
    pub(super) fn add(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    pub(super) fn contains(&self, server: &Server) -> bool {
        self.0.contains_key(&server.identity)
    }

    /// The layout servers of `layout` in the order in which they are asked for `server`: those that reach it come first. None
    /// if it is asked directly.
    fn through<'a>(&self, layout: &'a Layout, server: &Server) -> Option<Vec<&'a Server>> {
        let reach = self.0.get(&server.identity)?;
        let mut through: Vec<&Server> = layout.layout_servers.iter().collect();
        through.sort_by_key(|one| !reach.contains(&one.identity));
        Some(through)
    }
}

/// The ways from this client to the servers of a layout.
#[derive(Copy, Clone)]
pub(super) struct Reach<'a> {
    log: &'a Log,
    /// Whose layout servers are asked for relays: the newest layout known.
    decided: &'a Decided,
    far: &'a Far,
}

impl<'a> Reach<'a> {
    pub(super) fn new(log: &'a Log, decided: &'a Decided, far: &'a Far) -> Self {
        Self { log, decided, far }
    }

    /// Whether `server` is asked through others.
    pub(super) fn is_far(&self, server: &Server) -> bool {
        self.far.contains(server)
    }

    /// Asks a server who it is, for a change to `term`.
    pub(super) async fn describe(
        &self,
        server: &Server,
        kind: Kind,
        term: Term,
    ) -> Result<Description, Failure> {
        if !self.is_far(server) {
            return self.log.shared.calls.describe(&peer(server, kind)).await;
        }
        match self.relay(server, kind, term, Request::Describe).await? {
            Reply::Described(said) => Ok(*said),
            Reply::Unit(_) | Reply::Sequencer(_) | Reply::Layout(_) => {
                Err(unexpected(server.name.as_str()))
            }
        }
    }

    /// Asks a log unit.
    pub(super) async fn unit(
        &self,
        server: &Server,
        term: Term,
        request: UnitRequest,
    ) -> Result<UnitReply, Failure> {
        if !self.is_far(server) {
            let calls = &self.log.shared.calls;
            let answer = calls.unit(server, term, request, Payload::new()).await?;
            return Ok(answer.0);
        }
        let request = Request::Unit(request);
        match self.relay(server, Kind::LogUnit, term, request).await? {
            Reply::Unit(reply) => Ok(reply),
            Reply::Described(_) | Reply::Sequencer(_) | Reply::Layout(_) => {
                Err(unexpected(server.name.as_str()))
            }
        }
    }

    /// Asks a sequencer.
    pub(super) async fn sequencer(
        &self,
        server: &Server,
        term: Term,
        request: SequencerRequest,
    ) -> Result<SequencerReply, Failure> {
        if !self.is_far(server) {
            return self.log.shared.calls.sequencer(server, term, request).await;
        }
        let request = Request::Sequencer(request);
        match self.relay(server, Kind::Sequencer, term, request).await? {
            Reply::Sequencer(reply) => Ok(reply),
            Reply::Described(_) | Reply::Unit(_) | Reply::Layout(_) => {
                Err(unexpected(server.name.as_str()))
            }
        }
    }

    /// Has one layout server after the other ask `server`, until one brings what it said.
    async fn relay(
        &self,
        server: &Server,
        kind: Kind,
        term: Term,
        request: Request,
    ) -> Result<Reply, Failure> {
        let name = peer(server, kind).to_string();
        let mut why = vec![];
        let relayed = Relayed::of(kind, request);
        let through = self.far.through(&self.decided.layout, server);
        if let (Some(relayed), Some(through)) = (relayed, through) {
            for one in through {
                match self.ask(one, server, term, &relayed).await {
                    Ok(Brought::Described(said)) => return Ok(Reply::Described(said)),
                    Ok(Brought::Unit(reply)) => return Ok(Reply::Unit(reply)),
                    Ok(Brought::Sequencer(reply)) => return Ok(Reply::Sequencer(reply)),
                    Ok(Brought::Refused(refusal)) => {
                        return Err(Failure::Refused {
                            server: name,
                            refusal,
                        });
                    }
                    Ok(Brought::Silent { why: silent }) => {
                        why.push(format!("{}: {silent}", one.name));
                    }
                    Err(failure) => {
                        // A later layout is decided: no way to that server is of use in this term.
                        if let Some(Refusal::Decided { newest }) = failure.refusal() {
                            self.log.shared.layouts.offer(newest);
                            return Err(failure);
                        }
                        why.push(failure.to_string());
                    }
                }
            }
        } else {
            why.push("nobody asks that for others".to_owned());
        }
        Err(Failure::Call(CallError::Lost {
            peer: name,
            why: why.join("; "),
        }))
    }

    /// Has the layout server `through` ask `server`.
    async fn ask(
        &self,
        through: &Server,
        server: &Server,
        term: Term,
        relayed: &Relayed,
    ) -> Result<Brought, Failure> {
        let shared = &self.log.shared;
        let _place = shared.relays.acquire().await.expect("it is never closed");
        let request = LayoutRequest::Relay {
            to: Box::new(server.clone()),
            request: relayed.clone(),
        };
        let calls = shared.calls.patient(WAIT);
        let answer = match calls.layout(through, term, request.clone()).await {
            Err(Failure::Refused {
                refusal: Refusal::Behind { newest },
                ..
            }) => {
                teach(self.log, through, newest, self.decided).await;
                calls.layout(through, term, request).await?
            }
            answer => answer?,
        };
        match answer {
            LayoutReply::Relayed(brought) => Ok(*brought),
            _ => Err(unexpected(through.name.as_str())),
        }
    }
}
