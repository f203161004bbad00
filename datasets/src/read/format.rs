//! The file formats of sources, and the columns of the two sides.

use std::fmt;
use std::str::FromStr;

use super::compression::Compression;
use crate::store::object_name;
use crate::{Error, Result};

/// The file format of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Tab-separated columns, one row in each line, without quoting or header.
    Tsv,
    /// One JSON object in each line.
    Jsonl,
    /// Two files, one for each language. Line N of one belongs to line N of the other.
    Moses,
    /// Translation Memory eXchange: XML with one `<tu>` for each row and one `<tuv xml:lang>` for each language.
    Tmx,
    /// Apache Parquet files.
    Parquet,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "tsv" => Ok(Self::Tsv),
            "jsonl" => Ok(Self::Jsonl),
            "moses" => Ok(Self::Moses),
            "tmx" => Ok(Self::Tmx),
            "parquet" => Ok(Self::Parquet),
            other => Err(format!("format `{other}` is not known; use tsv, jsonl, moses, tmx or parquet")),
        }
    }
}

impl Format {
    /// Returns the format that a file's name tells, without the ending of its compression.
    ///
    /// # Errors
    /// [`Error::Content`] for a name that tells none.
    pub fn of(source: &str) -> Result<Self> {
        let name = object_name(source).to_lowercase();
        let (_, stem) = Compression::of(&name);
        match stem.rsplit_once('.').map(|(_, ending)| ending) {
            Some("tsv" | "txt") => Ok(Self::Tsv),
            Some("jsonl" | "ndjson") => Ok(Self::Jsonl),
            Some("tmx") => Ok(Self::Tmx),
            Some("parquet") => Ok(Self::Parquet),
            _ => Err(Error::Content {
                path: source.to_owned(),
                reason: "its name tells no format; set `format` to tsv, jsonl, tmx or parquet, or name the two files \
                         of a Moses corpus as { english = \"…\", foreign = \"…\" }"
                    .to_owned(),
            }),
        }
    }
}

/// The column of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Column {
    /// A column of a TSV file, counted from 1.
    Number(u32),
    /// A key of a JSON object or a column of a Parquet file; `a.b` is `b` within `a`.
    Name(String),
}

impl Column {
    pub(super) fn name(&self, default: &str) -> String {
        match self {
            Self::Name(name) => name.clone(),
            // Only TSV has numbers. They are the default and have no effect here.
            Self::Number(_) => default.to_owned(),
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl From<&str> for Column {
    /// Reads digits as a number and anything else as a name.
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Number)
    }
}

/// The columns or keys of the two sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// The column of the English side.
    pub english: Column,
    /// The column of the foreign side.
    pub foreign: Column,
}

impl Default for Columns {
    fn default() -> Self {
        Self { english: Column::Number(1), foreign: Column::Number(2) }
    }
}

/// The language codes of the two sides in a TMX file. A code is a prefix: `en` also matches `en-US`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Languages {
    /// The language of the English side.
    pub english: String,
    /// The language of the foreign side; `None` is the only other language of a unit.
    pub foreign: Option<String>,
}

impl Default for Languages {
    fn default() -> Self {
        Self { english: "en".to_owned(), foreign: None }
    }
}

/// The location of a source, and how to read it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// A URL or path; for a corpus of two files, the English file.
    pub url: String,
    /// For a corpus of two files, the foreign file.
    pub foreign_url: Option<String>,
    /// The file format; `None`: by its name.
    pub format: Option<Format>,
    /// The compression; `None`: by its name.
    pub compression: Option<Compression>,
    /// The columns of the two sides in a TSV, JSONL or Parquet file.
    pub columns: Columns,
    /// The languages of the two sides in a TMX file.
    pub languages: Languages,
    /// The name of the source in its rows. `None` is the file's name, which says nothing about the machine.
    pub label: Option<String>,
}

impl Source {
    /// Returns a source whose settings follow from its name.
    #[must_use]
    pub fn named(url: &str) -> Self {
        Self { url: url.to_owned(), ..Self::default() }
    }

    /// Returns the name of the source in its rows.
    pub(crate) fn label(&self) -> String {
        self.label.clone().unwrap_or_else(|| object_name(&self.url))
    }

    /// Returns the format, as given or by the name.
    pub(super) fn format(&self) -> Result<Format> {
        match (self.format, &self.foreign_url) {
            (None, Some(_)) => Ok(Format::Moses),
            (Some(format), _) => Ok(format),
            (None, None) => Format::of(&self.url),
        }
    }
}
