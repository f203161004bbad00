//! What can go wrong in a worker.

/// An error of this crate. Every text names the file, tensor, step or rank it is about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model folder that is missing, broken or not supported.
    #[error("{path}: {reason}")]
    Model {
        /// The folder or file.
        path: String,
        /// What is wrong: the architecture, dtype, rope type or tensor by its name and shapes.
        reason: String,
    },
    /// Inputs that do not fit each other or the options.
    #[error("{0}")]
    Input(String),
    /// Reading or writing shards.
    #[error(transparent)]
    Datasets(#[from] llink_datasets::Error),
    /// A tensor operation.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A GPU that was asked for and can't be used.
    #[error("{0}")]
    Device(String),
    /// A device without room for even the smallest piece of work.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// A local file.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another rank was lost or fell silent: the fault is probably there.
    #[error("rank {rank} of {world_size} lost its peer during {during}: {reason}")]
    Peer {
        /// This rank.
        rank: usize,
        /// How many ranks there are.
        world_size: usize,
        /// The collective and the step.
        during: String,
        /// What was seen.
        reason: String,
    },
    /// The task was told to stop.
    #[error("stopped: {0}")]
    Aborted(String),
    /// Training produced NaN or infinity.
    #[error("training diverged at step {step}: {reason}")]
    Diverged {
        /// Steps count from 0.
        step: u64,
        /// Which number was not finite, and the first pairs of the batch.
        reason: String,
        /// All pairs of the batch.
        ids: Vec<u64>,
    },
    /// A checkpoint that is not what was written.
    #[error("{path}: {reason}")]
    Checkpoint {
        /// The file.
        path: String,
        /// How it differs.
        reason: String,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
