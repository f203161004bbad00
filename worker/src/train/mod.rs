//! The training loops and their parts.
//!
//! [`align`] is the loop of Stage A, and [`instruct`] that of Stage B. A step depends on the seed and the number of the
//! step alone. [`batch`] has no state, and a `checkpoint` holds the rest. Both loops share
//! `training_run`, which observes them, the [`checkpoints`], the [`metrics`] and the intervals in `upkeep`.

mod agreement;
mod ahead;
pub mod align;
pub mod batch;
mod checkpoint;
pub mod checkpoints;
mod event_file;
pub mod instruct;
pub mod metrics;
pub mod observer;
pub mod optimizer;
pub mod schedule;
mod stage;
pub mod step;
pub mod step_record;
pub(crate) mod training_run;
pub(crate) mod upkeep;
