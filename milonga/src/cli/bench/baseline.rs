//! The baseline: the same transport, certificates, process count and disk with nothing in between.
//!
//! ```text
//! ping      one request at a time, answered at once           what a round trip costs
//! echo      many requests at a time, answered at once         what the network carries
//! commit    many writes at a time, to one unit                what group commit and the disk give
//! append    a token, then write and commit at each unit of a chain in turn: an append with nothing else in it
//! ```

use std::cell::Cell;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use milonga_host::{Clock, CredentialFiles, Peer, PeerKind, Random, certificates};
use milonga_wire::{
    ClusterId, Identity, Incarnation, Payload, Piece, Position, Reply, Request, RequestHead, Role,
    SequencerReply, SequencerRequest, ServerName, Session, Span, Stamp, Target, Term, UnitReply,
    UnitRequest, WriteKind,
};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::load::{self, Load, Measured};
use crate::failure::{Failure, Outcome};
use crate::node::Node;

/// How long one request may take.
const WITHIN: Duration = Duration::from_secs(10);
const DAYS: u32 = 2;

/// Bare servers in processes of their own, and a client of them.
pub(super) struct Bed {
    node: Node,
    cluster: ClusterId,
    counter: Peer,
    chains: Vec<Vec<Peer>>,
    stripe_width: u64,
    /// Ended when this is dropped.
    _children: Vec<Child>,
    _dir: TempDir,
}

impl Bed {
    /// One bare sequencer, and `replicas` bare units in each of `chains`, with files in `dir`.
    pub(super) async fn start(
        dir: Option<&Path>,
        chains: usize,
        replicas: usize,
        stripe_width: u64,
    ) -> Outcome<Self> {
        let own = match dir {
            Some(dir) => TempDir::new_in(dir),
            None => TempDir::new(),
        }
        .map_err(|why| Failure::failed(format!("no directory for the baseline: {why}")))?;
        let certs = own.path().join("certs");
        let (clock, random) = (Clock::real(), Random::real());
        let cluster = certificates::create_authority(&certs, &clock, &random, DAYS, false)?;
        let client: ServerName = "client".parse()?;
        certificates::issue(&certs, Role::Writer, &client, &[], &clock, DAYS, false)?;
        let mut children = vec![];
        let mut start = async |name: String, stores: bool| {
            let (child, peer) = spawn(own.path(), &name, stores, &clock).await?;
            children.push(child);
            Ok::<_, Failure>(peer)
        };
        let counter = start("sequencer-1".to_owned(), false).await?;
        let mut all = vec![];
        for chain in 0..chains {
            let mut units = vec![];
            for unit in 0..replicas {
                units.push(start(format!("unit-{}", chain * replicas + unit + 1), true).await?);
            }
            all.push(units);
        }
        let node = Node::open(&CredentialFiles {
            certificate: certs.join("client.pem"),
            key: certs.join("client.key"),
            authorities: certs.join("ca.pem"),
        })?;
        let bed = Self {
            node,
            cluster,
            counter,
            chains: all,
            stripe_width,
            _children: children,
            _dir: own,
        };
        bed.meet().await?;
        Ok(bed)
    }

    /// Connects to every server, so that no handshake is measured.
    async fn meet(&self) -> Outcome {
        for peer in self.chains.iter().flatten().chain([&self.counter]) {
            self.ask(peer, Request::Unit(UnitRequest::Probe), Payload::new())
                .await?;
        }
        Ok(())
    }

    /// Round trips without any work.
    pub(super) async fn echo(&self, load: Load) -> Measured {
        let ask = async |_| {
            let probe = Request::Unit(UnitRequest::Probe);
            self.ask(&self.counter, probe, Payload::new())
                .await
                .map(drop)
        };
        load::run(&self.node.host.clock, load, 1, 0, ask).await
    }

    /// Tokens from a bare counter.
    pub(super) async fn tokens(&self, load: Load) -> Measured {
        let ask = async |_| self.token(1).await.map(drop);
        load::run(&self.node.host.clock, load, 1, 0, ask).await
    }

    /// Answers of `size` bytes times `records`.
    pub(super) async fn reads(&self, load: Load, size: u64, records: u64) -> Measured {
        let chains = &self.chains;
        let ask = async |number: u64| {
            let chain = &chains[number as usize % chains.len()];
            let unit = &chain[(number as usize / chains.len()) % chain.len()];
            let read = UnitRequest::Read {
                spans: vec![Span::one(Position(number))],
                bytes_max: (size * records) as u32,
            };
            self.ask(unit, Request::Unit(read), Payload::new())
                .await
                .map(drop)
        };
        load::run(&self.node.host.clock, load, records, size, ask).await
    }

