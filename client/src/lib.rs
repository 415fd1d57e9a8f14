//! Milonga's client: append to and read from the shared log, and keep the cluster going.
//!
//! The servers are simple; what a protocol needs more than one of them for happens here. A [`Log`] appends and reads
//! (`append.rs`, `read.rs`), settles holes and half-written entries (`chain.rs`), knows the newest layout
//! (`layouts.rs`), and, with a control certificate, drives changes of layout (`reconfigure/`). [`object`] builds
//! replicated state on top.
//!
//! - C1 An entry is written head to tail; it is acknowledged only when the tail has it.
//! - C2 Below the head, a position holds what the head holds or nothing.
//! - C3 One append yields exactly one entry, however often it is retried: a new token is taken only once the old one is
//!   proved to hold nothing of it.
//! - C4 A read returns only what is on the whole chain; "unwritten" from a unit is never an answer by itself.
//! - C5 Nobody fills at or above the end of the term it acts in.
//! - C6 A client never goes back to an older layout.
//! - C7 Before a layout is proposed, every unit in it is sealed in its term.
//!
//! Sources: Balakrishnan et al., *CORFU* (NSDI '12); *Tango* (SOSP '13).

mod append;
mod calls;
mod chain;
mod config;
mod connect;
mod entry;
mod follow;
mod full;
mod gather;
mod layouts;
mod log;
mod lost;
mod marks;
pub mod object;
mod options;
mod producer;
mod read;
pub mod reconfigure;
mod repair;
mod resume;
mod settle;
mod streams;
#[cfg(test)]
mod testing;
mod trim;
mod trouble;
pub mod verify;

pub use append::{AppendError, Appended};
pub use calls::Failure as ServerFailure;
pub use config::{ClusterConfig, ConfigError};
pub use connect::ConnectError;
pub use entry::{Entry, Kind as EntryKind};
pub use follow::Follower;
pub use log::{End, Log};
pub use options::Options;
pub use producer::Producer;
pub use read::ReadError;
pub use resume::{Resumed, SavedAppend};
pub use streams::StreamReader;
pub use trim::TrimError;
pub use trouble::Unavailable;

pub use milonga_wire::{Before, ClusterId, Layout, Position, Role, Span, Stamp, StreamId, Term};
