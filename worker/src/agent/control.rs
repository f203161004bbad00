//! What a running task and the agent share: progress one way, the order to stop the other.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::collective::Position;
use crate::{Error, Result};

/// How far a task is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    /// Of `total`, in the stage's unit.
    pub done: u64,
    /// 0 while it is not known.
    pub total: u64,
    /// Newest loss, temperature, …
    pub figures: BTreeMap<String, f64>,
    /// Where a rank is in its training; empty elsewhere.
    pub place: String,
}

/// Called once, when the task is told to stop.
type OnStop = Box<dyn FnOnce(&str) + Send>;

#[derive(Default)]
struct State {
    progress: Progress,
    stopped: Option<(String, Instant)>,
    on_stop: Vec<OnStop>,
    position: Option<Position>,
}

/// Shared by a task's thread and the agent.
#[derive(Default)]
pub struct TaskControl {
    // A task writes it a few times a second and the agent reads it at each heartbeat.
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
        // Every write leaves it whole, so a panic elsewhere spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how far the task is.
    pub fn advance(&self, done: u64, total: u64) {
        let mut state = self.state();
        (state.progress.done, state.progress.total) = (done, total);
    }

    /// Notes figures worth showing.
    pub fn show(&self, figures: impl IntoIterator<Item = (&'static str, f64)>) {
        let mut state = self.state();
        for (name, value) in figures {
            state.progress.figures.insert(name.into(), value);
        }
    }

    /// From now on the task's place is what `position` says.
    pub fn is_at(&self, position: Position) {
        self.state().position = Some(position);
    }

    /// How far the task is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let state = self.state();
        Progress {
            place: state.position.as_ref().map(ToString::to_string).unwrap_or_default(),
            ..state.progress.clone()
        }
    }

    /// Tells the task to stop; only the first reason counts.
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

    /// How long ago the task was told to stop, if it was.
    #[must_use]
    pub fn stopped_for(&self) -> Option<Duration> {
        self.state().stopped.as_ref().map(|(_, at)| at.elapsed())
    }

    /// Calls `f` when the task is told to stop, or at once if it has been: to wake what blocks.
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

    /// Fails once the task was told to stop. Tasks call it between pieces of work.
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
