//! Merges the keys of all cleaned tables into one sorted stream. Memory holds one batch of each table.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use arrow::array::{AsArray, FixedSizeBinaryArray, RecordBatch, UInt64Array};
use futures::StreamExt;
use parquet::arrow::async_reader::ParquetRecordBatchStream;

use super::SOURCE_KEY;
use super::run::SIGNATURE_COLUMNS;
use crate::Result;
use crate::near::{SIGNATURE_BYTES, Signature};
use crate::store::Store;
use crate::table::{StoredTable, bad, require_columns, u64s, unreadable};
use crate::table_reader::ObjectReader;

/// The keys of a row, and its location.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyRow {
    pub split_key: u64,
    pub id: u64,
    pub english_key: u64,
    pub file: u32,
    pub row: u32,
    /// The signatures of the English and the foreign side, if they were requested.
    pub signatures: Option<[Signature; 2]>,
}

/// A cursor over one table, from its first row to its last.
struct Cursor {
    name: String,
    stream: ParquetRecordBatchStream<ObjectReader>,
    columns: Vec<&'static str>,
    batch: Option<Batch>,
    file: u32,
    next_row: u32,
    /// Number of rows of `batch` that were returned.
    used: usize,
}

struct Batch {
    split_key: UInt64Array,
    english_key: UInt64Array,
    id: UInt64Array,
    signatures: Option<[FixedSizeBinaryArray; 2]>,
}

impl Batch {
    fn of(name: &str, batch: &RecordBatch) -> Result<Self> {
        let signature = |column: &str| {
            let column = batch.column_by_name(column)?.as_fixed_size_binary_opt()?;
            (column.value_length() as usize == SIGNATURE_BYTES).then(|| column.clone())
        };
        Ok(Self {
            split_key: u64s(name, batch, "split_key")?.clone(),
            english_key: u64s(name, batch, "english_key")?.clone(),
            id: u64s(name, batch, "id")?.clone(),
            signatures: signature(SIGNATURE_COLUMNS[0]).zip(signature(SIGNATURE_COLUMNS[1])).map(<[_; 2]>::from),
        })
    }
}

impl Cursor {
    async fn next(&mut self) -> Result<Option<KeyRow>> {
        loop {
            if let Some(batch) = &self.batch
                && self.used < batch.id.len()
            {
                let at = self.used;
                let row = KeyRow {
                    split_key: batch.split_key.value(at),
                    id: batch.id.value(at),
                    english_key: batch.english_key.value(at),
                    file: self.file,
                    row: self.next_row,
                    signatures: batch
                        .signatures
                        .as_ref()
                        .map(|sides| sides.each_ref().map(|side| signature(side.value(at)))),
                };
                self.used += 1;
                let too_many = || bad(&self.name, "has more than 4294967295 rows".into());
                self.next_row = self.next_row.checked_add(1).ok_or_else(too_many)?;
                return Ok(Some(row));
            }
            let Some(batch) = self.stream.next().await else {
                return Ok(None);
            };
            let batch = batch.map_err(|e| unreadable(&self.name, &e))?;
            require_columns(&self.name, &batch, &self.columns)?;
            self.batch = Some(Batch::of(&self.name, &batch)?);
            self.used = 0;
        }
    }
}

fn signature(bytes: &[u8]) -> Signature {
    bytes.try_into().expect("the column has this width")
}

/// The sort key of a row: (split key, id, rank of the source, file, row). Among equal rows, the one from the source
/// whose name sorts first comes first, so the order of the sources does not matter.
type Order = (u64, u64, u32, u32, u32);

/// All rows of several cleaned tables in order.
pub(crate) struct Merged {
    cursors: Vec<Cursor>,
    /// The rank of each table's source among the sorted names.
    ranks: Vec<u32>,
    heads: Vec<Option<KeyRow>>,
    heap: BinaryHeap<Reverse<Order>>,
    total: u64,
}

impl Merged {
    pub(crate) async fn open(store: &Store, cleaned: &[String], with_signatures: bool) -> Result<Self> {
        let mut columns = vec!["split_key", "english_key", "id"];
        if with_signatures {
            columns.extend(SIGNATURE_COLUMNS);
        }
        let (mut cursors, mut sources, mut total) = (Vec::new(), Vec::new(), 0);
        for (file, path) in (0_u32..).zip(cleaned) {
            let name = store.describe(path);
            let table = StoredTable::open(store, path).await?;
            total += table.rows();
            let source = table.fact(SOURCE_KEY);
            sources.push(source.ok_or_else(|| bad(&name, "is not a cleaned table".into()))?);
            cursors.push(Cursor {
                stream: table.stream(&columns)?,
                name,
                columns: columns.clone(),
                batch: None,
                file,
                next_row: 0,
                used: 0,
            });
        }
        let mut names: Vec<&String> = sources.iter().collect();
        names.sort_unstable();
        names.dedup();
        let rank = |source: &String| names.partition_point(|name| *name < source) as u32;
        let ranks = sources.iter().map(rank).collect();
        let mut merged = Self { heads: vec![None; cursors.len()], cursors, ranks, heap: BinaryHeap::new(), total };
        for file in 0..merged.cursors.len() {
            merged.advance(file).await?;
        }
        Ok(merged)
    }

    /// Returns the number of rows.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    async fn advance(&mut self, file: usize) -> Result<()> {
        self.heads[file] = self.cursors[file].next().await?;
        if let Some(row) = &self.heads[file] {
            self.heap.push(Reverse((row.split_key, row.id, self.ranks[file], row.file, row.row)));
        }
        Ok(())
    }

    /// Returns the next row.
    pub(crate) async fn next(&mut self) -> Result<Option<KeyRow>> {
        let Some(Reverse((.., file, _))) = self.heap.pop() else {
            return Ok(None);
        };
        let row = self.heads[file as usize].take();
        self.advance(file as usize).await?;
        Ok(row)
    }
}
