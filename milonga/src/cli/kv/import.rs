//! Puts what `milonga kv export` printed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use bytes::Bytes;
use futures_util::future::try_join_all;
use milonga_client::object::Map;
use milonga_client::object::map::KEY_BYTES_MAX;
use milonga_wire::limits::ENTRY_BYTES_MAX;
use serde::Serialize;

use super::pair::Pair;
use crate::cli::Context;
use crate::failure::{Failure, Outcome};
use crate::output::progress;

/// Imported lines that are under way at once.
const IMPORTED: usize = 256;

#[derive(Serialize)]
struct Imported {
    #[serde(rename = "imported")]
    keys: u64,
    position: Option<u64>,
    /// Keys that were bound to a lease, which is not there any more or has other keys.
    passed_over: u64,
}

/// Puts lines side by side, but never two of one key: the later one must win.
pub(super) async fn import(context: &Context, map: &Map, path: &Path) -> Outcome {
    let file = File::open(path).map_err(|why| Failure::file(path, why))?;
    let bar = progress(None, "keys");
    let mut done = Imported {
        keys: 0,
        position: None,
        passed_over: 0,
    };
    let mut keys = BTreeSet::new();
    let mut batch: Vec<(Bytes, Bytes)> = vec![];
    for (number, text) in (1..).zip(BufReader::new(file).lines()) {
        let put = done.keys;
        let wrong = |why: &dyn std::fmt::Display| {
            let text = format!("line {number}: {why}; {put} keys were put, which may be put again");
            Failure::file(path, text)
        };
        let text = text.map_err(|why| wrong(&why))?;
        if text.trim().is_empty() {
            continue;
        }
        let pair: Pair = serde_json::from_str(&text).map_err(|why| wrong(&why))?;
        let (key, value) = pair.bytes().map_err(|why| wrong(&why))?;
        if pair.lease.is_some() {
            done.passed_over += 1;
            continue;
        }
        if key.len() > KEY_BYTES_MAX || key.len() + value.len() > ENTRY_BYTES_MAX {
            let (key, value) = (key.len(), value.len());
            return Err(wrong(&format!(
                "a key of {key} and a value of {value} bytes; expected a key up to {KEY_BYTES_MAX}, and {ENTRY_BYTES_MAX} together"
            )));
        }
        if batch.len() == IMPORTED || !keys.insert(key.clone()) {
            done.put(map, &mut batch).await?;
            keys = BTreeSet::from([key.clone()]);
        }
        batch.push((key, value));
        bar.set_position(done.keys);
    }
    done.put(map, &mut batch).await?;
    bar.finish_and_clear();
    context.output.one(&done, || match done.passed_over {
        0 => format!("{} keys imported", done.keys),
        bound => format!(
            "{} keys imported, {bound} passed over that were bound to a lease",
            done.keys
        ),
    })
}

impl Imported {
    async fn put(&mut self, map: &Map, batch: &mut Vec<(Bytes, Bytes)>) -> Outcome {
        let puts = batch.drain(..).map(|(key, value)| map.put(key, value));
        let positions = try_join_all(puts).await?;
        self.keys += positions.len() as u64;
        self.position = positions
            .iter()
            .map(|position| position.0)
            .max()
            .max(self.position);
        Ok(())
    }
}
