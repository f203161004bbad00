//! What the stages `baseline` and `windows` share: each embeds portions of the texts with the encoder.

use llink_datasets::manifest::Manifest;
use llink_datasets::role::{Corpus, Role, Side, Tower};
use llink_proto::settings::TextParts;
use llink_proto::task::Kind;
use llink_proto::{Artifact, EmbedShard, ModelRole};

use super::embed::{max_tokens, model_ref, reading_key, settings};
use super::{Inputs, Phase, PlanError, PlannedTasks, StageName, earlier, fact, json, with_role};

/// The first rows of a shard.
pub(super) struct Portion {
    pub(super) shard: Artifact,
    pub(super) rows: u64,
}

/// The portions of one side of a corpus.
pub(super) struct Portions {
    pub(super) corpus: Corpus,
    pub(super) side: Side,
    pub(super) portions: Vec<Portion>,
}

impl Portions {
    /// Returns the first `rows` of the pairs of a side. They are in the order of their texts' hash, so they are a fixed,
    /// fair sample.
    pub(super) fn first(manifest: &Manifest, side: Side, rows: u64) -> Self {
        let corpus = Corpus::Pairs;
        let mut left = rows;
        let mut portions = Vec::new();
        for shard in with_role(manifest, Role::Shard(corpus, side)) {
            let rows = shard.rows.min(left);
            if rows > 0 {
                left -= rows;
                portions.push(Portion { shard, rows });
            }
        }
        Self { corpus, side, portions }
    }
}

/// The vectors that a stage computes.
pub(super) struct Embedding {
    pub(super) stage: StageName,
    pub(super) tower: Tower,
    /// The parts of a text that have vectors of their own.
    pub(super) parts: TextParts,
    pub(super) phase: &'static str,
    /// The vectors' name in the labels of tasks.
    pub(super) vectors: &'static str,
}

/// Returns the parts of a stage's key that its texts and its encoder decide.
pub(super) fn key_parts(stage: StageName, inputs: &Inputs<'_>, texts: &[Portions]) -> Result<Vec<String>, PlanError> {
    let mut parts = Vec::new();
    for Portions { corpus, side, portions } in texts {
        let name = corpus.set(*side);
        parts.extend(portions.iter().map(|p| format!("{name} {} {}", p.rows, p.shard.sha256)));
    }
    let models = earlier(stage, StageName::Models, inputs)?;
    parts.push(fact(stage, models, "encoder.fingerprint")?.into());
    parts.push(json(&(inputs.job.embed.max_chars, max_tokens(stage, inputs)?)));
    parts.push(reading_key(stage, inputs)?);
    Ok(parts)
}

/// Returns a task for each portion.
pub(super) fn phase(
    embedding: &Embedding,
    key: &str,
    inputs: &Inputs<'_>,
    texts: impl IntoIterator<Item = Portions>,
) -> Result<Phase, PlanError> {
    let stage = embedding.stage;
    let model = model_ref(stage, inputs, "encoder", ModelRole::Encoder)?;
    let settings = settings(stage, inputs)?;
    let directory = inputs.directory(stage, key);
    let mut tasks = PlannedTasks::default();
    for Portions { corpus, side, portions } in texts {
        let role = Role::Vectors(embedding.tower, corpus, side);
        for (i, Portion { shard, rows }) in portions.into_iter().enumerate() {
            let kind = Kind::EmbedShard(EmbedShard {
                model: Some(model.clone()),
                shard: Some(shard),
                path: format!("{directory}/{role}/{i:05}.parquet"),
                role: role.to_string(),
                settings: settings.clone(),
                rows: Some(rows),
                english: embedding.tower == Tower::EncoderEnglish,
                windows: embedding.parts.windows,
                sentences: embedding.parts.sentences,
            });
            let label = format!("{} of {}/{i:05}", embedding.vectors, corpus.set(side));
            tasks.push(inputs.task(kind, rows, label));
        }
    }
    Ok(Phase::Tasks { label: embedding.phase.into(), tasks })
}
