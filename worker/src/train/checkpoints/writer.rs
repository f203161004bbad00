//! Writes checkpoints in the background while training continues.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};

use bytes::Bytes;

use super::{CheckpointManifest, Checkpoints, PieceRecord};
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

/// Writes one checkpoint at a time on a thread of its own.
#[derive(Debug)]
pub struct CheckpointWriter {
    saves: Option<mpsc::Sender<Save>>,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    // Notified when a write has ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    busy: bool,
    /// The newest checkpoint that was written or restored.
    newest: Option<CheckpointManifest>,
    pieces: Vec<PieceRecord>,
    step_seconds: f64,
    /// The metrics of checkpoints that could not be written.
    unwritten: MetricsPiece,
    failures: u32,
    failed: Option<Error>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change leaves the state consistent, so it is valid after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CheckpointWriter {
    /// Returns a writer that continues after `restored`.
    #[must_use]
    pub fn start(checkpoints: Checkpoints, restored: Option<&CheckpointManifest>) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                newest: restored.cloned(),
                pieces: restored.map(|r| r.metrics.clone()).unwrap_or_default(),
                step_seconds: restored.map_or(0.0, |r| r.step_seconds),
                ..State::default()
            }),
            ended: Condvar::new(),
        });
        let (saves, inbox) = mpsc::channel();
        let worker = Arc::clone(&shared);
        // What this thread writes belongs to the task's span.
        let span = tracing::Span::current();
        let thread = std::thread::spawn(move || {
            let _entered = span.enter();
            while let Ok(save) = inbox.recv() {
                let save = std::panic::AssertUnwindSafe(|| write(&checkpoints, &worker, save));
                if std::panic::catch_unwind(save).is_err() {
                    // The waiting threads must not wait forever.
                    let mut state = worker.lock();
                    (state.busy, state.failures, state.failed) = (false, MAX_FAILURES, Some(gone()));
                    worker.ended.notify_all();
                    return;
                }
            }
        });
        Self { saves: Some(saves), shared, thread: Some(thread) }
    }

    /// Returns whether nothing is being written.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.shared.lock().busy
    }

    /// Writes in the background, after the current write.
    ///
    /// # Errors
    /// When writing has failed too often.
    pub fn save(&self, save: Save) -> Result<()> {
        self.wait()?;
        self.shared.lock().busy = true;
        let saves = self.saves.as_ref().expect("the sender lives until the writer is dropped");
        saves.send(save).map_err(|_| gone())
    }

    /// Waits until nothing is being written.
    ///
    /// # Errors
    /// When writing has failed too often.
    pub fn wait(&self) -> Result<()> {
        let mut state = self.shared.lock();
        while state.busy {
            state = self.shared.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match state.failed.take() {
            Some(error) if state.failures >= MAX_FAILURES => Err(error),
            failed => {
                state.failed = failed;
                Ok(())
            }
        }
    }

    /// Returns the newest whole checkpoint.
    #[must_use]
    pub fn newest(&self) -> Option<CheckpointManifest> {
        self.shared.lock().newest.clone()
    }

    /// Returns the written metrics, those that no checkpoint has taken yet, and the seconds of all steps in both.
    #[must_use]
    pub fn metrics(&self) -> (Vec<PieceRecord>, MetricsPiece, f64) {
        let state = self.shared.lock();
        (state.pieces.clone(), state.unwritten.clone(), state.step_seconds)
    }

    /// Returns the last failure, if the latest save failed.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.lock().failed.as_ref().map(ToString::to_string)
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        self.saves = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported already.
            let _ = thread.join();
        }
    }
}

fn write(checkpoints: &Checkpoints, shared: &Shared, mut save: Save) {
    let (mut pieces, step_seconds) = {
        let mut state = shared.lock();
        let mut metrics = std::mem::take(&mut state.unwritten);
        state.step_seconds += save.metrics.step_seconds;
        metrics.append(std::mem::take(&mut save.metrics));
        save.metrics = metrics;
        (state.pieces.clone(), state.step_seconds)
    };
    let written = checkpoints.save(&save, &mut pieces, step_seconds);
    let mut state = shared.lock();
    match written {
        Ok(manifest) => {
            tracing::info!(steps = manifest.steps, "checkpoint {}", checkpoints.describe(&manifest));
            state.pieces = pieces;
            state.newest = Some(manifest);
            (state.failures, state.failed) = (0, None);
        }
        Err(error) => {
            tracing::warn!(steps = save.steps, "checkpoint not written: {error}");
            state.unwritten = save.metrics;
            state.failures += 1;
            state.failed = Some(error);
        }
    }
    state.busy = false;
    shared.ended.notify_all();
}

fn gone() -> Error {
    Error::Aborted("the thread that writes checkpoints has ended".into())
}
