//! Step three of the `shard` stage: writes one shard of the assignment.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, DictionaryArray, RecordBatch, StringArray, UInt16Array, UInt64Array};
use arrow::compute::{concat_batches, interleave};
use arrow::datatypes::Int32Type;
use parquet::arrow::arrow_reader::RowSelection;

use super::{Progress, SOURCE_KEY, text_columns};
use crate::Result;
use crate::manifest::ManifestArtifact;
use crate::role::{Corpus, Role};
use crate::rows::row_id;
use crate::store::Store;
use crate::table::{Layout, Part, StoredTable, bad, encode, shard_facts, texts, u32s, u64s};

/// The shard to write, and its role and metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteSpec {
    /// The kind of rows in the corpus.
    pub corpus: Corpus,
    /// The cleaned tables, in the order that [`super::split_corpus`] was given.
    pub cleaned: Vec<String>,
    /// The path of the assignment.
    pub assignment: String,
    /// The shard's index in the assignment.
    pub shard: u32,
    /// The path of the shard.
    pub path: String,
    /// The role of the shard.
    pub role: Role,
    /// The key of the stage, for the metadata.
    pub stage_key: String,
}

/// Reads the rows that the assignment names and writes them as one shard. The same rows give the same bytes.
///
/// # Errors
/// [`crate::Error`] where the assignment does not fit the cleaned tables, or the shard can't be written.
pub async fn write_shard(spec: &WriteSpec, store: &Store, progress: Progress<'_>) -> Result<ManifestArtifact> {
    let places = read_assignment(spec, store).await?;
    let steps = spec.cleaned.len() as u64 + 1;
    let mut parts: Vec<Option<(String, RecordBatch)>> = Vec::new();
    for (file, path) in (0_u32..).zip(&spec.cleaned) {
        let mut rows: Vec<u32> = places.iter().filter(|place| place.0 == file).map(|place| place.1).collect();
        rows.sort_unstable();
        parts.push(match rows.last() {
            None => None,
            Some(last) => Some(read_rows(spec.corpus, store, path, &rows, *last).await?),
        });
        progress(u64::from(file) + 1, steps);
    }
    let name = store.describe(&spec.path);
    let batch = gather(spec, &name, &places, &parts)?;
    let metadata = shard_facts(&spec.stage_key, &spec.role);
    let layout = Layout::of_shard(&["source", "task", "instruction"], &metadata);
    let rows = batch.num_rows() as u64;
    let content = encode(&name, &batch.schema(), [Ok(batch)], &layout)?;
    let artifact = ManifestArtifact::of(&spec.path, spec.role.clone(), rows, &content, metadata);
    store.put(&spec.path, content).await?;
    progress(steps, steps);
    Ok(artifact)
}

/// Returns (file, row) of each row of the shard, in order.
async fn read_assignment(spec: &WriteSpec, store: &Store) -> Result<Vec<(u32, u32)>> {
    let name = store.describe(&spec.assignment);
    let table = StoredTable::open(store, &spec.assignment).await?;
    let shards = table.metadata().num_row_groups();
    if spec.shard as usize >= shards {
        return Err(bad(&name, format!("has {shards} shards; there is no shard {}", spec.shard)));
    }
    let mut places = Vec::new();
    for batch in table.read(&["shard", "file", "row"], Part::RowGroup(spec.shard as usize)).await? {
        if let Some(other) = u32s(&name, &batch, "shard")?.iter().find(|shard| **shard != spec.shard) {
            return Err(bad(&name, format!("row group {} holds shard {other}", spec.shard)));
        }
        let files = u32s(&name, &batch, "file")?;
        let rows = u32s(&name, &batch, "row")?;
        places.extend(files.iter().copied().zip(rows.iter().copied()));
    }
    if let Some((file, _)) = places.iter().find(|(file, _)| *file as usize >= spec.cleaned.len()) {
        let reason = format!("names cleaned table {file}, but there are {}", spec.cleaned.len());
        return Err(bad(&name, reason));
    }
    Ok(places)
}

