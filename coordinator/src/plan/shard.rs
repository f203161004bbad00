//! The `shard` stage (clean each source, split over all of them, write each shard) and the `models` stage.

use llink_datasets::role::{self, Role};
use llink_datasets::shown::ShownUrl;
use llink_proto::task::Kind;
use llink_proto::{
    CleanSource, CleaningRules, Corpus, ModelRole, PrepareModel, Source, SplitCorpus, TaskResult, WriteShard,
};

use super::{
    Inputs, Phase, PlanError, PlannedTask, PlannedTasks, StageName, content, earlier, json, manifest_of, with_role,
};
use crate::job::{
    CleaningSection, ColumnName, CorpusSection, InstructionsSection, JobFile, NearDuplicates, Numbers, RANDOM_MODEL,
    SourceEntry, Sources, TINY_MODEL, TooLong, ValidationFrom,
};

pub(super) fn key_parts(inputs: &Inputs<'_>) -> Vec<String> {
    let job = inputs.job;
    let mut parts = vec![
        json(&job.corpus),
        json(&job.cleaning.deciding()),
        json(&job.instructions),
        stamps(&job.corpus.source, inputs),
    ];
    if let Some(instructions) = &job.instructions {
        parts.push(stamps(&instructions.source, inputs));
    }
    if job.corpus.source.has_sample() || job.instructions.as_ref().is_some_and(|i| i.source.has_sample()) {
        parts.push(format!("seed {}", job.seed));
    }
    parts
}

pub(super) fn stamps(sources: &Sources, inputs: &Inputs<'_>) -> String {
    let stamp = |file: &str| inputs.stamps.get(file).cloned().unwrap_or_default();
    let files = sources.as_slice().iter().flat_map(SourceEntry::files);
    files.map(stamp).collect::<Vec<_>>().join(" ")
}

/// The settings of a corpus in a common form, so that both corpora are planned by the same code.
struct CorpusPlan<'a> {
    corpus: Corpus,
    name: &'static str,
    sources: &'a Sources,
    /// The reading settings of sources that give none.
    defaults: SourceEntry,
    cleaning: &'a CleaningSection,
    chars: (u32, u32),
    too_long: TooLong,
    tasks: &'a [String],
    train: u64,
    holdout: u64,
    shard_rows: u32,
    validation_from: ValidationFrom,
    /// For instructions, the numbers of training and held-out pairs.
    pairs: (u64, u64),
}

impl<'a> CorpusPlan<'a> {
    fn pairs(c: &'a CorpusSection, cleaning: &'a CleaningSection) -> Self {
        Self {
            corpus: Corpus::Pairs,
            name: "pairs",
            sources: &c.source,
            defaults: SourceEntry {
                format: c.format,
                compression: c.compression,
                english_column: c.english_column.clone(),
                foreign_column: c.foreign_column.clone(),
                english_language: c.english_language.clone(),
                foreign_language: c.foreign_language.clone(),
                ..SourceEntry::default()
            },
            cleaning,
            chars: (c.min_chars, c.max_chars),
            too_long: c.too_long,
            tasks: &[],
            train: c.train_pairs,
            holdout: c.holdout_pairs,
            shard_rows: c.shard_rows,
            validation_from: ValidationFrom::Holdout,
            pairs: (0, 0),
        }
    }

    fn instructions(i: &'a InstructionsSection, pairs: &CorpusSection, cleaning: &'a CleaningSection) -> Self {
        Self {
            corpus: Corpus::Instructions,
            name: "instructions",
            sources: &i.source,
            defaults: SourceEntry::default(),
            cleaning,
            chars: (i.min_chars, i.max_chars),
            too_long: TooLong::Drop,
            tasks: &i.tasks,
            train: i.train,
            holdout: i.validation,
            shard_rows: i.shard_rows,
            validation_from: i.validation_from,
            pairs: (pairs.train_pairs, pairs.holdout_pairs),
        }
    }

