//! The layers of the projector and the slot expander, one row at a time, forth and back.

use rayon::prelude::*;

use super::kernels::{gelu, reduce, vectorized};

const LAYER_NORM_EPSILON: f32 = 1e-5;
/// Columns that one task sums at a time.
const COLUMN_BLOCK: usize = 256;

/// GELU and dropout of one row: `slope` holds the product with the weights and is left as the derivative.
#[inline(always)]
pub(super) fn activate(hidden: &mut [f32], slope: &mut [f32], bias: &[f32], factor: impl Fn(u32) -> f32) {
    for (column, ((hidden, slope), bias)) in (0_u32..).zip(hidden.iter_mut().zip(slope).zip(bias)) {
        let (value, derivative) = gelu(*slope + bias);
        let factor = factor(column);
        *hidden = value * factor;
        *slope = derivative * factor;
    }
}

/// One row: `x` holds the product with the weights and is left normalized, `y` is the result. One over the deviation.
#[inline(always)]
pub(super) fn layer_norm(x: &mut [f32], y: &mut [f32], bias: &[f32], weight: &[f32], shift: &[f32]) -> f32 {
    let width = x.len() as f32;
    x.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    let mean = reduce(x, x, |x, _| x) / width;
    let variance = reduce(x, x, |x, _| (x - mean) * (x - mean)) / width;
    let inverse = 1.0 / (variance + LAYER_NORM_EPSILON).sqrt();
    for (((x, y), weight), shift) in x.iter_mut().zip(y).zip(weight).zip(shift) {
        *x = (*x - mean) * inverse;
        *y = *x * weight + shift;
    }
    inverse
}

/// One row: the gradient by the LayerNorm's output becomes that by its input.
#[inline(always)]
pub(super) fn layer_norm_backward(by: &mut [f32], normalized: &[f32], weight: &[f32], inverse: f32) {
    let width = by.len() as f32;
    by.iter_mut().zip(weight).for_each(|(by, weight)| *by *= weight);
    let mean = reduce(by, by, |by, _| by) / width;
    let along = reduce(by, normalized, |by, x| by * x) / width;
    by.iter_mut()
        .zip(normalized)
        .for_each(|(by, x)| *by = inverse * (*by - mean - x * along));
}

/// The sum of each column of `values`, or of its product with `factors`, over all rows.
pub(super) fn sum_columns(values: &[f32], factors: Option<&[f32]>, sums: &mut [f32]) {
    let width = sums.len();
    sums.par_chunks_mut(COLUMN_BLOCK)
        .with_min_len(if values.len() < 1 << 17 { width } else { 1 })
        .enumerate()
        .for_each(|(block, sums)| {
            vectorized(|| {
                sums.fill(0.0);
                let columns = block * COLUMN_BLOCK..block * COLUMN_BLOCK + sums.len();
                for (row, values) in values.chunks_exact(width).enumerate() {
                    let values = &values[columns.clone()];
                    match factors {
                        Some(factors) => {
                            let factors = &factors[row * width..][columns.clone()];
                            sums.iter_mut()
                                .zip(values)
                                .zip(factors)
                                .for_each(|((sum, x), factor)| *sum += x * factor);
                        }
                        None => sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += x),
                    }
                }
            });
        });
}
