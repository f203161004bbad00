//! Makes the job's report: what it read, kept, learned and measured, and where the artifacts are.

use llink_datasets::manifest::Manifest;
use llink_datasets::measured::{self, Retrieval, TrainingTime};
use llink_datasets::report::{Report, StageReport, TrainingReport};
use llink_datasets::role::{Part, Role};

use crate::plan::StageName;
use crate::schedule::{Job, Millis, Stage};

/// Returns the report of a job whose stages are all complete.
pub fn build(job: &Job, now: Millis) -> Report {
    let complete = || job.stages.iter().filter_map(|stage| Some((stage, stage.manifest.as_ref()?)));
    let path = |role: Role| {
        let mut artifacts = complete().flat_map(|(_, manifest)| &manifest.artifacts);
        artifacts.find(|artifact| artifact.role == role).map(|artifact| artifact.path.clone())
    };
    let mut report = Report {
        job: job.file.name.clone(),
        id: job.id.clone(),
        output: job.file.output.clone(),
        seconds: (now - job.submitted_at) as f64 / 1000.0,
        stages: complete().map(|(stage, manifest)| of_stage(stage, manifest)).collect(),
        training: training(complete().map(|(_, manifest)| manifest)),
        warnings: crate::job::warnings(&job.file),
        bundle: path(Role::Bundle(Part::Config)).and_then(|path| Some(path.rsplit_once('/')?.0.to_owned())),
        benchmark: path(Role::Benchmark),
        page: path(Role::ReportPage),
        ..Report::default()
    };
    for (stage, manifest) in complete() {
        if stage.name == StageName::Evaluate {
            report.retrieval = Some(Retrieval::rows(&manifest.figures));
        }
        if !manifest.figures.is_empty() {
            report.figures.insert(stage.name.to_string(), manifest.figures.clone());
        }
        report.counts.extend(manifest.counts.clone());
        report.facts.extend(manifest.facts.clone());
        report.warnings.extend(manifest.warnings.iter().cloned());
    }
    report
}

fn of_stage(stage: &Stage, manifest: &Manifest) -> StageReport {
    StageReport {
        stage: stage.name.to_string(),
        key: stage.key.clone(),
        cached: stage.state == llink_proto::StageState::Cached,
        seconds: stage.took().unwrap_or_default() as f64 / 1000.0,
        directory: crate::plan::directory(stage.name, &stage.key),
        artifacts: manifest.artifacts.len(),
        bytes: manifest.artifacts.iter().map(|a| a.bytes).sum(),
    }
}

fn training<'a>(manifests: impl Iterator<Item = &'a Manifest>) -> Option<TrainingReport> {
    let (mut counted, mut seconds) = (0.0, 0.0);
    for manifest in manifests {
        if let Some(TrainingTime { step_seconds, effective_time: Some(share) }) = measured::get(&manifest.figures, "") {
            counted += step_seconds;
            seconds += step_seconds / share.max(1e-9);
        }
    }
    (seconds > 0.0).then(|| TrainingReport { effective_time: counted / seconds, seconds })
}
