//! A cluster for measuring, each server in a process of its own, and `bench` against it.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use clap::Parser;
use milonga::bench;
use milonga_client::reconfigure::{Genesis, init};
use milonga_client::{Log, Options};
use milonga_host::quic::{Transport, TransportOptions};
use milonga_host::{
    Clock, CredentialFiles, Credentials, FsDisk, Host, Random, Service, Tasks, certificates,
};
use milonga_wire::{Address, Role};
use tokio::io::AsyncReadExt;

#[derive(Parser)]
enum Cli {
    BenchNode(bench::NodeArgs),
    Serve {
        role: String,
        name: String,
        dir: PathBuf,
        listen: String,
        layout: String,
    },
    Run {
        #[arg(long, default_value_t = 3)]
        replicas: usize,
        #[arg(long, default_value_t = 1)]
        chains: usize,
        #[arg(long, default_value_t = 1)]
        layouts: usize,
        #[arg(long, default_value = ".")]
        folder: PathBuf,
        #[command(flatten)]
        args: bench::Args,
    },
}

fn files(dir: &Path, name: &str) -> CredentialFiles {
    CredentialFiles {
        certificate: dir.join(format!("{name}.pem")),
        key: dir.join(format!("{name}.key")),
        authorities: dir.join("ca.pem"),
    }
}

fn node(dir: &Path, name: &str) -> (Host, Transport, milonga_wire::Caller) {
    let (clock, random, tasks) = (Clock::real(), Random::real(), Tasks::new());
    let credentials = Credentials::load(&files(dir, name), &clock).unwrap();
    let caller = credentials.identity();
    let transport = Transport::bind(
        TransportOptions::default(),
        credentials,
        clock.clone(),
        random.clone(),
        &tasks,
    )
    .unwrap();
    (
        Host {
            net: Arc::new(transport.clone()),
            clock,
            random,
            tasks,
        },
        transport,
        caller,
    )
}

fn runtime() -> tokio::runtime::Runtime {
    milonga_host::ask_for_short_slice();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn main() {
    match Cli::parse() {
        Cli::BenchNode(args) => bench::node(&args).unwrap(),
        Cli::Serve {
            role,
            name,
            dir,
            listen,
            layout,
        } => runtime().block_on(serve(&role, &name, &dir, &listen, &layout)),
        Cli::Run {
            replicas,
            chains,
            layouts,
            folder,
            args,
        } => {
            let dir = tempfile::Builder::new()
                .prefix(".cluster-")
                .tempdir_in(folder)
                .unwrap();
            runtime().block_on(run(dir.path(), replicas, chains, layouts, &args));
        }
    }
}

async fn serve(role: &str, name: &str, dir: &Path, listen: &str, layout: &str) {
    let (host, transport, caller) = node(dir, name);
    let cluster = caller.cluster;
    let server_name: milonga_wire::ServerName = name.parse().unwrap();
    let data = dir.join(format!("{name}.d"));
    let layouts: Vec<String> = layout.split(',').map(str::to_owned).collect();
    let service: Arc<dyn Service> = match role {
        "layout" => {
            let settings = milonga_layout::Settings {
                name: Some(name.into()),
                listen: Some(listen.into()),
                dir: Some(data.clone()),
                ca: Some("x".into()),
                cert: Some("x".into()),
                key: Some("x".into()),
                ..Default::default()
            };
            let disk = FsDisk::at(&data).unwrap();
            milonga_layout::Server::start(
                &host,
                Arc::new(disk),
                cluster,
                &settings.try_into().unwrap(),
            )
            .unwrap()
        }
        "sequencer" => {
            let settings = milonga_sequencer::Settings {
                name: Some(name.into()),
                listen: Some(listen.into()),
                layout: Some(layouts),
                ca: Some("x".into()),
                cert: Some("x".into()),
                key: Some("x".into()),
                ..Default::default()
            };
            milonga_sequencer::Sequencer::start(
                host.clone(),
                cluster,
                &settings.try_into().unwrap(),
            )
        }
        _ => {
            let disk = FsDisk::at(&data).unwrap();
            let options = milonga_logunit::store::Options {
                file_bytes: 256 << 20,
                ..milonga_logunit::store::Options::new(cluster, server_name.clone())
            };
            let store =
                milonga_logunit::store::Store::open(Arc::new(disk), options, &host.random).unwrap();
            let config = milonga_logunit::Config {
                cluster,
                name: server_name,
                entry_bytes_max: 1 << 20,
                queue_bytes_max: 64 << 20,
                layout_servers: layouts.iter().map(|a| a.parse().unwrap()).collect(),
                version: "0".into(),
            };
            milonga_logunit::Server::start(&host, Box::new(store), config)
        }
    };
    let _handle = transport
        .serve(&listen.parse().unwrap(), service)
        .await
        .unwrap();
    println!("ok");
    std::io::stdout().flush().unwrap();
    let _ = tokio::io::stdin().read(&mut [0]).await;
}

fn free_port() -> String {
    std::net::UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}

async fn run(dir: &Path, replicas: usize, chains: usize, layouts: usize, args: &bench::Args) {
    let (clock, random) = (Clock::real(), Random::real());
    certificates::create_authority(dir, &clock, &random, 2, false).unwrap();
    let issue = |role, name: &str| {
        certificates::issue(dir, role, &name.parse().unwrap(), &[], &clock, 2, false).unwrap()
    };
    issue(Role::Admin, "admin");
    let layout: Vec<String> = (0..layouts).map(|_| free_port()).collect();
    let listed = layout.join(",");
    let mut children: Vec<Child> = vec![];
    let mut start = |role: &str, name: &str, listen: &str| {
        issue(Role::Server, name);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["serve", role, name])
            .arg(dir)
            .args([listen, &listed])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        assert_eq!(line.trim(), "ok", "{name}");
        eprintln!("{name} {}", child.id());
        children.push(child);
        listen.parse::<Address>().unwrap()
    };
    let layout_servers: Vec<Address> = layout
        .iter()
        .enumerate()
        .map(|(n, a)| start("layout", &format!("l{n}"), a))
        .collect();
    let sequencer = start("sequencer", "s0", &free_port());
    let chains = (0..chains)
        .map(|c| {
            (0..replicas)
                .map(|u| start("logunit", &format!("u{c}-{u}"), &free_port()))
                .collect()
        })
        .collect();
    let (host, _transport, caller) = node(dir, "admin");
    let log = Log::new(host, caller, layout_servers.clone(), Options::default());
    init(
        &log,
        &Genesis {
            layout_servers,
            sequencer,
            standbys: vec![],
            chains,
            spares: vec![],
            stripe_width: 1024,
        },
    )
    .await
    .unwrap();
    log.append("first", &[]).await.unwrap();
    match bench::run(&log, args).await {
        Ok(report) => {
            println!("{}", report.text());
            for r in &report.rounds {
                println!("  {r:?}");
            }
        }
        Err(error) => eprintln!("error: {error}"),
    }
    for mut child in children {
        drop(child.stdin.take());
        let _ = child.wait();
    }
}
