//! A layout server: a durable acceptor that, with the others, decides the layout of every term.
//!
//! [`Acceptor`] decides and never waits, [`Store`] keeps what it must not forget, [`Server`] moves messages and makes
//! things durable before it answers. What a layout says is the proposers' business, what it may look like the wire's.

mod acceptor;
mod config;
mod opinion;
mod probe;
mod relay;
mod reports;
mod server;
mod store;

pub use acceptor::{Acceptor, Change, InvalidHistory, LAYOUT_BYTES_MAX, Step, Vote};
pub use config::{Config, ConfigError, Settings};
pub use reports::{Noted, Reports};
pub use server::Server;
pub use store::{Format, Found, OpenError, Store};
