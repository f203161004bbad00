//! The `windows` stage embeds foreign texts with the means of their windows, for Stage B's slots. Only a job with
//! `instruct.windows` has it.
//!
//! It is a separate stage, so that jobs with and without windows share all other vectors and the projector.

use std::num::NonZeroU64;

use llink_datasets::role::{Corpus, Role, Side, Tower};
use llink_proto::task::Kind;
use llink_proto::{Artifact, EmbedShard, ModelRole, Task, TaskResult};

use super::baseline::{Portion, first};
use super::embed::{max_tokens, model_ref, reading_key, settings};
use super::{
    Inputs, Phase, PlanError, PlannedTask, PlannedTasks, Ranks, StageName, earlier, fact, instructions_of, json,
    manifest_of, with_role,
};
use crate::job::JobFile;

const STAGE: StageName = StageName::Windows;

/// Returns the number of windows of a text that the job's slots read, if they read any.
pub(super) fn wanted(job: &JobFile) -> Option<u32> {
    job.instruct.as_ref()?.windows()
}

/// Returns the texts to embed: those of all instructions, and those of the pairs on which retrieval is measured.
fn portions(inputs: &Inputs<'_>) -> Result<Vec<(Corpus, Side, Vec<Portion>)>, PlanError> {
    let instructions = instructions_of(STAGE, inputs)?;
    let pairs = earlier(STAGE, StageName::Shard, inputs)?;
    let measured = first(pairs, Side::Holdout, inputs.job.evaluate.benchmark_pairs);
    let all = |side| {
        let shards = with_role(instructions, Role::Shard(Corpus::Instructions, side)).into_iter();
        let portions = shards.map(|shard| Portion { rows: shard.rows, shard });
        (Corpus::Instructions, side, portions.collect())
    };
    Ok(vec![all(Side::Train), all(Side::Holdout), (Corpus::Pairs, Side::Holdout, measured)])
}

pub(super) fn key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    let mut parts = vec![format!("windows {}", wanted(inputs.job).unwrap_or_default())];
    for (corpus, side, portions) in portions(inputs)? {
        let name = corpus.set(side);
        let lines = portions.iter().map(|p| format!("{name} {} {}", p.rows, p.shard.sha256));
        parts.extend(lines);
    }
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
    for (corpus, side, portions) in portions(inputs)? {
        let role = Role::Vectors(Tower::EncoderWindows, corpus, side);
        for (i, Portion { shard, rows }) in portions.into_iter().enumerate() {
            let kind = Kind::EmbedShard(EmbedShard {
                model: Some(model.clone()),
                shard: Some(shard),
                path: format!("{directory}/{role}/{i:05}.parquet"),
                role: role.to_string(),
                settings: settings.clone(),
                rows: Some(rows),
                english: false,
                windows: wanted(inputs.job).unwrap_or_default(),
            });
            let spec = Task { output_url: inputs.job.output.clone(), kind: Some(kind) };
            tasks.push(PlannedTask {
                spec,
                weight: NonZeroU64::new(rows),
                ranks: Ranks::ONE,
                label: format!("window vectors of {}/{i:05}", corpus.set(side)),
            });
        }
    }
    Ok(Phase::Tasks { label: "embed windows".into(), tasks })
}

/// Returns the encoder's vectors of instructions for Stage B: with those of their windows, if the job has windows.
pub(super) fn of_instructions(stage: StageName, inputs: &Inputs<'_>, side: Side) -> Result<Vec<Artifact>, PlanError> {
    let (from, tower) = match wanted(inputs.job) {
        Some(_) => (STAGE, Tower::EncoderWindows),
        None => (StageName::Embed, Tower::Encoder),
    };
    let role = Role::Vectors(tower, Corpus::Instructions, side);
    Ok(with_role(earlier(stage, from, inputs)?, role))
}
