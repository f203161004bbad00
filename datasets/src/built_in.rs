//! The seam for a corpus and models that a program carries inside, so that a job can run without data.

use std::fmt::Debug;

use bytes::Bytes;

use crate::Result;
use crate::read::RawRow;
use crate::rows::Corpus;

/// Rows that are made up, in the order that their seed gives.
pub type MadeRows = Box<dyn Iterator<Item = RawRow> + Send>;
/// The files of a model's folder, sorted by name.
pub type ModelFiles = Vec<(&'static str, Bytes)>;

/// A corpus and models that a program carries inside. A job names them by a word in the place of a URL.
pub trait BuiltIn: Debug + Send + Sync {
    /// Makes distinct rows, at least `rows` of them.
    ///
    /// # Errors
    /// [`crate::Error`] where there are not as many.
    fn rows(&self, corpus: Corpus, rows: u64, seed: u64) -> Result<MadeRows>;

    /// Makes the encoder of this name. A model with random weights learns its tokenizer from `texts`.
    ///
    /// # Errors
    /// [`crate::Error`] where no tokenizer can be learned.
    fn encoder(&self, name: &str, texts: Vec<String>, seed: u64) -> Result<ModelFiles>;

    /// Makes the decoder of this name, like [`BuiltIn::encoder`].
    fn decoder(&self, name: &str, texts: Vec<String>, seed: u64) -> Result<ModelFiles>;
}
