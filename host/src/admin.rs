//! The admin endpoint of a server: metrics, and whether it lives and is ready.
//!
//! Plain HTTP and read-only, so it listens on the loopback address unless an operator says otherwise. Nothing of the
//! protocol passes here.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::{Clock, Tasks};

/// Upper bounds for every metric whose name ends in `_seconds`: from a hand-over between threads to a lost server.
const SECONDS: [f64; 18] = [
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];

/// How often samples are folded into buckets, so that they take no memory when nobody asks for them.
const UPKEEP: Duration = Duration::from_secs(5);

/// Why there is no admin endpoint.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Another process listens there.
    #[error(
        "the admin address {address} is in use; stop what listens there, or choose another `admin`"
    )]
    Occupied {
        /// The address.
        address: SocketAddr,
    },
    /// The machine refuses the address.
    #[error("cannot listen on the admin address {address}: {why}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The machine's reason.
        why: io::Error,
    },
    /// Something else collects this process's metrics.
    #[error("the metrics of this process are collected elsewhere: {why}")]
    Collected {
        /// What the collector says.
        why: String,
    },
}

/// The metrics of this process. Clones share them.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Starts to collect the metrics of this process. Before any server starts: handles made earlier collect nothing.
    /// Whoever calls again gets the same ones.
    ///
    /// # Errors
    /// [`AdminError::Collected`].
    pub fn install() -> Result<Self, AdminError> {
        static INSTALLED: Mutex<Option<Metrics>> = Mutex::new(None);
        let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = &*installed {
            return Ok(metrics.clone());
        }
        let collected = |error: metrics_exporter_prometheus::BuildError| AdminError::Collected {
            why: error.to_string(),
        };
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .map_err(collected)?
            .install_recorder()
            .map_err(collected)?;
        let metrics = Self(handle);
        *installed = Some(metrics.clone());
        Ok(metrics)
    }

    /// All metrics as Prometheus reads them.
    pub fn render(&self) -> String {
        self.0.render()
    }
}

/// Serves `/metrics`, `/livez` and `/readyz` on `address` until `tasks` end, and says where: with port 0 the machine
/// chooses one. `ready` says why not, for people; it is asked at each request and must not block.
///
/// # Errors
/// [`AdminError::Occupied`] or [`AdminError::Listen`].
pub async fn serve(
    address: SocketAddr,
    metrics: Metrics,
    ready: impl Fn() -> Result<(), String> + Clone + Send + Sync + 'static,
    clock: Clock,
    tasks: &Tasks,
) -> Result<SocketAddr, AdminError> {
    let listen = |why: io::Error| match why.kind() {
        io::ErrorKind::AddrInUse => AdminError::Occupied { address },
        _ => AdminError::Listen { address, why },
    };
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(listen)?;
    let bound = listener.local_addr().map_err(listen)?;
    let routes = routes(metrics.clone(), ready);
    tasks.spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "the admin endpoint ended");
        }
    });
    tasks.spawn(async move {
        loop {
            clock.sleep(UPKEEP).await;
            metrics.0.run_upkeep();
        }
    });
    Ok(bound)
}

fn routes(
    metrics: Metrics,
    ready: impl Fn() -> Result<(), String> + Clone + Send + Sync + 'static,
) -> Router {
    let render = move || {
        let text = metrics.render();
        async move {
            let plain = "text/plain; version=0.0.4; charset=utf-8";
            ([(header::CONTENT_TYPE, plain)], text)
        }
    };
    let readyz = move || {
        let answer = match ready() {
            Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
            Err(why) => (
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {why}\n"),
            ),
        };
        async move { answer.into_response() }
    };
    Router::new()
        .route("/metrics", get(render))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const ANYWHERE: &str = "127.0.0.1:0";

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn start(
        address: SocketAddr,
        ready: &Arc<AtomicBool>,
        tasks: &Tasks,
    ) -> Result<SocketAddr, AdminError> {
        let ready = Arc::clone(ready);
        let says = move || {
            let ready = ready.load(Ordering::Relaxed);
            ready.then_some(()).ok_or("no layout yet".to_owned())
        };
        serve(
            address,
            Metrics::install().unwrap(),
            says,
            Clock::real(),
            tasks,
        )
        .await
    }

    #[tokio::test]
    async fn it_serves_metrics_in_seconds_buckets_and_says_why_it_is_not_ready() {
        let (tasks, ready) = (Tasks::new(), Arc::default());
        let address = start(ANYWHERE.parse().unwrap(), &ready, &tasks)
            .await
            .unwrap();
        metrics::histogram!("milonga_trial_duration_seconds").record(0.002);
        metrics::counter!("milonga_trials_total").increment(1);

        let metrics = ask(address, "/metrics").await;
        assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
        assert!(metrics.contains("milonga_trials_total 1"), "{metrics}");
        let bucket = "milonga_trial_duration_seconds_bucket{le=\"0.0025\"} 1";
        assert!(metrics.contains(bucket), "{metrics}");
        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200"));
        let answer = ask(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("no layout yet"), "{answer}");

        ready.store(true, Ordering::Relaxed);
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn an_occupied_address_is_named() {
        let (tasks, ready) = (Tasks::new(), Arc::default());
        let taken = start(ANYWHERE.parse().unwrap(), &ready, &tasks)
            .await
            .unwrap();

        let second = start(taken, &ready, &tasks).await.unwrap_err();

        assert!(matches!(second, AdminError::Occupied { address } if address == taken));
        assert!(second.to_string().contains(&taken.to_string()));
    }
}
