//! Reads the rows of a source one after the other, each with its place in the source.
//!
//! Faulty input is treated alike in every format. A row that can't be used is dropped and counted by its reason (broken
//! UTF-8, a NUL byte, a missing column, …). A file that can't be trusted as a whole is an error: truncated or broken
//! compression, an archive, two Moses files of different length, broken Parquet. Byte order marks and carriage returns
//! at the end of a line are not part of a text. The first bytes of a file tell its compression and encoding. A name
//! that says otherwise is reported and not followed.

mod beside;
mod bytes;
mod compression;
mod content;
mod encoding;
mod format;
mod instructions;
mod jsonl;
mod lines;
mod parquet;
mod pieces;
mod tmx;

pub use compression::Compression;
pub use format::{Column, Columns, Format, Languages, Source};
pub use jsonl::{json_value, strict_json};
pub use lines::Lines;

use std::collections::BTreeMap;

use crate::clean::{DropReason, Language};
use crate::rows::{Corpus, InstructionExample};
use crate::store::object_name;
use crate::{Error, Result};
use beside::BesideRows;
use parquet::ParquetRows;
use pieces::Pieces;
use tmx::TmxRows;

/// A row as it stands in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawRow {
    /// A sentence in both languages.
    Pair {
        /// The English side.
        english: String,
        /// The other language's side.
        foreign: String,
    },
    /// An instruction whose text still holds [`crate::clean::FOREIGN_PLACEHOLDER`].
    Instruction(InstructionExample),
}

/// A row, or the reason why there is none.
pub(crate) type ReadRow = std::result::Result<RawRow, Fault>;

/// The reason why a row is dropped, with a hint for finding and fixing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) reason: DropReason,
    /// The side at fault; `None` if it is both sides or the whole row.
    pub(crate) language: Option<Language>,
    /// A hint about the actual content.
    pub(crate) hint: Option<String>,
}

impl From<DropReason> for Fault {
    fn from(reason: DropReason) -> Self {
        Self { reason, language: reason.language(), hint: None }
    }
}

/// Reads a row from a line.
type Parse = Box<dyn Fn(&str) -> ReadRow + Send + Sync>;

/// The rows of one source.
pub(crate) enum RowReader {
    Lines { lines: Pieces, parse: Parse },
    Beside(Box<BesideRows>),
    Tmx(TmxRows),
    Parquet(Box<ParquetRows>),
}

impl RowReader {
    pub(crate) async fn open(source: &Source, corpus: Corpus) -> Result<Self> {
        let url = source.url.as_str();
        let refuse = |reason: &str| Error::Content { path: url.to_owned(), reason: reason.to_owned() };
        let (format, compression, columns) = (source.format()?, source.compression, &source.columns);
        if corpus == Corpus::Instructions && format != Format::Jsonl {
            return Err(refuse("instructions are read from JSONL; the other formats hold pairs only"));
        }
        if let (Format::Moses | Format::Jsonl | Format::Parquet, Some(foreign)) = (format, &source.foreign_url) {
            return Ok(Self::Beside(Box::new(BesideRows::open(source, format, foreign).await?)));
        }
        let parse: Parse = match format {
            Format::Tsv => {
                let [english, foreign] = tsv_columns(columns).ok_or_else(|| {
                    refuse("of a TSV file, english_column and foreign_column must be two different numbers from 1")
                })?;
                Box::new(move |line: &str| tsv_pair(line, english, foreign))
            }
            Format::Jsonl if corpus == Corpus::Instructions => {
                let label = source.label();
                Box::new(move |line: &str| instructions::instruction(line, &label))
            }
            Format::Jsonl => {
                let (english, foreign) = (columns.english.name("english"), columns.foreign.name("foreign"));
                Box::new(move |line: &str| jsonl::pair(line, &english, &foreign))
            }
            Format::Moses => {
                return Err(refuse("a Moses corpus is two files; write source = { english = \"…\", foreign = \"…\" }"));
            }
            Format::Tmx => return Ok(Self::Tmx(TmxRows::open(url, compression, source.languages.clone()).await?)),
            Format::Parquet => {
                let packed = compression.unwrap_or_else(|| Compression::of(&object_name(url)).0);
                if packed != Compression::None {
                    return Err(refuse(
                        "Parquet is compressed inside and can't be read through another compression; unpack it",
                    ));
                }
                return Ok(Self::Parquet(Box::new(ParquetRows::open(url, columns).await?)));
            }
        };
        let mut lines = Pieces::lines(url, compression).await?;
        let head = lines.head().await?;
        if format == Format::Jsonl
            && let Some(reason) = content::not_lines_of_json(head)
        {
            return Err(refuse(&reason));
        }
        Ok(Self::Lines { lines, parse })
    }

