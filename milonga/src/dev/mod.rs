//! A whole cluster on this machine: as processes for `milonga dev`, as threads for tests.

mod child;
mod control;
mod files;
mod plan;
mod process;
mod supervisor;
mod thread;

use std::path::{Path, PathBuf};

use milonga_client::Log;
use milonga_host::{Shutdown, Transport};
use tempfile::TempDir;

pub(crate) use self::child::Child;
pub(crate) use self::plan::Shape;

use self::control::{Answer, Asked, Door, Verb};
use self::supervisor::{Mode, Supervisor};
use crate::failure::{Failure, Outcome};
use crate::output::{line, say};

/// How `milonga dev` was asked to run.
pub(crate) struct Run {
    pub(crate) dir: PathBuf,
    /// None: as it was made, or the usual one.
    pub(crate) shape: Option<Shape>,
    pub(crate) port_base: Option<u16>,
    pub(crate) in_process: bool,
    pub(crate) care: Care,
}

/// Who looks after the cluster. Asked anew at each start.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Care {
    /// Whether caretakers run beside the layout servers.
    pub(crate) caretaker: bool,
    /// How long a unit that was left out must have answered to come back; none: as long as usual.
    pub(crate) steady_ms: Option<u32>,
}

impl Default for Care {
    fn default() -> Self {
        Self {
            caretaker: true,
            steady_ms: None,
        }
    }
}

impl Run {
    /// Runs the cluster until a signal ends it.
    pub(crate) async fn until_a_signal(self) -> Outcome {
        let shutdown = Shutdown::listen()
            .map_err(|why| Failure::failed(format!("signals cannot be caught: {why}")))?;
        let mode = if self.in_process {
            Mode::Threads
        } else {
            Mode::Processes
        };
        let mut supervisor =
            Supervisor::open(&self.dir, mode, self.shape, self.port_base, self.care).await?;
        let door = Door::open(supervisor.dir())?;
        let tasks = milonga_host::Tasks::new();
        let mut ending = std::pin::pin!(shutdown.requested(&tasks));
        tokio::select! {
            biased;
            signal = &mut ending => {
                say(format_args!("{signal} while starting"));
                return supervisor.stop_all().await;
            }
            started = supervisor.start() => {
                // Servers that are to stop would wait for a client that is gone.
                let (_log, transport) = started?;
                transport.close().await;
            }
        }
        greet(&supervisor)?;
        loop {
            tokio::select! {
                biased;
                signal = &mut ending => {
                    say(format_args!("{signal}: draining"));
                    return supervisor.stop_all().await;
                }
                visit = door.next() => {
                    let answer = obey(&mut supervisor, &visit.asked).await;
                    visit.answer(&answer).await;
                }
                (name, how) = supervisor.next_end() => {
                    let dir = supervisor.dir().display();
                    say(format_args!("{name} ended ({how}); start it with `milonga dev restart {name} --dir {dir}`"));
                    supervisor.note_end(&name)?;
                    if supervisor.is_dead() {
                        return Err(Failure::failed("every server has ended; start `milonga dev` again"));
                    }
                }
            }
        }
    }
}

/// Says where everything is, and that appends work.
fn greet(supervisor: &Supervisor) -> Outcome {
    for listed in supervisor.listed() {
        say(listed);
    }
    say(format_args!(
        "use it with:  export MILONGA_CLUSTER={}",
        supervisor.cluster_file().display()
    ));
    line("ready")
}

async fn obey(supervisor: &mut Supervisor, asked: &Asked) -> Answer {
    let Asked { verb, name, kill } = asked;
    let outcome = match verb {
        Verb::Stop => supervisor.stop_one(name, *kill).await.map(|()| None),
        Verb::Restart => supervisor.restart_one(name, *kill).await.map(Some),
    };
    outcome.into()
}

/// Asks the `milonga dev` on `dir` to restart one server. Returns its new process id.
pub(crate) fn restart(dir: &Path, name: &str, kill: bool) -> Outcome<Option<u32>> {
    ask(dir, Verb::Restart, name, kill)
}

/// Asks the `milonga dev` on `dir` to stop one server.
pub(crate) fn stop(dir: &Path, name: &str, kill: bool) -> Outcome<Option<u32>> {
    ask(dir, Verb::Stop, name, kill)
}

fn ask(dir: &Path, verb: Verb, name: &str, kill: bool) -> Outcome<Option<u32>> {
    let name = name.to_owned();
    control::ask(dir, &Asked { verb, name, kill })
}

