//! Checkpoints in the object store: a state, the metrics so far, and a note with their hashes, written last.

use llink_datasets::manifest::sha256_hex;
use llink_datasets::store::Store;
use serde::{Deserialize, Serialize};

use super::TaskContext;
use crate::{Error, Result};

/// Whole checkpoints that are kept.
const KEPT: usize = 2;

/// Where one training keeps its checkpoints.
pub(super) struct Checkpoints<'a> {
    context: &'a TaskContext,
    store: &'a Store,
    directory: String,
}

/// A checkpoint that was read back whole.
pub(super) struct Restored {
    /// The last step that is in it.
    pub(super) step: u64,
    /// The lease under which it was written.
    pub(super) generation: u64,
    /// How errors name it.
    pub(super) name: String,
    pub(super) state: Vec<u8>,
    /// JSON lines of the steps up to it.
    pub(super) metrics: String,
    /// Checkpoints that were newer but damaged.
    pub(super) warnings: Vec<String>,
}

/// What makes a checkpoint count: it is written after the files that it names.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    step: u64,
    generation: u64,
    state_sha256: String,
    metrics_sha256: String,
}

impl<'a> Checkpoints<'a> {
    pub(super) fn new(context: &'a TaskContext, store: &'a Store, stage_directory: &str) -> Self {
        Self {
            context,
            store,
            directory: format!("{stage_directory}/checkpoints"),
        }
    }

    /// Path of a file of a checkpoint. Names sort by step, then by generation.
    fn path(&self, step: u64, generation: u64, ending: &str) -> String {
        format!("{}/step-{step:09}-generation-{generation:06}.{ending}", self.directory)
    }

    /// Writes the checkpoint after `step`, and removes those that are no longer needed.
    pub(super) fn save(&self, step: u64, state: &[u8], metrics: &str) -> Result<()> {
        let generation = self.context.token;
        let note = Note {
            step,
            generation,
            state_sha256: sha256_hex(state),
            metrics_sha256: sha256_hex(metrics.as_bytes()),
        };
        let note = serde_json::to_vec(&note).expect("a note is plain data");
        let files = [
            ("safetensors", state.to_vec()),
            ("metrics.jsonl", metrics.as_bytes().to_vec()),
            ("json", note),
        ];
        for (ending, content) in files {
            let path = self.path(step, generation, ending);
            self.context.wait(self.store.put(&path, content.into()))?;
        }
        for old in self.notes()?.iter().rev().skip(KEPT) {
            let stem = old.trim_end_matches(".json");
            // The note first: what is left without one does not count.
            for ending in ["json", "metrics.jsonl", "safetensors"] {
                self.context.wait(self.store.delete(&format!("{stem}.{ending}")))?;
            }
        }
        Ok(())
    }

    /// The notes of all checkpoints, oldest first.
    fn notes(&self) -> Result<Vec<String>> {
        let objects = self.context.wait(self.store.list(&self.directory))?;
        Ok(objects
            .into_iter()
            .map(|o| o.path)
            .filter(|p| p.ends_with(".json"))
            .collect())
    }

    /// The newest checkpoint that is whole; damaged ones are passed over, and said so.
    pub(super) fn newest(&self) -> Result<Option<Restored>> {
        let mut warnings = Vec::new();
        for note in self.notes()?.iter().rev() {
            match self.restore(note) {
                Ok(restored) => return Ok(Some(Restored { warnings, ..restored })),
                Err(e) => warnings.push(format!("checkpoint {note} was passed over: {e}")),
            }
        }
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        Ok(None)
    }

    /// The checkpoint that rank 0 chose.
    pub(super) fn load(&self, step: u64, generation: u64) -> Result<Restored> {
        self.restore(&self.path(step, generation, "json"))
    }

    fn restore(&self, note_path: &str) -> Result<Restored> {
        let damaged = |reason: String| Error::Input(format!("{}: {reason}", self.store.describe(note_path)));
        let note = self.context.wait(self.store.get(note_path))?;
        let note: Note = serde_json::from_slice(&note).map_err(|e| damaged(e.to_string()))?;
        let read = |ending: &str, sha256: &str| -> Result<Vec<u8>> {
            let path = self.path(note.step, note.generation, ending);
            let content = self.context.wait(self.store.get(&path))?;
            if sha256_hex(&content) != sha256 {
                return Err(damaged(format!("{path} is not what was written")));
            }
            Ok(content.to_vec())
        };
        let metrics = read("metrics.jsonl", &note.metrics_sha256)?;
        Ok(Restored {
            step: note.step,
            generation: note.generation,
            name: self
                .store
                .describe(&self.path(note.step, note.generation, "safetensors")),
            state: read("safetensors", &note.state_sha256)?,
            metrics: String::from_utf8(metrics).map_err(|e| damaged(e.to_string()))?,
            warnings: Vec::new(),
        })
    }
}
