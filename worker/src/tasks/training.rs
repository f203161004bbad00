//! What the training tasks share: the gang's collective, and the watch over the loop.

use llink_datasets::store::Store;
use llink_datasets::vectors::{self, VectorTable, read_vectors};
use llink_proto::{Artifact, Seat, TaskResult};

use super::TaskContext;
use crate::Result;
use crate::collective::{AbortHandle, Collective, Joining, Position, Solo, Watched};
use crate::train::checkpoints::Checkpoints;
use crate::train::training_run::Finished;
use crate::train::upkeep::Upkeep;

/// The vectors of several files, one after another.
pub(super) fn read_tables(context: &TaskContext, store: &Store, artifacts: &[Artifact]) -> Result<VectorTable> {
    let mut tables = Vec::with_capacity(artifacts.len());
    for artifact in artifacts {
        context.control.check()?;
        let content = context.read(store, artifact)?;
        tables.push(read_vectors(&store.describe(&artifact.path), content)?);
    }
    Ok(vectors::concat(tables)?)
}

/// The first `rows` of several files of vectors. Files beyond them are not read.
pub(super) fn read_first(
    context: &TaskContext,
    store: &Store,
    artifacts: &[Artifact],
    rows: usize,
) -> Result<VectorTable> {
    let mut before = 0;
    let needed = artifacts.iter().take_while(|artifact| {
        let is_needed = before < rows;
        before += artifact.rows as usize;
        is_needed
    });
    let needed = needed.count();
    let mut table = read_tables(context, store, &artifacts[..needed])?;
    table.ids.truncate(rows);
    table.values.truncate(table.ids.len() * table.width);
    Ok(table)
}

/// The collective of this gang: its place is told with the heartbeats, steps have a deadline, and it is aborted when the
/// task is told to stop.
pub(super) fn join(context: &TaskContext, upkeep: &Upkeep) -> Result<Watched> {
    let abort = AbortHandle::default();
    let wire = abort.clone();
    context.control.on_stop(move |reason| wire.abort(reason));
    let position = Position::default();
    context.control.is_at(position.clone());
    let seat = context.seat.unwrap_or(Seat {
        rank: 0,
        world_size: 1,
        generation: context.token,
    });
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

/// Where a training in `directory` keeps its checkpoints and metrics.
pub(super) fn checkpoints(context: &TaskContext, store: &Store, directory: &str, upkeep: &Upkeep) -> Checkpoints {
    Checkpoints::new(
        store.clone(),
        context.runtime.clone(),
        directory.into(),
        context.token,
        upkeep.checkpoints_kept,
    )
}

/// What a training says of itself beside what it made: its metrics, how long its steps took, by how many ranks.
pub(super) fn result(
    context: &TaskContext,
    store: &Store,
    directory: &str,
    finished: Finished,
    world_size: usize,
) -> Result<TaskResult> {
    let steps = finished.lines.lines().count() as u64;
    let path = format!("{directory}/metrics.jsonl");
    let metrics = context.write(store, &path, "metrics", steps, finished.lines.into())?;
    let mut result = TaskResult {
        artifacts: vec![metrics],
        warnings: finished.warnings,
        ..TaskResult::default()
    };
    result.figures.insert("ranks".into(), world_size as f64);
    result.figures.insert("step_seconds".into(), finished.step_seconds);
    Ok(result)
}
