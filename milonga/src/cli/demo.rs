//! `milonga demo`: a tour on a cluster of its own, with real processes, a real file and real kills.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use milonga_client::object::{Map, Objects};
use milonga_client::reconfigure;
use milonga_client::verify::VerifyOptions;
use milonga_client::{ClusterConfig, Log, Span, Term};
use serde::Serialize;

use super::{Context, wait};
use crate::dev;
use crate::failure::{Code, Failure, Outcome};
use crate::output::{bytes, say};

/// Bytes of each record of the file.
const RECORD: usize = 4 << 10;
/// Keys that are put and got.
const KEYS: u32 = 100;
/// Files that most machines have.
const USUAL: [&str; 4] = [
    "README.md",
    "/etc/services",
    "/etc/protocols",
    "/etc/passwd",
];

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  milonga demo
  milonga demo --file big.bin -o json")]
pub(super) struct Demo {
    /// Where the cluster is kept [default: a temporary directory, removed afterwards].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The file to append.
    #[arg(long)]
    file: Option<PathBuf>,
}

/// What was seen.
#[derive(Default, Serialize)]
struct Summary {
    file: String,
    bytes: u64,
    records: u64,
    keys: u32,
    terms: Vec<u64>,
    /// Entries of log units that were compared with their peers'.
    checked: u64,
    verified: bool,
}

impl Demo {
    pub(super) fn run(&self, context: &Context) -> Outcome {
        let own = tempfile::tempdir()
            .map_err(|why| Failure::failed(format!("no temporary directory: {why}")))?;
        let dir = self
            .dir
            .clone()
            .unwrap_or_else(|| own.path().join("cluster"));
        let file = self.file()?;
        say(
            "1. starting a cluster: 3 layout servers, 2 sequencers, 2 chains of 3 log units, a spare",
        );
        let cluster = dev::Child::start(&dir, &[])?;
        wait(context, tour(context, &cluster, &file))
    }

    fn file(&self) -> Outcome<PathBuf> {
        let usual = || USUAL.iter().map(PathBuf::from).find(|path| path.exists());
        let none = || Failure::usage("there is no file to append; try --file FILE");
        self.file.clone().or_else(usual).ok_or_else(none)
    }
}

async fn tour(context: &Context, cluster: &dev::Child, path: &Path) -> Outcome {
    let log = ClusterConfig::load(&cluster.dir().join(crate::connect::FILE))?.connect()?;
    let original = std::fs::read(path).map_err(|why| Failure::file(path, why))?;
    let mut summary = Summary {
        file: path.display().to_string(),
        bytes: original.len() as u64,
        ..Summary::default()
    };
    summary.terms.push(log.layout().await?.layout.term.0);

    let records: Vec<Bytes> = original
        .chunks(RECORD)
        .map(Bytes::copy_from_slice)
        .collect();
    let positions = log.producer(&[]).append(&records).await?;
    summary.records = positions.len() as u64;
    let span = match (positions.first(), positions.last()) {
        (Some(first), Some(last)) => Span::new(*first, last.next()),
        _ => return Err(Failure::usage("the file is empty; try --file FILE")),
    };
    say(format_args!(
        "2. appended {} ({}) at {span}",
        path.display(),
        bytes(summary.bytes)
    ));
    verify(&log, span, &original).await?;
    say("3. read it back: byte for byte the same");

    keys(&log).await?;
    summary.keys = KEYS;
    say(format_args!(
        "4. put {KEYS} keys of a replicated map and got them back"
    ));

    let sequencer = log.layout().await?.layout.sequencer.name.to_string();
    cluster.kill(&sequencer)?;
    let (term, name) = next_term(&log, "after").await?;
    summary.terms.push(term.0);
    say(format_args!(
        "5. killed {sequencer} (SIGKILL): {name} issues positions in term {term}"
    ));

    let unit = head(&log).await?;
    cluster.kill(&unit)?;
    let (term, _) = next_term(&log, "evicted").await?;
    summary.terms.push(term.0);
    say(format_args!(
        "6. killed {unit} (SIGKILL), the head of a chain: left out in term {term}, and {} took its place",
        spare_of(&log).await?
    ));

    let healed = heal(&log).await?;
    summary.terms.push(healed.0);
    say(format_args!(
        "7. copied to it what was closed before it came: full strength in term {healed}"
    ));

    verify(&log, span, &original).await?;
    keys(&log).await?;
    let findings =
        milonga_client::verify::verify(&log, &VerifyOptions::default(), &|_, _| {}).await?;
    if findings.is_bad() {
        return Err(Failure::new(
            Code::Damage,
            "log units of one chain differ; look with `milonga cluster verify`",
        ));
    }
    summary.checked = findings.checked;
    summary.verified = true;
    say(format_args!(
        "8. everything is still there, byte for byte, key for key; {} copies were compared, none differs\n",
        findings.checked
    ));
    context.output.one(&summary, || {
        format!(
            "{} bytes in {} records and {} keys survived two kills, in terms {:?}",
            summary.bytes, summary.records, summary.keys, summary.terms
        )
    })
}

/// The first unit of the first chain.
async fn head(log: &Log) -> Outcome<String> {
    let decided = log.newest_layout().await?;
    let layout = &decided.layout;
    let mut units = layout.units_of(&layout.open_segment().chains[0]);
    let head = units.next().map(|unit| unit.name.to_string());
    head.ok_or_else(|| Failure::failed("a chain has no units"))
}

/// The last unit of the first chain.
async fn spare_of(log: &Log) -> Outcome<String> {
    let decided = log.newest_layout().await?;
    let layout = &decided.layout;
    let units = layout.units_of(&layout.open_segment().chains[0]);
    let last = units.last().map(|unit| unit.name.to_string());
    last.ok_or_else(|| Failure::failed("a chain has no units"))
}

/// Copies what is to be copied. A caretaker may be faster.
async fn heal(log: &Log) -> Outcome<Term> {
    reconfigure::heal_all(log, "the demonstration").await?;
    Ok(log.newest_layout().await?.layout.term)
}

/// Appends until it works, and says in which term.
async fn next_term(log: &Log, record: &'static str) -> Outcome<(Term, String)> {
    log.with_deadline(std::time::Duration::from_secs(60))
        .append(record, &[])
        .await?;
    let decided = log.newest_layout().await?;
    let layout = &decided.layout;
    Ok((layout.term, layout.sequencer.name.to_string()))
}

async fn verify(log: &Log, span: Span, content: &[u8]) -> Outcome {
    let entries = log.read_range(span).await?;
    let read: Vec<u8> = entries
        .iter()
        .filter_map(|entry| entry.payload())
        .flatten()
        .copied()
        .collect();
    if read == content {
        return Ok(());
    }
    Err(Failure::new(
        Code::Damage,
        format!("what was read at {span} is not what was appended"),
    ))
}

async fn keys(log: &Log) -> Outcome {
    let map = Map::open(&Objects::new(log), "demo").await?;
    for number in 0..KEYS {
        let (key, value) = (format!("key-{number}"), format!("value-{number}"));
        if map.get_stale(key.as_bytes()).is_none() && map.get(key.as_bytes()).await?.is_none() {
            map.put(key, value).await?;
        }
    }
    for number in 0..KEYS {
        let found = map.get(format!("key-{number}").as_bytes()).await?;
        if found.is_none_or(|found| found.value != format!("value-{number}")) {
            return Err(Failure::new(
                Code::Damage,
                format!("key-{number} is not what was put"),
            ));
        }
    }
    Ok(())
}
