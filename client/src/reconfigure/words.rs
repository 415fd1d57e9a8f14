//! What a change of layout changed, in the words that `cluster layouts` shows.

use std::collections::BTreeSet;

use milonga_wire::{Identity, Layout, Server};

use crate::reconfigure::drive::cut;

/// What is different, in a few words.
pub(super) fn changed(old: &Layout, new: &Layout) -> String {
    let mut words = units(old, new);
    words.extend(chains(old, new));
    words.extend(copies(old, new));
    words.extend(servers(old, new));
    words.extend(settings(old, new));
    if words.is_empty() {
        words.push("same servers".to_owned());
    }
    words.push(format!("{} issues positions", new.sequencer.name));
    cut(words.join("; "))
}

/// The names of those in `of` that `not` has not.
fn only(of: &[Server], not: &[Server]) -> Vec<String> {
    let is_there = |one: &&Server| not.iter().all(|other| other.identity != one.identity);
    let only = of.iter().filter(is_there);
    only.map(|server| server.name.to_string()).collect()
}

fn said(names: &[String], verb: &str) -> Option<String> {
    (!names.is_empty()).then(|| format!("{} {verb}", names.join(", ")))
}

fn units(old: &Layout, new: &Layout) -> Vec<String> {
    let open = |layout: &Layout| -> BTreeSet<Identity> {
        let chains = layout.open_segment().chains.iter();
        chains
            .flat_map(|chain| chain.units.iter().copied())
            .collect()
    };
    let (before, after) = (open(old), open(new));
    let closed_only = before.difference(&after).filter_map(|unit| new.unit(*unit));
    let closed_only: Vec<String> = closed_only.map(|unit| unit.name.to_string()).collect();
    let all = |layout: &Layout| [layout.units.clone(), layout.spares.clone()].concat();
    let ready = only(&new.spares, &all(old));
    [
        said(&only(&new.units, &old.units), "added"),
        said(&only(&old.units, &all(new)), "removed"),
        said(&ready, "stands ready"),
        said(&only(&old.spares, &all(new)), "removed"),
        said(&closed_only, "kept for what is closed only"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn chains(old: &Layout, new: &Layout) -> Vec<String> {
    let (before, after) = (old.open_segment(), new.open_segment());
    let mut words = vec![];
    if before.chains.len() != after.chains.len() {
        let (from, to) = (before.chains.len(), after.chains.len());
        words.push(format!("{to} chains instead of {from}"));
    }
    if before.stripe_width != after.stripe_width {
        words.push(format!("stripes of {}", after.stripe_width));
    }
    words
}

/// Who is listed for closed positions that others held alone before.
fn copies(old: &Layout, new: &Layout) -> Option<String> {
    let mut listed = BTreeSet::new();
    for segment in new.segments.iter().filter(|segment| segment.end.is_some()) {
        let before = old.segment_of(segment.start);
        if before.chains.len() != segment.chains.len() || before.end.is_none() {
            continue;
        }
        for (chain, before) in segment.chains.iter().zip(&before.chains) {
            let is_new = |unit: &&Identity| !before.units.contains(unit);
            listed.extend(chain.units.iter().filter(is_new));
        }
    }
    let names: Vec<String> = listed
        .iter()
        .filter_map(|unit: &&Identity| new.unit(**unit))
        .map(|unit| unit.name.to_string())
        .collect();
    said(&names, "listed for closed positions, too")
}

fn servers(old: &Layout, new: &Layout) -> Vec<String> {
    let names = |servers: &[Server]| -> Vec<String> {
        servers.iter().map(|one| one.name.to_string()).collect()
    };
    let mut words = vec![];
    let identities = |layout: &Layout| -> Vec<Identity> {
        let servers = layout.layout_servers.iter();
        servers.map(|server| server.identity).collect()
    };
    if identities(old) != identities(new) {
        let names = names(&new.layout_servers).join(", ");
        words.push(format!("layout servers {names}"));
    }
    let sequencers =
        |layout: &Layout| [vec![layout.sequencer.clone()], layout.standbys.clone()].concat();
    let (before, after) = (sequencers(old), sequencers(new));
    words.extend(said(&only(&after, &before), "stands by"));
    words.extend(said(&only(&before, &after), "no longer stands by"));
    words
}

fn settings(old: &Layout, new: &Layout) -> Vec<String> {
    let (before, after) = (&old.settings, &new.settings);
    let mut words = vec![];
    if before.replicas != after.replicas {
        words.push(format!("replicas {}", after.replicas));
    }
    if before.trust_restarted != after.trust_restarted {
        let trusted = if after.trust_restarted {
            "always"
        } else {
            "never"
        };
        words.push(format!("trust-restarted {trusted}"));
    }
    if old.lost != new.lost {
        let lost = new.lost.iter().filter(|span| !old.lost.contains(span));
        let lost: Vec<String> = lost.map(ToString::to_string).collect();
        words.push(format!("declared lost: {}", lost.join(", ")));
    }
    words
}
