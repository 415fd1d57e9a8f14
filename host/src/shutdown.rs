//! The end of a process by signal: once to finish what is under way, twice to end at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::Tasks;

/// What a process that a second signal ended says: the shell's number for an interrupt.
const INTERRUPTED: i32 = 130;

/// The first interrupt or termination. Made once per process, before anything that must not be cut off begins.
#[derive(Debug)]
pub struct Shutdown {
    interrupt: Signal,
    terminate: Signal,
}

impl Shutdown {
    /// Takes SIGINT and SIGTERM over from the machine, whose answer would be to end the process. Must be called inside a
    /// runtime.
    ///
    /// # Errors
    /// The machine's.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the first signal, and says which. From then on a second one ends the process at once, for as long as
    /// `tasks` run: whoever waits for a clean end can stop waiting.
    pub async fn requested(mut self, tasks: &Tasks) -> &'static str {
        let first = self.next().await;
        tracing::info!(
            signal = first,
            "shutting down; a second signal ends at once"
        );
        tasks.spawn(async move {
            let second = self.next().await;
            tracing::warn!(signal = second, "ended by a second signal");
            std::process::exit(INTERRUPTED);
        });
        first
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Number, getpid, kill_process};

    use super::*;

    /// One test for all signals: they belong to the process, not to a test.
    #[tokio::test]
    async fn the_first_signal_asks_for_an_end_and_names_itself() {
        for (number, name) in [(Number::TERM, "SIGTERM"), (Number::INT, "SIGINT")] {
            let (shutdown, tasks) = (Shutdown::listen().unwrap(), Tasks::new());
            kill_process(getpid(), number).unwrap();
            assert_eq!(shutdown.requested(&tasks).await, name);
        }
    }
}
