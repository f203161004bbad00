//! Ending a collective from outside.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

/// Ends a collective from any thread: what waits returns at once, and every later call fails.
///
/// It can be made before the ranks are connected, so that connecting can be aborted as well.
#[derive(Clone, Default)]
pub struct AbortHandle {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    reason: Option<String>,
    /// What wakes the transport: closing sockets, aborting a communicator.
    hooks: Vec<Box<dyn Fn() + Send>>,
}

impl AbortHandle {
    /// A handle that nothing has been aborted with.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the collective. The first reason stays.
    pub fn abort(&self, reason: impl Into<String>) {
        let mut state = self.lock();
        if state.reason.is_none() {
            state.reason = Some(reason.into());
            state.hooks.iter().for_each(|hook| hook());
        }
    }

    /// Why it was aborted, if it was.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.lock().reason.clone()
    }

    /// Fails once the collective has been aborted.
    ///
    /// # Errors
    /// [`Error::Aborted`] with the reason.
    pub fn check(&self) -> Result<()> {
        match self.reason() {
            Some(reason) => Err(Error::Aborted(reason)),
            None => Ok(()),
        }
    }

    /// Runs `hook` when the collective is aborted, or now if it has been.
    pub fn on_abort(&self, hook: impl Fn() + Send + 'static) {
        let mut state = self.lock();
        if state.reason.is_some() {
            hook();
        } else {
            state.hooks.push(Box::new(hook));
        }
    }

    /// A panic under the lock leaves nothing half-done, so a poisoned lock is taken all the same.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for AbortHandle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("AbortHandle")
            .field("reason", &self.reason())
            .finish()
    }
}
