//! The projector where Stage B trains it too, instead of leaving it as Stage A made it.

use crate::llink::projector::Projector;
use crate::train::optimizer::{AdamWOptions, AdamWState};

/// The projector with its optimizer. The same on all ranks after each step.
#[derive(Debug, Clone, PartialEq)]
pub struct MovingProjector {
    /// Trained in place.
    pub projector: Projector,
    /// With the weight decay of the slot expander.
    pub optimizer: AdamWState,
}

impl MovingProjector {
    /// One that was not moved yet.
    #[must_use]
    pub fn new(projector: Projector, options: AdamWOptions) -> Self {
        let optimizer = AdamWState::new(options, projector.parameters.len());
        Self { projector, optimizer }
    }
}
