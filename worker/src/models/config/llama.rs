//! The `config.json` of a decoder with Llama's architecture: Llama, Mistral, Qwen2 or Qwen3.

use std::path::Path;

use candle_core::DType;
use serde::Deserialize;

use crate::Result;
use crate::models::json::JsonFile;
use crate::models::lora::Projection;

/// The shortest sliding window. A shorter one would cut teacher sentences of 127 tokens and a slot.
const SHORTEST_WINDOW: usize = 128;

/// The shape of a decoder with Llama's architecture.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// The number of rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// The width of the hidden states.
    pub hidden_size: usize,
    /// The width inside the feed-forward block.
    pub intermediate_size: usize,
    /// The number of transformer layers.
    pub num_hidden_layers: usize,
    /// The number of query heads.
    pub num_attention_heads: usize,
    /// The number of key and value heads. Each serves `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// The width of one head.
    pub head_dim: usize,
    /// The longest sequence. With sliding-window attention it is the window, within which every token sees all earlier
    /// ones.
    pub max_position_embeddings: usize,
    /// The value that each RMSNorm adds to the mean square.
    pub rms_norm_eps: f64,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// The scaling of the rotary frequencies for long contexts.
    pub rope_scaling: RopeScaling,
    /// Whether the output head is the embedding itself.
    pub tie_word_embeddings: bool,
    /// The linear layers that add a bias.
    pub biases: Biases,
    /// Whether each head of queries and keys has an RMSNorm, as in Qwen3.
    pub head_norms: bool,
    /// The dtype of the saved weights.
    pub dtype: Option<DType>,
}

/// The linear layers of a decoder layer that add a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Biases {
    /// Queries, keys and values have a bias, as in Qwen2.
    pub qkv: bool,
    /// The attention block's output has a bias.
    pub output: bool,
    /// The feed-forward block has biases.
    pub mlp: bool,
}

/// The model family. Families differ in properties that `config.json` does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl Family {
    const ALL: [(Self, &str, [&str; 2]); 4] = [
        (Self::Llama, "llama", ["LlamaForCausalLM", "LlamaModel"]),
        (Self::Mistral, "mistral", ["MistralForCausalLM", "MistralModel"]),
        (Self::Qwen2, "qwen2", ["Qwen2ForCausalLM", "Qwen2Model"]),
        (Self::Qwen3, "qwen3", ["Qwen3ForCausalLM", "Qwen3Model"]),
    ];

    /// Reads the family from `architectures`, else from `model_type`.
    fn of(file: &JsonFile, raw: &RawLlama) -> Result<Self> {
        let names = raw.architectures.as_deref().unwrap_or_default();
        let found = match (names, &raw.model_type) {
            ([], Some(kind)) => Self::ALL.iter().find(|(_, known, _)| known == kind),
            ([], None) => return Err(file.refuse("neither architectures nor model_type says what the model is")),
            (names, _) => Self::ALL.iter().find(|(.., known)| names.iter().any(|name| known.contains(&name.as_str()))),
        };
        found.map(|(family, ..)| *family).ok_or_else(|| match (names, &raw.model_type) {
            ([], kind) => file.refuse(format!(
                "model_type {:?} is not supported (supported: {})",
                kind.as_deref().unwrap_or_default(),
                Self::ALL.map(|(_, kind, _)| kind).join(", ")
            )),
            (names, _) => file.refuse(format!(
                "architecture {} is not supported (supported: {})",
                names.join(", "),
                Self::ALL.map(|(.., [name, _])| name).join(", ")
            )),
        })
    }
}

/// The scaling of the rotary frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// The frequencies are not scaled.
    Default,
    /// The scaling of Llama 3.1 and later. Low frequencies are divided by `factor`, high ones are kept, and those
    /// between are interpolated.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// The context length before the scaling.
        original_max_position_embeddings: usize,
    },
}

