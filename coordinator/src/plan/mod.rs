//! Turns a job file into stages and tasks by pure functions, without clock, network or disk.
//!
//! A stage's key is the hash of its inputs, its own part of the job file, and its version here. The inputs are the
//! content of earlier stages' artifacts, the models' fingerprints and the sources' stamps. The same key means the same
//! result, so a stage with a committed manifest under its key is not run again.

mod baseline;
mod embed;
mod export;
#[cfg(test)]
pub(crate) mod fake;
mod instruct;
mod judge;
mod margin;
mod outline;
mod pack;
mod portions;
mod shard;
mod synthesize;
mod tasks;
mod train;
mod windows;

use std::collections::BTreeMap;

pub use shard::TINY_MODELS_STAMP;

use llink_datasets::manifest::{ATTEMPT_PREFIX, Manifest, ManifestArtifact};
use llink_datasets::role::Role;
use llink_proto::{Artifact, TaskResult};
use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, EnumString, IntoEnumIterator, IntoStaticStr};

use crate::job::{JobFile, RANDOM_MODEL};
pub use outline::outline;
pub use pack::{Pack, Packed};
pub(crate) use tasks::traits;
pub use tasks::{PlannedTask, PlannedTasks, Traits};

/// The stages of a job, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, EnumIter, EnumString, IntoStaticStr, Display)]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = unknown_stage)]
pub enum StageName {
    /// Cleans and splits sources into Parquet shards.
    Shard,
    /// Makes instruction examples of pairs with a large model.
    Synthesize,
    /// Fingerprints model folders, and makes tiny models.
    Models,
    /// Computes and caches the vectors of sentences.
    Embed,
    /// Embeds English sentences with the encoder, for the encoder-only baseline.
    Baseline,
    /// Embeds the sentences and windows of texts with the encoder, for Stage B.
    Windows,
    Align,
    /// Trains slots and LoRA (Stage B).
    Instruct,
    /// Measures held-out retrieval and answers.
    Evaluate,
    /// Writes the trained parts as a folder that other programs load.
    Export,
}

impl StageName {
    /// Returns the stages of this job. Synthesis, windows and Stage B are optional.
    pub fn of(job: &JobFile) -> Vec<Self> {
        let wanted = |stage: &Self| match stage {
            Self::Synthesize => job.synthesize.is_some(),
            Self::Windows => windows::wanted(job).is_some(),
            Self::Instruct => job.instruct.is_some(),
            _ => true,
        };
        Self::iter().filter(wanted).collect()
    }

    /// Returns the stages whose results determine this stage's key and tasks. [`stage_key`] and [`phase`] need all of
    /// them.
    pub fn reads(self, job: &JobFile) -> Vec<Self> {
        let random = job.models.paths().iter().any(|(_, path)| *path == RANDOM_MODEL);
        let instructions = job.instruct.is_some().then(|| instructions_stage(job));
        let instruct = job.instruct.is_some().then_some(Self::Instruct);
        let windows = windows::wanted(job).map(|_| Self::Windows);
        let mut stages = match self {
            Self::Shard => Vec::new(),
            Self::Synthesize => vec![Self::Shard],
            Self::Models if random => vec![Self::Shard],
            Self::Models => Vec::new(),
            Self::Embed | Self::Windows => {
                [Some(Self::Shard), Some(Self::Models), instructions].into_iter().flatten().collect()
            }
            Self::Baseline => vec![Self::Shard, Self::Models],
            Self::Align => match job.cleaning.margin {
                Some(_) => vec![Self::Shard, Self::Embed, Self::Baseline],
                None => vec![Self::Embed],
            },
            Self::Instruct => {
                let own = [Self::Models, Self::Embed, Self::Align];
                instructions.into_iter().chain(windows).chain(own).collect()
            }
            Self::Evaluate | Self::Export => {
                let evaluate = (self == Self::Export).then_some(Self::Evaluate);
                let [embed, baseline] =
                    [Self::Embed, Self::Baseline].map(|read| (self == Self::Evaluate).then_some(read));
                let windows = windows.filter(|_| self == Self::Evaluate);
                let own = [Self::Shard, Self::Models, Self::Align].map(Some);
                let others = [embed, baseline, windows, evaluate, instructions, instruct];
                own.into_iter().chain(others).flatten().collect()
            }
        };
        stages.sort_unstable();
        stages.dedup();
        stages
    }

