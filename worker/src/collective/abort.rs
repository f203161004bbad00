//! Aborts a collective or a task from another thread.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::control::lock;
use crate::{Error, Result};

/// Aborts a collective from any thread: a waiting call returns at once, and every later call fails.
/// [`TaskControl`](crate::control::TaskControl) stops a task by it.
///
/// It can be made before the ranks are connected, so that connecting can be aborted too. Hooks run under its lock, so a hook
/// must not call the same handle.
#[derive(Clone, Default)]
pub struct AbortHandle {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// The reason, and when it was given.
    aborted: Option<(String, Instant)>,
    hooks: Vec<Hook>,
}

/// Wakes who waits, by closing sockets or aborting a communicator.
type Hook = Box<dyn Fn(&str) + Send>;

impl AbortHandle {
    /// Makes a handle that is not aborted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Aborts what belongs to the handle. The first reason stays.
    pub fn abort(&self, reason: impl Into<String>) {
        let mut state = lock(&self.state);
        if state.aborted.is_none() {
            let reason = reason.into();
            state.hooks.iter().for_each(|hook| hook(&reason));
            state.aborted = Some((reason, Instant::now()));
        }
    }

    /// Returns the time since the abort, if there was one.
    pub fn aborted_for(&self) -> Option<Duration> {
        lock(&self.state).aborted.as_ref().map(|(_, at)| at.elapsed())
    }

    /// Fails after an abort.
    ///
    /// # Errors
    /// [`Error::Aborted`] with the reason.
    pub fn check(&self) -> Result<()> {
        match &lock(&self.state).aborted {
            Some((reason, _)) => Err(Error::Aborted(reason.clone())),
            None => Ok(()),
        }
    }

    /// Runs `hook` with the reason at the abort, or at once if it has happened.
    pub fn on_abort(&self, hook: impl Fn(&str) + Send + 'static) {
        let mut state = lock(&self.state);
        match &state.aborted {
            Some((reason, _)) => hook(reason),
            None => state.hooks.push(Box::new(hook)),
        }
    }
}

impl std::fmt::Debug for AbortHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AbortHandle").field("aborted", &lock(&self.state).aborted).finish()
    }
}
