//! The `embed` stage has one task for each shard and model.

use llink_datasets::role::{Corpus, Role, Side, Tower};
use llink_proto::settings::{EmbedSettings, PooledTeacher, Teacher, TeacherLayer};
use llink_proto::task::Kind;
use llink_proto::{EmbedShard, EncoderReading, ModelRef, ModelRole};

use super::{
    Inputs, Phase, PlanError, PlannedTasks, StageName, content, earlier, fact, instructions_of, json, with_role,
};

const STAGE: StageName = StageName::Embed;
/// The two models that read a pair: the encoder reads its foreign side, the teacher its English side. The teacher is
/// usually the slower model. It comes first, so that the remaining time is known early and the last tasks are short.
const TOWERS: [(Tower, &str, ModelRole); 2] =
    [(Tower::Teacher, "decoder", ModelRole::Decoder), (Tower::Encoder, "encoder", ModelRole::Encoder)];

pub(super) fn key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    let shard = earlier(STAGE, StageName::Shard, inputs)?;
    let models = earlier(STAGE, StageName::Models, inputs)?;
    Ok(vec![
        content(shard),
        fact(STAGE, models, "encoder.fingerprint")?.into(),
        fact(STAGE, models, "decoder.fingerprint")?.into(),
        json(&(inputs.job.embed.max_chars, max_tokens(STAGE, inputs)?)),
        reading_key(STAGE, inputs)?,
        json(&inputs.job.embed.teacher),
        format!("instructions {}", inputs.job.instruct.is_some()),
        match inputs.job.instruct {
            Some(_) => content(instructions_of(STAGE, inputs)?),
            None => String::new(),
        },
    ])
}

/// Returns the most tokens that the encoder reads: the job's limit or the model's, whichever is lower.
pub(super) fn max_tokens(stage: StageName, inputs: &Inputs<'_>) -> Result<u32, PlanError> {
    let models = earlier(stage, StageName::Models, inputs)?;
    let most = fact(stage, models, "encoder.max_tokens")?.parse().unwrap_or(u32::MAX);
    Ok(inputs.job.embed.max_tokens.min(most))
}

/// Returns the encoder's reading settings, for the keys of later stages.
pub(super) fn reading_key(stage: StageName, inputs: &Inputs<'_>) -> Result<String, PlanError> {
    let reading = reading(stage, inputs)?;
    let EncoderReading { pooling, normalize, prefix, lowercase } = &reading;
    Ok(json(&(pooling, normalize, prefix, lowercase)))
}

fn reading(stage: StageName, inputs: &Inputs<'_>) -> Result<EncoderReading, PlanError> {
    let models = earlier(stage, StageName::Models, inputs)?;
    let fact = |name: &str| fact(stage, models, &format!("encoder.{name}"));
    Ok(EncoderReading {
        pooling: fact("pooling")?.into(),
        normalize: fact("normalize")? == "true",
        prefix: fact("prefix")?.into(),
        lowercase: fact("lowercase")? == "true",
    })
}

/// Returns the model that stage `models` made or checked.
pub(super) fn model_ref(
    stage: StageName,
    inputs: &Inputs<'_>,
    name: &str,
    role: ModelRole,
) -> Result<ModelRef, PlanError> {
    let models = earlier(stage, StageName::Models, inputs)?;
    let reading = (role == ModelRole::Encoder).then(|| reading(stage, inputs));
    Ok(ModelRef {
        reading: reading.transpose()?,
        role: role.into(),
        url: fact(stage, models, &format!("{name}.url"))?.into(),
        fingerprint: fact(stage, models, &format!("{name}.fingerprint"))?.into(),
    })
}

pub(super) fn settings(stage: StageName, inputs: &Inputs<'_>) -> Result<String, PlanError> {
    let settings = EmbedSettings { max_tokens: max_tokens(stage, inputs)?, ..inputs.job.embed.clone() };
    Ok(json(&settings))
}

fn check_teacher(inputs: &Inputs<'_>) -> Result<(), PlanError> {
    let Teacher::Pooled(PooledTeacher { layer: TeacherLayer::Number(number), .. }) = inputs.job.embed.teacher else {
        return Ok(());
    };
    let layers = fact(STAGE, earlier(STAGE, StageName::Models, inputs)?, "decoder.layers")?;
    if layers.parse().is_ok_and(|layers: u32| number > layers) {
        return Err(PlanError {
            stage: STAGE,
            reason: format!(
                "embed.teacher.layer is {number}, but the decoder has {layers} layers (0 is its embedding, {layers} its last). Set \
                 it to one of them, or to a share of the depth such as 0.33"
            ),
        });
    }
    Ok(())
}

pub(super) fn phase(key: &str, inputs: &Inputs<'_>) -> Result<Phase, PlanError> {
    let mut corpora = vec![(Corpus::Pairs, earlier(STAGE, StageName::Shard, inputs)?)];
    // Only Stage B reads instructions.
    if inputs.job.instruct.is_some() {
        corpora.push((Corpus::Instructions, instructions_of(STAGE, inputs)?));
    }
    let sides = [Side::Train, Side::Holdout];
    let sets = || corpora.iter().flat_map(|&(corpus, from)| sides.map(|side| (corpus, from, side)));
    let directory = inputs.directory(STAGE, key);
    check_teacher(inputs)?;
    let settings = settings(STAGE, inputs)?;
    let mut tasks = PlannedTasks::default();
    for (tower, model_name, model_role) in TOWERS {
        let model = model_ref(STAGE, inputs, model_name, model_role)?;
        for (corpus, from, side) in sets() {
            let role = Role::Vectors(tower, corpus, side);
            for (i, artifact) in with_role(from, Role::Shard(corpus, side)).into_iter().enumerate() {
                let weight = artifact.rows;
                let kind = Kind::EmbedShard(EmbedShard {
                    model: Some(model.clone()),
                    shard: Some(artifact),
                    path: format!("{directory}/{role}/{i:05}.parquet"),
                    role: role.to_string(),
                    settings: settings.clone(),
                    rows: None,
                    english: false,
                    windows: 0,
                    sentences: 0,
                });
                let label = format!("{tower} vectors of {}/{i:05}", corpus.set(side));
                tasks.push(inputs.task(kind, weight, label));
            }
        }
    }
    Ok(Phase::Tasks { label: "embed".into(), tasks })
}
