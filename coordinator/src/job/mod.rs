//! The job file: its keys, their defaults, and their checks.
//!
//! It is parsed once by [`parse`], checked once by [`check`], and then trusted everywhere.

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

/// A whole job file. Only `corpus` is required; every other key has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobFile {
    /// The job's name for people.
    #[serde(default = "default_name")]
    pub name: String,
    /// A named set of defaults: `paper` or `sharp`. A key in the job file overrides it.
    #[serde(default)]
    pub recipe: Recipe,
    /// The location of every artifact: a folder or an object-store URL.
    #[serde(default = "default_output")]
    pub output: String,
    /// The seed of everything random: the sample corpus, tiny models, batches, dropout.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// The parallel corpus.
    pub corpus: CorpusSection,
    /// The cleaning rules.
    #[serde(default)]
    pub cleaning: CleaningSection,
    /// Instruction examples. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<InstructionsSection>,
    /// Instruction examples that a large model makes, instead of those of `[instructions]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synthesize: Option<SynthesizeSection>,
    /// The frozen models.
    #[serde(default)]
    pub models: ModelsSection,
    /// The settings for the cached vectors of sentences.
    #[serde(default)]
    pub embed: EmbedSection,
    /// The settings of Stage A.
    #[serde(default)]
    pub align: AlignSection,
    /// The settings of Stage B, which needs `[instructions]`. Absent: no Stage B.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruct: Option<InstructSection>,
    /// The settings of the evaluation.
    #[serde(default)]
    pub evaluate: EvaluateSection,
    /// The description of the exported bundle.
    #[serde(default)]
    pub export: ExportSection,
    /// Local worker processes, and the job's share of a coordinator's workers.
    #[serde(default)]
    pub workers: WorkersSection,
}

impl JobFile {
    /// Returns the environment variables that the job names for the keys of its endpoints.
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

/// The treatment of a text longer than `max_chars`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TooLong {
    /// Keeps the first `max_chars` characters.
    Cut,
    /// Drops the row and counts it.
    Drop,
}

/// The parallel corpus and its split (`[corpus]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusSection {
    /// `"sample"`, or files, plain or compressed. A source whose name does not tell how to read it gets a table of its
    /// own.
    pub source: Sources,
    /// The format of sources that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<FormatName>,
    /// The compression of sources that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<CompressionName>,
    /// The English column of sources that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub english_column: Option<ColumnName>,
    /// The foreign column of sources that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_column: Option<ColumnName>,
    /// The English language code of TMX sources that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub english_language: Option<String>,
    /// The foreign language code of TMX sources that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_language: Option<String>,
    /// The number of training pairs; 0 takes all.
    #[serde(default = "default_train_pairs")]
    pub train_pairs: u64,
    /// The number of held-out pairs.
    #[serde(default = "default_holdout_pairs")]
    pub holdout_pairs: u64,
    /// Foreign texts with fewer characters are dropped.
    #[serde(default = "one")]
    pub min_chars: u32,
    /// Foreign texts with more characters are cut or dropped, as `too_long` says.
    #[serde(default = "default_max_chars")]
    pub max_chars: u32,
    /// `cut` keeps the first `max_chars` characters of a longer text, and `drop` drops the row.
    #[serde(default = "cut")]
    pub too_long: TooLong,
    /// The number of rows in a shard.
    #[serde(default = "default_shard_rows")]
    pub shard_rows: u32,
}

/// The source of the validation texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValidationFrom {
    /// Texts on the held-out side of the corpus, which have the lowest hashes, as among the pairs.
    #[default]
    Holdout,
    /// A share of the instructions' own texts, by a second hash. This is for instructions that were all made from
    /// training pairs. No text is in both splits, but Stage A may have been trained on a validation text as a pair. The
    /// report counts these texts.
    Train,
}

