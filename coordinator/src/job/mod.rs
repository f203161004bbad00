//! The job file: its keys, their defaults, and their checks.
//!
//! It is parsed once by [`parse`], checked once by [`check`], and then trusted everywhere.

mod check;
mod cleaning;
mod error;
mod export;
mod judge;
mod models;
mod parse;
mod recipe;
mod source;
mod synthesize;
mod track;
mod warnings;

pub use cleaning::{CleaningSection, NearDuplicates, Numbers};
pub use error::JobFileError;
use error::Problem;
pub use export::{ExportSection, model_name};
pub use judge::JudgeSection;
pub use models::{
    DecoderModel, EncoderModel, ModelsSection, PoolingName, RANDOM_MODEL, TINY_MODEL, is_built_in, is_gguf,
};
pub use parse::parse;
pub use recipe::Recipe;
pub use source::{ColumnName, CompressionName, FormatName, SourceEntry, Sources};
pub use synthesize::{PromptEntry, SynthesizeSection};
pub use track::TrackSection;
pub use warnings::warnings;

use llink_proto::settings::{AlignSettings, EmbedSettings, InstructSettings, at_least, between, zero};
use serde::{Deserialize, Serialize};

/// A whole job file. Only `corpus` is required.
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
    pub embed: EmbedSettings,
    /// The settings of Stage A.
    #[serde(default)]
    pub align: AlignSettings,
    /// The settings of Stage B, which needs `[instructions]`. Absent: no Stage B.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruct: Option<InstructSettings>,
    /// The settings of the evaluation.
    #[serde(default)]
    pub evaluate: EvaluateSection,
    /// The description of the exported bundle.
    #[serde(default)]
    pub export: ExportSection,
    /// The programs that are told the job's figures and its end. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track: Option<TrackSection>,
    /// Local worker processes, and the job's share of a coordinator's workers.
    #[serde(default)]
    pub workers: WorkersSection,
}

