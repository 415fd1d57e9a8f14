//! Appends its arguments to the log, one record each, in order, and prints where they are.
//!
//! ```text
//! cargo run -p milonga-client --example append -- milonga.toml hello world
//! ```
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::path::PathBuf;

use milonga_client::{AppendError, ClusterConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments
        .next()
        .ok_or("usage: append CLUSTER-FILE RECORD…")?;
    let log = ClusterConfig::load(&PathBuf::from(file))?.connect()?;
    let records: Vec<_> = arguments.map(Into::into).collect();

    // A producer keeps the order of what it is given. Where order does not matter, `Log::append` may run many times at once.
    match log.producer(&[]).append(&records).await {
        Ok(positions) => {
            for position in positions {
                println!("{position}");
            }
            Ok(())
        }
        // An append ends in one of three ways; only of this one it is not known yet which.
        Err(AppendError::Unknown { saved, .. }) => {
            for (record, outcome) in log.resume(&saved).await? {
                println!("record {record}: {outcome:?}");
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
