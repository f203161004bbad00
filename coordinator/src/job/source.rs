//! The sources of a corpus: a path or URL, or a table that also says how to read it.

use std::fmt;

use llink_datasets::store::{object_name, without_query};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::models::{PathOrTable, path_or_table};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sources {
    /// A single source, `source = …`.
    One(SourceEntry),
    /// Several sources, `source = […, …]`.
    Several(Vec<SourceEntry>),
}

impl Default for Sources {
    /// No source, which the check of the job file refuses.
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl Sources {
    pub fn as_slice(&self) -> &[SourceEntry] {
        match self {
            Self::One(source) => std::slice::from_ref(source),
            Self::Several(sources) => sources,
        }
    }

    /// Returns the sources in the job's order, to change them.
    pub fn as_mut_slice(&mut self) -> &mut [SourceEntry] {
        match self {
            Self::One(source) => std::slice::from_mut(source),
            Self::Several(sources) => sources,
        }
    }

    /// Passes the path of each source but the sample corpus through `f`.
    pub fn change_paths(&mut self, mut f: impl FnMut(&str) -> String) {
        for entry in self.as_mut_slice() {
            for path in [&mut entry.url, &mut entry.english, &mut entry.foreign].into_iter().flatten() {
                if path != "sample" {
                    *path = f(path);
                }
            }
        }
    }

    /// Returns the names of the sources in their rows. A name is that of the file, with as many of its folders as
    /// distinguish equal names.
    pub fn labels(&self) -> Vec<String> {
        let sources = self.as_slice();
        let mut lengths = vec![1; sources.len()];
        loop {
            let labels: Vec<String> = sources.iter().zip(&lengths).map(|(s, l)| s.label(*l)).collect();
            let mut longer = lengths.clone();
            for (i, one) in labels.iter().enumerate() {
                let alike = |(j, other): (usize, &String)| other == one && sources[j].name() != sources[i].name();
                if labels.iter().enumerate().any(alike) {
                    longer[i] += 1;
                }
            }
            // A name that is already the whole address does not grow.
            let grows = (0..sources.len()).any(|i| sources[i].label(longer[i]) != labels[i]);
            if !grows {
                return labels;
            }
            lengths = longer;
        }
    }

    pub fn has_sample(&self) -> bool {
        self.as_slice().iter().any(SourceEntry::is_sample)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum FormatName {
    /// Tab-separated columns.
    Tsv,
    /// One JSON object on each line.
    Jsonl,
    /// Two files that match line by line.
    Moses,
    /// Translation Memory eXchange.
    Tmx,
    Parquet,
    /// A folder of FLORES, with a file for each language.
    Flores,
}

impl FormatName {
    /// Returns whether the two sides may be in two files.
    fn has_two_files(self) -> bool {
        matches!(self, Self::Moses | Self::Jsonl | Self::Parquet)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum CompressionName {
    None,
    Gz,
    Zst,
    Xz,
    Bz2,
}

/// A column of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
#[serde(untagged, expecting = "a column's number (TSV) or its name (JSONL, Parquet)")]
pub enum ColumnName {
    /// A column number, from 1.
    #[strum(transparent)]
    Number(u32),
    /// A key or a column's name; `a.b` is `b` within `a`.
    #[strum(transparent)]
    Name(String),
}

/// The location of a source and its reading settings. An absent setting follows from the name, or from the section for
/// all sources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceEntry {
    /// A path, a URL or `sample`. The query, name and password of a web address are sent to its server and are never
    /// saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The English file of a corpus of two files, Moses, JSON Lines or Parquet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub english: Option<String>,
    /// The foreign file of a corpus of two files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign: Option<String>,
    /// `tsv`, `jsonl`, `moses`, `tmx` or `parquet`, or `flores` for a folder of FLORES such as `devtest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<FormatName>,
    /// `none`, `gz`, `zst`, `xz` or `bz2`. The first bytes of the file overrule it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<CompressionName>,
    /// The English column: a number for TSV, a name for JSON Lines or Parquet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub english_column: Option<ColumnName>,
    /// The foreign column: a number for TSV, a name for JSON Lines or Parquet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_column: Option<ColumnName>,
    /// The language code of the English side in TMX or FLORES. Absent: `en`, and `eng_Latn` in FLORES.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub english_language: Option<String>,
    /// The language code of the foreign side in TMX or FLORES, such as `khm_Khmr`. Absent: the only other language of TMX.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign_language: Option<String>,
}

impl SourceEntry {
    /// Returns its URL, or the URL of the English file of a Moses corpus. People are shown a
    /// [`llink_datasets::shown::ShownUrl`] of it.
    pub fn name(&self) -> &str {
        self.url.as_deref().or(self.english.as_deref()).unwrap_or_default()
    }

    /// Returns the last `parts` parts of its path.
    fn label(&self, parts: usize) -> String {
        let file = object_name(self.name());
        let address = without_query(self.name());
        let folders = address.rsplit('/').skip(1).filter(|part| !part.is_empty());
        let mut named: Vec<&str> = folders.take(parts - 1).collect();
        named.reverse();
        named.push(&file);
        named.join("/")
    }

    pub fn files(&self) -> impl Iterator<Item = &str> {
        [&self.url, &self.english, &self.foreign].into_iter().filter_map(|file| file.as_deref())
    }

    pub fn is_sample(&self) -> bool {
        self.url.as_deref() == Some("sample")
    }

    pub(super) fn fault(&self) -> Option<&'static str> {
        let given = self.files().all(|file| !file.is_empty());
        match (&self.url, &self.english, &self.foreign) {
            _ if !given => Some("a path, a URL or \"sample\""),
            (Some(_), None, None) if self.format == Some(FormatName::Moses) => {
                Some("two files for a Moses corpus: { english = \"…\", foreign = \"…\" }")
            }
            (Some(_), None, None) if self.format == Some(FormatName::Flores) && self.foreign_language.is_none() => {
                Some(
                    "a language of the folder: { url = \"…/devtest\", format = \"flores\", foreign_language = \"khm_Khmr\" }",
                )
            }
            (Some(_), None, None) => None,
            (None, Some(_), Some(_)) if self.format.is_none_or(FormatName::has_two_files) => None,
            (None, Some(_), Some(_)) => Some("format \"moses\", \"jsonl\" or \"parquet\", or none, with two files"),
            _ => Some("`url`, or both `english` and `foreign`"),
        }
    }
}

impl From<&str> for SourceEntry {
    fn from(url: &str) -> Self {
        Self { url: Some(url.into()), ..Self::default() }
    }
}

impl PathOrTable for SourceEntry {
    const EXPECTED: &'static str = "a path, a URL, \"sample\", or a table with `url` or with `english` and `foreign`";
}

/// An entry that may be a bare string.
#[derive(Deserialize)]
struct Entry(#[serde(deserialize_with = "path_or_table")] SourceEntry);

struct SourcesVisitor;

impl<'de> Visitor<'de> for SourcesVisitor {
    type Value = Sources;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path, a URL, \"sample\", a table with `url`, or an array of those")
    }

    fn visit_str<E>(self, url: &str) -> Result<Sources, E> {
        Ok(Sources::One(url.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Sources, A::Error> {
        SourceEntry::deserialize(MapAccessDeserializer::new(map)).map(Sources::One)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Sources, A::Error> {
        let entries = Vec::<Entry>::deserialize(SeqAccessDeserializer::new(sequence))?;
        Ok(Sources::Several(entries.into_iter().map(|entry| entry.0).collect()))
    }
}

impl<'de> Deserialize<'de> for Sources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SourcesVisitor)
    }
}

impl Serialize for Sources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One(source) => source.serialize(serializer),
            Self::Several(sources) => sources.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str]) -> Vec<String> {
        Sources::Several(names.iter().map(|name| SourceEntry::from(*name)).collect()).labels()
    }

    #[test]
    fn sources_of_one_name_are_told_apart_by_their_folders() {
        assert_eq!(labels(&["/x/train.tsv", "sample"]), ["train.tsv", "sample"]);
        assert_eq!(
            labels(&["/x/a/train.tsv", "/x/b/train.tsv", "/x/c/dev.tsv"]),
            ["a/train.tsv", "b/train.tsv", "dev.tsv"]
        );
        assert_eq!(
            labels(&["/v1/km/train.tsv", "/v2/km/train.tsv", "train.tsv"]),
            ["v1/km/train.tsv", "v2/km/train.tsv", "train.tsv"]
        );
        assert_eq!(labels(&["s3://one/train.tsv", "https://two/train.tsv?sig=x"]), ["one/train.tsv", "two/train.tsv"]);
        // The same file twice can't be distinguished.
        assert_eq!(labels(&["/a/train.tsv", "/a/train.tsv"]), ["train.tsv", "train.tsv"]);
    }
}
