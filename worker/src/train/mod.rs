//! The training loops and what they are made of.
//!
//! [`align`] is Stage A's loop, [`instruct`] Stage B's. What a step does depends on the seed and the step alone: [`batch`] and [`dropout`] have no
//! state to lose, and a [`checkpoint`] holds the rest. Around a loop, whatever the stage: [`training_run`] watches it,
//! [`checkpoints`] keeps a training's states, [`metrics`] its numbers, [`upkeep`] says how often.

mod agreement;
mod ahead;
pub mod align;
pub mod batch;
pub mod bench;
pub mod checkpoint;
pub mod checkpoints;
pub mod dropout;
pub mod event_file;
pub mod instruct;
pub mod metrics;
pub mod observer;
pub mod optimizer;
pub mod random;
pub mod schedule;
mod stage;
pub mod step;
pub mod step_record;
pub mod tensor_file;
pub mod training_run;
pub mod upkeep;
