//! The encoder as tasks use it: texts in, vectors out.

use std::path::Path;

use candle_core::{DType, Device};

use super::backend::Backend;
use super::config::XlmRobertaConfig;
use super::tokenizer::{SpecialTokens, Tokenizer};
use super::xlm_roberta::XlmRoberta;
use crate::Result;

/// How much of a text the encoder reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextLimits {
    /// A text is cut after so many Unicode scalar values.
    pub max_chars: usize,
    /// Its tokens, special ones included, are cut after so many.
    pub max_tokens: usize,
}

impl Default for TextLimits {
    fn default() -> Self {
        Self {
            max_chars: 256,
            max_tokens: 256,
        }
    }
}

impl TextLimits {
    /// The text's first `max_chars` characters.
    pub fn cut<'a>(&self, text: &'a str) -> &'a str {
        match text.char_indices().nth(self.max_chars) {
            Some((end, _)) => &text[..end],
            None => text,
        }
    }
}

/// A loaded XLM-R encoder with its tokenizer.
pub struct Encoder {
    model: XlmRoberta,
    tokenizer: Tokenizer,
}

impl Encoder {
    /// Loads a folder in Hugging Face layout and converts its weights to `dtype` on `device`.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) naming what is missing, misshapen or not supported;
    /// [`Error::Io`](crate::Error::Io) for unreadable files.
    pub fn load(dir: &Path, device: &Device, dtype: DType) -> Result<Self> {
        Self::load_on(dir, &Backend::new(device, dtype))
    }

    /// As [`Encoder::load`], for a backend of the caller's choice.
    ///
    /// # Errors
    /// As [`Encoder::load`].
    pub fn load_on(dir: &Path, backend: &Backend) -> Result<Self> {
        let tokenizer = Tokenizer::load(dir)?;
        tokenizer.check_vocab_size(XlmRobertaConfig::load(dir)?.vocab_size)?;
        Ok(Self {
            model: XlmRoberta::load(dir, backend)?,
            tokenizer,
        })
    }

    /// Width of the vectors.
    pub fn hidden_size(&self) -> usize {
        self.config().hidden_size
    }

    /// The model's shape.
    pub fn config(&self) -> &XlmRobertaConfig {
        self.model.config()
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Token ids of each text, cut as `limits` says: characters first, then tokens.
    ///
    /// # Errors
    /// When the tokenizer can't encode a text.
    pub fn tokenize(&self, texts: &[impl AsRef<str>], limits: TextLimits) -> Result<Vec<Vec<u32>>> {
        let texts: Vec<&str> = texts.iter().map(|text| limits.cut(text.as_ref())).collect();
        let mut ids = self.tokenizer.encode_batch(&texts, SpecialTokens::Add)?;
        ids.iter_mut().for_each(|ids| ids.truncate(limits.max_tokens));
        Ok(ids)
    }

    /// The vector of each text, in the order of `texts`.
    ///
    /// A batch holds at most `token_budget` tokens, padding counted. `progress` is told after each batch how many
    /// tokens are done so far.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) when `limits` allow more tokens than the model has positions;
    /// [`Error::Tensor`](crate::Error::Tensor) when the device fails.
    pub fn embed(
        &self,
        texts: &[impl AsRef<str>],
        limits: TextLimits,
        token_budget: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Vec<f32>>> {
        let ids = self.tokenize(texts, limits)?;
        self.embed_ids(&ids, token_budget, progress)
    }

    /// As [`Encoder::embed`], from token ids.
    ///
    /// # Errors
    /// As [`Encoder::embed`]; also [`Error::Input`](crate::Error::Input) for an id outside the vocabulary.
    pub fn embed_ids(
        &self,
        ids: &[Vec<u32>],
        token_budget: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Vec<f32>>> {
        self.model.vectors(ids, token_budget, progress)
    }
}
