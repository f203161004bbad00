//! Reads a Moses corpus: two files, where line N of one belongs to line N of the other.

use super::compression::Compression;
use super::pieces::{Piece, Pieces};
use super::{Fault, RawRow, ReadRow};
use crate::clean::Language;
use crate::shown::ShownUrl;
use crate::{Error, Result};

pub(super) struct MosesRows {
    english: Pieces,
    foreign: Pieces,
}

impl MosesRows {
    pub(super) async fn open(english: &str, foreign: &str, compression: Option<Compression>) -> Result<Self> {
        Ok(Self {
            english: Pieces::lines(english, compression).await?,
            foreign: Pieces::lines(foreign, compression).await?,
        })
    }

    /// Returns the line number of the last row, which is the same in both files.
    pub(super) fn number(&self) -> u64 {
        self.english.number()
    }

    /// Returns the notes on each file.
    pub(super) fn notes(&self) -> Vec<(String, String)> {
        let of = |pieces: &Pieces| {
            let url = pieces.url().to_owned();
            pieces.notes().into_iter().map(move |note| (url.clone(), note))
        };
        of(&self.english).chain(of(&self.foreign)).collect()
    }

    /// Finds out how to read both files.
    pub(super) async fn begin(&mut self) -> Result<()> {
        self.english.head().await?;
        self.foreign.head().await?;
        Ok(())
    }

    pub(super) fn progress(&self) -> (u64, u64) {
        let ((a, all_a), (b, all_b)) = (self.english.progress(), self.foreign.progress());
        (a + b, all_a + all_b)
    }

    /// Returns the next row. Files of different length are an error: a line is missing at an unknown place, and every
    /// later row could pair unrelated texts.
    pub(super) async fn next(&mut self) -> Result<Option<ReadRow>> {
        let row = match (self.english.next().await?, self.foreign.next().await?) {
            (None, None) => return Ok(None),
            (Some(english), Some(foreign)) => pair(&english, &foreign),
            _ => return Err(self.unaligned().await),
        };
        Ok(Some(row))
    }

    async fn unaligned(&mut self) -> Error {
        for pieces in [&mut self.english, &mut self.foreign] {
            loop {
                match pieces.next().await {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => return error,
                }
            }
        }
        Error::Content {
            path: self.foreign.url().to_owned(),
            reason: format!(
                "has {} lines, but {} has {}: a line is missing and the rows after it do not belong together; fetch both \
                 files again",
                self.foreign.number(),
                ShownUrl::of(self.english.url()),
                self.english.number()
            ),
        }
    }
}

fn pair(english: &Piece<'_>, foreign: &Piece<'_>) -> ReadRow {
    let text = |piece: &Piece<'_>, language| match piece {
        Piece::Text(text) => Ok((*text).to_owned()),
        Piece::Fault(reason) => Err(Fault { language: Some(language), ..(*reason).into() }),
    };
    Ok(RawRow::Pair { english: text(english, Language::English)?, foreign: text(foreign, Language::Foreign)? })
}
