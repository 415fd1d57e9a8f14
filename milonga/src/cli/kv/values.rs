//! Where a map keeps its values: in memory, or in the log.

use milonga_client::object::map::{MapState, Value};
use milonga_client::object::{Map, Object, Objects};
use serde::Serialize;

use super::existing;
use crate::cli::Context;
use crate::cli::log::size;
use crate::failure::Outcome;
use crate::output::bytes;

/// Where values are from now on.
#[derive(Debug, clap::Args)]
pub(super) struct Values {
    /// From now on values of at least so many bytes stay in the log when they are put, and are fetched when they are read.
    #[arg(long, value_parser = size, value_name = "SIZE", conflicts_with = "in_memory")]
    in_log_from: Option<u64>,
    /// From now on all values are in the memory of whoever opens the map.
    #[arg(long)]
    in_memory: bool,
}

#[derive(Serialize)]
struct Shown {
    in_log_from: Option<u64>,
    keys: u64,
    in_memory_bytes: u64,
    in_log: u64,
    in_log_bytes: u64,
    /// The lowest position at which a value stays.
    lowest: Option<u64>,
}

impl Shown {
    fn of(state: &MapState) -> Self {
        let mut shown = Self {
            in_log_from: state.in_log_from(),
            keys: state.len() as u64,
            in_memory_bytes: 0,
            in_log: 0,
            in_log_bytes: 0,
            lowest: state.refers_to().map(|lowest| lowest.0),
        };
        for (_, value) in state.values() {
            match value {
                Value::Here(value) => shown.in_memory_bytes += value.len() as u64,
                Value::InLog(stored) => {
                    shown.in_log += 1;
                    shown.in_log_bytes += u64::from(stored.bytes);
                }
            }
        }
        shown
    }

    fn text(&self) -> String {
        let rule = match self.in_log_from {
            Some(from) => format!("values of {} and more stay in the log", bytes(from)),
            None => "all values are in memory".to_owned(),
        };
        format!(
            "{rule}\n{} keys: {} of values in memory, {} values of {} in the log",
            self.keys,
            bytes(self.in_memory_bytes),
            self.in_log,
            bytes(self.in_log_bytes)
        )
    }
}

impl Values {
    pub(super) async fn run(self, context: &Context, objects: &Objects, name: &str) -> Outcome {
        let map = if self.in_log_from.is_some() || self.in_memory {
            let map = Map::open(objects, name).await?;
            map.keep_in_log(self.in_log_from).await?;
            map
        } else {
            existing(objects, name).await?
        };
        let shown = map.view().read(Shown::of).await?;
        context.output.one(&shown, || shown.text())
    }
}
