//! Manifests list what a stage wrote, with hashes. A manifest is written last: if it exists, everything that it lists
//! exists.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::role::Role;
use crate::store::Store;
use crate::{Error, Result};

/// The version of the manifest format that this build reads and writes.
pub const MANIFEST_VERSION: u32 = 1;
/// The prefix of the folder of an attempt that writes apart because another attempt may still be running.
pub const ATTEMPT_PREFIX: &str = "attempt-";

/// The results of one stage of a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format version, [`MANIFEST_VERSION`].
    pub version: u32,
    /// The name of the stage.
    pub stage: String,
    /// The stage's key: the hash of everything its output depends on.
    pub key: String,
    /// Every object that the stage wrote, in a fixed order.
    pub artifacts: Vec<ManifestArtifact>,
    /// Rows read, kept, and dropped by reason.
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
    /// Measured numbers by name.
    #[serde(default)]
    pub figures: BTreeMap<String, f64>,
    /// Fingerprints, widths and similar facts that later stages depend on.
    #[serde(default)]
    pub facts: BTreeMap<String, String>,
    /// Warnings for people.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One object that a stage wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestArtifact {
    /// Path relative to the job's output URL.
    pub path: String,
    /// What the object holds.
    pub role: Role,
    /// Number of rows, or 0 if it holds none.
    pub rows: u64,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the bytes, as lower-case hex.
    pub sha256: String,
    /// Further facts about the object.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl ManifestArtifact {
    /// Describes an object whose whole content is in memory.
    #[must_use]
    pub fn of(path: &str, role: Role, rows: u64, content: &[u8], metadata: BTreeMap<String, String>) -> Self {
        Self { path: path.to_owned(), role, rows, bytes: content.len() as u64, sha256: sha256_hex(content), metadata }
    }
}

impl Manifest {
    /// Returns the hash of the stage's output: its artifacts and facts, without its name, key, counts and warnings.
    /// Stages that read this output put the digest into their own keys.
    #[must_use]
    pub fn digest(&self) -> String {
        // Structs serialize in field order and maps are sorted, so these bytes are canonical.
        let content = serde_json::to_vec(&(&self.artifacts, &self.facts))
            .expect("strings, integers and maps with string keys always serialize");
        sha256_hex(&content)
    }

    /// Reads a manifest, or returns `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Store`], or [`Error::Content`] if it is broken or has another version.
    pub async fn read(store: &Store, path: &str) -> Result<Option<Self>> {
        let content = match store.get(path).await {
            Ok(content) => content,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let broken = |reason: String| Error::Content { path: store.describe(path), reason };
        let manifest: Self = serde_json::from_slice(&content)
            .map_err(|e| broken(format!("is no manifest: {e}; delete it to have the stage run again")))?;
        if manifest.version != MANIFEST_VERSION {
            return Err(broken(format!(
                "has version {}, this build reads {MANIFEST_VERSION}; delete it to have the stage run again",
                manifest.version
            )));
        }
        Ok(Some(manifest))
    }

    /// Writes the manifest. Call this after every object that it lists is in the store.
    pub async fn write(&self, store: &Store, path: &str) -> Result<()> {
        let mut content = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::Content { path: store.describe(path), reason: format!("can't be written: {e}") })?;
        content.push(b'\n');
        store.put(path, Bytes::from(content)).await
    }
}

/// Returns the SHA-256 of some bytes as lower-case hex.
#[must_use]
pub fn sha256_hex(content: &[u8]) -> String {
    let mut hasher = Sha256Stream::default();
    hasher.update(content);
    hasher.finish()
}

/// A SHA-256 of bytes that come piece by piece.
#[derive(Debug, Clone, Default)]
pub struct Sha256Stream {
    hasher: Sha256,
    bytes: u64,
}

impl Sha256Stream {
    /// Adds the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.hasher.update(piece);
        self.bytes += piece.len() as u64;
    }

    /// Returns the number of bytes so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the hash as lower-case hex.
    #[must_use]
    pub fn finish(self) -> String {
        self.hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            version: MANIFEST_VERSION,
            stage: "shard".into(),
            key: "k".into(),
            artifacts: vec![ManifestArtifact::of("a", Role::Assignment, 3, b"abc", BTreeMap::new())],
            counts: BTreeMap::from([("rows".into(), 3)]),
            facts: BTreeMap::from([("width".into(), "768".into())]),
            ..Manifest::default()
        }
    }

    #[tokio::test]
    async fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        assert_eq!(Manifest::read(&store, "shard/manifest.json").await.unwrap(), None);
        manifest().write(&store, "shard/manifest.json").await.unwrap();
        assert_eq!(Manifest::read(&store, "shard/manifest.json").await.unwrap(), Some(manifest()));
    }

    #[tokio::test]
    async fn a_broken_manifest_is_refused_by_name() {
        let store = Store::open("memory://broken-manifest").unwrap();
        store.put("m.json", Bytes::from_static(b"{\"version\": 1}")).await.unwrap();
        let text = Manifest::read(&store, "m.json").await.unwrap_err().to_string();
        assert!(text.contains("m.json") && text.contains("stage"), "{text}");
    }

    #[test]
    fn the_digest_follows_artifacts_and_facts_alone() {
        let digest = manifest().digest();
        let mut other = manifest();
        other.warnings.push("late".into());
        other.counts.clear();
        assert_eq!(other.digest(), digest);
        other.facts.insert("width".into(), "1024".into());
        assert_ne!(other.digest(), digest);
    }

    #[test]
    fn hashes_are_sha256_in_hex() {
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
