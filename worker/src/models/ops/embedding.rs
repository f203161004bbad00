//! Rows of a frozen table.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::product::Stored;
use crate::{Error, Result};

/// A table [vocab, width] whose rows are looked up by token id.
pub(crate) enum Embedding {
    /// On the CPU, read where it lies; rows come out as f32.
    Host {
        /// The rows.
        stored: Stored,
        /// How many.
        vocab: usize,
        /// Values in each.
        width: usize,
    },
    /// Anywhere else, in its own dtype.
    Tensor(Tensor),
}

impl Embedding {
    /// The rows of `ids`, [T, width].
    ///
    /// # Errors
    /// [`Error::Input`] for an id outside the vocabulary.
    pub(crate) fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let (stored, vocab, width) = match self {
            Self::Tensor(table) => {
                // A GPU reads beyond the table without a word.
                check(ids, table.dim(0)?)?;
                return Ok(table.index_select(&Tensor::new(ids, table.device())?, 0)?);
            }
            Self::Host { stored, vocab, width } => (stored.view(), *vocab, *width),
        };
        check(ids, vocab)?;
        let mut out = vec![0f32; ids.len() * width];
        out.par_chunks_mut(width)
            .zip(ids)
            .for_each(|(row, id)| stored.read(*id as usize * width, row));
        Ok(Tensor::from_vec(out, (ids.len(), width), &Device::Cpu)?)
    }

    /// The whole table, [vocab, width]: a copy when it is mapped.
    ///
    /// # Errors
    /// [`Error::Tensor`] when the device fails.
    pub(crate) fn table(&self) -> Result<Tensor> {
        match self {
            Self::Tensor(table) => Ok(table.clone()),
            Self::Host { stored, vocab, width } => {
                let mut out = vec![0f32; vocab * width];
                stored.view().read_parallel(0, &mut out);
                Ok(Tensor::from_vec(out, (*vocab, *width), &Device::Cpu)?)
            }
        }
    }
}

fn check(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        Some(id) => Err(Error::Input(format!("token id {id} is outside the {vocab} embeddings"))),
        None => Ok(()),
    }
}
