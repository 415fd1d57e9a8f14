//! The first layout: `cluster init` describes blank servers, writes term 0, announces and bootstraps it.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use milonga_host::Peer;
use milonga_host::net::PeerKind;
use milonga_wire::{
    Address, Chain, Decided, Description, Identity, InvalidLayout, Kind, Layout, LayoutReply,
    LayoutRequest, Origin, Position, Segment, Server, ServerName, Settings, Term,
};

use crate::calls::{Failure, unexpected};
use crate::log::Log;
use crate::reconfigure::drive::ChangeError;
use crate::reconfigure::finish::finish;
use crate::reconfigure::reach::Far;

/// What the first layout should be, by address.
#[derive(Clone, Debug)]
pub struct Genesis {
    /// Layout servers: 1, 3 or 5.
    pub layout_servers: Vec<Address>,
    /// Who issues positions.
    pub sequencer: Address,
    /// Who may, later.
    pub standbys: Vec<Address>,
    /// Log units, head first, per chain.
    pub chains: Vec<Vec<Address>>,
    /// Log units that stand ready.
    pub spares: Vec<Address>,
    /// Positions per stripe.
    pub stripe_width: u32,
}

/// Why the cluster was not initialised.
#[derive(Clone, Debug, thiserror::Error)]
pub enum InitError {
    /// A server did not answer, or refused.
    #[error(transparent)]
    Server(#[from] Failure),
    /// A server is not what it was named for.
    #[error("{address} is a {found:?} server, not a {expected:?} server")]
    WrongKind {
        /// Which.
        address: Address,
        /// What it is.
        found: Kind,
        /// What it should be.
        expected: Kind,
    },
    /// A server is part of a cluster already, or has been written to.
    #[error(
        "{name} ({address}) is not blank; expected a server with an empty directory; stop it, give it a new one, and try again"
    )]
    NotBlank {
        /// Its name.
        name: ServerName,
        /// Its address.
        address: Address,
    },
    /// The layout makes no sense.
    #[error(transparent)]
    Invalid(#[from] InvalidLayout),
    /// The layout was written but could not be put to work: any control client finishes it.
    #[error("the cluster is initialised, but not serving yet: {0}")]
    Unfinished(#[from] ChangeError),
}

/// Decides the first layout. The servers must be blank, or have been given this very layout by an attempt that broke off.
///
/// # Errors
/// [`InitError`].
pub async fn init(log: &Log, genesis: &Genesis) -> Result<Decided, InitError> {
    if let Some(decided) = started_before(log, genesis).await {
        finish(log, &decided, &Far::default()).await?;
        return Ok(decided);
    }
    let mut servers: BTreeMap<Address, Server> = BTreeMap::new();
    let units = genesis.chains.iter().flatten().chain(&genesis.spares);
    let all = (genesis
        .layout_servers
        .iter()
        .map(|address| (address, Kind::Layout)))
    .chain(std::iter::once((&genesis.sequencer, Kind::Sequencer)))
    .chain(
        genesis
            .standbys
            .iter()
            .map(|address| (address, Kind::Sequencer)),
    )
    .chain(units.map(|address| (address, Kind::LogUnit)));
    let found =
        join_all(all.map(|(address, kind)| async move {
            (address, kind, describe(log, address, kind).await)
        }));
    for (address, kind, description) in found.await {
        let description = description?;
        if description.kind != kind {
            return Err(InitError::WrongKind {
                address: address.clone(),
                found: description.kind,
                expected: kind,
            });
        }
        if !description.blank {
            return Err(InitError::NotBlank {
                name: description.name,
                address: address.clone(),
            });
        }
        let Description {
            name,
            identity,
            incarnation,
            ..
        } = description;
        servers.insert(
            address.clone(),
            Server {
                name,
                address: address.clone(),
                identity,
                incarnation,
            },
        );
    }
    let layout = layout(log, genesis, &servers);
    layout.validate()?;
    let request = LayoutRequest::Genesis {
        layout: Box::new(layout.clone()),
    };
    for server in &layout.layout_servers {
        match log
            .shared
            .calls
            .layout(server, Term::GENESIS, request.clone())
            .await?
        {
            LayoutReply::Initialised => {}
            _ => return Err(unexpected(server.name.as_str()).into()),
        }
    }
    let decided = Decided {
        layout,
        acceptances: vec![],
    };
    log.shared.layouts.adopt(decided.clone());
    finish(log, &decided, &Far::default()).await?;
    Ok(decided)
}

/// The layout that an earlier attempt with the same servers wrote to some layout server, handed to the others.
async fn started_before(log: &Log, genesis: &Genesis) -> Option<Decided> {
    for address in &genesis.layout_servers {
        let answer = log
            .shared
            .calls
            .layout_at(address, Term::GENESIS, LayoutRequest::Newest)
            .await;
        let Ok(LayoutReply::Newest {
            decided: Some(decided),
            ..
        }) = answer
        else {
            continue;
        };
        if decided.layout.term != Term::GENESIS || !same_servers(&decided.layout, genesis) {
            return None;
        }
        let request = LayoutRequest::Genesis {
            layout: Box::new(decided.layout.clone()),
        };
        for server in &decided.layout.layout_servers {
            log.shared
                .calls
                .layout(server, Term::GENESIS, request.clone())
                .await
                .ok()?;
        }
        log.shared.layouts.adopt((*decided).clone());
        return Some(*decided);
    }
    None
}

fn same_servers(layout: &Layout, genesis: &Genesis) -> bool {
    let addresses = |servers: &[Server]| {
        servers
            .iter()
            .map(|server| server.address.clone())
            .collect::<Vec<_>>()
    };
    let chains: Vec<Vec<Address>> = layout
        .open_segment()
        .chains
        .iter()
        .map(|chain| {
            layout
                .units_of(chain)
                .map(|unit| unit.address.clone())
                .collect()
        })
        .collect();
    addresses(&layout.layout_servers) == genesis.layout_servers
        && layout.sequencer.address == genesis.sequencer
        && addresses(&layout.standbys) == genesis.standbys
        && addresses(&layout.spares) == genesis.spares
        && chains == genesis.chains
        && layout.open_segment().stripe_width == genesis.stripe_width
}

async fn describe(log: &Log, address: &Address, kind: Kind) -> Result<Description, Failure> {
    let peer = Peer {
        name: None,
        address: address.clone(),
        kind: PeerKind::from(kind),
    };
    log.shared.calls.describe(&peer).await
}

fn layout(log: &Log, genesis: &Genesis, servers: &BTreeMap<Address, Server>) -> Layout {
    let listed = |addresses: &[Address]| {
        addresses
            .iter()
            .map(|address| servers[address].clone())
            .collect::<Vec<_>>()
    };
    let identities = |addresses: &Vec<Address>| -> Vec<Identity> {
        addresses
            .iter()
            .map(|address| servers[address].identity)
            .collect()
    };
    let longest = genesis.chains.iter().map(Vec::len).max().unwrap_or(0);
    let all_units: Vec<Address> = genesis.chains.iter().flatten().cloned().collect();
    Layout {
        cluster: log.caller().cluster,
        term: Term::GENESIS,
        layout_servers: listed(&genesis.layout_servers),
        sequencer: servers[&genesis.sequencer].clone(),
        standbys: listed(&genesis.standbys),
        units: listed(&all_units),
        segments: vec![Segment {
            start: Position::FIRST,
            end: None,
            stripe_width: genesis.stripe_width,
            chains: genesis
                .chains
                .iter()
                .map(|chain| Chain::new(identities(chain)))
                .collect(),
        }],
        spares: listed(&genesis.spares),
        lost: vec![],
        left: vec![],
        settings: Settings {
            replicas: longest as u16,
            trust_restarted: true,
        },
        origin: Origin {
            by: log.caller().name.to_string(),
            why: "cluster init".to_owned(),
            change: "the first layout".to_owned(),
            at_ms: log.host().clock.wall_ms(),
        },
    }
}
