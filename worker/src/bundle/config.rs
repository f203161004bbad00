//! `config.json`: everything that a loader has to know of a bundle.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::models::Reading;
use crate::{Error, Result};

/// The file's name.
pub const CONFIG: &str = "config.json";
/// The projector's file.
pub const PROJECTOR: &str = "projector.safetensors";
/// The slot expander's file.
pub const SLOTS: &str = "slots.safetensors";
/// What Stage A fitted before its first step.
pub const STATISTICS: &str = "statistics.safetensors";
/// The model card.
pub const CARD: &str = "README.md";
/// What `model_type` says.
pub const MODEL_TYPE: &str = "llink";
/// The layout of bundles that this build writes and reads.
pub const BUNDLE_VERSION: u32 = 2;

/// A bundle's `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleConfig {
    /// [`MODEL_TYPE`].
    pub model_type: String,
    /// [`BUNDLE_VERSION`].
    pub bundle_version: u32,
    /// What wrote it.
    pub llink_version: String,
    /// What reads the foreign text.
    pub encoder: EncoderEntry,
    /// What answers.
    pub decoder: DecoderEntry,
    /// From the one's vectors to the other's.
    pub projector: ProjectorEntry,
    /// What Stage A fitted on its training split; none where it fitted nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statistics: Option<StatisticsEntry>,
    /// The soft slots; none without Stage B or when it trained on the text's own tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<SlotsEntry>,
    /// LoRA on the decoder; none without Stage B.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterEntry>,
    /// What the decoder is given; none without Stage B.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<PromptEntry>,
}

/// The frozen encoder, how much of a text it reads, and how its hidden states become the text's vector, whose numbers are
/// rounded to 16-bit floats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderEntry {
    /// What people call it.
    pub name: String,
    /// Where it was found: a path, a URL, or a path from the bundle's own folder.
    pub source: String,
    /// SHA-256 over its files.
    pub fingerprint: String,
    /// Width of its vectors.
    pub hidden_size: usize,
    /// A text is cut after so many characters.
    pub max_chars: usize,
    /// Its tokens, special ones included, are cut after so many.
    pub max_tokens: usize,
    /// Pooling, normalization, and the prefix that comes before a text after it is cut.
    pub reading: Reading,
}

/// The frozen decoder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderEntry {
    /// What people call it.
    pub name: String,
    /// As [`EncoderEntry::source`].
    pub source: String,
    /// SHA-256 over its files.
    pub fingerprint: String,
    /// Width of its hidden states.
    pub hidden_size: usize,
}

/// Linear, GELU (erf), Linear, LayerNorm (eps 1e-5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectorEntry {
    /// Its weights.
    pub file: String,
    /// Width between its two Linears.
    pub hidden_size: usize,
}

/// What projected and teacher vectors are compared in: cosines of (x − `metric.mean`) · `metric.matrix`, of which the file has what the
/// metric needs. `encoder.mean` and `encoder.deviation`, where they are, are folded into the projector's file already: it takes the
/// encoder's own vectors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatisticsEntry {
    /// The tensors.
    pub file: String,
    /// `cosine`, `centred` or `whitened`.
    pub metric: String,
}

/// LayerNorm without weights times the scale, Linear, GELU (erf), Linear; then for each slot LayerNorm, and the norm of every slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotsEntry {
    /// The expander's weights, scale included.
    pub file: String,
    /// Slots in a prompt.
    pub count: usize,
    /// Width between its two Linears.
    pub hidden_size: usize,
    /// Ids that no text uses and that hold the slots' places, in order; empty if the vocabulary has none to spare. A slot takes the
    /// place of its token's embedding, so that any id does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<u32>,
    /// The norm of every slot: the median of those of the decoder's token embeddings.
    pub median_norm: f32,
}

/// LoRA, in PEFT's layout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterEntry {
    /// Its options.
    pub config: String,
    /// Its weights.
    pub file: String,
    /// r.
    pub rank: usize,
    /// alpha.
    pub alpha: f64,
}

/// What the decoder is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptEntry {
    /// By the decoder's chat template, with `{instruction}`, and `{slots}` or `{text}`. It is tokenized as a whole; the K slots stand
    /// where `{slots}` does, and part the text as a special token would.
    pub form: String,
    /// The tokens that end an answer; the first one is the end of the turn.
    pub stop: Vec<u32>,
    /// Of a text that stands in the prompt itself: its tokens are cut after so many. 0 when slots stand there.
    #[serde(default)]
    pub text_tokens: usize,
    /// The instruction of each task that training saw most often.
    pub instructions: BTreeMap<String, String>,
}

impl BundleConfig {
    /// The config whose text is `content`; `name` is how errors call the file.
    ///
    /// # Errors
    /// [`Error::Model`] for a file that is no bundle's, one of another version, and parts that do not fit each other.
    pub fn parse(name: &str, content: &[u8]) -> Result<Self> {
        let refuse = |reason: String| Error::Model {
            path: name.into(),
            reason,
        };
        let value: serde_json::Value =
            serde_json::from_slice(content).map_err(|e| refuse(format!("is not JSON: {e}")))?;
        if value["model_type"] != MODEL_TYPE {
            return Err(refuse(format!(
                "`model_type` is {}, not \"{MODEL_TYPE}\": this is no bundle of llink's",
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

    /// As a file.
    #[must_use]
    pub fn text(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("a config is plain data");
        format!("{text}\n")
    }

    /// The first thing that does not fit.
    fn fault(&self) -> Option<String> {
        if let Some(slots) = &self.slots
            && !slots.ids.is_empty()
            && slots.ids.len() != slots.count
        {
            let (ids, count) = (slots.ids.len(), slots.count);
            return Some(format!("`slots.ids` has {ids} ids for {count} slots"));
        }
        match (&self.slots, &self.adapter, &self.prompt) {
            (_, Some(_), None) | (_, None, Some(_)) | (Some(_), None, _) => {
                Some("`adapter`, `prompt` and, if there are any, `slots` come together".into())
            }
            _ => None,
        }
    }
}
