//! llink's worker: it takes tasks from a coordinator and runs them.
//!
//! [`models`] holds the frozen encoder and decoder, [`llink`] the method's own modules and losses, [`train`] the loops,
//! [`device`] where it is computed, [`collective`] what ranks say to each other, [`pretrain`] tiny models from scratch, [`bundle`] what a job leaves for other
//! programs, [`report`] what it leaves for people, [`synthesize`] and [`judge`] what large models are asked, [`tasks`] one file
//! for each kind of task, [`agent`] the conversation with the coordinator.

pub mod agent;
pub mod bundle;
pub mod cli;
pub mod collective;
pub mod device;
pub mod error;
pub mod judge;
pub mod llink;
pub mod models;
pub mod pretrain;
pub mod report;
pub mod synthesize;
pub mod tasks;
pub mod train;

pub use error::{Error, Result};
