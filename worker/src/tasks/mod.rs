//! The tasks, one file for each kind, and their common code: the store, progress, checked reads.

mod align;
mod answers;
mod ask;
mod embed;
mod evaluate;
mod export;
mod instruct;
mod judge;
mod margin;
mod models;
mod overlap;
mod report;
mod shard;
mod statistics;
mod synthesize;
#[cfg(test)]
mod tests;
mod training;
mod turn;

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use llink_datasets::built_in::BuiltIn;
use llink_datasets::manifest::{ManifestArtifact, sha256_hex};
use llink_datasets::role::Role;
use llink_datasets::roots::{Roots, check_key_variable};
use llink_datasets::shown::{ShownUrl, redacted};
use llink_datasets::store::Store;
use llink_proto::task::Kind;
use llink_proto::{
    Artifact, Failure, FailureKind, ModelEndpoint, ModelRef, RendezvousResponse, Seat, Task, TaskResult, shown,
};

use crate::control::TaskControl;
use crate::device::{Compute, is_out_of_memory};
use crate::models::ModelPlace;
use crate::synthesize::Client;
use crate::{Error, Result};

pub use models::ModelCache;
pub use turn::Turns;

/// The most bytes of a failure's text that are reported, because it may quote other programs.
const FAILURE_BYTES: usize = 16 << 10;

/// The context of a running task.
pub struct TaskContext {
    /// The job's output; paths in the task are relative to it.
    pub output_url: String,
    /// The places that this worker may read and write, whatever a coordinator tells it.
    pub roots: Roots,
    /// The runtime for the store's futures; tasks themselves run on plain threads.
    pub runtime: tokio::runtime::Handle,
    /// The task's progress, and the order to stop.
    pub control: Arc<TaskControl>,
    /// The place in a gang, for a gang's task.
    pub seat: Option<Seat>,
    /// Publishes this rank's line, waits for all ranks, and returns every rank's line and the gang's secret.
    pub rendezvous: Box<dyn Fn(String) -> Result<RendezvousResponse> + Send + Sync>,
    /// The address at which other ranks reach this machine.
    pub local_address: IpAddr,
    /// The device to compute on.
    pub compute: Compute,
    /// The turns of tasks on the device.
    pub turns: Arc<Turns>,
    /// The models that an earlier task loaded.
    pub models: Arc<ModelCache>,
    /// The corpus and the models that the program carries inside.
    pub built_in: Option<&'static dyn BuiltIn>,
    /// The token of the lease.
    pub token: u64,
}

/// The context of a task that has opened the job's output.
struct OpenContext<'a> {
    context: &'a TaskContext,
    /// The job's output.
    store: Store,
}

impl Deref for OpenContext<'_> {
    type Target = TaskContext;

    fn deref(&self) -> &TaskContext {
        self.context
    }
}

impl TaskContext {
    fn opened(&self) -> Result<OpenContext<'_>> {
        self.admit(&self.output_url)?;
        Ok(OpenContext { context: self, store: Store::open(&self.output_url)? })
    }

    /// Opens the store of an object outside of the output, and returns the object's name in it.
    fn open(&self, url: &str) -> Result<(Store, String)> {
        self.admit(url)?;
        Ok(Store::open_object(url)?)
    }

    /// Returns the place of a model. Its fingerprint names a folder on this machine, so it must be a plain word.
    fn place_of(&self, model: &ModelRef) -> Result<ModelPlace> {
        let print = &model.fingerprint;
        if print.is_empty() || !print.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(Error::Input(format!("{}: {print:?} is no model's fingerprint", ShownUrl::of(&model.url))));
        }
        self.place(&model.url)
    }

    /// Returns the place of a model whose fingerprint is not known yet.
    fn place(&self, url: &str) -> Result<ModelPlace> {
        self.admit(url)?;
        ModelPlace::open(url)
    }

    /// Returns what the program carries inside, of which `name` is a part.
    fn built_in(&self, name: &str) -> Result<&'static dyn BuiltIn> {
        self.built_in.ok_or_else(|| {
            Error::Input(format!(
                "this worker was built without {name:?}: build it with the feature `quickstart`, or give the job files and folders"
            ))
        })
    }

    /// Connects to the endpoint that the job's `section` names.
    fn client(&self, section: &'static str, endpoint: &ModelEndpoint) -> Result<Client> {
        self.admit(&endpoint.url)?;
        if self.roots != Roots::Any {
            check_key_variable(&endpoint.api_key_env).map_err(Error::Input)?;
        }
        Client::new(section, endpoint.clone())
    }

    /// Refuses a URL that lies below none of the roots. Everything that opens a URL asks here first, so a coordinator that was taken
    /// over gets no further than the roots reach.
    fn admit(&self, url: &str) -> Result<()> {
        let refused = |text| Error::Input(format!("this worker's --allow-root: {text}"));
        self.roots.admit(url).map_err(refused)
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

impl OpenContext<'_> {
    /// Returns an artifact's name in errors.
    fn describe(&self, artifact: &Artifact) -> String {
        self.store.describe(&artifact.path)
    }

    /// Reads an artifact and checks that it is the committed one.
    fn read(&self, artifact: &Artifact) -> Result<Bytes> {
        let content = self.wait(self.store.get(&artifact.path))?;
        let found = sha256_hex(&content);
        if found == artifact.sha256 {
            return Ok(content);
        }
        Err(llink_datasets::Error::Content {
            path: self.describe(artifact),
            reason: format!(
                "it was altered after it was written: SHA-256 {found}, the manifest has {}. Delete the stage's folder \
                 and submit the job again",
                artifact.sha256
            ),
        }
        .into())
    }

    /// Writes an artifact atomically.
    fn write(&self, path: &str, role: impl Into<Role>, rows: u64, content: Bytes) -> Result<Artifact> {
        let artifact = Artifact {
            path: path.into(),
            role: role.into().into(),
            rows,
            bytes: content.len() as u64,
            sha256: sha256_hex(&content),
            ..Artifact::default()
        };
        self.wait(self.store.put(path, content))?;
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
        Some(Kind::FilterPairs(spec)) => margin::run(context, &spec),
        Some(Kind::FitStatistics(spec)) => statistics::run(context, &spec),
        Some(Kind::Align(spec)) => align::run(context, &spec),
        Some(Kind::Instruct(spec)) => instruct::run(context, &spec),
        Some(Kind::Evaluate(spec)) => evaluate::run(context, &spec),
        Some(Kind::Export(spec)) => export::run(context, &spec),
        None => Err(Error::Input("the task is of a kind that this worker's version does not know".into())),
    }
}

/// Converts an error to a failure for the coordinator. Its kind decides whether another try makes sense.
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

/// Returns a part of a task, of which `what` says which one is missing.
fn given<'a, T>(part: &'a Option<T>, what: &str) -> Result<&'a T> {
    part.as_ref().ok_or_else(|| Error::Input(what.into()))
}

fn to_proto(artifact: ManifestArtifact) -> Artifact {
    Artifact {
        path: artifact.path,
        role: artifact.role.into(),
        rows: artifact.rows,
        bytes: artifact.bytes,
        sha256: artifact.sha256,
        metadata: artifact.metadata,
    }
}
