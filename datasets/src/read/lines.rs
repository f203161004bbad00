//! Reads the lines of any text file as the corpus readers do.

use super::content;
use super::pieces::Pieces;
use crate::clean::DropReason;
use crate::{Error, Result};

/// The lines of a text file or a JSON Lines file: decompressed, decoded, without byte order mark and carriage returns.
/// Memory holds one line.
pub struct Lines {
    pieces: Pieces,
}

impl Lines {
    /// Opens a text file by its URL or path.
    ///
    /// # Errors
    /// [`Error`] where it can't be read or holds no text.
    pub async fn of_text(url: &str) -> Result<Self> {
        let mut pieces = Pieces::lines(url, None).await?;
        pieces.head().await?;
        Ok(Self { pieces })
    }

    /// Opens a JSON Lines file by its URL or path.
    ///
    /// # Errors
    /// [`Error`] where it can't be read, holds no text, or JSON in another form.
    pub async fn of_json(url: &str) -> Result<Self> {
        let mut lines = Self::of_text(url).await?;
        match content::not_lines_of_json(lines.pieces.head().await?) {
            Some(reason) => Err(Error::Content { path: url.to_owned(), reason }),
            None => Ok(lines),
        }
    }

    /// Returns the next line, or why it can't be used; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<std::result::Result<String, DropReason>>> {
        Ok(self.pieces.next().await?.map(|piece| piece.map(str::to_owned)))
    }

    /// Returns notes on how the file is read, as sentences whose subject is the file.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.pieces.notes()
    }
}
