//! What tasks leave behind, for tests that run no worker.

use llink_datasets::role::{Corpus, Model, Part, Role};
use llink_proto::task::Kind;
use llink_proto::{Artifact, ModelRole, PrepareModel};

/// The facts of a model that say how it reads.
pub(crate) const READING: [(&str, &str); 6] = [
    ("pooling", "mean"),
    ("normalize", "false"),
    ("prefix", ""),
    ("lowercase", "false"),
    ("max_tokens", "512"),
    ("dense", "[]"),
];

pub(crate) fn facts(model: &PrepareModel, fingerprint: &str, url: &str) -> Vec<(String, String)> {
    let name = ["", "encoder", "decoder"][model.role as usize];
    let facts = [("fingerprint", fingerprint), ("url", url)].into_iter().chain(READING);
    facts.map(move |(fact, value)| (format!("{name}.{fact}"), value.to_owned())).collect()
}

/// Returns the shards that a split plans.
pub(crate) fn shards() -> impl Iterator<Item = Artifact> {
    let shards = ["pairs/train/00000", "pairs/train/00001", "pairs/train/00002", "pairs/holdout/00000"];
    shards.into_iter().map(|shard| Artifact {
        path: format!("{shard}.parquet"),
        role: shard.rsplit_once('/').map_or(shard, |(role, _)| role).into(),
        rows: 10,
        ..Artifact::default()
    })
}

/// Returns the roles and paths of the artifacts that a task writes.
pub(crate) fn outputs(kind: &Kind) -> Vec<(String, String)> {
    let one = |role: Role, path: &str| vec![(role.to_string(), path.to_owned())];
    match kind {
        Kind::CleanSource(clean) => one(Role::Cleaned(Corpus::Pairs), &clean.path),
        Kind::SplitCorpus(split) => one(Role::Assignment, &split.path),
        Kind::WriteShard(shard) => one(shard.role.as_str().into(), &shard.path),
        Kind::PrepareModel(model) => {
            let encoder = model.role == i32::from(ModelRole::Encoder);
            let of = if encoder { Model::Encoder } else { Model::Decoder };
            one(Role::Model(of), &format!("{}/weights", model.path))
        }
        Kind::EmbedShard(embed) => one(embed.role.as_str().into(), &embed.path),
        Kind::FilterPairs(filter) => one(Role::Dropped, &filter.path),
        Kind::FitStatistics(fit) => one(Role::Trained(Part::Statistics), &fit.path),
        Kind::Align(align) => one(Role::Trained(Part::Projector), &format!("{}/projector", align.directory)),
        Kind::Evaluate(evaluate) => [one(Role::Report, &evaluate.path), one(Role::ReportPage, &evaluate.page)].concat(),
        Kind::Export(export) => one(Role::Bundle(Part::Config), &format!("{}/config.json", export.directory)),
        Kind::Synthesize(_) | Kind::Instruct(_) => panic!("no job of these tests has this task"),
    }
}
