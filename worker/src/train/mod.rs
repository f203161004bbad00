//! The training loops and what they are made of.
//!
//! [`align`] is Stage A's loop. What a step does depends on the seed and the step alone: [`batch`] and [`dropout`] have no
//! state to lose, and [`checkpoint`] holds the rest.

pub mod align;
pub mod align_data;
pub mod align_options;
pub mod align_step;
pub mod batch;
pub mod bench;
mod bench_instruct;
pub mod checkpoint;
pub mod dropout;
pub mod instruct_batch;
pub mod instruct_step;
pub mod optimizer;
pub mod random;
pub mod schedule;
pub mod step;
pub mod tensor_file;