/// Returns the source's name, and the selected rows of a cleaned table in order.
async fn read_rows(
    corpus: Corpus,
    store: &Store,
    path: &str,
    rows: &[u32],
    last: u32,
) -> Result<(String, RecordBatch)> {
    let name = store.describe(path);
    let table = StoredTable::open(store, path).await?;
    if u64::from(last) >= table.rows() {
        let reason =
            format!("has {} rows, the assignment names row {last}: it was made from another table", table.rows());
        return Err(bad(&name, reason));
    }
    let source = table.fact(SOURCE_KEY).ok_or_else(|| bad(&name, "is not a cleaned table".into()))?;
    let total = table.rows() as usize;
    let ranges = rows.chunk_by(|a, b| a + 1 == *b).map(|run| run[0] as usize..run[run.len() - 1] as usize + 1);
    let selection = RowSelection::from_consecutive_ranges(ranges, total);
    let mut columns = vec!["id"];
    columns.extend(text_columns(corpus));
    let batches = table.read(&columns, Part::Rows(selection)).await?;
    let schema = batches.first().map(RecordBatch::schema).ok_or_else(|| bad(&name, "gave no rows".into()))?;
    let batch = concat_batches(&schema, &batches).map_err(|e| bad(&name, e.to_string()))?;
    if batch.num_rows() != rows.len() {
        return Err(bad(&name, format!("gave {} rows of {}", batch.num_rows(), rows.len())));
    }
    Ok((source, batch))
}

/// Puts the rows of all tables into the order and columns of the shard.
fn gather(
    spec: &WriteSpec,
    name: &str,
    places: &[(u32, u32)],
    parts: &[Option<(String, RecordBatch)>],
) -> Result<RecordBatch> {
    let used: Vec<&(String, RecordBatch)> = parts.iter().flatten().collect();
    let order = interleaving(places, parts);
    let take = |column: &str| -> Result<ArrayRef> {
        let columns: Vec<&dyn Array> =
            used.iter().filter_map(|(_, batch)| batch.column_by_name(column)).map(AsRef::as_ref).collect();
        interleave(&columns, &order).map_err(|e| bad(name, format!("column `{column}`: {e}")))
    };
    let mut columns = vec![("id", take("id")?)];
    for column in text_columns(spec.corpus) {
        columns.push((column, take(column)?));
    }
    let batch =
        |columns: Vec<(&str, ArrayRef)>| RecordBatch::try_from_iter(columns).map_err(|e| bad(name, e.to_string()));
    let plain = batch(columns.clone())?;
    verify_ids(spec.corpus, name, &plain)?;
    match spec.corpus {
        Corpus::Pairs => {
            columns.push(("foreign_chars", Arc::new(count_chars(name, &texts(name, &plain, "foreign")?)?)));
            let sources: DictionaryArray<Int32Type> = order.iter().map(|(part, _)| used[*part].0.as_str()).collect();
            columns.push(("source", Arc::new(sources)));
        }
        Corpus::Instructions => {
            let tasks: DictionaryArray<Int32Type> = texts(name, &plain, "task")?.iter().flatten().collect();
            if let Some((_, column)) = columns.iter_mut().find(|(name, _)| *name == "task") {
                *column = Arc::new(tasks);
            }
        }
    }
    batch(columns)
}

/// Returns for each row of the shard the table that holds it, and its position among the rows read from that table.
fn interleaving(places: &[(u32, u32)], parts: &[Option<(String, RecordBatch)>]) -> Vec<(usize, usize)> {
    let mut sorted: Vec<usize> = (0..places.len()).collect();
    sorted.sort_unstable_by_key(|index| places[*index]);
    let mut order = vec![(0, 0); places.len()];
    let (mut file, mut next_row) = (None, 0);
    for index in sorted {
        if file != Some(places[index].0) {
            (file, next_row) = (Some(places[index].0), 0);
        }
        let part = parts[..places[index].0 as usize].iter().flatten().count();
        order[index] = (part, next_row);
        next_row += 1;
    }
    order
}

/// Checks that ids are the hashes of the texts, which finds a damaged table or a wrong one.
fn verify_ids(corpus: Corpus, name: &str, batch: &RecordBatch) -> Result<()> {
    let ids: &UInt64Array = u64s(name, batch, "id")?;
    let columns: Vec<StringArray> =
        text_columns(corpus).iter().map(|column| texts(name, batch, column)).collect::<Result<_>>()?;
    for row in 0..batch.num_rows() {
        let row_texts: Vec<&str> = columns.iter().map(|column| column.value(row)).collect();
        if row_id(&row_texts) != ids.value(row) {
            return Err(bad(name, format!("row {row}: the id {} is not that of its texts", ids.value(row))));
        }
    }
    Ok(())
}

fn count_chars(name: &str, foreign: &StringArray) -> Result<UInt16Array> {
    let count = |(row, text): (usize, &str)| {
        let count = text.chars().count();
        u16::try_from(count).map_err(|_| bad(name, format!("row {row}: {count} characters are too many")))
    };
    let chars: Result<Vec<u16>> = foreign.iter().flatten().enumerate().map(count).collect();
    chars.map(Into::into)
}
