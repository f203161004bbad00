//! The `windows` stage embeds foreign texts sentence by sentence and with the means of their windows, for Stage B's slots.
//! Only a job with `instruct.windows` or `instruct.sentences` has it.
//!
//! It is a separate stage, so that jobs with and without such parts share all other vectors and the projector.

use llink_datasets::role::{Corpus, Role, Side, Tower};
use llink_proto::Artifact;
use llink_proto::settings::TextParts;

use super::portions::{self, Embedding, Portion, Portions};
use super::{Inputs, Phase, PlanError, StageName, earlier, instructions_of, with_role};
use crate::job::JobFile;

const STAGE: StageName = StageName::Windows;

/// Returns the parts of a text that the job's slots read, if they read any.
pub(super) fn wanted(job: &JobFile) -> Option<TextParts> {
    job.instruct.as_ref()?.text_parts()
}

/// Returns the texts to embed: those of all instructions, and those of the pairs on which retrieval is measured.
fn texts(inputs: &Inputs<'_>) -> Result<[Portions; 3], PlanError> {
    let instructions = instructions_of(STAGE, inputs)?;
    let pairs = earlier(STAGE, StageName::Shard, inputs)?;
    let all = |side| {
        let shards = with_role(instructions, Role::Shard(Corpus::Instructions, side)).into_iter();
        let portions = shards.map(|shard| Portion { rows: shard.rows, shard }).collect();
        Portions { corpus: Corpus::Instructions, side, portions }
    };
    let measured = Portions::first(pairs, Side::Holdout, inputs.job.evaluate.benchmark_pairs);
    Ok([all(Side::Train), all(Side::Holdout), measured])
}

pub(super) fn key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    let TextParts { windows, sentences } = wanted(inputs.job).unwrap_or_default();
    let mut parts = vec![format!("windows {windows}")];
    if sentences > 0 {
        parts.push(format!("sentences {sentences}"));
    }
    parts.extend(portions::key_parts(STAGE, inputs, &texts(inputs)?)?);
    Ok(parts)
}

pub(super) fn phase(key: &str, inputs: &Inputs<'_>) -> Result<Phase, PlanError> {
    let embedding = Embedding {
        stage: STAGE,
        tower: Tower::EncoderWindows,
        parts: wanted(inputs.job).unwrap_or_default(),
        phase: "embed windows",
        vectors: "window vectors",
    };
    portions::phase(&embedding, key, inputs, texts(inputs)?)
}

/// Returns the encoder's vectors of instructions for Stage B: with those of their parts, if the slots read any.
pub(super) fn of_instructions(stage: StageName, inputs: &Inputs<'_>, side: Side) -> Result<Vec<Artifact>, PlanError> {
    let (from, tower) = match wanted(inputs.job) {
        Some(_) => (STAGE, Tower::EncoderWindows),
        None => (StageName::Embed, Tower::Encoder),
    };
    let role = Role::Vectors(tower, Corpus::Instructions, side);
    Ok(with_role(earlier(stage, from, inputs)?, role))
}
