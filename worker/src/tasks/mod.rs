//! The tasks, one file for each kind, and their common code: the store, progress, checked reads.

mod align;
mod answers;
mod ask;
mod embed;
mod evaluate;
mod export;
mod instruct;
mod judge;
mod models;
mod overlap;
mod report;
mod shard;
mod statistics;
mod synthesize;
mod training;
mod turn;

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use llink_datasets::manifest::{ManifestArtifact, sha256_hex};
use llink_datasets::shown::redacted;
use llink_datasets::store::Store;
use llink_proto::task::Kind;
use llink_proto::{Artifact, Failure, FailureKind, Seat, Task, TaskResult, shown};

use crate::agent::TaskControl;
use crate::collective::Met;
use crate::device::{Compute, is_out_of_memory};
use crate::{Error, Result};

pub use models::ModelCache;
pub use turn::Turns;

/// The most bytes of a failure's text that are reported, because it may quote other programs.
const FAILURE_BYTES: usize = 16 << 10;

/// The context of a running task.
pub struct TaskContext {
    /// The job's output; paths in the task are relative to it.
    pub output_url: String,
    /// The runtime for the store's futures; tasks themselves run on plain threads.
    pub runtime: tokio::runtime::Handle,
    /// The task's progress, and the order to stop.
    pub control: Arc<TaskControl>,
    /// The place in a gang, for a gang's task.
    pub seat: Option<Seat>,
    /// Publishes this rank's line, waits for all ranks, and returns every rank's line and the gang's secret.
    pub rendezvous: Box<dyn Fn(String) -> Result<Met> + Send + Sync>,
    /// The address at which other ranks reach this machine.
    pub local_address: IpAddr,
    /// Number of computing threads.
    pub threads: usize,
    /// The device to compute on.
    pub compute: Compute,
    /// The turns of tasks on the device.
    pub turns: Arc<Turns>,
    /// The models that an earlier task loaded.
    pub models: Arc<ModelCache>,
    /// The token of the lease.
    pub token: u64,
}

impl std::fmt::Debug for TaskContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskContext")
            .field("output_url", &self.output_url)
            .field("seat", &self.seat)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl TaskContext {
    /// Opens the job's output.
    fn store(&self) -> Result<Store> {
        Ok(Store::open(&self.output_url)?)
    }

    /// Runs a future of the store on the agent's runtime.
    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Reads an artifact and checks that it is the committed one.
    fn read(&self, store: &Store, artifact: &Artifact) -> Result<Bytes> {
        let content = self.wait(store.get(&artifact.path))?;
        let found = sha256_hex(&content);
        if found == artifact.sha256 {
            return Ok(content);
        }
        Err(llink_datasets::Error::Content {
            path: store.describe(&artifact.path),
            reason: format!(
                "it was altered after it was written: SHA-256 {found}, the manifest has {}. Delete the stage's folder \
                 and submit the job again",
                artifact.sha256
            ),
        }
        .into())
    }

    /// Writes an artifact atomically.
    fn write(&self, store: &Store, path: &str, role: &str, rows: u64, content: Bytes) -> Result<Artifact> {
        let artifact = Artifact {
            path: path.into(),
            role: role.into(),
            rows,
            bytes: content.len() as u64,
            sha256: sha256_hex(&content),
            ..Artifact::default()
        };
        self.wait(store.put(path, content))?;
        Ok(artifact)
    }
}

/// Runs a task to its end.
///
/// # Errors
/// Any error of the task; [`failure`] tells its kind.
pub fn run(context: &TaskContext, task: Task) -> Result<TaskResult> {
    match task.kind {
        Some(Kind::CleanSource(spec)) => shard::clean(context, &spec),
        Some(Kind::Synthesize(spec)) => synthesize::run(context, &spec),
        Some(Kind::SplitCorpus(spec)) => shard::split(context, &spec),
        Some(Kind::WriteShard(spec)) => shard::write(context, &spec),
        Some(Kind::PrepareModel(spec)) => models::prepare(context, &spec),
        Some(Kind::EmbedShard(spec)) => embed::run(context, &spec),
        Some(Kind::FitStatistics(spec)) => statistics::run(context, &spec),
        Some(Kind::Align(spec)) => align::run(context, &spec),
        Some(Kind::Instruct(spec)) => instruct::run(context, &spec),
        Some(Kind::Evaluate(spec)) => evaluate::run(context, &spec),
        Some(Kind::Export(spec)) => export::run(context, &spec),
        None => Err(Error::Input(
            "the task is of a kind that this worker's version does not know".into(),
        )),
    }
}

/// Converts an error to a failure for the coordinator. Its kind decides whether another try makes sense.
#[must_use]
pub fn failure(error: &Error) -> Failure {
    let kind = match error {
        Error::Model { .. } | Error::Input(_) | Error::Diverged { .. } => FailureKind::Input,
        Error::Checkpoint { .. } => FailureKind::Storage,
        Error::Datasets(llink_datasets::Error::Store { .. }) | Error::Io { .. } => FailureKind::Storage,
        Error::Datasets(_) => FailureKind::Input,
        Error::Device(_) | Error::OutOfMemory(_) => FailureKind::Resources,
        Error::Peer { .. } | Error::Aborted(_) => FailureKind::Peer,
        Error::Tensor(_) if is_out_of_memory(error) => FailureKind::Resources,
        Error::Tensor(_) => FailureKind::Internal,
    };
    Failure {
        kind: kind.into(),
        // Errors of other crates may hold a whole URL.
        text: shown::bounded(&redacted(&error.to_string()), FAILURE_BYTES).into_owned(),
    }
}

fn to_proto(artifact: ManifestArtifact) -> Artifact {
    Artifact {
        path: artifact.path,
        role: artifact.role,
        rows: artifact.rows,
        bytes: artifact.bytes,
        sha256: artifact.sha256,
        metadata: artifact.metadata,
    }
}
