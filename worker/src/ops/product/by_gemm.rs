//! The products by the `gemm` crate. f32 weights are read in place. Others are unpacked to f32, a block of rows at a
//! time.

use std::cell::Cell;

use super::{FrozenMatrix, View};
use crate::numerics::matrix::{Matrix, Target, matmul_add};

/// The number of values of W that are unpacked at a time. The crate reorders x for each block, so blocks of 16 MiB are
/// faster than those that fit a cache.
const BLOCK: usize = 1 << 22;

thread_local! {
    /// The block that was unpacked last. Its memory is used again.
    static UNPACKED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Computes out `[rows, outer]` += x `[rows, inner]` · Wᵀ.
pub(super) fn product(weight: &FrozenMatrix, x: &[f32], rows: usize, out: &mut [f32]) {
    let (outer, inner) = (weight.outer, weight.inner);
    blocks(weight, |first, block| {
        let n = block.len() / inner;
        let weights = Matrix::new(block, n, inner).transposed();
        matmul_add(Matrix::new(x, rows, inner), weights, Target::columns_from(out, outer, first), 1.0);
    });
}

/// Computes out `[rows, inner]` += g `[rows, outer]` · W.
pub(super) fn gradient(weight: &FrozenMatrix, g: &[f32], rows: usize, out: &mut [f32]) {
    let (outer, inner) = (weight.outer, weight.inner);
    blocks(weight, |first, block| {
        let n = block.len() / inner;
        let part = Matrix::strided(&g[first..], rows, n, outer);
        matmul_add(part, Matrix::new(block, n, inner), Target::new(out, inner), 1.0);
    });
}

/// Calls `multiply` with the first row and the f32 values of each block of W's rows.
fn blocks(weight: &FrozenMatrix, mut multiply: impl FnMut(usize, &[f32])) {
    let view = weight.view();
    if let View::F32(values) = view {
        return multiply(0, values);
    }
    let rows = (BLOCK / weight.inner).clamp(1, weight.outer);
    let mut unpacked = UNPACKED.take();
    unpacked.resize(unpacked.len().max(rows * weight.inner), 0.0);
    for first in (0..weight.outer).step_by(rows) {
        let block = &mut unpacked[..rows.min(weight.outer - first) * weight.inner];
        view.read_parallel(first * weight.inner, block);
        multiply(first, block);
    }
    UNPACKED.set(unpacked);
}
