//! The files of a dev cluster that are made from its plan: certificates, configurations, the cluster file.

use std::path::{Path, PathBuf};

use milonga_client::ClusterConfig;
use milonga_host::{Clock, Random, certificates};
use milonga_wire::{Role as Certified, ServerName};
use toml::{Table, Value};

use super::Care;
use super::plan::{Plan, Planned, write};
use crate::connect::FILE;
use crate::failure::{Failure, Outcome};
use crate::serve::Role;

/// A dev cluster is not meant to outlive this.
const DAYS: u32 = 3_650;
/// Bytes of each file of a log unit: a dev cluster shares one disk among many units.
const FILE_BYTES: i64 = 32 << 20;
/// Certificates for people to try, beside the admin's that every command uses.
const CLIENTS: [(&str, Certified); 4] = [
    ("admin", Certified::Admin),
    ("control", Certified::Control),
    ("writer", Certified::Writer),
    ("reader", Certified::Reader),
];
/// The certificate that caretakers share.
const CARETAKER: &str = "caretaker";

/// Writes whatever is missing.
pub(super) fn prepare(
    dir: &Path,
    plan: &Plan,
    care: Care,
    clock: &Clock,
    random: &Random,
) -> Outcome {
    let certs = dir.join("certs");
    if !certs.join("ca.pem").exists() {
        certificates::create_authority(&certs, clock, random, DAYS, true)?;
    }
    for (name, role) in CLIENTS {
        issue(&certs, name, role, clock)?;
    }
    issue(&certs, CARETAKER, Certified::Control, clock)?;
    for server in &plan.servers {
        let role = match server.role {
            Role::Layout => Certified::Layout,
            Role::Sequencer => Certified::Sequencer,
            Role::LogUnit => Certified::LogUnit,
        };
        issue(&certs, &server.name, role, clock)?;
        let text = settings(plan, server, care).to_string();
        for folder in ["config", "logs"] {
            let folder = dir.join(folder);
            std::fs::create_dir_all(&folder).map_err(|why| Failure::file(&folder, why))?;
        }
        write(&config_file(dir, server), &text)?;
    }
    for (name, _) in CLIENTS {
        write_cluster(dir, plan, name)?;
    }
    Ok(())
}

fn issue(certs: &Path, name: &str, role: Certified, clock: &Clock) -> Outcome {
    if certs.join(format!("{name}.pem")).exists() {
        return Ok(());
    }
    let name: ServerName = name.parse()?;
    certificates::issue(certs, role, &name, &[], clock, DAYS, true)?;
    Ok(())
}

/// The configuration of one server; its paths are relative to the folder it lies in.
fn settings(plan: &Plan, server: &Planned, care: Care) -> Table {
    let text = |text: &str| Value::String(text.to_owned());
    let addresses = plan.layout_servers();
    let layout = addresses.iter().map(|address| text(address.as_str()));
    let mut table = Table::new();
    table.insert("name".into(), text(&server.name));
    table.insert("listen".into(), text(&server.address()));
    table.insert("admin".into(), text(&server.address()));
    table.insert("layout".into(), Value::Array(layout.collect()));
    table.insert("certs".into(), text("../certs"));
    let dir = text(&format!("../{}", server.name));
    match server.role {
        Role::Sequencer => {}
        Role::LogUnit => {
            table.insert("dir".into(), dir);
            table.insert("file-bytes".into(), Value::Integer(FILE_BYTES));
        }
        Role::Layout => {
            table.insert("dir".into(), dir);
            table.insert("caretaker".into(), Value::Boolean(care.caretaker));
            if let Some(steady_ms) = care.steady_ms {
                table.insert("steady-ms".into(), Value::Integer(steady_ms.into()));
            }
            for (key, end) in [("caretaker-cert", "pem"), ("caretaker-key", "key")] {
                table.insert(key.into(), text(&format!("../certs/{CARETAKER}.{end}")));
            }
        }
    }
    table
}

/// Where a server's configuration is.
pub(super) fn config_file(dir: &Path, server: &Planned) -> PathBuf {
    dir.join("config").join(format!("{}.toml", server.name))
}

/// Where a server's log goes.
pub(super) fn log_file(dir: &Path, server: &Planned) -> PathBuf {
    dir.join("logs").join(format!("{}.log", server.name))
}

/// The cluster file that all commands use.
pub(super) fn cluster_file(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// One cluster file per client certificate: the admin's under the usual name.
fn write_cluster(dir: &Path, plan: &Plan, name: &str) -> Outcome {
    let certs = Path::new("certs");
    let config = ClusterConfig {
        layout: plan.layout_servers(),
        ca: certs.join("ca.pem"),
        cert: certs.join(format!("{name}.pem")),
        key: certs.join(format!("{name}.key")),
        deadline_ms: None,
        call_ms: None,
        steady_ms: None,
    };
    let path = match name {
        "admin" => cluster_file(dir),
        name => dir.join(format!("{name}.toml")),
    };
    let text = toml::to_string(&config).expect("a cluster file is a table of texts and numbers");
    write(&path, &text)
}
