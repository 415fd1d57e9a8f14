//! Milonga.

pub mod bench;
