//! The projector where Stage B trains it too, instead of leaving it as Stage A made it.

use super::optimizer::{AdamW, AdamWOptions};
use crate::llink::projector::{Activations, Projector};

/// The projector with its optimizer. The same on all ranks after each step.
#[derive(Debug, Clone, PartialEq)]
pub struct MovingProjector {
    /// Trained in place.
    pub projector: Projector,
    /// With the weight decay of the slot expander.
    pub optimizer: AdamW,
}

impl MovingProjector {
    /// One that was not moved yet.
    #[must_use]
    pub fn new(projector: Projector, options: AdamWOptions) -> Self {
        let optimizer = AdamW::new(options, projector.parameters.len());
        Self { projector, optimizer }
    }

    /// How many parameters it has.
    #[must_use]
    pub fn count(&self) -> usize {
        self.projector.parameters.len()
    }

    /// Projects encoder vectors `[b, d_e]` into `activations`; Stage B has no dropout here.
    pub(super) fn forward(&self, vectors: &[f32], activations: &mut Activations) {
        self.projector.forward(vectors, None, activations);
    }
}
