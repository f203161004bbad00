//! Checkpoints are written in the background: training goes on meanwhile.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};

use bytes::Bytes;

use super::{CheckpointManifest, Checkpoints, PieceRecord};
use crate::train::metrics::MetricsPiece;
use crate::{Error, Result};

/// Writing may fail this often one after the other before training ends: stores have bad minutes.
const MAX_FAILURES: u32 = 3;

/// What is to be written.
#[derive(Debug)]
pub struct Save {
    /// Steps that are in it.
    pub steps: u64,
    /// The state's file.
    pub state: Bytes,
    /// What held-out data said of this state, if they were asked.
    pub score: Option<f64>,
    /// Of the steps since the save before.
    pub metrics: MetricsPiece,
    /// What the person who reads the report should know of the way here.
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
    // Told whenever a write has ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    busy: bool,
    /// The newest that was written or restored.
    newest: Option<CheckpointManifest>,
    pieces: Vec<PieceRecord>,
    step_seconds: f64,
    /// Metrics whose checkpoint could not be written.
    unwritten: MetricsPiece,
    failures: u32,
    failed: Option<Error>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every write leaves it whole, so a panic elsewhere spoils nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CheckpointWriter {
    /// A writer that goes on after `restored`.
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
        let thread = std::thread::spawn(move || {
            while let Ok(save) = inbox.recv() {
                let save = std::panic::AssertUnwindSafe(|| write(&checkpoints, &worker, save));
                if std::panic::catch_unwind(save).is_err() {
                    // Whoever waits must not wait for ever.
                    let mut state = worker.lock();
                    (state.busy, state.failures, state.failed) = (false, MAX_FAILURES, Some(gone()));
                    worker.ended.notify_all();
                    return;
                }
            }
        });
        Self {
            saves: Some(saves),
            shared,
            thread: Some(thread),
        }
    }

    /// Whether nothing is being written.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.shared.lock().busy
    }

    /// Writes in the background, after what is being written now.
    ///
    /// # Errors
    /// When writing has failed too often.
    pub fn save(&self, save: Save) -> Result<()> {
        self.wait()?;
        self.shared.lock().busy = true;
        let saves = self
            .saves
            .as_ref()
            .expect("the sender lives until the writer is dropped");
        saves.send(save).map_err(|_| gone())
    }

    /// Returns when nothing is being written.
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

    /// The newest checkpoint that is whole.
    #[must_use]
    pub fn newest(&self) -> Option<CheckpointManifest> {
        self.shared.lock().newest.clone()
    }

    /// The metrics written so far, those that no checkpoint took with it, and the seconds of all steps in both.
    #[must_use]
    pub fn metrics(&self) -> (Vec<PieceRecord>, MetricsPiece, f64) {
        let state = self.shared.lock();
        (state.pieces.clone(), state.unwritten.clone(), state.step_seconds)
    }

    /// The last failure, when what was to be saved last was not.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.lock().failed.as_ref().map(ToString::to_string)
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        self.saves = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it has been shown already.
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
