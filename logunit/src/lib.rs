//! The log unit: a durable write-once store that knows positions and terms, not chains or layouts.
//!
//! `unit.rs` decides what a request may do (pure), `store/` keeps it on disk, `server.rs` moves messages.

pub mod storage;
pub mod store;
