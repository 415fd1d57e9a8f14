//! How a command finds its cluster, and becomes a client of it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use milonga_client::{ClusterConfig, Log, Options};
use milonga_host::{Clock, Transport};

use crate::failure::{Failure, Outcome};

/// The name of a cluster file.
pub(crate) const FILE: &str = "milonga.toml";
/// Where `milonga dev` keeps a cluster unless told otherwise.
pub(crate) const DEV_DIR: &str = "milonga-dev";

/// How long a command waits for its last packets.
const GOODBYE: Duration = Duration::from_millis(200);

/// What the command line says of the cluster.
#[derive(Clone, Default)]
pub(crate) struct Cluster {
    /// The cluster file.
    pub(crate) file: Option<PathBuf>,
    /// How long an operation may take.
    pub(crate) deadline: Option<Duration>,
    /// What this command connected with, and the client whose tasks carry its last packets. Clones share it.
    pub(crate) open: Arc<Mutex<Vec<(Log, Transport)>>>,
}

impl Cluster {
    /// The cluster file: the one given, else the first of the usual places that exists.
    pub(crate) fn path(&self) -> Outcome<PathBuf> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let usual = usual_places();
        let found = usual.iter().find(|path| path.exists()).cloned();
        found.ok_or_else(|| {
            Failure::failed(format!(
                "no cluster is configured; expected ./{FILE}; \
                 try --cluster FILE, MILONGA_CLUSTER=FILE, or `milonga dev`"
            ))
        })
    }

    /// What the cluster file says.
    pub(crate) fn config(&self) -> Outcome<ClusterConfig> {
        Ok(ClusterConfig::load(&self.path()?)?)
    }

    /// Connects. Nothing is asked of any server yet. Must be called inside a runtime.
    pub(crate) fn connect(&self) -> Outcome<Log> {
        self.connect_with(|_| {})
    }

    /// Connects with other options than the file asks for.
    pub(crate) fn connect_with(&self, change: impl FnOnce(&mut Options)) -> Outcome<Log> {
        let mut config = self.config()?;
        if let Some(deadline) = self.deadline {
            // No single call outlasts the whole operation.
            let call = config.options().call.min(deadline).as_millis().max(1);
            config.call_ms = Some(call as u64);
        }
        let (log, transport) = config.connect_with_transport()?;
        self.opened().push((log.clone(), transport));
        let mut options = log.options().clone();
        if let Some(deadline) = self.deadline {
            options.deadline = deadline;
        }
        change(&mut options);
        Ok(log.with_options(options))
    }
}

impl Cluster {
    fn opened(&self) -> MutexGuard<'_, Vec<(Log, Transport)>> {
        let locked = self.open.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells every server that this command is done, so that none waits for it.
    pub(crate) async fn leave(&self) {
        let open = std::mem::take(&mut *self.opened());
        let goodbyes = join_all(open.iter().map(|(_, transport)| transport.close()));
        // Servers that are gone do not answer to that.
        let _ = Clock::real().within(GOODBYE, goodbyes).await;
    }
}

fn usual_places() -> Vec<PathBuf> {
    let home = || {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        home.map(|home| Path::new(&home).join(".config"))
    };
    let user = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(home);
    let mut places = vec![PathBuf::from(FILE), Path::new(DEV_DIR).join(FILE)];
    places.extend(user.map(|user| user.join("milonga").join("cluster.toml")));
    places
}

#[cfg(test)]
mod tests {
    use milonga_host::net::Request;
    use milonga_host::{
        CredentialFiles, Credentials, Random, Responder, Service, Tasks, TransportOptions,
        certificates,
    };
    use milonga_wire::{Caller, Role};

    use super::*;

    /// Answers nothing.
    struct Mute;

    impl Service for Mute {
        fn serve(&self, _: &Caller, _: Request, respond: Responder) {
            respond.send(Err(milonga_wire::Refusal::NotListed));
        }
    }

    /// A server that is to stop waits for the other ends of its connections: a command must not leave it in the dark.
    #[tokio::test]
    async fn a_command_that_is_done_takes_leave_of_its_servers() {
        let dir = tempfile::tempdir().unwrap();
        let (clock, random, tasks) = (Clock::real(), Random::real(), Tasks::new());
        certificates::create_authority(dir.path(), &clock, &random, 1, false).unwrap();
        for (role, name) in [(Role::Layout, "server"), (Role::Reader, "client")] {
            let name = name.parse().unwrap();
            certificates::issue(dir.path(), role, &name, &[], &clock, 1, false).unwrap();
        }
        let files = CredentialFiles {
            certificate: dir.path().join("server.pem"),
            key: dir.path().join("server.key"),
            authorities: dir.path().join("ca.pem"),
        };
        let shown = Credentials::load(&files, &clock).unwrap();
        let options = TransportOptions::default();
        let server = Transport::bind(options, shown, clock.clone(), random, &tasks).unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        let handle = server.serve(&listen, Arc::new(Mute)).await.unwrap();
        let file = dir.path().join(FILE);
        let text = format!(
            "layout = [\"{}\"]\nca = \"ca.pem\"\ncert = \"client.pem\"\nkey = \"client.key\"\n",
            handle.local_address()
        );
        std::fs::write(&file, text).unwrap();
        let cluster = Cluster {
            file: Some(file),
            ..Cluster::default()
        };

        let log = cluster.connect().unwrap().with_deadline(Duration::ZERO);
        assert!(log.end().await.is_err());
        assert_eq!(handle.connections(), 1);
        drop(log);
        cluster.leave().await;
        let left = async {
            while handle.connections() > 0 {
                tokio::task::yield_now().await;
            }
        };
        // Silence would be noticed after twice that time.
        assert!(clock.within(Duration::from_secs(5), left).await.is_ok());
    }
}
