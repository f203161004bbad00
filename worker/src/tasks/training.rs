//! The common code of the training tasks: the gang's collective, and the supervision of the loop.

use llink_datasets::measured::{self, TrainingTime};
use llink_datasets::role::Part;
use llink_datasets::vectors::{self, VectorTable, read_vectors};
use llink_proto::{Artifact, Seat, TaskResult};
use serde::de::DeserializeOwned;

use super::{OpenContext, TaskContext};
use crate::collective::{AbortHandle, Collective, Joining, Position, Solo, Watched};
use crate::train::checkpoints::{Checkpoints, Restored};
use crate::train::step_record::StepRecord;
use crate::train::training_run::{Finished, TrainingRun};
use crate::train::upkeep::Upkeep;
use crate::{Error, Result};

/// Parses the settings that a task carries.
pub(super) fn settings<T: DeserializeOwned>(json: &str) -> Result<T> {
    let unreadable = |error| Error::Input(format!("the settings of the task cannot be read: {error}"));
    serde_json::from_str(json).map_err(unreadable)
}

/// Reads the vectors of several files and concatenates them.
pub(super) fn read_tables(context: &OpenContext<'_>, artifacts: &[Artifact]) -> Result<VectorTable> {
    let mut tables = Vec::with_capacity(artifacts.len());
    for artifact in artifacts {
        context.control.check()?;
        let content = context.read(artifact)?;
        tables.push(read_vectors(&context.describe(artifact), content)?);
    }
    Ok(vectors::concat(tables)?)
}

/// Reads the vectors of the first `texts` texts of several files. Files beyond them are not read.
pub(super) fn read_first(context: &OpenContext<'_>, artifacts: &[Artifact], texts: usize) -> Result<VectorTable> {
    let (mut tables, mut before) = (Vec::new(), 0);
    for artifact in artifacts {
        if before >= texts {
            break;
        }
        let table = read_tables(context, std::slice::from_ref(artifact))?;
        before += table.texts().len();
        tables.push(table);
    }
    let mut table = vectors::concat(tables)?;
    table.truncate_texts(texts);
    Ok(table)
}

/// Joins the gang, and finds the checkpoint from which a training of `steps` steps in `directory` continues.
pub(super) fn begin(
    context: &OpenContext<'_>,
    directory: &str,
    upkeep: Upkeep,
    steps: u64,
) -> Result<(Watched, TrainingRun, Option<Restored>)> {
    let mut collective = join(context, &upkeep)?;
    let (store, runtime) = (context.store.clone(), context.runtime.clone());
    let checkpoints = Checkpoints::new(store, runtime, directory.into(), context.token, upkeep.checkpoints_kept);
    let control = context.control.clone();
    let (run, restored) = TrainingRun::begin(checkpoints, upkeep, steps, &mut collective, control)?;
    Ok((collective, run, restored))
}

/// Joins the collective of this gang. Heartbeats report its place, steps have a deadline, and it is aborted when the
/// task is told to stop.
fn join(context: &TaskContext, upkeep: &Upkeep) -> Result<Watched> {
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

/// Returns the directory of rank 0's results. The path contains the lease's token, so a rank 0 that was given up on
/// cannot write over its successor's files.
pub(super) fn own_directory(context: &TaskContext, directory: &str) -> String {
    format!("{directory}/generation-{}", context.token)
}

/// Returns the common part of a training's result: its metrics, the time of its steps, the number of ranks, and some
/// numbers of the last step.
pub(super) fn result(
    context: &OpenContext<'_>,
    directory: &str,
    finished: Finished,
    world_size: usize,
    (last, numbers): (Option<&StepRecord>, [&str; 3]),
) -> Result<TaskResult> {
    let steps = finished.lines.lines().count() as u64;
    let path = format!("{directory}/metrics.jsonl");
    let metrics = context.write(&path, Part::Metrics, steps, finished.lines.into())?;
    let mut result = TaskResult { artifacts: vec![metrics], warnings: finished.warnings, ..TaskResult::default() };
    result.figures.insert("ranks".into(), world_size as f64);
    let time = TrainingTime { step_seconds: finished.step_seconds, effective_time: None };
    measured::put(&mut result.figures, "", &time);
    for name in numbers {
        let value = last.and_then(|last| last.number(name));
        result.figures.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(result)
}
