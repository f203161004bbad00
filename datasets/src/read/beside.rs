//! Reads two files of JSON lines or Parquet, where row N of one belongs to row N of the other.

use super::format::Column;
use super::{Corpus, Fault, RawRow, ReadRow, RowReader, Source};
use crate::shown::ShownUrl;
use crate::{Error, Result};

/// The column of a text, unless the source names another.
const TEXT: &str = "text";

pub(super) struct BesideRows {
    /// The reader of each side, whose pairs have the text twice.
    english: RowReader,
    foreign: RowReader,
    urls: [String; 2],
}

impl BesideRows {
    pub(super) async fn open(source: &Source, foreign: &str) -> Result<Self> {
        let side = |url: &str, column: &Column| {
            let column = Column::Name(column.name(TEXT));
            let columns = super::Columns { english: column.clone(), foreign: column };
            Source { url: url.to_owned(), foreign_url: None, columns, ..source.clone() }
        };
        let english = side(&source.url, &source.columns.english);
        let foreign = side(foreign, &source.columns.foreign);
        Ok(Self {
            english: Box::pin(RowReader::open(&english, Corpus::Pairs)).await?,
            foreign: Box::pin(RowReader::open(&foreign, Corpus::Pairs)).await?,
            urls: [english.url, foreign.url],
        })
    }

    pub(super) fn notes(&self) -> Vec<(String, String)> {
        [self.english.notes(), self.foreign.notes()].concat()
    }

    /// Returns the number of the last row, which is the same in both files.
    pub(super) fn place(&self) -> u64 {
        self.english.place()
    }

    pub(super) fn progress(&self) -> (u64, u64) {
        let ((a, all_a), (b, all_b)) = (self.english.progress(), self.foreign.progress());
        (a + b, all_a + all_b)
    }

    /// Returns the next row. Files of different length are an error, as those of a Moses corpus are.
    pub(super) async fn next(&mut self) -> Result<Option<ReadRow>> {
        let both = (Box::pin(self.english.next()).await?, Box::pin(self.foreign.next()).await?);
        let text = |row: ReadRow| -> std::result::Result<String, Fault> {
            match row? {
                RawRow::Pair { english, .. } => Ok(english),
                RawRow::Instruction(_) => unreachable!("the readers read pairs"),
            }
        };
        match both {
            (None, None) => Ok(None),
            (Some(english), Some(foreign)) => {
                let pair = text(english).and_then(|english| Ok(RawRow::Pair { english, foreign: text(foreign)? }));
                Ok(Some(pair))
            }
            (english, _) => {
                let [first, second] = &self.urls;
                let (shorter, longer) = if english.is_none() { (first, second) } else { (second, first) };
                let reason = format!(
                    "has fewer rows than {}: the rows of the two files do not belong together; fetch both again",
                    ShownUrl::of(longer)
                );
                Err(Error::Content { path: shorter.clone(), reason })
            }
        }
    }
}
