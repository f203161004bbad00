//! Both stages' steps on a device: the same losses and gradients as on slices, in tensors that never leave it but for a handful of
//! numbers a step. Masters and moments are f32, products in what the backend computes in.
//!
//! It runs on any device; the tests hold it to the slices on the CPU.

mod adamw;
mod align;
mod align_loss;
mod extent;
mod instruct;
mod queue;
mod slots;

pub use align::DeviceAlignTrainer;
pub use instruct::DeviceInstructTrainer;
pub(crate) use instruct::in_slots;

use candle_core::{DType, Tensor};

use crate::Result;

/// A long row is summed in pieces: a GPU gives each sum to one of its blocks.
const PIECE: usize = 1024;

/// How many numbers a flat buffer for `count` of them has: whole pieces.
const fn padded(count: usize) -> usize {
    count.div_ceil(PIECE) * PIECE
}

/// Pieces one after another as a flat buffer in f32, with zeros behind them.
fn flat(pieces: &[Tensor]) -> Result<Tensor> {
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
fn sum_of_squares(x: &Tensor) -> Result<Tensor> {
    let pieces = x.elem_count() / PIECE;
    Ok(x.sqr()?.reshape((pieces, PIECE))?.sum(1)?.sum_all()?)
}

/// Rows of norm 1 and their norms [n, 1]: f32 [n, d].
fn normalized(rows: &Tensor) -> Result<(Tensor, Tensor)> {
    let norms = rows.sqr()?.sum_keepdim(1)?.sqrt()?;
    let unit = rows.broadcast_div(&norms.maximum(1e-12)?)?;
    Ok((unit, norms))
}

/// From the gradient by normalized rows to that by the rows: (g − (g·x̂) x̂) / |x|.
fn through_normalization(by: &Tensor, unit: &Tensor, norms: &Tensor) -> Result<Tensor> {
    let along = (by * unit)?.sum_keepdim(1)?;
    Ok((by - unit.broadcast_mul(&along)?)?.broadcast_div(&norms.maximum(1e-12)?)?)
}
