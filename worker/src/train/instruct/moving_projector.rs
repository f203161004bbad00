//! The projector when Stage B trains it. By default it is frozen.

use crate::llink::projector::Projector;
use crate::train::optimizer::{AdamWOptions, AdamWState};

/// The projector with its optimizer. Both are the same on all ranks after each step.
#[derive(Debug, Clone, PartialEq)]
pub struct MovingProjector {
    /// The projector so far.
    pub projector: Projector,
    /// The optimizer, with the weight decay of the slot expander.
    pub optimizer: AdamWState,
}

impl MovingProjector {
    /// Returns a projector before its first step.
    #[must_use]
    pub fn new(projector: Projector, options: AdamWOptions) -> Self {
        let optimizer = AdamWState::new(options, projector.parameters.len());
        Self { projector, optimizer }
    }
}
