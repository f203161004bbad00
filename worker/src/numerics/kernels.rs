//! The loops of the losses and the optimizer, compiled for the widest vectors of the processor.
//!
//! Sums run over a fixed number of lanes. A result therefore depends on the input alone, not on the width of the
//! processor's vectors.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::vectorized::vectorized;

/// The number of independent partial sums of a reduction.
const LANES: usize = 32;
/// The smallest number of values that is worth a parallel task.
const TASK: usize = 1 << 16;

/// Returns the number of rows of `width` values that a parallel task should take. A small input is one task.
pub fn rows_per_task(rows: usize, width: usize) -> usize {
    let tasks = (rows * width / TASK).clamp(1, 4 * rayon::current_num_threads());
    rows.div_ceil(tasks).max(1)
}

/// Computes e^x to about 2 units in the last place. Results are at least 2^-126.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to the nearest integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4; // ln 2 in two parts
    let p = 1.987_569_2e-4 * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_6e-1;
    let p = p * r + 0.5;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    (p * r * r + r + 1.0) * power
}

/// Computes the GELU by the error function and its derivative, `(x Φ(x), Φ(x) + x φ(x))`, to 2e-7.
///
/// Φ is formula 7.1.26 of Abramowitz and Stegun. Its exponential also gives the density.
#[inline(always)]
pub fn gelu(x: f32) -> (f32, f32) {
    let exponential = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let p = 1.061_405_4 * t - 1.453_152;
    let p = p * t + 1.421_413_7;
    let p = p * t - 0.284_496_74;
    let p = (p * t + 0.254_829_6) * t;
    let tail = 0.5 * p * exponential; // Φ(-|x|)
    let phi = if x < 0.0 { tail } else { 1.0 - tail };
    let density = 0.398_942_3 * exponential;
    (x * phi, phi + x * density)
}

/// Sums `term(a[i], b[i])`, for use inside vectorized functions.
#[inline(always)]
pub fn reduce(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| term(*a, *b)).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            lanes[lane] += term(a[lane], b[lane]);
        }
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0] + rest
}

vectorized! {
    /// Computes the dot product of two vectors.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        reduce(a, b, |a, b| a * b)
    }

    /// Writes `row / max(|row|, 1e-12)` and returns `|row|`.
    pub fn normalize(row: &[f32], out: &mut [f32]) -> f32 {
        let norm = reduce(row, row, |a, b| a * b).sqrt();
        let inverse = 1.0 / norm.max(1e-12);
        for (out, x) in out.iter_mut().zip(row) {
            *out = x * inverse;
        }
        norm
    }

    /// Turns the gradient of one row's normalized vector x / |x|, given as `unit`, into the gradient of x, in place.
    pub fn through_normalization(gradient: &mut [f32], unit: &[f32], inverse_norm: f32) {
        let along = -reduce(gradient, unit, |by, x| by * x) * inverse_norm;
        for (by, x) in gradient.iter_mut().zip(unit) {
            *by = *by * inverse_norm + along * x;
        }
    }

    /// Computes `sums += values`.
    pub fn add(sums: &mut [f32], values: &[f32]) {
        for (sum, x) in sums.iter_mut().zip(values) {
            *sum += x;
        }
    }

    /// Computes `sums += values · factors` elementwise.
    pub fn add_product(sums: &mut [f32], values: &[f32], factors: &[f32]) {
        for ((sum, x), factor) in sums.iter_mut().zip(values).zip(factors) {
            *sum += x * factor;
        }
    }

    /// Computes `values *= factors` elementwise.
    pub fn multiply(values: &mut [f32], factors: &[f32]) {
        for (x, factor) in values.iter_mut().zip(factors) {
            *x *= factor;
        }
    }

    /// Computes `out = values - others` elementwise.
    pub fn subtract(out: &mut [f32], values: &[f32], others: &[f32]) {
        for ((out, x), other) in out.iter_mut().zip(values).zip(others) {
            *out = x - other;
        }
    }
}

