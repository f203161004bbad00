//! `config.json` of an encoder: BERT, RoBERTa, XLM-R.

use std::path::Path;

use serde::Deserialize;

use super::ConfigFile;
use crate::Result;

/// The published forms of one architecture. They differ in where positions begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncoderFamily {
    /// BERT: the first token has position 0.
    Bert,
    /// RoBERTa, CamemBERT and XLM-R: the first token has the position after the padding token's id.
    Roberta,
}

/// `model_type`, how the names of its `architectures` begin, and its form.
const FAMILIES: [(&str, &str, EncoderFamily); 4] = [
    ("xlm-roberta", "XLMRoberta", EncoderFamily::Roberta),
    ("roberta", "Roberta", EncoderFamily::Roberta),
    ("camembert", "Camembert", EncoderFamily::Roberta),
    ("bert", "Bert", EncoderFamily::Bert),
];
const SUPPORTED: &str = "XLMRobertaModel, RobertaModel, CamembertModel, BertModel, and these with a head";

/// The shape of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Which of the published forms it has.
    pub family: EncoderFamily,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// How many transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads; the head width is `hidden_size / num_attention_heads`.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Rows of the position embedding, RoBERTa's padding offset included.
    pub max_position_embeddings: usize,
    /// Rows of the token type embedding; only row 0 is read.
    pub type_vocab_size: usize,
    /// Added to the variance in each LayerNorm.
    pub layer_norm_eps: f64,
    /// The padding token.
    pub pad_token_id: u32,
}

impl EncoderConfig {
    /// Reads and checks `dir/config.json`.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) naming the architecture, activation or field that is not supported.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::of(&ConfigFile::read(dir)?)
    }

    pub(super) fn of(file: &ConfigFile) -> Result<Self> {
        // First, so that a model of another kind is called that and not a BERT without its fields.
        let kind: RawKind = file.parse()?;
        let family = file.encoder_family(&kind)?;
        file.refuse_quantized(&kind.quantization_config)?;
        let raw: RawEncoder = file.parse()?;
        file.refuse_unless(&["gelu", "gelu_python"], "hidden_act", &raw.hidden_act)?;
        file.refuse_unless(&["absolute"], "position_embedding_type", &raw.position_embedding_type)?;
        if raw.is_decoder {
            return Err(file.refuse("is_decoder is true: only the bidirectional encoder is supported"));
        }
        file.check_divides(
            "num_attention_heads",
            raw.num_attention_heads,
            "hidden_size",
            raw.hidden_size,
        )?;
        let pad = match family {
            EncoderFamily::Bert => 0,
            EncoderFamily::Roberta => 1,
        };
        let config = Self {
            family,
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            intermediate_size: raw.intermediate_size,
            max_position_embeddings: raw.max_position_embeddings,
            type_vocab_size: raw.type_vocab_size,
            layer_norm_eps: raw.layer_norm_eps,
            pad_token_id: raw.pad_token_id.unwrap_or(pad),
        };
        if config.max_tokens() == 0 {
            return Err(file.refuse(format!(
                "max_position_embeddings {} leaves no position after the padding offset {}",
                config.max_position_embeddings,
                config.first_position()
            )));
        }
        Ok(config)
    }

    /// Width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// The position of a sequence's first token.
    pub fn first_position(&self) -> usize {
        match self.family {
            EncoderFamily::Bert => 0,
            EncoderFamily::Roberta => self.pad_token_id as usize + 1,
        }
    }

    /// The longest sequence that has a position embedding for each token.
    pub fn max_tokens(&self) -> usize {
        self.max_position_embeddings.saturating_sub(self.first_position())
    }
}

impl ConfigFile {
    fn encoder_family(&self, kind: &RawKind) -> Result<EncoderFamily> {
        let names = kind.architectures.as_deref().unwrap_or_default();
        let named = |prefix: &str| {
            names.iter().any(|name| {
                let rest = name.strip_prefix(prefix);
                rest.is_some_and(|rest| ["Model", "For", "LMHead"].iter().any(|part| rest.starts_with(part)))
            })
        };
        let unsupported = |what: String| {
            self.refuse(format!(
                "{what} is not supported as an encoder (supported: {SUPPORTED})"
            ))
        };
        if !names.is_empty() && !FAMILIES.iter().any(|(_, prefix, _)| named(prefix)) {
            return Err(unsupported(format!("architecture {}", names.join(", "))));
        }
        let found = match &kind.model_type {
            Some(model_type) => FAMILIES.iter().find(|(name, ..)| name == model_type),
            None => FAMILIES.iter().find(|(_, prefix, _)| named(prefix)),
        };
        match (found, &kind.model_type) {
            (Some((_, _, family)), _) => Ok(*family),
            (None, Some(model_type)) => Err(unsupported(format!("model_type {model_type:?}"))),
            (None, None) => Err(self.refuse("neither architectures nor model_type says what the model is")),
        }
    }
}

#[derive(Deserialize)]
struct RawKind {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    quantization_config: Option<serde_json::Value>,
}

/// Defaults are those of Transformers' configuration classes.
#[derive(Deserialize)]
struct RawEncoder {
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "absolute")]
    position_embedding_type: String,
    #[serde(default)]
    is_decoder: bool,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "ten_to_minus_twelve")]
    layer_norm_eps: f64,
    pad_token_id: Option<u32>,
}

fn gelu() -> String {
    "gelu".into()
}

fn absolute() -> String {
    "absolute".into()
}

fn two() -> usize {
    2
}

fn ten_to_minus_twelve() -> f64 {
    1e-12
}
