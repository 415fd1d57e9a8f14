//! The sequencer: a counter and the last positions of every stream, in memory only.
//!
//! [`Counter`] decides and never waits; [`Sequencer`] moves messages and asks the layout servers. Nothing here touches
//! a disk: a restarted sequencer issues nothing until a later term names its new process start.
//!
//! ```text
//! control client          sequencer              layout servers
//!     │── Seal(t) ───────────▶│  issues nothing below t
//!     │◀─ counter ────────────│
//!     │     (the layout of t is decided)
//!     │── Bootstrap(t, tails) ▶│  issues in t
//! client                      │
//!     │── Tokens(t) ─────────▶│  answered at once
//!     │── End(t) ────────────▶│── Confirm(t) ─────────▶│  a round that began after the request
//!     │◀─ end ────────────────│◀─ Confirmed, majority ──│
//! ```

mod config;
mod confirm;
mod counter;
mod server;
mod streams;

pub use config::{Config, ConfigError, Settings};
pub use counter::{Counter, Standing};
pub use server::Sequencer;
