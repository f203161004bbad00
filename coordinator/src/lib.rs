//! The coordinator of llink. It plans a job into stages and tasks and leases the tasks to workers. It records
//! everything before it answers, and writes reports.
//!
//! [`job`], [`plan`] and [`schedule`] are pure. [`state`] uses the disk and [`serve`] the network. [`cli`] is the
//! command line.

// Other packages use the program and not this library, whose names are public for its tests and its bench.
#![allow(missing_docs)]

pub mod authority;
pub mod cli;
pub mod job;
mod machine;
pub mod plan;
pub mod report;
pub mod schedule;
pub mod serve;
pub mod state;
pub mod ui;
