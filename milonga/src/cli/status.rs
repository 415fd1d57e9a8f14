//! `milonga cluster status`: the newest layout, what each server says of itself, and what to do about what is wrong.
//!
//! It looks and touches nothing: not even a control certificate mends here.

use std::time::Duration;

use milonga_client::{Log, Options, reconfigure};
use milonga_wire::{Kind, Layout, Server};
use serde::Serialize;

use super::Context;
use crate::failure::{Code, Failure, Outcome};
use crate::look::{Seen, Sight};
use crate::output::{bytes, json, line, table};

/// How long a server may take to say who it is, and how long the end may take to be confirmed.
const ANSWER: Duration = Duration::from_secs(1);
/// How long a majority of the layout servers may take, unless told otherwise.
const DEADLINE: Duration = Duration::from_secs(3);
/// Per mille of the time at work from which a chain is said to be at its limit: the rest is needed to take in what comes.
const AT_ITS_LIMIT: u32 = 700;
/// Between two looks of `--wait`.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Serialize)]
pub(super) struct Status {
    pub(super) health: &'static str,
    pub(super) term: Option<u64>,
    pub(super) end: Option<u64>,
    settled: Option<u64>,
    trimmed: Option<u64>,
    layout_servers: Vec<Row>,
    sequencer: Option<Row>,
    standbys: Vec<Row>,
    segments: Vec<Segment>,
    units: Vec<Row>,
    spares: Vec<Row>,
    left: Vec<Left>,
    lost: Vec<[u64; 2]>,
    issues: Vec<Issue>,
    /// What is not wrong, and could be better.
    advice: Vec<Issue>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    address: String,
    state: String,
    term: Option<u64>,
    highest: Option<u64>,
    bytes: Option<u64>,
    busy_per_mille: Option<u32>,
}

/// A unit that was left out and may come back. The cluster does without it, so it is no issue.
#[derive(Serialize)]
struct Left {
    name: String,
    address: String,
    state: String,
    text: String,
    fix: String,
}

#[derive(Serialize)]
struct Segment {
    start: u64,
    end: Option<u64>,
    stripe_width: u32,
    chains: Vec<Vec<String>>,
}

#[derive(Serialize)]
pub(super) struct Issue {
    code: &'static str,
    subject: String,
    text: String,
    fix: String,
}

impl std::fmt::Display for Issue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}; {}", self.subject, self.text, self.fix)
    }
}

pub(super) async fn run(context: &Context, wait: bool) -> Outcome {
    let log = context.cluster.connect_with(|options| {
        *options = Options {
            mend: false,
            settle: false,
            deadline: context.cluster.deadline.unwrap_or(DEADLINE),
            ..options.clone()
        }
    })?;
    let began = log.host().clock.now();
    loop {
        let status = Status::of(&log).await?;
        let waited = log.host().clock.now().since(began);
        if !wait || status.health == "ok" || waited > log.options().deadline {
            status.print(context)?;
            return status.outcome(wait);
        }
        log.host().clock.sleep(PAUSE).await;
    }
}

impl Status {
    pub(super) async fn of(log: &Log) -> Outcome<Self> {
        let decided = match log.newest_layout().await {
            Ok(decided) => decided,
            Err(milonga_client::Unavailable::Deadline { last, .. }) => {
                return Ok(Self::unreadable(last));
            }
            Err(error) => return Err(error.into()),
        };
        let layout = &decided.layout;
        let quick = log.with_deadline(ANSWER);
        let (sight, left, end, settled) = tokio::join!(
            biased;
            Sight::of(log.host(), layout, ANSWER),
            Sight::of_those_who_left(log.host(), layout, ANSWER),
            quick.end(),
            quick.settled()
        );
        let mut issues = issues(layout, &sight);
        if let Err(error) = &end {
            let fix = if sight.needs_mending() {
                "a caretaker mends it, or `milonga cluster rebuild-sequencer`"
            } else {
                "start the servers named here"
            };
            issues.push(issue(
                "no-end",
                "the log",
                format!("its end is not confirmed: {error}"),
                fix,
            ));
        }
        let said = |seen: &Seen| seen.said.as_ref().ok().map(|said| said.trimmed.0);
        Ok(Self {
            health: match (&end, issues.is_empty()) {
                (Ok(_), true) => "ok",
                (Ok(_), false) => "degraded",
                (Err(_), _) => "unavailable",
            },
            term: Some(layout.term.0),
            end: end.ok().map(|end| end.position.0),
            settled: settled.ok().map(|settled| settled.0),
            trimmed: sight.units.iter().filter_map(said).max(),
            layout_servers: rows(&sight.layout_servers),
            sequencer: Some(Row::of(&sight.sequencer)),
            standbys: rows(&sight.standbys),
            segments: segments(layout),
            units: rows(&sight.units),
            spares: sight.spares.iter().map(Row::of_spare).collect(),
            left: left.iter().map(Left::of).collect(),
            lost: layout
                .lost
                .iter()
                .map(|lost| [lost.start.0, lost.end.0])
                .collect(),
            issues,
            advice: at_the_limit(layout, &sight).into_iter().collect(),
        })
    }

