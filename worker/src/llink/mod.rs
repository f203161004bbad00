//! The method: projector, losses, negatives, retrieval.
