//! Near-duplicates: texts that share most of their character 5-grams, found by MinHash and banding.
//!
//! A signature is 24 minima (by the `gaoya` crate), of which 16 bits each are kept. Six bands of four find two texts of
//! Jaccard similarity 0.8 with a probability of 96 %, 0.9 with 99.9 %; the estimate over all 24 then decides.

use std::collections::HashMap;

use gaoya::minhash::{MinHasher, MinHasher64V1};
use xxhash_rust::xxh3::xxh3_64;

/// Minima in a signature.
const HASHES: usize = 24;
/// Minima in a band; four of 16 bits are a 64-bit key.
const BAND: usize = 4;
/// Characters in a shingle.
const SHINGLE: usize = 5;
/// Rows of one band's bucket that are compared; texts made from one template fill a bucket without end.
const COMPARED: usize = 64;

/// What is done about rows that say almost the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NearDuplicates {
    /// Nothing.
    Keep,
    /// A training row that is this similar to a held-out one, on either side, is dropped.
    Across(f64),
    /// Any row that is this similar to one that is kept already, on either side, is dropped.
    Everywhere(f64),
}

impl NearDuplicates {
    /// The least Jaccard similarity that counts; `None` where nothing is compared.
    #[must_use]
    pub fn similarity(self) -> Option<f64> {
        match self {
            Self::Keep => None,
            Self::Across(similarity) | Self::Everywhere(similarity) => Some(similarity),
        }
    }
}

/// What texts are compared by.
pub(crate) type Signature = [u16; HASHES];

/// Bytes of a signature on disk.
pub(crate) const SIGNATURE_BYTES: usize = HASHES * 2;

/// Makes signatures.
pub(crate) struct Signer {
    hasher: MinHasher64V1<as_is::Build>,
}

/// gaoya's default hasher is FNV, which it does not name; shingles are hashed already, so that a hasher that takes
/// them as they are is both faster and free of that.
mod as_is {
    use std::hash::{BuildHasher, Hasher};

    #[derive(Clone, Copy)]
    pub(crate) struct Build;

    pub(crate) struct AsIs(u64);

    impl BuildHasher for Build {
        type Hasher = AsIs;

        fn build_hasher(&self) -> AsIs {
            AsIs(0)
        }
    }

    impl Hasher for AsIs {
        fn finish(&self) -> u64 {
            self.0
        }

        fn write(&mut self, bytes: &[u8]) {
            self.0 ^= xxhash_rust::xxh3::xxh3_64(bytes);
        }

        fn write_u64(&mut self, hash: u64) {
            self.0 = hash;
        }
    }
}

impl Signer {
    pub(crate) fn new() -> Self {
        Self {
            hasher: MinHasher64V1::new_with_hasher(HASHES, as_is::Build),
        }
    }

    /// The signature of a text in its comparison form.
    pub(crate) fn sign(&self, form: &str) -> Signature {
        let starts: Vec<usize> = form
            .char_indices()
            .map(|(at, _)| at)
            .chain(std::iter::once(form.len()))
            .collect();
        let width = SHINGLE.min(starts.len() - 1);
        let shingles = starts
            .windows(width + 1)
            .map(|w| xxh3_64(&form.as_bytes()[w[0]..w[width]]));
        let minima = self.hasher.create_signature(shingles);
        let mut signature = [0; HASHES];
        for (short, minimum) in signature.iter_mut().zip(minima) {
            *short = minimum as u16;
        }
        signature
    }
}

/// Signatures of rows that are kept, to be asked about others.
pub(crate) struct NearIndex {
    least: usize,
    signatures: Vec<Signature>,
    bands: Vec<HashMap<u64, Vec<u32>>>,
}

impl NearIndex {
    pub(crate) fn new(similarity: f64) -> Self {
        Self {
            least: (similarity * HASHES as f64).round() as usize,
            signatures: Vec::new(),
            bands: vec![HashMap::new(); HASHES / BAND],
        }
    }

    /// Whether a text as similar as asked for is in it.
    pub(crate) fn holds(&self, signature: &Signature) -> bool {
        let agrees = |row: &u32| {
            let other = &self.signatures[*row as usize];
            signature.iter().zip(other).filter(|(a, b)| a == b).count() >= self.least
        };
        keys(signature)
            .zip(&self.bands)
            .filter_map(|(key, band)| band.get(&key))
            .any(|rows| rows.iter().take(COMPARED).any(agrees))
    }

    pub(crate) fn add(&mut self, signature: Signature) {
        let row = self.signatures.len() as u32;
        for (key, band) in keys(&signature).zip(&mut self.bands) {
            let rows = band.entry(key).or_default();
            if rows.len() < COMPARED {
                rows.push(row);
            }
        }
        self.signatures.push(signature);
    }
}

fn keys(signature: &Signature) -> impl Iterator<Item = u64> {
    signature
        .chunks_exact(BAND)
        .map(|band| band.iter().fold(0, |key, part| key << 16 | u64::from(*part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_word_in_a_long_text_is_near_and_another_text_is_not() {
        let signer = Signer::new();
        let mut index = NearIndex::new(0.8);
        let text = "thefarmersofthevillagemetonthefirstdayofthenewyeartotalkabouttheriverandthericethattheyhadplanted";
        index.add(signer.sign(text));
        assert!(index.holds(&signer.sign(text)));
        assert!(index.holds(&signer.sign(&format!("{text}!"))));
        assert!(!index.holds(
            &signer.sign("aministersaidonmondaythatthebridgeoverthemekongwouldbeclosedtolorriesforthreemonthsfromjune")
        ));
        assert!(!index.holds(&signer.sign("x")) && !index.holds(&signer.sign("")));
    }
}
