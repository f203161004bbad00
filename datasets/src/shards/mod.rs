//! The three steps of the `shard` stage: [`clean_source`] once a source, [`split_corpus`] once a corpus,
//! [`write_shard`] once a shard. What passes between them lies in the store.
//!
//! The futures block while they decode, sort and compress: run them on a thread that may.

mod assignment;
mod clean_source;
mod decide;
mod examples;
mod merge;
mod repeated;
mod run;
mod split;
mod write;

pub use clean_source::{CleanSpec, Cleaned, clean_source};
pub use decide::{Share, SidesBy};
pub use examples::encode_instructions;
pub use split::{PlannedShard, Split, SplitSpec, TRAINED_AS_PAIRS, split_corpus};
pub use write::{WriteSpec, write_shard};

pub use crate::near::NearDuplicates;

use crate::rows::Corpus;

/// Takes how much is done, and of how much. Both in a unit that a step keeps to: bytes read or rows.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// The text columns of a cleaned table, in the order in which [`crate::rows::row_id`] hashes them.
fn text_columns(corpus: Corpus) -> &'static [&'static str] {
    match corpus {
        Corpus::Pairs => &["english", "foreign"],
        Corpus::Instructions => &["task", "instruction", "foreign", "english_ref", "answer"],
    }
}

/// The metadata key under which a cleaned table names the source that its rows came from.
const SOURCE_KEY: &str = "llink.source";
