//! A cluster of real processes under test, and what is looked at again and again.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use milonga_client::Log;
use rustix::process::Signal;
use serde_json::Value;

use super::load::{Load, Wait, connect, is_full, layout, lists, names};
use super::{Dev, Ran};

/// One cluster at a time: each has a dozen processes.
static ALONE: Mutex<()> = Mutex::new(());

/// A cluster, and an admin's client of it that only looks: what it does not mend others must.
pub(crate) struct Field {
    pub(crate) dev: Dev,
    pub(crate) log: Log,
    _alone: MutexGuard<'static, ()>,
}

impl Field {
    pub(crate) fn new(shape: &[&str]) -> Self {
        Self::new_on(shape, &[])
    }

    /// With the directories of some servers elsewhere.
    pub(crate) fn new_on(shape: &[&str], elsewhere: &[(&str, PathBuf)]) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dev = Dev::start_on(shape, elsewhere);
        let log = connect(&dev.dir().join("reader.toml"));
        Self {
            dev,
            log,
            _alone: alone,
        }
    }

    /// Clients with the certificate of a cluster file.
    pub(crate) fn load(&self, file: &str, clients: usize) -> Load {
        Load::start(&self.dev.dir().join(file), clients)
    }

    pub(crate) fn kill(&self, name: &str) {
        self.dev.signal(name, Signal::KILL);
    }

    /// Waits until `name` is in no chain, and every chain is as long as it should be, for old positions too.
    pub(crate) async fn heals_without(&self, name: &str) {
        layout(
            &self.log,
            &format!("full strength without {name}"),
            |layout| !lists(layout, name) && is_full(layout),
        )
        .await;
    }

    /// The issue of that code on that subject, with what to do about it.
    pub(crate) async fn names(&self, code: &str, subject: &str, fix: &str) {
        let wait = Wait::new();
        loop {
            let status = self.status();
            let issues = status["issues"].as_array().unwrap();
            let found = issues
                .iter()
                .find(|issue| issue["code"] == code && issue["subject"] == subject);
            if let Some(found) = found {
                let text = found["fix"].as_str().unwrap();
                assert!(text.contains(fix), "{found}");
                assert_ne!(status["health"], "ok");
                return;
            }
            wait.again(&format!("{code} {subject} in {status}")).await;
        }
    }

    pub(crate) fn status(&self) -> Value {
        self.dev
            .run(&["cluster", "status", "-o", "json"])
            .done()
            .json()
    }

    /// Nothing is left to be done, and all units hold the same.
    pub(crate) fn is_well(&self) -> Ran {
        let wait = ["cluster", "status", "--wait", "--deadline", "120s"];
        self.dev.run(&wait).done();
        self.verify()
    }

    pub(crate) fn verify(&self) -> Ran {
        self.dev.run(&["cluster", "verify"]).done()
    }

    /// Who made the layouts after the first.
    pub(crate) fn makers(&self) -> Vec<String> {
        let layouts = self.dev.run(&["cluster", "layouts", "-o", "json"]).done();
        let layouts = layouts.lines();
        let makers = layouts.iter().filter(|layout| layout["term"] != 0);
        makers
            .map(|layout| layout["by"].as_str().unwrap().to_owned())
            .collect()
    }

    pub(crate) async fn unit(&self, chain: usize, place: usize) -> String {
        let newest = self.log.newest_layout().await.unwrap();
        names(&newest.layout)[chain][place].clone()
    }

    /// Waits until a process answers again that was stopped.
    pub(crate) fn answers(&self, name: &str) {
        use std::io::{Read, Write};
        let address = self.dev.address(name);
        let mut admin = std::net::TcpStream::connect(address).unwrap();
        admin
            .write_all(b"GET /livez HTTP/1.1\r\nhost: unit\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut said = String::new();
        admin.read_to_string(&mut said).unwrap();
        assert!(said.contains(" 200 "), "{said}");
    }
}
