//! The errors of a worker.

use std::fmt::Display;
use std::path::Path;

/// An error of this crate. Every text names the file, tensor, step or rank.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model folder is missing, broken or not supported.
    #[error("{path}: {reason}")]
    Model {
        /// The path of the folder or file.
        path: String,
        /// The reason: the architecture, dtype, rope type or tensor, by its name and shapes.
        reason: String,
    },
    /// Inputs do not fit each other or the options.
    #[error("{0}")]
    Input(String),
    /// A shard could not be read or written.
    #[error(transparent)]
    Datasets(#[from] llink_datasets::Error),
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A GPU was asked for and can't be used.
    #[error("{0}")]
    Device(String),
    /// A device has no room for even the smallest piece of work.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// A local file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The path of the file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// Another rank was lost or fell silent: the fault is probably there.
    #[error("rank {rank} of {world_size} lost its peer during {during}: {reason}")]
    Peer {
        /// The rank of this worker.
        rank: usize,
        /// Number of ranks.
        world_size: usize,
        /// The collective and the step.
        during: String,
        /// The observation.
        reason: String,
    },
    /// The task was told to stop.
    #[error("stopped: {0}")]
    Aborted(String),
    /// Training produced NaN or infinity.
    #[error("training diverged at step {step}: {reason}")]
    Diverged {
        /// The step, counted from 0.
        step: u64,
        /// The number that was not finite, and the first pairs of the batch.
        reason: String,
        /// The ids of all pairs in the batch.
        ids: Vec<u64>,
    },
    /// A checkpoint differs from what was written.
    #[error("{path}: {reason}")]
    Checkpoint {
        /// The path of the file.
        path: String,
        /// The difference from what was written.
        reason: String,
    },
}

impl Error {
    /// Returns a function that says which file an error of the system is about.
    pub fn io(path: &Path) -> impl Fn(std::io::Error) -> Self + Copy {
        move |source| Self::Io { path: path.display().to_string(), source }
    }

    /// Returns a fault of the model folder or file at `path`.
    pub fn model(path: impl Display, reason: impl Into<String>) -> Self {
        Self::Model { path: path.to_string(), reason: reason.into() }
    }
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;
