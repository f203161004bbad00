//! The job file: its keys, their defaults, and what makes one wrong.
//!
//! Parsed once by [`parse`], checked once by [`check`], then trusted everywhere.

mod check;
mod cleaning;
mod error;
mod export;
mod instruct;
mod judge;
mod models;
mod parse;
mod recipe;
mod source;
mod synthesize;
mod teacher;
mod warnings;

pub use cleaning::{CleaningSection, NearDuplicates};
pub use error::{JobFileError, Problem};
pub use export::{ExportSection, model_name};
pub use instruct::{InstructArm, InstructMode, InstructSection};
pub use judge::JudgeSection;
pub use models::{
    DecoderModel, EncoderModel, ModelsSection, PoolingName, RANDOM_MODEL, TINY_MODEL, is_built_in, is_gguf,
};
pub use parse::parse;
pub use recipe::Recipe;
pub use source::{ColumnName, CompressionName, FormatName, SourceEntry, Sources};
pub use synthesize::{PromptEntry, SynthesizeSection};
pub use teacher::{Pool, PooledTeacher, Teacher, TeacherLayer};
pub use warnings::warnings;

use serde::{Deserialize, Serialize};

/// A whole job file. Only `corpus` must be given; every other key has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobFile {
    /// What people call the job.
    #[serde(default = "default_name")]
    pub name: String,
    /// A named set of defaults: `paper` or `sharp`. A key given beside it overrides it.
    #[serde(default)]
    pub recipe: Recipe,
    /// Where every artefact goes: a folder or an object-store URL.
    #[serde(default = "default_output")]
    pub output: String,
    /// Drives everything random: the sample corpus, tiny models, batches, dropout.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// The parallel corpus.
    pub corpus: CorpusSection,
    /// What rows must satisfy.
    #[serde(default)]
    pub cleaning: CleaningSection,
    /// Instruction examples, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<InstructionsSection>,
    /// Instruction examples made by a large model, in the place of those of `[instructions]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synthesize: Option<SynthesizeSection>,
    /// The frozen models.
    #[serde(default)]
    pub models: ModelsSection,
    /// How sentences become cached vectors.
    #[serde(default)]
    pub embed: EmbedSection,
    /// Stage A.
    #[serde(default)]
    pub align: AlignSection,
    /// Stage B, if it is wanted; it needs `[instructions]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruct: Option<InstructSection>,
    /// What is measured.
    #[serde(default)]
    pub evaluate: EvaluateSection,
    /// What the bundle says of itself.
    #[serde(default)]
    pub export: ExportSection,
    /// Local worker processes, when the job serves itself.
    #[serde(default)]
    pub workers: WorkersSection,
}

impl JobFile {
    /// The environment variables that it names: they hold the keys of its endpoints.
    #[must_use]
    pub fn key_variables(&self) -> Vec<&str> {
        let synthesize = self.synthesize.iter().map(|section| &section.api_key_env);
        let judge = self.evaluate.judge.iter().map(|section| &section.api_key_env);
        synthesize.chain(judge).map(String::as_str).collect()
    }
}

fn default_name() -> String {
    "job".into()
}

fn default_output() -> String {
    "llink-out".into()
}

fn default_seed() -> u64 {
    7
}

/// What is done with a text longer than `max_chars`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// Keep its first `max_chars` characters.
    Cut,
    /// Drop the row and count it.
    Drop,
}

/// `[corpus]`: the parallel corpus and its split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusSection {
    /// `"sample"`, or files: plain or compressed, each with a table of its own where their names do not tell how to
    /// read them.
    pub source: Sources,
    /// How sources are written down that do not say themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<FormatName>,
    /// How they are compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<CompressionName>,
    /// Their English column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub english_column: Option<ColumnName>,
    /// Their foreign column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_column: Option<ColumnName>,
    /// Their English language code, in TMX.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub english_language: Option<String>,
    /// Their foreign language code, in TMX.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_language: Option<String>,
    /// Pairs to train on; 0 takes all there are.
    #[serde(default = "default_train_pairs")]
    pub train_pairs: u64,
    /// Pairs held out.
    #[serde(default = "default_holdout_pairs")]
    pub holdout_pairs: u64,
    /// Shorter foreign texts are dropped (characters).
    #[serde(default = "one")]
    pub min_chars: u32,
    /// Longer foreign texts are cut or dropped (characters).
    #[serde(default = "default_max_chars")]
    pub max_chars: u32,
    /// Which of the two.
    #[serde(default = "cut")]
    pub too_long: TooLong,
    /// Rows in a shard.
    #[serde(default = "default_shard_rows")]
    pub shard_rows: u32,
}

