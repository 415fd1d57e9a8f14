//! Histories of many clients of replicated maps on real processes, while servers and clients are killed and stopped, and
//! whether all that they were told can be so.
//!
//! ```text
//!   `histories` ──starts──▶ `milonga dev`: servers, killed and stopped by `faults.rs`
//!        │                        ▲
//!        └──starts──▶ client processes (`client.rs`), likewise ──▶ one file of events each (`file.rs`)
//!                                                                        │
//!   a newcomer replays the log (`run.rs`) ──▶ all changes ──▶ `invariants/objects.rs` ◀──┘
//! ```
//! The checker is the simulation's. What is promised and what is told is the same there; the processes, the disks, the network
//! and the time are real here, and nothing can be repeated: a seed fixes what is drawn, not what happens when.

pub mod client;
mod cluster;
mod faults;
pub mod file;
pub mod plant;
mod processes;
pub mod report;
pub mod run;
