//! Moses: two files, line N of the one belongs to line N of the other.

use super::RawRow;
use super::compression::Compression;
use super::pieces::{Piece, Pieces};
use crate::clean::DropReason;
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

    pub(super) fn pieces(&self) -> &Pieces {
        &self.english
    }

    pub(super) fn progress(&self) -> (u64, u64) {
        let ((a, all_a), (b, all_b)) = (self.english.progress(), self.foreign.progress());
        (a + b, all_a + all_b)
    }

    /// The next row. Where one file has more lines than the other, some line is missing, nobody knows which, and every
    /// row after it would pair texts that do not belong together: that is an error, not a dropped row.
    pub(super) async fn next(&mut self) -> Result<Option<std::result::Result<RawRow, DropReason>>> {
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
                self.english.url(),
                self.english.number()
            ),
        }
    }
}

fn pair(english: &Piece<'_>, foreign: &Piece<'_>) -> std::result::Result<RawRow, DropReason> {
    match (english, foreign) {
        (Piece::Text(english), Piece::Text(foreign)) => Ok(RawRow::Pair {
            english: (*english).to_owned(),
            foreign: (*foreign).to_owned(),
        }),
        (Piece::Fault(reason), _) | (_, Piece::Fault(reason)) => Err(*reason),
    }
}