    /// Returns the stage's version. It is raised when the stage's code computes another result from the same inputs, so
    /// that old results are not reused.
    fn version(self) -> u32 {
        match self {
            // 2: near-duplicates, and more than one table for a large source. 3: near-duplicates by longer signatures.
            // 4: inline elements and encodings of TMX, Python's extensions of JSON, sources with the same name.
            Self::Shard => 4,
            // 2: an HTML report. 3: word recall without numbers. 4: the encoder alone, chrF, ranks of the benchmark.
            // 5: prompts in the decoder's own template; the judge's thoughts are cut off. 6: the look of the report.
            // 7: numbers with magnitude and unit, chrF++ and BLEU. 8: the doubt of verdicts, an evaluation set, costs.
            // 9: figures of the centered metric have its American name.
            Self::Evaluate => 9,
            // 2: tiny models that know the sample corpus. 3: the encoder's reading settings, the decoder's layers.
            // 4: fingerprints include the decoder's chat template.
            Self::Models => 4,
            // 2: thoughts are cut off, and incomplete answers are dropped.
            Self::Synthesize => 2,
            // 2: teacher sentences begin with BOS.
            Self::Embed => 2,
            // 2: prompts in the decoder's own template.
            Self::Instruct | Self::Export => 2,
            Self::Baseline | Self::Windows | Self::Align => 1,
        }
    }

    /// Returns the name in job output, paths and messages.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Shard => "rows",
            Self::Synthesize => "answers",
            Self::Models => "models",
            Self::Embed | Self::Baseline | Self::Windows => "sentences",
            Self::Align | Self::Instruct => "steps",
            Self::Evaluate => "pairs",
            Self::Export => "bundle",
        }
    }
}

fn unknown_stage(text: &str) -> String {
    format!("unknown stage {text:?}")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranks {
    pub min: u32,
    /// The most ranks; `None` is as many as there are workers.
    pub max: Option<u32>,
}

impl Ranks {
    pub const ONE: Self = Self { min: 1, max: Some(1) };
}

#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// Tasks that may run in any order and at the same time.
    Tasks {
        label: String,
        tasks: PlannedTasks,
    },
    Complete(Manifest),
}

#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The job, with absolute paths.
    pub job: &'a JobFile,
    /// A stamp (size, time, tag) of each external file that the job reads, by its URL.
    pub stamps: &'a BTreeMap<String, String>,
    /// The manifests of earlier stages.
    pub done: &'a BTreeMap<StageName, Manifest>,
    /// The claim for the stage's tasks; `None` if only the key is needed.
    pub claim: Option<&'a Claim>,
}

impl Inputs<'_> {
    /// Returns the folder for the stage's results.
    fn directory(&self, stage: StageName, key: &str) -> String {
        let directory = directory(stage, key);
        match self.claim.filter(|claim| claim.apart) {
            Some(claim) => format!("{directory}/{ATTEMPT_PREFIX}{}", claim.attempt),
            None => directory,
        }
    }

    /// Returns the folder for files that only tasks of the same stage and attempt read.
    fn work_directory(&self, stage: StageName, key: &str) -> String {
        let attempt = self.claim.map_or("", |claim| claim.attempt.as_str());
        format!("{}/{WORK_DIRECTORY}/{attempt}", directory(stage, key))
    }
}

/// An attempt's claim to compute a stage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub attempt: String,
    /// True if this attempt writes into a folder of its own, because an earlier attempt may still be writing.
    pub apart: bool,
}

/// The folder for files that only the stage's own tasks read, attempt by attempt. It is removed after the commit.
pub const WORK_DIRECTORY: &str = "work";

/// The error of a plan that cannot be made, because an earlier stage's result lacks something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot plan stage {stage}: {reason}")]
pub struct PlanError {
    pub stage: StageName,
    pub reason: String,
}

/// Returns the key of `stage`, 16 hex digits. It fails while a stage that it reads has no result.
pub fn stage_key(stage: StageName, inputs: &Inputs<'_>) -> Result<String, PlanError> {
    let parts = match stage {
        StageName::Shard => shard::key_parts(inputs),
        StageName::Synthesize => synthesize::key_parts(inputs)?,
        StageName::Models => shard::models_key_parts(inputs)?,
        StageName::Embed => embed::key_parts(inputs)?,
        StageName::Baseline => baseline::key_parts(inputs)?,
        StageName::Windows => windows::key_parts(inputs)?,
        StageName::Align => train::align_key_parts(inputs)?,
        StageName::Instruct => instruct::key_parts(inputs)?,
        StageName::Evaluate => train::evaluate_key_parts(inputs)?,
        StageName::Export => export::key_parts(inputs)?,
    };
    let text = format!("llink/{}/{}\n{}", stage, stage.version(), parts.join("\n"));
    Ok(short_hash(&text))
}

/// Returns phase `number` of `stage`, given the results of the phases before it.
/// It fails if a stage that it reads, or an earlier phase, lacks what it should have made.
pub fn phase(
    stage: StageName,
    key: &str,
    inputs: &Inputs<'_>,
    results: &[Vec<TaskResult>],
) -> Result<Phase, PlanError> {
    let has_one_phase = matches!(
        stage,
        StageName::Embed | StageName::Baseline | StageName::Windows | StageName::Evaluate | StageName::Export
    );
    if let Some(done) = results.first().filter(|_| has_one_phase) {
        return Ok(Phase::Complete(manifest_of(stage, key, done)));
    }
    match stage {
        StageName::Shard => shard::phase(key, inputs, results),
        StageName::Synthesize => synthesize::phase(key, inputs, results),
        StageName::Models => shard::models_phase(key, inputs, results),
        StageName::Embed => embed::phase(key, inputs),
        StageName::Baseline => baseline::phase(key, inputs),
        StageName::Windows => windows::phase(key, inputs),
        StageName::Align => train::align_phase(key, inputs, results),
        StageName::Instruct => instruct::phase(key, inputs, results),
        StageName::Evaluate => train::evaluate_phase(key, inputs),
        StageName::Export => export::phase(key, inputs),
    }
}

