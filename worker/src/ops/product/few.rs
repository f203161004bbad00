//! Products of few rows, as in a generation step. Memory limits their speed, so W is read once, row by row, without
//! unpacking.

use rayon::prelude::*;

use super::{FrozenMatrix, Precision, View};
use crate::numerics::vectorized::vectorized;

/// Returns whether so few rows are faster here than by a library. The order of the sums differs, which bf16 may show in
/// the last place of a rounded activation. In bf16, only the single rows of generation use this form.
pub(super) fn suits(precision: Precision, rows: usize) -> bool {
    match precision {
        Precision::F32 => rows <= 4,
        Precision::Bf16 => rows == 1,
    }
}

/// The number of partial sums of a dot product.
const LANES: usize = 32;

/// Writes x `[rows, inner]` · Wᵀ + bias to out `[rows, outer]`, with W `[outer, inner]`.
pub(super) fn multiply(weight: &FrozenMatrix, x: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
    let (view, outer, inner) = (weight.view(), weight.outer, weight.inner);
    let rows = x.len() / inner;
    let block = (65_536 / inner).max(8); // the rows of W that a thread takes at a time
    let mut turned = vec![0f32; out.len()]; // [outer, rows]
    turned.par_chunks_mut(block * rows).enumerate().for_each(|(index, turned)| {
        for (offset, sums) in turned.chunks_exact_mut(rows).enumerate() {
            let at = (index * block + offset) * inner;
            for (sum, x) in sums.iter_mut().zip(x.chunks_exact(inner)) {
                *sum = match view {
                    View::F32(values) => dot_f32(&values[at..at + inner], x),
                    View::Bf16(bits) => dot_bf16(&bits[at..at + inner], x),
                    View::F16(_) => dot_any(view, at, x),
                };
            }
        }
    });
    for (row, out) in out.chunks_exact_mut(outer).enumerate() {
        for (column, out) in out.iter_mut().enumerate() {
            *out = turned[column * rows + row] + bias.map_or(0.0, |bias| bias[column]);
        }
    }
}

#[inline(always)]
fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

vectorized! {
    fn dot_f32(w: &[f32], x: &[f32]) -> f32 {
        dot(w, x, |w| w)
    }

    fn dot_bf16(w: &[u16], x: &[f32]) -> f32 {
        dot(w, x, bf16_to_f32)
    }
}

fn dot_any(view: View<'_>, from: usize, x: &[f32]) -> f32 {
    let mut sum = 0.0;
    let mut values = [0f32; 256];
    for (index, x) in x.chunks(values.len()).enumerate() {
        let w = &mut values[..x.len()];
        view.read(from + index * 256, w);
        sum += dot_f32(w, x);
    }
    sum
}

/// Computes Σ value(w)·x in partial sums.
#[inline(always)]
fn dot<T: Copy>(w: &[T], x: &[f32], value: impl Fn(T) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    for (w, x) in w.iter().zip(x) {
        for lane in 0..LANES {
            lanes[lane] += value(w[lane]) * x[lane];
        }
    }
    let rest: f32 = w_rest.iter().zip(x_rest).map(|(w, x)| value(*w) * x).sum();
    lanes.iter().sum::<f32>() + rest
}
