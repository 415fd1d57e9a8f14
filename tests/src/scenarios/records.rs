//! What the layout servers decided in a run, term by term, and who a server says that it is: asked without a client.

use std::time::Duration;

use milonga_host::net::{PeerKind, Request};
use milonga_host::{Host, Peer};
use milonga_wire::{
    Address, Decided, Description, LayoutReply, LayoutRequest, Payload, Reply, RequestHead, Server,
    ServerName, Term,
};

use crate::sim::World;

const WITHIN: Duration = Duration::from_secs(10);

/// Every layout from term 0 to `newest`, as far as any layout server at `servers` still has it.
pub async fn history(
    host: &Host,
    world: &World,
    servers: &[Address],
    newest: Term,
) -> Vec<Decided> {
    let mut history = vec![];
    for term in (0..=newest.0).map(Term) {
        for address in servers {
            let peer = Peer {
                name: None,
                address: address.clone(),
                kind: PeerKind::Layout,
            };
            let request = milonga_wire::Request::Layout(LayoutRequest::At);
            let reply = ask(host, world, &peer, term, request).await;
            if let Ok(Reply::Layout(LayoutReply::At {
                decided: Some(decided),
            })) = reply
            {
                history.push(*decided);
                break;
            }
        }
    }
    history
}

/// Who runs at the address of the server `name`.
///
/// # Errors
/// Why it does not say.
pub async fn describe(
    host: &Host,
    world: &World,
    name: &ServerName,
) -> Result<Description, String> {
    let peer = Peer {
        name: Some(name.clone()),
        address: World::address_of(name.as_str()),
        kind: PeerKind::Any,
    };
    let request = milonga_wire::Request::Describe;
    match ask(host, world, &peer, Term::GENESIS, request).await? {
        Reply::Described(description) => Ok(*description),
        Reply::Unit(_) | Reply::Sequencer(_) | Reply::Layout(_) => {
            Err("another answer than was asked for".to_owned())
        }
    }
}

/// The server `name` as a layout would list what runs there now.
///
/// # Errors
/// Why it does not say who it is.
pub async fn present(host: &Host, world: &World, name: &ServerName) -> Result<Server, String> {
    let found = describe(host, world, name).await?;
    Ok(Server {
        name: name.clone(),
        address: World::address_of(name.as_str()),
        identity: found.identity,
        incarnation: found.incarnation,
    })
}

async fn ask(
    host: &Host,
    world: &World,
    peer: &Peer,
    term: Term,
    request: milonga_wire::Request,
) -> Result<Reply, String> {
    let request = Request {
        head: RequestHead {
            id: 0,
            cluster: world.cluster(),
            to: None,
            term,
            request,
        },
        payload: Payload::new(),
    };
    let response = host.net.call(peer, request, WITHIN).await;
    let response = response.map_err(|error| error.to_string())?;
    response.reply.map_err(|refusal| refusal.to_string())
}
