//! The `config.json` of an encoder: BERT, RoBERTa or XLM-R.

use std::path::Path;

use serde::Deserialize;

use crate::Result;
use crate::models::json::JsonFile;

/// The published forms of the architecture. They differ in the first position.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EncoderFamily {
    /// BERT, whose first token has position 0.
    #[default]
    Bert,
    /// RoBERTa, CamemBERT and XLM-R, whose first token has the position after the padding token's id.
    Roberta,
}

/// The `model_type`, the prefix of the names in `architectures`, and the form.
const FAMILIES: [(&str, &str, EncoderFamily); 4] = [
    ("xlm-roberta", "XLMRoberta", EncoderFamily::Roberta),
    ("roberta", "Roberta", EncoderFamily::Roberta),
    ("camembert", "Camembert", EncoderFamily::Roberta),
    ("bert", "Bert", EncoderFamily::Bert),
];
const SUPPORTED: &str = "XLMRobertaModel, RobertaModel, CamembertModel, BertModel, and these with a head";

/// The shape of an encoder. Missing fields have the defaults of Transformers' configuration classes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct EncoderConfig {
    /// The published form.
    #[serde(skip)]
    pub family: EncoderFamily,
    /// The number of rows of the word embedding.
    pub vocab_size: usize,
    /// The width of the hidden states.
    pub hidden_size: usize,
    /// The number of transformer layers.
    pub num_hidden_layers: usize,
    /// The number of attention heads. A head's width is `hidden_size / num_attention_heads`.
    pub num_attention_heads: usize,
    /// The width inside the feed-forward block.
    pub intermediate_size: usize,
    /// The number of rows of the position embedding, including RoBERTa's padding offset.
    pub max_position_embeddings: usize,
    /// The number of rows of the token type embedding. Only row 0 is used.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// The value that each LayerNorm adds to the variance.
    #[serde(default = "ten_to_minus_twelve")]
    pub layer_norm_eps: f64,
    /// The id of the padding token.
    #[serde(skip)]
    pub pad_token_id: u32,
}

impl EncoderConfig {
    /// Reads and checks `dir/config.json`.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) naming the architecture, activation or field that is not supported.
    pub fn load(dir: &Path) -> Result<Self> {
        let file = JsonFile::read(&dir.join("config.json"))?;
        // This check is first, so that a model of another kind is refused by its name.
        let kind: RawKind = file.parse()?;
        let family = file.encoder_family(&kind)?;
        file.refuse_quantized(&kind.quantization_config)?;
        let (config, raw): (Self, RawOptions) = (file.parse()?, file.parse()?);
        let option = |given: Option<String>, default: &str| given.unwrap_or_else(|| default.into());
        file.refuse_unless(&["gelu", "gelu_python"], "hidden_act", &option(raw.hidden_act, "gelu"))?;
        let positions = option(raw.position_embedding_type, "absolute");
        file.refuse_unless(&["absolute"], "position_embedding_type", &positions)?;
        if raw.is_decoder {
            return Err(file.refuse("is_decoder is true: only the bidirectional encoder is supported"));
        }
        file.check_divides("num_attention_heads", config.num_attention_heads, "hidden_size", config.hidden_size)?;
        let pad = match family {
            EncoderFamily::Bert => 0,
            EncoderFamily::Roberta => 1,
        };
        let config = Self { family, pad_token_id: raw.pad_token_id.unwrap_or(pad), ..config };
        if config.max_tokens() == 0 {
            return Err(file.refuse(format!(
                "max_position_embeddings {} leaves no position after the padding offset {}",
                config.max_position_embeddings,
                config.first_position()
            )));
        }
        Ok(config)
    }

    /// Returns the width of one attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Returns the position of a sequence's first token.
    pub fn first_position(&self) -> usize {
        match self.family {
            EncoderFamily::Bert => 0,
            EncoderFamily::Roberta => self.pad_token_id as usize + 1,
        }
    }

    /// Returns the largest number of tokens for which there are position embeddings.
    pub fn max_tokens(&self) -> usize {
        self.max_position_embeddings.saturating_sub(self.first_position())
    }
}

impl JsonFile {
    fn encoder_family(&self, kind: &RawKind) -> Result<EncoderFamily> {
        let names = kind.architectures.as_deref().unwrap_or_default();
        let named = |prefix: &str| {
            names.iter().any(|name| {
                let rest = name.strip_prefix(prefix);
                rest.is_some_and(|rest| ["Model", "For", "LMHead"].iter().any(|part| rest.starts_with(part)))
            })
        };
        let unsupported =
            |what: String| self.refuse(format!("{what} is not supported as an encoder (supported: {SUPPORTED})"));
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

#[derive(Deserialize)]
struct RawOptions {
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    pad_token_id: Option<u32>,
}

fn two() -> usize {
    2
}

fn ten_to_minus_twelve() -> f64 {
    1e-12
}
