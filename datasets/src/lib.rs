//! Reads corpora and writes verified shards.
//!
//! In the `shard` stage a reader yields rows, and [`clean`] keeps each row or drops it with a reason. Then [`shards`]
//! decides over all sources on which side each row stands, and writes Parquet. [`pairs`], [`instructions`] and
//! [`vectors`] read the shards. [`built_in`] is the seam for made-up corpora. [`store`], [`manifest`], [`role`],
//! [`measured`], [`report`] and [`page`] need no reader and are all that the coordinator's core uses.

pub mod environment;
pub mod error;
pub mod manifest;
pub mod measured;
pub mod page;
pub mod report;
pub mod role;
pub mod roots;
pub mod script;
pub mod shown;
pub mod store;

#[cfg(feature = "shards")]
pub mod built_in;
#[cfg(feature = "shards")]
mod byte_stream;
#[cfg(feature = "shards")]
pub mod clean;
#[cfg(feature = "shards")]
pub mod instructions;
#[cfg(feature = "shards")]
pub mod look;
#[cfg(feature = "shards")]
pub mod near;
#[cfg(feature = "shards")]
pub mod numbers;
#[cfg(feature = "shards")]
mod page_headers;
#[cfg(feature = "shards")]
pub mod pairs;
#[cfg(feature = "shards")]
pub mod read;
#[cfg(feature = "shards")]
pub mod rows;
#[cfg(feature = "shards")]
pub mod shards;
#[cfg(feature = "shards")]
pub mod table;
#[cfg(feature = "shards")]
mod table_reader;
#[cfg(feature = "shards")]
pub mod text;
#[cfg(feature = "shards")]
pub mod vectors;
#[cfg(feature = "shards")]
pub mod verify;

pub use error::{Error, Result};
