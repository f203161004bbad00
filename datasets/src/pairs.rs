//! Reads shards of pairs.

use bytes::Bytes;

use crate::Result;
use crate::table::{decode, texts, u64s};
use crate::text::Splitter;

/// One side of the pairs of a shard, row by row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TextTable {
    /// The pair id of each row.
    pub ids: Vec<u64>,
    /// The text of each row.
    pub texts: Vec<String>,
}

impl TextTable {
    /// Keeps only the first `rows` rows.
    pub fn truncate(&mut self, rows: usize) {
        self.ids.truncate(rows);
        self.texts.truncate(rows);
    }

    /// Returns a row for each sentence of the texts.
    #[must_use]
    pub fn by_sentence(&self, splitter: &Splitter) -> Self {
        let rows = self.ids.iter().zip(&self.texts);
        let sentences = rows.flat_map(|(id, text)| splitter.split(text).into_iter().map(|part| (*id, part.to_owned())));
        let (ids, texts) = sentences.unzip();
        Self { ids, texts }
    }
}

/// Both sides of the pairs of a shard, row by row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PairTable {
    /// The pair id of each row.
    pub ids: Vec<u64>,
    /// The English side of each row.
    pub english: Vec<String>,
    /// The foreign side of each row.
    pub foreign: Vec<String>,
}

/// The text column of a pair or an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// The English side, which the decoder reads.
    English,
    /// The foreign side, which the encoder reads.
    Foreign,
    /// The English reference of an instruction's foreign text.
    EnglishRef,
}

impl Language {
    /// Returns the name of the side's column.
    #[must_use]
    pub fn column(self) -> &'static str {
        match self {
            Self::English => "english",
            Self::Foreign => "foreign",
            Self::EnglishRef => "english_ref",
        }
    }
}

/// Reads one side of a shard of pairs or instructions. No other column is decoded. Errors call the shard `name`.
pub fn read_texts(name: &str, content: Bytes, language: Language) -> Result<TextTable> {
    let mut table = TextTable::default();
    for batch in decode(name, content, &["id", language.column()])? {
        table.ids.extend(u64s(name, &batch, "id")?.values());
        table.texts.extend(texts(name, &batch, language.column())?.iter().flatten().map(str::to_owned));
    }
    Ok(table)
}

/// Reads both sides of a shard of pairs. Errors call the shard `name`.
pub fn read_pairs(name: &str, content: Bytes) -> Result<PairTable> {
    let mut table = PairTable::default();
    for batch in decode(name, content, &["id", "english", "foreign"])? {
        table.ids.extend(u64s(name, &batch, "id")?.values());
        table.english.extend(texts(name, &batch, "english")?.iter().flatten().map(str::to_owned));
        table.foreign.extend(texts(name, &batch, "foreign")?.iter().flatten().map(str::to_owned));
    }
    Ok(table)
}
