//! The `baseline` stage embeds English sentences with the encoder. `evaluate` uses them to measure what the encoder
//! finds without a decoder.
//!
//! It is a separate stage, so that a sweep over training settings embeds the sentences once, and another benchmark size
//! embeds nothing else again.

use std::num::NonZeroU64;

use llink_datasets::manifest::Manifest;
use llink_datasets::role::{Corpus, Role, Side, Tower};
use llink_proto::task::Kind;
use llink_proto::{Artifact, EmbedShard, ModelRole, Task, TaskResult};

use super::embed::{max_tokens, model_ref, reading_key, settings};
use super::{
    Inputs, Phase, PlanError, PlannedTask, PlannedTasks, Ranks, StageName, earlier, fact, json, manifest_of, with_role,
};

const STAGE: StageName = StageName::Baseline;
/// Number of training pairs behind the mean of each language. More pairs change little: the error of this mean is a
/// 64th of the spread.
const CENTRED_ON: u64 = 4_096;

/// The first rows of a shard.
pub(super) struct Portion {
    pub(super) shard: Artifact,
    pub(super) rows: u64,
}

/// Returns the first `rows` of the pairs of a side. They are in the order of their texts' hash, so they are a fixed,
/// fair sample.
pub(super) fn first(manifest: &Manifest, side: Side, rows: u64) -> Vec<Portion> {
    let mut left = rows;
    let mut portions = Vec::new();
    for shard in with_role(manifest, Role::Shard(Corpus::Pairs, side)) {
        let rows = shard.rows.min(left);
        if rows > 0 {
            left -= rows;
            portions.push(Portion { shard, rows });
        }
    }
    portions
}

/// Returns the portions of the benchmark's pairs and of the pairs behind the means, each with its side.
fn sides(inputs: &Inputs<'_>) -> Result<[(Side, Vec<Portion>); 2], PlanError> {
    let shard = earlier(STAGE, StageName::Shard, inputs)?;
    // The margin compares both sides of every training pair.
    let train = inputs.job.cleaning.margin.map_or(CENTRED_ON, |_| u64::MAX);
    let wanted = [(Side::Holdout, inputs.job.evaluate.benchmark_pairs), (Side::Train, train)];
    Ok(wanted.map(|(side, rows)| (side, first(shard, side, rows))))
}

pub(super) fn key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    let sides = sides(inputs)?;
    let portions = sides.iter().flat_map(|(side, portions)| portions.iter().map(move |p| (side, p)));
    let mut parts: Vec<String> = portions
        .map(|(side, portion)| {
            let name = Corpus::Pairs.side(*side);
            format!("{name} {} {}", portion.rows, portion.shard.sha256)
        })
        .collect();
    let models = earlier(STAGE, StageName::Models, inputs)?;
    parts.push(fact(STAGE, models, "encoder.fingerprint")?.into());
    parts.push(json(&(inputs.job.embed.max_chars, max_tokens(STAGE, inputs)?)));
    parts.push(reading_key(STAGE, inputs)?);
    Ok(parts)
}

pub(super) fn phase(key: &str, inputs: &Inputs<'_>, results: &[Vec<TaskResult>]) -> Result<Phase, PlanError> {
    if let Some(embedded) = results.first() {
        return Ok(Phase::Complete(manifest_of(STAGE, key, embedded)));
    }
    let model = model_ref(STAGE, inputs, "encoder", ModelRole::Encoder)?;
    let settings = settings(STAGE, inputs)?;
    let directory = inputs.directory(STAGE, key);
    let mut tasks = PlannedTasks::default();
    for (side, portions) in sides(inputs)? {
        for (i, portion) in portions.into_iter().enumerate() {
            let role = Role::Vectors(Tower::EncoderEnglish, Corpus::Pairs, side);
            let kind = Kind::EmbedShard(EmbedShard {
                model: Some(model.clone()),
                shard: Some(portion.shard),
                path: format!("{directory}/{role}/{i:05}.parquet"),
                role: role.into(),
                settings: settings.clone(),
                rows: Some(portion.rows),
                english: true,
                windows: 0,
            });
            let spec = Task { output_url: inputs.job.output.clone(), kind: Some(kind) };
            tasks.push(PlannedTask {
                spec,
                weight: NonZeroU64::new(portion.rows),
                ranks: Ranks::ONE,
                label: format!("encoder vectors of the English of {}/{i:05}", Corpus::Pairs.side(side)),
            });
        }
    }
    Ok(Phase::Tasks { label: "embed English".into(), tasks })
}
