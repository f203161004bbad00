//! llink's coordinator.
pub mod job;
