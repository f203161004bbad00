//! The task of Stage A: gives this rank's vectors, collective and checkpoints to the training loop.

use std::collections::HashMap;

use llink_datasets::role::Part;
use llink_proto::{Align, TaskResult};

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
    let missing = |what: &str| Error::Input(format!("an align task without its {what}"));
    let options = AlignOptions::from(task.options.as_ref().ok_or_else(|| missing("options"))?);
    let upkeep = Upkeep::from(task.upkeep.as_ref().ok_or_else(|| missing("upkeep"))?);
    let store = context.store()?;
    let data = AlignData::new(
        read_tables(context, &store, &task.encoder_vectors)?,
        read_tables(context, &store, &task.teacher_vectors)?,
    )?;
    let statistics = statistics::read(context, &store, task.statistics.as_ref())?;
    let validation = match task.validation_pairs {
        0 => None,
        pairs => {
            let encoder = read_tables(context, &store, &task.held_out_encoder_vectors)?;
            let teacher = read_tables(context, &store, &task.held_out_teacher_vectors)?;
            let temperature = options.temperature_end;
            let validation = AlignValidation::new(&encoder, &teacher, pairs as usize, temperature)?;
            Some(validation.in_metric(statistics.metric.clone()))
        }
    };

    let mut collective = training::join(context, &upkeep)?;
    let checkpoints = training::checkpoints(context, &store, &task.directory, &upkeep);
    let control = context.control.clone();
    let (mut run, restored) = TrainingRun::begin(checkpoints, upkeep, options.steps, &mut collective, control)?;
    let resume = restored
        .map(|r| AlignState::from_safetensors(&r.name, &r.state))
        .transpose()?;
    let backend = context.compute.training_backend();
    let work = AlignRun {
        options: &options,
        data: &data,
        statistics: &statistics,
        resume,
        backend: &backend,
        micro_batch: task.micro_batch as usize,
        validation: validation.as_ref().map(|pairs| (pairs, &upkeep)),
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
