//! The encoder as tasks use it: texts in, vectors out.

use std::path::Path;

use candle_core::{DType, Device};

use super::backend::Backend;
use super::bert::Bert;
use super::config::EncoderConfig;
use super::sentence::{FolderReading, Head, Reading, ReadingWishes};
use super::tokenizer::{SpecialTokens, Tokenizer};
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

/// A loaded encoder with its tokenizer.
pub struct Encoder {
    model: Bert,
    tokenizer: Tokenizer,
    reading: Reading,
}

impl Encoder {
    /// Loads a folder in Hugging Face layout and converts its weights to `dtype` on `device`. Texts are read as the folder's
    /// sentence-transformers files say; where it has none the mean of all states is a text's vector.
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
        Self::with_wishes(dir, &ReadingWishes::default(), backend)
    }

    /// As [`Encoder::load_on`], reading texts as `reading` says and not as the folder does.
    ///
    /// # Errors
    /// As [`Encoder::load`].
    pub fn load_as(dir: &Path, reading: &Reading, backend: &Backend) -> Result<Self> {
        let wishes = ReadingWishes {
            pooling: Some(reading.pooling),
            normalize: Some(reading.normalize),
            prefix: Some(reading.prefix.clone()),
        };
        let loaded = Self::with_wishes(dir, &wishes, backend)?;
        Ok(Self {
            reading: reading.clone(),
            ..loaded
        })
    }

    fn with_wishes(dir: &Path, wishes: &ReadingWishes, backend: &Backend) -> Result<Self> {
        let config = EncoderConfig::load(dir)?;
        let tokenizer = Tokenizer::load(dir)?.for_rows(config.vocab_size)?;
        let FolderReading { reading, dense, .. } = FolderReading::of(dir, wishes)?;
        let head = Head::load(&reading, &dense, config.hidden_size, backend.device())?;
        Ok(Self {
            model: Bert::load(dir, head, backend)?,
            tokenizer,
            reading,
        })
    }

    /// Width of the vectors.
    pub fn width(&self) -> usize {
        self.model.width()
    }

    /// How texts are read.
    pub fn reading(&self) -> &Reading {
        &self.reading
    }

    /// The model's shape.
    pub fn config(&self) -> &EncoderConfig {
        self.model.config()
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Token ids of each text, cut as `limits` says: characters first, then tokens. The prefix comes before what was cut.
    ///
    /// # Errors
    /// When the tokenizer can't encode a text, or the model has no embedding for one of its tokens.
    pub fn tokenize(&self, texts: &[impl AsRef<str>], limits: TextLimits) -> Result<Vec<Vec<u32>>> {
        let texts: Vec<String> = texts
            .iter()
            .map(|text| self.reading.text(limits.cut(text.as_ref())))
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut ids = self.tokenizer.encode_batch(&texts, SpecialTokens::Add)?;
        let most = limits.max_tokens.min(self.config().max_tokens());
        ids.iter_mut().for_each(|ids| ids.truncate(most));
        Ok(ids)
    }

    /// The vector of each text, in the order of `texts`.
    ///
    /// A batch holds at most `token_budget` tokens, padding counted. `progress` is told after each batch how many
    /// tokens are done so far.
    ///
    /// # Errors
    /// As [`Encoder::tokenize`]; [`Error::Tensor`](crate::Error::Tensor) when the device fails.
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
    /// As [`Encoder::embed`]; also [`Error::Input`](crate::Error::Input) for an id outside the vocabulary, and for more
    /// tokens than the model has positions.
    pub fn embed_ids(
        &self,
        ids: &[Vec<u32>],
        token_budget: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Vec<Vec<f32>>> {
        self.model.vectors(ids, token_budget, progress)
    }
}
