//! A bare server, as a process of its own: a hidden command of the same program.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use milonga_host::quic::{ByteReceiver, ByteSender, ByteService, Transport, TransportOptions};
use milonga_host::{BoxFuture, Clock, CredentialFiles, Credentials, FsDisk, Random, Tasks};
use tokio::io::AsyncReadExt;

use super::BenchError;
use super::disk::Ring;
use super::frames::{Asked, Cutter, ID, request_bytes};

/// What a bare server is told.
#[derive(Clone, Debug, clap::Args)]
pub struct NodeArgs {
    /// What it does with a request.
    #[arg(value_enum)]
    pub kind: NodeKind,
    /// The authority's certificate.
    #[arg(long)]
    pub ca: PathBuf,
    /// Its certificate.
    #[arg(long)]
    pub cert: PathBuf,
    /// Its key.
    #[arg(long)]
    pub key: PathBuf,
    /// Its directory.
    #[arg(long)]
    pub dir: PathBuf,
}

/// What a bare server does with a request.
#[derive(Copy, Clone, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum NodeKind {
    /// Answers.
    Echo,
    /// Writes, syncs, then answers.
    Write,
}

impl NodeKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Write => "write",
        }
    }
}

/// Runs a bare server on the calling thread until stdin ends. It prints its address first.
///
/// # Errors
/// [`BenchError::Baseline`].
pub fn node(args: &NodeArgs) -> Result<(), BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::Baseline(error.to_string());
    milonga_host::ask_for_short_slice();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(&error))?;
    runtime.block_on(async {
        let (clock, random, tasks) = (Clock::real(), Random::real(), Tasks::new());
        let files = CredentialFiles {
            certificate: args.cert.clone(),
            key: args.key.clone(),
            authorities: args.ca.clone(),
        };
        let credentials = Credentials::load(&files, &clock).map_err(|error| failed(&error))?;
        let ring = match args.kind {
            NodeKind::Echo => None,
            NodeKind::Write => {
                let disk = FsDisk::at(&args.dir).map_err(|error| failed(&error))?;
                Some(Ring::create(&disk, "ring").map_err(|error| failed(&error))?)
            }
        };
        let service = Arc::new(Bare(Arc::new(Mutex::new(State { ring, count: 0 }))));
        let options = TransportOptions::default();
        let transport = Transport::bind(options, credentials, clock, random, &tasks)
            .map_err(|error| failed(&error))?;
        let listen = "127.0.0.1:0".parse().expect("it is an address");
        let handle = transport.serve_bytes(&listen, service).await;
        let handle = handle.map_err(|error| failed(&error))?;
        writeln!(std::io::stdout(), "{}", handle.local_address())
            .map_err(|error| failed(&error))?;
        // The caller holds the other end and writes nothing: this ends with the caller.
        let _ = tokio::io::stdin().read(&mut [0]).await;
        Ok(())
    })
}

struct Bare(Arc<Mutex<State>>);

struct State {
    /// Where it writes, if it does.
    ring: Option<Ring>,
    /// Requests so far: what a bare sequencer issues.
    count: u64,
}

impl ByteService for Bare {
    fn serve(&self, send: ByteSender, receive: ByteReceiver) -> BoxFuture<'static, ()> {
        let state = self.0.clone();
        Box::pin(async move {
            if let Err(why) = serve(&state, send, receive).await {
                tracing::debug!(%why, "a bare stream ended");
            }
        })
    }
}

/// All that has come is one group: one write, one sync, one write of answers.
async fn serve(
    state: &Mutex<State>,
    mut send: ByteSender,
    mut receive: ByteReceiver,
) -> Result<(), String> {
    let mut cutter = Cutter::default();
    let mut answers = BytesMut::new();
    let mut parts: Vec<Bytes> = vec![];
    loop {
        let mut broken = None;
        let goes_on = receive
            .read(|chunk| {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                let fed = cutter.feed(&chunk, request_bytes, |frame| {
                    state.take(&Asked::of(frame), &mut answers);
                });
                broken = fed.err().or(broken.take());
            })
            .await?;
        if let Some(why) = broken {
            return Err(why);
        }
        if !answers.is_empty() {
            state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .commit()?;
            parts.push(answers.split().freeze());
            send.write(&mut parts).await?;
        }
        if !goes_on {
            return Ok(());
        }
    }
}

impl State {
    fn take(&mut self, asked: &Asked<'_>, answers: &mut BytesMut) {
        self.count += 1;
        if let Some(ring) = &mut self.ring {
            ring.push(asked.id, asked.behind);
        }
        answers.put_u64_le(asked.id);
        let mut more = (asked.answered as usize).saturating_sub(ID);
        if more >= 8 {
            answers.put_u64_le(self.count);
            more -= 8;
        }
        answers.put_bytes(0, more);
    }

    fn commit(&mut self) -> Result<(), String> {
        match &mut self.ring {
            Some(ring) => ring.commit().map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }
}
