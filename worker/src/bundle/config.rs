//! The file `config.json` holds everything that a loader needs to know about a bundle.

use std::collections::BTreeMap;

use llink_datasets::numbers::Rules;
use llink_datasets::text::SentenceRules;
use llink_proto::settings::Metric;
use serde::{Deserialize, Serialize};

use crate::models::Reading;
use crate::{Error, Result};

/// The name of the file.
pub const CONFIG: &str = "config.json";
/// The name of the projector's file.
pub const PROJECTOR: &str = "projector.safetensors";
/// The name of the slot expander's file.
pub const SLOTS: &str = "slots.safetensors";
/// The name of the file with the statistics that Stage A fitted before its first step.
pub const STATISTICS: &str = "statistics.safetensors";
/// The name of the model card.
pub const CARD: &str = "README.md";
/// The folder of the decoder with the adapter folded in.
pub const MERGED: &str = "merged";
/// The value of `model_type`.
pub const MODEL_TYPE: &str = "llink";
/// The version of the bundle format that this build writes and reads.
pub const BUNDLE_VERSION: u32 = 2;

/// The contents of a bundle's `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleConfig {
    /// The model type, always [`MODEL_TYPE`].
    pub model_type: String,
    /// The format version, [`BUNDLE_VERSION`].
    pub bundle_version: u32,
    /// The version of llink that wrote the bundle.
    pub llink_version: String,
    /// The encoder, which reads the foreign text.
    pub encoder: EncoderEntry,
    /// The decoder, which answers.
    pub decoder: DecoderEntry,
    /// The projector from encoder vectors to decoder vectors.
    pub projector: ProjectorEntry,
    /// The statistics that Stage A fitted on its training split, if it fitted any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<StatisticsEntry>,
    /// The soft slots; none without Stage B or in direct mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<SlotsEntry>,
    /// The LoRA adapter of the decoder; none without Stage B.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterEntry>,
    /// The prompt of the decoder; none without Stage B.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PromptEntry>,
}

/// The frozen encoder, its limits, and how its hidden states become the vector of a text. The vector's numbers are
/// rounded to 16-bit floats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderEntry {
    /// The name for people.
    pub name: String,
    /// The location: a path, a URL, or a path relative to the bundle's folder.
    pub source: String,
    /// SHA-256 of its files.
    pub fingerprint: String,
    /// Width of the encoder's vectors.
    pub hidden_size: usize,
    /// The most characters of a text, or of a sentence if texts are split; the rest is cut.
    pub max_chars: usize,
    /// The most tokens of a text, including special tokens; the rest is cut.
    pub max_tokens: usize,
    /// Pooling, normalization, and the prefix that is added to a text after the cut.
    pub reading: Reading,
}

/// The frozen decoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderEntry {
    /// The name for people.
    pub name: String,
    /// The location, as in [`EncoderEntry::source`].
    pub source: String,
    /// SHA-256 of its files.
    pub fingerprint: String,
    /// Width of the decoder's hidden states.
    pub hidden_size: usize,
}

/// The projector: Linear, GELU (erf), Linear, LayerNorm (eps 1e-5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectorEntry {
    /// The file of its weights.
    pub file: String,
    /// Width between its two Linear layers.
    pub hidden_size: usize,
}

/// The metric for projected and teacher vectors: cosines of (x − `metric.mean`) · `metric.matrix`. The file holds what
/// the metric needs. The projector's file already includes `encoder.mean` and `encoder.deviation`, if they exist, and
/// takes the encoder's own vectors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatisticsEntry {
    /// The file of the tensors.
    pub file: String,
    /// The metric of Stage A.
    pub metric: Metric,
}

