//! Near-duplicates are texts that share most of their character 5-grams. They are found by MinHash and banding.
//!
//! A signature is 64 minima (by the `gaoya` crate), of which one byte each is kept. Texts that agree in one of 16 bands
//! of four minima are compared. That compares two texts of Jaccard similarity 0.8 in all but one of a thousand cases.
//! The share of equal minima then estimates the similarity, with a standard deviation of 0.05. An estimate up to one
//! standard deviation too low still counts, because a dropped row costs less than training on held-out text.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use gaoya::minhash::{MinHasher, MinHasher8};
use xxhash_rust::xxh3::xxh3_64;

/// The number of minima in a signature.
const HASHES: usize = 64;
/// The number of minima in a band; their four bytes are a 32-bit key.
const BAND: usize = 4;
/// The number of characters in a shingle.
const SHINGLE: usize = 5;
/// The most rows of a band's bucket that are compared, because texts from one template can fill a bucket without limit.
const COMPARED: usize = 64;
/// Marks the end of a bucket's chain.
const NONE: u32 = u32::MAX;

/// The treatment of rows that say almost the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NearDuplicates {
    /// Near-duplicates are kept.
    Keep,
    /// Drops a training row whose similarity to a held-out row, on either side, is at least this.
    Across(f64),
    /// Drops any row whose similarity to a row that is already kept, on either side, is at least this.
    Everywhere(f64),
}

impl NearDuplicates {
    /// Returns the least Jaccard similarity that counts, or `None` if nothing is compared.
    #[must_use]
    pub fn similarity(self) -> Option<f64> {
        match self {
            Self::Keep => None,
            Self::Across(similarity) | Self::Everywhere(similarity) => Some(similarity),
        }
    }
}

/// The signature by which texts are compared.
pub(crate) type Signature = [u8; HASHES];

/// Size of a signature on disk, in bytes.
pub(crate) const SIGNATURE_BYTES: usize = HASHES;

pub(crate) struct Signer {
    hasher: MinHasher8<BuildHasherDefault<AsIs>>,
}

/// Hashes keys that are hashes already: those of shingles stay as they are, and those of bands, which are parts of hashes, are
/// spread by one multiplication. It is faster than the FNV of gaoya, and signatures depend on no default.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 ^= xxh3_64(bytes);
    }

    fn write_u32(&mut self, key: u32) {
        self.0 = u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl Signer {
    pub(crate) fn new() -> Self {
        Self { hasher: MinHasher8::new_with_hasher(HASHES, BuildHasherDefault::default()) }
    }

    /// Returns the signature of a text in its comparison form.
    pub(crate) fn sign(&self, form: &str) -> Signature {
        let starts: Vec<usize> = form.char_indices().map(|(at, _)| at).chain(std::iter::once(form.len())).collect();
        let width = SHINGLE.min(starts.len() - 1);
        let shingles = starts.windows(width + 1).map(|w| xxh3_64(&form.as_bytes()[w[0]..w[width]]));
        self.hasher.create_signature(shingles).try_into().expect("a signature has as many minima as hashes")
    }
}

/// Signatures of kept rows, against which other rows are checked.
pub(crate) struct NearIndex {
    least: usize,
    signatures: Vec<Signature>,
    bands: Vec<Band>,
}

/// The rows by their key in one band: the last row of each key, and for each row the one before it with the same key.
#[derive(Clone, Default)]
struct Band {
    last: HashMap<u32, u32, BuildHasherDefault<AsIs>>,
    before: Vec<u32>,
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

    /// Returns true if the index holds a text that is similar enough.
    pub(crate) fn holds(&self, signature: &Signature) -> bool {
        let agrees = |row: usize| {
            let both = signature.iter().zip(&self.signatures[row]);
            both.map(|(a, b)| usize::from(a == b)).sum::<usize>() >= self.least
        };
        keys(signature).zip(&self.bands).any(|(key, band)| band.rows(key).take(COMPARED).any(agrees))
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