    /// Returns how many sample rows to make. The holdout's share of the hash space is fixed before any row is seen. So
    /// both sides need enough rows, with five standard deviations of slack. Rows that are dropped as duplicates or for
    /// sharing their English side need more.
    fn sample_rows(&self) -> u64 {
        let wanted = self.train + self.holdout;
        let smaller = self.train.min(self.holdout).max(1) as f64;
        let spread = 5.0 / smaller.sqrt();
        wanted + (wanted as f64 * (0.02 + spread)).ceil() as u64 + 64
    }

    /// Returns a path for files that only later tasks of the corpus read.
    fn work_path(&self, key: &str, inputs: &Inputs<'_>, name: &str) -> String {
        let work = inputs.work_directory(StageName::Shard, key);
        format!("{work}/{}/{name}.parquet", self.name)
    }

    fn clean_tasks(&self, key: &str, inputs: &Inputs<'_>) -> Vec<PlannedTask> {
        let labels = self.sources.labels();
        let task = |(i, source): (usize, &SourceEntry)| {
            let sample_rows = if source.is_sample() { self.sample_rows() } else { 0 };
            let kind = Kind::CleanSource(CleanSource {
                corpus: self.corpus.into(),
                source: Some(self.source(source, &labels[i])),
                rules: Some(self.rules()),
                sample_rows,
                seed: inputs.job.seed,
                with_signatures: self.cleaning.near_duplicates != NearDuplicates::Keep,
                path: self.work_path(key, inputs, &format!("{i:05}")),
            });
            let label = format!("clean {} from {}", self.name, ShownUrl::of(source.name()));
            inputs.task(kind, sample_rows, label)
        };
        self.sources.as_slice().iter().enumerate().map(task).collect()
    }

    fn source(&self, own: &SourceEntry, label: &str) -> Source {
        source(own, &self.defaults, label)
    }

    fn rules(&self) -> CleaningRules {
        CleaningRules {
            min_chars: self.chars.0,
            max_chars: self.chars.1,
            cut_long: self.too_long == TooLong::Cut,
            script: self.cleaning.script.clone(),
            english_script: self.cleaning.english_script.clone(),
            min_script_share: self.cleaning.min_script_share,
            max_length_ratio: self.cleaning.max_length_ratio,
            tasks: self.tasks.to_vec(),
            same_numbers: self.cleaning.numbers == Numbers::MustAgree,
        }
    }

    /// Returns the rows read and kept of each source, if there are several.
    fn source_counts(&self, own: &[TaskResult]) -> Vec<(String, u64)> {
        let labels = match self.sources.as_slice() {
            [_] => Vec::new(),
            _ => self.sources.labels(),
        };
        let counts = labels.iter().zip(own).flat_map(|(label, result)| {
            let named = |count: &str| {
                let rows = result.counts.get(count).copied().unwrap_or(0);
                (format!("{}.source.{label}.{count}", self.name), rows)
            };
            [named("rows"), named("kept")]
        });
        counts.collect()
    }

    fn split_task(&self, key: &str, inputs: &Inputs<'_>, own: &[TaskResult]) -> PlannedTask {
        let kind = Kind::SplitCorpus(SplitCorpus {
            corpus: self.corpus.into(),
            cleaned: cleaned_paths(own),
            train_rows: unless_all(self.train),
            holdout_rows: self.holdout,
            shard_rows: self.shard_rows,
            path: self.work_path(key, inputs, "assignment"),
            near_duplicates: self.cleaning.near_duplicates.to_string(),
            similarity: self.cleaning.similarity,
            second_hash: self.validation_from == ValidationFrom::Train,
            pairs_train_rows: unless_all(self.pairs.0),
            pairs_holdout_rows: self.pairs.1,
        });
        let kept = own.iter().filter_map(|r| r.counts.get("kept")).sum();
        inputs.task(kind, kept, format!("split {}", self.name))
    }

