//! Small products of matrices that lie strided in larger buffers, as an attention head's do.

use gemm::Parallelism;

use crate::llink::matrix::Existing;

/// dst [m, n] (rows `stride` apart) = scale · lhs [m, k] · rhs [k, n], or its sum with what stands there; each operand
/// with its column and row strides. On one thread.
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
        "the left operand is there"
    );
    assert!(
        (k - 1) * rhs_rows + (n - 1) * rhs_columns < rhs.len(),
        "the right operand is there"
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
