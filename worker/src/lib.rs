//! llink's worker takes tasks from a coordinator and runs them.
//!
//! [`models`] holds the frozen encoder and decoder, [`llink`] the method's own modules and losses, and [`train`] the
//! training loops. Beneath them are the operations on tensors, and the [`numerics`] of the CPU. [`device`] opens a CPU or GPU, and [`collective`] connects ranks.
//! [`bundle`] is a job's result for other programs, and [`report`] its report for people. [`synthesize`] and `judge` ask
//! large models. [`tasks`] has one file for each kind of task, and `agent` is the connection to the coordinator.

mod agent;
pub mod bundle;
pub mod cli;
pub mod collective;
pub mod control;
pub mod device;
pub mod error;
mod judge;
pub mod llink;
pub mod models;
pub mod numerics;
pub(crate) mod ops;
pub mod report;
pub mod synthesize;
pub mod tasks;
pub mod train;

pub use error::{Error, Result};

#[cfg(test)]
#[path = "../../datasets/tests/support/skip.rs"]
mod skip;
