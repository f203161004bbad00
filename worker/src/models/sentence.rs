//! The steps from an encoder's hidden states to a text's vector: pooling, dense layers and normalization. A job or the
//! folder's sentence-transformers files (`modules.json` and the files it names) choose them.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::json::JsonFile;
use super::weights::Weights;
use crate::ops::backend::Backend;
use crate::{Error, Result};

const MODULES: &str = "modules.json";
const TEXT_MODULE: &str = "sentence_bert_config.json";
const TOKENIZER: &str = "tokenizer_config.json";
const PROMPTS: &str = "config_sentence_transformers.json";

/// The pooling of hidden states to a text's vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean of all states, including those of special tokens.
    #[default]
    Mean,
    /// The state of the first token.
    Cls,
}

impl Pooling {
    /// Returns the name in job files, facts and bundles.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
        }
    }

    /// Returns the pooling of that name.
    ///
    /// # Errors
    /// [`Error::Input`] with the possible names.
    pub fn of(name: &str) -> Result<Self> {
        match name {
            "mean" => Ok(Self::Mean),
            "cls" => Ok(Self::Cls),
            other => Err(Error::Input(format!("pooling {other:?} is not supported: set it to mean or cls"))),
        }
    }
}

/// The settings by which a text becomes a vector. The default is that of the paper.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// The pooling of the hidden states.
    pub pooling: Pooling,
    /// Whether the vector is scaled to length 1.
    pub normalize: bool,
    /// The prefix of each text, which is added after the text is cut.
    pub prefix: String,
    /// Whether texts are converted to lower case.
    pub lowercase: bool,
}

impl Reading {
    pub(crate) fn text(&self, text: &str) -> String {
        let text = format!("{}{text}", self.prefix);
        if self.lowercase { text.to_lowercase() } else { text }
    }
}

/// The settings that a job chooses. The folder decides the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadingWishes {
    /// The choice of [`Reading::pooling`].
    pub pooling: Option<Pooling>,
    /// The choice of [`Reading::normalize`].
    pub normalize: Option<bool>,
    /// The choice of [`Reading::prefix`].
    pub prefix: Option<String>,
}

/// The settings in a folder's sentence-transformers files. Without such files they are those of the paper.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FolderReading {
    /// The settings by which its texts become vectors.
    pub reading: Reading,
    /// The largest number of tokens of a text, if the folder has a limit.
    pub max_tokens: Option<usize>,
    /// The folders of its dense layers, in order.
    pub dense: Vec<PathBuf>,
}

impl FolderReading {
    /// Reads the folder's files. `wishes` override them.
    ///
    /// # Errors
    /// [`Error::Model`] naming the module or pooling mode that is not supported, and what to do.
    pub fn of(dir: &Path, wishes: &ReadingWishes) -> Result<Self> {
        let mut found = Self::of_files(dir, wishes.pooling)?;
        let reading = &mut found.reading;
        reading.normalize = wishes.normalize.unwrap_or(reading.normalize);
        if let Some(prefix) = &wishes.prefix {
            reading.prefix.clone_from(prefix);
        }
        Ok(found)
    }

    fn of_files(dir: &Path, pooling: Option<Pooling>) -> Result<Self> {
        let mut found = Self::default();
        found.reading.pooling = pooling.unwrap_or_default();
        if let Some(file) = JsonFile::read_if_there(&dir.join(TEXT_MODULE))? {
            let raw: RawTextModule = file.parse()?;
            found.max_tokens = raw.max_seq_length;
            found.reading.lowercase = raw.do_lower_case;
        }
        if let Some(file) = JsonFile::read_if_there(&dir.join(PROMPTS))? {
            let raw: RawPrompts = file.parse()?;
            let default = raw.default_prompt_name.and_then(|name| raw.prompts.get(&name).cloned());
            found.reading.prefix = default.unwrap_or_default();
        }
        let Some(modules) = JsonFile::read_if_there(&dir.join(MODULES))? else {
            return Ok(found);
        };
        // Newer versions of sentence-transformers keep the limit with the tokenizer. They write 10^30 for no limit.
        if let (None, Some(file)) = (found.max_tokens, JsonFile::read_if_there(&dir.join(TOKENIZER))?) {
            let most = file.value.get("model_max_length").and_then(|most| most.as_u64());
            found.max_tokens = most.and_then(|most| usize::try_from(most).ok());
        }
        for module in modules.parse::<Vec<RawModule>>()? {
            found.add(dir, &module, pooling, &modules)?;
        }
        Ok(found)
    }

    fn add(&mut self, dir: &Path, module: &RawModule, wished: Option<Pooling>, modules: &JsonFile) -> Result<()> {
        let kind = module.kind.rsplit('.').next().unwrap_or_default();
        match kind {
            "Transformer" if module.path.is_empty() => Ok(()),
            "Transformer" => Err(modules.refuse(format!(
                "the encoder is in the folder {0}: give that folder's path (…/{0}), and `pooling` beside it",
                module.path
            ))),
            "Pooling" if wished.is_some() => Ok(()),
            "Pooling" => {
                let file = JsonFile::read(&dir.join(&module.path).join("config.json"))?;
                self.reading.pooling = pooling(&file)?;
                if file.value.get("include_prompt").and_then(|on| on.as_bool()) == Some(false) {
                    return Err(file.refuse("include_prompt is false: a mean without the prefix is not supported"));
                }
                Ok(())
            }
            "Dense" if !self.reading.normalize => {
                self.dense.push(dir.join(&module.path));
                Ok(())
            }
            "Normalize" => {
                self.reading.normalize = true;
                Ok(())
            }
            _ => Err(modules.refuse(format!(
                "the module {} is not supported in this place (supported: Transformer, Pooling, Dense, Normalize, in this \
                 order). To use the encoder without its modules, leave modules.json out of the folder and set \
                 `[models.encoder] pooling` and `normalize`",
                module.kind
            ))),
        }
    }
}

