//! The products by the `gemm` crate. f32 weights are read in place. Others are unpacked to f32, a block of rows at a
//! time.

use std::cell::Cell;

use gemm::Parallelism;

use super::{FrozenMatrix, View};

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
        accumulate(
            (rows, n, inner),
            (&mut out[first.min(rows * outer)..], outer),
            (x, 1, inner),
            (block, inner, 1),
        );
    });
}

/// Computes out `[rows, inner]` += g `[rows, outer]` · W.
pub(super) fn gradient(weight: &FrozenMatrix, g: &[f32], rows: usize, out: &mut [f32]) {
    let (outer, inner) = (weight.outer, weight.inner);
    blocks(weight, |first, block| {
        let n = block.len() / inner;
        accumulate(
            (rows, inner, n),
            (out, inner),
            (&g[first.min(rows * outer)..], 1, outer),
            (block, 1, inner),
        );
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

/// Computes dst `[m, n]` (rows `stride` apart) += lhs `[m, k]` · rhs `[k, n]`. Each operand has a column stride and a
/// row stride.
fn accumulate(
    (m, n, k): (usize, usize, usize),
    (dst, stride): (&mut [f32], usize),
    (lhs, lhs_columns, lhs_rows): (&[f32], usize, usize),
    (rhs, rhs_columns, rhs_rows): (&[f32], usize, usize),
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let last = |rows: usize, row: usize, columns: usize, column: usize| (rows - 1) * row + (columns - 1) * column;
    assert!(last(m, stride, n, 1) < dst.len(), "the product fits its destination");
    assert!(
        last(m, lhs_rows, k, lhs_columns) < lhs.len(),
        "the left operand is complete"
    );
    assert!(
        last(k, rhs_rows, n, rhs_columns) < rhs.len(),
        "the right operand is complete"
    );
    // SAFETY: the last element of each operand is within its slice, as just checked.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            stride as isize,
            true,
            lhs.as_ptr(),
            lhs_columns as isize,
            lhs_rows as isize,
            rhs.as_ptr(),
            rhs_columns as isize,
            rhs_rows as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(rayon::current_num_threads()),
        );
    }
}
