//! Near-duplicates: texts that share most of their character 5-grams, found by MinHash and banding.
//!
//! A signature is 64 minima (by the `gaoya` crate), of which a byte each is kept. Texts that agree in one of 16 bands of
//! four are compared: of two texts of Jaccard similarity 0.8 that are all but one in a thousand. The share of equal minima
//! then estimates the similarity, with a standard deviation of 0.05; an estimate that is lower than asked for by no more
//! than that still counts, as it is better to drop a row than to train on what is measured.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use gaoya::minhash::{MinHasher, MinHasher8};
use xxhash_rust::xxh3::xxh3_64;

/// Minima in a signature.
const HASHES: usize = 64;
/// Minima in a band; four bytes are a 32-bit key.
const BAND: usize = 4;
/// Characters in a shingle.
const SHINGLE: usize = 5;
/// Rows of one band's bucket that are compared; texts made from one template fill a bucket without end.
const COMPARED: usize = 64;
/// No row: the end of a bucket's chain.
const NONE: u32 = u32::MAX;

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
pub(crate) type Signature = [u8; HASHES];

/// Bytes of a signature on disk.
pub(crate) const SIGNATURE_BYTES: usize = HASHES;

/// Makes signatures.
pub(crate) struct Signer {
    hasher: MinHasher8<as_is::Build>,
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
            hasher: MinHasher8::new_with_hasher(HASHES, as_is::Build),
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
        signature.copy_from_slice(&minima);
        signature
    }
}

/// Signatures of rows that are kept, to be asked about others.
pub(crate) struct NearIndex {
    least: usize,
    signatures: Vec<Signature>,
    bands: Vec<Band>,
}

/// Rows by their key in one band: the last of each key, and the one of the same key before each row.
#[derive(Clone, Default)]
struct Band {
    last: HashMap<u32, u32, BuildHasherDefault<Spread>>,
    before: Vec<u32>,
}

/// Keys are parts of hashes: one multiplication spreads them over a table.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 ^= xxh3_64(bytes);
    }

    fn write_u32(&mut self, key: u32) {
        self.0 = u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Band {
    fn rows(&self, key: u32) -> impl Iterator<Item = usize> {
        let row = |row: u32| (row != NONE).then_some(row);
        let last = self.last.get(&key).copied();
        std::iter::successors(last, move |at| row(self.before[*at as usize])).map(|row| row as usize)
    }
}

impl NearIndex {
    pub(crate) fn new(similarity: f64) -> Self {
        let deviation = (similarity * (1.0 - similarity) / HASHES as f64).sqrt();
        Self {
            least: ((similarity - deviation) * HASHES as f64).ceil() as usize,
            signatures: Vec::new(),
            bands: vec![Band::default(); HASHES / BAND],
        }
    }

    /// Whether a text as similar as asked for is in it.
    pub(crate) fn holds(&self, signature: &Signature) -> bool {
        let agrees = |row: usize| {
            let both = signature.iter().zip(&self.signatures[row]);
            both.map(|(a, b)| usize::from(a == b)).sum::<usize>() >= self.least
        };
        keys(signature)
            .zip(&self.bands)
            .any(|(key, band)| band.rows(key).take(COMPARED).any(agrees))
    }

    pub(crate) fn add(&mut self, signature: Signature) {
        let row = self.signatures.len() as u32;
        for (key, band) in keys(&signature).zip(&mut self.bands) {
            band.before.push(band.last.insert(key, row).unwrap_or(NONE));
        }
        self.signatures.push(signature);
    }
}

fn keys(signature: &Signature) -> impl Iterator<Item = u32> {
    let (bands, _) = signature.as_chunks::<BAND>();
    bands.iter().map(|band| u32::from_le_bytes(*band))
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