    fn add_shard_tasks(
        &self,
        key: &str,
        inputs: &Inputs<'_>,
        own: &[TaskResult],
        split: &TaskResult,
        tasks: &mut PlannedTasks,
    ) {
        let (assignment, shards): (Vec<_>, Vec<_>) = split.artifacts.iter().partition(|a| a.role == Role::Assignment);
        let assignment = assignment.first().map(|a| a.path.clone()).unwrap_or_default();
        let directory = inputs.directory(StageName::Shard, key);
        for (i, shard) in shards.into_iter().enumerate() {
            let kind = Kind::WriteShard(WriteShard {
                corpus: self.corpus.into(),
                cleaned: cleaned_paths(own),
                assignment: assignment.clone(),
                shard: i as u32,
                path: format!("{directory}/{}", shard.path),
                role: shard.role.clone(),
                stage_key: key.into(),
            });
            tasks.push(inputs.task(kind, shard.rows, format!("write {}", shard.path)));
        }
    }
}

/// Returns a source for a worker. `all` has the reading settings of sources that give none.
pub(super) fn source(own: &SourceEntry, all: &SourceEntry, label: &str) -> Source {
    let text = |own: &Option<String>, all: &Option<String>| own.as_ref().or(all.as_ref()).cloned();
    let column =
        |own: &Option<ColumnName>, all: &Option<ColumnName>| own.as_ref().or(all.as_ref()).map(ToString::to_string);
    // A common format does not apply to sources of two files.
    let format = own.format.or(all.format.filter(|_| own.url.is_some()));
    Source {
        url: own.name().to_owned(),
        foreign_url: own.foreign.clone(),
        format: format.map(|format| format.to_string()),
        compression: own.compression.or(all.compression).map(|form| form.to_string()),
        english_column: column(&own.english_column, &all.english_column),
        foreign_column: column(&own.foreign_column, &all.foreign_column),
        english_language: text(&own.english_language, &all.english_language),
        foreign_language: text(&own.foreign_language, &all.foreign_language),
        label: Some(label.to_owned()),
    }
}

/// Returns a number of training rows of the job file, where 0 stands for all.
fn unless_all(rows: u64) -> Option<u64> {
    (rows > 0).then_some(rows)
}

fn cleaned_paths(own: &[TaskResult]) -> Vec<String> {
    own.iter().flat_map(|r| &r.artifacts).map(|a| a.path.clone()).collect()
}

fn with_own<'a, 'r>(
    corpora: &'a [CorpusPlan<'a>],
    mut cleaned: &'r [TaskResult],
) -> impl Iterator<Item = (&'a CorpusPlan<'a>, &'r [TaskResult])> {
    corpora.iter().map(move |corpus| {
        let (own, rest) = cleaned.split_at(corpus.sources.as_slice().len().min(cleaned.len()));
        cleaned = rest;
        (corpus, own)
    })
}

fn corpora<'a>(inputs: &Inputs<'a>) -> Vec<CorpusPlan<'a>> {
    let cleaning = &inputs.job.cleaning;
    let pairs = CorpusPlan::pairs(&inputs.job.corpus, cleaning);
    let instructions = inputs.job.instructions.as_ref();
    let instructions = instructions.map(|i| CorpusPlan::instructions(i, &inputs.job.corpus, cleaning));
    std::iter::once(pairs).chain(instructions).collect()
}

