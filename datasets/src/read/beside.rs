//! Reads two files in step, where row N of one belongs to row N of the other: the text files of a Moses corpus, or two files
//! of JSON lines or Parquet.

use super::format::{Column, Columns, Format, Source};
use super::pieces::Pieces;
use super::{Corpus, Fault, RawRow, ReadRow, RowReader};
use crate::clean::Language;
use crate::shown::ShownUrl;
use crate::{Error, Result};

/// The column of a text, unless the source names another.
const TEXT: &str = "text";

pub(crate) struct BesideRows {
    /// The reader of each side, whose pairs have the text as their English.
    english: RowReader,
    foreign: RowReader,
    urls: [String; 2],
    format: Format,
}

impl BesideRows {
    pub(super) async fn open(source: &Source, format: Format, foreign: &str) -> Result<Self> {
        Ok(Self {
            english: side(source, format, &source.url, &source.columns.english).await?,
            foreign: side(source, format, foreign, &source.columns.foreign).await?,
            urls: [source.url.clone(), foreign.to_owned()],
            format,
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

    /// Returns the next row. Files of different length are an error: a row is missing at an unknown place, and every later
    /// row could pair unrelated texts.
    pub(super) async fn next(&mut self) -> Result<Option<ReadRow>> {
        match (Box::pin(self.english.next()).await?, Box::pin(self.foreign.next()).await?) {
            (None, None) => Ok(None),
            (Some(english), Some(foreign)) => Ok(Some(pair(english, foreign))),
            (english, _) => self.unaligned(english.is_none()).await,
        }
    }

    async fn unaligned(&mut self, english_is_shorter: bool) -> Result<Option<ReadRow>> {
        let [english, foreign] = &self.urls;
        if self.format != Format::Moses {
            let (shorter, longer) = if english_is_shorter { (english, foreign) } else { (foreign, english) };
            let reason = format!(
                "has fewer rows than {}: the rows of the two files do not belong together; fetch both again",
                ShownUrl::of(longer)
            );
            return Err(Error::Content { path: shorter.clone(), reason });
        }
        for side in [&mut self.english, &mut self.foreign] {
            while Box::pin(side.next()).await?.is_some() {}
        }
        let reason = format!(
            "has {} lines, but {} has {}: a line is missing and the rows after it do not belong together; fetch both files again",
            self.foreign.place(),
            ShownUrl::of(english),
            self.english.place()
        );
        Err(Error::Content { path: foreign.clone(), reason })
    }
}

async fn side(source: &Source, format: Format, url: &str, column: &Column) -> Result<RowReader> {
    if format == Format::Moses {
        let mut lines = Pieces::lines(url, source.compression).await?;
        lines.head().await?;
        let parse = |line: &str| Ok(RawRow::Pair { english: line.to_owned(), foreign: String::new() });
        return Ok(RowReader::Lines { lines, parse: Box::new(parse) });
    }
    let column = Column::Name(column.name(TEXT));
    let columns = Columns { english: column.clone(), foreign: column };
    let side = Source { url: url.to_owned(), foreign_url: None, columns, ..source.clone() };
    Box::pin(RowReader::open(&side, Corpus::Pairs)).await
}

fn pair(english: ReadRow, foreign: ReadRow) -> ReadRow {
    let text = |row: ReadRow, language| match row {
        Ok(RawRow::Pair { english, .. }) => Ok(english),
        Ok(RawRow::Instruction(_)) => unreachable!("the readers read pairs"),
        Err(fault) => Err(Fault { language: Some(language), ..fault }),
    };
    Ok(RawRow::Pair { english: text(english, Language::English)?, foreign: text(foreign, Language::Foreign)? })
}