/// The slot expander: LayerNorm without weights times the scale, Linear, GELU (erf), Linear. Then each slot gets a
/// LayerNorm and the common norm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotsEntry {
    /// The file of the expander's weights, including the scale.
    pub file: String,
    /// Number of slots in a prompt.
    pub count: usize,
    /// Width between its two Linear layers.
    pub hidden_size: usize,
    /// Ids of unused tokens that mark the places of the slots, in order; empty if the vocabulary has too few. A slot
    /// replaces the embedding of its token, so any id works.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<u32>,
    /// The norm of every slot: the median norm of the decoder's token embeddings.
    pub median_norm: f32,
    /// The number of windows of a text, which are equal parts of its tokens. Each has a projected vector, which is added to
    /// its slots before they get the common norm. 0 if the slots come from the text's own vector alone.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub windows: usize,
    /// How a text is split into sentences, each of which is read by itself and has `count` slots; none if it is not split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentences: Option<SentenceRules>,
}

/// Keeps windows out of the file where there are none.
fn is_zero(windows: &usize) -> bool {
    *windows == 0
}

/// The LoRA adapter in PEFT's format.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterEntry {
    /// The file of its options.
    pub config: String,
    /// The file of its weights.
    pub file: String,
    /// The rank r.
    pub rank: usize,
    /// The scale alpha.
    pub alpha: f64,
}

/// The prompt of the decoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptEntry {
    /// The prompt in the decoder's chat template, with `{instruction}`, and `{slots}` or `{text}`. It is tokenized as a
    /// whole. The K slots replace `{slots}`, which separates the text before and after it as a special token would.
    pub form: String,
    /// The tokens that end an answer; the first one ends the turn.
    pub stop: Vec<u32>,
    /// The most tokens of a text inside the prompt; the rest is cut. 0 when the prompt holds slots.
    #[serde(default)]
    pub text_tokens: usize,
    /// The rules for the numbers of the text, which stand on a line of their own behind the slots; none if none do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numbers: Option<Rules>,
    /// The most frequent instruction of each task in training.
    pub instructions: BTreeMap<String, String>,
}

impl BundleConfig {
    /// Parses the text `content`. Errors call the file `name`.
    ///
    /// # Errors
    /// [`Error::Model`] for another kind of file, another version, or parts that do not fit each other.
    pub fn parse(name: &str, content: &[u8]) -> Result<Self> {
        let refuse = |reason: String| Error::model(name, reason);
        let value: serde_json::Value =
            serde_json::from_slice(content).map_err(|e| refuse(format!("is not JSON: {e}")))?;
        if value["model_type"] != MODEL_TYPE {
            return Err(refuse(format!(
                "`model_type` is {}, not \"{MODEL_TYPE}\": this is not a bundle of llink",
                value["model_type"]
            )));
        }
        if value["bundle_version"] != BUNDLE_VERSION {
            return Err(refuse(format!(
                "is a bundle of version {}, written by llink {}; this build (llink {}) reads version {BUNDLE_VERSION}. Export it \
                 again with this build, or read it with that one",
                value["bundle_version"],
                value["llink_version"].as_str().unwrap_or("?"),
                env!("CARGO_PKG_VERSION"),
            )));
        }
        let config: Self = serde_json::from_value(value).map_err(|e| refuse(e.to_string()))?;
        match config.fault() {
            Some(fault) => Err(refuse(fault)),
            None => Ok(config),
        }
    }

    /// Returns the config as the text of a file.
    pub fn text(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("a config is plain data");
        format!("{text}\n")
    }

    /// Returns the first inconsistency.
    fn fault(&self) -> Option<String> {
        if let Some(slots) = &self.slots
            && !slots.ids.is_empty()
            && slots.ids.len() != slots.count
        {
            let (ids, count) = (slots.ids.len(), slots.count);
            return Some(format!("`slots.ids` has {ids} ids for {count} slots"));
        }
        if let Some(SlotsEntry { count, windows, .. }) = &self.slots
            && *windows > 0
            && !count.is_multiple_of(*windows)
        {
            return Some(format!("{windows} `slots.windows` do not divide {count} slots"));
        }
        match (&self.slots, &self.adapter, &self.prompt) {
            (_, Some(_), None) | (_, None, Some(_)) | (Some(_), None, _) => {
                Some("`adapter`, `prompt` and, if there are any, `slots` come together".into())
            }
            _ => None,
        }
    }
}
