//! Writes and reads Parquet, with the same writer settings for every table and typed access to columns.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, SchemaRef, UInt32Type, UInt64Type};
use bytes::Bytes;
use futures::TryStreamExt;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection};
use parquet::arrow::async_reader::{ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, PageIndexPolicy, ParquetMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::role::Role;
use crate::store::Store;
use crate::table_reader::ObjectReader;
use crate::{Error, Result};

/// The schema version of the tables that this build writes.
pub const SCHEMA_VERSION: &str = "1";
/// The metadata key of [`SCHEMA_VERSION`] in every table.
pub const SCHEMA_VERSION_KEY: &str = "llink.schema_version";
/// The metadata key of the stage's key.
pub const STAGE_KEY: &str = "llink.stage_key";
/// The metadata key of a table's role.
pub const ROLE_KEY: &str = "llink.role";

/// The number of rows in a row group of a shard.
pub const ROW_GROUP_ROWS: usize = 8_192;

const CREATED_BY: &str = concat!("llink-datasets version ", env!("CARGO_PKG_VERSION"));

/// The writer settings of a table.
pub(crate) struct Layout<'a> {
    /// Columns with few distinct values.
    pub dictionary: &'a [&'a str],
    /// Columns with minimum and maximum statistics in row groups and pages.
    pub statistics: &'a [&'a str],
    /// Key-value metadata; the schema's version is added.
    pub metadata: &'a BTreeMap<String, String>,
    /// The most rows in a page.
    pub page_rows: Option<usize>,
    /// The zstd compression level.
    pub zstd_level: i32,
}

/// The compression level of shards.
const ZSTD_LEVEL: i32 = 3;

impl<'a> Layout<'a> {
    /// Returns the settings of a shard.
    pub(crate) fn of_shard(dictionary: &'a [&'a str], metadata: &'a BTreeMap<String, String>) -> Self {
        Self { dictionary, statistics: &["id"], metadata, page_rows: None, zstd_level: ZSTD_LEVEL }
    }

    fn properties(&self) -> std::result::Result<WriterProperties, ParquetError> {
        let mut metadata = self.metadata.clone();
        metadata.insert(SCHEMA_VERSION_KEY.into(), SCHEMA_VERSION.into());
        let metadata = metadata.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect();
        let mut properties = WriterProperties::builder()
            .set_created_by(CREATED_BY.into())
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(self.zstd_level)?))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_key_value_metadata(Some(metadata));
        if let Some(rows) = self.page_rows {
            properties = properties.set_data_page_row_count_limit(rows).set_write_batch_size(rows);
        }
        for column in self.dictionary {
            properties = properties.set_column_dictionary_enabled(ColumnPath::from(*column), true);
        }
        for column in self.statistics {
            let column = ColumnPath::from(*column);
            properties = properties.set_column_statistics_enabled(column, EnabledStatistics::Page);
        }
        Ok(properties.build())
    }
}

/// Returns the metadata of a shard.
pub(crate) fn shard_facts(stage_key: &str, role: &Role) -> BTreeMap<String, String> {
    let role = role.to_string();
    let facts = [(SCHEMA_VERSION_KEY, SCHEMA_VERSION), (STAGE_KEY, stage_key), (ROLE_KEY, role.as_str())];
    facts.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// Writes batches as one table. The same batches and layout give the same bytes.
pub(crate) fn encode(
    name: &str,
    schema: &SchemaRef,
    batches: impl IntoIterator<Item = Result<RecordBatch>>,
    layout: &Layout<'_>,
) -> Result<Bytes> {
    let refused = |e: ParquetError| unwritable(name, &e);
    let mut content = Vec::new();
    let properties = layout.properties().map_err(refused)?;
    let mut writer = ArrowWriter::try_new(&mut content, Arc::clone(schema), Some(properties)).map_err(refused)?;
    for batch in batches {
        writer.write(&batch?).map_err(refused)?;
    }
    writer.close().map_err(refused)?;
    Ok(content.into())
}

/// Writes a table batch by batch, each a row group.
pub(crate) struct GroupWriter {
    name: String,
    writer: ArrowWriter<Vec<u8>>,
}

impl GroupWriter {
    /// Opens the writer; `dictionary` names the columns with few distinct values.
    pub(crate) fn new(name: &str, schema: &SchemaRef, dictionary: &[&str]) -> Result<Self> {
        let metadata = BTreeMap::new();
        let layout = Layout { statistics: &[], ..Layout::of_shard(dictionary, &metadata) };
        let properties = layout.properties().map_err(|e| unwritable(name, &e))?;
        let properties = properties.into_builder().set_max_row_group_row_count(None).build();
        let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(schema), Some(properties));
        Ok(Self { name: name.to_owned(), writer: writer.map_err(|e| unwritable(name, &e))? })
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let written = self.writer.write(batch).and_then(|()| self.writer.flush());
        written.map_err(|e| unwritable(&self.name, &e))
    }

    pub(crate) fn finish(self) -> Result<Bytes> {
        let content = self.writer.into_inner().map_err(|e| unwritable(&self.name, &e))?;
        Ok(content.into())
    }
}

