//! Prints the records of the log, or of one of its streams, from a position on, and then each new one as it comes.
//!
//! ```text
//! cargo run -p milonga-client --example follow -- milonga.toml 0 [STREAM]
//! ```
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::path::PathBuf;

use milonga_client::{ClusterConfig, EntryKind, Position, StreamId};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: follow CLUSTER-FILE POSITION [STREAM]";
    let file = arguments.next().ok_or(usage)?;
    let from = Position(arguments.next().ok_or(usage)?.parse()?);
    let stream = arguments.next().map(|name| StreamId::of_name(&name));
    let log = ClusterConfig::load(&PathBuf::from(file))?.connect()?;

    let mut follower = log.follow(from);
    loop {
        let entry = follower.next().await?;
        match &entry.kind {
            EntryKind::Data {
                streams, payload, ..
            } => {
                let is_wanted =
                    stream.is_none_or(|stream| streams.iter().any(|link| link.stream == stream));
                if is_wanted {
                    println!("{} {}", entry.position, String::from_utf8_lossy(payload));
                }
            }
            // Holes that somebody had to end hold nothing, for ever.
            EntryKind::Junk { .. } => {}
            EntryKind::Trimmed | EntryKind::Unwritten | EntryKind::Unknown => {
                println!("{} {:?}", entry.position, entry.kind);
            }
        }
    }
}
