//! What the machine gives to servers and clients, as traits and for real: calls over QUIC, TLS, disk, clock,
//! randomness, shutdown.
//!
//! Everything above this crate is written against [`Network`], [`Service`], [`Disk`], [`Clock`] and [`Random`], so the
//! same code runs on a simulated machine from a seed. Nothing here knows the protocol beyond frames and who may call.

pub mod admin;
pub mod certificates;
pub mod clock;
pub mod disk;
pub mod fs;
pub mod memory_disk;
pub mod net;
pub mod quic;
pub mod random;
pub mod runtime;
pub mod sched;
pub mod shutdown;
pub mod tasks;
pub mod tls;

pub use clock::{Clock, Moment};
pub use disk::{Disk, File};
pub use fs::FsDisk;
pub use memory_disk::MemoryDisk;
pub use net::{BoxFuture, CallError, Network, Peer, PeerKind, Responder, Service};
pub use quic::{BindError, DatagramSocket, PathKind, ServerHandle, Transport, TransportOptions};
pub use random::Random;
pub use runtime::Runtime;
pub use sched::ask_for_short_slice;
pub use shutdown::Shutdown;
pub use tasks::{Tasks, WeakTasks};
pub use tls::{CredentialFiles, Credentials};

use std::sync::Arc;

/// What one node runs on: a real machine, or a simulated one.
#[derive(Clone)]
pub struct Host {
    /// Calls to other nodes, made with this node's certificate.
    pub net: Arc<dyn Network>,
    /// Time.
    pub clock: Clock,
    /// Randomness.
    pub random: Random,
    /// Background tasks, which end with the node.
    pub tasks: Tasks,
}
