//! The fingerprint of a model, which is the hash of its content in any place.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::sentence::dense_folders;
use super::weights::weight_files;
use crate::{Error, Result};

/// The optional files that describe a decoder's chat format.
const CONVENTIONS: [&str; 4] =
    ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "chat_template.jinja"];

/// Returns the SHA-256 in lower-case hex over the names and contents of a model's files. These are `config.json`,
/// `tokenizer.json`, the weight files, those of an encoder's dense layers, and the files of the chat format.
///
/// For a GGUF file, only its content counts.
///
/// Two folders have the same fingerprint exactly when these files are the same. The encoder's pooling is not part of
/// it, because a job's facts and a bundle's `config.json` record it.
///
/// # Errors
/// [`Error::Io`] for an unreadable file, [`Error::Model`] when there are no weights.
pub fn fingerprint(dir: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = Vec::new();
    if dir.is_file() {
        files.push(dir.into());
    } else {
        files.extend([dir.join("config.json"), dir.join("tokenizer.json")]);
        files.extend(CONVENTIONS.iter().map(|name| dir.join(name)).filter(|path| path.is_file()));
        files.extend(weight_files(dir)?);
        for dense in dense_folders(dir)? {
            files.push(dense.join("config.json"));
            files.extend(weight_files(&dense)?);
        }
    }
    let mut hasher = Sha256::new();
    for path in files {
        let name = match path.as_path() {
            file if file == dir => "gguf".into(),
            file => file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        };
        let io = Error::io(&path);
        let mut file = std::fs::File::open(&path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        // Lengths are hashed first, so that two different folders never give the same bytes.
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(size.to_le_bytes());
        std::io::copy(&mut file, &mut hasher).map_err(io)?;
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_follows_content_and_not_place() {
        let write = |dir: &Path, weights: &str| {
            for (name, text) in [("config.json", "{}"), ("tokenizer.json", "[]"), ("model.safetensors", weights)] {
                std::fs::write(dir.join(name), text).unwrap();
            }
        };
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(a.path(), "abc");
        write(b.path(), "abc");
        std::fs::write(b.path().join("README.md"), "not part of the model").unwrap();
        let first = fingerprint(a.path()).unwrap();
        assert_eq!(first.len(), 64);
        assert_eq!(first, fingerprint(b.path()).unwrap());
        std::fs::write(b.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
        let spoken_to_otherwise = fingerprint(b.path()).unwrap();
        assert_ne!(first, spoken_to_otherwise);
        std::fs::remove_file(b.path().join("chat_template.jinja")).unwrap();
        write(b.path(), "abd");
        assert_ne!(first, fingerprint(b.path()).unwrap());
        std::fs::remove_file(b.path().join("tokenizer.json")).unwrap();
        assert!(fingerprint(b.path()).unwrap_err().to_string().contains("tokenizer.json"));
    }
}