    fn unreadable(why: String) -> Self {
        let fix = "start a majority of the layout servers; compare `layout` and `ca` in the cluster file with theirs";
        Self {
            health: "unavailable",
            term: None,
            end: None,
            settled: None,
            trimmed: None,
            layout_servers: vec![],
            sequencer: None,
            standbys: vec![],
            segments: vec![],
            units: vec![],
            spares: vec![],
            left: vec![],
            lost: vec![],
            issues: vec![issue("no-majority", "the layout servers", why, fix)],
            advice: vec![],
        }
    }

    fn outcome(&self, waited: bool) -> Outcome {
        match (self.term, self.health) {
            (None, _) => {
                let why = self.issues.first().map_or("", |issue| issue.text.as_str());
                Err(Failure::new(
                    Code::Unavailable,
                    format!("no layout was read: {why}"),
                ))
            }
            (Some(_), health) if waited && health != "ok" => Err(Failure::new(
                Code::Unavailable,
                format!("its health is {health}, expected ok; try a longer --deadline"),
            )),
            (Some(_), _) => Ok(()),
        }
    }

    fn print(&self, context: &Context) -> Outcome {
        if context.output.is_json() {
            return line(&json(self));
        }
        let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
        line(&format!(
            "health {}   term {}   end {}   settled {}   trimmed {}\n",
            self.health,
            number(self.term),
            number(self.end),
            number(self.settled),
            number(self.trimmed)
        ))?;
        self.print_servers()?;
        for segment in &self.segments {
            let chains: Vec<String> = segment
                .chains
                .iter()
                .map(|chain| chain.join(" > "))
                .collect();
            let end = segment.end.map_or(String::new(), |end| end.to_string());
            line(&format!("{}..{end}  {}", segment.start, chains.join("   ")))?;
        }
        if !self.lost.is_empty() {
            let lost = self
                .lost
                .iter()
                .map(|[start, end]| format!("{start}..{end}"));
            let lost: Vec<String> = lost.collect();
            line(&format!("declared lost: {}", lost.join(", ")))?;
        }
        for left in &self.left {
            line(&format!(
                "\nleft out: {} {}; {}",
                left.name, left.text, left.fix
            ))?;
        }
        for issue in self.issues.iter().chain(&self.advice) {
            line(&format!("\n{}: {issue}", issue.code))?;
        }
        Ok(())
    }

    fn print_servers(&self) -> Outcome {
        let roles = [
            ("layout", self.layout_servers.iter().collect::<Vec<_>>()),
            ("sequencer", self.sequencer.iter().collect()),
            ("standby", self.standbys.iter().collect()),
            ("log unit", self.units.iter().collect()),
            ("spare", self.spares.iter().collect()),
        ];
        let rows = roles
            .iter()
            .flat_map(|(role, rows)| rows.iter().map(move |row| row.cells(role)));
        line(&table(
            &[
                "ROLE", "NAME", "ADDRESS", "STATE", "TERM", "HIGHEST", "BYTES", "BUSY",
            ],
            rows,
        ))?;
        line("")
    }
}

impl Row {
    fn of(seen: &Seen) -> Self {
        let said = seen.said.as_ref().ok();
        let is_unit = seen.kind == Kind::LogUnit;
        Self {
            name: seen.listed.name.to_string(),
            address: seen.listed.address.to_string(),
            state: state(seen),
            term: said.map(|said| said.term.0),
            highest: said.and_then(|said| said.end.0.checked_sub(1)),
            bytes: said.filter(|_| is_unit).map(|said| said.bytes),
            busy_per_mille: said.filter(|_| is_unit).map(|said| said.busy_per_mille),
        }
    }

