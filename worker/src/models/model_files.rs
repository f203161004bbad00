//! Where a decoder is read from: a folder in Hugging Face layout, or a GGUF file.

use std::path::{Path, PathBuf};

use super::backend::Backend;
use super::chat::Chat;
use super::config::LlamaConfig;
use super::conventions::Conventions;
use super::gguf::{Gguf, is_gguf};
use super::llama::PREFIXES;
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use crate::Result;

/// Refuses a folder whose tokenizer and chat template can't be used with an embedding of `rows` rows.
///
/// # Errors
/// As [`Decoder::load`](super::Decoder::load).
pub(super) fn check_folder(dir: &Path, tokenizer: Tokenizer, rows: usize) -> Result<()> {
    let tokenizer = tokenizer.for_rows(rows)?.guarded()?;
    let conventions = Conventions::read(dir, &tokenizer)?;
    // Rows that no token has are of no matter here, and too many to list where nothing is known of them.
    Chat::new(&conventions, &tokenizer, rows.min(tokenizer.vocab_size()))?;
    Ok(())
}

/// Refuses a GGUF file that can't be used as a decoder, without unpacking its weights.
///
/// # Errors
/// As [`Decoder::load`](super::Decoder::load) has them, but for those of the weights.
pub fn check_gguf(path: &Path) -> Result<()> {
    let files = ModelFiles::Gguf(Gguf::open(path)?);
    let rows = files.config()?.vocab_size;
    let tokenizer = files.tokenizer(rows)?;
    Chat::new(&files.conventions(&tokenizer)?, &tokenizer, rows)?;
    Ok(())
}

/// A decoder's files.
pub(super) enum ModelFiles {
    /// `config.json`, `tokenizer.json`, safetensors, and what goes with them.
    Folder(PathBuf),
    /// All in one.
    Gguf(Gguf),
}

impl ModelFiles {
    /// Opens `path`, a folder or a file whose name ends in `.gguf`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) and [`Error::Model`](crate::Error::Model) for a GGUF that can't be read.
    pub(super) fn open(path: &Path) -> Result<Self> {
        match path.to_str().is_some_and(is_gguf) && !path.is_dir() {
            true => Ok(Self::Gguf(Gguf::open(path)?)),
            false => Ok(Self::Folder(path.into())),
        }
    }

    /// The model's shape.
    pub(super) fn config(&self) -> Result<LlamaConfig> {
        match self {
            Self::Folder(dir) => LlamaConfig::load(dir),
            Self::Gguf(file) => LlamaConfig::of(file.path(), file.config()?),
        }
    }

    /// The tokenizer, guarded, for a model whose embedding has `rows` rows.
    pub(super) fn tokenizer(&self, rows: usize) -> Result<Tokenizer> {
        let tokenizer = match self {
            Self::Folder(dir) => Tokenizer::load(dir)?,
            Self::Gguf(file) => file.tokenizer()?,
        };
        tokenizer.for_rows(rows)?.guarded()
    }

    /// What is said beside the tokenizer.
    pub(super) fn conventions(&self, tokenizer: &Tokenizer) -> Result<Conventions> {
        match self {
            Self::Folder(dir) => Conventions::read(dir, tokenizer),
            Self::Gguf(file) => file.conventions(),
        }
    }

    /// The weights, for computing on `backend`.
    pub(super) fn weights(&self, backend: &Backend) -> Result<Weights> {
        match self {
            Self::Folder(dir) => Weights::open(dir, PREFIXES, backend),
            Self::Gguf(file) => Weights::of_gguf(file, backend),
        }
    }
}