impl JobFile {
    /// Returns the URL of each endpoint that the job names and the variable of its key, each with its own key in the job file.
    pub fn endpoints(&self) -> Vec<[(&'static str, &str); 2]> {
        let synthesize = self
            .synthesize
            .iter()
            .map(|section| [("synthesize.url", &*section.url), ("synthesize.api_key_env", &*section.api_key_env)]);
        let judge = self.evaluate.judge.iter().map(|section| {
            [("evaluate.judge.url", &*section.url), ("evaluate.judge.api_key_env", &*section.api_key_env)]
        });
        synthesize.chain(judge).collect()
    }

    /// Passes the path of each source, and of the direct answers, through `f`.
    pub fn change_files(&mut self, mut f: impl FnMut(&str) -> String) {
        let instructions = self.instructions.as_mut().map(|section| &mut section.source);
        for sources in [Some(&mut self.corpus.source), instructions, self.evaluate.set.as_mut()].into_iter().flatten() {
            sources.change_paths(&mut f);
        }
        if let Some(judge) = &mut self.evaluate.judge {
            judge.direct_answers = judge.direct_answers.as_deref().map(f);
        }
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

llink_proto::settings! {
    /// The parallel corpus and its split (`[corpus]`).
    pub struct CorpusSection = "corpus" {
        result {
            /// `"sample"`, or files, plain or compressed. A source whose name does not tell how to read it gets a table of its
            /// own.
            source: Sources = Sources::default();
            /// The format of sources that name none.
            #[serde(skip_serializing_if = "Option::is_none")]
            format: Option<FormatName> = None;
            /// The compression of sources that name none.
            #[serde(skip_serializing_if = "Option::is_none")]
            compression: Option<CompressionName> = None;
            /// The English column of sources that name none.
            #[serde(skip_serializing_if = "Option::is_none")]
            english_column: Option<ColumnName> = None;
            /// The foreign column of sources that name none.
            #[serde(skip_serializing_if = "Option::is_none")]
            foreign_column: Option<ColumnName> = None;
            /// The English language code of TMX sources that name none.
            #[serde(skip_serializing_if = "Option::is_none")]
            english_language: Option<String> = None;
            /// The foreign language code of TMX sources that name none.
            #[serde(skip_serializing_if = "Option::is_none")]
            foreign_language: Option<String> = None;
            /// The number of training pairs; 0 takes all.
            train_pairs: u64 = 100_000;
            /// The number of held-out pairs.
            holdout_pairs: u64 = 40_000, at_least(2.0).because("retrieval is measured on them");
            /// Foreign texts with fewer characters are dropped.
            min_chars: u32 = 1;
            /// Foreign texts with more characters are cut or dropped, as `too_long` says.
            max_chars: u32 = 256, between(1.0, 65_535.0);
            /// `cut` keeps the first `max_chars` characters of a longer text, and `drop` drops the row.
            too_long: TooLong = TooLong::Cut;
            /// The number of rows in a shard.
            shard_rows: u32 = 16_384, at_least(1.0);
        }
    }
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

llink_proto::settings! {
    /// Examples for Stage B (`[instructions]`).
    pub struct InstructionsSection = "instructions" {
        result {
            /// `"sample"`, or JSON Lines files.
            source: Sources = Sources::default();
            /// The tasks to keep; an empty list keeps all.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            tasks: Vec<String> = Vec::new();
            /// The number of training examples; 0 takes all.
            train: u64 = 40_000;
            /// The number of held-out examples for validation.
            validation: u64 = 2_000, at_least(1.0);
            /// The texts of the validation examples: `"holdout"`, or `"train"` if all instructions were made from training
            /// pairs.
            #[serde(skip_serializing_if = "ValidationFrom::is_default")]
            validation_from: ValidationFrom = ValidationFrom::Holdout;
            /// Foreign texts with fewer characters are dropped.
            min_chars: u32 = 12;
            /// Foreign texts with more characters are dropped.
            max_chars: u32 = 256, between(1.0, 65_535.0);
            /// The number of rows in a shard.
            shard_rows: u32 = 16_384, at_least(1.0);
        }
    }
}

llink_proto::settings! {
    /// The final evaluation (`[evaluate]`).
    pub struct EvaluateSection = "evaluate" {
        result {
            /// The number of held-out pairs in the retrieval benchmark.
            benchmark_pairs: u64 = 1024, at_least(2.0);
            /// The number of held-out instructions to answer, if the job has Stage B.
            answers: u32 = 200;
            /// The longest answer, in tokens.
            max_answer_tokens: u32 = 128, at_least(1.0);
            /// `true` also scores the base decoder, which reads the foreign text itself and has no adapter.
            #[serde(skip_serializing_if = "is_false")]
            base: bool = false;
            /// Sentences from outside the corpus to translate, such as FLORES: a source as in `[corpus]`. Absent: none.
            #[serde(skip_serializing_if = "Option::is_none")]
            set: Option<Sources> = None;
            /// The instruction for the sentences of `set`.
            set_instruction: String = "Translate the text to English.".into();
            /// The model that compares answers. Absent: none.
            #[serde(skip_serializing_if = "Option::is_none")]
            judge: Option<JudgeSection> = None;
        }
    }
}

llink_proto::settings! {
    /// The local processes of a job that runs its own coordinator, and the job's share of a coordinator's workers (`[workers]`).
    pub struct WorkersSection = "workers" {
        run {
            /// The number of local worker processes.
            local: u32 = 2, between(1.0, 256.0);
            /// The number format of products with frozen weights: `f32`, `bf16` or `auto`. On the CPU `auto` takes bf16 where oneDNN makes it faster.
            compute: Compute = Compute::Auto;
            /// The priority among the jobs of one coordinator, from -100 to 100: a higher one gets workers first. Absent: 0.
            #[serde(skip_serializing_if = "is_zero")]
            priority: i32 = 0, between(-100.0, 100.0);
            /// The largest number of workers that work for this job at the same time. Absent or 0: no limit.
            #[serde(with = "zero", skip_serializing_if = "Option::is_none")]
            at_most: Option<u32> = None;
        }
    }
}

/// The number format of products with frozen weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Compute {
    /// The faster of the two on the worker's machine.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, with sums in 32.
    Bf16,
}

fn is_zero(priority: &i32) -> bool {
    *priority == 0
}

/// Keeps a switch that is off out of the stages' keys.
fn is_false(switch: &bool) -> bool {
    !switch
}
