//! The filter of training pairs by their margin, a phase of stage `align` with one task for each shard.

use llink_datasets::role::{Corpus, Role, Side, Tower};
use llink_proto::task::Kind;
use llink_proto::{Artifact, FilterPairs};

use super::{Inputs, Phase, PlanError, StageName, earlier, with_role};

const STAGE: StageName = StageName::Align;

pub(super) fn phase(key: &str, inputs: &Inputs<'_>, margin: f64) -> Result<Phase, PlanError> {
    let (corpus, side) = (Corpus::Pairs, Side::Train);
    let vectors = |stage, tower| {
        let from = earlier(STAGE, stage, inputs)?;
        Ok(with_role(from, Role::Vectors(tower, corpus, side)))
    };
    let shards = with_role(earlier(STAGE, StageName::Shard, inputs)?, Role::Shard(corpus, side));
    let foreign = vectors(StageName::Embed, Tower::Encoder)?;
    let english = vectors(StageName::Baseline, Tower::EncoderEnglish)?;
    let directory = inputs.directory(STAGE, key);
    let sides = foreign.into_iter().zip(english);
    let task = |(i, (pairs, (foreign, english))): (usize, (Artifact, (Artifact, Artifact)))| {
        let rows = pairs.rows;
        let kind = Kind::FilterPairs(FilterPairs {
            pairs: Some(pairs),
            foreign_vectors: Some(foreign),
            english_vectors: Some(english),
            margin,
            path: format!("{directory}/dropped/{i:05}.jsonl"),
        });
        inputs.task(kind, rows, format!("margins of {}/{i:05}", corpus.set(side)))
    };
    Ok(Phase::Tasks { label: "filter".into(), tasks: shards.into_iter().zip(sides).enumerate().map(task).collect() })
}