pub(super) fn phase(key: &str, inputs: &Inputs<'_>, results: &[Vec<TaskResult>]) -> Result<Phase, PlanError> {
    let corpora = corpora(inputs);
    match results {
        [] => Ok(Phase::Tasks {
            label: "clean".into(),
            tasks: corpora.iter().flat_map(|c| c.clean_tasks(key, inputs)).collect(),
        }),
        [cleaned] => Ok(Phase::Tasks {
            label: "split".into(),
            tasks: with_own(&corpora, cleaned).map(|(corpus, own)| corpus.split_task(key, inputs, own)).collect(),
        }),
        [cleaned, splits] => {
            let mut tasks = PlannedTasks::default();
            for ((corpus, own), split) in with_own(&corpora, cleaned).zip(splits) {
                corpus.add_shard_tasks(key, inputs, own, split, &mut tasks);
            }
            Ok(Phase::Tasks { label: "write".into(), tasks })
        }
        [cleaned, splits, shards, ..] => {
            let mut manifest = manifest_of(StageName::Shard, key, shards);
            for ((corpus, own), split) in with_own(&corpora, cleaned).zip(splits) {
                let counted = own
                    .iter()
                    .flat_map(|r| r.counts.iter().map(|c| ("", c)))
                    .chain(split.counts.iter().map(|c| ("split.", c)));
                for (step, (name, count)) in counted {
                    *manifest.counts.entry(format!("{}.{step}{name}", corpus.name)).or_default() += count;
                }
                manifest.counts.extend(corpus.source_counts(own));
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

/// The first hex digits of the SHA-256 of the built-in tiny models' files, concatenated. A test checks it.
pub const TINY_MODELS_STAMP: &str = "d62ed951d20b9699";

pub(super) fn models_key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    let models = &inputs.job.models;
    let mut parts = vec![json(models)];
    for (_, source) in models.paths() {
        if source == RANDOM_MODEL {
            parts.push(format!("seed {}", inputs.job.seed));
            parts.push(content(earlier(StageName::Models, StageName::Shard, inputs)?));
        } else if source == TINY_MODEL {
            parts.push(TINY_MODELS_STAMP.into());
        } else {
            parts.push(inputs.stamps.get(source).cloned().unwrap_or_default());
        }
    }
    Ok(parts)
}

fn unfit_models(job: &JobFile) -> Option<String> {
    let mut models = job.models.paths().into_iter();
    let own_text = job.corpus.source.as_slice().iter().any(|source| !source.is_sample());
    (own_text && models.any(|(_, path)| path == TINY_MODEL)).then(|| {
        "the tiny models know the sample corpus and no other text: name folders of real ones in [models] \
         encoder and decoder, or \"random\" to try out the corpus alone"
            .to_owned()
    })
}

pub(super) fn models_phase(key: &str, inputs: &Inputs<'_>, results: &[Vec<TaskResult>]) -> Result<Phase, PlanError> {
    if let Some(prepared) = results.first() {
        let mut manifest = manifest_of(StageName::Models, key, prepared);
        manifest.warnings.extend(unfit_models(inputs.job));
        return Ok(Phase::Complete(manifest));
    }
    let encoder = &inputs.job.models.encoder;
    let task = |role: ModelRole, source: &str, name: &str| -> Result<PlannedTask, PlanError> {
        let wishes = (role == ModelRole::Encoder).then_some(encoder);
        let text = match source {
            RANDOM_MODEL => {
                let shard = earlier(StageName::Models, StageName::Shard, inputs)?;
                with_role(shard, Role::Shard(role::Corpus::Pairs, role::Side::Train))
            }
            _ => Vec::new(),
        };
        let kind = Kind::PrepareModel(PrepareModel {
            role: role.into(),
            source: source.into(),
            seed: inputs.job.seed,
            text_shards: text.into_iter().map(|shard| shard.path).collect(),
            path: format!("{}/{name}", inputs.directory(StageName::Models, key)),
            pooling: wishes.and_then(|m| m.pooling).map(|pooling| pooling.to_string()),
            normalize: wishes.and_then(|m| m.normalize),
            prefix: wishes.and_then(|m| m.prefix.clone()),
        });
        Ok(inputs.task(kind, 1, format!("prepare {name} {source}")))
    };
    Ok(Phase::Tasks {
        label: "prepare".into(),
        tasks: PlannedTasks::from_iter([
            task(ModelRole::Encoder, &encoder.path, "encoder")?,
            task(ModelRole::Decoder, &inputs.job.models.decoder.path, "decoder")?,
        ]),
    })
}
