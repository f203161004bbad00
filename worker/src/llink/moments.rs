//! The mean and the spread of a stream of vectors, in f64 and in one pass.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, MatMut, MatRef, Par};

/// The number of vectors that are centered on their own mean before they join the others.
const BLOCK: usize = 1_024;

/// The measure of spread around the mean that is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// The variance of each dimension.
    Variances,
    /// The covariance of every two dimensions.
    Covariance,
}

/// The mean and the spread of the vectors so far.
///
/// A block of vectors joins by the pairwise update of Chan, Golub and LeVeque (1979). It does not lose precision where
/// the mean is far from zero. The sums depend on the order of the vectors alone, not on the number of threads.
#[derive(Debug, Clone)]
pub struct Moments {
    rows: usize,
    mean: Vec<f64>,
    spread: Spread,
    /// The sums of squares around the mean, `[d]`. For the covariance, the sums of products, `[d, d]`: the lower
    /// triangle in column-major order.
    scatter: Vec<f64>,
}

impl Moments {
    /// Returns the moments of no vectors.
    pub fn new(width: usize, spread: Spread) -> Self {
        let numbers = match spread {
            Spread::Variances => width,
            Spread::Covariance => width * width,
        };
        Self { rows: 0, mean: vec![0.0; width], spread, scatter: vec![0.0; numbers] }
    }

    /// Returns the number of vectors so far.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Returns the mean, `[d]`.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// Returns the mean in f32, `[d]`.
    pub(super) fn narrow_mean(&self) -> Vec<f32> {
        self.mean.iter().map(|x| *x as f32).collect()
    }

    /// Adds vectors `[n, d]`.
    pub fn add<T: Copy + Into<f64>>(&mut self, vectors: &[T]) {
        for block in vectors.chunks(BLOCK * self.mean.len()) {
            self.add_block(block);
        }
    }

    fn add_block<T: Copy + Into<f64>>(&mut self, block: &[T]) {
        let width = self.mean.len();
        let rows = block.len() / width;
        let mut values: Vec<f64> = block.iter().map(|x| (*x).into()).collect();
        let mut mean = vec![0.0; width];
        for row in values.chunks_exact(width) {
            mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
        }
        mean.iter_mut().for_each(|sum| *sum /= rows as f64);
        for row in values.chunks_exact_mut(width) {
            row.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean);
        }
        let (before, all) = (self.rows as f64, (self.rows + rows) as f64);
        let shift: Vec<f64> = mean.iter().zip(&self.mean).map(|(new, old)| new - old).collect();
        // The distance of the two means adds to the spread as one more centered vector.
        let weight = (before * rows as f64 / all).sqrt();
        values.extend(shift.iter().map(|x| weight * x));
        for (mean, shift) in self.mean.iter_mut().zip(&shift) {
            *mean += shift * (rows as f64 / all);
        }
        self.rows += rows;
        match self.spread {
            Spread::Variances => {
                for row in values.chunks_exact(width) {
                    self.scatter.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
                }
            }
            Spread::Covariance => {
                let centered = MatRef::from_row_major_slice(&values, rows + 1, width);
                triangular::matmul(
                    MatMut::from_column_major_slice_mut(&mut self.scatter, width, width),
                    BlockStructure::TriangularLower,
                    Accum::Add,
                    centered.transpose(),
                    BlockStructure::Rectangular,
                    centered,
                    BlockStructure::Rectangular,
                    1.0,
                    Par::rayon(0),
                );
            }
        }
    }

    /// Returns the variance of each dimension with the divisor n − 1, `[d]`. It is 0 for a single vector.
    pub fn variances(&self) -> Vec<f64> {
        let width = self.mean.len();
        let stride = match self.spread {
            Spread::Variances => 1,
            Spread::Covariance => width + 1,
        };
        let freedom = (self.rows.max(2) - 1) as f64;
        self.scatter.iter().step_by(stride).map(|sum| sum / freedom).collect()
    }

    /// Returns the covariance with the divisor n − 1, `[d, d]`: the lower triangle in column-major order. `None` where
    /// only variances are collected.
    pub fn covariance(&self) -> Option<Vec<f64>> {
        let freedom = (self.rows.max(2) - 1) as f64;
        let divided = || self.scatter.iter().map(|sum| sum / freedom).collect();
        (self.spread == Spread::Covariance).then(divided)
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;
    use crate::numerics::random::uniform;

    const WIDTH: usize = 7;

    /// Returns vectors far from zero, like the outlier dimensions of a decoder.
    fn vectors(rows: usize) -> Vec<f16> {
        let value = |i: usize| uniform(5, i as u64) + 300.0 * (i % WIDTH) as f32;
        (0..rows * WIDTH).map(|i| f16::from_f32(value(i))).collect()
    }

    #[test]
    fn blocks_give_what_two_passes_over_all_vectors_give() {
        let vectors = vectors(3 * BLOCK + 77);
        let mut moments = Moments::new(WIDTH, Spread::Covariance);
        // The pieces end within blocks, as shards do.
        vectors.chunks(700 * WIDTH).for_each(|piece| moments.add(piece));
        let rows: Vec<Vec<f64>> = vectors.chunks(WIDTH).map(|row| row.iter().map(|x| x.to_f64()).collect()).collect();
        let n = rows.len() as f64;
        assert_eq!(moments.rows(), rows.len());
        let mean = |k: usize| rows.iter().map(|row| row[k]).sum::<f64>() / n;
        let (variances, covariance) = (moments.variances(), moments.covariance().unwrap());
        let mut alone = Moments::new(WIDTH, Spread::Variances);
        alone.add(&vectors);
        assert!(alone.covariance().is_none());
        for i in 0..WIDTH {
            assert!((moments.mean()[i] / mean(i) - 1.0).abs() < 1e-12);
            assert!((alone.variances()[i] / variances[i] - 1.0).abs() < 1e-12);
            for j in 0..=i {
                let products = rows.iter().map(|row| (row[i] - mean(i)) * (row[j] - mean(j)));
                let expected = products.sum::<f64>() / (n - 1.0);
                let found = covariance[j * WIDTH + i];
                assert!((found - expected).abs() < 1e-9, "{i} {j}: {found} {expected}");
            }
            assert!((variances[i] - covariance[i * WIDTH + i]).abs() < 1e-15);
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let vectors: Vec<f16> = (0..2_000 * 96).map(|i| f16::from_f32(uniform(9, i))).collect();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut moments = Moments::new(96, Spread::Covariance);
                moments.add(&vectors);
                moments.covariance().unwrap()
            })
        };
        let one = on(1);
        assert!(one.iter().zip(on(3)).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
