//! Reads of a map: one key, many, and changes as they come.

use bytes::Bytes;
use milonga_client::Position;
use milonga_client::object::map::{Change, Held, Keys, MapState, Page, Versioned};
use milonga_client::object::{Map, PlayError};

use super::pair::Pair;
use crate::cli::Context;
use crate::failure::{Code, Failure, Outcome};
use crate::output::raw;

/// Keys that are looked at at once.
const PAGE: usize = 1_000;
/// Bytes of values that are fetched from the log at once.
const FETCHED_BYTES: u64 = 8 << 20;

/// Which state is read.
#[derive(Debug, clap::Args)]
pub(super) struct When {
    /// As it was once the entry at this position had been applied.
    #[arg(long, value_name = "P")]
    at: Option<u64>,
    /// As of what is settled: a little old, perhaps.
    #[arg(long, conflicts_with = "at")]
    stale: bool,
}

impl When {
    /// The state to read; none for the one of now.
    async fn state(&self, map: &Map) -> Outcome<Option<MapState>> {
        let position = if self.stale {
            let log = map.view().log();
            let settled = log.settled().await?.min(log.end().await?.counter);
            settled.0.checked_sub(1).map(Position)
        } else {
            self.at.map(Position)
        };
        Ok(match position {
            Some(position) => Some(map.at(position).await?),
            None => None,
        })
    }
}

pub(super) async fn get(
    context: &Context,
    map: &Map,
    key: &str,
    when: &When,
    is_raw: bool,
) -> Outcome {
    let no_such_key = || Failure::new(Code::NotFound, format!("there is no key `{key}`"));
    let look = |state: &MapState| state.lease_of(key.as_bytes());
    let (found, lease) = if let Some(state) = when.state(map).await? {
        let found = state.get(key.as_bytes()).ok_or_else(no_such_key)?;
        let page = Page {
            entries: vec![(key.to_owned().into(), found)],
            more: false,
        };
        let found = map.fetch(page).await?.entries.pop();
        (found.map(|(_, found)| found), look(&state))
    } else {
        let found = map.get(key.as_bytes()).await?;
        (found, map.view().read_stale(look))
    };
    let found = found.ok_or_else(no_such_key)?;
    if is_raw {
        return raw(&found.value);
    }
    let pair = Pair::of(key.as_bytes(), &found).bound_to(lease);
    context
        .output
        .one(&pair, || String::from_utf8_lossy(&found.value).into_owned())
}

pub(super) async fn scan(
    context: &Context,
    map: &Map,
    keys: Keys,
    limit: usize,
    when: &When,
) -> Outcome {
    each(map, keys, limit, when, |pair| {
        context.output.one(pair, || pair.text())
    })
    .await
}

/// Hands every pair on, page by page.
pub(super) async fn each(
    map: &Map,
    mut keys: Keys,
    limit: usize,
    when: &When,
    print: impl Fn(&Pair) -> Outcome,
) -> Outcome {
    let state = when.state(map).await?;
    let mut left = limit;
    let (mut gone, mut missing) = (None, vec![]);
    while left > 0 {
        let look = |state: &MapState| {
            let mut page = state.scan(&keys, left.min(PAGE));
            cut(&mut page);
            let leases = page.entries.iter().map(|(key, _)| state.lease_of(key));
            let leases: Vec<_> = leases.collect();
            (page, leases)
        };
        let (page, leases) = match &state {
            Some(state) => look(state),
            None => map.view().read(look).await?,
        };
        let (last, more) = (page.entries.last().map(|(key, _)| key.clone()), page.more);
        let entries = match map.fetch(page.clone()).await {
            Ok(page) => page.entries.into_iter().map(there).collect(),
            // It was brought forward while it was looked for.
            Err(PlayError::Gone(position)) if state.is_none() && gone != Some(position) => {
                gone = Some(position);
                continue;
            }
            Err(PlayError::Gone(_)) => one_by_one(map, page).await?,
            Err(error) => return Err(error.into()),
        };
        left -= entries.len();
        for ((key, found), lease) in entries.into_iter().zip(leases) {
            match found {
                Some(found) => print(&Pair::of(&key, &found).bound_to(lease))?,
                None => missing.push(key.escape_ascii().to_string()),
            }
        }
        match last {
            Some(last) if more => keys = keys.after(last),
            Some(_) | None => break,
        }
    }
    match missing.first() {
        None => Ok(()),
        Some(first) => Err(Failure::failed(format!(
            "{} keys have values that were trimmed by force, the first `{first}`; all others were printed; put them again, or delete them",
            missing.len()
        ))),
    }
}

fn there((key, found): (Bytes, Versioned)) -> (Bytes, Option<Versioned>) {
    (key, Some(found))
}

/// What is left of a page some of whose values are gone.
async fn one_by_one(map: &Map, page: Page<Held>) -> Outcome<Vec<(Bytes, Option<Versioned>)>> {
    let mut all = vec![];
    for (key, held) in page.entries {
        let one = Page {
            entries: vec![(key.clone(), held)],
            more: false,
        };
        match map.fetch(one).await {
            Ok(one) => all.extend(one.entries.into_iter().map(there)),
            Err(PlayError::Gone(_)) => all.push((key, None)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

/// Leaves the rest to the next page if the values are too much to be fetched at once.
fn cut(page: &mut Page<Held>) {
    let mut bytes = 0;
    let fits = page.entries.iter().take_while(|(_, held)| {
        let is_first = bytes == 0;
        bytes += held.value.stored().map_or(0, |it| u64::from(it.bytes));
        is_first || bytes <= FETCHED_BYTES
    });
    let fits = fits.count();
    page.more |= fits < page.entries.len();
    page.entries.truncate(fits);
}

pub(super) async fn watch(context: &Context, map: &Map, keys: Keys, from: Position) -> Outcome {
    let mut watch = map.watch(keys, from);
    loop {
        let Change {
            position,
            key,
            value,
        } = watch.next().await?;
        let mut pair = Pair::new(&key, value.as_deref());
        pair.position = Some(position.0);
        context
            .output
            .one(&pair, || format!("{position}  {}", pair.text()))?;
    }
}
