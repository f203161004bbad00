//! Aborts a collective from another thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

/// Aborts a collective from any thread: a waiting call returns at once, and every later call fails.
///
/// It can be made before the ranks are connected, so that connecting can be aborted too.
#[derive(Clone, Default)]
pub struct AbortHandle {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    reason: Option<String>,
    /// Functions that wake the transport, by closing sockets or aborting a communicator.
    hooks: Vec<Box<dyn Fn() + Send>>,
}

impl AbortHandle {
    /// Makes a handle that is not aborted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Aborts the collective. The first reason stays.
    pub fn abort(&self, reason: impl Into<String>) {
        let mut state = self.lock();
        if state.reason.is_none() {
            state.reason = Some(reason.into());
            state.hooks.iter().for_each(|hook| hook());
        }
    }

    /// Returns the reason of the abort, if there was one.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.lock().reason.clone()
    }

    /// Fails after the collective was aborted.
    ///
    /// # Errors
    /// [`Error::Aborted`] with the reason.
    pub fn check(&self) -> Result<()> {
        match self.reason() {
            Some(reason) => Err(Error::Aborted(reason)),
            None => Ok(()),
        }
    }

    /// Runs `hook` when the collective is aborted, or at once if it already was.
    pub fn on_abort(&self, hook: impl Fn() + Send + 'static) {
        let mut state = self.lock();
        if state.reason.is_some() {
            hook();
        } else {
            state.hooks.push(Box::new(hook));
        }
    }

    /// A panic under the lock leaves the state consistent, so a poisoned lock is used.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for AbortHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("AbortHandle").field("reason", &self.reason()).finish()
    }
}
