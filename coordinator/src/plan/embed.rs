//! The `embed` stage: one task for each shard and model.

use llink_proto::task::Kind;
use llink_proto::{EmbedShard, ModelRef, ModelRole, Task, TaskResult};

use super::{
    Inputs, Phase, PlanError, PlannedTask, Ranks, StageName, content, earlier, fact, instructions_of, json,
    manifest_of, with_role,
};

const STAGE: StageName = StageName::Embed;
/// The two models that read a pair: the encoder its foreign side, the teacher its English one.
const TOWERS: [(&str, &str, ModelRole); 2] = [
    ("encoder", "encoder", ModelRole::Encoder),
    ("teacher", "decoder", ModelRole::Decoder),
];

/// Which shards are read, and what their vectors are called.
const SIDES: [(&str, &str); 4] = [
    ("pairs/train", "train"),
    ("pairs/holdout", "holdout"),
    ("instructions/train", "instructions-train"),
    ("instructions/validation", "instructions-validation"),
];

pub(super) fn key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    let shard = earlier(STAGE, StageName::Shard, inputs)?;
    let models = earlier(STAGE, StageName::Models, inputs)?;
    Ok(vec![
        content(shard),
        fact(STAGE, models, "encoder.fingerprint")?.into(),
        fact(STAGE, models, "decoder.fingerprint")?.into(),
        json(&(inputs.job.embed.max_chars, inputs.job.embed.max_tokens)),
        format!("instructions {}", inputs.job.instruct.is_some()),
        match inputs.job.instruct {
            Some(_) => content(instructions_of(STAGE, inputs)?),
            None => String::new(),
        },
    ])
}

/// The model that stage `models` made or checked.
pub(super) fn model_ref(
    stage: StageName,
    inputs: &Inputs<'_>,
    name: &str,
    role: ModelRole,
) -> Result<ModelRef, PlanError> {
    let models = earlier(stage, StageName::Models, inputs)?;
    Ok(ModelRef {
        role: role.into(),
        url: fact(stage, models, &format!("{name}.url"))?.into(),
        fingerprint: fact(stage, models, &format!("{name}.fingerprint"))?.into(),
    })
}

pub(super) fn phase(key: &str, inputs: &Inputs<'_>, results: &[Vec<TaskResult>]) -> Result<Phase, PlanError> {
    if let Some(embedded) = results.first() {
        return Ok(Phase::Complete(manifest_of(STAGE, key, embedded)));
    }
    let shard = earlier(STAGE, StageName::Shard, inputs)?;
    let options = &inputs.job.embed;
    let mut tasks = Vec::new();
    for (tower, model_name, model_role) in TOWERS {
        let model = model_ref(STAGE, inputs, model_name, model_role)?;
        for (of, role) in SIDES {
            // Instructions are read only by Stage B.
            if inputs.job.instruct.is_none() && of.starts_with("instructions/") {
                continue;
            }
            let from = if of.starts_with("instructions/") {
                instructions_of(STAGE, inputs)?
            } else {
                shard
            };
            for (i, artifact) in with_role(from, of).into_iter().enumerate() {
                let weight = artifact.rows;
                let kind = Kind::EmbedShard(EmbedShard {
                    model: Some(model.clone()),
                    shard: Some(artifact),
                    path: format!("embed/{key}/embeddings/{tower}/{role}/{i:05}.parquet"),
                    role: format!("embeddings/{tower}/{role}"),
                    token_budget: options.token_budget,
                    max_chars: options.max_chars,
                    max_tokens: options.max_tokens,
                });
                let spec = Task {
                    output_url: inputs.job.output.clone(),
                    kind: Some(kind),
                };
                tasks.push(PlannedTask {
                    spec,
                    weight,
                    ranks: Ranks::ONE,
                    label: format!("{tower} vectors of {role}/{i:05}"),
                });
            }
        }
    }
    Ok(Phase::Tasks {
        label: "embed".into(),
        tasks,
    })
}
