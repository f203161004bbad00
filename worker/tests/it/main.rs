//! The tests of the worker, in one program, because each program more is linked for itself.
#![allow(clippy::print_stderr, clippy::print_stdout, clippy::unwrap_used)]

mod checkpoints;
mod common;
mod data_parallel;
mod data_parallel_instruct;
mod encoders;
mod export;
mod fake_nccl;
mod families;
mod gguf;
mod golden_align;
mod golden_instruct;
mod golden_models;
mod golden_slots;
mod kernels;
mod model_check;
mod models;
mod nccl;
mod ring;
mod synthesize;
