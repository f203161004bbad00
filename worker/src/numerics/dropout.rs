//! Dropout whose masks depend on the seed, the step and the pair alone.
//!
//! A pair therefore has the same mask on every rank, and again after a restart.

use super::random::key;
use crate::numerics::vectorized::vectorized;

/// Drops each number with a probability and scales up the rest, so that the mean stays the same.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// A number is dropped when its random 32 bits are below this.
    threshold: u32,
    /// The factor of the numbers that are kept.
    scale: f32,
    seed: u64,
    step: u64,
}

/// The mask of one row.
#[derive(Debug, Clone, Copy)]
pub struct RowMask {
    threshold: u32,
    scale: f32,
    key: u32,
    salt: u32,
}

impl Dropout {
    /// Returns the dropout of one step. `probability` is in [0, 1).
    pub fn new(probability: f64, seed: u64, step: u64) -> Self {
        let threshold = (probability * f64::from(u32::MAX)) as u32;
        Self { threshold, scale: (1.0 / (1.0 - probability)) as f32, seed, step }
    }

    /// Returns the mask of the row of pair `id`.
    pub fn row(&self, id: u64) -> RowMask {
        let key = key(&[self.seed, self.step, id]);
        RowMask { threshold: self.threshold, scale: self.scale, key: key as u32, salt: (key >> 32) as u32 }
    }
}

impl RowMask {
    /// Returns the factor of a column: 0, or the scale that keeps the mean.
    #[inline(always)]
    pub fn factor(&self, column: u32) -> f32 {
        // This is "lowbias32" by Chris Wellons with the key added. It has three multiplications, so loops over columns
        // vectorize.
        let mut x = column.wrapping_mul(0x9e37_79b9) ^ self.key;
        x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d) ^ self.salt;
        x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
        x ^= x >> 16;
        if x < self.threshold { 0.0 } else { self.scale }
    }

    /// Returns the key of this row in two words.
    pub const fn key(&self) -> [u32; 2] {
        [self.key, self.salt]
    }

    /// Returns the threshold below which a column is dropped, and the factor of the others. All rows of a step share
    /// them.
    pub const fn constants(&self) -> (u32, f32) {
        (self.threshold, self.scale)
    }

    /// Multiplies a row by its mask.
    pub fn apply(&self, row: &mut [f32]) {
        mask_row(row, self);
    }
}

vectorized! {
    fn mask_row(row: &mut [f32], mask: &RowMask) {
        for (column, x) in (0_u32..).zip(row) {
            *x *= mask.factor(column);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: u32 = 3072;

    fn mask(seed: u64, step: u64, id: u64) -> Vec<f32> {
        let row = Dropout::new(0.1, seed, step).row(id);
        (0..COLUMNS).map(|column| row.factor(column)).collect()
    }

    #[test]
    fn masks_are_functions_of_seed_step_and_pair() {
        assert_eq!(mask(1, 2, 3), mask(1, 2, 3));
        for other in [mask(2, 2, 3), mask(1, 3, 3), mask(1, 2, 4)] {
            let equal = mask(1, 2, 3).iter().zip(&other).filter(|(a, b)| a == b).count();
            // Two independent masks agree on 0.9² + 0.1² = 82 % of the columns.
            assert!((0.78..0.86).contains(&(equal as f64 / f64::from(COLUMNS))), "{equal}");
        }
    }

    #[test]
    fn a_tenth_is_dropped_and_the_mean_stays() {
        let (mut dropped, mut sum, rows) = (0, 0.0, 200);
        for id in 0..rows {
            let mask = mask(7, 11, id);
            dropped += mask.iter().filter(|factor| **factor == 0.0).count();
            sum += mask.iter().map(|factor| f64::from(*factor)).sum::<f64>();
        }
        let numbers = rows as f64 * f64::from(COLUMNS);
        assert!((dropped as f64 / numbers - 0.1).abs() < 0.002);
        assert!((sum / numbers - 1.0).abs() < 0.002);
    }

    #[test]
    fn neighbouring_columns_and_pairs_are_dropped_independently() {
        let rows: Vec<Vec<f32>> = (0..200).map(|id| mask(3, 5, id)).collect();
        let both = |pairs: &mut dyn Iterator<Item = (f32, f32)>| {
            let (hits, all) =
                pairs.fold((0, 0), |(hits, all), (a, b)| (hits + i32::from(a == 0.0 && b == 0.0), all + 1));
            f64::from(hits) / f64::from(all)
        };
        let columns = both(&mut rows.iter().flat_map(|row| row.windows(2).map(|pair| (pair[0], pair[1]))));
        let ids = both(&mut rows.windows(2).flat_map(|two| two[0].iter().copied().zip(two[1].iter().copied())));
        assert!((columns - 0.01).abs() < 0.001 && (ids - 0.01).abs() < 0.001, "{columns} {ids}");
    }

    #[test]
    fn no_dropout_keeps_everything() {
        let row = Dropout::new(0.0, 1, 1).row(1);
        assert!((0..COLUMNS).all(|column| row.factor(column) == 1.0));
    }
}
