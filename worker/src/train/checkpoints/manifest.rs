//! What makes a checkpoint count: a manifest with every file's hash, written after the files, and sealed with its own.

use llink_datasets::manifest::sha256_hex;
use serde::{Deserialize, Serialize};

/// Of the format below.
const VERSION: u32 = 1;
/// How an open manifest ends.
const EMPTY_SEAL: &str = "\"seal\": \"\"";

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Below the job's output.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
}

/// Metrics of some consecutive steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PieceRecord {
    /// The first step in it.
    pub first: u64,
    /// The last step in it.
    pub last: u64,
    /// JSON lines.
    pub lines: FileRecord,
    /// A TensorBoard event file.
    pub events: FileRecord,
}

/// A checkpoint: its state, and the metrics of all steps up to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointManifest {
    version: u32,
    /// Steps that are in it; the step to take next.
    pub steps: u64,
    /// The lease under which it was written.
    pub generation: u64,
    /// What held-out data said of it, where they were asked: less is better.
    pub score: Option<f64>,
    /// Seconds that its steps took, over all generations.
    pub step_seconds: f64,
    /// The safetensors file.
    pub state: FileRecord,
    /// In the order of their steps.
    pub metrics: Vec<PieceRecord>,
    /// What the person who reads the report should know of the way here.
    pub warnings: Vec<String>,
    /// Of this manifest with this field empty.
    seal: String,
}

impl FileRecord {
    /// Of a file with this content.
    #[must_use]
    pub fn of(path: String, content: &[u8]) -> Self {
        Self {
            path,
            bytes: content.len() as u64,
            sha256: sha256_hex(content),
        }
    }

    /// What is wrong with `content`, if it is not the file's.
    ///
    /// # Errors
    /// How the content differs.
    pub fn check(&self, content: &[u8]) -> Result<(), String> {
        if content.len() as u64 != self.bytes {
            return Err(format!(
                "{} has {} bytes, {} were written",
                self.path,
                content.len(),
                self.bytes
            ));
        }
        if sha256_hex(content) != self.sha256 {
            return Err(format!("{} was altered: its SHA-256 is another", self.path));
        }
        Ok(())
    }
}

impl CheckpointManifest {
    /// Sealed when it is written.
    #[must_use]
    pub const fn new(
        steps: u64,
        generation: u64,
        score: Option<f64>,
        step_seconds: f64,
        state: FileRecord,
        metrics: Vec<PieceRecord>,
        warnings: Vec<String>,
    ) -> Self {
        Self {
            version: VERSION,
            steps,
            generation,
            score,
            step_seconds,
            state,
            metrics,
            warnings,
            seal: String::new(),
        }
    }

    /// As JSON, with its seal.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let open = Self {
            seal: String::new(),
            ..self.clone()
        };
        let text = serde_json::to_string_pretty(&open).expect("a manifest is plain data");
        let seal = sha256_hex(text.as_bytes());
        // The seal is the last field.
        let end = text.rfind(EMPTY_SEAL).expect("the field is there") + EMPTY_SEAL.len() - 1;
        format!("{}{seal}{}", &text[..end], &text[end..]).into_bytes()
    }

    /// Reads what [`Self::to_json`] wrote.
    ///
    /// # Errors
    /// Why it is not that.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(json).map_err(|error| format!("it can't be read: {error}"))?;
        if manifest.version != VERSION {
            return Err(format!(
                "it has version {}, this program reads {VERSION}",
                manifest.version
            ));
        }
        // Over the text itself: numbers that are read and written again may differ in their last digit.
        let text = String::from_utf8_lossy(json);
        let open = match text.rfind(&manifest.seal) {
            Some(at) if !manifest.seal.is_empty() => {
                format!("{}{}", &text[..at], &text[at + manifest.seal.len()..])
            }
            _ => return Err("it has no seal".into()),
        };
        if manifest.seal != sha256_hex(open.as_bytes()) {
            return Err("it was altered: its seal does not fit".into());
        }
        Ok(manifest)
    }
}

/// Which of `checkpoints` are no longer needed: all but the newest `kept` and the best. They are in order, oldest first.
#[must_use]
pub fn superseded(checkpoints: &[CheckpointManifest], kept: usize) -> Vec<&CheckpointManifest> {
    let best = best(checkpoints).map(|best| (best.steps, best.generation));
    let old = checkpoints.len().saturating_sub(kept);
    checkpoints[..old]
        .iter()
        .filter(|checkpoint| best != Some((checkpoint.steps, checkpoint.generation)))
        .collect()
}

/// The checkpoint that held-out data liked best; the older one when two are alike.
#[must_use]
pub fn best(checkpoints: &[CheckpointManifest]) -> Option<&CheckpointManifest> {
    let scored = checkpoints.iter().filter_map(|c| c.score.map(|score| (score, c)));
    scored
        .min_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, checkpoint)| checkpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(steps: u64, score: Option<f64>) -> CheckpointManifest {
        let state = FileRecord::of("a".into(), b"x");
        CheckpointManifest::new(steps, 3, score, 0.125, state, Vec::new(), vec!["w".into()])
    }

    #[test]
    fn a_seal_fits_whatever_the_numbers_are() {
        for i in 0..2_000 {
            let score = 7.3 * crate::train::random::uniform(1, i) as f64 / 3.0 + 1e-9 * i as f64;
            let written = CheckpointManifest {
                step_seconds: score * 1.37,
                ..manifest(i, Some(score))
            };
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
        let why = CheckpointManifest::from_json(json.replace(&seal_of(&json), "").as_bytes()).unwrap_err();
        assert!(why.contains("no seal"), "{why}");
    }

    fn seal_of(json: &str) -> String {
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        value["seal"].as_str().unwrap().to_owned()
    }

    #[test]
    fn the_newest_and_the_best_are_kept() {
        let scores = [Some(5.0), Some(2.0), None, Some(2.0), Some(3.0), None];
        let all: Vec<_> = scores
            .iter()
            .zip(1..)
            .map(|(score, steps)| manifest(steps, *score))
            .collect();
        let steps: Vec<u64> = superseded(&all, 2).iter().map(|c| c.steps).collect();
        assert_eq!(steps, [1, 3, 4]);
        assert!(superseded(&all[..2], 2).is_empty());
        assert_eq!(superseded(&[manifest(1, None), manifest(2, None)], 1)[0].steps, 1);
    }
}
