//! `config.json` of a Llama decoder.

use std::path::Path;

use candle_core::DType;
use serde::Deserialize;

use super::ConfigFile;
use crate::Result;

/// The shape of a Llama decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Rows of the embedding, and of the output head.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// How many transformer layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads: each serves `num_attention_heads / num_key_value_heads` query heads.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Added to the mean square in each RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are scaled for long contexts.
    pub rope_scaling: RopeScaling,
    /// The output head is the embedding itself.
    pub tie_word_embeddings: bool,
    /// What the weights were saved in.
    pub dtype: Option<DType>,
}

/// Scaling of the rotary frequencies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    Default,
    /// Llama 3.1 and later: low frequencies are divided by `factor`, high ones kept, those between interpolated.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context length before scaling.
        original_max_position_embeddings: usize,
    },
}

impl LlamaConfig {
    /// Reads and checks `dir/config.json`, in today's layout (`rope_parameters`, `dtype`) or the one that Llama 3.2 was
    /// published with (`rope_theta`, `rope_scaling`, `torch_dtype`).
    ///
    /// # Errors
    /// [`Error::Model`] naming the architecture, rope type, dtype, activation or field that is not supported.
    pub fn load(dir: &Path) -> Result<Self> {
        let file = ConfigFile::read(dir)?;
        let raw: RawLlama = file.parse()?;
        file.check_architecture(
            &["LlamaForCausalLM", "LlamaModel"],
            &raw.architectures,
            "llama",
            &raw.model_type,
        )?;
        file.refuse_unless(&["silu", "swish"], "hidden_act", &raw.hidden_act)?;
        file.refuse_quantized(&raw.quantization_config)?;
        for (key, on) in [("attention_bias", raw.attention_bias), ("mlp_bias", raw.mlp_bias)] {
            if on {
                return Err(file.refuse(format!("{key} is true: biases are not supported")));
            }
        }
        let kv_heads = raw.num_key_value_heads.unwrap_or(raw.num_attention_heads);
        file.check_divides(
            "num_key_value_heads",
            kv_heads,
            "num_attention_heads",
            raw.num_attention_heads,
        )?;
        let head_dim = match raw.head_dim {
            Some(width) => width,
            None => {
                file.check_divides(
                    "num_attention_heads",
                    raw.num_attention_heads,
                    "hidden_size",
                    raw.hidden_size,
                )?;
                raw.hidden_size / raw.num_attention_heads
            }
        };
        if head_dim == 0 || head_dim % 2 != 0 {
            return Err(file.refuse(format!("head_dim {head_dim} is not even: rotary positions turn pairs")));
        }
        let dtype = raw
            .dtype
            .or(raw.torch_dtype)
            .filter(|name| name != "auto")
            .map(|name| file.dtype(&name))
            .transpose()?;
        let rope = raw.rope_parameters.or(raw.rope_scaling).unwrap_or_default();
        Ok(Self {
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings: raw.max_position_embeddings,
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta: rope.rope_theta.or(raw.rope_theta).unwrap_or(10_000.0),
            rope_scaling: file.rope_scaling(&rope)?,
            tie_word_embeddings: raw.tie_word_embeddings,
            dtype,
        })
    }

    /// The rotary angular frequency of each pair of a head, `head_dim / 2` of them, scaling applied.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let half = self.head_dim / 2;
        let plain = (0..half).map(|i| {
            let exponent = (2 * i) as f32 / self.head_dim as f32;
            1.0 / (self.rope_theta as f32).powf(exponent)
        });
        match self.rope_scaling {
            RopeScaling::Default => plain.collect(),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let original = original_max_position_embeddings as f64;
                plain
                    .map(|frequency| {
                        let frequency = f64::from(frequency);
                        let wavelength = 2.0 * std::f64::consts::PI / frequency;
                        let scaled = if wavelength > original / low_freq_factor {
                            frequency / factor
                        } else if wavelength < original / high_freq_factor {
                            frequency
                        } else {
                            let smooth =
                                (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                            (1.0 - smooth) * frequency / factor + smooth * frequency
                        };
                        scaled as f32
                    })
                    .collect()
            }
        }
    }
}

impl ConfigFile {
    fn dtype(&self, name: &str) -> Result<DType> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" => Ok(DType::F32),
            "bfloat16" => Ok(DType::BF16),
            "float16" => Ok(DType::F16),
            other => Err(self.refuse(format!(
                "dtype {other:?} is not supported (supported: float32, bfloat16, float16)"
            ))),
        }
    }

    fn rope_scaling(&self, rope: &RawRope) -> Result<RopeScaling> {
        let kind = rope
            .rope_type
            .as_deref()
            .or(rope.legacy_type.as_deref())
            .unwrap_or("default");
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
            other => Err(self.refuse(format!(
                "rope type {other:?} is not supported (supported: default, llama3)"
            ))),
        }
    }
}

#[derive(Deserialize)]
struct RawLlama {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    #[serde(default = "silu")]
    hidden_act: String,
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

fn silu() -> String {
    "silu".into()
}