impl LlamaConfig {
    /// Reads and checks `dir/config.json`. It reads today's layout (`rope_parameters`, `dtype`) and that of Llama 3.2's
    /// publication (`rope_theta`, `rope_scaling`, `torch_dtype`).
    ///
    /// # Errors
    /// [`Error::Model`] naming the architecture, rope type, dtype, activation or field that is not supported.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::of(&JsonFile::read(&dir.join("config.json"))?)
    }

    /// Checks the content of a `config.json` as [`LlamaConfig::load`] does.
    pub(in crate::models) fn of(file: &JsonFile) -> Result<Self> {
        let raw: RawLlama = file.parse()?;
        let family = Family::of(file, &raw)?;
        let longest = raw.longest(file, family)?;
        file.refuse_unless(&["silu", "swish"], "hidden_act", raw.hidden_act.as_deref().unwrap_or("silu"))?;
        file.refuse_quantized(&raw.quantization_config)?;
        let kv_heads = raw.num_key_value_heads.unwrap_or(raw.num_attention_heads);
        file.check_divides("num_key_value_heads", kv_heads, "num_attention_heads", raw.num_attention_heads)?;
        let head_dim = match raw.head_dim {
            Some(width) => width,
            None if family == Family::Qwen3 => 128,
            None => {
                file.check_divides("num_attention_heads", raw.num_attention_heads, "hidden_size", raw.hidden_size)?;
                raw.hidden_size / raw.num_attention_heads
            }
        };
        if head_dim == 0 || head_dim % 2 != 0 {
            return Err(file.refuse(format!("head_dim {head_dim} is not even: rotary positions turn pairs")));
        }
        let dtype =
            raw.dtype.or(raw.torch_dtype).filter(|name| name != "auto").map(|name| file.dtype(&name)).transpose()?;
        let rope = raw.rope_parameters.or(raw.rope_scaling).unwrap_or_default();
        Ok(Self {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings: longest,
            biases: Biases {
                qkv: raw.attention_bias || family == Family::Qwen2,
                output: raw.attention_bias && family != Family::Qwen2,
                mlp: raw.mlp_bias,
            },
            head_norms: family == Family::Qwen3,
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta: rope.rope_theta.or(raw.rope_theta).unwrap_or(10_000.0),
            rope_scaling: file.rope_scaling(&rope)?,
            tie_word_embeddings: raw.tie_word_embeddings,
            dtype,
        })
    }

    pub(in crate::models) const fn has_bias(&self, projection: Projection) -> bool {
        match projection {
            Projection::QProj | Projection::KProj | Projection::VProj => self.biases.qkv,
            Projection::OProj => self.biases.output,
            Projection::GateProj | Projection::UpProj | Projection::DownProj => self.biases.mlp,
        }
    }

    /// Returns the rotary angular frequency of each pair of a head, `[head_dim / 2]`, with the scaling applied.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let half = self.head_dim / 2;
        let plain = (0..half).map(|i| {
            let exponent = (2 * i) as f32 / self.head_dim as f32;
            1.0 / (self.rope_theta as f32).powf(exponent)
        });
        let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
            self.rope_scaling
        else {
            return plain.collect();
        };
        let original = original_max_position_embeddings as f64;
        let scaled = |frequency: f32| {
            let frequency = f64::from(frequency);
            let wavelength = 2.0 * std::f64::consts::PI / frequency;
            if wavelength > original / low_freq_factor {
                frequency / factor
            } else if wavelength < original / high_freq_factor {
                frequency
            } else {
                let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        };
        plain.map(|frequency| scaled(frequency) as f32).collect()
    }
}

impl RawLlama {
    /// Returns the longest sequence whose tokens all see each other. A sliding window counts if the model uses it.
    fn longest(&self, file: &JsonFile, family: Family) -> Result<usize> {
        let slides = match (family, &self.layer_types) {
            (_, Some(kinds)) => kinds.iter().any(|kind| kind == "sliding_attention"),
            (Family::Mistral, None) => true,
            (Family::Qwen2 | Family::Qwen3, None) => self.use_sliding_window,
            (Family::Llama, None) => false,
        };
        let window = self.sliding_window.filter(|_| slides).unwrap_or(usize::MAX);
        if window < SHORTEST_WINDOW {
            return Err(file.refuse(format!(
                "sliding_window {window} is shorter than the {SHORTEST_WINDOW} tokens of a teacher sentence: attention that slides \
                 within a sentence is not supported"
            )));
        }
        Ok(self.max_position_embeddings.min(window))
    }
}

impl JsonFile {
    fn dtype(&self, name: &str) -> Result<DType> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" => Ok(DType::F32),
            "bfloat16" => Ok(DType::BF16),
            "float16" => Ok(DType::F16),
            other => {
                Err(self.refuse(format!("dtype {other:?} is not supported (supported: float32, bfloat16, float16)")))
            }
        }
    }

    fn rope_scaling(&self, rope: &RawRope) -> Result<RopeScaling> {
        let kind = rope.rope_type.as_deref().or(rope.legacy_type.as_deref()).unwrap_or("default");
        match kind {
            "default" => Ok(RopeScaling::Default),
            "llama3" => {
                let need = |key: &str, value: Option<f64>| {
                    value
                        .filter(|v| v.is_finite() && *v > 0.0)
                        .ok_or_else(|| self.refuse(format!("rope type \"llama3\" needs a positive {key}")))
                };
                Ok(RopeScaling::Llama3 {
                    factor: need("factor", rope.factor)?,
                    low_freq_factor: need("low_freq_factor", rope.low_freq_factor)?,
                    high_freq_factor: need("high_freq_factor", rope.high_freq_factor)?,
                    original_max_position_embeddings: need(
                        "original_max_position_embeddings",
                        rope.original_max_position_embeddings,
                    )? as usize,
                })
            }
            other => Err(self.refuse(format!("rope type {other:?} is not supported (supported: default, llama3)"))),
        }
    }
}

#[derive(Deserialize)]
struct RawLlama {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    hidden_act: Option<String>,
    quantization_config: Option<serde_json::Value>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    sliding_window: Option<usize>,
    #[serde(default)]
    use_sliding_window: bool,
    layer_types: Option<Vec<String>>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_parameters: Option<RawRope>,
    rope_scaling: Option<RawRope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    dtype: Option<String>,
    torch_dtype: Option<String>,
}

#[derive(Deserialize, Default)]
struct RawRope {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    legacy_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}
