//! One server on a thread of this process: the same code, certificates, sockets and files as a process of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use super::files::config_file;
use super::plan::Planned;
use crate::failure::{Failure, Outcome};
use crate::serve::{self, Settings, runtime};

/// A running thread. Dropping it ends the server at once, as a crash would.
pub(super) struct Thread {
    stop: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<()>,
    handle: Option<JoinHandle<()>>,
}

impl Thread {
    /// Starts `server` and waits until it listens.
    pub(super) async fn start(dir: &Path, server: &Planned) -> Outcome<Self> {
        let settings = Settings::gather(Some(&config_file(dir, server)), toml::Table::new())?;
        let role = server.role;
        let (stop, stopped) = oneshot::channel();
        let (says, listens) = oneshot::channel();
        let (ends, ended) = oneshot::channel();
        let work = move || {
            run(role, settings, says, stopped);
            let _ = ends.send(());
        };
        let handle = std::thread::Builder::new()
            .name(server.name.clone())
            .spawn(work)
            .map_err(|why| Failure::failed(format!("no thread for {}: {why}", server.name)))?;
        let thread = Self {
            stop: Some(stop),
            ended,
            handle: Some(handle),
        };
        match listens.await {
            Ok(Ok(_)) => Ok(thread),
            Ok(Err(failure)) => Err(failure.about(format!("{} did not start", server.name))),
            Err(_) => Err(Failure::failed(format!(
                "{} ended while it started",
                server.name
            ))),
        }
    }

    /// Waits until it ends.
    pub(super) async fn ended(&mut self) -> String {
        let _ = (&mut self.ended).await;
        "its thread ended".to_owned()
    }

    /// Lets it drain, or not, and waits for its end.
    pub(super) async fn stop(mut self, kill: bool) {
        let stop = self.stop.take();
        match stop.filter(|_| !kill) {
            Some(stop) => {
                let _ = stop.send(());
                let _ = (&mut self.ended).await;
            }
            None => drop(self),
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(handle) = self.handle.take() {
            // A panic in it was printed already.
            let _ = handle.join();
        }
    }
}

fn run(
    role: serve::Role,
    settings: Settings,
    says: oneshot::Sender<Outcome<SocketAddr>>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = match runtime(Some(role)) {
        Ok(runtime) => runtime,
        Err(failure) => return drop(says.send(Err(failure))),
    };
    runtime.block_on(async {
        match serve::start(role, settings).await {
            Ok(running) => {
                let _ = says.send(Ok(running.address));
                if stopped.await.is_ok() {
                    running.drain().await;
                }
            }
            Err(failure) => drop(says.send(Err(failure))),
        }
    });
}
