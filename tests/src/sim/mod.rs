//! The simulator: nodes, their network, their time and their crashes in one thread, all from one seed.
//!
//! Messages are real: requests and replies are encoded into frames, travel as bytes and are decoded at the other end.
//! What happens to each of them (latency, loss, duplication, overtaking, a pause of minutes) comes from the seed, and so
//! do all identities, so a run is repeated exactly by its seed. The runtime is tokio's current-thread one with its clock
//! paused: time jumps to the next timer whenever nothing else is left to do.
//!
//! - V1 The same seed gives the same trace, in any process.
//! - V2 What a network promises a caller holds here too: N1, N2, and N3 for calls on one lane.
//! - V3 A crashed node does nothing more: its tasks end, its service is dropped, nothing it sent later arrives.
//!
//! What it is not: QUIC. Handshakes, flow control and packets are tested over the real transport.

pub mod faults;
pub mod nemesis;
pub mod network;
pub mod node;
pub mod run;
pub mod trace;
pub mod world;

pub use faults::{NetworkFaults, Profile};
pub use network::SimNetwork;
pub use node::{Machine, NodeId};
pub use run::{Outcome, Scenario, run};
pub use trace::Trace;
pub use world::World;
