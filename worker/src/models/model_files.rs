//! The source of a decoder: a folder in Hugging Face layout, or a GGUF file.

use std::path::{Path, PathBuf};

use super::chat::Chat;
use super::config::LlamaConfig;
use super::conventions::Conventions;
use super::gguf::{Gguf, is_gguf};
use super::json::JsonFile;
use super::llama::PREFIXES;
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use crate::Result;
use crate::ops::backend::Backend;

/// Refuses a folder whose tokenizer and chat template cannot be used with an embedding of `rows` rows.
pub(super) fn check_folder(dir: &Path, tokenizer: Tokenizer, rows: usize) -> Result<()> {
    let tokenizer = tokenizer.for_rows(rows)?.guarded()?;
    let conventions = Conventions::read(dir, &tokenizer)?;
    // Rows without a token do not matter here, and a large unknown `rows` would be too many to list.
    Chat::new(&conventions, &tokenizer, rows.min(tokenizer.vocab_size())).map(|_| ())
}

/// Refuses a GGUF file that cannot be used as a decoder, without unpacking its weights.
///
/// # Errors
/// Those of [`Decoder::load`](super::Decoder::load) without those of the weights.
pub fn check_gguf(path: &Path) -> Result<()> {
    let files = ModelFiles::Gguf(Gguf::open(path)?);
    let rows = files.config()?.vocab_size;
    let tokenizer = files.tokenizer(rows)?;
    Chat::new(&files.conventions(&tokenizer)?, &tokenizer, rows).map(|_| ())
}

pub(super) enum ModelFiles {
    /// A folder with `config.json`, `tokenizer.json`, safetensors and the files of the chat format.
    Folder(PathBuf),
    /// One file with everything.
    Gguf(Gguf),
}

impl ModelFiles {
    /// Opens `path`, a folder or a file whose name ends in `.gguf`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) and [`Error::Model`](crate::Error::Model) for a GGUF file that cannot be read.
    pub(super) fn open(path: &Path) -> Result<Self> {
        match path.to_str().is_some_and(is_gguf) && !path.is_dir() {
            true => Ok(Self::Gguf(Gguf::open(path)?)),
            false => Ok(Self::Folder(path.into())),
        }
    }

    pub(super) fn config(&self) -> Result<LlamaConfig> {
        match self {
            Self::Folder(dir) => LlamaConfig::load(dir),
            Self::Gguf(file) => LlamaConfig::of(&JsonFile { path: file.path().to_owned(), value: file.config()? }),
        }
    }

    /// Returns the guarded tokenizer of a model whose embedding has `rows` rows.
    pub(super) fn tokenizer(&self, rows: usize) -> Result<Tokenizer> {
        let tokenizer = match self {
            Self::Folder(dir) => Tokenizer::load(dir)?,
            Self::Gguf(file) => file.tokenizer()?,
        };
        tokenizer.for_rows(rows)?.guarded()
    }

    pub(super) fn conventions(&self, tokenizer: &Tokenizer) -> Result<Conventions> {
        match self {
            Self::Folder(dir) => Conventions::read(dir, tokenizer),
            Self::Gguf(file) => file.conventions(),
        }
    }

    pub(super) fn weights(&self, backend: &Backend) -> Result<Weights> {
        match self {
            Self::Folder(dir) => Weights::open(dir, PREFIXES, backend),
            Self::Gguf(file) => Weights::of_gguf(file, backend),
        }
    }
}
