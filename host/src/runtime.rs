//! What runs a process: one thread, or two where a disk may hold one of them up.
//!
//! A thread that waits for `fdatasync` answers nobody. A disk that stands still for a second would so look like a server
//! that is gone. With two threads the other one goes on; but the scheduler lets a thread that has nothing to do sleep
//! until there is work, also when the one that listened to the network is in the disk. So it is woken from time to time:
//! it then listens itself.

use std::future::Future;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use tokio::runtime::Builder;

use crate::ask_for_short_slice;

/// How long nobody may listen while a thread is in the disk: a fraction of what a caller takes for silence.
const LISTEN_EVERY: Duration = Duration::from_millis(50);

/// Runs a process, with short scheduling slices for all its threads.
#[derive(Debug)]
pub struct Runtime {
    inner: tokio::runtime::Runtime,
    /// Dropped with it: the thread that wakes the others ends.
    _waker: Option<Sender<()>>,
}

impl Runtime {
    /// One thread, the calling one.
    ///
    /// # Errors
    /// The machine's.
    pub fn of_one_thread() -> io::Result<Self> {
        ask_for_short_slice();
        let inner = Builder::new_current_thread().enable_all().build()?;
        Ok(Self {
            inner,
            _waker: None,
        })
    }

    /// Two threads beside the calling one, so that the network is served while one of them is in the disk.
    ///
    /// # Errors
    /// The machine's.
    pub fn beside_a_disk() -> io::Result<Self> {
        ask_for_short_slice();
        let inner = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let (waker, ended) = channel();
        let handle = inner.handle().clone();
        thread::Builder::new()
            .name("listen".to_owned())
            .spawn(move || {
                while ended.recv_timeout(LISTEN_EVERY) == Err(RecvTimeoutError::Timeout) {
                    handle.spawn(std::future::ready(()));
                }
            })?;
        Ok(Self {
            inner,
            _waker: Some(waker),
        })
    }

    /// Runs `future` to its end on the calling thread.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.inner.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// The thread that took in the first datagram sits in the disk; the second one is answered all the same.
    #[test]
    fn the_network_is_served_while_a_thread_is_in_the_disk() {
        let runtime = Runtime::beside_a_disk().unwrap();
        let (caller, other) = (socket(), socket());
        let (go_on, may_go_on) = channel::<()>();
        let at = runtime.block_on(async {
            let stuck = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let answering = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let at = [&stuck, &answering].map(|socket| socket.local_addr().unwrap());
            tokio::spawn(async move {
                stuck.recv(&mut [0; 9]).await.unwrap();
                let _ = may_go_on.recv();
            });
            tokio::spawn(async move {
                let mut bytes = [0; 9];
                loop {
                    let (length, from) = answering.recv_from(&mut bytes).await.unwrap();
                    answering.send_to(&bytes[..length], from).await.unwrap();
                }
            });
            at
        });
        let mut bytes = [0; 9];
        for round in 0..3 {
            caller.send_to(b"ping", at[1]).unwrap();
            let length = caller.recv(&mut bytes).expect("answered");
            assert_eq!(&bytes[..length], b"ping");
            if round == 0 {
                other.send_to(b"stop", at[0]).unwrap();
            }
        }
        drop(go_on);
    }

    /// Gives up in the end: a test that hangs says nothing.
    fn socket() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        socket
    }
}
