//! A sorted run collects cleaned rows in memory, up to a budget, and is then written as one table. Memory holds one run
//! of a source.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeBinaryArray, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;

use super::text_columns;
use crate::Result;
use crate::clean::Checked;
use crate::near::{SIGNATURE_BYTES, Signature};
use crate::rows::{Corpus, row_id};
use crate::table::{Layout, ROW_GROUP_ROWS, bad, encode};

/// The most bytes of text in a run.
const RUN_BYTES: usize = 64 << 20;
/// The most rows in a run.
const RUN_ROWS: usize = 1 << 19;
/// Rows in a page. A shard takes a few hundred rows of each run, and all other rows of the same pages are read in vain.
const PAGE_ROWS: usize = 1_024;

/// The columns of the signatures of the two sides.
pub(super) const SIGNATURE_COLUMNS: [&str; 2] = ["english_signature", "foreign_signature"];

struct RunRow {
    split_key: u64,
    english_key: u64,
    id: u64,
    /// The position of the row in the input.
    index: u32,
}

/// The rows of one corpus that are not written yet.
pub(super) struct Run {
    corpus: Corpus,
    rows: Vec<RunRow>,
    /// All texts, one after the other; `ends` holds where each ends.
    texts: String,
    ends: Vec<u32>,
    signatures: Vec<[Signature; 2]>,
}

impl Run {
    pub(super) fn new(corpus: Corpus) -> Self {
        Self { corpus, rows: Vec::new(), texts: String::new(), ends: Vec::new(), signatures: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.texts.len() >= RUN_BYTES || self.rows.len() >= RUN_ROWS
    }

    /// Adds a row, with `texts` in the order of [`text_columns`].
    pub(super) fn push(&mut self, checked: &Checked, texts: &[String]) {
        self.rows.push(RunRow {
            split_key: checked.foreign_key,
            english_key: checked.english_key,
            id: row_id(texts),
            index: self.rows.len() as u32,
        });
        for text in texts {
            self.texts.push_str(text);
            // The cast is exact: a run ends soon after 64 MiB, and a row has a few MiB at most.
            self.ends.push(self.texts.len() as u32);
        }
        self.signatures.extend(checked.signatures);
    }

    fn text(&self, row: &RunRow, column: usize) -> &str {
        let position = row.index as usize * text_columns(self.corpus).len() + column;
        let start = position.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.texts[start as usize..self.ends[position] as usize]
    }

    /// Encodes the rows as a table sorted by (`split_key`, `id`).
    pub(super) fn encode(mut self, name: &str, metadata: &BTreeMap<String, String>) -> Result<Bytes> {
        // Rows with equal ids are equal in every column, so no difference in their order can be seen.
        self.rows.sort_unstable_by_key(|row| (row.split_key, row.id));
        let mut fields: Vec<_> =
            ["split_key", "english_key", "id"].iter().map(|key| Field::new(*key, DataType::UInt64, false)).collect();
        if !self.signatures.is_empty() {
            let kind = DataType::FixedSizeBinary(SIGNATURE_BYTES as i32);
            fields.extend(SIGNATURE_COLUMNS.map(|column| Field::new(column, kind.clone(), false)));
        }
        let columns = text_columns(self.corpus);
        fields.extend(columns.iter().map(|column| Field::new(*column, DataType::Utf8, false)));
        let schema = Arc::new(Schema::new(fields));
        let batches = self.rows.chunks(ROW_GROUP_ROWS).map(|rows| {
            let columns = self.columns(rows).map_err(|e| bad(name, e.to_string()))?;
            RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|e| bad(name, e.to_string()))
        });
        let layout = Layout {
            dictionary: &["task", "instruction"],
            statistics: &["split_key"],
            metadata,
            page_rows: Some(PAGE_ROWS),
            zstd_level: 1,
        };
        encode(name, &schema, batches, &layout)
    }

    fn columns(&self, rows: &[RunRow]) -> std::result::Result<Vec<ArrayRef>, arrow::error::ArrowError> {
        let key = |of: fn(&RunRow) -> u64| -> ArrayRef { Arc::new(UInt64Array::from_iter_values(rows.iter().map(of))) };
        let mut columns = vec![key(|row| row.split_key), key(|row| row.english_key), key(|row| row.id)];
        if !self.signatures.is_empty() {
            for side in 0..SIGNATURE_COLUMNS.len() {
                let signatures = rows.iter().map(|row| self.signatures[row.index as usize][side]);
                columns.push(Arc::new(FixedSizeBinaryArray::try_from_iter(signatures)?));
            }
        }
        for column in 0..text_columns(self.corpus).len() {
            let texts = rows.iter().map(|row| self.text(row, column));
            columns.push(Arc::new(StringArray::from_iter_values(texts)));
        }
        Ok(columns)
    }
}
