//! The parts that the steps of both stages share: their outcome, a clock for their phases, and a check for NaN and
//! infinity.

use std::time::Instant;

pub use super::step_record::StepSeconds;
use crate::{Error, Result};

/// The result of one step. It is the same on all ranks but for the seconds.
#[derive(Debug, Clone, Copy)]
pub struct StepOutcome<L> {
    /// The losses of the global batch before the step.
    pub losses: L,
    /// The gradient's L2 norm before clipping.
    pub grad_norm: f64,
    /// The time of each phase.
    pub seconds: StepSeconds,
}

/// The number of ids that the error of a divergence names.
const IDS_NAMED: usize = 16;

/// Refuses a step whose loss or gradient is NaN or infinite.
///
/// # Errors
/// [`Error::Diverged`] naming the step and the batch's ids.
pub(super) fn check_finite(step: u64, ids: &[u64], loss: f64, grad_norm: f64) -> Result<()> {
    if loss.is_finite() && grad_norm.is_finite() {
        return Ok(());
    }
    let named: Vec<String> = ids.iter().take(IDS_NAMED).map(u64::to_string).collect();
    let more = match ids.len().saturating_sub(IDS_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let reason = format!(
        "the loss is {loss}, the gradient's norm {grad_norm}; the batch's pairs are {}{more}",
        named.join(", ")
    );
    Err(Error::Diverged { step, reason, ids: ids.to_vec() })
}

pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns the seconds since the last call.
    pub(super) fn lap(&mut self) -> f64 {
        let now = Instant::now();
        std::mem::replace(&mut self.0, now).elapsed().as_secs_f64()
    }
}
