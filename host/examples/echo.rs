//! What the transport itself costs: a server that answers at once, and a client that keeps some calls in flight.
//!
//! ```text
//! cargo run --release -p milonga-host --example echo              # both, in two processes, at several depths
//! cargo run --release -p milonga-host --example echo -- at 64 16  # at one
//! cargo run --release -p milonga-host --example echo -- client ADDRESS DIR DEPTH REQUEST_BYTES SECONDS
//! ```
//! Every call has a task of its own, as in a client library. Reports calls per second, the middle and 99th latency, and
//! processor time per call on either side.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use milonga_host::net::Request;
use milonga_host::{
    Clock, CredentialFiles, Credentials, Network, Peer, PeerKind, Random, Responder, Service,
    Tasks, Transport, TransportOptions, ask_for_short_slice, certificates,
};
use milonga_wire::{
    Address, Caller, ClusterId, Payload, Position, Reply, Request as Asked, RequestHead, Role,
    Term, UnitReply, UnitRequest,
};
use tokio::task::JoinSet;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Calls in flight, and bytes per request.
const CASES: [(usize, usize); 6] = [
    (1, 16),
    (16, 16),
    (64, 16),
    (256, 16),
    (1_024, 16),
    (64, 4_096),
];

struct Echo;

impl Service for Echo {
    fn serve(&self, _: &Caller, _: Request, respond: Responder) {
        respond.send(Ok(Reply::Unit(UnitReply::Settled(Position(u64::MAX)))));
    }
}

fn main() -> Outcome<()> {
    ask_for_short_slice();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => both(&CASES),
        ["at", depth, bytes] => both(&[(depth.parse()?, bytes.parse()?)]),
        ["serve", dir] => runtime.block_on(serve(dir.as_ref())),
        ["client", address, dir, depth, bytes, seconds] => runtime.block_on(client(
            address.parse()?,
            dir.as_ref(),
            depth.parse()?,
            bytes.parse()?,
            seconds.parse()?,
        )),
        _ => {
            Err("expected nothing, `at DEPTH BYTES`, `serve DIR`, or `client ADDRESS DIR DEPTH BYTES SECONDS`".into())
        }
    }
}

/// A server in another process, and one client after the other.
fn both(cases: &[(usize, usize)]) -> Outcome<()> {
    let dir = std::env::temp_dir().join(format!("milonga-echo-{}", std::process::id()));
    let clock = Clock::real();
    certificates::create_authority(&dir, &clock, &Random::real(), 2, true)?;
    for (role, name) in [(Role::Server, "server"), (Role::Reader, "client")] {
        certificates::issue(&dir, role, &name.parse()?, &[], &clock, 1, true)?;
    }
    let program = std::env::current_exe()?;
    let mut server = Command::new(&program)
        .arg("serve")
        .arg(&dir)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut address = String::new();
    let output = server.stdout.take().ok_or("the server has no output")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut address)?;
    for (depth, bytes) in cases {
        let before = cpu_micros(server.id());
        let client = Command::new(&program)
            .args(["client", address.trim()])
            .arg(&dir)
            .args([depth.to_string(), bytes.to_string(), "3".to_owned()])
            .output()?;
        let line = String::from_utf8_lossy(&client.stdout);
        let calls: f64 = line.split_whitespace().next().unwrap_or("1").parse()?;
        let server_cpu = (cpu_micros(server.id()) - before) / calls;
        let rest = line.split_once(' ').map_or("", |(_, rest)| rest).trim();
        report(&format!("{rest}, server {server_cpu:.2} µs"));
    }
    server.kill()?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn transport(dir: &Path, name: &str, tasks: &Tasks) -> Outcome<Transport> {
    let clock = Clock::real();
    let files = CredentialFiles {
        certificate: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
        authorities: dir.join("ca.pem"),
    };
    let credentials = Credentials::load(&files, &clock)?;
    let (options, random) = (TransportOptions::default(), Random::real());
    Ok(Transport::bind(options, credentials, clock, random, tasks)?)
}

async fn serve(dir: &Path) -> Outcome<()> {
    let tasks = Tasks::new();
    let transport = transport(dir, "server", &tasks)?;
    let listen = "127.0.0.1:0".parse()?;
    let handle = transport.serve(&listen, Arc::new(Echo)).await?;
    report(&handle.local_address().to_string());
    std::future::pending().await
}

async fn client(
    address: Address,
    dir: &Path,
    depth: usize,
    bytes: usize,
    seconds: u64,
) -> Outcome<()> {
    let tasks = Tasks::new();
    let transport = Arc::new(transport(dir, "client", &tasks)?);
    let peer = Arc::new(Peer {
        name: Some("server".parse()?),
        address,
        kind: PeerKind::LogUnit,
    });
    let payload: Payload = vec![7; bytes].into();
    let clock = Clock::real();
    run(
        &transport,
        &peer,
        &payload,
        depth,
        Duration::from_millis(500),
    )
    .await?;
    let (start, cpu) = (clock.now(), cpu_micros(std::process::id()));
    let mut micros = run(
        &transport,
        &peer,
        &payload,
        depth,
        Duration::from_secs(seconds),
    )
    .await?;
    let elapsed = clock.now().since(start).as_secs_f64();
    let cpu = cpu_micros(std::process::id()) - cpu;
    micros.sort_unstable();
    let count = u32::try_from(micros.len())?;
    let at = |part: usize| micros.get(micros.len() * part / 100).copied().unwrap_or(0);
    report(&format!(
        "{count} depth {depth}, {bytes} B: {:.0} calls/s, p50 {} µs, p99 {} µs; CPU per call: client {:.2} µs",
        f64::from(count) / elapsed,
        at(50),
        at(99),
        cpu / f64::from(count),
    ));
    Ok(())
}

/// Every call's latency, in microseconds.
async fn run(
    transport: &Arc<Transport>,
    peer: &Arc<Peer>,
    payload: &Payload,
    depth: usize,
    time: Duration,
) -> Outcome<Vec<u32>> {
    let clock = Clock::real();
    let end = clock.now().plus(time);
    let mut callers = JoinSet::new();
    for _ in 0..depth {
        let (transport, peer, payload) = (transport.clone(), peer.clone(), payload.clone());
        let clock = clock.clone();
        callers.spawn(async move {
            let mut micros = vec![];
            loop {
                let before = clock.now();
                if before >= end {
                    return Ok::<_, milonga_host::CallError>(micros);
                }
                let request = Request {
                    head: RequestHead {
                        id: 0,
                        cluster: ClusterId([1; 16]),
                        to: None,
                        term: Term(0),
                        request: Asked::Unit(UnitRequest::Probe),
                    },
                    payload: payload.clone(),
                };
                transport
                    .call(&peer, request, Duration::from_secs(5))
                    .await?;
                micros.push(clock.now().since(before).as_micros() as u32);
            }
        });
    }
    let mut all = vec![];
    while let Some(ended) = callers.join_next().await {
        all.append(&mut ended??);
    }
    Ok(all)
}

/// Processor time a process has used.
fn cpu_micros(process: u32) -> f64 {
    const TICK_MICROS: f64 = 10_000.0;
    let path = format!("/proc/{process}/stat");
    let stat = std::fs::read_to_string(path).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u32 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u32>().ok())
        .sum();
    f64::from(ticks) * TICK_MICROS
}

#[allow(clippy::print_stdout)]
fn report(line: &str) {
    println!("{line}");
}
