//! What the training tasks share: the gang's collective, and the watch over the loop.

use std::net::TcpListener;

use llink_datasets::store::Store;
use llink_datasets::vectors::{self, VectorTable, read_vectors};
use llink_proto::{Artifact, Seat, TaskResult};

use super::TaskContext;
use crate::collective::{AbortHandle, Collective, Position, Ring, RingOptions, Solo, Watched};
use crate::train::checkpoints::Checkpoints;
use crate::train::training_run::Finished;
use crate::train::upkeep::Upkeep;
use crate::{Error, Result};

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
        Box::new(ring(context, seat, upkeep, abort)?)
    };
    Ok(Watched::new(inner, position, upkeep.step_timeout))
}

fn ring(context: &TaskContext, seat: Seat, upkeep: &Upkeep, abort: AbortHandle) -> Result<Ring> {
    let failed = |source| Error::Io {
        path: format!("listening on {}", context.local_address),
        source,
    };
    let listener = TcpListener::bind((context.local_address, 0)).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?.to_string();
    let met = (context.rendezvous)(address)?;
    let options = RingOptions {
        rank: seat.rank as usize,
        addresses: met.addresses,
        generation: seat.generation,
        secret: met.secret,
        timeout: upkeep.step_timeout,
    };
    Ring::connect(listener, &options, abort)
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
