//! Stage A's step on a device: the same losses and gradients as on slices, in tensors that never leave it but for a handful of
//! numbers a step. Masters and moments are f32, products in what the backend computes in.
//!
//! It runs on any device; the tests hold it to the slices on the CPU.

mod adamw;
mod align;
mod align_loss;
mod queue;

pub(crate) use adamw::DeviceAdamW;
pub use align::DeviceAlignTrainer;

use candle_core::{DType, Tensor};

use crate::Result;
use crate::llink::rows::{normalized, through_normalization};

/// A long row is summed in pieces: a GPU gives each sum to one of its blocks.
const PIECE: usize = 1024;

/// How many numbers a flat buffer for `count` of them has: whole pieces.
const fn padded(count: usize) -> usize {
    count.div_ceil(PIECE) * PIECE
}

/// Pieces one after another as a flat buffer in f32, with zeros behind them.
pub(super) fn flat(pieces: &[Tensor]) -> Result<Tensor> {
    let mut parts = Vec::with_capacity(pieces.len() + 1);
    for piece in pieces {
        parts.push(piece.flatten_all()?.to_dtype(DType::F32)?);
    }
    let count: usize = parts.iter().map(Tensor::elem_count).sum();
    let missing = padded(count) - count;
    let device = pieces.first().map(Tensor::device);
    if let (Some(device), 1..) = (device, missing) {
        parts.push(Tensor::zeros(missing, DType::F32, device)?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

/// Σ x² of a flat buffer.
pub(super) fn sum_of_squares(x: &Tensor) -> Result<Tensor> {
    let pieces = x.elem_count() / PIECE;
    Ok(x.sqr()?.reshape((pieces, PIECE))?.sum(1)?.sum_all()?)
}
