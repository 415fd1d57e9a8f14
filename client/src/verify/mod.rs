//! Verifying: that all units of a chain hold the same, and that streams are whole.
//!
//! - K1 A violation is something that no crash, no loss of a unit and no write under way explains. Holes, entries not yet on
//!   their whole chain, trims not yet at every unit, damage and silence are told apart from it.
//! - K2 Verifying changes nothing: nothing is settled, repaired or mended by it.
//!
//! What is compared, `compare.rs` and `streams.rs` decide (pure); `online.rs` asks a running cluster. Whoever has the units'
//! directories before him asks those, and has the same compared.

mod compare;
mod online;
mod streams;

pub use compare::{Damage, Findings, Held, Record, Told, Violation, judge, links_crc};
pub use online::{Progress, VerifyOptions, verify};
pub use streams::{Sum, Trails};
