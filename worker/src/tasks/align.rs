//! The task of Stage A: gives this rank's vectors, collective and checkpoints to the training loop.

use std::collections::HashMap;

use llink_datasets::role::Part;
use llink_proto::settings::AlignSettings;
use llink_proto::{Align, Artifact, TaskResult};

use super::margin::DroppedPairs;
use super::training::{self, read_tables};
use super::{TaskContext, statistics};
use crate::collective::Collective;
use crate::train::align::data::AlignData;
use crate::train::align::options::AlignOptions;
use crate::train::align::state::AlignState;
use crate::train::align::validation::AlignValidation;
use crate::train::align::{AlignRun, align};
use crate::train::training_run::TrainingRun;
use crate::train::upkeep::Upkeep;
use crate::{Error, Result};

pub(super) fn run(context: &TaskContext, task: &Align) -> Result<TaskResult> {
    let settings: AlignSettings = training::settings(&task.settings)?;
    let upkeep = Upkeep::from(&settings);
    let options = AlignOptions { seed: task.seed, settings };
    let settings = &options.settings;
    let store = context.store()?;
    let dropped = DroppedPairs::read(context, &store, &task.dropped)?;
    let read = |artifacts: &[Artifact]| read_tables(context, &store, artifacts).map(|table| dropped.out_of(table));
    let data = AlignData::new(read(&task.encoder_vectors)?, read(&task.teacher_vectors)?)?;
    if !task.dropped.is_empty() && data.len() < settings.batch as usize {
        return Err(Error::Input(format!(
            "`cleaning.margin` leaves {} training pairs, fewer than a batch of {}: set it lower",
            data.len(),
            settings.batch
        )));
    }
    let statistics = statistics::read(context, &store, task.statistics.as_ref())?;
    let validation = match settings.validate_every {
        None => None,
        Some(_) => {
            let encoder = read_tables(context, &store, &task.held_out_encoder_vectors)?;
            let teacher = read_tables(context, &store, &task.held_out_teacher_vectors)?;
            let pairs = settings.validation_pairs as usize;
            let validation = AlignValidation::new(&encoder, &teacher, pairs, settings.temperature_end)?;
            Some(validation.in_metric(statistics.metric.clone()))
        }
    };

    let mut collective = training::join(context, &upkeep)?;
    let checkpoints = training::checkpoints(context, &store, &task.directory, &upkeep);
    let control = context.control.clone();
    let (mut run, restored) = TrainingRun::begin(checkpoints, upkeep, settings.steps, &mut collective, control)?;
    let resume = restored.map(|r| AlignState::from_safetensors(&r.name, &r.state)).transpose()?;
    let backend = context.compute.training_backend();
    let work = AlignRun {
        options: &options,
        data: &data,
        statistics: &statistics,
        resume,
        backend: &backend,
        validation: validation.as_ref(),
    };
    let outcome = align(work, &mut collective, &mut run).map_err(|error| run.explain(error))?;

    if collective.rank() > 0 {
        return Ok(TaskResult::default());
    }
    // The path contains the lease's token, so a rank 0 that was given up on cannot write over its successor's files.
    let directory = format!("{}/generation-{}", task.directory, context.token);
    let projector = outcome.projector.to_safetensors(HashMap::new())?;
    let path = format!("{directory}/projector.safetensors");
    let projector = context.write(&store, &path, Part::Projector, 0, projector.into())?;
    let mut result = training::result(context, &store, &directory, run.finish()?, collective.world_size())?;
    result.artifacts.insert(0, projector);
    for name in ["loss", "info_nce", "temperature"] {
        let value = outcome.last.as_ref().and_then(|last| last.number(name));
        result.figures.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(result)
}
