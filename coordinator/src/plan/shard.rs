//! The `shard` stage (clean each source, split over all of them, write each shard) and the `models` stage.

use llink_proto::task::Kind;
use llink_proto::{CleanSource, Corpus, ModelRole, PrepareModel, SplitCorpus, Task, TaskResult, WriteShard};

use super::{Inputs, Phase, PlanError, PlannedTask, Ranks, StageName, content, earlier, json, manifest_of};
use crate::job::{CorpusSection, InstructionsSection, Sources, TooLong};

/// The role under which the split hands its assignment to the shards.
pub const ASSIGNMENT_ROLE: &str = "assignment";
/// Where a stage keeps what only its own tasks read; removed once it is committed.
pub const WORK_DIRECTORY: &str = "work";

pub(super) fn key_parts(inputs: &Inputs<'_>) -> Vec<String> {
    let job = inputs.job;
    let mut parts = vec![
        json(&job.corpus),
        json(&job.instructions),
        stamps(&job.corpus.source, inputs),
    ];
    if let Some(instructions) = &job.instructions {
        parts.push(stamps(&instructions.source, inputs));
    }
    let samples = |s: &Sources| s.as_slice().iter().any(|s| s == "sample");
    if samples(&job.corpus.source) || job.instructions.as_ref().is_some_and(|i| samples(&i.source)) {
        parts.push(format!("seed {}", job.seed));
    }
    parts
}

fn stamps(sources: &Sources, inputs: &Inputs<'_>) -> String {
    let stamp = |s: &String| inputs.stamps.get(s).cloned().unwrap_or_default();
    sources.as_slice().iter().map(stamp).collect::<Vec<_>>().join(" ")
}

/// What both corpora have in common, so that their tasks are planned by the same code.
struct CorpusPlan<'a> {
    corpus: Corpus,
    name: &'static str,
    sources: &'a Sources,
    format: &'a str,
    columns: (u32, u32),
    chars: (u32, u32),
    cut_long: bool,
    train: u64,
    holdout: u64,
    shard_rows: u32,
}

impl<'a> CorpusPlan<'a> {
    fn pairs(c: &'a CorpusSection) -> Self {
        Self {
            corpus: Corpus::Pairs,
            name: "pairs",
            sources: &c.source,
            format: c.format.as_deref().unwrap_or(""),
            columns: (c.english_column, c.foreign_column),
            chars: (c.min_chars, c.max_chars),
            cut_long: c.too_long == TooLong::Cut,
            train: c.train_pairs,
            holdout: c.holdout_pairs,
            shard_rows: c.shard_rows,
        }
    }

    fn instructions(i: &'a InstructionsSection) -> Self {
        Self {
            corpus: Corpus::Instructions,
            name: "instructions",
            sources: &i.source,
            format: "",
            columns: (1, 2),
            chars: (i.min_chars, i.max_chars),
            cut_long: false,
            train: i.train,
            holdout: i.validation,
            shard_rows: i.shard_rows,
        }
    }

    /// How many sample rows to make: enough that the holdout's share of the hash space, which is fixed before any row
    /// is seen, holds what is asked for on both sides (five standard deviations of slack), and for the rows that are
    /// dropped as duplicates or for sharing their English side.
    fn sample_rows(&self) -> u64 {
        let wanted = self.train + self.holdout;
        let smaller = self.train.min(self.holdout).max(1) as f64;
        let spread = 5.0 / smaller.sqrt();
        wanted + (wanted as f64 * (0.02 + spread)).ceil() as u64 + 64
    }

    fn cleaned_path(&self, key: &str, source: usize) -> String {
        format!("shard/{key}/{WORK_DIRECTORY}/{}/{source:05}.parquet", self.name)
    }

    fn cleaned_paths(&self, key: &str) -> Vec<String> {
        (0..self.sources.as_slice().len())
            .map(|i| self.cleaned_path(key, i))
            .collect()
    }

    fn assignment_path(&self, key: &str) -> String {
        format!("shard/{key}/{WORK_DIRECTORY}/{}/assignment.parquet", self.name)
    }

    fn clean_tasks(&self, key: &str, inputs: &Inputs<'_>) -> Vec<PlannedTask> {
        let task = |(i, source): (usize, &String)| {
            let sample_rows = if source == "sample" { self.sample_rows() } else { 0 };
            let kind = Kind::CleanSource(CleanSource {
                corpus: self.corpus.into(),
                source: source.clone(),
                format: self.format.into(),
                english_column: self.columns.0,
                foreign_column: self.columns.1,
                sample_rows,
                seed: inputs.job.seed,
                min_chars: self.chars.0,
                max_chars: self.chars.1,
                cut_long: self.cut_long,
                path: self.cleaned_path(key, i),
            });
            planned(inputs, kind, sample_rows, format!("clean {} from {source}", self.name))
        };
        self.sources.as_slice().iter().enumerate().map(task).collect()
    }

    fn split_task(&self, key: &str, inputs: &Inputs<'_>, kept: u64) -> PlannedTask {
        let kind = Kind::SplitCorpus(SplitCorpus {
            corpus: self.corpus.into(),
            cleaned: self.cleaned_paths(key),
            train_rows: self.train,
            holdout_rows: self.holdout,
            shard_rows: self.shard_rows,
            path: self.assignment_path(key),
        });
        planned(inputs, kind, kept, format!("split {}", self.name))
    }

