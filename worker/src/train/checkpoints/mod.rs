//! Checkpoints in the object store.
//!
//! A training's directory holds `checkpoints/step-N-generation-G.safetensors` with its manifest beside it, and
//! `checkpoints/best.json`. The metrics of the steps between two checkpoints are under `metrics/` and `tensorboard/`.
//!
//! A checkpoint counts once its manifest is there, which is written last. Names hold the generation of the gang, so
//! that a late rank of an earlier generation overwrites nothing.

mod manifest;
mod writer;

use llink_datasets::manifest::ATTEMPT_PREFIX;
use llink_datasets::store::Store;
use serde_json::json;

use super::metrics::MetricsPiece;
use crate::{Error, Result};

pub use manifest::{CheckpointManifest, FileRecord, PieceRecord, best, superseded};
pub use writer::{CheckpointWriter, Save};

/// The place of one training's checkpoints and metrics.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    store: Store,
    runtime: tokio::runtime::Handle,
    directory: String,
    /// The directory of earlier attempts, if this attempt has a directory of its own.
    before: Option<String>,
    generation: u64,
    kept: usize,
}

/// A whole checkpoint that was read.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The name in errors.
    pub name: String,
    /// The manifest.
    pub manifest: CheckpointManifest,
    /// The content of the safetensors file.
    pub state: Vec<u8>,
}

impl Checkpoints {
    /// Uses `directory` of `store` under the given `generation`, and keeps the newest `kept` checkpoints. An attempt
    /// with a directory of its own continues from the checkpoints of earlier attempts.
    pub fn new(store: Store, runtime: tokio::runtime::Handle, directory: String, generation: u64, kept: usize) -> Self {
        Self { store, runtime, before: without_attempt(&directory), directory, generation, kept }
    }

