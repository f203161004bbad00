//! A seeded shuffle of 0..size that needs no memory: each element is computed alone.

use crate::normal;

/// A permutation of `0..size`. It is a Feistel network on the smallest even number of bits that hold the range. It is
/// repeated until the result lies inside, on average a few times at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shuffle {
    size: u64,
    half_bits: u32,
    seed: u64,
}

const ROUNDS: u64 = 6;

impl Shuffle {
    pub(super) fn new(size: u64, seed: u64) -> Self {
        let bits = u64::BITS - (size.max(2) - 1).leading_zeros();
        Self { size, half_bits: bits.div_ceil(2), seed }
    }

    /// Returns the place of `index`, which must be below the size.
    pub(super) fn at(&self, index: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let mut value = index;
        loop {
            let (mut left, mut right) = (value >> self.half_bits, value & mask);
            for round in 0..ROUNDS {
                let key = mix(self.seed ^ (round << 56) ^ right);
                (left, right) = (right, left ^ (key & mask));
            }
            value = left << self.half_bits | right;
            if value < self.size {
                return value;
            }
        }
    }
}

/// Returns a 64-bit hash of a 64-bit number (the finalizer of SplitMix64, after one step).
pub(super) fn mix(value: u64) -> u64 {
    normal::mix(value.wrapping_add(0x9E37_79B9_7F4A_7C15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_comes_once() {
        for (size, seed) in [(1, 0), (2, 1), (7, 2), (1000, 3), (65_537, 4)] {
            let shuffle = Shuffle::new(size, seed);
            let mut seen = vec![false; size as usize];
            for index in 0..size {
                let at = shuffle.at(index) as usize;
                assert!(!seen[at], "{size} {seed}: {at} twice");
                seen[at] = true;
            }
        }
    }

    #[test]
    fn seeds_give_different_orders() {
        let order = |seed| -> Vec<u64> { (0..50).map(|i| Shuffle::new(1_000_000, seed).at(i)).collect() };
        assert_ne!(order(1), order(2));
        assert_eq!(order(1), order(1));
    }
}