    /// A spare takes part in no term, whatever was sealed at it.
    fn of_spare(seen: &Seen) -> Self {
        let row = Self::of(seen);
        let is_ready = matches!(row.state.as_str(), "restarted" | "sealed");
        Self {
            state: if is_ready {
                "ready".to_owned()
            } else {
                row.state
            },
            ..row
        }
    }

    fn cells(&self, role: &str) -> Vec<String> {
        let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
        vec![
            role.to_owned(),
            self.name.clone(),
            self.address.clone(),
            self.state.clone(),
            number(self.term),
            number(self.highest),
            self.bytes.map_or("-".to_owned(), bytes),
            self.busy_per_mille
                .map_or("-".to_owned(), |busy| format!("{} %", busy / 10)),
        ]
    }
}

impl Left {
    fn of(seen: &Seen) -> Self {
        let state = seen.said.as_ref().map(|said| said.state.as_str());
        let (text, fix) = match state {
            Err(why) => (
                format!("does not answer: {why}"),
                "start it, or look at its log; it comes back by itself, empty, when it has answered for a while",
            ),
            Ok("failed") => (
                "takes no writes: its disk failed".to_owned(),
                "check its disk, or give it another, then restart it; it comes back by itself, empty",
            ),
            Ok("full") => (
                "takes no new records: its disk is full".to_owned(),
                "add space, and it comes back by itself, empty; or `milonga cluster reset-unit ADDRESS`",
            ),
            Ok(_) => (
                "answers again".to_owned(),
                "it comes back by itself, empty, when it has answered and written for a while and nothing is missing that it may hold",
            ),
        };
        let Server { name, address, .. } = &seen.listed;
        Self {
            name: name.to_string(),
            address: address.to_string(),
            state: state.unwrap_or("silent").to_owned(),
            text,
            fix: fix.replace("ADDRESS", address.as_str()),
        }
    }
}

/// In the order of their names, `unit-10` behind `unit-9`.
fn rows(seen: &[Seen]) -> Vec<Row> {
    let mut rows: Vec<Row> = seen.iter().map(Row::of).collect();
    rows.sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
    rows
}

fn state(seen: &Seen) -> String {
    match &seen.said {
        Err(_) => "silent".to_owned(),
        Ok(said) if said.identity != seen.listed.identity => "replaced".to_owned(),
        Ok(said) => said.state.clone(),
    }
}

fn segments(layout: &Layout) -> Vec<Segment> {
    let names = |units: &mut dyn Iterator<Item = &Server>| -> Vec<String> {
        units.map(|unit| unit.name.to_string()).collect()
    };
    let segments = layout.segments.iter().map(|segment| Segment {
        start: segment.start.0,
        end: segment.end.map(|end| end.0),
        stripe_width: segment.stripe_width,
        chains: segment
            .chains
            .iter()
            .map(|chain| names(&mut layout.units_of(chain)))
            .collect(),
    });
    segments.collect()
}

fn issue(
    code: &'static str,
    subject: impl Into<String>,
    text: impl Into<String>,
    fix: impl Into<String>,
) -> Issue {
    Issue {
        code,
        subject: subject.into(),
        text: text.into(),
        fix: fix.into(),
    }
}

/// Advice if every chain has a unit whose disk is at work nearly all the time: appends go no faster on these chains. None while
/// copies keep disks at work.
fn at_the_limit(layout: &Layout, sight: &Sight) -> Option<Issue> {
    if reconfigure::is_short(layout) {
        return None;
    }
    let busy = |unit: &Server| {
        let seen = sight
            .units
            .iter()
            .find(|seen| seen.listed.identity == unit.identity)?;
        Some(seen.said.as_ref().ok()?.busy_per_mille)
    };
    let chains = &layout.open_segment().chains;
    let chains = chains
        .iter()
        .map(|chain| layout.units_of(chain).filter_map(busy).collect());
    let least = least_busy(&chains.collect::<Vec<_>>()).filter(|least| *least >= AT_ITS_LIMIT)?;
    let units = vec!["ADDRESS"; layout.settings.replicas.into()].join(",");
    Some(issue(
        "chains-limit",
        "the chains",
        format!(
            "are what may limit appends: in each the disk of a unit was at work for {} % or more of the last ten seconds",
            least / 10
        ),
        format!(
            "start as many units as a chain has, on disks of their own, then `milonga cluster add-chain {units} --plan`"
        ),
    ))
}

