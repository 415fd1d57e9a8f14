//! Background tasks that end with their owner.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::task::JoinSet;

/// The tasks of one node. Dropping the last clone, or [`Tasks::abort_all`], ends them all: a simulated crash is that.
///
/// A task must not hold a clone of the `Tasks` it runs in for longer than it needs to spawn: hold what it needs instead.
#[derive(Clone, Debug, Default)]
pub struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts `future` in the background. Must be called inside a runtime.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(future);
    }

    /// A handle that a task may keep: it can spawn, but does not keep the others alive.
    pub fn downgrade(&self) -> WeakTasks {
        WeakTasks(Arc::downgrade(&self.0))
    }

    /// Ends every task where it waits next.
    pub fn abort_all(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .abort_all();
    }
}

/// The tasks of one node, without keeping them alive.
#[derive(Clone, Debug)]
pub struct WeakTasks(Weak<Mutex<JoinSet<()>>>);

impl WeakTasks {
    /// Starts `future` in the background, or drops it if the node has ended. Must be called inside a runtime.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = self.0.upgrade() {
            Tasks(tasks).spawn(future);
        }
    }
}
