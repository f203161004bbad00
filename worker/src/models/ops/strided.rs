//! Small products of matrices with strides in larger buffers, such as those of an attention head.

use gemm::Parallelism;

use crate::numerics::matrix::Existing;

/// Computes dst `[m, n]` (rows `stride` apart) = scale · lhs `[m, k]` · rhs `[k, n]`, or adds it to dst. Each operand
/// has a column stride and a row stride. It runs on one thread.
pub(super) fn product(
    (m, n, k): (usize, usize, usize),
    (dst, stride, existing): (&mut [f32], usize, Existing),
    (lhs, lhs_columns, lhs_rows): (&[f32], usize, usize),
    (rhs, rhs_columns, rhs_rows): (&[f32], usize, usize),
    scale: f32,
) {
    assert!((m - 1) * stride + n <= dst.len(), "the product fits its destination");
    assert!(
        (m - 1) * lhs_rows + (k - 1) * lhs_columns < lhs.len(),
        "the left operand is complete"
    );
    assert!(
        (k - 1) * rhs_rows + (n - 1) * rhs_columns < rhs.len(),
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
            existing == Existing::Kept,
            lhs.as_ptr(),
            lhs_columns as isize,
            lhs_rows as isize,
            rhs.as_ptr(),
            rhs_columns as isize,
            rhs_rows as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
