//! The `align` and `evaluate` stages.

use llink_datasets::manifest::Manifest;
use llink_datasets::role::{Corpus, Part, Role, Side, Tower};
use llink_proto::task::Kind;
use llink_proto::{Align, Artifact, Evaluate, FitStatistics, ModelRole, TaskResult};

use super::embed::model_ref;
use super::{
    Inputs, Phase, PlanError, PlannedTask, PlannedTasks, Ranks, StageName, content, content_of, earlier, fact, json,
    manifest_of, windows, with_role,
};

pub(super) fn align_key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    let embed = earlier(StageName::Align, StageName::Embed, inputs)?;
    let mut parts = vec![content(embed), json(&inputs.job.align.key()), format!("seed {}", inputs.job.seed)];
    if let Some(margin) = inputs.job.cleaning.margin {
        parts.push(content(earlier(StageName::Align, StageName::Baseline, inputs)?));
        parts.push(format!("margin {margin}"));
    }
    Ok(parts)
}

/// Returns the next phase: the filter and the fit of the statistics, if the job has them, and then the training.
pub(super) fn align_phase(key: &str, inputs: &Inputs<'_>, results: &[Vec<TaskResult>]) -> Result<Phase, PlanError> {
    let stage = StageName::Align;
    let done = manifest_of(stage, key, results.iter().flatten());
    let mut phases = results.iter();
    if let Some(margin) = inputs.job.cleaning.margin
        && phases.next().is_none()
    {
        return super::margin::phase(key, inputs, margin);
    }
    let dropped = with_role(&done, Role::Dropped);
    let fits = inputs.job.align.fits_statistics();
    if fits && phases.next().is_none() {
        return fit_phase(key, inputs, dropped);
    }
    if phases.next().is_some() {
        return Ok(Phase::Complete(done));
    }
    let statistics = fits.then(|| the_one(stage, &done, STATISTICS)).transpose()?;
    train_phase(key, inputs, statistics, dropped)
}

/// The statistics that are fitted before the first step. A stage `align` whose job fits nothing has none.
const STATISTICS: Part = Part::Statistics;

pub(super) fn statistics(stage: StageName, inputs: &Inputs<'_>) -> Result<Option<Artifact>, PlanError> {
    let align = earlier(stage, StageName::Align, inputs)?;
    Ok(with_role(align, STATISTICS).into_iter().next())
}

fn fit_phase(key: &str, inputs: &Inputs<'_>, dropped: Vec<Artifact>) -> Result<Phase, PlanError> {
    let embed = earlier(StageName::Align, StageName::Embed, inputs)?;
    let kind = Kind::FitStatistics(FitStatistics {
        encoder_vectors: with_role(embed, Role::Vectors(Tower::Encoder, Corpus::Pairs, Side::Train)),
        teacher_vectors: with_role(embed, Role::Vectors(Tower::Teacher, Corpus::Pairs, Side::Train)),
        settings: json(&inputs.job.align),
        path: format!("{}/statistics.safetensors", inputs.directory(StageName::Align, key)),
        dropped,
    });
    Ok(one_task("fit", kind, 1, Ranks::ONE, inputs, "fit statistics of the training vectors"))
}

fn train_phase(
    key: &str,
    inputs: &Inputs<'_>,
    statistics: Option<Artifact>,
    dropped: Vec<Artifact>,
) -> Result<Phase, PlanError> {
    let embed = earlier(StageName::Align, StageName::Embed, inputs)?;
    let section = &inputs.job.align;
    let vectors = |tower, side| with_role(embed, Role::Vectors(tower, Corpus::Pairs, side));
    let held_out = |tower| match section.validate_every {
        None => Vec::new(),
        Some(_) => vectors(tower, Side::Holdout),
    };
    let kind = Kind::Align(Align {
        encoder_vectors: vectors(Tower::Encoder, Side::Train),
        teacher_vectors: vectors(Tower::Teacher, Side::Train),
        settings: json(section),
        seed: inputs.job.seed,
        directory: inputs.directory(StageName::Align, key),
        held_out_encoder_vectors: held_out(Tower::Encoder),
        held_out_teacher_vectors: held_out(Tower::Teacher),
        statistics,
        dropped,
    });
    let ranks = Ranks { min: section.min_ranks, max: section.max_ranks };
    Ok(one_task("train", kind, section.steps, ranks, inputs, "train the projector"))
}

