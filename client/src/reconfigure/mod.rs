//! Changes of layout, driven by clients: what the next layout is (`plan.rs`, pure), how it comes about (`drive.rs`), and
//! the first one (`genesis.rs`).
//!
//! ```text
//! second look ─▶ Prepare t+1 (majority) ─▶ Seal t+1 (sequencer, every unit) ─▶ plan ─▶ Propose ─▶ Learn
//!                     │ someone accepted: adopt it, skip the plan                              │
//!                     └────────────────────────────────────────────────────────▶ Announce ─▶ Bootstrap ─▶ Restore
//! ```
//! What people ask for, and what it would bring, (`wish.rs`) is worked out in `by_hand.rs` and `preview.rs` (pure), and carried out by
//! `carry_out.rs`; `servers.rs` sees to it that new layout servers know what they are to vote on.
//!
//! Every step is idempotent and any control client may take over from any other at any point.
//!
//! Sources: CORFU (NSDI '12), "Mapping in CORFU"; Lamport, *Paxos Made Simple*.

mod attend;
mod by_hand;
mod carry_out;
mod condition;
mod drive;
mod finish;
mod genesis;
mod heal;
mod opinion;
mod phases;
mod plan;
mod preview;
mod reach;
mod reset;
mod servers;
mod survey;
mod wish;
mod words;

pub(crate) use attend::{attend, needs_attention};
pub use carry_out::{carry_out, heal_all, left_to_copy, plan, restore};
pub(crate) use drive::make;
pub use drive::{ChangeError, change, mend, rebuild};
pub use genesis::{Genesis, InitError, init};
pub use heal::{Gap, gaps, heal, heal_unattended, is_short, may_take_spares};
pub(crate) use phases::Changes;
pub use phases::Phases;
pub use plan::{Change, PlanError, Seals, next};
pub use reset::{Reset, ResetError, reset_left_unit};
pub use servers::catch_up;

pub use crate::repair::{RepairError, Repaired, repair};
pub use preview::{Copying, Preview, Reached, Redundancy};
pub(crate) use reach::RELAYS_MAX;
pub use wish::{HandError, Wish};

#[cfg(test)]
mod by_hand_tests;
#[cfg(test)]
mod reach_tests;
#[cfg(test)]
mod servers_tests;
#[cfg(test)]
mod tests;
