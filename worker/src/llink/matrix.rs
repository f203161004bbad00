//! Products of f32 matrices that lie in flat buffers.

use gemm::Parallelism;

/// Products with fewer multiplications than this are not worth waking other threads for.
const PARALLEL_FROM: usize = 1 << 23;

/// A matrix to read: a row-major buffer, or the transpose of one.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// The row-major matrix `[rows, columns]` that `values` holds.
    ///
    /// # Panics
    /// When `values` has another length.
    #[must_use]
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} x {columns}");
        Self {
            values,
            rows,
            columns,
            row_stride: columns,
            column_stride: 1,
        }
    }

    /// The same numbers with rows and columns exchanged; nothing moves.
    #[must_use]
    pub const fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// Where a product goes: `[rows, columns]` at an offset in a row-major buffer whose rows are `stride` apart.
#[derive(Debug)]
pub struct Target<'a> {
    values: &'a mut [f32],
    stride: usize,
}

impl<'a> Target<'a> {
    /// A buffer that the product fills, its columns side by side.
    #[must_use]
    pub const fn new(values: &'a mut [f32], columns: usize) -> Self {
        Self {
            values,
            stride: columns,
        }
    }

    /// A block of columns that starts at column `first` of a wider buffer whose rows have `width` columns.
    ///
    /// # Panics
    /// When `first` is beyond the buffer.
    #[must_use]
    pub fn columns_from(values: &'a mut [f32], width: usize, first: usize) -> Self {
        Self {
            values: &mut values[first..],
            stride: width,
        }
    }
}

/// Writes `left · right` to `target`, with all of rayon's threads when the product is large.
///
/// # Panics
/// When the shapes do not fit each other or the target.
pub fn matmul(left: Matrix<'_>, right: Matrix<'_>, target: Target<'_>) {
    multiply_into(left, right, target, Existing::Overwritten, 1.0);
}

/// Adds `factor · left · right` to `target`; otherwise as [`matmul`].
///
/// # Panics
/// When the shapes do not fit each other or the target.
pub fn matmul_add(left: Matrix<'_>, right: Matrix<'_>, target: Target<'_>, factor: f32) {
    multiply_into(left, right, target, Existing::Kept, factor);
}

/// What becomes of the numbers that stand where a product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// The product replaces them.
    Overwritten,
    /// The product is added to them.
    Kept,
}

/// Writes `factor · left · right` to `target`, or adds it to what is there.
///
/// # Panics
/// When the shapes do not fit each other or the target.
pub fn multiply_into(left: Matrix<'_>, right: Matrix<'_>, target: Target<'_>, existing: Existing, factor: f32) {
    let (m, n, k) = (left.rows, right.columns, left.columns);
    assert_eq!(k, right.rows, "the inner sizes of a product");
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        n <= target.stride && (m - 1) * target.stride + n <= target.values.len(),
        "the target of a product"
    );
    let stride = |value: usize| isize::try_from(value).expect("no buffer has more than isize::MAX numbers");
    let parallelism = if m * n * k < PARALLEL_FROM {
        Parallelism::None
    } else {
        Parallelism::Rayon(0)
    };
    // SAFETY: `Matrix::new` and `transposed` keep all of `rows x columns` within `values`; the assertion above does so for
    // the target, which is borrowed mutably and so overlaps neither factor.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            target.values.as_mut_ptr(),
            1,
            stride(target.stride),
            existing == Existing::Kept,
            left.values.as_ptr(),
            stride(left.column_stride),
            stride(left.row_stride),
            right.values.as_ptr(),
            stride(right.column_stride),
            stride(right.row_stride),
            1.0,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_keeps_what_was_there() {
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0]);
        let mut sum = vec![10.0, 20.0];
        matmul_add(
            Matrix::new(&a, 2, 2),
            Matrix::new(&b, 2, 1),
            Target::new(&mut sum, 1),
            0.5,
        );
        assert_eq!(sum, [18.5, 39.5]);
    }

    #[test]
    fn products_follow_the_definition_for_every_transposition() {
        let (m, n, k) = (5, 7, 3);
        let a: Vec<f32> = (0..m * k).map(|i| (i as f32).sin()).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i as f32).cos()).collect();
        let a_t: Vec<f32> = (0..k * m).map(|i| a[(i % m) * k + i / m]).collect();
        let b_t: Vec<f32> = (0..n * k).map(|i| b[(i % k) * n + i / k]).collect();
        for (left, right) in [
            (Matrix::new(&a, m, k), Matrix::new(&b, k, n)),
            (Matrix::new(&a_t, k, m).transposed(), Matrix::new(&b, k, n)),
            (Matrix::new(&a, m, k), Matrix::new(&b_t, n, k).transposed()),
        ] {
            let mut wide = vec![9.0; m * (n + 2)];
            matmul(left, right, Target::columns_from(&mut wide, n + 2, 1));
            for i in 0..m {
                assert_eq!(
                    (wide[i * (n + 2)], wide[i * (n + 2) + n + 1]),
                    (9.0, 9.0),
                    "a neighbouring column changed"
                );
                for j in 0..n {
                    let expected: f32 = (0..k).map(|x| a[i * k + x] * b[x * n + j]).sum();
                    assert!((wide[i * (n + 2) + 1 + j] - expected).abs() < 1e-5);
                }
            }
        }
    }
}
