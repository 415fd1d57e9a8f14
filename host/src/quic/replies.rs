//! The requests of one connection that a service is at work on, and the replies that wait to be written.
//!
//! - B2 Bytes of requests taken in and of replies not yet written stay near the connection's limit: above it nothing more is
//!   read from that connection. (One frame may pass it, and replies may be larger than what asked for them.)
//! - B3 An answer that never comes gives its room back when the service drops it.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use milonga_wire::{Payload, Refusal, ReplyHead};
use tokio::sync::Notify;

use super::queue::Queue;
use crate::Responder;
use crate::net::Answers;

/// What one connection holds (B2).
#[derive(Debug)]
pub(super) struct Load {
    bytes: AtomicUsize,
    limit: usize,
    changed: Notify,
}

impl Load {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            limit,
            changed: Notify::new(),
        }
    }

    /// Waits until another request may be taken in.
    pub(super) async fn room(&self) {
        self.until(|bytes| bytes <= self.limit).await;
    }

    /// Waits until every request is answered and every answer written.
    pub(super) async fn empty(&self) {
        self.until(|bytes| bytes == 0).await;
    }

    /// Whether [`Load::room`] would not wait.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Acquire) <= self.limit
    }

    async fn until(&self, fits: impl Fn(usize) -> bool) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if fits(self.bytes.load(Ordering::Acquire)) {
                return;
            }
            changed.await;
        }
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    fn release(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        debug_assert!(before >= bytes, "B2: more released than was taken in");
        let after = before - bytes;
        if after == 0 || (before > self.limit && after <= self.limit) {
            self.changed.notify_waiters();
        }
    }
}

/// One stream's replies.
#[derive(Debug)]
pub(super) struct Replies {
    queue: Mutex<Queue>,
    /// Requests at work.
    open: AtomicUsize,
    /// There is something to write, or nothing more will come.
    ready: Notify,
    /// No more requests come: end when the last is answered.
    closing: AtomicBool,
    /// Nobody reads the replies any more.
    dead: AtomicBool,
    /// Everything was written and reached the other end.
    delivered: Notify,
    load: Arc<Load>,
}

impl Replies {
    pub(super) fn new(load: Arc<Load>) -> Self {
        Self {
            queue: Mutex::default(),
            open: AtomicUsize::new(0),
            ready: Notify::new(),
            closing: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            delivered: Notify::new(),
            load,
        }
    }

    /// Takes in a request of `bytes`; its answer goes where this says.
    pub(super) fn responder(self: &Arc<Self>, id: u64, bytes: usize) -> Responder {
        self.load.add(bytes);
        self.open.fetch_add(1, Ordering::AcqRel);
        Responder::of(self.clone(), id, bytes)
    }

    fn push(&self, head: &ReplyHead, payload: &Payload) {
        let mut queue = self.queue();
        if self.dead.load(Ordering::Acquire) {
            return;
        }
        let was_empty = queue.is_empty();
        let pushed = queue.push(head, payload).unwrap_or_else(|error| {
            let reply = Err(Refusal::malformed(format!(
                "the reply does not fit: {error}"
            )));
            let small = ReplyHead { id: head.id, reply };
            queue
                .push(&small, &Payload::new())
                .expect("a refusal of bounded text fits a frame")
        });
        self.load.add(pushed);
        if was_empty {
            self.ready.notify_one();
        }
    }

    /// Waits for replies and moves them to `parts`; nothing when no more will come. Call [`Replies::written`] next.
    pub(super) async fn take(&self, parts: &mut Vec<Bytes>) -> Option<u64> {
        loop {
            {
                // In this order: an answer is queued before its request counts as done.
                let done =
                    self.closing.load(Ordering::Acquire) && self.open.load(Ordering::Acquire) == 0;
                let mut queue = self.queue();
                if self.dead.load(Ordering::Acquire) {
                    return None;
                }
                if !queue.is_empty() {
                    return Some(queue.take(parts));
                }
                if done {
                    return None;
                }
            }
            self.ready.notified().await;
        }
    }

    /// `bytes` of what was taken have been passed on (or never will be).
    pub(super) fn written(&self, bytes: u64) {
        self.load.release(bytes as usize);
    }

    /// No more requests come.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.ready.notify_one();
    }

    /// The other end has everything, or is gone.
    pub(super) fn set_delivered(&self) {
        self.delivered.notify_one();
    }

    /// Waits for [`Replies::set_delivered`].
    pub(super) async fn delivered(&self) {
        self.delivered.notified().await;
    }

    /// Nobody reads the replies any more.
    pub(super) fn kill(&self) {
        let dropped = {
            let mut queue = self.queue();
            self.dead.store(true, Ordering::Release);
            queue.take(&mut vec![])
        };
        self.load.release(dropped as usize);
        self.ready.notify_one();
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Answers for Replies {
    fn answer(&self, head: ReplyHead, payload: Payload) {
        self.push(&head, &payload);
    }

    /// B3.
    fn over(&self, bytes: usize) {
        let last = self.open.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && self.closing.load(Ordering::Acquire) {
            self.ready.notify_one();
        }
        self.load.release(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no() -> Result<milonga_wire::Reply, Refusal> {
        Err(Refusal::DiskFull)
    }

    /// B2, B3: whichever way a request ends, its bytes are given back, and a drain sees the end.
    #[tokio::test]
    async fn room_comes_back_however_a_request_ends() {
        let load = Arc::new(Load::new(100));
        let replies = Arc::new(Replies::new(load.clone()));
        let (answered, dropped) = (replies.responder(1, 60), replies.responder(2, 60));
        assert!(
            tokio::task::unconstrained(poll_once(load.room()))
                .await
                .is_none()
        );
        drop(dropped);
        load.room().await;
        answered.send(no());
        assert!(poll_once(load.empty()).await.is_none());
        let bytes = replies.take(&mut vec![]).await.unwrap();
        replies.written(bytes);
        load.empty().await;

        let unread = replies.responder(3, 60);
        let unwritten = replies.responder(4, 60);
        unwritten.send(no());
        replies.kill();
        unread.send(no());
        load.empty().await;
        assert_eq!(replies.take(&mut vec![]).await, None);
    }

    /// A client that has asked its last still gets every answer.
    #[tokio::test]
    async fn a_closed_stream_ends_after_its_last_answer() {
        let replies = Arc::new(Replies::new(Arc::new(Load::new(100))));
        let late = replies.responder(1, 10);
        replies.close();
        assert!(poll_once(replies.take(&mut vec![])).await.is_none());
        late.send(no());
        assert!(replies.take(&mut vec![]).await.is_some());
        assert_eq!(replies.take(&mut vec![]).await, None);
    }

    async fn poll_once<F: Future>(future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match future.as_mut().poll(context) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
