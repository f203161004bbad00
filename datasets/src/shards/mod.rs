//! The three steps of the `shard` stage: [`clean_source`] for each source, [`split_corpus`] for each corpus,
//! [`write_shard`] for each shard. The steps pass their results through the store.
//!
//! The futures block while they decode, sort and compress. Run them on a thread that may block.

mod assignment;
mod clean_source;
mod decide;
mod examples;
mod merge;
mod repeated;
mod run;
mod split;
mod write;

pub use clean_source::{CleanSpec, Cleaned, MadeUp, clean_source};
pub use decide::{Share, SidesBy};
pub use examples::encode_instructions;
pub use split::{PlannedShard, Split, SplitSpec, TRAINED_AS_PAIRS, split_corpus};
pub use write::{WriteSpec, write_shard};

pub use crate::near::NearDuplicates;

use crate::rows::Corpus;

/// Receives the progress: how much is done, and of how much. Each step uses one unit, bytes or rows.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Returns the text columns of a cleaned table, in the order in which [`crate::rows::row_id`] hashes them.
fn text_columns(corpus: Corpus) -> &'static [&'static str] {
    match corpus {
        Corpus::Pairs => &["english", "foreign"],
        Corpus::Instructions => &["task", "instruction", "foreign", "english_ref", "answer"],
    }
}

/// The metadata key that holds the name of the source in a cleaned table.
const SOURCE_KEY: &str = "llink.source";
