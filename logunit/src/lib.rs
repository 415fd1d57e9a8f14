//! The log unit: a durable write-once store that knows positions and terms, not chains or layouts.
//!
//! `unit.rs` decides what a request may do (pure), `store/` keeps it on disk, `server.rs` moves messages; `memory_store.rs`
//! stands in for the disk where a map is enough.

mod config;
mod memory_store;
mod server;
pub mod storage;
pub mod unit;

pub use config::{Config, InvalidConfig, Node, Scrub, Settings};
pub use memory_store::MemoryStore;
pub use server::Server;
pub mod store;