fn unwritable(name: &str, error: &ParquetError) -> Error {
    bad(name, format!("can't be written as Parquet: {error}"))
}

/// A table in a store, of which parts can be read.
pub(crate) struct StoredTable {
    name: String,
    bytes: u64,
    builder: ParquetRecordBatchStreamBuilder<ObjectReader>,
}

impl StoredTable {
    pub(crate) async fn open(store: &Store, path: &str) -> Result<Self> {
        let name = store.describe(path);
        let Some(info) = store.head(path).await? else {
            return Err(Error::NotFound { path: name });
        };
        let reader = ObjectReader {
            store: store.clone(),
            path: path.to_owned(),
            location: store.location(path)?,
            bytes: info.bytes,
        };
        // With the offset index, a selection of rows can skip pages.
        let options = ArrowReaderOptions::new().with_offset_index_policy(PageIndexPolicy::Optional);
        let builder = ParquetRecordBatchStreamBuilder::new_with_options(reader, options)
            .await
            .map_err(|e| unreadable(&name, &e))?;
        Ok(Self { name, bytes: info.bytes, builder })
    }

    pub(crate) fn metadata(&self) -> &ParquetMetaData {
        self.builder.metadata()
    }

    /// Returns the size of the file in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the value of a metadata key.
    pub(crate) fn fact(&self, key: &str) -> Option<String> {
        let pairs = self.metadata().file_metadata().key_value_metadata()?;
        pairs.iter().find(|pair| pair.key == key)?.value.clone()
    }

    pub(crate) fn rows(&self) -> u64 {
        u64::try_from(self.metadata().file_metadata().num_rows()).unwrap_or(0)
    }

    /// Returns the names and types of the columns.
    pub(crate) fn columns(&self) -> Vec<(String, String)> {
        let fields = self.builder.schema().fields();
        fields.iter().map(|f| (f.name().clone(), f.data_type().to_string())).collect()
    }

    /// Returns the reader itself.
    pub(crate) fn into_builder(self) -> ParquetRecordBatchStreamBuilder<ObjectReader> {
        self.builder
    }

    /// Reads some columns of all rows, a row group at a time.
    pub(crate) fn stream(self, columns: &[&str]) -> Result<ParquetRecordBatchStream<ObjectReader>> {
        let mask = ProjectionMask::columns(self.builder.parquet_schema(), columns.iter().copied());
        let builder = self.builder.with_projection(mask).with_batch_size(ROW_GROUP_ROWS);
        builder.build().map_err(|e| unreadable(&self.name, &e))
    }

    /// Reads some columns, in the file's order, of all rows, one row group or selected rows.
    pub(crate) async fn read(self, columns: &[&str], part: Part) -> Result<Vec<RecordBatch>> {
        let name = self.name;
        let mask = ProjectionMask::columns(self.builder.parquet_schema(), columns.iter().copied());
        let builder = self.builder.with_projection(mask).with_batch_size(ROW_GROUP_ROWS);
        let builder = match part {
            Part::RowGroup(index) => builder.with_row_groups(vec![index]),
            Part::Rows(selection) => builder.with_row_selection(selection),
        };
        let stream = builder.build().map_err(|e| unreadable(&name, &e))?;
        let batches: Vec<_> = stream.try_collect().await.map_err(|e| unreadable(&name, &e))?;
        batches.iter().try_for_each(|batch| require_columns(&name, batch, columns))?;
        Ok(batches)
    }
}

