//! One call to one server, typed: the request's kind fixes the reply's.

use std::time::Duration;

use milonga_host::net::PeerKind;
use milonga_host::{CallError, Host, Peer};
use milonga_wire::{
    Address, ClusterId, Description, Kind, LayoutReply, LayoutRequest, Payload, Refusal, Reply,
    Request, RequestHead, SequencerReply, SequencerRequest, Server, ServerName, Target, Term,
    UnitReply, UnitRequest,
};

/// Why a call brought no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The server said no: nothing changed.
    #[error("{server}: {refusal}")]
    Refused {
        /// Which server.
        server: String,
        /// Why.
        refusal: Refusal,
    },
    /// No reply: unless it says otherwise, the request may have had its effect.
    #[error(transparent)]
    Call(#[from] CallError),
}

impl Failure {
    /// The name of the server that refused or did not answer, if a layout names it.
    pub(crate) fn server(&self) -> Option<ServerName> {
        let peer = match self {
            Self::Refused { server, .. } => server,
            Self::Call(
                CallError::NotSent { peer, .. }
                | CallError::Lost { peer, .. }
                | CallError::Deadline { peer, .. }
                | CallError::Protocol { peer, .. },
            ) => peer,
        };
        // A peer prints as its name and its address, or as its address alone, which is no name.
        peer.split(' ').next()?.parse().ok()
    }

    /// The refusal, if the server gave one.
    pub(crate) fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal),
            Self::Call(_) => None,
        }
    }
}

/// Makes calls for one cluster.
#[derive(Clone)]
pub(crate) struct Calls {
    host: Host,
    cluster: ClusterId,
    within: Duration,
}

impl Calls {
    pub(crate) fn new(host: Host, cluster: ClusterId, within: Duration) -> Self {
        Self {
            host,
            cluster,
            within,
        }
    }

    /// Calls that wait for at least `within`.
    pub(crate) fn patient(&self, within: Duration) -> Self {
        Self {
            within: self.within.max(within),
            ..self.clone()
        }
    }

    /// The cluster that every call names.
    pub(crate) fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Asks a log unit.
    pub(crate) async fn unit(
        &self,
        server: &Server,
        term: Term,
        request: UnitRequest,
        payload: Payload,
    ) -> Result<(UnitReply, Payload), Failure> {
        let peer = peer(server, Kind::LogUnit);
        match self
            .ask(
                &peer,
                Some(target(server)),
                term,
                Request::Unit(request),
                payload,
            )
            .await?
        {
            (Reply::Unit(reply), payload) => Ok((reply, payload)),
            (Reply::Described(_) | Reply::Sequencer(_) | Reply::Layout(_), _) => {
                Err(mismatch(&peer))
            }
        }
    }

    /// Asks a sequencer.
    pub(crate) async fn sequencer(
        &self,
        server: &Server,
        term: Term,
        request: SequencerRequest,
    ) -> Result<SequencerReply, Failure> {
        let peer = peer(server, Kind::Sequencer);
        match self
            .ask(
                &peer,
                Some(target(server)),
                term,
                Request::Sequencer(request),
                Payload::new(),
            )
            .await?
        {
            (Reply::Sequencer(reply), _) => Ok(reply),
            (Reply::Described(_) | Reply::Unit(_) | Reply::Layout(_), _) => Err(mismatch(&peer)),
        }
    }

    /// Asks a layout server that a layout names.
    pub(crate) async fn layout(
        &self,
        server: &Server,
        term: Term,
        request: LayoutRequest,
    ) -> Result<LayoutReply, Failure> {
        self.layout_peer(
            &peer(server, Kind::Layout),
            Some(target(server)),
            term,
            request,
        )
        .await
    }

    /// Asks whatever layout server listens at `address`: only what a client asks before it knows a layout.
    pub(crate) async fn layout_at(
        &self,
        address: &Address,
        term: Term,
        request: LayoutRequest,
    ) -> Result<LayoutReply, Failure> {
        let peer = Peer {
            name: None,
            address: address.clone(),
            kind: PeerKind::Layout,
        };
        self.layout_peer(&peer, None, term, request).await
    }

    async fn layout_peer(
        &self,
        peer: &Peer,
        to: Option<Target>,
        term: Term,
        request: LayoutRequest,
    ) -> Result<LayoutReply, Failure> {
        match self
            .ask(peer, to, term, Request::Layout(request), Payload::new())
            .await?
        {
            (Reply::Layout(reply), _) => Ok(reply),
            (Reply::Described(_) | Reply::Unit(_) | Reply::Sequencer(_), _) => Err(mismatch(peer)),
        }
    }

    /// Asks the server at `peer` who it is.
    pub(crate) async fn describe(&self, peer: &Peer) -> Result<Description, Failure> {
        match self
            .ask(peer, None, Term::GENESIS, Request::Describe, Payload::new())
            .await?
        {
            (Reply::Described(description), _) => Ok(*description),
            (Reply::Unit(_) | Reply::Sequencer(_) | Reply::Layout(_), _) => Err(mismatch(peer)),
        }
    }

    async fn ask(
        &self,
        peer: &Peer,
        to: Option<Target>,
        term: Term,
        request: Request,
        payload: Payload,
    ) -> Result<(Reply, Payload), Failure> {
        let head = RequestHead {
            id: 0,
            cluster: self.cluster,
            to,
            term,
            request,
        };
        let request = milonga_host::net::Request { head, payload };
        let response = self.host.net.call(peer, request, self.within).await?;
        match response.reply {
            Ok(reply) => Ok((reply, response.payload)),
            Err(refusal) => Err(Failure::Refused {
                server: peer.to_string(),
                refusal,
            }),
        }
    }
}

/// How a server of a layout is dialled: by its name, as what it is listed for.
pub(crate) fn peer(server: &Server, kind: Kind) -> Peer {
    Peer {
        name: Some(server.name.clone()),
        address: server.address.clone(),
        kind: kind.into(),
    }
}

fn target(server: &Server) -> Target {
    Target {
        identity: server.identity,
        incarnation: server.incarnation,
    }
}

/// The reply of another kind of request: nothing is known of the effect.
pub(crate) fn mismatch(peer: &Peer) -> Failure {
    unexpected(&peer.to_string())
}

/// The reply that does not answer what was asked.
pub(crate) fn unexpected(server: &str) -> Failure {
    let why = "the reply answers another request; both sides must run the same version".to_owned();
    Failure::Call(CallError::Protocol {
        peer: server.to_owned(),
        why,
    })
}