impl ValidationFrom {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Examples for Stage B (`[instructions]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstructionsSection {
    /// `"sample"`, or JSON Lines files.
    pub source: Sources,
    /// The tasks to keep; an empty list keeps all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<String>,
    /// The number of training examples; 0 takes all.
    #[serde(default = "default_instruction_train")]
    pub train: u64,
    /// The number of held-out examples for validation.
    #[serde(default = "default_instruction_validation")]
    pub validation: u64,
    /// The texts of the validation examples: `"holdout"`, or `"train"` if all instructions were made from training
    /// pairs.
    #[serde(default, skip_serializing_if = "ValidationFrom::is_default")]
    pub validation_from: ValidationFrom,
    /// Foreign texts with fewer characters are dropped.
    #[serde(default = "default_instruction_min_chars")]
    pub min_chars: u32,
    /// Foreign texts with more characters are dropped.
    #[serde(default = "default_max_chars")]
    pub max_chars: u32,
    /// The number of rows in a shard.
    #[serde(default = "default_shard_rows")]
    pub shard_rows: u32,
}

/// The batching of sentences through the frozen models (`[embed]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbedSection {
    /// The number of tokens in a batch, including padding.
    pub token_budget: u32,
    /// The most characters of a foreign text that the encoder reads.
    pub max_chars: u32,
    /// The most tokens of a text that the encoder reads.
    pub max_tokens: u32,
    /// The decoder states that represent an English sentence: `"slot"`, or `{ pool = "mean", layer = 0.33 }`.
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

/// The metric in which Stage A compares vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Cosine similarity of the vectors themselves.
    Cosine,
    /// Cosine similarity after the teachers' mean is subtracted.
    #[serde(alias = "centered")]
    Centred,
    /// Cosine similarity after the teachers' mean is subtracted and each direction is divided by its deviation.
    Whitened,
}

/// Stage A (`[align]`). The defaults are the paper's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlignSection {
    /// The number of optimizer steps.
    pub steps: u64,
    /// The number of pairs in a step, over all ranks.
    pub batch: u32,
    /// The number of teacher vectors in the queue for mining.
    pub queue: u32,
    /// The number of hardest negatives from the queue that join the batch.
    pub hard_negatives: u32,
    /// The temperature τ at the first step.
    pub temperature_start: f64,
    /// The temperature τ at the last step.
    pub temperature_end: f64,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The learning rate at the end.
    pub learning_rate_floor: f64,
    /// The number of steps with linear warm-up.
    pub warmup_steps: u64,
    /// The decoupled weight decay of AdamW.
    pub weight_decay: f64,
    /// The decay β₁ of AdamW's first moment.
    pub beta1: f64,
    /// The decay β₂ of AdamW's second moment.
    pub beta2: f64,
    /// Gradients are clipped to this norm.
    pub gradient_clip: f64,
    /// The dropout rate in the projector.
    pub dropout: f64,
    /// The weight of the direction loss, 1 − cos(p, t).
    pub direction_weight: f64,
    /// The weight of the log-norm loss, (ln|p| − ln|t|)².
    pub log_norm_weight: f64,
    /// The projector's hidden width; 0 is four times the encoder's width.
    pub projector_hidden: u32,
    /// The metric of InfoNCE, mining, the queue and retrieval: `cosine`, `centred` or `whitened`. The direction and
    /// log-norm losses always use the vectors themselves. Statistics are fitted once, on the training split's teachers.
    pub metric: Metric,
    /// The share of the largest variance that whitening adds to every variance. A smaller value distinguishes
    /// directions of small variance better.
    pub whitening_eps: f64,
    /// Scale each dimension of the encoder's vectors to mean 0 and deviation 1 before the projector.
    pub standardize: bool,
    /// Start the projector's LayerNorm at the teachers' deviation and mean instead of 1 and 0. Absent: true unless the
    /// metric is `cosine`. A middle layer's states are so long that a whitened loss cannot distinguish the outputs of a
    /// fresh LayerNorm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_at_teachers: Option<bool>,
    /// Pairs of a rank that are computed at once; 0 is all. A smaller value takes less memory and more time.
    pub micro_batch: u32,
    /// Steps between checkpoints; with 0, only `checkpoint_minutes` decides.
    pub checkpoint_every: u64,
    /// Minutes between checkpoints; with 0, only `checkpoint_every` decides.
    pub checkpoint_minutes: f64,
    /// The number of newest checkpoints that are kept, beside the best.
    pub checkpoints_kept: u32,
    /// Steps between validations on held-out pairs; 0 turns them off, and then no checkpoint is the best.
    pub validate_every: u64,
    /// The number of held-out pairs in a validation.
    pub validation_pairs: u32,
    /// The longest time of a step, in seconds. A longer step counts as hung, and the gang is formed again.
    pub step_timeout_s: f64,
    /// The fewest ranks to train with.
    pub min_ranks: u32,
    /// The most ranks to train with; 0 takes every worker.
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
    /// Returns true if the projector's LayerNorm starts at the teachers' statistics.
    #[must_use]
    pub fn starts_at_teachers(&self) -> bool {
        self.start_at_teachers.unwrap_or(self.metric != Metric::Cosine)
    }

    /// Returns true if statistics are fitted on the training split before the first step.
    #[must_use]
    pub fn fits_statistics(&self) -> bool {
        self.metric != Metric::Cosine || self.standardize || self.starts_at_teachers()
    }
}

/// The final evaluation (`[evaluate]`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluateSection {
    /// The number of held-out pairs in the retrieval benchmark.
    pub benchmark_pairs: u64,
    /// The number of held-out instructions to answer, if the job has Stage B.
    pub answers: u32,
    /// The longest answer, in tokens.
    pub max_answer_tokens: u32,
    /// The model that compares answers. Absent: none.
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

/// The local processes of a job that runs its own coordinator, and the job's share of a coordinator's workers (`[workers]`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkersSection {
    /// The number of local worker processes.
    pub local: u32,
    /// The number format of products with frozen weights: `f32`, `bf16` or `auto`. On the CPU `auto` takes bf16 where oneDNN makes it faster.
    pub compute: Compute,
    /// The priority among the jobs of one coordinator, from -100 to 100: a higher one gets workers first. Absent: 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// The largest number of workers that work for this job at the same time. Absent or 0: no limit.
    #[serde(skip_serializing_if = "is_none_at_all")]
    pub at_most: u32,
}

/// The number format of products with frozen weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// The faster of the two on the worker's machine.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, with sums in 32.
    Bf16,
}

impl Compute {
    /// Returns its name in the job file and for `llink-worker --compute`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl Default for WorkersSection {
    fn default() -> Self {
        Self {
            local: 2,
            compute: Compute::Auto,
            priority: 0,
            at_most: 0,
        }
    }
}

fn is_zero(priority: &i32) -> bool {
    *priority == 0
}

fn is_none_at_all(workers: &u32) -> bool {
    *workers == 0
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
