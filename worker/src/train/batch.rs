//! The pairs of each step, a function of the seed and the step without state.
//!
//! Each epoch goes once through all rows in the order of a keyed permutation. Rows that remain after the last whole
//! batch of an epoch are left out of that epoch. So no batch holds a row twice, and a restart needs only the step.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use llink_datasets::vectors::VectorTable;

use crate::numerics::random::{key, mix};
use crate::{Error, Result};

/// The global batches of a training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlan {
    seed: u64,
    rows: u64,
    batch: u64,
}

impl BatchPlan {
    /// Plans batches of `batch` out of `rows` rows.
    ///
    /// # Errors
    /// [`Error::Input`] when there are fewer rows than a batch takes.
    pub fn new(seed: u64, rows: usize, batch: usize) -> Result<Self> {
        if batch == 0 || batch > rows {
            return Err(Error::Input(format!(
                "a batch of {batch} can't be drawn from {rows} training pairs: set `batch` to between 1 and {rows}, or give \
                 the job more pairs"
            )));
        }
        Ok(Self { seed, rows: rows as u64, batch: batch as u64 })
    }

    /// Returns the rows of the global batch of `step`, in order.
    pub fn rows(&self, step: u64) -> Vec<usize> {
        let steps_per_epoch = self.rows / self.batch;
        let (epoch, within) = (step / steps_per_epoch, step % steps_per_epoch);
        let order = Permutation::new(key(&[self.seed, epoch]), self.rows);
        (within * self.batch..(within + 1) * self.batch).map(|index| order.at(index) as usize).collect()
    }
}

/// Returns the part of a global batch of `batch` rows that belongs to `rank`.
pub const fn rank_slice(batch: usize, rank: usize, world_size: usize) -> Range<usize> {
    rank * batch / world_size..(rank + 1) * batch / world_size
}

/// Returns some rows of a table, in f32.
pub(super) fn gather(table: &VectorTable, rows: &[usize]) -> Vec<f32> {
    let mut values = vec![0.0; rows.len() * table.width];
    for (row, values) in rows.iter().zip(values.chunks_exact_mut(table.width)) {
        table.row(*row).convert_to_f32_slice(values);
    }
    values
}

/// A keyed bijection of `0..length`. It is a Feistel network over the next even power of two, repeated until the result
/// is in range.
struct Permutation {
    key: u64,
    length: u64,
    half_bits: u32,
}

impl Permutation {
    fn new(key: u64, length: u64) -> Self {
        let bits = u64::BITS - (length - 1).leading_zeros();
        Self { key, length, half_bits: bits.div_ceil(2).max(1) }
    }

    fn at(&self, index: u64) -> u64 {
        let mut value = index;
        loop {
            value = self.rounds(value);
            if value < self.length {
                return value;
            }
        }
    }

    fn rounds(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..6 {
            (left, right) = (right, left ^ (mix(self.key.wrapping_add(round << 56) ^ mix(right)) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn an_epoch_goes_through_all_rows_once() {
        for rows in [1, 2, 3, 5, 64, 1000, 4097] {
            for batch in [1, 2, 7, rows] {
                let Ok(plan) = BatchPlan::new(3, rows, batch) else {
                    continue;
                };
                let steps = rows / batch;
                for epoch in 0..3 {
                    let drawn: Vec<usize> =
                        (0..steps).flat_map(|step| plan.rows((epoch * steps + step) as u64)).collect();
                    assert_eq!(drawn.len(), steps * batch);
                    assert!(drawn.iter().all(|row| *row < rows));
                    assert_eq!(drawn.iter().collect::<HashSet<_>>().len(), drawn.len(), "{rows} rows by {batch}");
                }
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        let plan = BatchPlan::new(3, 1000, 100).unwrap();
        assert_eq!(plan.rows(4), BatchPlan::new(3, 1000, 100).unwrap().rows(4));
        for other in [plan.rows(14), BatchPlan::new(4, 1000, 100).unwrap().rows(4)] {
            let shared = plan.rows(4).iter().filter(|row| other.contains(row)).count();
            assert!(shared < 30, "{shared} of 100 rows are the same");
        }
    }

    #[test]
    fn rows_are_spread_evenly_over_places() {
        let (rows, epochs) = (64, 4000);
        let plan = BatchPlan::new(11, rows, rows).unwrap();
        let mut first = vec![0_u32; rows];
        (0..epochs).for_each(|epoch| first[plan.rows(epoch)[0]] += 1);
        let expected = epochs as f64 / rows as f64;
        let chi: f64 = first.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
        // A chi-squared value with 63 degrees of freedom has the mean 63 and the standard deviation 11.
        assert!((25.0..120.0).contains(&chi), "{chi}");
    }

    #[test]
    fn ranks_share_a_batch_without_gap_or_overlap() {
        for (batch, world_size) in [(10, 3), (256, 4), (2, 3), (7, 7)] {
            let slices: Vec<usize> = (0..world_size).flat_map(|rank| rank_slice(batch, rank, world_size)).collect();
            assert_eq!(slices, (0..batch).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_batch_larger_than_the_corpus_says_what_to_change() {
        let text = BatchPlan::new(1, 100, 128).unwrap_err().to_string();
        assert!(
            text.contains("batch of 128") && text.contains("100 training pairs") && text.contains("`batch`"),
            "{text}"
        );
    }
}