    /// Returns notes on how the files are read: each file's URL, and a sentence whose subject is the file.
    pub(crate) fn notes(&self) -> Vec<(String, String)> {
        let pieces = match self {
            Self::Lines { lines, .. } => lines,
            Self::Tmx(rows) => rows.pieces(),
            Self::Parquet(_) => return Vec::new(),
            Self::Beside(rows) => return rows.notes(),
        };
        let url = pieces.url();
        pieces.notes().into_iter().map(|note| (url.to_owned(), note)).collect()
    }

    /// Returns how much is read, and of how much: bytes, or rows of a Parquet file.
    pub(crate) fn progress(&self) -> (u64, u64) {
        match self {
            Self::Lines { lines, .. } => lines.progress(),
            Self::Tmx(rows) => rows.pieces().progress(),
            Self::Parquet(rows) => rows.progress(),
            Self::Beside(rows) => rows.progress(),
        }
    }

    /// Returns the number of the last row's line, unit or row, from 1.
    pub(crate) fn place(&self) -> u64 {
        match self {
            Self::Lines { lines, .. } => lines.number(),
            Self::Tmx(rows) => rows.pieces().number(),
            Self::Parquet(rows) => rows.progress().0,
            Self::Beside(rows) => rows.place(),
        }
    }

    /// Returns the next row, or the reason why there is none; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<ReadRow>> {
        match self {
            Self::Lines { lines, parse } => Ok(lines.next().await?.map(|piece| parse(piece?))),
            Self::Tmx(rows) => rows.next().await,
            Self::Parquet(rows) => rows.next().await,
            Self::Beside(rows) => rows.next().await,
        }
    }
}

/// Returns the two columns, counted from 0.
fn tsv_columns(columns: &Columns) -> Option<[usize; 2]> {
    let number = |column: &Column| match column {
        Column::Number(number) => (*number as usize).checked_sub(1),
        Column::Name(_) => None,
    };
    let (english, foreign) = (number(&columns.english)?, number(&columns.foreign)?);
    (english != foreign).then_some([english, foreign])
}

fn tsv_pair(line: &str, english: usize, foreign: usize) -> ReadRow {
    let column = |number: usize| line.split('\t').nth(number).ok_or_else(|| too_few_columns(line));
    Ok(RawRow::Pair { english: column(english)?.to_owned(), foreign: column(foreign)?.to_owned() })
}

fn too_few_columns(line: &str) -> Fault {
    let hint = match line.split('\t').count() {
        1 => "no tab is in it".to_owned(),
        columns => format!("it has {columns} columns"),
    };
    Fault { hint: Some(hint), ..DropReason::MissingColumn.into() }
}

/// Reads a whole small file and decompresses it by its name.
pub async fn read_whole(url: &str) -> Result<Vec<u8>> {
    let mut bytes = bytes::ByteSource::open(url, None).await?;
    let mut content = Vec::new();
    while bytes.read_into(&mut content).await? {}
    Ok(content)
}

/// Counts of a source's rows, without cleaning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Number of all rows.
    pub rows: u64,
    /// Number of rows that can be read.
    pub readable: u64,
    /// Number of the other rows, by reason.
    pub dropped: BTreeMap<DropReason, u64>,
}

/// Counts all rows of a source. Memory holds one row.
pub async fn survey(source: &Source, corpus: Corpus) -> Result<Survey> {
    let mut reader = RowReader::open(source, corpus).await?;
    let mut found = Survey::default();
    while let Some(row) = reader.next().await? {
        found.rows += 1;
        match row {
            Ok(_) => found.readable += 1,
            Err(fault) => *found.dropped.entry(fault.reason).or_default() += 1,
        }
    }
    Ok(found)
}

/// Returns the pairs of a source without cleaning, English first, and the number of rows that can't be read.
pub async fn read_raw_pairs(source: &Source) -> Result<(Vec<(String, String)>, u64)> {
    let mut reader = RowReader::open(source, Corpus::Pairs).await?;
    let (mut pairs, mut left_out) = (Vec::new(), 0);
    while let Some(row) = reader.next().await? {
        match row {
            Ok(RawRow::Pair { english, foreign }) => pairs.push((english, foreign)),
            _ => left_out += 1,
        }
    }
    Ok((pairs, left_out))
}
