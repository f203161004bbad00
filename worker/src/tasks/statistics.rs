//! Fits Stage A's statistics on the training split, as a separate task: one worker fits them, and every rank reads the
//! file.

use llink_datasets::role::Part;
use llink_datasets::vectors::{VectorTable, read_vectors};
use llink_proto::{Artifact, FitStatistics, TaskResult};

use super::margin::DroppedPairs;
use super::{OpenContext, TaskContext, training};
use crate::Result;
use crate::llink::statistics::{Statistics, StatisticsFit};

pub(super) fn run(context: &TaskContext, task: &FitStatistics) -> Result<TaskResult> {
    let mut fit = StatisticsFit::new(training::settings(&task.settings)?);
    let context = &context.opened()?;
    let dropped = DroppedPairs::read(context, &task.dropped)?;
    type Add = fn(&mut StatisticsFit, &VectorTable) -> Result<()>;
    let towers: [(bool, &[Artifact], Add); 2] = [
        (fit.reads_encoder(), &task.encoder_vectors, StatisticsFit::add_encoder),
        (fit.reads_teacher(), &task.teacher_vectors, StatisticsFit::add_teacher),
    ];
    let read: Vec<(&Artifact, Add)> = towers
        .into_iter()
        .filter(|(wanted, ..)| *wanted)
        .flat_map(|(_, artifacts, add)| artifacts.iter().map(move |artifact| (artifact, add)))
        .collect();
    for (done, (artifact, add)) in read.iter().enumerate() {
        context.control.check()?;
        let content = context.read(artifact)?;
        let table = read_vectors(&context.describe(artifact), content)?;
        add(&mut fit, &dropped.out_of(table))?;
        context.control.advance(done as u64 + 1, read.len() as u64);
    }
    let statistics = fit.finish()?.to_safetensors()?;
    let artifact = context.write(&task.path, Part::Statistics, 0, statistics.into())?;
    Ok(TaskResult { artifacts: vec![artifact], ..TaskResult::default() })
}

/// Reads the fitted statistics; without a file, returns the defaults.
pub(super) fn read(context: &OpenContext<'_>, artifact: Option<&Artifact>) -> Result<Statistics> {
    let Some(artifact) = artifact else {
        return Ok(Statistics::default());
    };
    let content = context.read(artifact)?;
    Statistics::from_safetensors(&context.describe(artifact), &content)
}
