//! The surroundings of every stage's training loop: progress, metrics, checkpoints, and a last save when training ends
//! early.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::agreement::{number, words};
use super::checkpoints::{CheckpointWriter, Checkpoints, Restored, Save};
use super::metrics::MetricsPiece;
use super::observer::{Observer, Snapshot};
use super::step_record::StepRecord;
use super::upkeep::Upkeep;
use crate::collective::Collective;
use crate::control::TaskControl;
use crate::{Error, Result};

/// The interval between two updates of the figures that people see.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// The [`Observer`] of a training. Rank 0 saves; the other ranks only report their progress.
#[derive(Debug)]
pub struct TrainingRun {
    upkeep: Upkeep,
    steps: u64,
    world_size: usize,
    control: Arc<TaskControl>,
    saver: Option<Saver>,
    shown: Instant,
    pairs_since: u64,
}

/// The part that rank 0 alone has.
#[derive(Debug)]
struct Saver {
    checkpoints: Checkpoints,
    writer: CheckpointWriter,
    /// The metrics of the steps since the last save.
    metrics: MetricsPiece,
    saved: u64,
    saved_at: Instant,
    best: Option<f64>,
    warnings: Vec<String>,
}

/// The files and figures of a completed training.
#[derive(Debug, Default)]
pub struct Finished {
    /// The JSON lines of all steps, each once.
    pub lines: String,
    /// The seconds that those steps took on rank 0.
    pub step_seconds: f64,
    /// The warnings about damaged checkpoints, lost metrics and failed writes.
    pub warnings: Vec<String>,
}

impl TrainingRun {
    /// Finds the newest whole checkpoint, the same on all ranks, and observes a training of `steps` steps.
    ///
    /// # Errors
    /// Those of the collective; when rank 0 cannot list the store, or another rank cannot read a checkpoint that rank 0
    /// can.
    pub fn begin(
        checkpoints: Checkpoints,
        upkeep: Upkeep,
        steps: u64,
        collective: &mut dyn Collective,
        control: Arc<TaskControl>,
    ) -> Result<(Self, Option<Restored>)> {
        let (restored, warnings) = agree_on_checkpoint(&checkpoints, collective)?;
        if let Some(restored) = &restored {
            tracing::info!(steps = restored.manifest.steps, "goes on from {}", restored.name);
        }
        let saver = (collective.rank() == 0).then(|| Saver {
            writer: CheckpointWriter::new(checkpoints.clone(), restored.as_ref().map(|r| r.manifest.clone())),
            checkpoints,
            metrics: MetricsPiece::default(),
            saved: restored.as_ref().map_or(0, |r| r.manifest.steps),
            saved_at: Instant::now(),
            best: restored.as_ref().and_then(|r| r.manifest.score),
            warnings,
        });
        let run = Self {
            upkeep,
            steps,
            world_size: collective.world_size(),
            control,
            saver,
            shown: Instant::now(),
            pairs_since: 0,
        };
        Ok((run, restored))
    }

    /// Ends the observation of a training that took all its steps. Rank 0 returns the result, and the other ranks an
    /// empty one.
    ///
    /// # Errors
    /// When the store refuses the last of the metrics.
    pub fn finish(self) -> Result<Finished> {
        let Some(mut saver) = self.saver else {
            return Ok(Finished::default());
        };
        saver.writer.wait()?;
        saver.warnings.extend(saver.writer.failure());
        let (newest, mut last) = (saver.writer.newest(), saver.writer.unwritten().clone());
        last.append(saver.metrics);
        let step_seconds = newest.map_or(0.0, |newest| newest.step_seconds) + last.step_seconds;
        let mut pieces = newest.map(|newest| newest.metrics.clone()).unwrap_or_default();
        pieces.extend(saver.checkpoints.save_piece(&last)?);
        let (lines, lost) = saver.checkpoints.read_lines(&pieces);
        saver.warnings.extend(lost);
        Ok(Finished { lines, step_seconds, warnings: saver.warnings })
    }

    /// Adds what a person needs to know to the error that ended training. A divergence names the last good checkpoint.
    pub fn explain(&self, error: Error) -> Error {
        let Error::Diverged { step, reason, ids } = error else {
            return error;
        };
        let Some(saver) = &self.saver else {
            // Every rank has the same error, but rank 0 knows what is saved.
            return Error::Aborted(format!("training diverged at step {step}; see the error of rank 0"));
        };
        let newest = saver.writer.newest();
        let good = newest.map_or_else(
            || "there is no checkpoint yet".to_owned(),
            |c| format!("the last good checkpoint is {} (after {} steps)", saver.checkpoints.describe(c), c.steps),
        );
        let note = json!({"step": step, "reason": reason, "ids": ids, "checkpoint": newest.map(|c| &c.state.path)});
        let noted = match saver.checkpoints.note(&format!("diverged-at-step-{step:09}.json"), &note) {
            Ok(path) => format!("all {} ids of the batch are in {path}", ids.len()),
            Err(error) => format!("the batch's ids could not be written: {error}"),
        };
        Error::Diverged {
            step,
            reason: format!("{reason}; {noted}; {good}. A lower learning_rate or a longer warm-up usually helps"),
            ids,
        }
    }

