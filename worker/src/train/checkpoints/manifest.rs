//! The manifest of a checkpoint, which makes it count. It has the hash of every file, is written after them, and is
//! sealed with its own hash.

use llink_datasets::manifest::sha256_hex;
use serde::{Deserialize, Serialize};

pub(super) const VERSION: u32 = 1;
/// The end of a manifest without a seal.
const EMPTY_SEAL: &str = "\"seal\": \"\"";

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// The path below the job's output.
    pub path: String,
    /// The size in bytes.
    pub bytes: u64,
    /// The SHA-256 in lower-case hex.
    pub sha256: String,
}

/// The metrics of some consecutive steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PieceRecord {
    /// The first step.
    pub first: u64,
    /// The last step.
    pub last: u64,
    /// The file of JSON lines.
    pub lines: FileRecord,
    /// The TensorBoard event file.
    pub events: FileRecord,
}

/// A checkpoint: its state, and the metrics of all steps up to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointManifest {
    pub(super) version: u32,
    /// The number of steps that were taken, which is the next step.
    pub steps: u64,
    /// The generation of the gang that wrote it.
    pub generation: u64,
    /// The score on held-out data, if it was measured. Lower is better.
    pub score: Option<f64>,
    /// The seconds that its steps took, over all generations.
    pub step_seconds: f64,
    /// The safetensors file.
    pub state: FileRecord,
    /// The metrics in the order of their steps.
    pub metrics: Vec<PieceRecord>,
    /// The warnings for the report.
    pub warnings: Vec<String>,
    /// The SHA-256 of this manifest with this field empty. [`Self::to_json`] writes it.
    pub(super) seal: String,
}

impl FileRecord {
    /// Describes a file with this content.
    pub fn of(path: String, content: &[u8]) -> Self {
        Self { path, bytes: content.len() as u64, sha256: sha256_hex(content) }
    }

    /// Compares `content` with the recorded size and hash.
    ///
    /// # Errors
    /// The difference, in words.
    pub fn check(&self, content: &[u8]) -> Result<(), String> {
        if content.len() as u64 != self.bytes {
            return Err(format!("{} has {} bytes, {} were written", self.path, content.len(), self.bytes));
        }
        if sha256_hex(content) != self.sha256 {
            return Err(format!("{} was altered: its SHA-256 differs", self.path));
        }
        Ok(())
    }
}

impl CheckpointManifest {
    /// Returns the manifest as JSON with its seal.
    pub fn to_json(&self) -> Vec<u8> {
        let open = Self { seal: String::new(), ..self.clone() };
        let text = serde_json::to_string_pretty(&open).expect("a manifest is plain data");
        let seal = sha256_hex(text.as_bytes());
        // The seal is the last field.
        let end = text.rfind(EMPTY_SEAL).expect("the field is there") + EMPTY_SEAL.len() - 1;
        format!("{}{seal}{}", &text[..end], &text[end..]).into_bytes()
    }

    /// Reads a manifest that [`Self::to_json`] wrote.
    ///
    /// # Errors
    /// The reason why the text is not such a manifest.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(json).map_err(|error| format!("it can't be read: {error}"))?;
        if manifest.version != VERSION {
            return Err(format!("it has version {}, but this program reads {VERSION}", manifest.version));
        }
        // The seal is over the text itself, because a parsed number may be written with another last digit.
        let text = String::from_utf8_lossy(json);
        let open = match text.rfind(&manifest.seal) {
            Some(at) if !manifest.seal.is_empty() => {
                format!("{}{}", &text[..at], &text[at + manifest.seal.len()..])
            }
            _ => return Err("it has no seal".into()),
        };
        if manifest.seal != sha256_hex(open.as_bytes()) {
            return Err("it was altered: its seal does not match".into());
        }
        Ok(manifest)
    }
}

/// Returns the `checkpoints` that are no longer needed: all but the newest `kept` and the best. The input is in order,
/// oldest first.
pub fn superseded(checkpoints: &[CheckpointManifest], kept: usize) -> Vec<&CheckpointManifest> {
    let best = best(checkpoints).map(|best| (best.steps, best.generation));
    let old = checkpoints.len().saturating_sub(kept);
    checkpoints[..old].iter().filter(|checkpoint| best != Some((checkpoint.steps, checkpoint.generation))).collect()
}

/// Returns the checkpoint with the best score. The older one wins a tie.
pub fn best(checkpoints: &[CheckpointManifest]) -> Option<&CheckpointManifest> {
    let scored = checkpoints.iter().filter_map(|c| c.score.map(|score| (score, c)));
    scored.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, checkpoint)| checkpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(steps: u64, score: Option<f64>) -> CheckpointManifest {
        let (state, warnings) = (FileRecord::of("a".into(), b"x"), vec!["w".into()]);
        let (metrics, seal) = (Vec::new(), String::new());
        let (version, generation, step_seconds) = (VERSION, 3, 0.125);
        CheckpointManifest { version, steps, generation, score, step_seconds, state, metrics, warnings, seal }
    }

    #[test]
    fn a_seal_fits_whatever_the_numbers_are() {
        for i in 0..2_000 {
            let score = 7.3 * crate::numerics::random::uniform(1, i) as f64 / 3.0 + 1e-9 * i as f64;
            let written = CheckpointManifest { step_seconds: score * 1.37, ..manifest(i, Some(score)) };
            let read = CheckpointManifest::from_json(&written.to_json()).unwrap();
            assert!((read.score.unwrap() - score).abs() < 1e-12);
        }
    }

    #[test]
    fn an_altered_manifest_is_refused() {
        let written = manifest(100, Some(0.1 + 0.2));
        let json = String::from_utf8(written.to_json()).unwrap();
        let read = CheckpointManifest::from_json(json.as_bytes()).unwrap();
        assert_eq!(read.steps, 100);
        let altered = json.replace("\"steps\": 100", "\"steps\": 200");
        assert_ne!(altered, json);
        let why = CheckpointManifest::from_json(altered.as_bytes()).unwrap_err();
        assert!(why.contains("altered"), "{why}");
        assert!(CheckpointManifest::from_json(&json.as_bytes()[..json.len() / 2]).is_err());
        let why = CheckpointManifest::from_json(json.replace(&read.seal, "").as_bytes()).unwrap_err();
        assert!(why.contains("no seal"), "{why}");
    }

    #[test]
    fn the_newest_and_the_best_are_kept() {
        let scores = [Some(5.0), Some(2.0), None, Some(2.0), Some(3.0), None];
        let all: Vec<_> = scores.iter().zip(1..).map(|(score, steps)| manifest(steps, *score)).collect();
        let steps: Vec<u64> = superseded(&all, 2).iter().map(|c| c.steps).collect();
        assert_eq!(steps, [1, 3, 4]);
        assert!(superseded(&all[..2], 2).is_empty());
        assert_eq!(superseded(&[manifest(1, None), manifest(2, None)], 1)[0].steps, 1);
    }
}