/// Which texts validation examples are taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValidationFrom {
    /// Texts on the held-out side of the corpus: the lowest hashes, as among the pairs.
    #[default]
    Holdout,
    /// A share of the instructions' own texts, drawn by a second hash: for instructions that were made from training pairs alone.
    /// No text stands in both splits, but Stage A may have been trained on a validation text as a pair. The report counts them.
    Train,
}

impl ValidationFrom {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// `[instructions]`: examples for Stage B.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstructionsSection {
    /// `"sample"`, or JSONL files.
    pub source: Sources,
    /// Tasks that are kept; none given: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<String>,
    /// Examples to train on; 0 takes all there are.
    #[serde(default = "default_instruction_train")]
    pub train: u64,
    /// Examples held out for validation.
    #[serde(default = "default_instruction_validation")]
    pub validation: u64,
    /// Which texts they are taken from: `"holdout"`, or `"train"` where all instructions were made from training pairs.
    #[serde(default, skip_serializing_if = "ValidationFrom::is_default")]
    pub validation_from: ValidationFrom,
    /// Shorter foreign texts are dropped (characters).
    #[serde(default = "default_instruction_min_chars")]
    pub min_chars: u32,
    /// Longer foreign texts are dropped (characters).
    #[serde(default = "default_max_chars")]
    pub max_chars: u32,
    /// Rows in a shard.
    #[serde(default = "default_shard_rows")]
    pub shard_rows: u32,
}

/// `[embed]`: batching of sentences through the frozen models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbedSection {
    /// Tokens in a batch, padding included.
    pub token_budget: u32,
    /// Characters of the foreign text that the encoder reads.
    pub max_chars: u32,
    /// Tokens that the encoder reads.
    pub max_tokens: u32,
    /// What of the decoder's states stands for an English sentence: `"slot"`, or `{ pool = "mean", layer = 0.33 }`.
    pub teacher: Teacher,
}

impl Default for EmbedSection {
    fn default() -> Self {
        Self {
            token_budget: 8192,
            max_chars: 256,
            max_tokens: 256,
            teacher: Teacher::Slot,
        }
    }
}

/// What Stage A compares vectors in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Cosines of the vectors themselves.
    Cosine,
    /// Cosines around the teachers' mean.
    #[serde(alias = "centered")]
    Centred,
    /// Cosines around the teachers' mean, with their deviations along each direction divided out.
    Whitened,
}

/// `[align]`: Stage A. The defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlignSection {
    /// Optimiser steps.
    pub steps: u64,
    /// Pairs in a step, over all ranks.
    pub batch: u32,
    /// Teacher vectors remembered for mining.
    pub queue: u32,
    /// The hardest of the queue that join the batch's negatives.
    pub hard_negatives: u32,
    /// τ at the first step.
    pub temperature_start: f64,
    /// τ at the last step.
    pub temperature_end: f64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Learning rate at the end.
    pub learning_rate_floor: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// AdamW's decoupled decay.
    pub weight_decay: f64,
    /// AdamW's β₁.
    pub beta1: f64,
    /// AdamW's β₂.
    pub beta2: f64,
    /// Gradients are scaled down to this norm.
    pub gradient_clip: f64,
    /// Dropout in the projector.
    pub dropout: f64,
    /// Weight of 1 − cos(p, t).
    pub direction_weight: f64,
    /// Weight of (ln|p| − ln|t|)².
    pub log_norm_weight: f64,
    /// The projector's hidden width; 0 is four times the encoder's.
    pub projector_hidden: u32,
    /// What InfoNCE, mining, the queue and retrieval compare vectors in: `cosine`, `centred` or `whitened`. The direction and log-norm
    /// losses always look at the vectors themselves. Statistics are fitted once, on the training split's teachers.
    pub metric: Metric,
    /// What the whitening adds to every variance, as a share of the largest one. Less of it tells apart what varies little.
    pub whitening_eps: f64,
    /// Whether each dimension of the encoder's vectors is brought to mean 0 and deviation 1 before the projector.
    pub standardize: bool,
    /// Whether the projector's LayerNorm starts at the teachers' deviation and mean instead of 1 and 0. Not given: unless the metric is
    /// `cosine`. A middle layer's states are so long that a whitened loss sees the vectors of a fresh LayerNorm as one point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_at_teachers: Option<bool>,
    /// Pairs of a rank whose activations are held at once; 0 is all. Less takes less memory and more time.
    pub micro_batch: u32,
    /// Steps between checkpoints; 0 leaves it to `checkpoint_minutes`.
    pub checkpoint_every: u64,
    /// Minutes between checkpoints; 0 leaves it to `checkpoint_every`.
    pub checkpoint_minutes: f64,
    /// How many of the newest checkpoints are kept, beside the best.
    pub checkpoints_kept: u32,
    /// Steps between looks at held-out pairs; 0 never looks, and no checkpoint is the best.
    pub validate_every: u64,
    /// Held-out pairs that are looked at.
    pub validation_pairs: u32,
    /// Seconds that a step may take before it is taken for hung and the gang is formed anew.
    pub step_timeout_s: f64,
    /// Fewest ranks to train with.
    pub min_ranks: u32,
    /// Most ranks to train with; 0 takes every worker.
    pub max_ranks: u32,
}

