//! What the layout servers of the miniature ask of others: probes of their own, and what they pass on for clients.

use milonga_wire::{
    Brought, Caller, Kind, LayoutReply, Payload, Refusal, Relayed, Request, RequestHead, Role,
    SequencerRequest, Server, ServerName, Target, Term, UnitRequest,
};

use super::replies::wrong_kind;
use super::{CLUSTER, Fault, State};

impl State {
    /// A layout server's opinion: what becomes of a probe that it sends now, by the same rules and cuts as any request.
    pub(super) fn opinion(
        &mut self,
        by: ServerName,
        of: &Server,
        kind: Kind,
        term: Term,
    ) -> Result<LayoutReply, Refusal> {
        let request = match kind {
            Kind::LogUnit => Request::Unit(UnitRequest::Probe),
            Kind::Sequencer => Request::Sequencer(SequencerRequest::Probe),
            Kind::Layout => return Err(wrong_kind()),
        };
        if self.name(&of.address).as_ref() != Some(&of.name) {
            return Err(Refusal::malformed("no such server is listed"));
        }
        let (caller, head) = asked_by_layout_server(by, of, term, request);
        let answer = match self.arrive(&caller.name, &of.address, &head.request) {
            None => self.serve(&caller, &of.address, head, Payload::new()),
            Some(Fault::Refuse(refusal)) => Err(refusal),
            Some(_) => return Ok(LayoutReply::opinion(Some("no answer".to_owned()))),
        };
        let trouble = match answer {
            Ok(_) | Err(Refusal::DiskFull | Refusal::WrongIncarnation { .. }) => None,
            Err(refusal) => Some(refusal.to_string()),
        };
        Ok(LayoutReply::opinion(trouble))
    }

    /// What a layout server brings back of a relay, by the same rules and cuts.
    pub(super) fn relay(
        &mut self,
        by: ServerName,
        to: &Server,
        request: Relayed,
        term: Term,
    ) -> Result<LayoutReply, Refusal> {
        let newest = self.layout.servers[&by].newest();
        let newest = newest.ok_or(Refusal::Behind { newest: None })?;
        let (layout, kind) = (&newest.layout, request.kind());
        let units = layout.units.iter().chain(&layout.spares);
        let sequencers = std::iter::once(&layout.sequencer).chain(&layout.standbys);
        let mut listed = units
            .filter(|_| kind == Kind::LogUnit)
            .chain(sequencers.filter(|_| kind == Kind::Sequencer));
        let same = |one: &Server| (&one.address, one.identity) == (&to.address, to.identity);
        let is_listed = listed.any(same);
        if term < layout.term || term == layout.term && !is_listed {
            let newest = Box::new(newest.clone());
            return Err(Refusal::Decided { newest });
        }
        if term > layout.term.next() || !is_listed {
            let newest = Some(layout.term);
            return Err(Refusal::Behind { newest });
        }
        let (caller, head) = asked_by_layout_server(by, to, term, request.into());
        let fault = self.arrive(&caller.name, &to.address, &head.request);
        let answer = match fault {
            None | Some(Fault::LoseReply) => self.serve(&caller, &to.address, head, Payload::new()),
            Some(Fault::Refuse(ref refusal)) => Err(refusal.clone()),
            Some(_) => return Ok(silent()),
        };
        if matches!(fault, Some(Fault::LoseReply)) {
            return Ok(silent());
        }
        let answer = answer.map(|(reply, _)| reply);
        Ok(LayoutReply::Relayed(Box::new(Brought::from(answer))))
    }
}

/// A relay that brought no answer.
fn silent() -> LayoutReply {
    LayoutReply::Relayed(Box::new(Brought::silent("no answer".to_owned())))
}

/// What a layout server sends to `to` by itself, or for a client.
fn asked_by_layout_server(
    by: ServerName,
    to: &Server,
    term: Term,
    request: Request,
) -> (Caller, RequestHead) {
    let caller = Caller {
        cluster: CLUSTER,
        role: Role::Layout,
        name: by,
    };
    let target = Target {
        identity: to.identity,
        incarnation: to.incarnation,
    };
    let head = RequestHead {
        id: 0,
        cluster: CLUSTER,
        to: (request != Request::Describe).then_some(target),
        term,
        request,
    };
    (caller, head)
}
