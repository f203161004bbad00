//! Cached sentence vectors: in memory as one f16 table, on disk as Parquet with a fixed-size list column.

use half::f16;

/// Vectors of one model, row by row, each with the id of its pair.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorTable {
    /// Pair ids, one a row.
    pub ids: Vec<u64>,
    /// Numbers in a row.
    pub width: usize,
    /// Row-major, `ids.len() * width` numbers.
    pub values: Vec<f16>,
}

impl VectorTable {
    /// Row `index` as a slice of `width` numbers.
    #[must_use]
    pub fn row(&self, index: usize) -> &[f16] {
        &self.values[index * self.width..(index + 1) * self.width]
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}
