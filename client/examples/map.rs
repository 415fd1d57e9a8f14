//! Counts its own starts in a replicated map, whichever machine it is started on, and shows what the map holds.
//!
//! ```text
//! cargo run -p milonga-client --example map -- milonga.toml
//! ```
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::path::PathBuf;

use milonga_client::ClusterConfig;
use milonga_client::object::map::{Cas, Expect, Keys};
use milonga_client::object::{Map, Objects};

const KEY: &str = "examples/starts";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("usage: map CLUSTER-FILE")?;
    let log = ClusterConfig::load(&PathBuf::from(file))?.connect()?;
    let map = Map::open(&Objects::new(&log), "default").await?;

    // Read, compute, compare and set; if another was faster, again.
    loop {
        let now = map.get(KEY.as_bytes()).await?;
        let starts: u64 = match &now {
            Some(now) => std::str::from_utf8(&now.value)?.parse()?,
            None => 0,
        };
        let expect = now.map_or(Expect::Absent, |now| Expect::Version(now.version));
        match map.cas(KEY, expect, (starts + 1).to_string()).await? {
            Cas::Done { position } => {
                println!("start {}, decided at position {position}", starts + 1);
                break;
            }
            Cas::Conflict { .. } => println!("another was faster"),
        }
    }

    let mut keys = Keys::all();
    loop {
        let page = map.scan(&keys, 100).await?;
        for (key, found) in &page.entries {
            let (key, value) = (
                String::from_utf8_lossy(key),
                String::from_utf8_lossy(&found.value),
            );
            println!("{key} = {value} (version {})", found.version);
        }
        match page.entries.last() {
            Some((last, _)) if page.more => keys = keys.after(last.clone()),
            Some(_) | None => return Ok(()),
        }
    }
}