/// The least busy chain's busiest unit, per mille: a chain is as busy as its busiest unit, and one that nobody answers for is idle.
fn least_busy(chains: &[Vec<u32>]) -> Option<u32> {
    let busiest = chains.iter().map(|units| units.iter().copied().max());
    busiest.map(Option::unwrap_or_default).min()
}

/// What is wrong, server by server, then chain by chain. Every fix names the command that does it.
fn issues(layout: &Layout, sight: &Sight) -> Vec<Issue> {
    let deciding = "or put another in its place: `milonga cluster set-layout-servers` with all that are to decide";
    let issuing = "or let a standby take over: `milonga cluster rebuild-sequencer`";
    let with = |seen: &Seen, otherwise: String| silent(seen, &otherwise).or_else(|| replaced(seen));
    let named = |seen: &Seen, commands: &[&str]| {
        let name = seen.listed.name.as_str();
        let commands = commands.iter().map(|command| {
            let command = command.replace("NAME", name);
            format!("`milonga cluster {command}`")
        });
        format!(
            "or do without it: {}",
            commands.collect::<Vec<_>>().join(" or ")
        )
    };
    let mut found: Vec<Issue> = vec![];
    for seen in &sight.layout_servers {
        found.extend(with(seen, deciding.to_owned()));
        found.extend(lagging(seen, layout));
    }
    found.extend(with(&sight.sequencer, issuing.to_owned()));
    for seen in &sight.standbys {
        found.extend(with(seen, named(seen, &["remove-standby NAME"])));
    }
    for seen in &sight.units {
        let without = named(seen, &["evict NAME", "replace NAME ADDRESS"]);
        found.extend(with(seen, without));
    }
    for seen in &sight.spares {
        found.extend(with(seen, named(seen, &["remove-unit NAME"])));
    }
    found.extend(
        sight
            .units
            .iter()
            .filter_map(|unit| not_serving(unit, sight)),
    );
    found.extend(sight.units.iter().filter_map(damaged));
    found.extend(not_serving(&sight.sequencer, sight));
    found.extend(short(layout));
    found
}

/// What keeps the cluster from full strength.
pub(super) fn short(layout: &Layout) -> Vec<Issue> {
    let mut found = short_chains(layout);
    found.extend(short_ranges(layout));
    found
}

/// A layout server that answers and does not know the newest layout: it votes on nothing.
fn lagging(seen: &Seen, layout: &Layout) -> Option<Issue> {
    let said = seen.said.as_ref().ok()?;
    let lags = said.identity == seen.listed.identity && said.term < layout.term;
    lags.then(|| {
        issue(
            "lagging",
            seen.listed.name.as_str(),
            format!("knows the layouts up to term {} of {}", said.term, layout.term),
            "a caretaker teaches it, or the next change does, e.g. `milonga cluster rebuild-sequencer`; if it stays behind, it holds another history: \
             give it an empty directory, then `milonga cluster set-layout-servers` with its name among the others",
        )
    })
}

/// Chains that new positions go to, and that have fewer units than they should.
fn short_chains(layout: &Layout) -> Vec<Issue> {
    let replicas = usize::from(layout.settings.replicas);
    let chains = layout.open_segment().chains.iter().enumerate();
    let short = chains.filter(|(_, chain)| chain.units.len() < replicas);
    let issues = short.map(|(number, chain)| {
        let text = format!("has {} of {replicas} units", chain.units.len());
        let fix = if layout.spares.is_empty() {
            format!(
                "start a new log unit, then `milonga cluster add-unit {number} ADDRESS --wait`; \
                 or, if units that were left out answer, `milonga cluster heal --wait`; or `milonga cluster set replicas=N`"
            )
        } else {
            "a caretaker gives it a spare, or `milonga cluster heal --wait`".to_owned()
        };
        issue("short-chain", format!("chain {number}"), text, fix)
    });
    issues.collect()
}