pub(super) fn the_one(stage: StageName, manifest: &Manifest, role: impl Into<Role>) -> Result<Artifact, PlanError> {
    let role = role.into();
    let first = with_role(manifest, role.clone()).into_iter().next();
    first.ok_or_else(|| PlanError { stage, reason: format!("stage {} left no {role}", manifest.stage) })
}

pub(super) fn evaluate_key_parts(inputs: &Inputs<'_>) -> Result<Vec<String>, PlanError> {
    let stage = StageName::Evaluate;
    let mut parts = vec![
        content(earlier(stage, StageName::Shard, inputs)?),
        fact(stage, earlier(stage, StageName::Models, inputs)?, "decoder.fingerprint")?.into(),
        content(earlier(stage, StageName::Embed, inputs)?),
        content(earlier(stage, StageName::Baseline, inputs)?),
        content_of(earlier(stage, StageName::Align, inputs)?, Part::Projector),
        content_of(earlier(stage, StageName::Align, inputs)?, STATISTICS),
        content_of(earlier(stage, StageName::Align, inputs)?, Role::Dropped),
        super::instruct::evaluated(inputs)?,
        super::judge::stamp(inputs),
        inputs.job.evaluate.set.iter().map(|set| super::shard::stamps(set, inputs)).collect(),
        json(&super::judge::evaluate_section(inputs.job)),
    ];
    if windows::wanted(inputs.job).is_some() {
        parts.push(content(earlier(stage, StageName::Windows, inputs)?));
    }
    Ok(parts)
}

pub(super) fn evaluate_phase(key: &str, inputs: &Inputs<'_>) -> Result<Phase, PlanError> {
    let stage = StageName::Evaluate;
    let shard = earlier(stage, StageName::Shard, inputs)?;
    let embed = earlier(stage, StageName::Embed, inputs)?;
    let baseline = earlier(stage, StageName::Baseline, inputs)?;
    let align = earlier(stage, StageName::Align, inputs)?;
    let projector = the_one(stage, align, Part::Projector)?;
    let vectors = |from, tower, side| with_role(from, Role::Vectors(tower, Corpus::Pairs, side));
    let benchmark_pairs = inputs.job.evaluate.benchmark_pairs;
    let directory = inputs.directory(stage, key);
    let kind = Kind::Evaluate(Evaluate {
        encoder_vectors: vectors(embed, Tower::Encoder, Side::Holdout),
        teacher_vectors: vectors(embed, Tower::Teacher, Side::Holdout),
        pair_shards: with_role(shard, Role::Shard(Corpus::Pairs, Side::Holdout)),
        projector: Some(projector),
        statistics: statistics(stage, inputs)?,
        benchmark_pairs,
        decoder: Some(model_ref(stage, inputs, "decoder", ModelRole::Decoder)?),
        path: format!("{directory}/report.json"),
        benchmark: format!("{directory}/benchmark.jsonl"),
        english_vectors: vectors(baseline, Tower::EncoderEnglish, Side::Holdout),
        center_english_vectors: vectors(baseline, Tower::EncoderEnglish, Side::Train),
        window_vectors: match windows::wanted(inputs.job) {
            Some(_) => vectors(earlier(stage, StageName::Windows, inputs)?, Tower::EncoderWindows, Side::Holdout),
            None => Vec::new(),
        },
        center_foreign_vectors: vectors(embed, Tower::Encoder, Side::Train),
        answers: super::instruct::answers(&directory, inputs)?,
        judge: super::judge::judge(&directory, inputs.job),
        page: format!("{directory}/report.html"),
        dropped: with_role(align, Role::Dropped),
        align_metrics: with_role(align, Part::Metrics),
        instruct_metrics: match inputs.job.instruct {
            Some(_) => with_role(earlier(stage, StageName::Instruct, inputs)?, Part::Metrics),
            None => Vec::new(),
        },
    });
    Ok(one_task("measure", kind, benchmark_pairs, Ranks::ONE, inputs, "held-out retrieval"))
}

pub(super) fn one_task(phase: &str, kind: Kind, weight: u64, ranks: Ranks, inputs: &Inputs<'_>, label: &str) -> Phase {
    let task = PlannedTask { ranks, ..inputs.task(kind, weight, label) };
    Phase::Tasks { label: phase.into(), tasks: PlannedTasks::from_iter([task]) }
}