    /// Durable writes to one unit.
    pub(super) async fn commits(&self, load: Load, size: u64, records: u64) -> Measured {
        let next = Cell::new(0);
        let payload = payload(size, records);
        let unit = &self.chains[0][0];
        let ask = async |_| {
            let first = next.replace(next.get() + records);
            self.write(unit, first, WriteKind::Decide, size, records, &payload)
                .await
        };
        load::run(&self.node.host.clock, load, records, size, ask).await
    }

    /// A token, then each unit of the chain in turn.
    pub(super) async fn appends(&self, load: Load, size: u64, records: u64) -> Measured {
        let payload = payload(size, records);
        let append = async |_| {
            let first = self.token(records as u32).await?;
            let chain = (first / self.stripe_width) as usize % self.chains.len();
            for (number, unit) in self.chains[chain].iter().enumerate() {
                let kind = match number {
                    0 => WriteKind::Decide,
                    _ => WriteKind::Follow,
                };
                self.write(unit, first, kind, size, records, &payload)
                    .await?;
            }
            Ok(())
        };
        load::run(&self.node.host.clock, load, records, size, append).await
    }

    async fn token(&self, count: u32) -> Outcome<u64> {
        let tokens = SequencerRequest::Tokens {
            count,
            streams: vec![],
        };
        match self
            .ask(&self.counter, Request::Sequencer(tokens), Payload::new())
            .await?
        {
            Reply::Sequencer(SequencerReply::Token(token)) => Ok(token.first.0),
            _ => Err(Failure::failed("a bare sequencer gave no token")),
        }
    }

    async fn write(
        &self,
        unit: &Peer,
        first: u64,
        kind: WriteKind,
        size: u64,
        records: u64,
        payload: &Payload,
    ) -> Outcome {
        let piece = Piece {
            first: Position(first),
            term: Term::GENESIS,
            stamp: Stamp {
                session: Session([0; 16]),
                request: first,
                record: 0,
            },
            run: Position(first),
            streams: vec![],
            lengths: vec![size as u32; records as usize],
        };
        let pieces = vec![piece];
        let write = Request::Unit(UnitRequest::Write { kind, pieces });
        match self.ask(unit, write, payload.clone()).await? {
            Reply::Unit(UnitReply::Written(_)) => Ok(()),
            _ => Err(Failure::failed("a bare unit did not write")),
        }
    }

    async fn ask(&self, peer: &Peer, request: Request, payload: Payload) -> Outcome<Reply> {
        let head = RequestHead {
            id: 0,
            cluster: self.cluster,
            to: Some(Target {
                identity: Identity([0; 16]),
                incarnation: Incarnation(0),
            }),
            term: Term::GENESIS,
            request,
        };
        let request = milonga_host::net::Request { head, payload };
        let answer = self.node.host.net.call(peer, request, WITHIN).await?;
        answer.reply.map_err(Failure::failed)
    }
}

fn payload(size: u64, records: u64) -> Payload {
    let mut payload = Payload::new();
    payload.push(vec![b'x'; (size * records) as usize].into());
    payload
}

async fn spawn(dir: &Path, name: &str, stores: bool, clock: &Clock) -> Outcome<(Child, Peer)> {
    let certs = dir.join("certs");
    let server: ServerName = name.parse()?;
    certificates::issue(&certs, Role::Server, &server, &[], clock, DAYS, false)?;
    let failed = |why: std::io::Error| Failure::failed(format!("no bare server: {why}"));
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command
        .args([
            "bench",
            "bare",
            "--name",
            name,
            "--listen",
            "127.0.0.1:0",
            "--certs",
        ])
        .arg(&certs)
        .args(["--parent", &std::process::id().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    if stores {
        command.arg("--dir").arg(dir.join(name));
    }
    let mut child = command.spawn().map_err(failed)?;
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| Failure::failed("no stdout"))?;
    let line = BufReader::new(stdout)
        .lines()
        .next_line()
        .await
        .map_err(failed)?;
    let line = line.ok_or_else(|| Failure::failed("a bare server ended at its start"))?;
    let address = line.rsplit(' ').next().unwrap_or_default();
    let peer = Peer {
        name: Some(server),
        address: address.parse()?,
        kind: PeerKind::Any,
    };
    Ok((child, peer))
}
