//! Moses: two files, line N of the one belongs to line N of the other.

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

    /// The number of the last row's line, which is the same in both files.
    pub(super) fn number(&self) -> u64 {
        self.english.number()
    }

    /// What is to be told of each file.
    pub(super) fn notes(&self) -> Vec<(String, String)> {
        let of = |pieces: &Pieces| {
            let url = pieces.url().to_owned();
            pieces.notes().into_iter().map(move |note| (url.clone(), note))
        };
        of(&self.english).chain(of(&self.foreign)).collect()
    }

    /// Finds out how both files are to be read.
    pub(super) async fn begin(&mut self) -> Result<()> {
        self.english.head().await?;
        self.foreign.head().await?;
        Ok(())
    }

    pub(super) fn progress(&self) -> (u64, u64) {
        let ((a, all_a), (b, all_b)) = (self.english.progress(), self.foreign.progress());
        (a + b, all_a + all_b)
    }

    /// The next row. Where one file has more lines than the other, some line is missing, nobody knows which, and every
    /// row after it would pair texts that do not belong together: that is an error, not a dropped row.
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
        Piece::Fault(reason) => Err(Fault {
            language: Some(language),
            ..(*reason).into()
        }),
    };
    Ok(RawRow::Pair {
        english: text(english, Language::English)?,
        foreign: text(foreign, Language::Foreign)?,
    })
}