/// A cluster in this process, for tests of programs that use Milonga: real sockets, TLS, files and fsync, each server on
/// a thread of its own. Dropping it ends the servers at once, as a crash would; its own temporary directory goes with it.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = milonga::DevCluster::start().await?;
/// let position = cluster.log().append("hello", &[]).await?;
/// assert_eq!(position.0, 0);
/// cluster.stop().await?;
/// # Ok(())
/// # }
/// ```
pub struct DevCluster {
    log: Log,
    transport: Transport,
    supervisor: Supervisor,
    /// After the servers that use it.
    _own: Option<TempDir>,
}

/// How a [`DevCluster`] is to look.
#[derive(Clone, Debug, Default)]
pub struct DevBuilder {
    shape: Shape,
    dir: Option<PathBuf>,
}

impl DevCluster {
    /// One chain of two units, one layout server, one sequencer, in a temporary directory: enough for most tests.
    ///
    /// # Errors
    /// What kept a server from starting, in words.
    pub async fn start() -> Result<Self, Failure> {
        Self::builder().start().await
    }

    /// A cluster that is to look otherwise.
    pub fn builder() -> DevBuilder {
        DevBuilder {
            shape: Shape {
                chains: 1,
                replicas: 2,
                layout_servers: 1,
                standbys: 0,
                spares: 0,
                ..Shape::default()
            },
            dir: None,
        }
    }

    /// A connected client, with an admin's certificate.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The cluster file: what `milonga --cluster` and [`milonga_client::ClusterConfig::load`] take. Beside it lie
    /// `reader.toml`, `writer.toml` and `control.toml` with lesser certificates.
    pub fn config_path(&self) -> PathBuf {
        self.supervisor.cluster_file()
    }

    /// The names of its servers.
    pub fn servers(&self) -> Vec<String> {
        let listed = self.supervisor.listed();
        listed.into_iter().map(|listed| listed.name).collect()
    }

    /// Ends one server, as a crash would.
    ///
    /// # Errors
    /// If there is none of that name.
    pub async fn kill(&mut self, name: &str) -> Result<(), Failure> {
        self.supervisor.stop_one(name, true).await
    }

    /// Starts one server again, after a crash if it still runs.
    ///
    /// # Errors
    /// If there is none of that name, or it does not start.
    pub async fn restart(&mut self, name: &str) -> Result<(), Failure> {
        self.supervisor.restart_one(name, true).await.map(drop)
    }

    /// Lets every server finish what it accepted, and ends them.
    ///
    /// # Errors
    /// If the directory is gone.
    pub async fn stop(mut self) -> Result<(), Failure> {
        self.transport.close().await;
        self.supervisor.stop_all().await
    }
}

impl DevBuilder {
    /// How many chains.
    #[must_use]
    pub fn chains(mut self, count: u16) -> Self {
        self.shape.chains = count;
        self
    }

    /// How many log units each chain has.
    #[must_use]
    pub fn replicas(mut self, count: u16) -> Self {
        self.shape.replicas = count;
        self
    }

    /// How many layout servers: 1, 3 or 5.
    #[must_use]
    pub fn layout_servers(mut self, count: u16) -> Self {
        self.shape.layout_servers = count;
        self
    }

    /// How many sequencers stand by.
    #[must_use]
    pub fn standbys(mut self, count: u16) -> Self {
        self.shape.standbys = count;
        self
    }

    /// Positions per stripe.
    #[must_use]
    pub fn stripe_width(mut self, width: u32) -> Self {
        self.shape.stripe_width = width;
        self
    }

    /// Keeps the cluster in `dir`, to be started there again.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// What kept a server from starting, in words.
    pub async fn start(self) -> Result<DevCluster, Failure> {
        let own = match &self.dir {
            Some(_) => None,
            None => Some(
                tempfile::tempdir()
                    .map_err(|why| Failure::failed(format!("no temporary directory: {why}")))?,
            ),
        };
        let dir = match (&own, self.dir) {
            (Some(own), _) => own.path().to_owned(),
            (None, dir) => dir.unwrap_or_default(),
        };
        let mut supervisor =
            Supervisor::open(&dir, Mode::Threads, Some(self.shape), None, Care::default()).await?;
        let (log, transport) = supervisor.start().await?;
        Ok(DevCluster {
            log,
            transport,
            supervisor,
            _own: own,
        })
    }
}
