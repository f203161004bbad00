//! The state that a running task shares with the agent: its progress, and the order to stop.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::collective::Position;
use crate::{Error, Result};

/// The progress of a task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// How much of `total` is done, in the stage's unit.
    pub done: u64,
    /// The whole amount, or 0 while it is not known.
    pub total: u64,
    /// The newest loss, temperature, …
    pub figures: BTreeMap<String, f64>,
    /// The position of a rank in its training; empty for other tasks.
    pub place: String,
}

/// A callback that runs once, when the task is told to stop.
type OnStop = Box<dyn FnOnce(&str) + Send>;

#[derive(Default)]
struct State {
    progress: Progress,
    stopped: Option<(String, Instant)>,
    on_stop: Vec<OnStop>,
    position: Option<Position>,
}

/// The state that a task's thread and the agent share.
#[derive(Default)]
pub struct TaskControl {
    // The task writes it a few times a second, and the agent reads it at each heartbeat.
    state: Mutex<State>,
}

impl std::fmt::Debug for TaskControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        f.debug_struct("TaskControl")
            .field("progress", &state.progress)
            .field("stopped", &state.stopped)
            .finish_non_exhaustive()
    }
}

impl TaskControl {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each write leaves the state complete, so a panic of another thread is harmless.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the progress of the task.
    pub fn advance(&self, done: u64, total: u64) {
        let mut state = self.state();
        (state.progress.done, state.progress.total) = (done, total);
    }

    /// Sets figures that are shown to people.
    pub fn show(&self, figures: impl IntoIterator<Item = (impl Into<String>, f64)>) {
        let mut state = self.state();
        for (name, value) in figures {
            state.progress.figures.insert(name.into(), value);
        }
    }

    /// From now on, reports `position` as the task's place.
    pub fn is_at(&self, position: Position) {
        self.state().position = Some(position);
    }

    /// Returns the progress of the task.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let state = self.state();
        Progress {
            place: state.position.as_ref().map(ToString::to_string).unwrap_or_default(),
            ..state.progress.clone()
        }
    }

    /// Tells the task to stop. Only the first reason counts.
    pub fn stop(&self, reason: &str) {
        let callbacks = {
            let mut state = self.state();
            if state.stopped.is_some() {
                return;
            }
            state.stopped = Some((reason.into(), Instant::now()));
            std::mem::take(&mut state.on_stop)
        };
        for callback in callbacks {
            callback(reason);
        }
    }

    /// Returns the time since the task was told to stop, if it was.
    #[must_use]
    pub fn stopped_for(&self) -> Option<Duration> {
        self.state().stopped.as_ref().map(|(_, at)| at.elapsed())
    }

    /// Calls `f` when the task is told to stop, or at once if it already was. It wakes blocked calls.
    pub fn on_stop(&self, f: impl FnOnce(&str) + Send + 'static) {
        let reason = {
            let mut state = self.state();
            match &state.stopped {
                Some((reason, _)) => reason.clone(),
                None => return state.on_stop.push(Box::new(f)),
            }
        };
        f(&reason);
    }

    /// Fails after the task was told to stop. Tasks call it between pieces of work.
    ///
    /// # Errors
    /// [`Error::Aborted`] with the reason.
    pub fn check(&self) -> Result<()> {
        match &self.state().stopped {
            Some((reason, _)) => Err(Error::Aborted(reason.clone())),
            None => Ok(()),
        }
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
