//! Manifests: what a stage wrote, with hashes. A manifest is written last: where it stands, everything it lists stands.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::store::Store;
use crate::{Error, Result};

/// The layout of manifests that this build reads and writes.
pub const MANIFEST_VERSION: u32 = 1;
/// How the folder begins, below the stage's own, of an attempt that writes apart: another one may still be at work.
pub const ATTEMPT_PREFIX: &str = "attempt-";

/// What one stage of a job wrote and found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// The stage's name.
    pub stage: String,
    /// The stage's key: the hash of everything its output depends on.
    pub key: String,
    /// Every object it wrote, in a fixed order.
    pub artifacts: Vec<ManifestArtifact>,
    /// Rows read, kept, dropped by reason.
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
    /// Measured numbers.
    #[serde(default)]
    pub figures: BTreeMap<String, f64>,
    /// Fingerprints, widths and the like: what later stages depend on.
    #[serde(default)]
    pub facts: BTreeMap<String, String>,
    /// For people.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One object that a stage wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestArtifact {
    /// Relative to the job's output URL.
    pub path: String,
    /// What it is: `pairs/train`, `embeddings/teacher/holdout`, …
    pub role: String,
    /// Rows in it; 0 where it holds none.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// Of its bytes, lower-case hex.
    pub sha256: String,
    /// Further facts about it.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl ManifestArtifact {
    /// Describes an object of which the whole content is at hand.
    #[must_use]
    pub fn of(path: &str, role: &str, rows: u64, content: &[u8], metadata: BTreeMap<String, String>) -> Self {
        Self {
            path: path.to_owned(),
            role: role.to_owned(),
            rows,
            bytes: content.len() as u64,
            sha256: sha256_hex(content),
            metadata,
        }
    }
}

impl Manifest {
    /// The hash of what the stage's output *is*: its artifacts and facts, and neither its name, key, counts nor
    /// warnings. Stages that read this one put the digest into their own keys.
    #[must_use]
    pub fn digest(&self) -> String {
        // Structs serialize in field order and maps are sorted, so these bytes are canonical.
        let content = serde_json::to_vec(&(&self.artifacts, &self.facts))
            .expect("strings, integers and maps with string keys always serialize");
        sha256_hex(&content)
    }

    /// Reads a manifest; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Store`], or [`Error::Content`] where it is broken or of another version.
    pub async fn read(store: &Store, path: &str) -> Result<Option<Self>> {
        let content = match store.get(path).await {
            Ok(content) => content,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let broken = |reason: String| Error::Content {
            path: store.describe(path),
            reason,
        };
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

    /// Writes the manifest. Call it after everything that it lists is in the store.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn write(&self, store: &Store, path: &str) -> Result<()> {
        let mut content = serde_json::to_vec_pretty(self).map_err(|e| Error::Content {
            path: store.describe(path),
            reason: format!("can't be written: {e}"),
        })?;
        content.push(b'\n');
        store.put(path, Bytes::from(content)).await
    }
}

/// The SHA-256 of some bytes as lower-case hex.
#[must_use]
pub fn sha256_hex(content: &[u8]) -> String {
    let mut hasher = Sha256Stream::default();
    hasher.update(content);
    hasher.finish()
}

/// A SHA-256 over bytes that come piece by piece.
#[derive(Debug, Clone, Default)]
pub struct Sha256Stream {
    hasher: Sha256,
    bytes: u64,
}

impl Sha256Stream {
    /// Takes in the next piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.hasher.update(piece);
        self.bytes += piece.len() as u64;
    }

    /// How many bytes were taken in.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The hash as lower-case hex.
    #[must_use]
    pub fn finish(self) -> String {
        self.hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
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
            artifacts: vec![ManifestArtifact::of("a", "pairs/train", 3, b"abc", BTreeMap::new())],
            counts: BTreeMap::from([("rows".into(), 3)]),
            figures: BTreeMap::new(),
            facts: BTreeMap::from([("width".into(), "768".into())]),
            warnings: vec![],
        }
    }

    #[tokio::test]
    async fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        assert_eq!(Manifest::read(&store, "shard/manifest.json").await.unwrap(), None);
        manifest().write(&store, "shard/manifest.json").await.unwrap();
        assert_eq!(
            Manifest::read(&store, "shard/manifest.json").await.unwrap(),
            Some(manifest())
        );
    }

    #[tokio::test]
    async fn a_broken_manifest_is_refused_by_name() {
        let store = Store::open("memory://broken-manifest").unwrap();
        store
            .put("m.json", Bytes::from_static(b"{\"version\": 1}"))
            .await
            .unwrap();
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
        assert_eq!(
            sha256_hex(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
