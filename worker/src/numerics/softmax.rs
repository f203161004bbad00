//! The softmax along the rows and along the columns of logits.

use rayon::prelude::*;

use super::kernels::{exp, reduce};
use super::vectorized::vectorized;

/// The number of columns whose statistics one task computes.
const COLUMN_BLOCK: usize = 256;

/// The maximum of each column of s, and Σ exp((s − maximum) / τ).
pub(crate) struct Columns {
    pub(crate) maxima: Vec<f32>,
    pub(crate) sums: Vec<f32>,
}

impl Columns {
    /// Computes the statistics of the first `n` columns of a buffer that is `width` wide, over all rows.
    pub(crate) fn of(logits: &[f32], width: usize, n: usize, temperature: f32) -> Self {
        let mut columns = Self { maxima: vec![f32::NEG_INFINITY; n], sums: vec![0.0; n] };
        let inverse = 1.0 / temperature;
        let task = if logits.len() < 1 << 15 { n.max(1) } else { COLUMN_BLOCK };
        let blocks = columns.maxima.par_chunks_mut(task).zip(columns.sums.par_chunks_mut(task)).enumerate();
        blocks.for_each(|(block, (maxima, sums))| {
            let at = block * task..block * task + sums.len();
            for row in logits.chunks_exact(width) {
                raise(maxima, &row[at.clone()]);
            }
            for row in logits.chunks_exact(width) {
                add_exponentials(sums, &row[at.clone()], maxima, inverse);
            }
        });
        columns
    }
}

vectorized! {
    /// Computes `maxima = max(maxima, row)` elementwise. It ignores NaN, which the losses show.
    fn raise(maxima: &mut [f32], row: &[f32]) {
        for (max, x) in maxima.iter_mut().zip(row) {
            *max = if *x > *max { *x } else { *max };
        }
    }

    /// Computes `sums += exp((row - maxima) · inverse)` elementwise.
    fn add_exponentials(sums: &mut [f32], row: &[f32], maxima: &[f32], inverse: f32) {
        for ((sum, x), max) in sums.iter_mut().zip(row).zip(maxima) {
            *sum += exp((x - max) * inverse);
        }
    }

    /// Replaces one row of [s | h] by the sum of its softmax and, for the columns of s, the softmax along `columns`,
    /// both times `factor`.
    ///
    /// `inverse_sums` are `factor` over the columns' sums. Returns the row's maximum and Σ exp((x − maximum) / τ).
    pub(crate) fn softmaxes(
        row: &mut [f32],
        columns: &Columns,
        inverse_sums: &[f32],
        inverse_temperature: f32,
        factor: f32,
    ) -> (f32, f32) {
        let max = highest(row);
        let sum = reduce(row, row, |x, _| exp((x - max) * inverse_temperature));
        let by_row = factor / sum;
        let (similarities, negatives) = row.split_at_mut(inverse_sums.len());
        for ((x, column_max), by_column) in similarities.iter_mut().zip(&columns.maxima).zip(inverse_sums) {
            let along_row = exp((*x - max) * inverse_temperature) * by_row;
            *x = along_row + exp((*x - column_max) * inverse_temperature) * by_column;
        }
        for x in negatives {
            *x = exp((*x - max) * inverse_temperature) * by_row;
        }
        (max, sum)
    }

    /// Replaces one row by its softmax times `factor`. Returns the row's maximum and Σ exp((x − maximum) / τ).
    pub(crate) fn softmax(row: &mut [f32], inverse_temperature: f32, factor: f32) -> (f32, f32) {
        let max = highest(row);
        for x in row.iter_mut() {
            *x = exp((*x - max) * inverse_temperature);
        }
        let sum = reduce(row, row, |x, _| x);
        let scale = factor / sum;
        for x in row.iter_mut() {
            *x *= scale;
        }
        (max, sum)
    }
}

/// Returns the largest value of a row.
#[inline(always)]
fn highest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 32];
    let chunks = row.chunks_exact(32);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (max, x) in lanes.iter_mut().zip(chunk) {
            *max = if *x > *max { *x } else { *max };
        }
    }
    lanes.into_iter().fold(rest, f32::max)
}
