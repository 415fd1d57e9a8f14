//! `milonga cluster status`: the newest layout, what each server says of itself, and what to do about what is wrong.
//!
//! It looks and touches nothing: not even a control certificate mends here.

use std::time::Duration;

use milonga_client::{Log, Options};
use milonga_wire::{Layout, Server};
use serde::Serialize;

use super::Context;
use crate::failure::{Code, Failure, Outcome};
use crate::look::{Seen, Sight};
use crate::output::{bytes, json, line, table};

/// How long a server may take to say who it is, and how long the end may take to be confirmed.
const ANSWER: Duration = Duration::from_secs(1);
/// How long a majority of the layout servers may take, unless told otherwise.
const DEADLINE: Duration = Duration::from_secs(3);
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
    issues: Vec<Issue>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    address: String,
    state: String,
    term: Option<u64>,
    highest: Option<u64>,
    bytes: Option<u64>,
}

#[derive(Serialize)]
struct Segment {
    start: u64,
    end: Option<u64>,
    stripe_width: u32,
    chains: Vec<Vec<String>>,
}

#[derive(Serialize)]
struct Issue {
    code: &'static str,
    subject: String,
    text: String,
    fix: String,
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
        let (sight, end, settled) = tokio::join!(
            biased;
            Sight::of(log.host(), layout, ANSWER),
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
            spares: rows(&sight.spares),
            issues,
        })
    }

    fn unreadable(why: String) -> Self {
        let fix =
            "start the layout servers; compare `layout` and `ca` in the cluster file with theirs";
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
            issues: vec![issue("no-majority", "the layout servers", why, fix)],
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
        for issue in &self.issues {
            line(&format!(
                "\n{}: {} {}; {}",
                issue.code, issue.subject, issue.text, issue.fix
            ))?;
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
                "ROLE", "NAME", "ADDRESS", "STATE", "TERM", "HIGHEST", "BYTES",
            ],
            rows,
        ))?;
        line("")
    }
}

impl Row {
    fn of(seen: &Seen) -> Self {
        let said = seen.said.as_ref().ok();
        let is_unit = seen.kind == milonga_wire::Kind::LogUnit;
        Self {
            name: seen.listed.name.to_string(),
            address: seen.listed.address.to_string(),
            state: state(seen),
            term: said.map(|said| said.term.0),
            highest: said.and_then(|said| said.end.0.checked_sub(1)),
            bytes: said.filter(|_| is_unit).map(|said| said.bytes),
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
        ]
    }
}

fn rows(seen: &[Seen]) -> Vec<Row> {
    seen.iter().map(Row::of).collect()
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

/// What is wrong, server by server.
fn issues(layout: &Layout, sight: &Sight) -> Vec<Issue> {
    let mut found: Vec<Issue> = sight
        .layout_servers
        .iter()
        .chain([&sight.sequencer])
        .chain(&sight.standbys)
        .chain(&sight.units)
        .chain(&sight.spares)
        .filter_map(|seen| silent(seen).or_else(|| replaced(seen)))
        .collect();
    found.extend(
        sight
            .units
            .iter()
            .filter_map(|unit| not_serving(unit, sight)),
    );
    found.extend(sight.units.iter().filter_map(damaged));
    found.extend(not_serving(&sight.sequencer, sight));
    let replicas = usize::from(layout.settings.replicas);
    for (number, chain) in layout.open_segment().chains.iter().enumerate() {
        if chain.units.len() < replicas {
            let text = format!("has {} units, should have {replicas}", chain.units.len());
            found.push(issue(
                "short-chain",
                format!("chain {number}"),
                text,
                "give it a unit",
            ));
        }
    }
    found
}

fn silent(seen: &Seen) -> Option<Issue> {
    let why = seen.said.as_ref().err()?;
    let fix = "start it, or look at its log";
    Some(issue(
        "silent",
        seen.listed.name.as_str(),
        format!("does not answer: {why}"),
        fix,
    ))
}

fn replaced(seen: &Seen) -> Option<Issue> {
    let said = seen.said.as_ref().ok()?;
    let fix = "give it back the directory that the layout knows";
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
            let fix = "check its disk, then restart it";
            Some(issue(
                "disk-failed",
                name,
                "takes no writes: its disk failed",
                fix,
            ))
        }
        "full" => {
            let fix = "trim the log or add space";
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
