//! Products of f32 matrices in flat buffers.

use gemm::Parallelism;

/// The number of multiplications from which a product runs in parallel.
const PARALLEL_FROM: usize = 1 << 21;

/// A matrix to read, which is a row-major buffer or the transpose of one.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Returns the row-major matrix `[rows, columns]` that `values` holds.
    ///
    /// # Panics
    /// When `values` has another length.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} x {columns}");
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Returns the matrix `[rows, columns]` whose rows are `stride` apart in `values`.
    ///
    /// # Panics
    /// When a row ends beyond `values`.
    pub fn strided(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(
            columns <= stride && rows.saturating_sub(1) * stride + columns <= values.len(),
            "{rows} rows of {columns} that are {stride} apart"
        );
        Self { values, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// Returns the transpose, a view of the same values.
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

/// The target of a product: `[rows, columns]` at an offset in a row-major buffer whose rows are `stride` apart.
#[derive(Debug)]
pub struct Target<'a> {
    values: &'a mut [f32],
    stride: usize,
}

impl<'a> Target<'a> {
    /// Returns a target that fills the whole buffer with rows of `columns`.
    pub const fn new(values: &'a mut [f32], columns: usize) -> Self {
        Self { values, stride: columns }
    }

    /// Returns a block of columns that starts at column `first` of a buffer whose rows have `width` columns.
    ///
    /// # Panics
    /// When `first` is beyond the buffer.
    pub fn columns_from(values: &'a mut [f32], width: usize, first: usize) -> Self {
        Self { values: &mut values[first..], stride: width }
    }
}

/// Writes `left · right` to `target`. See [`multiply_into`].
pub fn matmul(left: Matrix<'_>, right: Matrix<'_>, target: Target<'_>) {
    multiply_into(left, right, target, Existing::Overwritten, 1.0);
}

/// Adds `factor · left · right` to `target`. See [`multiply_into`].
pub fn matmul_add(left: Matrix<'_>, right: Matrix<'_>, target: Target<'_>, factor: f32) {
    multiply_into(left, right, target, Existing::Kept, factor);
}

/// Does what [`multiply_into`] does on this thread alone, for products that are computed in parallel with each other.
pub fn multiply_on_one_thread(
    left: Matrix<'_>,
    right: Matrix<'_>,
    target: Target<'_>,
    existing: Existing,
    factor: f32,
) {
    multiply(left, right, target, existing, factor, Parallelism::None);
}

/// Whether a product replaces the values of its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// The product replaces the values.
    Overwritten,
    /// The product is added to the values.
    Kept,
}

/// Writes `factor · left · right` to `target`, or adds it to the values of `target`. A large product uses all of rayon's
/// threads.
///
/// # Panics
/// When the shapes of the factors and the target do not match, here and in the other forms.
pub fn multiply_into(left: Matrix<'_>, right: Matrix<'_>, target: Target<'_>, existing: Existing, factor: f32) {
    let parallelism = match left.rows * right.columns * left.columns {
        ..PARALLEL_FROM => Parallelism::None,
        _ => Parallelism::Rayon(0),
    };
    multiply(left, right, target, existing, factor, parallelism);
}

fn multiply(
    left: Matrix<'_>,
    right: Matrix<'_>,
    target: Target<'_>,
    existing: Existing,
    factor: f32,
    parallelism: Parallelism,
) {
    let (m, n, k) = (left.rows, right.columns, left.columns);
    assert_eq!(k, right.rows, "the inner sizes of a product");
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= target.stride && (m - 1) * target.stride + n <= target.values.len(), "the target of a product");
    let stride = |value: usize| isize::try_from(value).expect("no buffer has more than isize::MAX numbers");
    // SAFETY: `Matrix::new`, `strided` and `transposed` keep all of `rows x columns` within `values`. The assertion above does the
    // same for the target. The target is borrowed mutably, so it overlaps neither factor.
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
        matmul_add(Matrix::new(&a, 2, 2), Matrix::new(&b, 2, 1), Target::new(&mut sum, 1), 0.5);
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
                assert_eq!((wide[i * (n + 2)], wide[i * (n + 2) + n + 1]), (9.0, 9.0), "a neighboring column changed");
                for j in 0..n {
                    let expected: f32 = (0..k).map(|x| a[i * k + x] * b[x * n + j]).sum();
                    assert!((wide[i * (n + 2) + 1 + j] - expected).abs() < 1e-5);
                }
            }
        }
    }
}
