//! Loops over f32 slices that the compiler turns into vector instructions.

use crate::numerics::vectorized::vectorized;

const LANES: usize = 16;

/// Computes e^x to a few units in the last place for x within [-87, 88]. Beyond, it returns the value at the bound.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // This is x − n·ln 2. ln 2 is in two parts, so that the product is exact.
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    // This is Cephes' polynomial for e^r on [−ln 2 / 2, ln 2 / 2].
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let value = p * r * r + r + 1.0;
    value * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// Computes the error function to about 1e-7, by the rational approximation of Eigen and XLA.
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let mut p = -2.726_142_3e-10;
    p = p * s + 2.770_681_4e-8;
    p = p * s - 2.101_024e-6;
    p = p * s - 5.692_506_5e-5;
    p = p * s - 7.349_906e-4;
    p = p * s - 2.954_6e-3;
    p = p * s - 1.609_603_3e-2;
    let mut q = -1.456_607_2e-5;
    q = q * s - 2.133_740_6e-4;
    q = q * s - 1.682_827e-3;
    q = q * s - 7.373_329_2e-3;
    q = q * s - 1.426_474e-2;
    x * p / q
}

/// Computes Σ f(x) in partial sums.
#[inline(always)]
pub(super) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f(*value);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|value| f(*value)).sum::<f32>()
}

/// Computes Σ a·b in partial sums.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((a_chunks, a_rest), (b_chunks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    lanes.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// Returns the largest value, or −∞ if there is none.
#[inline(always)]
fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

vectorized! {
    /// Computes the softmax of the first `valid` values. The others become 0.
    pub(super) fn softmax(row: &mut [f32], valid: usize) {
        let (row, masked) = row.split_at_mut(valid);
        let top = max(row);
        for x in row.iter_mut() {
            *x = exp(*x - top);
        }
        let scale = 1.0 / sum(row, |x| x);
        for x in row.iter_mut() {
            *x *= scale;
        }
        masked.fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_erf_agree_with_f64() {
        for i in -80_000..80_000 {
            let x = i as f32 * 1e-3;
            let (fast, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((fast - exact).abs() <= 3e-7 * exact, "exp({x}) = {fast}, not {exact}");
            let (fast, exact) = (f64::from(erf(x)), candle_core::cpu::erf::erf_f64(f64::from(x)));
            assert!((fast - exact).abs() <= 4e-7, "erf({x}) = {fast}, not {exact}");
        }
    }

    #[test]
    fn softmax_of_a_prefix_leaves_nothing_to_the_rest() {
        let mut row: Vec<f32> = (0..37).map(|i| (i as f32 * 0.77).sin() * 9.0).collect();
        let exact: Vec<f64> = row[..29].iter().map(|x| f64::from(*x).exp()).collect();
        let total: f64 = exact.iter().sum();
        softmax(&mut row, 29);
        for (x, e) in row.iter().zip(&exact) {
            assert!((f64::from(*x) - e / total).abs() < 1e-6);
        }
        assert_eq!(row[29..], [0.0; 8]);
    }
}
