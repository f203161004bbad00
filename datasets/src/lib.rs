//! Corpora in, trustworthy shards out.
//!
//! The flow of the `shard` stage: a reader yields rows, [`clean`] keeps or drops each with a reason, [`split`] decides
//! over all sources which side each row stands on, [`shards`] writes them as Parquet. [`store`] and [`manifest`] need
//! none of that and are all that the coordinator's core uses.

pub mod error;
pub mod manifest;
pub mod store;
#[cfg(feature = "shards")]
pub mod vectors;

pub use error::{Error, Result};
