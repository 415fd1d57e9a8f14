//! An object of one's own: the best score of each player, and who leads.
//!
//! ```text
//! cargo run -p milonga-client --example scores -- milonga.toml ada 17
//! ```
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

use milonga_client::object::{ImageError, ImageReader, ImageWriter, Object, Objects};
use milonga_client::{ClusterConfig, Position};

#[derive(Default)]
struct Scores(BTreeMap<String, u64>);

impl Object for Scores {
    const KIND: &'static str = "scores";
    type Update = (String, u64);
    type Outcome = bool;

    /// Whether it is the player's best.
    fn apply(&mut self, _: Position, (player, score): (String, u64)) -> bool {
        let best = self.0.entry(player).or_default();
        let is_better = score > *best;
        *best = score.max(*best);
        is_better
    }

    fn snapshot(&self, to: &mut ImageWriter) {
        self.0.iter().for_each(|score| to.write(&score));
    }

    fn restore(from: &mut ImageReader) -> Result<Self, ImageError> {
        let mut scores = BTreeMap::new();
        while let Some((player, score)) = from.read()? {
            scores.insert(player, score);
        }
        Ok(Self(scores))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let [file, player, score] = &std::env::args().skip(1).collect::<Vec<_>>()[..] else {
        return Err("usage: scores CLUSTER-FILE PLAYER SCORE".into());
    };
    let log = ClusterConfig::load(&PathBuf::from(file))?.connect()?;
    let scores = Objects::new(&log).open::<Scores>("scores").await?;
    let (position, is_best) = scores.update(&(player.clone(), score.parse()?)).await?;
    println!("noted at {position}; {player}'s best: {is_best}");
    let best = scores.read(|scores| {
        scores
            .0
            .iter()
            .max_by_key(|(_, score)| **score)
            .map(|(player, _)| player.clone())
    });
    println!("{} leads", best.await?.unwrap_or_default());
    Ok(())
}
