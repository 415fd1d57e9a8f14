//! A look at every server of a layout: who answers, as which process start, in which term.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use milonga_host::{Host, Peer};
use milonga_wire::{
    ClusterId, Description, Identity, Kind, Layout, LayoutReply, LayoutRequest, Payload, Reply,
    Request, RequestHead, Server, ServerName, Target, Term,
};

/// What one server said of itself.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// As the layout lists it.
    pub(crate) listed: Server,
    /// What it is listed for.
    pub(crate) kind: Kind,
    /// Its own word, or why there is none.
    pub(crate) said: Result<Description, String>,
}

impl Seen {
    /// Whether it runs as the process start that the layout lists.
    pub(crate) fn is_as_listed(&self) -> bool {
        self.said.as_ref().is_ok_and(|said| {
            (said.identity, said.incarnation) == (self.listed.identity, self.listed.incarnation)
        })
    }

    /// What may change from one look to the next: who answers, as what, in which term.
    fn standing(&self) -> Option<(u64, Term, String)> {
        let said = self.said.as_ref().ok()?;
        Some((said.incarnation.0, said.term, said.state.clone()))
    }
}

/// Everything seen at once.
#[derive(Clone, Debug)]
pub(crate) struct Sight {
    /// The layout that was looked at.
    pub(crate) term: Term,
    /// Its layout servers.
    pub(crate) layout_servers: Vec<Seen>,
    /// Its sequencer.
    pub(crate) sequencer: Seen,
    /// Its standby sequencers.
    pub(crate) standbys: Vec<Seen>,
    /// Its log units.
    pub(crate) units: Vec<Seen>,
    /// Its spares.
    pub(crate) spares: Vec<Seen>,
    /// The log units of its open segment.
    open: BTreeSet<Identity>,
}

impl Sight {
    /// Asks everyone, each at most `within`.
    pub(crate) async fn of(host: &Host, layout: &Layout, within: Duration) -> Self {
        let cluster = layout.cluster;
        let all = |servers, kind| see_all(host, cluster, servers, kind, within);
        let (layout_servers, sequencer, standbys, units, spares) = tokio::join!(
            biased;
            all(&layout.layout_servers, Kind::Layout),
            see(host, cluster, layout.sequencer.clone(), Kind::Sequencer, within),
            all(&layout.standbys, Kind::Sequencer),
            all(&layout.units, Kind::LogUnit),
            all(&layout.spares, Kind::LogUnit),
        );
        Self {
            term: layout.term,
            layout_servers,
            sequencer,
            standbys,
            units,
            spares,
            open: layout
                .open_segment()
                .chains
                .iter()
                .flat_map(|chain| chain.units.iter().copied())
                .collect(),
        }
    }

    /// The log units that were left out of `layout` and may come back.
    pub(crate) async fn of_those_who_left(
        host: &Host,
        layout: &Layout,
        within: Duration,
    ) -> Vec<Seen> {
        see_all(host, layout.cluster, &layout.left, Kind::LogUnit, within).await
    }

    /// Whether a control client has something to do: a term is half done, a server was restarted, a disk failed, or nobody
    /// issues positions or takes records where somebody must.
    pub(crate) fn needs_mending(&self) -> bool {
        let restarted = |seen: &Seen| seen.said.is_ok() && !seen.is_as_listed();
        let elsewhere = |seen: &Seen| matches!(&seen.said, Ok(said) if said.term != self.term || said.state != "serving");
        let is_needed = |seen: &Seen| self.open.contains(&seen.listed.identity);
        let silent = |seen: &Seen| seen.said.is_err();
        let listed = || self.units.iter().chain([&self.sequencer]);
        silent(&self.sequencer)
            || self
                .units
                .iter()
                .any(|unit| silent(unit) && is_needed(unit))
            || self.broken().is_some()
            || listed().any(|seen| restarted(seen) || elsewhere(seen) && !is_broken(seen))
    }

