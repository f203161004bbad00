//! Writes checkpoints in the background while training continues.

use std::thread::JoinHandle;

use bytes::Bytes;

use super::{CheckpointManifest, Checkpoints};
use crate::train::metrics::MetricsPiece;
use crate::{Error, Result};

/// The number of consecutive failures that ends training. A store may fail for a while.
const MAX_FAILURES: u32 = 3;

/// A checkpoint to write.
#[derive(Debug)]
pub struct Save {
    /// The number of steps that were taken.
    pub steps: u64,
    /// The content of the state's file.
    pub state: Bytes,
    /// The score on held-out data, if it was measured.
    pub score: Option<f64>,
    /// The metrics of the steps since the previous save.
    pub metrics: MetricsPiece,
    /// The warnings for the report.
    pub warnings: Vec<String>,
}

/// A checkpoint, or why it was not written; and the metrics that it was to have.
type Written = (Result<CheckpointManifest>, MetricsPiece);

/// Writes one checkpoint at a time, each on a thread of its own.
#[derive(Debug)]
pub struct CheckpointWriter {
    checkpoints: Checkpoints,
    writing: Option<JoinHandle<Written>>,
    /// The newest checkpoint that was written or restored.
    newest: Option<CheckpointManifest>,
    /// The metrics of checkpoints that could not be written.
    unwritten: MetricsPiece,
    failures: u32,
    failed: Option<Error>,
}

impl CheckpointWriter {
    /// Returns a writer that continues after `restored`.
    pub fn new(checkpoints: Checkpoints, restored: Option<CheckpointManifest>) -> Self {
        let unwritten = MetricsPiece::default();
        Self { checkpoints, writing: None, newest: restored, unwritten, failures: 0, failed: None }
    }

    /// Returns whether nothing is being written.
    pub fn is_idle(&self) -> bool {
        self.writing.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Writes in the background, after the current write.
    ///
    /// # Errors
    /// When writing has failed too often.
    pub fn save(&mut self, mut save: Save) -> Result<()> {
        self.wait()?;
        self.unwritten.append(save.metrics);
        save.metrics = std::mem::take(&mut self.unwritten);
        let (checkpoints, before) = (self.checkpoints.clone(), self.newest.clone());
        // What the thread writes belongs to the task's span.
        let span = tracing::Span::current();
        self.writing = Some(std::thread::spawn(move || span.in_scope(|| write(&checkpoints, before.as_ref(), save))));
        Ok(())
    }

    /// Waits until nothing is being written.
    ///
    /// # Errors
    /// When writing has failed too often.
    pub fn wait(&mut self) -> Result<()> {
        let Some(writing) = self.writing.take() else {
            return Ok(());
        };
        let gone = |_| Error::Aborted("the thread that writes checkpoints has ended".into());
        let (written, metrics) = writing.join().map_err(gone)?;
        match written {
            Ok(manifest) => {
                self.newest = Some(manifest);
                (self.failures, self.failed) = (0, None);
            }
            Err(error) => {
                self.unwritten = metrics;
                self.failures += 1;
                if self.failures >= MAX_FAILURES {
                    return Err(error);
                }
                self.failed = Some(error);
            }
        }
        Ok(())
    }

    /// Returns the newest whole checkpoint. A write in progress does not count.
    pub fn newest(&self) -> Option<&CheckpointManifest> {
        self.newest.as_ref()
    }

    /// Returns the metrics that no checkpoint has.
    pub fn unwritten(&self) -> &MetricsPiece {
        &self.unwritten
    }

    /// Returns the last failure, if the latest save failed.
    pub fn failure(&self) -> Option<String> {
        self.failed.as_ref().map(ToString::to_string)
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        // The failure of the last write has been logged.
        let _ = self.wait();
    }
}

fn write(checkpoints: &Checkpoints, before: Option<&CheckpointManifest>, save: Save) -> Written {
    let written = checkpoints.save(&save, before);
    match &written {
        Ok(manifest) => tracing::info!(steps = manifest.steps, "checkpoint {}", checkpoints.describe(manifest)),
        Err(error) => tracing::warn!(steps = save.steps, "checkpoint not written: {error}"),
    }
    (written, save.metrics)
}