/// Returns the folders of a model's dense layers, in order. Other modules are not checked.
pub(crate) fn dense_folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let Some(modules) = JsonFile::read_if_there(&dir.join(MODULES))? else {
        return Ok(Vec::new());
    };
    let modules: Vec<RawModule> = modules.parse()?;
    let dense = modules.iter().filter(|module| module.kind.ends_with(".Dense"));
    Ok(dense.map(|module| dir.join(&module.path)).collect())
}

/// Returns the one mode that a `Pooling` module turns on.
fn pooling(file: &JsonFile) -> Result<Pooling> {
    let object = file.value.as_object().into_iter().flatten();
    let on: Vec<&str> = object
        .filter(|(key, value)| key.starts_with("pooling_mode_") && value.as_bool() == Some(true))
        .map(|(key, _)| key.as_str())
        .collect();
    let named = file.value.get("pooling_mode").and_then(|mode| mode.as_str());
    match (on.as_slice(), named) {
        (["pooling_mode_mean_tokens"], None) | ([], Some("mean")) => Ok(Pooling::Mean),
        (["pooling_mode_cls_token"], None) | ([], Some("cls")) => Ok(Pooling::Cls),
        (on, named) => {
            let modes: Vec<&str> = on.iter().copied().chain(named).collect();
            let modes = if modes.is_empty() { "none".into() } else { modes.join(", ") };
            Err(file.refuse(format!(
                "the pooling mode ({modes}) is not supported: exactly one of pooling_mode_mean_tokens and \
                 pooling_mode_cls_token. `[models.encoder] pooling` goes before it"
            )))
        }
    }
}

/// The loaded pooling, dense layers and normalization.
pub(crate) struct Head {
    pub(crate) pooling: Pooling,
    dense: Vec<Dense>,
    normalize: bool,
}

impl Head {
    pub(crate) fn load(reading: &Reading, folders: &[PathBuf], hidden: usize, device: &Device) -> Result<Self> {
        let mut dense: Vec<Dense> = Vec::with_capacity(folders.len());
        for folder in folders {
            let input = dense.last().map_or(hidden, |before| before.width);
            dense.push(Dense::load(folder, input, device)?);
        }
        Ok(Self { pooling: reading.pooling, dense, normalize: reading.normalize })
    }

    /// Returns the width of the vectors of an encoder with the width `hidden`.
    pub(crate) fn width(&self, hidden: usize) -> usize {
        self.dense.last().map_or(hidden, |dense| dense.width)
    }

    /// Maps pooled states `[B, hidden]` in f32 to `[B, width]`.
    pub(crate) fn forward(&self, pooled: Tensor) -> Result<Tensor> {
        let mut x = pooled;
        for dense in &self.dense {
            x = dense.forward(&x)?;
        }
        if self.normalize {
            // This is the formula of torch.nn.functional.normalize.
            let norm = x.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?;
            x = x.broadcast_div(&norm)?;
        }
        Ok(x)
    }
}

/// A linear map of the pooled vector, optionally followed by tanh.
struct Dense {
    weight: Tensor, // [out, in]
    bias: Option<Tensor>,
    tanh: bool,
    width: usize,
}

impl Dense {
    fn load(folder: &Path, input: usize, device: &Device) -> Result<Self> {
        let file = JsonFile::read(&folder.join("config.json"))?;
        let raw: RawDense = file.parse()?;
        let function = raw.activation_function.as_deref().unwrap_or("Tanh");
        let activation = function.rsplit('.').next().unwrap_or_default();
        if !["Tanh", "Identity"].contains(&activation) {
            let reason = format!("activation_function {function:?} is not supported (supported: Tanh, Identity)");
            return Err(file.refuse(reason));
        }
        if raw.in_features != input {
            let reason = format!("in_features is {}, but its input has width {input}", raw.in_features);
            return Err(file.refuse(reason));
        }
        let weights = Weights::open(folder, &[""], &Backend::of_tensors(device, DType::F32))?;
        let bias = raw.bias.unwrap_or(true).then(|| weights.tensor("linear.bias", &[raw.out_features]));
        Ok(Self {
            weight: weights.tensor("linear.weight", &[raw.out_features, raw.in_features])?,
            bias: bias.transpose()?,
            tanh: activation == "Tanh",
            width: raw.out_features,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.matmul(&self.weight.t()?)?;
        if let Some(bias) = &self.bias {
            x = x.broadcast_add(bias)?;
        }
        Ok(if self.tanh { x.tanh()? } else { x })
    }
}

#[derive(Deserialize)]
struct RawModule {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct RawTextModule {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Deserialize)]
struct RawPrompts {
    #[serde(default)]
    prompts: std::collections::BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

#[derive(Deserialize)]
struct RawDense {
    in_features: usize,
    out_features: usize,
    bias: Option<bool>,
    activation_function: Option<String>,
}
