//! The tests of the coordinator and of the real binary, in one program, because each program more is linked for itself.
#![allow(clippy::print_stderr, clippy::print_stdout, clippy::unwrap_used)]

mod access;
#[cfg(feature = "embedded")]
mod command_line;
mod common;
#[cfg(feature = "embedded")]
mod data;
mod dry_run;
mod end_to_end;
mod environment;
mod export;
mod faults;
#[path = "common/http.rs"]
mod http;
mod job_reference;
mod judge;
mod launchers;
mod mishaps;
#[path = "../../../datasets/tests/support/moto.rs"]
mod moto;
mod one_sided_instructions;
mod operations;
mod page;
#[path = "common/secure.rs"]
mod secure;
mod serving;
mod sharing;
#[path = "../../../datasets/tests/support/skip.rs"]
mod skip;
mod stages;
mod standby;
mod traces;
mod track;
mod training_faults;
