//! Running servers: each on a thread of its own, with a runtime of its own, until it is told to end.
//!
//! `layout.rs`, `sequencer.rs` and `logunit.rs` put one service each together; here is what they share.

mod layout;
mod logunit;
mod sequencer;
mod settings;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use milonga_host::quic::ServerHandle;
use milonga_host::{BoxFuture, CredentialFiles, Runtime, Service, admin};
use milonga_wire::{Address, ServerName};

use crate::failure::{Failure, Outcome};
use crate::node::Node;
pub(crate) use settings::Settings;

/// How long a drain may take before what is left is cut off.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// Which server.
#[derive(Copy, Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// A layout server.
    Layout,
    /// A sequencer.
    Sequencer,
    /// A log unit.
    LogUnit,
}

impl Role {
    /// Its command, its certificate's role, and its name in tables.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Layout => "layout",
            Self::Sequencer => "sequencer",
            Self::LogUnit => "logunit",
        }
    }
}

/// A server that answers.
pub(crate) struct Running {
    /// Its name.
    pub(crate) name: ServerName,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    node: Node,
    handle: ServerHandle,
    /// Finishes what was accepted, where a service needs telling.
    finish: BoxFuture<'static, ()>,
}

/// What a service gives besides itself.
struct Parts {
    name: ServerName,
    listen: Address,
    admin: Option<SocketAddr>,
    service: Arc<dyn Service>,
    ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    finish: BoxFuture<'static, ()>,
}

/// Starts a server. Must be called inside the runtime that is to run it.
pub(crate) async fn start(role: Role, settings: Settings) -> Outcome<Running> {
    if settings.text("admin").is_some() {
        // Before the service: handles that it makes earlier collect nothing.
        admin::Metrics::install()?;
    }
    match role {
        Role::Layout => layout::start(settings).await,
        Role::Sequencer => sequencer::start(settings).await,
        Role::LogUnit => logunit::start(settings).await,
    }
}

/// Loads a server's certificate and checks that it is the server's own.
fn node(name: &ServerName, files: CredentialFiles) -> Outcome<Node> {
    let node = Node::open(&files)?;
    if node.caller.name != *name {
        return Err(Failure::failed(format!(
            "the certificate is of `{}`, expected `{name}`; issue one with `milonga certs issue --name {name}`",
            node.caller.name
        )));
    }
    node.reload_certificates(files);
    Ok(node)
}

/// A certificate for a role serves in that role only.
fn may_serve(node: &Node, kind: milonga_wire::Kind, role: Role) -> Outcome {
    if node.caller.role.may_serve(kind) {
        return Ok(());
    }
    let (has, role) = (node.caller.role, role.as_str());
    Err(Failure::failed(format!(
        "a certificate of role {has} may not serve as {role}; issue one with `milonga certs issue --role server`"
    )))
}

/// Opens the doors: the admin endpoint, then the service itself.
async fn open(node: Node, parts: Parts) -> Outcome<Running> {
    if let Some(address) = parts.admin {
        let (clock, ready) = (node.host.clock.clone(), parts.ready);
        let metrics = admin::Metrics::install()?;
        admin::serve(address, metrics, move || ready(), clock, &node.host.tasks).await?;
    }
    let handle = node.transport.serve(&parts.listen, parts.service).await?;
    let address = handle.local_address();
    tracing::info!(name = %parts.name, %address, "listening");
    Ok(Running {
        name: parts.name,
        address,
        node,
        handle,
        finish: parts.finish,
    })
}

impl Running {
    /// The background tasks that it owns.
    pub(crate) fn tasks(&self) -> &milonga_host::Tasks {
        &self.node.host.tasks
    }

    /// Takes nothing new, finishes what was accepted, and ends.
    pub(crate) async fn drain(self) {
        let clock = self.node.host.clock.clone();
        if clock.within(DRAIN_WITHIN, self.finish).await.is_err() {
            tracing::warn!(name = %self.name, "ended before everything was answered");
        }
        self.handle.drain(DRAIN_WITHIN).await;
        // Those that it asked are not left to wait for it.
        self.node.transport.close().await;
        tracing::info!(name = %self.name, "ended");
    }
}

/// What runs a process of `role`, or one that serves nobody.
pub(crate) fn runtime(role: Option<Role>) -> Outcome<Runtime> {
    let runtime = match role {
        Some(Role::LogUnit) => Runtime::beside_a_disk(),
        Some(Role::Layout | Role::Sequencer) | None => Runtime::of_one_thread(),
    };
    runtime.map_err(|why| Failure::failed(format!("no runtime: {why}")))
}

/// The machine kills this process when the thread that started it ends. If that happened already, there is no waiting.
pub(crate) fn end_with(parent: u32) -> Outcome {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    let failed = |why| Failure::failed(format!("the parent cannot be watched: {why}"));
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
    let now = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if now == Some(parent) {
        return Ok(());
    }
    Err(Failure::failed("the process that started this one is gone"))
}