    fn shard_tasks(&self, key: &str, inputs: &Inputs<'_>, split: &TaskResult) -> Vec<PlannedTask> {
        let shards = split.artifacts.iter().filter(|a| a.role != ASSIGNMENT_ROLE);
        let task = |(i, shard): (usize, &llink_proto::Artifact)| {
            let kind = Kind::WriteShard(WriteShard {
                corpus: self.corpus.into(),
                cleaned: self.cleaned_paths(key),
                assignment: self.assignment_path(key),
                shard: i as u32,
                path: format!("shard/{key}/{}", shard.path),
                role: shard.role.clone(),
                stage_key: key.into(),
            });
            planned(inputs, kind, shard.rows, format!("write {}", shard.path))
        };
        shards.enumerate().map(task).collect()
    }
}

fn planned(inputs: &Inputs<'_>, kind: Kind, weight: u64, label: String) -> PlannedTask {
    let spec = Task {
        output_url: inputs.job.output.clone(),
        kind: Some(kind),
    };
    PlannedTask {
        spec,
        weight,
        ranks: Ranks::ONE,
        label,
    }
}

fn corpora<'a>(inputs: &Inputs<'a>) -> Vec<CorpusPlan<'a>> {
    let pairs = CorpusPlan::pairs(&inputs.job.corpus);
    let instructions = inputs.job.instructions.as_ref().map(CorpusPlan::instructions);
    std::iter::once(pairs).chain(instructions).collect()
}

pub(super) fn phase(key: &str, inputs: &Inputs<'_>, results: &[Vec<TaskResult>]) -> Result<Phase, PlanError> {
    let corpora = corpora(inputs);
    match results {
        [] => Ok(Phase::Tasks {
            label: "clean".into(),
            tasks: corpora.iter().flat_map(|c| c.clean_tasks(key, inputs)).collect(),
        }),
        [cleaned] => {
            let mut cleaned = cleaned.iter();
            let mut split = |c: &CorpusPlan<'_>| {
                let own = cleaned.by_ref().take(c.sources.as_slice().len());
                let kept = own.map(|r| r.counts.get("kept").copied().unwrap_or(0)).sum();
                c.split_task(key, inputs, kept)
            };
            Ok(Phase::Tasks {
                label: "split".into(),
                tasks: corpora.iter().map(&mut split).collect(),
            })
        }
        [_, splits] => {
            let tasks = corpora
                .iter()
                .zip(splits)
                .flat_map(|(c, split)| c.shard_tasks(key, inputs, split));
            Ok(Phase::Tasks {
                label: "write".into(),
                tasks: tasks.collect(),
            })
        }
        [cleaned, splits, shards, ..] => {
            let mut manifest = manifest_of(StageName::Shard, key, shards);
            let mut cleaned = cleaned.iter();
            for (corpus, split) in corpora.iter().zip(splits) {
                let own = cleaned.by_ref().take(corpus.sources.as_slice().len());
                let counted = own
                    .flat_map(|r| r.counts.iter().map(|c| ("", c)))
                    .chain(split.counts.iter().map(|c| ("split.", c)));
                for (step, (name, count)) in counted {
                    *manifest
                        .counts
                        .entry(format!("{}.{step}{name}", corpus.name))
                        .or_default() += count;
                }
            }
            let warnings = cleaned_warnings(results);
            manifest.warnings.splice(0..0, warnings);
            Ok(Phase::Complete(manifest))
        }
    }
}

fn cleaned_warnings(results: &[Vec<TaskResult>]) -> Vec<String> {
    let early = results.iter().take(2).flatten();
    early.flat_map(|r| r.warnings.iter().cloned()).collect()
}

pub(super) fn models_key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    let models = &inputs.job.models;
    let mut parts = vec![json(models)];
    for source in [&models.encoder, &models.decoder] {
        if source == "tiny" {
            parts.push(format!("seed {}", inputs.job.seed));
            parts.push(content(earlier(StageName::Models, StageName::Shard, inputs)?));
        } else {
            parts.push(inputs.stamps.get(source).cloned().unwrap_or_default());
        }
    }
    Ok(parts)
}

pub(super) fn models_phase(key: &str, inputs: &Inputs<'_>, results: &[Vec<TaskResult>]) -> Result<Phase, PlanError> {
    if let Some(prepared) = results.first() {
        return Ok(Phase::Complete(manifest_of(StageName::Models, key, prepared)));
    }
    let shard = earlier(StageName::Models, StageName::Shard, inputs)?;
    let text: Vec<String> = super::with_role(shard, "pairs/train")
        .into_iter()
        .map(|a| a.path)
        .collect();
    let task = |role: ModelRole, source: &str, name: &str| {
        let kind = Kind::PrepareModel(PrepareModel {
            role: role.into(),
            source: source.into(),
            seed: inputs.job.seed,
            text_shards: if source == "tiny" { text.clone() } else { Vec::new() },
            path: format!("models/{key}/{name}"),
        });
        planned(inputs, kind, 1, format!("prepare {name} {source}"))
    };
    Ok(Phase::Tasks {
        label: "prepare".into(),
        tasks: vec![
            task(ModelRole::Encoder, &inputs.job.models.encoder, "encoder"),
            task(ModelRole::Decoder, &inputs.job.models.decoder, "decoder"),
        ],
    })
}