/// Returns the folder of a stage's artifacts, below the job's output.
pub fn directory(stage: StageName, key: &str) -> String {
    format!("{stage}/{key}")
}

pub fn manifest_path(stage: StageName, key: &str) -> String {
    format!("{stage}/{key}/manifest.json")
}

/// Returns the first 16 hex digits of the SHA-256 of `text`.
pub fn short_hash(text: &str) -> String {
    let mut digest = llink_datasets::manifest::sha256_hex(text.as_bytes());
    digest.truncate(16);
    digest
}

fn instructions_of<'a>(stage: StageName, inputs: &Inputs<'a>) -> Result<&'a Manifest, PlanError> {
    earlier(stage, instructions_stage(inputs.job), inputs)
}

fn instructions_stage(job: &JobFile) -> StageName {
    match job.synthesize {
        Some(_) => StageName::Synthesize,
        None => StageName::Shard,
    }
}

fn earlier<'a>(stage: StageName, of: StageName, inputs: &Inputs<'a>) -> Result<&'a Manifest, PlanError> {
    inputs.done.get(&of).ok_or_else(|| PlanError { stage, reason: format!("stage {of} has no result yet") })
}

fn fact<'a>(stage: StageName, manifest: &'a Manifest, name: &str) -> Result<&'a str, PlanError> {
    manifest
        .facts
        .get(name)
        .map(String::as_str)
        .ok_or_else(|| PlanError { stage, reason: format!("the manifest of stage {} lacks {name:?}", manifest.stage) })
}

/// Returns the content of a stage's results without paths: roles, rows and hashes.
fn content(manifest: &Manifest) -> String {
    content_where(manifest, |_| true)
}

/// Returns the same for the artifacts whose role begins with the text of `role`, as in all keys so far: that of the
/// adapter includes its configuration.
fn content_of(manifest: &Manifest, role: impl Into<Role>) -> String {
    let beginning = role.into().to_string();
    content_where(manifest, |role| role.starts_with(&beginning))
}

fn content_where(manifest: &Manifest, wanted: impl Fn(&str) -> bool) -> String {
    let lines = manifest.artifacts.iter().filter_map(|a| {
        let role = a.role.to_string();
        wanted(&role).then(|| format!("{role} {} {}", a.rows, a.sha256))
    });
    lines.collect::<Vec<String>>().join("\n")
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a job file's sections are plain data")
}

/// Merges the artifacts, counts, figures, facts and warnings of `results`, in order, into a manifest.
fn manifest_of<'a>(stage: StageName, key: &str, results: impl IntoIterator<Item = &'a TaskResult>) -> Manifest {
    let mut manifest = Manifest {
        version: llink_datasets::manifest::MANIFEST_VERSION,
        stage: stage.to_string(),
        key: key.into(),
        artifacts: Vec::new(),
        counts: BTreeMap::new(),
        figures: BTreeMap::new(),
        facts: BTreeMap::new(),
        warnings: Vec::new(),
    };
    for result in results {
        manifest.artifacts.extend(result.artifacts.iter().map(to_manifest));
        for (name, count) in &result.counts {
            *manifest.counts.entry(name.clone()).or_default() += count;
        }
        for (name, figure) in &result.figures {
            // JSON has no such numbers: a manifest that holds one could not be read again.
            if figure.is_finite() {
                manifest.figures.insert(name.clone(), *figure);
            } else {
                manifest.warnings.push(format!("{name} is {figure}, so it is not among the figures"));
            }
        }
        manifest.facts.extend(result.facts.clone());
        manifest.warnings.extend(result.warnings.iter().cloned());
    }
    manifest
}

fn to_manifest(a: &Artifact) -> ManifestArtifact {
    ManifestArtifact {
        path: a.path.clone(),
        role: a.role.as_str().into(),
        rows: a.rows,
        bytes: a.bytes,
        sha256: a.sha256.clone(),
        metadata: a.metadata.clone(),
    }
}

fn from_manifest(a: &ManifestArtifact) -> Artifact {
    Artifact {
        path: a.path.clone(),
        role: a.role.to_string(),
        rows: a.rows,
        bytes: a.bytes,
        sha256: a.sha256.clone(),
        metadata: a.metadata.clone(),
    }
}

fn with_role(manifest: &Manifest, role: impl Into<Role>) -> Vec<Artifact> {
    let role = role.into();
    manifest.artifacts.iter().filter(|a| a.role == role).map(from_manifest).collect()
}

#[cfg(test)]
mod tests;