/// Closed positions that fewer units hold than should, or that nobody answers for.
fn short_ranges(layout: &Layout) -> Vec<Issue> {
    let replicas = usize::from(layout.settings.replicas);
    let can_heal = reconfigure::gaps(layout);
    let mut issues = vec![];
    for segment in layout
        .segments
        .iter()
        .filter(|segment| segment.end.is_some())
    {
        let span = segment.span();
        for (number, chain) in segment.chains.iter().enumerate() {
            let subject = format!("chain {number} of {span}");
            let names = layout.units_of(chain).map(|unit| unit.name.to_string());
            let names = names.collect::<Vec<_>>().join(", ");
            if chain.unreachable {
                let text =
                    format!("cannot be read: {names} did not answer when the layout was made");
                let fix = format!(
                    "start {names} again; if nobody of them comes back, `milonga cluster declare-lost {span} --plan`"
                );
                issues.push(issue("unreachable", subject, text, fix));
            } else if chain.units.len() < replicas {
                let copies = chain.units.len();
                let text = format!("has {copies} of {replicas} copies");
                let here =
                    |gap: &reconfigure::Gap| (gap.segment, gap.chain) == (segment.start, number);
                let fix = if can_heal.iter().any(here) {
                    "a caretaker copies it, or `milonga cluster heal --wait`"
                } else {
                    "start a new log unit, then `milonga cluster add-spare ADDRESS` and `milonga cluster heal --wait`; \
                     or `milonga cluster set replicas=N`"
                };
                issues.push(issue("short-range", subject, text, fix));
            }
        }
    }
    issues
}

/// `otherwise` is what can be done if it does not come back.
fn silent(seen: &Seen, otherwise: &str) -> Option<Issue> {
    let why = seen.said.as_ref().err()?;
    let fix = format!("start it, or look at its log; {otherwise}");
    Some(issue(
        "silent",
        seen.listed.name.as_str(),
        format!("does not answer: {why}"),
        fix,
    ))
}

fn replaced(seen: &Seen) -> Option<Issue> {
    let said = seen.said.as_ref().ok()?;
    let (name, address) = (&seen.listed.name, &seen.listed.address);
    let instead = match seen.kind {
        Kind::LogUnit => format!("`milonga cluster replace {name} {address}`"),
        Kind::Layout => {
            "`milonga cluster set-layout-servers` with its name among the others".to_owned()
        }
        Kind::Sequencer => "`milonga cluster rebuild-sequencer`".to_owned(),
    };
    let fix = format!(
        "give it back the directory that the layout knows, or take it as a new one: {instead}"
    );
    (said.identity != seen.listed.identity).then(|| {
        issue(
            "replaced",
            seen.listed.name.as_str(),
            "runs on another directory than the layout lists",
            fix,
        )
    })
}

fn damaged(seen: &Seen) -> Option<Issue> {
    let said = seen.said.as_ref().ok().filter(|said| said.damaged > 0)?;
    let text = format!(
        "holds {} records that it cannot read any more",
        said.damaged
    );
    let fix = "a caretaker or any control client repairs it from its peers; or `milonga cluster repair`; \
               check its disk";
    Some(issue("damaged", seen.listed.name.as_str(), text, fix))
}

fn not_serving(seen: &Seen, sight: &Sight) -> Option<Issue> {
    let said = seen.said.as_ref().ok()?;
    let mended = "a caretaker or any control client makes the next term; \
                  or `milonga cluster rebuild-sequencer`";
    let name = seen.listed.name.as_str();
    if said.identity != seen.listed.identity {
        return None;
    }
    match said.state.as_str() {
        "failed" => {
            let fix = format!(
                "check its disk, then restart it; or `milonga cluster evict {name}`, or `milonga cluster replace {name} ADDRESS`"
            );
            Some(issue(
                "disk-failed",
                name,
                "takes no writes: its disk failed",
                fix,
            ))
        }
        "full" => {
            let fix = "`milonga log trim POSITION`, or add space; or, if there are other chains, `milonga cluster remove-chain CHAIN` lets them take all that is new";
            Some(issue(
                "disk-full",
                name,
                "takes no new records: its disk is full",
                fix,
            ))
        }
        _ if !seen.is_as_listed() => Some(issue(
            "restarted",
            name,
            "was restarted since the layout was made",
            mended,
        )),
        "serving" if said.term == sight.term => None,
        state => {
            let text = format!(
                "is {state} in term {}, the layout is of {}",
                said.term, sight.term
            );
            Some(issue("half-done", name, text, mended))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_at_their_limit_when_none_has_time_to_spare() {
        for (chains, busy) in [
            (vec![vec![100, 900], vec![800]], Some(800)),
            (vec![vec![900], vec![100, 200]], Some(200)),
            (vec![vec![900], vec![]], Some(0)),
            (vec![], None),
        ] {
            assert_eq!(least_busy(&chains), busy, "{chains:?}");
        }
    }
}
