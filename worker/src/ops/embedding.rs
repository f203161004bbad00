//! The rows of a frozen embedding.

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::product::Stored;
use crate::{Error, Result};

/// The id of a position without a token, such as a slot in a vocabulary without a spare token.
pub const NO_TOKEN: u32 = u32::MAX - 1;

/// The number of rows that are summed at once for the mean.
const SUMMED: usize = 1_024;

/// A table `[vocab, width]` whose rows are looked up by token id. A position without a token has the mean of all rows.
pub(crate) struct Embedding {
    table: Table,
    mean: OnceLock<Tensor>, // [1, width]
}

enum Table {
    /// The table on the CPU, read in place. Rows are returned as f32.
    Host { stored: Stored, vocab: usize, width: usize },
    /// The table on any other device, in its own dtype.
    Tensor(Tensor),
}

impl Embedding {
    /// Wraps a table `[vocab, width]` on any device.
    pub(crate) fn of_tensor(table: Tensor) -> Self {
        Self { table: Table::Tensor(table), mean: OnceLock::new() }
    }

    /// Wraps a table `[vocab, width]` on the CPU.
    pub(crate) fn of_stored(stored: Stored, [vocab, width]: [usize; 2]) -> Self {
        Self { table: Table::Host { stored, vocab, width }, mean: OnceLock::new() }
    }

    /// Returns the rows of `ids`, `[T, width]`.
    ///
    /// # Errors
    /// [`Error::Input`] for an id outside the vocabulary.
    pub(crate) fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let vocab = self.vocab()?;
        // A GPU would read beyond the table without an error.
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab && **id != NO_TOKEN) {
            return Err(Error::Input(format!("token id {id} is outside the {vocab} embeddings")));
        }
        let without: Vec<u8> = ids.iter().map(|id| u8::from(*id == NO_TOKEN)).collect();
        let mean = without.contains(&1).then(|| self.mean()).transpose()?;
        match &self.table {
            Table::Tensor(table) => {
                let looked_up: Vec<u32> = ids.iter().map(|id| if *id == NO_TOKEN { 0 } else { *id }).collect();
                let rows = table.index_select(&Tensor::new(looked_up, table.device())?, 0)?;
                let Some(mean) = mean else { return Ok(rows) };
                let without = Tensor::new(without, table.device())?.unsqueeze(1)?;
                let shape = rows.shape();
                Ok(without.broadcast_as(shape)?.where_cond(&mean.broadcast_as(shape)?, &rows)?)
            }
            Table::Host { stored, width, .. } => {
                let view = stored.view();
                let mean = mean.map(|mean| mean.flatten_all()?.to_vec1::<f32>()).transpose()?;
                let mut out = vec![0f32; ids.len() * width];
                out.par_chunks_mut(*width).zip(ids).for_each(|(row, id)| match &mean {
                    Some(mean) if *id == NO_TOKEN => row.copy_from_slice(mean),
                    _ => view.read(*id as usize * width, row),
                });
                Ok(Tensor::from_vec(out, (ids.len(), *width), &Device::Cpu)?)
            }
        }
    }

    /// Returns the whole table, `[vocab, width]`. A mapped table is copied.
    pub(crate) fn table(&self) -> Result<Tensor> {
        self.part(0, self.vocab()?)
    }

    fn vocab(&self) -> Result<usize> {
        match &self.table {
            Table::Tensor(table) => Ok(table.dim(0)?),
            Table::Host { vocab, .. } => Ok(*vocab),
        }
    }

    /// Returns `count` rows from `first` on.
    fn part(&self, first: usize, count: usize) -> Result<Tensor> {
        match &self.table {
            Table::Tensor(table) => Ok(table.narrow(0, first, count)?),
            Table::Host { stored, width, .. } => {
                let mut out = vec![0f32; count * width];
                stored.view().read_parallel(first * width, &mut out);
                Ok(Tensor::from_vec(out, (count, *width), &Device::Cpu)?)
            }
        }
    }

    /// Returns the mean of all rows, in their dtype.
    fn mean(&self) -> Result<Tensor> {
        if let Some(mean) = self.mean.get() {
            return Ok(mean.clone());
        }
        let vocab = self.vocab()?;
        let mut sum = None;
        for first in (0..vocab).step_by(SUMMED) {
            let part = self.part(first, SUMMED.min(vocab - first))?.to_dtype(DType::F32)?;
            let part = part.sum_keepdim(0)?.to_dtype(DType::F64)?;
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
        }
        let sum = sum.ok_or_else(|| Error::Input("an embedding without rows has no mean".into()))?;
        let mean = (sum / vocab as f64)?.to_dtype(self.part(0, 1)?.dtype())?;
        Ok(self.mean.get_or_init(|| mean).clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{random, relative_error};
    use super::*;

    #[test]
    fn a_position_without_a_token_has_the_mean_of_all_rows() {
        let table = random(2_500, 6, 4);
        let values: Vec<f32> = table.flatten_all().unwrap().to_vec1().unwrap();
        let expected = table.mean_keepdim(0).unwrap();
        let ids = [7, NO_TOKEN, 2_499, NO_TOKEN];
        for embedding in
            [Embedding::of_tensor(table.clone()), Embedding::of_stored(Stored::F32(Arc::new(values)), [2_500, 6])]
        {
            let rows = embedding.rows(&ids).unwrap();
            for (row, wanted) in [
                (0, table.narrow(0, 7, 1)),
                (1, Ok(expected.clone())),
                (2, table.narrow(0, 2_499, 1)),
                (3, Ok(expected.clone())),
            ] {
                let found = rows.narrow(0, row, 1).unwrap();
                assert!(relative_error(&found, &wanted.unwrap()) < 1e-5, "row {row}");
            }
            assert!(embedding.rows(&[2_500]).is_err());
        }
    }
}