    /// Reads the newest whole checkpoint. Returns warnings about newer ones that are damaged.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn newest(&self) -> Result<(Option<Restored>, Vec<String>)> {
        let mut warnings = Vec::new();
        let mut paths = Vec::new();
        for directory in self.before.iter().chain([&self.directory]) {
            paths.extend(self.manifest_paths(directory)?);
        }
        for path in paths.iter().rev() {
            match self.restore(path) {
                Ok(restored) => {
                    let warnings = [restored.manifest.warnings.clone(), warnings].concat();
                    return Ok((Some(restored), warnings));
                }
                Err(error) => {
                    let warning = format!("a damaged checkpoint was passed over for the one before it: {error}");
                    tracing::warn!("{warning}");
                    warnings.push(warning);
                }
            }
        }
        if !warnings.is_empty() {
            warnings.push("no checkpoint was whole: training began again from the first step".into());
        }
        Ok((None, warnings))
    }

    /// Reads the checkpoint after `steps` steps that `generation` wrote.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn load(&self, steps: u64, generation: u64) -> Result<Restored> {
        let restore = |directory| self.restore(&format!("{}.json", stem(directory, steps, generation)));
        match (restore(&self.directory), &self.before) {
            (Err(_), Some(before)) => restore(before),
            (restored, _) => restored,
        }
    }

    /// Writes the state, the metrics since the checkpoint `before`, and then the manifest. Removes checkpoints that are
    /// no longer needed.
    fn save(&self, save: &Save, before: Option<&CheckpointManifest>) -> Result<CheckpointManifest> {
        let stem = stem(&self.directory, save.steps, self.generation);
        let state = self.put(format!("{stem}.safetensors"), save.state.clone())?;
        let mut metrics = before.map(|before| before.metrics.clone()).unwrap_or_default();
        metrics.extend(self.save_piece(&save.metrics)?);
        let manifest = CheckpointManifest {
            version: manifest::VERSION,
            steps: save.steps,
            generation: self.generation,
            score: save.score,
            step_seconds: before.map_or(0.0, |before| before.step_seconds) + save.metrics.step_seconds,
            state,
            metrics,
            warnings: save.warnings.clone(),
            seal: String::new(),
        };
        self.put(format!("{stem}.json"), manifest.to_json().into())?;
        self.remove_superseded()?;
        Ok(manifest)
    }

    /// Writes the metrics of some steps, if there are any.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn save_piece(&self, piece: &MetricsPiece) -> Result<Option<PieceRecord>> {
        let Some((first, last)) = piece.steps else {
            return Ok(None);
        };
        let Self { directory, generation, .. } = self;
        let lines = format!("{directory}/metrics/steps-{first:09}-{last:09}-generation-{generation:06}.jsonl");
        // TensorBoard reads every file with `tfevents` in its name, in the order of names.
        let events =
            format!("{directory}/tensorboard/events.out.tfevents.{first:09}-{last:09}.generation-{generation:06}");
        Ok(Some(PieceRecord {
            first,
            last,
            lines: self.put(lines, piece.lines.clone().into())?,
            events: self.put(events, piece.events.clone().into())?,
        }))
    }

    /// Returns the lines of all pieces in order, and warnings about missing pieces.
    pub fn read_lines(&self, pieces: &[PieceRecord]) -> (String, Vec<String>) {
        let (mut lines, mut warnings) = (String::new(), Vec::new());
        for piece in pieces {
            let read = self.read(&piece.lines).and_then(|content| {
                String::from_utf8(content).map_err(|_| self.damaged(&piece.lines.path, "it is not UTF-8".into()))
            });
            match read {
                Ok(text) => lines.push_str(&text),
                Err(error) => {
                    warnings.push(format!("the metrics of steps {} to {} are lost: {error}", piece.first, piece.last))
                }
            }
        }
        (lines, warnings)
    }

    /// Writes a note beside the checkpoints. Returns its path.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn note(&self, name: &str, content: &serde_json::Value) -> Result<String> {
        let content = serde_json::to_vec_pretty(content).expect("a JSON value has a text");
        let path = format!("{}/checkpoints/{name}", self.directory);
        self.put(path.clone(), content.into())?;
        Ok(self.store.describe(&path))
    }

    /// Returns the name of a checkpoint in messages.
    pub fn describe(&self, manifest: &CheckpointManifest) -> String {
        self.store.describe(&manifest.state.path)
    }

    /// Returns the paths of all manifests in a training's directory, oldest first.
    fn manifest_paths(&self, directory: &str) -> Result<Vec<String>> {
        let below = format!("{directory}/checkpoints");
        let objects = self.runtime.block_on(self.store.list(&below))?;
        let step = format!("{below}/step-");
        let paths = objects.into_iter().map(|object| object.path);
        Ok(paths.filter(|p| p.starts_with(&step) && p.ends_with(".json")).collect())
    }

    fn manifest(&self, path: &str) -> Result<CheckpointManifest> {
        let json = self.runtime.block_on(self.store.get(path))?;
        CheckpointManifest::from_json(&json).map_err(|why| self.damaged(path, why))
    }

    fn restore(&self, path: &str) -> Result<Restored> {
        let manifest = self.manifest(path)?;
        Ok(Restored { name: self.describe(&manifest), state: self.read(&manifest.state)?, manifest })
    }

    fn read(&self, file: &FileRecord) -> Result<Vec<u8>> {
        let content = self.runtime.block_on(self.store.get(&file.path))?;
        file.check(&content).map_err(|why| self.damaged(&file.path, why))?;
        Ok(content.into())
    }

    fn put(&self, path: String, content: bytes::Bytes) -> Result<FileRecord> {
        let record = FileRecord::of(path, &content);
        self.runtime.block_on(self.store.put(&record.path, content))?;
        Ok(record)
    }

    /// Removes all but the newest and the best checkpoints, and notes which one is the best.
    fn remove_superseded(&self) -> Result<()> {
        // The run that resumes reports manifests that cannot be read.
        let paths = self.manifest_paths(&self.directory)?;
        let whole: Vec<CheckpointManifest> = paths.iter().filter_map(|path| self.manifest(path).ok()).collect();
        if let Some(best) = best(&whole) {
            let note =
                json!({"steps": best.steps, "generation": best.generation, "score": best.score, "state": best.state});
            self.note("best.json", &note)?;
        }
        for old in superseded(&whole, self.kept) {
            let stem = stem(&self.directory, old.steps, old.generation);
            // The manifest is removed first, because files without a manifest do not count.
            for path in [format!("{stem}.json"), old.state.path.clone()] {
                self.runtime.block_on(self.store.delete(&path))?;
            }
        }
        Ok(())
    }

    fn damaged(&self, path: &str, why: String) -> Error {
        Error::Checkpoint { path: self.store.describe(path), reason: why }
    }
}

/// Returns a name that sorts by step, then by generation.
fn stem(directory: &str, steps: u64, generation: u64) -> String {
    format!("{directory}/checkpoints/step-{steps:09}-generation-{generation:06}")
}

/// Returns `align/key` for `align/key/attempt-x`, and the same for paths below it. Returns `None` for a directory
/// without an attempt.
fn without_attempt(directory: &str) -> Option<String> {
    let parts = directory.split('/');
    let (attempt, rest): (Vec<&str>, Vec<&str>) = parts.partition(|part| part.starts_with(ATTEMPT_PREFIX));
    (!attempt.is_empty()).then(|| rest.join("/"))
}
