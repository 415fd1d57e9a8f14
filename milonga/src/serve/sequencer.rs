//! A sequencer, put together.

use std::sync::Arc;

use milonga_host::CredentialFiles;
use milonga_sequencer::{Config, Sequencer};
use milonga_wire::Kind;

use super::{Parts, Role, Running, Settings, may_serve, node, open};
use crate::failure::Outcome;

pub(super) async fn start(settings: Settings) -> Outcome<Running> {
    let config: Config = settings.read::<milonga_sequencer::Settings>()?.try_into()?;
    let files = CredentialFiles {
        certificate: config.cert.clone(),
        key: config.key.clone(),
        authorities: config.ca.clone(),
    };
    let node = node(&config.name, files)?;
    may_serve(&node, Kind::Sequencer, Role::Sequencer)?;
    let service = Sequencer::start(node.host.clone(), node.caller.cluster, &config);
    let asked = Arc::clone(&service);
    let parts = Parts {
        name: config.name,
        listen: config.listen,
        admin: config.admin,
        ready: Arc::new(move || asked.ready()),
        service,
        finish: Box::pin(async {}),
    };
    open(node, parts).await
}
