//! Milonga in one place: the `milonga` binary, and a cluster to embed in tests.
//!
//! Commands and composition only: what the protocol does is in `milonga-client` and the three services.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = milonga::DevCluster::start().await?;
//! let position = cluster.log().append("hello", &[]).await?;
//! let entry = cluster.log().read(position).await?;
//! assert_eq!(entry.payload().map(|bytes| &bytes[..]), Some(&b"hello"[..]));
//! # Ok(())
//! # }
//! ```

pub mod bench;
mod caretaker;
pub mod cli;
mod connect;
mod dev;
mod failure;
mod look;
mod node;
mod output;
mod serve;

pub use dev::{DevBuilder, DevCluster};
pub use failure::{Code, Failure};
