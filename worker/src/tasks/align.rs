//! The task of Stage A: gives this rank's vectors, collective and checkpoints to the training loop.

use std::collections::HashMap;

use llink_datasets::role::Part;
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
use crate::train::upkeep::Upkeep;
use crate::{Error, Result};

pub(super) fn run(context: &TaskContext, task: &Align) -> Result<TaskResult> {
    let options = AlignOptions { seed: task.seed, settings: training::settings(&task.settings)? };
    let settings = &options.settings;
    let context = &context.opened()?;
    let dropped = DroppedPairs::read(context, &task.dropped)?;
    let read = |artifacts: &[Artifact]| read_tables(context, artifacts).map(|table| dropped.out_of(table));
    let data = AlignData::new(read(&task.encoder_vectors)?, read(&task.teacher_vectors)?)?;
    if !task.dropped.is_empty() && data.len() < settings.batch as usize {
        return Err(Error::Input(format!(
            "`cleaning.margin` leaves {} training pairs, fewer than a batch of {}: set it lower",
            data.len(),
            settings.batch
        )));
    }
    let statistics = statistics::read(context, task.statistics.as_ref())?;
    let held_out = |_| -> Result<AlignValidation> {
        let encoder = read_tables(context, &task.held_out_encoder_vectors)?;
        let teacher = read_tables(context, &task.held_out_teacher_vectors)?;
        let pairs = settings.validation_pairs as usize;
        AlignValidation::new([&encoder, &teacher], pairs, settings.temperature_end, statistics.metric.clone())
    };
    let validation = settings.validate_every.map(held_out).transpose()?;

    let steps = settings.steps;
    let (mut collective, mut run, restored) = training::begin(context, &task.directory, Upkeep::from(settings), steps)?;
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
    let directory = training::own_directory(context, &task.directory);
    let projector = outcome.projector.to_safetensors(HashMap::new())?;
    let path = format!("{directory}/projector.safetensors");
    let projector = context.write(&path, Part::Projector, 0, projector.into())?;
    let numbers = (outcome.last.as_ref(), ["loss", "info_nce", "temperature"]);
    let mut result = training::result(context, &directory, run.finish()?, collective.world_size(), numbers)?;
    result.artifacts.insert(0, projector);
    Ok(result)
}
