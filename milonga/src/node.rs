//! One member of a cluster in this process: its certificate, its end of the network, clock and chance.

use std::sync::Arc;

use milonga_host::quic::{Transport, TransportOptions};
use milonga_host::{Clock, CredentialFiles, Credentials, Host, Random, Tasks};
use milonga_wire::Caller;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// How often certificate files are read again, beside at every SIGHUP.
const RELOAD_EVERY: std::time::Duration = std::time::Duration::from_secs(600);

/// A member of a cluster. Its background work ends when the last clone of `host.tasks` is dropped.
pub(crate) struct Node {
    /// What its code runs on.
    pub(crate) host: Host,
    /// Whom its certificate names.
    pub(crate) caller: Caller,
    /// Its end of the network: `host.net`, and what serves.
    pub(crate) transport: Transport,
    credentials: Credentials,
}

impl Node {
    /// Loads credentials and opens a socket for calls. Must be called inside the runtime that is to run it.
    pub(crate) fn open(files: &CredentialFiles) -> Result<Self, Failure> {
        let (clock, random, tasks) = (Clock::real(), Random::real(), Tasks::new());
        let credentials = Credentials::load(files, &clock)?;
        let transport = Transport::bind(
            TransportOptions::default(),
            credentials.clone(),
            clock.clone(),
            random.clone(),
            &tasks,
        )?;
        let host = Host {
            net: Arc::new(transport.clone()),
            clock,
            random,
            tasks,
        };
        Ok(Self {
            host,
            caller: credentials.identity(),
            transport,
            credentials,
        })
    }

    /// Reads the certificate again at SIGHUP, and now and then; a bad one leaves the old one in use.
    pub(crate) fn reload_certificates(&self, files: CredentialFiles) {
        let (credentials, clock) = (self.credentials.clone(), self.host.clock.clone());
        self.host.tasks.spawn(async move {
            let Ok(mut hangups) = signal(SignalKind::hangup()) else {
                return tracing::warn!("SIGHUP cannot be caught; certificates are not reloaded");
            };
            loop {
                let _ = clock.within(RELOAD_EVERY, hangups.recv()).await;
                match credentials.reload(&files) {
                    Ok(()) => tracing::debug!("certificates read again"),
                    Err(error) => tracing::warn!(%error, "the old certificate stays in use"),
                }
            }
        });
    }
}
