//! Milonga.
