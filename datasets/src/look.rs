//! Shows shards as tables: where they are, and their columns as plain values.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, FixedSizeListArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Float16Type, UInt64Type};
use arrow::error::ArrowError;

use crate::Result;
use crate::role::Role;
use crate::store::Store;
use crate::table::{ROLE_KEY, StoredTable, bad, decode_all, texts};

/// A Parquet file with the contents of its footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardInfo {
    /// Path relative to the store.
    pub path: String,
    /// The role; the name of the folder if the file has none.
    pub role: Role,
    /// Number of rows.
    pub rows: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// Names and types of the columns.
    pub columns: Vec<(String, String)>,
    /// The key-value metadata of the file.
    pub facts: BTreeMap<String, String>,
}

/// Lists every Parquet file at or below a store's URL, sorted by path.
pub async fn shards(store: &Store) -> Result<Vec<ShardInfo>> {
    let mut found = Vec::new();
    for object in store.list("").await? {
        // The files that an unfinished stage passes between its tasks are not shown to people.
        let is_work = object.path.contains("/work/") || object.path.starts_with("work/");
        if object.path.ends_with(".parquet") && !is_work {
            found.push(shard(store, &object.path, object.bytes).await?);
        }
    }
    Ok(found)
}

/// Reads the footer of one Parquet file.
pub async fn shard(store: &Store, path: &str, bytes: u64) -> Result<ShardInfo> {
    let table = StoredTable::open(store, path).await?;
    let pairs = table.metadata().file_metadata().key_value_metadata();
    let facts: BTreeMap<_, _> = pairs
        .into_iter()
        .flatten()
        .filter_map(|pair| Some((pair.key.clone(), pair.value.clone()?)))
        .filter(|(key, _)| key != "ARROW:schema")
        .collect();
    let folder = path.rsplit_once('/').map_or("table", |(folder, _)| folder);
    Ok(ShardInfo {
        path: path.to_owned(),
        role: facts.get(ROLE_KEY).map_or(folder, String::as_str).into(),
        rows: table.rows(),
        bytes,
        columns: table.columns(),
        facts,
    })
}

/// The values of a column.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// A column of whole numbers.
    Numbers(Vec<u64>),
    /// A column of texts.
    Texts(Vec<String>),
    /// The Euclidean norm of each vector in a column of vectors.
    Norms(Vec<f32>),
}

/// Reads the columns of a shard, in its order. A column `vector` becomes `norm`, and columns of other types are left
/// out.
pub async fn columns(store: &Store, path: &str) -> Result<Vec<(String, Values)>> {
    let name = store.describe(path);
    let batches = decode_all(&name, store.get(path).await?)?;
    let Some(first) = batches.first() else { return Ok(Vec::new()) };
    let refused = |e: ArrowError| bad(&name, e.to_string());
    let batch = concat_batches(first.schema_ref(), &batches).map_err(refused)?;
    let mut columns = Vec::new();
    for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
        let column = field.name();
        let values = match array.data_type() {
            DataType::UInt64 | DataType::UInt32 | DataType::UInt16 => {
                let wide = cast(array, &DataType::UInt64).map_err(refused)?;
                Some(Values::Numbers(wide.as_primitive::<UInt64Type>().values().to_vec()))
            }
            DataType::Utf8 | DataType::Dictionary(..) => {
                let texts = texts(&name, &batch, column)?;
                Some(Values::Texts(texts.iter().map(|text| text.unwrap_or("").to_owned()).collect()))
            }
            DataType::FixedSizeList(..) => norms(array.as_fixed_size_list()).map(Values::Norms),
            _ => None,
        };
        let renamed = if matches!(values, Some(Values::Norms(_))) { "norm" } else { column };
        columns.extend(values.map(|values| (renamed.to_owned(), values)));
    }
    Ok(columns)
}

fn norms(vectors: &FixedSizeListArray) -> Option<Vec<f32>> {
    let width = usize::try_from(vectors.value_length()).ok().filter(|width| *width > 0)?;
    let values = vectors.values().as_primitive_opt::<Float16Type>()?;
    let norm = |row: &[half::f16]| row.iter().map(|v| v.to_f32() * v.to_f32()).sum::<f32>().sqrt();
    Some(values.values().chunks_exact(width).map(norm).collect())
}
