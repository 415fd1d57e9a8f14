//! A server with nothing in it: what the network and the disk give, for comparison. It knows no terms, no positions and
//! no writers; it takes what it is sent, makes it durable with one write and one sync for all that wait, and says so.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use milonga_host::fs::FsDisk;
use milonga_host::net::Request;
use milonga_host::{CredentialFiles, Disk, File, Responder, Service, Shutdown};
use milonga_wire::{
    Address, Caller, Payload, Position, Refusal, Reply, Request as Wanted, SequencerReply,
    SequencerRequest, Term, Token, UnitReply, UnitRequest, WriteOutcome,
};
use tokio::sync::Notify;

use crate::failure::{Failure, Outcome};
use crate::node::Node;
use crate::output::line;

/// Bytes of the file, which is written round and round.
const FILE_BYTES: u64 = 64 << 20;
/// The largest answer to a read.
const READ_BYTES: usize = 8 << 20;

/// Serves one bare server; started by `bench baseline` itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  milonga bench bare --name unit-1 --listen 127.0.0.1:7999 --certs certs --dir data")]
pub(in crate::cli) struct BareArgs {
    #[arg(long)]
    pub(super) name: String,
    #[arg(long)]
    pub(super) listen: Address,
    #[arg(long)]
    pub(super) certs: PathBuf,
    /// Where writes go; without one they are forgotten.
    #[arg(long)]
    pub(super) dir: Option<PathBuf>,
    #[arg(long, hide = true)]
    parent: Option<u32>,
}

struct Bare {
    next: AtomicU64,
    zeros: Bytes,
    waiting: Mutex<Vec<(Payload, usize, Responder)>>,
    arrived: Notify,
    file: Option<Arc<dyn File>>,
}

impl BareArgs {
    pub(in crate::cli) fn run(self) -> Outcome {
        if let Some(parent) = self.parent {
            crate::serve::end_with(parent)?;
        }
        crate::serve::runtime()?.block_on(self.serve())
    }

    async fn serve(self) -> Outcome {
        let shutdown = Shutdown::listen()
            .map_err(|why| Failure::failed(format!("signals cannot be caught: {why}")))?;
        let node = Node::open(&CredentialFiles {
            certificate: self.certs.join(format!("{}.pem", self.name)),
            key: self.certs.join(format!("{}.key", self.name)),
            authorities: self.certs.join("ca.pem"),
        })?;
        let file = self.dir.as_deref().map(zeroed).transpose()?;
        let bare = Arc::new(Bare {
            next: AtomicU64::new(0),
            zeros: Bytes::from(vec![0; READ_BYTES]),
            waiting: Mutex::default(),
            arrived: Notify::new(),
            file,
        });
        node.host.tasks.spawn(Arc::clone(&bare).commit_for_ever());
        let handle = node.transport.serve(&self.listen, bare).await?;
        line(&format!(
            "{} listens at {}",
            self.name,
            handle.local_address()
        ))?;
        shutdown.requested(&node.host.tasks).await;
        Ok(())
    }
}

/// A file whose bytes are written, so that writing them again changes no length and no map of blocks.
fn zeroed(dir: &Path) -> Outcome<Arc<dyn File>> {
    let failed = |why| Failure::file(dir, why);
    let disk = FsDisk::at(dir).map_err(failed)?;
    let file = disk.create("bare", FILE_BYTES).map_err(failed)?;
    let zeros = vec![0; 1 << 20];
    for offset in (0..FILE_BYTES).step_by(zeros.len()) {
        file.write_at(offset, &[IoSlice::new(&zeros)])
            .map_err(failed)?;
    }
    file.sync().map_err(failed)?;
    Ok(file)
}

impl Service for Bare {
    fn serve(&self, _: &Caller, request: Request, respond: Responder) {
        match request.head.request {
            Wanted::Sequencer(SequencerRequest::Tokens { count, .. }) => {
                let first = self.next.fetch_add(u64::from(count), Ordering::Relaxed);
                let token = Token {
                    term: Term::GENESIS,
                    first: Position(first),
                    count,
                    streams: vec![],
                };
                respond.send(Ok(Reply::Sequencer(SequencerReply::Token(token))));
            }
            Wanted::Unit(UnitRequest::Write { pieces, .. }) => {
                self.lock().push((request.payload, pieces.len(), respond));
                self.arrived.notify_one();
            }
            Wanted::Unit(UnitRequest::Read { bytes_max, .. }) => {
                let bytes = self.zeros.slice(..(bytes_max as usize).min(READ_BYTES));
                let mut payload = Payload::new();
                payload.push(bytes);
                respond.send_with(Ok(Reply::Unit(UnitReply::Read(vec![]))), payload);
            }
            Wanted::Unit(UnitRequest::Probe) => respond.send(Ok(Reply::Unit(UnitReply::Probed))),
            _ => respond.send(Err(Refusal::malformed("a bare server does not do that"))),
        }
    }
}

impl Bare {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Payload, usize, Responder)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that waits with one write and one sync; what comes meanwhile is the next batch.
    async fn commit_for_ever(self: Arc<Self>) {
        let mut offset = 0;
        loop {
            let batch = std::mem::take(&mut *self.lock());
            if batch.is_empty() {
                self.arrived.notified().await;
                continue;
            }
            let written = self.commit(&batch, &mut offset);
            for (_, pieces, respond) in batch {
                respond.send(match &written {
                    Ok(()) => Ok(Reply::Unit(UnitReply::Written(vec![
                        WriteOutcome::Stored;
                        pieces
                    ]))),
                    Err(why) => Err(Refusal::DiskFailed {
                        why: why.to_string(),
                    }),
                });
            }
            tokio::task::yield_now().await;
        }
    }

    fn commit(
        &self,
        batch: &[(Payload, usize, Responder)],
        offset: &mut u64,
    ) -> std::io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let chunks = batch.iter().flat_map(|(payload, ..)| payload.chunks());
        let parts: Vec<IoSlice<'_>> = chunks.map(|chunk| IoSlice::new(chunk)).collect();
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        if *offset + bytes > file.size() {
            *offset = 0;
        }
        if bytes > file.size() {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        file.write_at(*offset, &parts)?;
        *offset += bytes;
        file.sync()
    }
}
