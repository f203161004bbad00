//! The encoder's interface for tasks, which maps texts to vectors.

use std::path::Path;

use candle_core::{DType, Device};

use super::batches::{Progress, Vectors};
use super::bert::Bert;
use super::config::EncoderConfig;
use super::sentence::{FolderReading, Head, Reading, ReadingWishes};
use super::tokenizer::{SpecialTokens, Tokenizer};
use crate::Result;
use crate::ops::backend::Backend;

/// The limits of a text that the encoder reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextLimits {
    /// The largest number of Unicode scalar values of a text.
    pub max_chars: usize,
    /// The largest number of tokens, including special ones.
    pub max_tokens: usize,
}

impl Default for TextLimits {
    fn default() -> Self {
        Self { max_chars: 256, max_tokens: 256 }
    }
}

impl TextLimits {
    /// Returns the text's first `max_chars` characters.
    pub fn cut<'a>(&self, text: &'a str) -> &'a str {
        let end = text.char_indices().nth(self.max_chars);
        &text[..end.map_or(text.len(), |(end, _)| end)]
    }
}

/// A loaded encoder with its tokenizer.
pub struct Encoder {
    model: Bert,
    tokenizer: Tokenizer,
    reading: Reading,
}

impl Encoder {
    /// Loads a folder in Hugging Face layout and converts its weights to `dtype` on `device`. The folder's
    /// sentence-transformers files say how texts are read. Without such files, a text's vector is the mean of all
    /// states.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) naming a part that is missing, has the wrong shape or is not supported;
    /// [`Error::Io`](crate::Error::Io) for unreadable files.
    pub fn load(dir: &Path, device: &Device, dtype: DType) -> Result<Self> {
        Self::load_on(dir, &Backend::new(device, dtype))
    }

    /// Loads an encoder as [`Encoder::load`] does, for another backend.
    pub fn load_on(dir: &Path, backend: &Backend) -> Result<Self> {
        Self::with_wishes(dir, &ReadingWishes::default(), backend)
    }

    /// Loads an encoder as [`Encoder::load_on`] does, but reads texts as `reading` says.
    pub fn load_as(dir: &Path, reading: &Reading, backend: &Backend) -> Result<Self> {
        let wishes = ReadingWishes {
            pooling: Some(reading.pooling),
            normalize: Some(reading.normalize),
            prefix: Some(reading.prefix.clone()),
        };
        let loaded = Self::with_wishes(dir, &wishes, backend)?;
        Ok(Self { reading: reading.clone(), ..loaded })
    }

    fn with_wishes(dir: &Path, wishes: &ReadingWishes, backend: &Backend) -> Result<Self> {
        let config = EncoderConfig::load(dir)?;
        let tokenizer = Tokenizer::load(dir)?.for_rows(config.vocab_size)?;
        let FolderReading { reading, dense, .. } = FolderReading::of(dir, wishes)?;
        let head = Head::load(&reading, &dense, config.hidden_size, backend.device())?;
        Ok(Self { model: Bert::load(dir, head, backend)?, tokenizer, reading })
    }

    /// Returns the width of the vectors.
    pub fn width(&self) -> usize {
        self.model.width()
    }

    /// Returns how texts are read.
    pub fn reading(&self) -> &Reading {
        &self.reading
    }

    /// Returns the model's shape.
    pub fn config(&self) -> &EncoderConfig {
        self.model.config()
    }

    /// Returns the model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Returns the token ids of each text. First its characters are cut to `limits`, then the prefix is added, and then
    /// its tokens are cut.
    ///
    /// # Errors
    /// When the tokenizer cannot encode a text, or the model has no embedding for one of its tokens.
    pub fn tokenize(&self, texts: &[impl AsRef<str>], limits: TextLimits) -> Result<Vec<Vec<u32>>> {
        let texts: Vec<String> = texts.iter().map(|text| self.reading.text(limits.cut(text.as_ref()))).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut ids = self.tokenizer.encode_batch(&texts, SpecialTokens::Add)?;
        let most = limits.max_tokens.min(self.config().max_tokens());
        ids.iter_mut().for_each(|ids| ids.truncate(most));
        Ok(ids)
    }

    /// Returns the vector of each text, in the order of `texts`.
    ///
    /// A batch holds at most `token_budget` tokens, including padding. After each batch, `progress` gets the number of
    /// tokens that are done.
    ///
    /// # Errors
    /// Those of [`Encoder::tokenize`]; [`Error::Tensor`](crate::Error::Tensor) when the device fails.
    pub fn embed(
        &self,
        texts: &[impl AsRef<str>],
        limits: TextLimits,
        token_budget: usize,
        progress: Progress<'_>,
    ) -> Result<Vectors> {
        let ids = self.tokenize(texts, limits)?;
        self.embed_ids(&ids, token_budget, progress)
    }

    /// Returns vectors as [`Encoder::embed`] does, from token ids.
    ///
    /// # Errors
    /// Those of [`Encoder::embed`]; [`Error::Input`](crate::Error::Input) for an id outside the vocabulary, or more
    /// tokens than the model has positions.
    pub fn embed_ids(&self, ids: &[Vec<u32>], token_budget: usize, progress: Progress<'_>) -> Result<Vectors> {
        self.embed_windows(ids, 0, token_budget, progress)
    }

    /// Returns the vector of each text, followed by those of its windows: the means over `windows` equal parts of its
    /// tokens, which pass through the same dense layers and normalization.
    pub fn embed_windows(
        &self,
        ids: &[Vec<u32>],
        windows: usize,
        token_budget: usize,
        progress: Progress<'_>,
    ) -> Result<Vectors> {
        self.model.vectors(ids, windows, token_budget, progress)
    }
}
