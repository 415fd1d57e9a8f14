//! A layout server, put together, with the caretaker beside it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use milonga_host::fs::FsDisk;
use milonga_host::{CredentialFiles, Transport};
use milonga_layout::{Config, Reports, Server};
use milonga_wire::Kind;

use super::{Parts, Role, Running, Settings, may_serve, node, open};
use crate::caretaker::Caretaker;
use crate::failure::{Failure, Outcome};
use crate::node::Node;

pub(super) async fn start(mut settings: Settings) -> Outcome<Running> {
    let cert = settings.take_path("caretaker-cert")?;
    let key = settings.take_path("caretaker-key")?;
    let steady = settings.take_millis("steady-ms")?;
    let config: Config = settings.read::<milonga_layout::Settings>()?.try_into()?;
    let files = CredentialFiles {
        certificate: config.cert.clone(),
        key: config.key.clone(),
        authorities: config.ca.clone(),
    };
    let node = node(&config.name, files)?;
    may_serve(&node, Kind::Layout, Role::Layout)?;
    let disk = FsDisk::at(&config.dir).map_err(|why| Failure::file(&config.dir, why))?;
    let cluster = node.caller.cluster;
    let service = Server::start(&node.host, Arc::new(disk), cluster, &config)
        .map_err(|error| Failure::from(error).about(config.dir.display()))?;
    let caretaker = if config.caretaker {
        take_care(&node, &config, (cert, key), service.reports(), steady)?
    } else {
        None
    };
    let asked = Arc::clone(&service);
    let parts = Parts {
        name: config.name,
        listen: config.listen,
        admin: config.admin,
        ready: Arc::new(move || asked.ready()),
        service,
        finish: Box::pin(async move {
            if let Some(transport) = caretaker {
                transport.close().await;
            }
        }),
    };
    open(node, parts).await
}

/// Starts the caretaker, if it has been given a certificate. Returns what it calls through.
fn take_care(
    node: &Node,
    config: &Config,
    own: (Option<PathBuf>, Option<PathBuf>),
    reports: Arc<Reports>,
    steady: Option<Duration>,
) -> Outcome<Option<Transport>> {
    let (certificate, key) = match own {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) => {
            tracing::info!("no caretaker: `caretaker-cert` and `caretaker-key` are not given");
            return Ok(None);
        }
        (Some(_), None) | (None, Some(_)) => {
            return Err(Failure::failed(
                "`caretaker-cert` and `caretaker-key` go together; expected both or neither",
            ));
        }
    };
    let files = CredentialFiles {
        certificate,
        key,
        authorities: config.ca.clone(),
    };
    let layout = match config.layout.as_slice() {
        [] => vec![config.listen.clone()],
        several => several.to_vec(),
    };
    let own = Node::open(&files)?;
    let transport = own.transport.clone();
    let caretaker = Caretaker::new(own, files, layout, reports, steady)?;
    node.host.tasks.spawn(caretaker.run());
    Ok(Some(transport))
}
