//! `tokenizer.json`: texts to token ids and back.

use std::path::Path;

use super::json;
use super::placeholder::placeholder;
use crate::{Error, Result};

/// A loaded tokenizer. Truncation and padding that the file may ask for are off: llink cuts token lists itself.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: String,
    /// Rows of the model's embedding: ids from here on can't be read.
    rows: usize,
}

/// Whether the tokens that the file's template adds (`<s>`, `<|begin_of_text|>`, …) come along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// As the template says.
    Add,
    /// The text's own tokens only.
    Omit,
}

impl Tokenizer {
    /// Reads `dir/tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`] when it can't be read, [`Error::Model`] when it is not a tokenizer that this build supports.
    pub fn load(dir: &Path) -> Result<Self> {
        let file = dir.join("tokenizer.json");
        let path = file.display().to_string();
        let bytes = std::fs::read(&file).map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })?;
        Self::from_bytes(&path, &bytes)
    }

    /// The tokenizer whose `tokenizer.json` is at hand; `path` is how errors call it.
    ///
    /// # Errors
    /// [`Error::Model`] when it is not a tokenizer that this build supports.
    pub fn from_bytes(path: &str, bytes: &[u8]) -> Result<Self> {
        let path = path.to_owned();
        let refuse = |reason: String| Error::Model {
            path: path.clone(),
            reason,
        };
        if let Some(reason) = placeholder(bytes) {
            return Err(refuse(reason));
        }
        let said = |error: tokenizers::Error| refuse(error.to_string());
        let mut inner = tokenizers::Tokenizer::from_bytes(json::without_mark(bytes)).map_err(said)?;
        inner.with_truncation(None).map_err(said)?;
        inner.with_padding(None);
        Ok(Self {
            inner,
            path,
            rows: usize::MAX,
        })
    }

    /// Token ids of each text, in order, computed in parallel.
    ///
    /// # Errors
    /// [`Error::Model`] when the tokenizer can't encode a text (no unknown token, for instance).
    pub fn encode_batch(&self, texts: &[&str], special: SpecialTokens) -> Result<Vec<Vec<u32>>> {
        let encodings = self
            .inner
            .encode_batch_fast(texts.to_vec(), special == SpecialTokens::Add)
            .map_err(|error| self.refuse(error))?;
        encodings
            .iter()
            .map(|encoding| self.readable(encoding.get_ids().to_vec()))
            .collect()
    }

    /// Token ids of one text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_batch`].
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, special == SpecialTokens::Add)
            .map_err(|error| self.refuse(error))?;
        self.readable(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// [`Error::Model`] when the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|error| self.refuse(error))
    }

    /// The id of a token by its text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The id of a token that has to be there.
    ///
    /// # Errors
    /// [`Error::Model`] with the token's name when the vocabulary lacks it.
    pub fn require(&self, token: &str) -> Result<u32> {
        self.token_to_id(token).ok_or_else(|| Error::Model {
            path: self.path.clone(),
            reason: format!("the vocabulary lacks the token {token}"),
        })
    }

    /// The tokenizer of a model whose embedding has `rows` rows. A tokenizer may have more tokens (one for padding that was
    /// added later, for instance) as long as none of them occurs.
    ///
    /// # Errors
    /// [`Error::Model`] when the tokens that stand in every text have no row.
    pub(crate) fn for_rows(self, rows: usize) -> Result<Self> {
        let bounded = Self { rows, ..self };
        bounded.encode("", SpecialTokens::Add)?;
        Ok(bounded)
    }

    /// Refuses a token that the model has no embedding for.
    fn readable(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        let Some(id) = ids.iter().find(|id| **id as usize >= self.rows) else {
            return Ok(ids);
        };
        let (token, rows) = (self.inner.id_to_token(*id).unwrap_or_default(), self.rows);
        Err(Error::Model {
            path: self.path.clone(),
            reason: format!(
                "a text has the token {token:?} with id {id}, and the model has embeddings for ids below {rows} alone \
                 (config.json's vocab_size): enlarge its embedding, or take the tokenizer that belongs to it"
            ),
        })
    }

    fn refuse(&self, error: tokenizers::Error) -> Error {
        Error::Model {
            path: self.path.clone(),
            reason: error.to_string(),
        }
    }
}
