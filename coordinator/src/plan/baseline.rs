//! The `baseline` stage embeds English sentences with the encoder. `evaluate` uses them to measure what the encoder
//! finds without a decoder.
//!
//! It is a separate stage, so that a sweep over training settings embeds the sentences once, and another benchmark size
//! embeds nothing else again.

use llink_datasets::role::{Side, Tower};
use llink_proto::settings::TextParts;

use super::portions::{self, Embedding, Portions};
use super::{Inputs, Phase, PlanError, StageName, earlier};

const STAGE: StageName = StageName::Baseline;
/// Number of training pairs behind the mean of each language. More pairs change little: the error of this mean is a
/// 64th of the spread.
const CENTERED_ON: u64 = 4_096;

/// Returns the benchmark's pairs and the pairs behind the means.
fn texts(inputs: &Inputs<'_>) -> Result<[Portions; 2], PlanError> {
    let shard = earlier(STAGE, StageName::Shard, inputs)?;
    // The margin compares both sides of every training pair.
    let train = inputs.job.cleaning.margin.map_or(CENTERED_ON, |_| u64::MAX);
    let wanted = [(Side::Holdout, inputs.job.evaluate.benchmark_pairs), (Side::Train, train)];
    Ok(wanted.map(|(side, rows)| Portions::first(shard, side, rows)))
}

pub(super) fn key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    portions::key_parts(STAGE, inputs, &texts(inputs)?)
}

pub(super) fn phase(key: &str, inputs: &Inputs<'_>) -> Result<Phase, PlanError> {
    let embedding = Embedding {
        stage: STAGE,
        tower: Tower::EncoderEnglish,
        parts: TextParts::default(),
        phase: "embed English",
        vectors: "encoder vectors of the English",
    };
    portions::phase(&embedding, key, inputs, texts(inputs)?)
}
