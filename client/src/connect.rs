//! Connecting a client to its cluster over the real network.

use std::sync::Arc;

use milonga_host::quic::{BindError, Transport, TransportOptions};
use milonga_host::tls::CredentialsError;
use milonga_host::{Clock, CredentialFiles, Credentials, Host, Random, Tasks};

use crate::config::ClusterConfig;
use crate::log::Log;

/// Why a client could not start. Nothing was asked of any server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The certificate, its key or the authority is not usable.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The machine gives no socket.
    #[error(transparent)]
    Network(#[from] BindError),
}

impl ClusterConfig {
    /// A client of the cluster that this file names. Must be called inside a tokio runtime; servers are asked only when
    /// an operation needs them.
    ///
    /// # Errors
    /// [`ConnectError`].
    ///
    /// # Examples
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let cluster = milonga_client::ClusterConfig::load("milonga.toml".as_ref())?;
    /// let log = cluster.connect()?;
    /// let position = log.append("hello", &[]).await?;
    /// assert_eq!(log.read(position).await?.payload().unwrap(), "hello");
    /// # Ok(())
    /// # }
    /// ```
    pub fn connect(&self) -> Result<Log, ConnectError> {
        self.connect_with_transport().map(|(log, _)| log)
    }

    /// The same, with the transport that it calls through: for programs that end soon, and close it first. Else servers
    /// notice only after a silence of seconds that the client is gone, and wait for it if they are to stop meanwhile.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub fn connect_with_transport(&self) -> Result<(Log, Transport), ConnectError> {
        let (clock, random, tasks) = (Clock::real(), Random::real(), Tasks::new());
        let files = CredentialFiles {
            certificate: self.cert.clone(),
            key: self.key.clone(),
            authorities: self.ca.clone(),
        };
        let credentials = Credentials::load(&files, &clock)?;
        let caller = credentials.identity();
        let options = TransportOptions::default();
        let transport =
            Transport::bind(options, credentials, clock.clone(), random.clone(), &tasks)?;
        let host = Host {
            net: Arc::new(transport.clone()),
            clock,
            random,
            tasks,
        };
        let log = Log::new(host, caller, self.layout.clone(), self.options());
        Ok((log, transport))
    }
}
