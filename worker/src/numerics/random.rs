//! Random numbers that depend on a key alone. Without state, every rank draws the same numbers at every step and after
//! every restart.

/// The finalizer of SplitMix64, a bijection in which every output bit depends on every input bit.
pub const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Returns one key of several words, whose order matters.
pub fn key(words: &[u64]) -> u64 {
    words.iter().fold(0, |state, word| mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(*word)))
}

/// Returns the `index`-th number of a key's stream, uniform in [0, 1) with 24 bits.
pub fn uniform(key: u64, index: u64) -> f32 {
    (mix(key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))) >> 40) as f32 / (1_u64 << 24) as f32
}

/// Draws numbers uniformly within ±1/√inputs, PyTorch's default for a Linear.
pub(crate) fn fill_uniform(values: &mut [f32], inputs: usize, key: u64) {
    let bound = 1.0 / (inputs as f32).sqrt();
    for (value, index) in values.iter_mut().zip(0..) {
        *value = bound * (2.0 * uniform(key, index) - 1.0);
    }
}

/// Normal numbers, near enough: the sum of four uniform ones, scaled to variance 1.
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let key = key(&[seed]);
    let uniform = |i: u64| uniform(key, i) - 0.5;
    let sum = |i: u64| uniform(4 * i) + uniform(4 * i + 1) + uniform(4 * i + 2) + uniform(4 * i + 3);
    (0..count as u64).map(|i| sum(i) * 3.0_f32.sqrt()).collect()
}
