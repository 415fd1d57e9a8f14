//! What a simulated node is made of.

use std::fmt;
use std::sync::Arc;

use milonga_host::{BoxFuture, Clock, Host, Random, Service, Tasks};
use milonga_wire::{Address, Caller, ServerName};

/// A node of a [`crate::sim::World`].
#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd)]
pub struct NodeId(pub u16);

/// A server's machine: how its process starts on what is on its disk, and what a crash leaves there.
pub trait Machine: Send + Sync + 'static {
    /// Starts the process. Called again after every crash.
    ///
    /// # Errors
    /// Why it does not start; the scenario decides whether that is a violation.
    fn start(&self, host: Host) -> BoxFuture<'_, Result<Arc<dyn Service>, String>>;

    /// The process is gone, at once and without warning: the disk keeps what its rules say (D1).
    fn crashed(&self, random: &Random);
}

/// A node as the world keeps it.
pub(super) struct Node {
    pub(super) name: ServerName,
    pub(super) address: Option<Address>,
    pub(super) caller: Caller,
    pub(super) machine: Option<Arc<dyn Machine>>,
    pub(super) clock: Clock,
    /// Counts process starts: what was sent to an earlier one does not reach a later one.
    pub(super) boot: u64,
    /// Nothing while it is down (and for clients, which do not serve).
    pub(super) service: Option<Arc<dyn Service>>,
    pub(super) tasks: Tasks,
    pub(super) up: bool,
    pub(super) starting: bool,
    /// It does not start again, whoever tries.
    pub(super) buried: bool,
    /// It crashes when it has sent so many more requests.
    pub(super) requests_left: Option<u64>,
    /// Until then it neither receives nor sends.
    pub(super) frozen_until_us: u64,
    /// Until when it was frozen or cut off last.
    pub(super) away_until_us: Option<u64>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, boot, up, .. } = self;
        write!(f, "{name} (start {boot}, up: {up})")
    }
}
