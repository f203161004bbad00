//! Reads Parquet as a corpus: two text columns, batch by batch.

use std::panic::AssertUnwindSafe;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use futures::{FutureExt, StreamExt};
use parquet::arrow::ProjectionMask;
use parquet::arrow::async_reader::ParquetRecordBatchStream;
use parquet::file::metadata::ParquetMetaData;

use super::format::Columns;
use super::jsonl::no_nul;
use super::{RawRow, ReadRow, bytes, content};
use crate::clean::DropReason;
use crate::store::Store;
use crate::table::{StoredTable, bad, unreadable};
use crate::table_reader::ObjectReader;
use crate::{Error, Result};

/// The number of rows that are decoded at once.
const BATCH_ROWS: usize = 1_024;
/// The largest decompressed row group that is accepted, in bytes, because a reader holds the columns of one group.
const LARGEST_GROUP: i64 = 1 << 30;

pub(crate) struct ParquetRows {
    url: String,
    stream: ParquetRecordBatchStream<ObjectReader>,
    names: [String; 2],
    batch: Option<[StringArray; 2]>,
    next_row: usize,
    done: u64,
    total: u64,
}

impl ParquetRows {
    pub(super) async fn open(url: &str, columns: &Columns) -> Result<Self> {
        let (store, name) = Store::open_object(url)?;
        let table = guarded(url, StoredTable::open(&store, &name)).await?;
        let table = match table {
            Ok(table) => table,
            Err(Error::NotFound { .. }) => return Err(Error::NotFound { path: url.to_owned() }),
            Err(error) => return Err(not_parquet(url).await.unwrap_or(error)),
        };
        let total = table.rows();
        check_groups(url, table.metadata(), table.bytes())?;
        let names = [columns.english.name("english"), columns.foreign.name("foreign")];
        let builder = table.into_builder();
        let schema = builder.parquet_schema();
        let leaves: Vec<String> = schema.columns().iter().map(|c| c.path().string()).collect();
        if let Some(name) = names.iter().find(|name| !leaves.contains(name)) {
            let has = leaves.join(", ");
            let reason = format!("has no column `{name}`; it has {has}. Set english_column and foreign_column");
            return Err(bad(url, reason));
        }
        let mask = ProjectionMask::leaves(schema, (0..leaves.len()).filter(|index| names.contains(&leaves[*index])));
        let stream =
            builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(|e| unreadable(url, &e))?;
        Ok(Self { url: url.to_owned(), stream, names, batch: None, next_row: 0, done: 0, total })
    }

    /// Returns the number of rows read, and of all rows.
    pub(super) fn progress(&self) -> (u64, u64) {
        (self.done, self.total)
    }

    pub(super) async fn next(&mut self) -> Result<Option<ReadRow>> {
        loop {
            if let Some([english, foreign]) = &self.batch
                && self.next_row < english.len()
            {
                let row = self.next_row;
                self.next_row += 1;
                self.done += 1;
                let text = |column: &StringArray| match column.is_null(row) {
                    true => Err(DropReason::MissingColumn),
                    false => no_nul(column.value(row)).map(str::to_owned),
                };
                let row = text(english).and_then(|english| Ok(RawRow::Pair { english, foreign: text(foreign)? }));
                return Ok(Some(row.map_err(Into::into)));
            }
            let Some(batch) = guarded(&self.url, self.stream.next()).await? else {
                return Ok(None);
            };
            let batch = batch.map_err(|e| unreadable(&self.url, &e))?;
            let side = |name: &str| column(&self.url, &batch, name);
            self.batch = Some([side(&self.names[0])?, side(&self.names[1])?]);
            self.next_row = 0;
        }
    }
}

/// Returns an error that says what a file is, if it is not Parquet and its first bytes tell.
async fn not_parquet(url: &str) -> Option<Error> {
    let head = bytes::head_of(url).await;
    let reason = match content::compression(&head) {
        Some(found) => format!("is {found} and not Parquet; unpack it, or set `format` to what is in it"),
        None if head.starts_with(b"PAR1") => return None,
        None => content::refusal(&head)?,
    };
    Some(bad(url, reason))
}

/// Refuses row groups that are too large, and column chunks outside the file.
fn check_groups(url: &str, metadata: &ParquetMetaData, bytes: u64) -> Result<()> {
    for group in metadata.row_groups() {
        if group.total_byte_size() > LARGEST_GROUP {
            let reason = format!(
                "has a row group of {} MiB, more than the limit of {} MiB; write it again with smaller row groups",
                group.total_byte_size() >> 20,
                LARGEST_GROUP >> 20
            );
            return Err(bad(url, reason));
        }
        for chunk in group.columns() {
            let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
            let end = start.checked_add(chunk.compressed_size());
            let lies_within = start >= 0
                && chunk.compressed_size() >= 0
                && chunk.uncompressed_size() >= 0
                && end.and_then(|end| u64::try_from(end).ok()).is_some_and(|end| end <= bytes);
            if !lies_within {
                let column = chunk.column_path().string();
                return Err(bad(url, format!("is damaged: column `{column}` does not lie within the file")));
            }
        }
    }
    Ok(())
}

/// Turns a panic of the Parquet reader into an error, because corpora come from anywhere and some damaged files make
/// the reader panic.
async fn guarded<T>(url: &str, work: impl Future<Output = T>) -> Result<T> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("its reader gave up");
        bad(url, format!("is damaged and can't be read as Parquet: {text}"))
    })
}

/// Returns the text column at a dotted path.
fn column(url: &str, batch: &RecordBatch, path: &str) -> Result<StringArray> {
    let missing = || bad(url, format!("has no column `{path}`"));
    let mut parts = path.split('.');
    let mut array: ArrayRef = parts.next().and_then(|part| batch.column_by_name(part)).cloned().ok_or_else(missing)?;
    for part in parts {
        let within = array.as_struct_opt().ok_or_else(missing)?;
        array = within.column_by_name(part).cloned().ok_or_else(missing)?;
    }
    let wrong = |kind: &DataType| bad(url, format!("column `{path}` holds {kind}, not text"));
    if array.data_type().is_numeric() {
        return Err(wrong(array.data_type()));
    }
    let plain = arrow::compute::cast(&array, &DataType::Utf8).map_err(|_| wrong(array.data_type()))?;
    plain.as_string_opt::<i32>().cloned().ok_or_else(|| wrong(array.data_type()))
}
