//! The state that a running task shares with the agent: its progress, and the order to stop.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llink_proto::TaskProgress;

use crate::Result;
use crate::collective::{AbortHandle, Position};

/// Locks a value. Every write leaves it consistent, so it is used after a panic of another thread too.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct State {
    progress: TaskProgress,
    position: Option<Position>,
}

/// The state that a task's thread and the agent share.
#[derive(Debug, Default)]
pub struct TaskControl {
    // The task writes it a few times a second, and the agent reads it at each heartbeat.
    state: Mutex<State>,
    stop: AbortHandle,
}

impl TaskControl {
    /// Sets how much of `total` is done, in the stage's unit. The total is 0 while it is not known.
    pub fn advance(&self, done: u64, total: u64) {
        let progress = &mut lock(&self.state).progress;
        (progress.done, progress.total) = (done, total);
    }

    /// Sets figures that are shown to people.
    pub fn show(&self, figures: impl IntoIterator<Item = (impl Into<String>, f64)>) {
        let figures = figures.into_iter().map(|(name, value)| (name.into(), value));
        lock(&self.state).progress.figures.extend(figures);
    }

    /// From now on, reports `position` as the task's place.
    pub fn is_at(&self, position: Position) {
        lock(&self.state).position = Some(position);
    }

    /// Returns the progress of the task, without the task's own id and token.
    pub fn progress(&self) -> TaskProgress {
        let state = lock(&self.state);
        TaskProgress {
            place: state.position.as_ref().map(ToString::to_string).unwrap_or_default(),
            ..state.progress.clone()
        }
    }

    /// Tells the task to stop. Only the first reason counts.
    pub fn stop(&self, reason: &str) {
        self.stop.abort(reason);
    }

    /// Returns the time since the task was told to stop, if it was.
    pub fn stopped_for(&self) -> Option<Duration> {
        self.stop.aborted_for()
    }

    /// Calls `f` when the task is told to stop, or at once if it already was. It wakes blocked calls.
    pub fn on_stop(&self, f: impl Fn(&str) + Send + 'static) {
        self.stop.on_abort(f);
    }

    /// Fails after the task was told to stop. Tasks call it between pieces of work.
    ///
    /// # Errors
    /// [`crate::Error::Aborted`] with the reason.
    pub fn check(&self) -> Result<()> {
        self.stop.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn stopping_wakes_what_waits_once_and_keeps_the_first_reason() {
        let control = TaskControl::default();
        let woken = Arc::new(AtomicU32::new(0));
        let count = || {
            let woken = woken.clone();
            move |_: &str| {
                woken.fetch_add(1, Ordering::SeqCst);
            }
        };
        assert!(control.check().is_ok());
        control.on_stop(count());
        control.stop("first");
        control.stop("second");
        control.on_stop(count());
        assert_eq!(woken.load(Ordering::SeqCst), 2);
        assert_eq!(control.check().unwrap_err().to_string(), "stopped: first");
    }
}
