//! Reproducible random numbers. The same seed and name give the same numbers on every machine.

/// Counter-based standard normal numbers (splitmix64, then Box-Muller).
#[derive(Debug)]
pub struct Normal {
    key: u64,
    counter: u64,
    spare: Option<f64>,
}

impl Normal {
    /// Returns the stream of `name` under `seed`.
    pub fn new(seed: u64, name: &str) -> Self {
        let name = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
        Self { key: mix(seed ^ mix(name)), counter: 0, spare: None }
    }

    /// Returns a number in (0, 1).
    fn uniform(&mut self) -> f64 {
        self.counter = self.counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = mix(self.key.wrapping_add(self.counter)) >> 11;
        (bits as f64 + 0.5) / (1u64 << 53) as f64
    }
}

impl Iterator for Normal {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        if let Some(spare) = self.spare.take() {
            return Some(spare);
        }
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * self.uniform();
        self.spare = Some(radius * angle.sin());
        Some(radius * angle.cos())
    }
}

/// The finalizer of splitmix64.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_standard_normal_and_depend_on_seed_and_name() {
        let numbers: Vec<f64> = Normal::new(3, "a").take(40_000).collect();
        let mean = numbers.iter().sum::<f64>() / 40_000.0;
        let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 40_000.0;
        assert!(mean.abs() < 0.02, "{mean}");
        assert!((variance - 1.0).abs() < 0.03, "{variance}");
        assert_ne!(numbers[0], Normal::new(4, "a").next().unwrap());
        assert_ne!(numbers[0], Normal::new(3, "b").next().unwrap());
    }
}
