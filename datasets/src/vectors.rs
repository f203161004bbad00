//! Cached sentence vectors. In memory they are one f16 table; on disk they are Parquet with a fixed-size list column.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray, FixedSizeListArray, Float16Array, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Float16Type, Schema};
use bytes::Bytes;
use half::f16;

use crate::Result;
use crate::table::{Layout, ROW_GROUP_ROWS, bad, decode, encode, u64s};

/// The vectors of one model, row by row, each with the id of its pair or instruction. A text that is read sentence by sentence
/// has several rows, one after the other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct VectorTable {
    /// The id of each row's text.
    pub ids: Vec<u64>,
    /// The width of a row, in numbers.
    pub width: usize,
    /// The numbers in row-major order, `ids.len() * width` of them.
    pub values: Vec<f16>,
}

impl VectorTable {
    /// Returns row `index`, a slice of `width` numbers.
    #[must_use]
    pub fn row(&self, index: usize) -> &[f16] {
        &self.values[index * self.width..(index + 1) * self.width]
    }

    /// Returns the rows of each text: the runs of equal ids.
    #[must_use]
    pub fn texts(&self) -> Vec<Range<usize>> {
        let mut start = 0;
        let runs = self.ids.chunk_by(|a, b| a == b).map(|run| {
            start += run.len();
            start - run.len()..start
        });
        runs.collect()
    }

    /// Keeps only the rows of the first `count` texts.
    pub fn truncate_texts(&mut self, count: usize) {
        if let Some(after) = self.texts().get(count) {
            self.ids.truncate(after.start);
            self.values.truncate(after.start * self.width);
        }
    }

    /// Returns the rows whose ids are `kept`, in their order.
    #[must_use]
    pub fn retain(&self, kept: impl Fn(u64) -> bool) -> Self {
        let rows = || (0..self.len()).filter(|row| kept(self.ids[*row]));
        Self {
            ids: rows().map(|row| self.ids[row]).collect(),
            width: self.width,
            values: rows().flat_map(|row| self.row(row)).copied().collect(),
        }
    }

    /// Returns the number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns true if there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Writes vectors as Parquet: `id` and `vector`, a fixed-size list of f16. `metadata` goes into the file's key-value
/// metadata beside the schema's version. The same table and metadata give the same bytes.
///
/// # Errors
/// [`crate::Error::Content`] where the table's parts do not fit together.
pub fn write_vectors(table: &VectorTable, metadata: &BTreeMap<String, String>) -> Result<Bytes> {
    let name = "vectors";
    let refuse = |reason: String| bad(name, reason);
    let width = i32::try_from(table.width)
        .ok()
        .filter(|width| *width > 0 && table.values.len() == table.ids.len() * table.width)
        .ok_or_else(|| {
            let (values, rows) = (table.values.len(), table.ids.len());
            refuse(format!("{values} numbers do not make {rows} rows of {}", table.width))
        })?;
    let item = Arc::new(Field::new("item", DataType::Float16, false));
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::UInt64, false),
        Field::new("vector", DataType::FixedSizeList(Arc::clone(&item), width), false),
    ]));
    let rows = table.ids.chunks(ROW_GROUP_ROWS).zip(table.values.chunks(ROW_GROUP_ROWS * table.width));
    let batches = rows.map(|(ids, values)| {
        let values = Arc::new(Float16Array::from_iter_values(values.iter().copied()));
        let vectors = FixedSizeListArray::try_new(Arc::clone(&item), width, values, None);
        let vectors = vectors.map_err(|e| refuse(e.to_string()))?;
        let ids = UInt64Array::from_iter_values(ids.iter().copied());
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(ids), Arc::new(vectors)]);
        batch.map_err(|e| refuse(e.to_string()))
    });
    encode(name, &schema, batches, &Layout::of_shard(&[], metadata))
}

/// Reads what [`write_vectors`] wrote. Errors call the content `name`.
pub fn read_vectors(name: &str, content: Bytes) -> Result<VectorTable> {
    let mut table = VectorTable::default();
    for batch in decode(name, content, &["id", "vector"])? {
        let wrong = || bad(name, "column `vector` is not a fixed-size list of f16".to_owned());
        let column = batch.column_by_name("vector").ok_or_else(wrong)?;
        let vectors = column.as_fixed_size_list_opt().ok_or_else(wrong)?;
        let values = vectors.values().as_primitive_opt::<Float16Type>().ok_or_else(wrong)?;
        if values.null_count() > 0 {
            return Err(bad(name, "column `vector` holds nulls".to_owned()));
        }
        table.width = usize::try_from(vectors.value_length()).map_err(|_| wrong())?;
        table.ids.extend(u64s(name, &batch, "id")?.values());
        table.values.extend_from_slice(values.values());
    }
    if table.is_empty() {
        return Err(bad(name, "holds no vectors".to_owned()));
    }
    Ok(table)
}

/// Concatenates the rows of all tables.
///
/// # Errors
/// [`crate::Error::Content`] where widths differ.
pub fn concat(tables: Vec<VectorTable>) -> Result<VectorTable> {
    let mut tables = tables.into_iter();
    let mut all = tables.next().unwrap_or_default();
    for (index, table) in (1..).zip(tables) {
        if table.width != all.width {
            let reason = format!("table {index} is {} wide, the first {}", table.width, all.width);
            return Err(bad("vectors", reason));
        }
        all.ids.extend(table.ids);
        all.values.extend(table.values);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: usize, width: usize) -> VectorTable {
        VectorTable {
            ids: (0..rows as u64).map(|row| row.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect(),
            width,
            values: (0..rows * width).map(|i| f16::from_f32((i % 1000) as f32 / 7.0)).collect(),
        }
    }

    #[test]
    fn what_is_written_is_read_back_over_row_groups() {
        let table = table(ROW_GROUP_ROWS + 5, 3);
        let content = write_vectors(&table, &BTreeMap::new()).unwrap();
        assert_eq!(write_vectors(&table, &BTreeMap::new()).unwrap(), content);
        assert_eq!(read_vectors("v", content).unwrap(), table);
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let mut short = table(2, 4);
        short.values.pop();
        assert!(write_vectors(&short, &BTreeMap::new()).unwrap_err().to_string().contains("7 numbers"));
        assert!(concat(vec![table(1, 2), table(1, 3)]).is_err());
        assert!(read_vectors("v.parquet", Bytes::from_static(b"PAR1")).unwrap_err().to_string().contains("v.parquet"));
    }

    #[test]
    fn rows_are_kept_by_their_ids() {
        let all = table(4, 2);
        let kept = all.retain(|id| id != all.ids[1]);
        assert_eq!(kept.ids, [all.ids[0], all.ids[2], all.ids[3]]);
        assert_eq!((kept.row(0), kept.row(1), kept.len()), (all.row(0), all.row(2), 3));
    }

    #[test]
    fn a_text_with_several_rows_stays_whole() {
        let mut table = VectorTable { ids: vec![7, 7, 7, 2, 9, 9], ..table(6, 2) };
        assert_eq!(table.texts(), [0..3, 3..4, 4..6]);
        table.truncate_texts(3);
        assert_eq!(table.len(), 6);
        table.truncate_texts(2);
        assert_eq!((table.ids.as_slice(), table.values.len()), ([7, 7, 7, 2].as_slice(), 8));
        table.truncate_texts(0);
        assert!(table.is_empty() && table.values.is_empty());
    }

    #[test]
    fn tables_are_joined_in_order() {
        let joined = concat(vec![table(2, 2), table(1, 2)]).unwrap();
        assert_eq!((joined.len(), joined.row(2)), (3, table(1, 2).row(0)));
    }
}