    /// Whether a layout server missed the newest layout: it was down when that was decided, and votes on nothing.
    pub(crate) fn lags(&self) -> bool {
        let mut servers = self.layout_servers.iter();
        servers.any(|seen| {
            let said = seen.said.as_ref();
            said.is_ok_and(|said| said.identity == seen.listed.identity && said.term < self.term)
        })
    }

    /// A log unit of an open chain whose disk failed.
    pub(crate) fn broken(&self) -> Option<ServerName> {
        let failed = |seen: &&Seen| matches!(&seen.said, Ok(said) if said.state == "failed");
        let mut open = self
            .units
            .iter()
            .filter(|unit| self.open.contains(&unit.listed.identity));
        open.find(failed).map(|unit| unit.listed.name.clone())
    }

    /// The log units that know of damage, and of how many positions.
    pub(crate) fn damaged(&self) -> Vec<(ServerName, u64)> {
        let damaged = |unit: &Seen| {
            let said = unit.said.as_ref().ok().filter(|said| said.damaged > 0)?;
            Some((unit.listed.name.clone(), said.damaged))
        };
        self.units.iter().filter_map(damaged).collect()
    }

    /// What distinguishes this sight from another.
    pub(crate) fn standings(&self) -> Vec<Option<(u64, Term, String)>> {
        let all = self
            .units
            .iter()
            .chain([&self.sequencer])
            .chain(&self.standbys);
        all.map(Seen::standing).collect()
    }
}

/// A server whose disk failed or is full: a new term changes nothing about it.
fn is_broken(seen: &Seen) -> bool {
    matches!(&seen.said, Ok(said) if matches!(said.state.as_str(), "failed" | "full"))
}

async fn see_all(
    host: &Host,
    cluster: ClusterId,
    servers: &[Server],
    kind: Kind,
    within: Duration,
) -> Vec<Seen> {
    let servers = servers.iter().cloned();
    join_all(servers.map(|server| see(host, cluster, server, kind, within))).await
}

async fn see(
    host: &Host,
    cluster: ClusterId,
    listed: Server,
    kind: Kind,
    within: Duration,
) -> Seen {
    let peer = Peer {
        name: Some(listed.name.clone()),
        address: listed.address.clone(),
        kind: kind.into(),
    };
    let said = describe(host, cluster, &peer, within).await;
    Seen { listed, kind, said }
}

/// Asks a server who it is.
pub(crate) async fn describe(
    host: &Host,
    cluster: ClusterId,
    peer: &Peer,
    within: Duration,
) -> Result<Description, String> {
    let head = RequestHead {
        id: 0,
        cluster,
        to: None,
        term: Term::GENESIS,
        request: Request::Describe,
    };
    let request = milonga_host::net::Request {
        head,
        payload: Payload::new(),
    };
    let answer = host.net.call(peer, request, within).await;
    match answer.map_err(|error| error.to_string())?.reply {
        Ok(Reply::Described(description)) => Ok(*description),
        Ok(_) => Err(format!("{peer} does not say who it is")),
        Err(refusal) => Err(format!("{peer}: {refusal}")),
    }
}

/// The decided layout of `term`, from the first server of `layout` that knows it.
pub(crate) async fn layout_of(
    host: &Host,
    layout: &Layout,
    term: Term,
    within: Duration,
) -> Option<Layout> {
    for server in &layout.layout_servers {
        let peer = Peer {
            name: Some(server.name.clone()),
            address: server.address.clone(),
            kind: Kind::Layout.into(),
        };
        let head = RequestHead {
            id: 0,
            cluster: layout.cluster,
            to: Some(Target {
                identity: server.identity,
                incarnation: server.incarnation,
            }),
            term,
            request: Request::Layout(LayoutRequest::At),
        };
        let request = milonga_host::net::Request {
            head,
            payload: Payload::new(),
        };
        let Ok(answer) = host.net.call(&peer, request, within).await else {
            continue;
        };
        if let Ok(Reply::Layout(LayoutReply::At {
            decided: Some(decided),
        })) = answer.reply
        {
            return Some(decided.layout);
        }
    }
    None
}
