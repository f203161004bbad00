//! Corpora in, trustworthy shards out.
//!
//! The flow of the `shard` stage: a reader yields rows, [`clean`] keeps or drops each with a reason, and [`shards`]
//! decides over all sources which side each row stands on and writes them as Parquet. [`pairs`], [`instructions`] and
//! [`vectors`] read what was written; [`sample`] makes up a corpus for trials. [`store`], [`manifest`] and [`measured`]
//! need none of that and are all that the coordinator's core uses.

pub mod environment;
pub mod error;
pub mod manifest;
pub mod measured;
pub mod roots;
pub mod script;
pub mod shown;
pub mod store;

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
mod page_headers;
#[cfg(feature = "shards")]
pub mod pairs;
#[cfg(feature = "shards")]
pub mod read;
#[cfg(feature = "shards")]
pub mod rows;
#[cfg(feature = "shards")]
pub mod sample;
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