/// Computes the dot product of each f16 row of `rows` with `direction`.
pub fn dot_rows_f16(rows: &[f16], direction: &[f32], scores: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx") && is_x86_feature_detected!("f16c") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has the features that the function is compiled for.
        return unsafe { dot_rows_f16c(rows, direction, scores) };
    }
    let mut converted = vec![0.0; direction.len()];
    for (row, score) in rows.chunks_exact(direction.len()).zip(scores) {
        row.convert_to_f32_slice(&mut converted);
        *score = dot(&converted, direction);
    }
}

/// Does what [`dot_rows_f16`] does, with conversions in hardware.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c,fma")]
fn dot_rows_f16c(rows: &[f16], direction: &[f32], scores: &mut [f32]) {
    use std::arch::x86_64::{_mm256_add_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_setzero_ps};

    let bits: &[u16] = rows.reinterpret_cast();
    let (vectors, rest) = direction.as_chunks::<8>();
    for (row, score) in bits.chunks_exact(direction.len()).zip(scores) {
        let (halves, row_rest) = row.as_chunks::<8>();
        let mut sums = [_mm256_setzero_ps(); 4];
        for (halves, vectors) in halves.chunks(4).zip(vectors.chunks(4)) {
            for ((sum, half), vector) in sums.iter_mut().zip(halves).zip(vectors) {
                *sum = _mm256_fmadd_ps(_mm256_cvtph_ps(bytemuck::cast(*half)), bytemuck::cast(*vector), *sum);
            }
        }
        let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
        let lanes: [f32; 8] = bytemuck::cast(sum);
        let tail: f32 = row_rest.iter().zip(rest).map(|(half, x)| f16::from_bits(*half).to_f32() * x).sum();
        *score = lanes.iter().sum::<f32>() + tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes erf by its series, in f64.
    fn erf(x: f64) -> f64 {
        let mut term = x;
        let mut sum = x;
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        2.0 / std::f64::consts::PI.sqrt() * sum
    }

    #[test]
    fn exp_is_close_over_its_whole_range() {
        for i in -8_600..8_700 {
            let x = i as f32 * 0.01;
            let exact = f64::from(x).exp();
            assert!(((f64::from(exp(x)) - exact) / exact).abs() < 4e-7, "exp({x})");
        }
        assert!(exp(-1e9) < 1e-37 && exp(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_and_its_derivative_are_those_of_the_error_function() {
        for i in -500..=500 {
            let x = i as f32 * 0.01;
            let wide = f64::from(x);
            let phi = 0.5 * (1.0 + erf(wide / 2.0_f64.sqrt()));
            let density = (-0.5 * wide * wide).exp() / (2.0 * std::f64::consts::PI).sqrt();
            let (value, slope) = gelu(x);
            assert!((f64::from(value) - wide * phi).abs() < 1e-6, "gelu({x})");
            assert!((f64::from(slope) - (phi + wide * density)).abs() < 1e-6, "gelu'({x})");
        }
        assert_eq!(gelu(40.0).0, 40.0);
        assert!(gelu(f32::NAN).0.is_nan());
    }

    #[test]
    fn f16_rows_score_as_their_numbers_do_at_any_width() {
        for width in [1, 7, 8, 31, 32, 96, 100] {
            let rows: Vec<f16> = (0..3 * width).map(|i| f16::from_f32((i as f32 * 0.7).sin())).collect();
            let direction: Vec<f32> = (0..width).map(|i| (i as f32 * 0.3).cos()).collect();
            let mut scores = [0.0; 3];
            dot_rows_f16(&rows, &direction, &mut scores);
            for (row, score) in rows.chunks(width).zip(scores) {
                let expected: f32 = row.iter().zip(&direction).map(|(a, b)| a.to_f32() * b).sum();
                assert!((score - expected).abs() < 1e-4, "width {width}: {score} against {expected}");
            }
        }
    }
}