    fn show(&mut self, record: &StepRecord) {
        let done = record.step + 1;
        self.control.advance(done, self.steps);
        self.pairs_since += record.pairs;
        if let Some(held_out) = &record.validation {
            let numbers = held_out.numbers.iter().map(|(name, value)| (format!("validation/{name}"), *value));
            self.control.show(numbers.chain([("validation/step".to_owned(), done as f64)]));
        }
        if self.saver.is_none() || (self.shown.elapsed() < SHOW_EVERY && done < self.steps) {
            return;
        }
        let per_s = self.pairs_since as f64 / self.shown.elapsed().as_secs_f64().max(1e-9);
        self.control.show(record.numbers.iter().copied());
        self.control.show([("pairs_per_s", per_s), ("ranks", self.world_size as f64)]);
        (self.shown, self.pairs_since) = (Instant::now(), 0);
    }
}

impl Observer for TrainingRun {
    fn stepped(&mut self, record: &StepRecord, snapshot: Snapshot<'_>) -> Result<ControlFlow<()>> {
        self.show(record);
        if let Some(saver) = &mut self.saver {
            saver.metrics.push(record, self.world_size);
            let done = record.step + 1;
            let score = record.validation.as_ref().map(|v| v.score);
            // A state with a better score than any before is saved at once, even if another write is in progress.
            let better = score.is_some_and(|score| saver.best.is_none_or(|best| score < best));
            if better {
                saver.best = score;
            }
            let due = done < self.steps && self.upkeep.checkpoint_due(done, saver.saved, saver.saved_at.elapsed());
            if better || (due && saver.writer.is_idle()) {
                saver.save(done, score, snapshot)?;
            }
        }
        self.control.check()?;
        Ok(ControlFlow::Continue(()))
    }

    /// Saves the state after every error but a divergence. The state is sound, so little is lost.
    fn interrupted(&mut self, error: &Error, next_step: u64, snapshot: Snapshot<'_>) {
        let Some(saver) = &mut self.saver else { return };
        if matches!(error, Error::Diverged { .. }) {
            // The metrics before a divergence are worth keeping, although no checkpoint includes them.
            if let Err(error) = saver.writer.wait().and_then(|()| saver.checkpoints.save_piece(&saver.metrics)) {
                tracing::warn!("the metrics before the divergence are lost: {error}");
            }
            return;
        }
        if next_step <= saver.saved {
            // An earlier save may still be in progress.
            let _ = saver.writer.wait();
            return;
        }
        let saved = saver.save(next_step, None, snapshot).and_then(|()| saver.writer.wait());
        match (saved, saver.writer.failure()) {
            (Err(error), _) => tracing::warn!("the last steps are lost: {error}"),
            (Ok(()), Some(failure)) => tracing::warn!("the last steps are lost: {failure}"),
            (Ok(()), None) => tracing::info!(steps = next_step, "saved before stopping"),
        }
    }
}

impl Saver {
    fn save(&mut self, steps: u64, score: Option<f64>, snapshot: Snapshot<'_>) -> Result<()> {
        self.writer.save(Save {
            steps,
            state: snapshot()?.into(),
            score,
            metrics: std::mem::take(&mut self.metrics),
            warnings: self.warnings.clone(),
        })?;
        (self.saved, self.saved_at) = (steps, Instant::now());
        Ok(())
    }
}

/// Rank 0 finds the newest whole checkpoint and tells the other ranks. Returns it with rank 0's warnings about others.
fn agree_on_checkpoint(
    checkpoints: &Checkpoints,
    collective: &mut dyn Collective,
) -> Result<(Option<Restored>, Vec<String>)> {
    let own = match collective.rank() {
        0 => checkpoints.newest()?,
        _ => (None, Vec::new()),
    };
    // A first word of 0 means that there is no checkpoint.
    let mut told = [0.0; 9];
    if let Some(Restored { manifest, .. }) = &own.0 {
        told[0] = 1.0;
        told[1..].copy_from_slice(&[words(manifest.steps), words(manifest.generation)].concat());
    }
    collective.broadcast(0, &mut told)?;
    if collective.rank() == 0 || told[0] == 0.0 {
        return Ok(own);
    }
    let restored = checkpoints.load(number(&told[1..5]), number(&told[5..]))?;
    Ok((Some(restored), Vec::new()))
}
