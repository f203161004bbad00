//! The `shard` stage's tasks: thin calls into the datasets crate.

use llink_datasets::clean::{Rules, TooLong};
use llink_datasets::read::Columns;
use llink_datasets::rows::Corpus;
use llink_datasets::shards::{self, CleanSpec, SplitSpec, WriteSpec};
use llink_proto::{Artifact, CleanSource, SplitCorpus, TaskResult, WriteShard};

use super::{TaskContext, to_proto};
use crate::{Error, Result};

/// The role under which the planner looks for the assignment.
const ASSIGNMENT_ROLE: &str = "assignment";

fn corpus(corpus: i32) -> Result<Corpus> {
    match llink_proto::Corpus::try_from(corpus) {
        Ok(llink_proto::Corpus::Pairs) => Ok(Corpus::Pairs),
        Ok(llink_proto::Corpus::Instructions) => Ok(Corpus::Instructions),
        _ => Err(Error::Input(format!(
            "corpus {corpus} is not known to this worker's version"
        ))),
    }
}

pub(super) fn clean(context: &TaskContext, task: &CleanSource) -> Result<TaskResult> {
    let spec = CleanSpec {
        corpus: corpus(task.corpus)?,
        source: task.source.clone(),
        format: match task.format.as_str() {
            "" => None,
            format => Some(format.parse().map_err(Error::Input)?),
        },
        columns: Columns {
            english: task.english_column,
            foreign: task.foreign_column,
        },
        sample_rows: task.sample_rows,
        seed: task.seed,
        rules: Rules {
            min_chars: task.min_chars,
            max_chars: task.max_chars,
            too_long: if task.cut_long { TooLong::Cut } else { TooLong::Drop },
        },
    };
    let store = context.store()?;
    let progress = |done, total| context.control.advance(done, total);
    let cleaned = context.wait(shards::clean_source(&spec, &store, &task.path, &progress))?;
    context.control.check()?;
    Ok(TaskResult {
        artifacts: vec![to_proto(cleaned.artifact)],
        counts: cleaned.counts,
        warnings: cleaned.warnings,
        ..TaskResult::default()
    })
}

pub(super) fn split(context: &TaskContext, task: &SplitCorpus) -> Result<TaskResult> {
    let spec = SplitSpec {
        corpus: corpus(task.corpus)?,
        train_rows: task.train_rows,
        holdout_rows: task.holdout_rows,
        shard_rows: task.shard_rows,
    };
    let store = context.store()?;
    let progress = |done, total| context.control.advance(done, total);
    let split = context.wait(shards::split_corpus(
        &spec,
        &store,
        &task.cleaned,
        &task.path,
        &progress,
    ))?;
    context.control.check()?;
    let assignment = Artifact {
        role: ASSIGNMENT_ROLE.into(),
        ..to_proto(split.artifact)
    };
    let planned = split.shards.into_iter().map(|shard| Artifact {
        path: shard.path,
        role: shard.role,
        rows: shard.rows,
        ..Artifact::default()
    });
    Ok(TaskResult {
        artifacts: std::iter::once(assignment).chain(planned).collect(),
        counts: split.counts,
        warnings: split.warnings,
        ..TaskResult::default()
    })
}

pub(super) fn write(context: &TaskContext, task: &WriteShard) -> Result<TaskResult> {
    let spec = WriteSpec {
        corpus: corpus(task.corpus)?,
        cleaned: task.cleaned.clone(),
        assignment: task.assignment.clone(),
        shard: task.shard,
        path: task.path.clone(),
        role: task.role.clone(),
        stage_key: task.stage_key.clone(),
    };
    let store = context.store()?;
    let progress = |done, total| context.control.advance(done, total);
    let artifact = context.wait(shards::write_shard(&spec, &store, &progress))?;
    Ok(TaskResult {
        artifacts: vec![to_proto(artifact)],
        ..TaskResult::default()
    })
}
