//! The common code of the training tasks: the gang's collective, and the supervision of the loop.

use llink_datasets::measured::{self, TrainingTime};
use llink_datasets::role::Part;
use llink_datasets::store::Store;
use llink_datasets::vectors::{self, VectorTable, read_vectors};
use llink_proto::{Artifact, Seat, TaskResult};
use serde::de::DeserializeOwned;

use super::TaskContext;
use crate::collective::{AbortHandle, Collective, Joining, Position, Solo, Watched};
use crate::train::checkpoints::Checkpoints;
use crate::train::training_run::Finished;
use crate::train::upkeep::Upkeep;
use crate::{Error, Result};

/// Parses the settings that a task carries.
pub(super) fn settings<T: DeserializeOwned>(json: &str) -> Result<T> {
    let unreadable = |error| Error::Input(format!("the settings of the task cannot be read: {error}"));
    serde_json::from_str(json).map_err(unreadable)
}

/// Reads the vectors of several files and concatenates them.
pub(super) fn read_tables(context: &TaskContext, store: &Store, artifacts: &[Artifact]) -> Result<VectorTable> {
    let mut tables = Vec::with_capacity(artifacts.len());
    for artifact in artifacts {
        context.control.check()?;
        let content = context.read(store, artifact)?;
        tables.push(read_vectors(&store.describe(&artifact.path), content)?);
    }
    Ok(vectors::concat(tables)?)
}

/// Reads the vectors of the first `texts` texts of several files. Files beyond them are not read.
pub(super) fn read_first(
    context: &TaskContext,
    store: &Store,
    artifacts: &[Artifact],
    texts: usize,
) -> Result<VectorTable> {
    let (mut tables, mut before) = (Vec::new(), 0);
    for artifact in artifacts {
        if before >= texts {
            break;
        }
        let table = read_tables(context, store, std::slice::from_ref(artifact))?;
        before += table.texts().len();
        tables.push(table);
    }
    let mut table = vectors::concat(tables)?;
    table.truncate_texts(texts);
    Ok(table)
}

/// Joins the collective of this gang. Heartbeats report its place, steps have a deadline, and it is aborted when the
/// task is told to stop.
pub(super) fn join(context: &TaskContext, upkeep: &Upkeep) -> Result<Watched> {
    let abort = AbortHandle::default();
    let wire = abort.clone();
    context.control.on_stop(move |reason| wire.abort(reason));
    let position = Position::default();
    context.control.is_at(position.clone());
    let seat = context.seat.unwrap_or(Seat { rank: 0, world_size: 1, generation: context.token });
    let inner: Box<dyn Collective> = if seat.world_size == 1 {
        Box::new(Solo::new(abort))
    } else {
        let joining = Joining {
            rank: seat.rank as usize,
            generation: seat.generation,
            address: context.local_address,
            timeout: upkeep.step_timeout,
            compute: &context.compute,
        };
        joining.connect(&context.rendezvous, abort)?
    };
    Ok(Watched::new(inner, position, upkeep.step_timeout))
}

/// Returns the place of checkpoints and metrics of a training in `directory`.
pub(super) fn checkpoints(context: &TaskContext, store: &Store, directory: &str, upkeep: &Upkeep) -> Checkpoints {
    Checkpoints::new(store.clone(), context.runtime.clone(), directory.into(), context.token, upkeep.checkpoints_kept)
}

/// Returns the common part of a training's result: its metrics, the time of its steps, and the number of ranks.
pub(super) fn result(
    context: &TaskContext,
    store: &Store,
    directory: &str,
    finished: Finished,
    world_size: usize,
) -> Result<TaskResult> {
    let steps = finished.lines.lines().count() as u64;
    let path = format!("{directory}/metrics.jsonl");
    let metrics = context.write(store, &path, Part::Metrics, steps, finished.lines.into())?;
    let mut result = TaskResult { artifacts: vec![metrics], warnings: finished.warnings, ..TaskResult::default() };
    result.figures.insert("ranks".into(), world_size as f64);
    let time = TrainingTime { step_seconds: finished.step_seconds, effective_time: None };
    measured::put(&mut result.figures, "", &time);
    Ok(result)
}
