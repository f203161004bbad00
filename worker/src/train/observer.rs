//! The observer of a training loop.

use std::ops::ControlFlow;

use super::step_record::StepRecord;
use crate::{Error, Result};

/// Returns a checkpoint's file of the state after the last whole step. It costs nothing unless it is called.
pub type Snapshot<'a> = &'a dyn Fn() -> Result<Vec<u8>>;

/// Receives each step of a training loop, and the error that ended it.
pub trait Observer {
    /// Receives a step. It may end training, if it does so at the same step on all ranks.
    ///
    /// # Errors
    /// An error that ends training.
    fn stepped(&mut self, record: &StepRecord, snapshot: Snapshot<'_>) -> Result<ControlFlow<()>>;

    /// Receives the error of a step that failed. `snapshot` gives the state after the last whole step, and `next_step`
    /// is the step to take next.
    fn interrupted(&mut self, _error: &Error, _next_step: u64, _snapshot: Snapshot<'_>) {}
}

/// An [`Observer`] that calls a function after each step.
#[derive(Debug)]
pub struct Each<F>(F);

/// Returns an observer that calls `f` after each step.
pub fn each<F: FnMut(&StepRecord, Snapshot<'_>) -> Result<ControlFlow<()>>>(f: F) -> Each<F> {
    Each(f)
}

impl<F: FnMut(&StepRecord, Snapshot<'_>) -> Result<ControlFlow<()>>> Observer for Each<F> {
    fn stepped(&mut self, record: &StepRecord, snapshot: Snapshot<'_>) -> Result<ControlFlow<()>> {
        (self.0)(record, snapshot)
    }
}
