//! A log unit, put together.

use std::sync::Arc;

use milonga_host::CredentialFiles;
use milonga_host::fs::FsDisk;
use milonga_logunit::Server;
use milonga_logunit::store::{Options, Store};
use milonga_wire::Kind;

use super::{Parts, Role, Running, Settings, may_serve, node, open};
use crate::failure::{Failure, Outcome};

pub(super) async fn start(settings: Settings) -> Outcome<Running> {
    let unit = settings.read::<milonga_logunit::Settings>()?.check()?;
    let files = CredentialFiles {
        certificate: unit.cert.clone(),
        key: unit.key.clone(),
        authorities: unit.ca.clone(),
    };
    let admin = admin(unit.admin.as_ref())?;
    let node = node(&unit.name, files)?;
    may_serve(&node, Kind::LogUnit, Role::LogUnit)?;
    let cluster = node.caller.cluster;
    let options = Options {
        file_bytes: unit.file_bytes,
        map: unit.map,
        ..Options::new(cluster, unit.name.clone())
    };
    let disk = FsDisk::at(&unit.dir).map_err(|why| Failure::file(&unit.dir, why))?;
    let store = Store::open(Arc::new(disk), options, &node.host.random)
        .map_err(|error| Failure::from(error).about(unit.dir.display()))?;
    let config = unit.config(cluster, env!("CARGO_PKG_VERSION"));
    let service = Server::start(&node.host, Box::new(store), config);
    let (asked, drained) = (Arc::clone(&service), Arc::clone(&service));
    let parts = Parts {
        name: unit.name,
        listen: unit.listen,
        admin,
        ready: Arc::new(move || ready(&asked)),
        service,
        finish: Box::pin(async move { drained.drain().await }),
    };
    open(node, parts).await
}

fn ready(unit: &Server) -> Result<(), String> {
    let description = unit.describe();
    match (unit.is_ready(), description.state.as_str()) {
        (true, "serving") => Ok(()),
        (_, state) => Err(format!("{state}, in term {}", description.term)),
    }
}

fn admin(text: Option<&milonga_wire::Address>) -> Outcome<Option<std::net::SocketAddr>> {
    let parse = |text: &milonga_wire::Address| {
        text.as_str().parse().map_err(|_| {
            Failure::failed(format!(
                "the key `admin` says `{text}`; expected ip:port, or a port"
            ))
        })
    };
    text.map(parse).transpose()
}
