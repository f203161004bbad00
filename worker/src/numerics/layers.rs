//! The layers of the projector and the slot expander, forward and backward, one row at a time.

use rayon::prelude::*;

use super::kernels::{add, add_product, gelu, reduce};
use super::matrix::Existing;
use super::vectorized::vectorized;
use crate::numerics::dropout::RowMask;

pub(crate) const LAYER_NORM_EPSILON: f32 = 1e-5;
/// The number of columns that one task sums.
const COLUMN_BLOCK: usize = 256;

vectorized! {
    /// Applies the GELU and dropout to one row. `slope` holds the product with the weights and is replaced by the
    /// derivative.
    pub(crate) fn activate(hidden: &mut [f32], slope: &mut [f32], bias: &[f32], mask: Option<RowMask>) {
        for ((hidden, slope), bias) in hidden.iter_mut().zip(slope.iter_mut()).zip(bias) {
            (*hidden, *slope) = gelu(*slope + bias);
        }
        if let Some(mask) = mask {
            for (column, (hidden, slope)) in (0_u32..).zip(hidden.iter_mut().zip(slope)) {
                let factor = mask.factor(column);
                *hidden *= factor;
                *slope *= factor;
            }
        }
    }

    /// Normalizes one row and returns 1 / deviation. `x` holds the product with the weights and is left normalized. `y`
    /// is the output.
    pub(crate) fn layer_norm(x: &mut [f32], y: &mut [f32], bias: &[f32], weight: &[f32], shift: &[f32]) -> f32 {
        for (x, bias) in x.iter_mut().zip(bias) {
            *x += bias;
        }
        let inverse = standardize_in_place(x);
        for (((x, y), weight), shift) in x.iter().zip(y).zip(weight).zip(shift) {
            *y = x * weight + shift;
        }
        inverse
    }
}

/// Subtracts the mean and divides by the standard deviation. Returns 1 / deviation.
#[inline(always)]
fn standardize_in_place(x: &mut [f32]) -> f32 {
    let width = x.len() as f32;
    let mean = reduce(x, x, |x, _| x) / width;
    let variance = reduce(x, x, |x, _| (x - mean) * (x - mean)) / width;
    let inverse = 1.0 / (variance + LAYER_NORM_EPSILON).sqrt();
    for x in x.iter_mut() {
        *x = (*x - mean) * inverse;
    }
    inverse
}

vectorized! {
    /// Turns the gradient of the LayerNorm's output into that of its input, for one row, in place.
    pub(crate) fn layer_norm_backward(by: &mut [f32], normalized: &[f32], weight: &[f32], inverse: f32) {
        let width = by.len() as f32;
        for (by, weight) in by.iter_mut().zip(weight) {
            *by *= weight;
        }
        let mean = reduce(by, by, |by, _| by) / width;
        let along = reduce(by, normalized, |by, x| by * x) / width;
        for (by, x) in by.iter_mut().zip(normalized) {
            *by = inverse * (*by - mean - x * along);
        }
    }
}

/// Sums each column of `values`, or of its product with `factors`, over all rows. `existing` says whether `sums` is
/// overwritten.
pub(crate) fn sum_columns_into(values: &[f32], factors: Option<&[f32]>, sums: &mut [f32], existing: Existing) {
    let width = sums.len();
    let blocks = sums.par_chunks_mut(COLUMN_BLOCK).enumerate();
    blocks.with_min_len(if values.len() < 1 << 17 { width } else { 1 }).for_each(|(block, sums)| {
        let columns = block * COLUMN_BLOCK..block * COLUMN_BLOCK + sums.len();
        if existing == Existing::Overwritten {
            sums.fill(0.0);
        }
        match factors {
            Some(factors) => {
                for (values, factors) in values.chunks_exact(width).zip(factors.chunks_exact(width)) {
                    add_product(sums, &values[columns.clone()], &factors[columns.clone()]);
                }
            }
            None => values.chunks_exact(width).for_each(|values| add(sums, &values[columns.clone()])),
        }
    });
}