/// The rows of a table to read.
pub(crate) enum Part {
    RowGroup(usize),
    Rows(RowSelection),
}

/// Reads all columns of a table in memory.
pub(crate) fn decode_all(name: &str, content: Bytes) -> Result<Vec<RecordBatch>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(content).map_err(|e| unreadable(name, &e))?;
    decoded(name, builder)
}

/// Reads some columns of a table in memory.
pub(crate) fn decode(name: &str, content: Bytes, columns: &[&str]) -> Result<Vec<RecordBatch>> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(content).map_err(|e| unreadable(name, &e))?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    let batches = decoded(name, builder.with_projection(mask))?;
    batches.iter().try_for_each(|batch| require_columns(name, batch, columns))?;
    Ok(batches)
}

fn decoded(name: &str, builder: ParquetRecordBatchReaderBuilder<Bytes>) -> Result<Vec<RecordBatch>> {
    let reader = builder.with_batch_size(ROW_GROUP_ROWS).build().map_err(|e| unreadable(name, &e))?;
    reader.collect::<std::result::Result<_, _>>().map_err(|e| undecodable(name, &e))
}

pub(crate) fn require_columns(name: &str, batch: &RecordBatch, columns: &[&str]) -> Result<()> {
    for column in columns {
        let array = batch.column_by_name(column).ok_or_else(|| {
            bad(name, format!("has no column `{column}`; was it written by another version or for another purpose?"))
        })?;
        if array.null_count() > 0 {
            return Err(bad(name, format!("column `{column}` holds nulls")));
        }
    }
    Ok(())
}

/// Returns a column of 64-bit unsigned integers.
pub(crate) fn u64s<'a>(name: &str, batch: &'a RecordBatch, column: &str) -> Result<&'a UInt64Array> {
    let array = array(name, batch, column)?;
    array.as_primitive_opt::<UInt64Type>().ok_or_else(|| wrong_type(name, column, array, "u64"))
}

/// Returns a column of 32-bit unsigned integers.
pub(crate) fn u32s<'a>(name: &str, batch: &'a RecordBatch, column: &str) -> Result<&'a [u32]> {
    let array = array(name, batch, column)?;
    let typed = array.as_primitive_opt::<UInt32Type>().ok_or_else(|| wrong_type(name, column, array, "u32"))?;
    Ok(typed.values())
}

/// Returns a column of text, with or without a dictionary.
pub(crate) fn texts(name: &str, batch: &RecordBatch, column: &str) -> Result<StringArray> {
    let array = array(name, batch, column)?;
    let plain = arrow::compute::cast(array, &DataType::Utf8).map_err(|_| wrong_type(name, column, array, "text"))?;
    plain.as_string_opt::<i32>().cloned().ok_or_else(|| wrong_type(name, column, array, "text"))
}

fn array<'a>(name: &str, batch: &'a RecordBatch, column: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(column).ok_or_else(|| bad(name, format!("has no column `{column}`")))
}

fn wrong_type(name: &str, column: &str, array: &ArrayRef, wanted: &str) -> Error {
    bad(name, format!("column `{column}` holds {}, not {wanted}", array.data_type()))
}

/// Makes an error of a reader's error: the store failed, which may be temporary, or the content is not a table.
pub(crate) fn unreadable(name: &str, error: &ParquetError) -> Error {
    if let ParquetError::External(cause) = error
        && let Some(cause) = cause.downcast_ref::<Error>()
    {
        let path = name.to_owned();
        return match cause {
            Error::NotFound { .. } => Error::NotFound { path },
            Error::Content { reason, .. } => bad(name, reason.clone()),
            Error::Store { source, .. } => Error::Store { path, source: source.to_string().into() },
            other => bad(name, other.to_string()),
        };
    }
    undecodable(name, error)
}

fn undecodable(name: &str, error: &dyn std::fmt::Display) -> Error {
    bad(name, format!("can't be read as Parquet: {error}"))
}

pub(crate) fn bad(name: &str, reason: String) -> Error {
    Error::Content { path: name.to_owned(), reason }
}
