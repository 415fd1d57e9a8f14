//! One stream to a bare server: requests go out as they come, and all that is ready in one write.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use milonga_host::quic::{ByteReceiver, ByteSender, Transport};
use milonga_host::{Peer, Tasks};
use tokio::sync::Notify;

use super::frames::{Cutter, ID, put_head, u64_at};

/// Payloads from here on are passed on by reference, as the real transport does.
const LARGE: usize = 512;

/// An answer: the request's id, and the number behind it if it has one.
pub(super) type Answer = (u64, u64);

/// Where requests to one bare server go.
#[derive(Debug)]
pub(super) struct Link {
    out: Mutex<Out>,
    ready: Notify,
    answered: u32,
    record: Bytes,
}

#[derive(Debug, Default)]
struct Out {
    parts: Vec<Bytes>,
    open: BytesMut,
}

/// A link before it carries anything.
pub(super) struct Opened {
    pub(super) link: Arc<Link>,
    send: ByteSender,
    receive: ByteReceiver,
}

impl Opened {
    /// Connects. Each request will carry `record`, and be answered by `answered` bytes.
    pub(super) async fn new(
        transport: &Transport,
        peer: &Peer,
        record: Bytes,
        answered: u32,
    ) -> Result<Self, String> {
        let opened = transport.open_bytes(peer).await;
        let (send, receive) = opened.map_err(|error| error.to_string())?;
        let link = Arc::new(Link {
            out: Mutex::default(),
            ready: Notify::new(),
            answered,
            record,
        });
        Ok(Self {
            link,
            send,
            receive,
        })
    }

    /// Carries requests and answers until the stream ends. Answers of one wake-up are handed over together.
    pub(super) fn start(self, tasks: &Tasks, take: impl FnMut(&[Answer]) + Send + 'static) {
        let answered = self.link.answered as usize;
        tasks.spawn(self.link.write(self.send));
        tasks.spawn(async move {
            if let Err(why) = read(self.receive, answered, take).await {
                tracing::debug!(%why, "a bare stream ended");
            }
        });
    }
}

impl Link {
    /// Asks; `id` comes back with the answer.
    pub(super) fn ask(&self, id: u64, number: Option<u64>) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let was_empty = out.parts.is_empty() && out.open.is_empty();
        let behind = self.record.len() + number.map_or(0, |_| 8);
        put_head(&mut out.open, id, behind, self.answered);
        if let Some(number) = number {
            out.open.extend_from_slice(&number.to_le_bytes());
        }
        if self.record.len() < LARGE {
            out.open.extend_from_slice(&self.record);
        } else {
            let head = out.open.split().freeze();
            out.parts.push(head);
            out.parts.push(self.record.clone());
        }
        drop(out);
        if was_empty {
            self.ready.notify_one();
        }
    }

    async fn write(self: Arc<Self>, mut send: ByteSender) {
        let mut parts = vec![];
        loop {
            {
                let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
                parts.append(&mut out.parts);
                if !out.open.is_empty() {
                    parts.push(out.open.split().freeze());
                }
            }
            if parts.is_empty() {
                // The last holder of the link but this task is gone.
                if Arc::strong_count(&self) == 1 {
                    return;
                }
                self.ready.notified().await;
            } else if send.write(&mut parts).await.is_err() {
                return;
            }
        }
    }

    /// Lets the writer see that nobody asks any more.
    pub(super) fn end(&self) {
        self.ready.notify_one();
    }
}

async fn read(
    mut receive: ByteReceiver,
    answered: usize,
    mut take: impl FnMut(&[Answer]),
) -> Result<(), String> {
    let mut cutter = Cutter::default();
    let mut answers = vec![];
    loop {
        let mut broken = None;
        let goes_on = receive
            .read(|chunk| {
                let length = |rest: &[u8]| (rest.len() >= answered).then_some(answered);
                let fed = cutter.feed(&chunk, length, |frame| {
                    let number = if frame.len() >= 2 * ID {
                        u64_at(frame, ID)
                    } else {
                        0
                    };
                    answers.push((u64_at(frame, 0), number));
                });
                broken = fed.err().or(broken.take());
            })
            .await?;
        if let Some(why) = broken {
            return Err(why);
        }
        take(&answers);
        answers.clear();
        if !goes_on {
            return Ok(());
        }
    }
}
