//! Caches the encoder's vectors of sentences: in memory for the next question, on disk for the next run.

use std::collections::HashMap;
use std::path::PathBuf;

use half::f16;
use llink_datasets::manifest::sha256_hex;

use super::config::EncoderEntry;

/// The number of vectors in memory after which those that are not used are forgotten.
const RECENT: usize = 8_192;
/// Size of a file's checksum in bytes, behind the numbers.
const CHECKSUM: usize = 4;

/// The cached vectors by their text, for one encoder with one set of limits.
#[derive(Debug)]
pub struct VectorCache {
    folder: Option<PathBuf>,
    encoder: EncoderEntry,
    /// The number of windows whose vectors follow that of a text.
    windows: usize,
    /// The vectors of the last texts, and those of the texts before them.
    recent: HashMap<String, Vec<f16>>,
    older: HashMap<String, Vec<f16>>,
    complained: bool,
}

impl VectorCache {
    /// Opens a cache below `folder`, or in memory only. The vectors of `windows` windows follow that of a text.
    pub fn new(folder: Option<PathBuf>, encoder: &EncoderEntry, windows: usize) -> Self {
        Self {
            folder: folder.map(|folder| folder.join(&encoder.fingerprint)),
            encoder: encoder.clone(),
            windows,
            recent: HashMap::new(),
            older: HashMap::new(),
            complained: false,
        }
    }

    /// Returns the cached vector of a text.
    pub fn get(&mut self, text: &str) -> Option<Vec<f16>> {
        let key = self.key(text);
        if let Some(vector) = self.recent.get(&key) {
            return Some(vector.clone());
        }
        if let Some(vector) = self.older.remove(&key) {
            self.keep(key, vector.clone());
            return Some(vector);
        }
        let path = self.path(&key)?;
        let content = std::fs::read(&path).ok()?;
        let Some(vector) = decode(&content, (1 + self.windows) * self.encoder.hidden_size) else {
            tracing::warn!("{}: damaged, the text is read again", path.display());
            return None;
        };
        self.keep(key, vector.clone());
        Some(vector)
    }

    /// Caches the vector of a text. A disk error only costs time later.
    pub fn put(&mut self, text: &str, vector: &[f16]) {
        let key = self.key(text);
        if let Some(path) = self.path(&key)
            && let Err(error) = write(&path, &encode(vector))
            && !std::mem::replace(&mut self.complained, true)
        {
            tracing::warn!("{}: {error}; vectors are kept in memory alone", path.display());
        }
        self.keep(key, vector.to_vec());
    }

    fn keep(&mut self, key: String, vector: Vec<f16>) {
        if self.recent.len() >= RECENT {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.insert(key, vector);
    }

    fn key(&self, text: &str) -> String {
        let EncoderEntry { max_chars, max_tokens, reading, .. } = &self.encoder;
        let windows = match self.windows {
            0 => String::new(),
            windows => format!(" {windows} windows"),
        };
        sha256_hex(format!("{max_chars} {max_tokens} {reading:?}{windows}\n{text}").as_bytes())
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        let folder = self.folder.as_ref()?;
        Some(folder.join(&key[..2]).join(format!("{key}.f16")))
    }
}

fn write(path: &std::path::Path, content: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder)?;
    // Another process may write the same text. The last complete file stays.
    let staged = tempfile::NamedTempFile::new_in(folder)?;
    std::fs::write(staged.path(), content)?;
    staged.persist(path)?;
    Ok(())
}

fn encode(vector: &[f16]) -> Vec<u8> {
    let mut content: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    content.extend(crc32c::crc32c(&content).to_le_bytes());
    content
}

fn decode(content: &[u8], width: usize) -> Option<Vec<f16>> {
    let (numbers, checksum) = content.split_at_checked(content.len().checked_sub(CHECKSUM)?)?;
    let whole = numbers.len() == 2 * width && crc32c::crc32c(numbers).to_le_bytes() == checksum;
    whole.then(|| numbers.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Reading;

    fn entry(fingerprint: &str, max_chars: usize) -> EncoderEntry {
        EncoderEntry {
            name: "e".into(),
            source: "/e".into(),
            fingerprint: fingerprint.into(),
            hidden_size: 3,
            max_chars,
            max_tokens: 64,
            reading: Reading::default(),
        }
    }

    #[test]
    fn a_vector_is_found_again_by_its_text_its_encoder_and_its_limits() {
        let folder = tempfile::tempdir().unwrap();
        let open_with = |entry, windows| VectorCache::new(Some(folder.path().into()), &entry, windows);
        let open = |entry: EncoderEntry| open_with(entry, 0);
        let vector = [0.5, -2.0, 0.25].map(f16::from_f32);
        open(entry("aa", 256)).put("ត្រី", &vector);
        assert_eq!(open(entry("aa", 256)).get("ត្រី").unwrap(), vector);
        assert_eq!(open(entry("aa", 256)).get("ត្រីៗ"), None);
        assert_eq!(open(entry("bb", 256)).get("ត្រី"), None, "another encoder");
        assert_eq!(open(entry("aa", 128)).get("ត្រី"), None, "other limits");
        let reading = Reading { normalize: true, ..Reading::default() };
        let normalized = EncoderEntry { reading, ..entry("aa", 256) };
        assert_eq!(open(normalized).get("ត្រី"), None, "another reading");
        let mut windowed = open_with(entry("aa", 256), 1);
        assert_eq!(windowed.get("ត្រី"), None, "the windows are missing");
        windowed.put("ត្រី", &[vector, vector].concat());
        let again = open_with(entry("aa", 256), 1).get("ត្រី").unwrap();
        assert_eq!(again, [vector, vector].concat());
    }

    #[test]
    fn memory_holds_the_texts_that_are_used_and_a_bounded_number_of_others() {
        let mut cache = VectorCache::new(None, &entry("aa", 256), 0);
        let vector = [0.5, -2.0, 0.25].map(f16::from_f32);
        for n in 0..3 * RECENT {
            cache.put(&n.to_string(), &vector);
            assert!(cache.get("0").is_some(), "{n}");
        }
        assert!(cache.get("1").is_none());
        assert!(cache.recent.len() + cache.older.len() <= 2 * RECENT);
    }

    #[test]
    fn a_damaged_file_is_read_over_and_a_folder_that_cant_be_written_to_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = VectorCache::new(Some(folder.path().into()), &entry("aa", 256), 0);
        let vector = [0.5, -2.0, 0.25].map(f16::from_f32);
        cache.put("x", &vector);
        let path = cache.path(&cache.key("x")).unwrap();
        let mut content = std::fs::read(&path).unwrap();
        content[0] ^= 1;
        std::fs::write(&path, &content).unwrap();
        assert_eq!(cache.get("x").unwrap(), vector, "memory still has it");
        let mut again = VectorCache::new(Some(folder.path().into()), &entry("aa", 256), 0);
        assert_eq!(again.get("x"), None);
        for content in [&b""[..], b"abc", b"0123456789"] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(again.get("x"), None);
        }
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let mut cache = VectorCache::new(Some(file), &entry("aa", 256), 0);
        cache.put("x", &vector);
        assert_eq!(cache.get("x").unwrap(), vector);
    }
}
