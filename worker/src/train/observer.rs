//! Whoever watches a training loop.

use std::ops::ControlFlow;

use super::step_record::StepRecord;
use crate::{Error, Result};

/// Makes a checkpoint's file of the state after the last whole step; costs nothing when it is not called.
pub type Snapshot<'a> = &'a dyn Fn() -> Result<Vec<u8>>;

/// Told of each step of a training loop, and of the error that ended it.
pub trait Observer {
    /// After a step. May end training; all ranks must then do so at the same step.
    ///
    /// # Errors
    /// What ends training.
    fn stepped(&mut self, record: &StepRecord, snapshot: Snapshot<'_>) -> Result<ControlFlow<()>>;

    /// A step did not come about. The state, which `snapshot` gives, is that after the last whole one; `next_step` is
    /// the step to take next.
    fn interrupted(&mut self, _error: &Error, _next_step: u64, _snapshot: Snapshot<'_>) {}
}

/// A function as an [`Observer`] of steps.
#[derive(Debug)]
pub struct Each<F>(F);

/// Calls `f` after each step.
pub fn each<F: FnMut(&StepRecord, Snapshot<'_>) -> Result<ControlFlow<()>>>(f: F) -> Each<F> {
    Each(f)
}

impl<F: FnMut(&StepRecord, Snapshot<'_>) -> Result<ControlFlow<()>>> Observer for Each<F> {
    fn stepped(&mut self, record: &StepRecord, snapshot: Snapshot<'_>) -> Result<ControlFlow<()>> {
        (self.0)(record, snapshot)
    }
}
