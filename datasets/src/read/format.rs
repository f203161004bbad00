//! How a source's rows are written down, and where in it the two sides stand.

use std::fmt;
use std::str::FromStr;

use super::compression::Compression;
use crate::store::object_name;
use crate::{Error, Result};

/// How a source's rows are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One row a line, columns separated by tabs, no quoting, no header.
    Tsv,
    /// One JSON object a line.
    Jsonl,
    /// Two files, one a language; line N of the one belongs to line N of the other.
    Moses,
    /// Translation Memory eXchange: XML with a `<tu>` a row and a `<tuv xml:lang>` a language.
    Tmx,
    /// Apache Parquet.
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
            other => Err(format!(
                "format `{other}` is not known; use tsv, jsonl, moses, tmx or parquet"
            )),
        }
    }
}

impl Format {
    /// The format that a file's name tells, the ending of its compression aside.
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

/// Where one side stands.
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
            // Numbers are a TSV's; they are the default, so that they mean nothing here.
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
    /// Digits are a number, anything else a name.
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Number)
    }
}

/// Which columns or keys hold the two sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    /// The English side's.
    pub english: Column,
    /// The foreign side's.
    pub foreign: Column,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            english: Column::Number(1),
            foreign: Column::Number(2),
        }
    }
}

/// Which of a TMX file's languages are the two sides, as their codes begin: `en` stands for `en-US` too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Languages {
    /// The English side's.
    pub english: String,
    /// The foreign side's; `None`: the only other one of a unit.
    pub foreign: Option<String>,
}

impl Default for Languages {
    fn default() -> Self {
        Self {
            english: "en".to_owned(),
            foreign: None,
        }
    }
}

/// A source: where it lies and how it is to be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// A URL or path; of a Moses corpus the English file.
    pub url: String,
    /// The foreign file of a Moses corpus.
    pub foreign_url: Option<String>,
    /// How it is written down; `None`: by its name.
    pub format: Option<Format>,
    /// How it is compressed; `None`: by its name.
    pub compression: Option<Compression>,
    /// Where the two sides are in a TSV, JSONL or Parquet file.
    pub columns: Columns,
    /// Which they are in a TMX file.
    pub languages: Languages,
    /// How rows name it; `None`: the file's name, which says nothing of the machine it lay on.
    pub label: Option<String>,
}

impl Source {
    /// A source of which the name tells everything.
    #[must_use]
    pub fn named(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            ..Self::default()
        }
    }

    /// How rows name the source they came from.
    pub(crate) fn label(&self) -> String {
        self.label.clone().unwrap_or_else(|| object_name(&self.url))
    }

    /// The format, given or told by the name.
    pub(super) fn format(&self) -> Result<Format> {
        match (self.format, &self.foreign_url) {
            (None, Some(_)) => Ok(Format::Moses),
            (Some(format), _) => Ok(format),
            (None, None) => Format::of(&self.url),
        }
    }
}
