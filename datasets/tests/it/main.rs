//! The tests of the data stage, in one program, because each program more is linked for itself.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod common;
mod content;
mod formats;
#[cfg(feature = "cloud")]
mod hub;
#[path = "../support/moto.rs"]
mod moto;
mod numbers;
#[path = "../support/pack.rs"]
mod pack;
mod promises;
mod readers;
#[cfg(feature = "cloud")]
mod s3;
#[path = "../support/server.rs"]
mod server;
mod shards;
#[path = "../support/skip.rs"]
mod skip;
mod split;
mod store;
mod verify;
#[cfg(feature = "cloud")]
mod web;
