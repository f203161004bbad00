//! The tasks of the `shard` stage, which call the datasets crate.

use llink_datasets::clean::{Numbers, Rules, Scripts, TooLong};
use llink_datasets::read::{Columns, Languages, Source};
use llink_datasets::rows::Corpus;
use llink_datasets::shards::{self, CleanSpec, MadeUp, NearDuplicates, Share, SidesBy, SplitSpec, WriteSpec};
use llink_proto::{Artifact, CleanSource, CleaningRules, SplitCorpus, TaskResult, WriteShard};

use super::{TaskContext, given, to_proto};
use crate::{Error, Result};

fn corpus(corpus: i32) -> Result<Corpus> {
    match llink_proto::Corpus::try_from(corpus) {
        Ok(llink_proto::Corpus::Pairs) => Ok(Corpus::Pairs),
        Ok(llink_proto::Corpus::Instructions) => Ok(Corpus::Instructions),
        _ => Err(Error::Input(format!("corpus {corpus} is not known to this worker's version"))),
    }
}

/// Parses a text, if there is one.
fn told<T: std::str::FromStr<Err = String>>(text: &Option<String>) -> Result<Option<T>> {
    let parsed = text.as_ref().map(|text| text.parse());
    parsed.transpose().map_err(Error::Input)
}

pub(super) fn source(source: &llink_proto::Source) -> Result<Source> {
    let (columns, languages) = (Columns::default(), Languages::default());
    let source = source.clone();
    Ok(Source {
        url: source.url,
        foreign_url: source.foreign_url,
        format: told(&source.format)?,
        compression: told(&source.compression)?,
        columns: Columns {
            english: source.english_column.map_or(columns.english, |c| c.as_str().into()),
            foreign: source.foreign_column.map_or(columns.foreign, |c| c.as_str().into()),
        },
        languages: Languages {
            english: source.english_language.unwrap_or(languages.english),
            foreign: source.foreign_language,
        },
        label: source.label,
    })
}

pub(super) fn rules(rules: &CleaningRules) -> Result<Rules> {
    let scripts = |foreign| -> Result<Scripts> {
        let english = rules.english_script.parse().map_err(Error::Input)?;
        Ok(Scripts { foreign, english, min_share: rules.min_script_share })
    };
    let scripts = told(&rules.script)?.map(scripts).transpose()?;
    Ok(Rules {
        min_chars: rules.min_chars,
        max_chars: rules.max_chars,
        too_long: if rules.cut_long { TooLong::Cut } else { TooLong::Drop },
        scripts,
        max_length_ratio: rules.max_length_ratio,
        numbers: match rules.same_numbers {
            true => Numbers::MustAgree,
            false => Numbers::Any,
        },
    })
}

pub(super) fn clean(context: &TaskContext, task: &CleanSource) -> Result<TaskResult> {
    let cleaning = given(&task.rules, "a clean task without its rules")?;
    let source = source(given(&task.source, "a clean task without its source")?)?;
    let made_up = match task.sample_rows {
        0 => None,
        rows => Some(MadeUp { by: context.built_in(&source.url)?, rows, seed: task.seed }),
    };
    let spec = CleanSpec {
        corpus: corpus(task.corpus)?,
        source,
        made_up,
        rules: rules(cleaning)?,
        tasks: cleaning.tasks.clone(),
        with_signatures: task.with_signatures,
    };
    if spec.made_up.is_none() {
        let mut urls = std::iter::once(&spec.source.url).chain(&spec.source.foreign_url);
        urls.try_for_each(|url| context.admit(url))?;
    }
    let context = &context.opened()?;
    let progress = |done, total| context.control.advance(done, total);
    let cleaned = context.wait(shards::clean_source(&spec, &context.store, &task.path, &progress))?;
    context.control.check()?;
    Ok(TaskResult {
        artifacts: cleaned.artifacts.into_iter().map(to_proto).collect(),
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
        near_duplicates: match task.near_duplicates.as_str() {
            "keep" => NearDuplicates::Keep,
            "across" => NearDuplicates::Across(task.similarity),
            "everywhere" => NearDuplicates::Everywhere(task.similarity),
            other => {
                return Err(Error::Input(format!("near_duplicates {other:?} is not known to this worker's version")));
            }
        },
        sides_by: match task.second_hash {
            true => SidesBy::SecondHash,
            false => SidesBy::Key,
        },
        pairs: (task.pairs_holdout_rows > 0)
            .then_some(Share { train_rows: task.pairs_train_rows, holdout_rows: task.pairs_holdout_rows }),
    };
    let context = &context.opened()?;
    let progress = |done, total| context.control.advance(done, total);
    let split = context.wait(shards::split_corpus(&spec, &context.store, &task.cleaned, &task.path, &progress))?;
    context.control.check()?;
    let planned = split.shards.into_iter().map(|shard| Artifact {
        path: shard.path,
        role: shard.role.into(),
        rows: shard.rows,
        ..Artifact::default()
    });
    Ok(TaskResult {
        artifacts: std::iter::once(to_proto(split.artifact)).chain(planned).collect(),
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
        role: task.role.as_str().into(),
        stage_key: task.stage_key.clone(),
    };
    let context = &context.opened()?;
    let progress = |done, total| context.control.advance(done, total);
    let artifact = context.wait(shards::write_shard(&spec, &context.store, &progress))?;
    Ok(TaskResult { artifacts: vec![to_proto(artifact)], ..TaskResult::default() })
}
