//! Softmax along the rows and along the columns of logits, when each rank holds some of the rows.

use rayon::prelude::*;

use super::kernels::{exp, reduce, vectorized};

/// Columns whose statistics one task takes.
const COLUMN_BLOCK: usize = 256;

/// Of each column of s: its maximum, and Σ exp((s − maximum) / τ).
pub(super) struct Columns {
    pub(super) maxima: Vec<f32>,
    pub(super) sums: Vec<f32>,
}

impl Columns {
    /// Of the rows at hand: the first `n` columns of a buffer that is `width` wide.
    pub(super) fn of(logits: &[f32], width: usize, n: usize, temperature: f32) -> Self {
        let mut columns = Self {
            maxima: vec![f32::NEG_INFINITY; n],
            sums: vec![0.0; n],
        };
        let inverse = 1.0 / temperature;
        let task = if logits.len() < 1 << 15 { n.max(1) } else { COLUMN_BLOCK };
        let blocks = columns
            .maxima
            .par_chunks_mut(task)
            .zip(columns.sums.par_chunks_mut(task))
            .enumerate();
        blocks.for_each(|(block, (maxima, sums))| {
            let at = block * task..block * task + sums.len();
            vectorized(|| {
                for row in logits.chunks_exact(width) {
                    let row = &row[at.clone()];
                    maxima
                        .iter_mut()
                        .zip(row)
                        .for_each(|(max, x)| *max = if *x > *max { *x } else { *max });
                }
                for row in logits.chunks_exact(width) {
                    let terms = sums.iter_mut().zip(&row[at.clone()]).zip(&*maxima);
                    terms.for_each(|((sum, x), max)| *sum += exp((x - max) * inverse));
                }
            });
        });
        columns
    }

    /// Takes in the statistics of other rows.
    pub(super) fn merge(&mut self, maxima: &[f32], sums: &[f32], temperature: f32) {
        for (((max, sum), other_max), other_sum) in self.maxima.iter_mut().zip(&mut self.sums).zip(maxima).zip(sums) {
            let highest = max.max(*other_max);
            // A rank without rows has a maximum of -∞, whose difference from itself is no number.
            let weight = |max: f32| {
                if max == highest {
                    1.0
                } else {
                    exp((max - highest) / temperature)
                }
            };
            *sum = *sum * weight(*max) + *other_sum * weight(*other_max);
            *max = highest;
        }
    }
}

/// One row of [s | h]: softmax along the row, and along the columns of s, both times `factor`, replace it. The row's maximum
/// and Σ exp((x − maximum) / τ).
#[inline(always)]
pub(super) fn row_softmax(
    similarities: &mut [f32],
    negatives: &mut [f32],
    column_maxima: &[f32],
    inverse_column_sums: &[f32],
    inverse_temperature: f32,
    factor: f32,
) -> (f32, f32) {
    let highest = |row: &[f32]| {
        let mut lanes = [f32::NEG_INFINITY; 32];
        let chunks = row.chunks_exact(32);
        let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for chunk in chunks {
            lanes
                .iter_mut()
                .zip(chunk)
                .for_each(|(max, x)| *max = if *x > *max { *x } else { *max });
        }
        lanes.into_iter().fold(rest, f32::max)
    };
    let max = highest(similarities).max(highest(negatives));
    let total = |row: &[f32]| reduce(row, row, |x, _| exp((x - max) * inverse_temperature));
    let sum = total(similarities) + total(negatives);
    let by_row = factor / sum;
    for ((x, column_max), by_column) in similarities.iter_mut().zip(column_maxima).zip(inverse_column_sums) {
        *x = exp((*x - max) * inverse_temperature) * by_row + exp((*x - column_max) * inverse_temperature) * by_column;
    }
    negatives
        .iter_mut()
        .for_each(|x| *x = exp((*x - max) * inverse_temperature) * by_row);
    (max, sum)
}
