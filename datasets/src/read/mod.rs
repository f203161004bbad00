//! Readers: a source's rows, one after the other, each with the place it came from.

mod bytes;
mod jsonl;
mod lines;

use std::str::FromStr;

use crate::clean::DropReason;
use crate::rows::{Corpus, InstructionExample};
use crate::{Error, Result};
use bytes::Compression;
use lines::{Line, Lines};

/// How a source's rows are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One row a line, columns separated by tabs, no quoting, no header.
    Tsv,
    /// One JSON object a line.
    Jsonl,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "tsv" => Ok(Self::Tsv),
            "jsonl" => Ok(Self::Jsonl),
            other => Err(format!("format `{other}` is not known; use tsv or jsonl")),
        }
    }
}

impl Format {
    /// The format that a file's name tells, `.gz` and `.zst` aside.
    ///
    /// # Errors
    /// [`Error::Content`] for a name that tells none.
    pub fn of(source: &str) -> Result<Self> {
        let (_, stem) = Compression::of(source);
        match stem.rsplit_once('.').map(|(_, ending)| ending) {
            Some("tsv" | "txt") => Ok(Self::Tsv),
            Some("jsonl" | "ndjson") => Ok(Self::Jsonl),
            _ => Err(Error::Content {
                path: source.to_owned(),
                reason: "its name tells no format; set `format` to tsv or jsonl".to_owned(),
            }),
        }
    }
}

/// A row as it stands in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RawRow {
    Pair { english: String, foreign: String },
    Instruction(InstructionExample),
}

/// Which columns of a TSV file hold the two sides, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// The English side's column.
    pub english: u32,
    /// The foreign side's column.
    pub foreign: u32,
}

impl Default for Columns {
    fn default() -> Self {
        Self { english: 1, foreign: 2 }
    }
}

/// The rows of one source.
pub(crate) struct RowReader {
    lines: Lines,
    format: Format,
    corpus: Corpus,
    columns: Columns,
    label: String,
}

impl RowReader {
    pub(crate) async fn open(source: &str, format: Option<Format>, corpus: Corpus, columns: Columns) -> Result<Self> {
        let refuse = |reason: &str| Error::Content {
            path: source.to_owned(),
            reason: reason.to_owned(),
        };
        let format = match format {
            Some(format) => format,
            None => Format::of(source)?,
        };
        if format == Format::Tsv && corpus == Corpus::Instructions {
            return Err(refuse(
                "instructions are read from JSONL; a TSV file can hold pairs only",
            ));
        }
        if columns.english == 0 || columns.foreign == 0 || columns.english == columns.foreign {
            return Err(refuse(
                "english_column and foreign_column must be two different numbers from 1",
            ));
        }
        let lines = Lines::open(source).await?;
        Ok(Self {
            lines,
            format,
            corpus,
            columns,
            label: label(source),
        })
    }

    /// Bytes consumed and bytes in all.
    pub(crate) fn progress(&self) -> (u64, u64) {
        self.lines.progress()
    }

    /// The line that the last row came from, from 1.
    pub(crate) fn line(&self) -> u64 {
        self.lines.number()
    }

    /// The next row, or why it is none; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<std::result::Result<RawRow, DropReason>>> {
        let (format, corpus, columns) = (self.format, self.corpus, self.columns);
        let Some(line) = self.lines.next().await? else {
            return Ok(None);
        };
        Ok(Some(match line {
            Line::Fault(reason) => Err(reason),
            Line::Text(text) => match (format, corpus) {
                (Format::Tsv, _) => tsv_pair(text, columns),
                (Format::Jsonl, Corpus::Pairs) => jsonl::pair(text),
                (Format::Jsonl, Corpus::Instructions) => jsonl::instruction(text, &self.label),
            },
        }))
    }
}

fn tsv_pair(line: &str, columns: Columns) -> std::result::Result<RawRow, DropReason> {
    let column = |number: u32| {
        line.split('\t')
            .nth(number as usize - 1)
            .ok_or(DropReason::MissingColumn)
    };
    Ok(RawRow::Pair {
        english: column(columns.english)?.to_owned(),
        foreign: column(columns.foreign)?.to_owned(),
    })
}

/// How rows name the source they came from: the file's name, which says nothing of the machine it lay on.
pub(crate) fn label(source: &str) -> String {
    source
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(source)
        .to_owned()
}