impl Default for AlignSection {
    fn default() -> Self {
        Self {
            steps: 20_000,
            batch: 128,
            queue: 32_768,
            hard_negatives: 256,
            temperature_start: 0.17,
            temperature_end: 0.08,
            learning_rate: 1e-3,
            learning_rate_floor: 1e-5,
            warmup_steps: 3_000,
            weight_decay: 0.05,
            beta1: 0.9,
            beta2: 0.98,
            gradient_clip: 1.0,
            dropout: 0.10,
            direction_weight: 0.05,
            log_norm_weight: 0.02,
            projector_hidden: 0,
            metric: Metric::Cosine,
            whitening_eps: 1e-3,
            standardize: false,
            start_at_teachers: None,
            micro_batch: 0,
            checkpoint_every: 1_000,
            checkpoint_minutes: 10.0,
            checkpoints_kept: 3,
            validate_every: 1_000,
            validation_pairs: 512,
            step_timeout_s: 60.0,
            min_ranks: 1,
            max_ranks: 0,
        }
    }
}

impl AlignSection {
    /// Whether the projector's LayerNorm starts at the teachers' statistics.
    #[must_use]
    pub fn starts_at_teachers(&self) -> bool {
        self.start_at_teachers.unwrap_or(self.metric != Metric::Cosine)
    }

    /// Whether anything is fitted on the training split before the first step.
    #[must_use]
    pub fn fits_statistics(&self) -> bool {
        self.metric != Metric::Cosine || self.standardize || self.starts_at_teachers()
    }
}

/// `[evaluate]`: what is measured at the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateSection {
    /// Held-out pairs that retrieval is measured on.
    pub benchmark_pairs: u64,
    /// Held-out instructions to answer, if the job has Stage B.
    pub answers: u32,
    /// The longest answer.
    pub max_answer_tokens: u32,
    /// Who prefers one answer to another, if anybody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<JudgeSection>,
}

impl Default for EvaluateSection {
    fn default() -> Self {
        Self {
            benchmark_pairs: 1024,
            answers: 200,
            max_answer_tokens: 128,
            judge: None,
        }
    }
}

/// `[workers]`: the local processes of a job that serves itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkersSection {
    /// How many.
    pub local: u32,
}

impl Default for WorkersSection {
    fn default() -> Self {
        Self { local: 2 }
    }
}

fn one() -> u32 {
    1
}

fn cut() -> TooLong {
    TooLong::Cut
}

fn default_train_pairs() -> u64 {
    100_000
}

fn default_holdout_pairs() -> u64 {
    40_000
}

fn default_max_chars() -> u32 {
    256
}

fn default_shard_rows() -> u32 {
    16_384
}

fn default_instruction_train() -> u64 {
    40_000
}

fn default_instruction_validation() -> u64 {
    2_000
}

fn default_instruction_min_chars() -> u32 {
    12
}
