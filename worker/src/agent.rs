//! The conversation with the coordinator.
