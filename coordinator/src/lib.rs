//! llink's coordinator: it plans a job into stages and tasks, leases the tasks to workers, records everything before it
//! answers, and reports.
//!
//! [`job`], [`plan`] and [`schedule`] are pure; [`state`] is the disk, [`serve`] the network, [`cli`] the person.

pub mod authority;
pub mod cli;
pub mod job;
pub mod plan;
pub mod report;
pub mod schedule;
pub mod serve;
pub mod state;
pub mod ui;
