//! The job's report: the data that it read and kept, its training and its figures, and where its artifacts are.

use llink_datasets::measured::Retrieval;
use llink_datasets::role::{Part, Role};
use serde_json::{Map, Value, json};

use crate::plan::StageName;
use crate::schedule::{Job, Millis};

/// Returns the report of a job whose stages are all complete, as JSON.
#[must_use]
pub fn build(job: &Job, now: Millis) -> String {
    let mut stages = Vec::new();
    let mut counts = Map::new();
    let mut figures = Map::new();
    let mut warnings = crate::job::warnings(&job.file);
    for stage in &job.stages {
        let Some(manifest) = &stage.manifest else { continue };
        stages.push(json!({
            "stage": stage.name.as_str(),
            "key": stage.key,
            "cached": stage.state == llink_proto::StageState::Cached,
            "seconds": (stage.ended_at - stage.started_at) as f64 / 1000.0,
            "directory": crate::plan::directory(stage.name, &stage.key),
            "artifacts": manifest.artifacts.len(),
            "bytes": manifest.artifacts.iter().map(|a| a.bytes).sum::<u64>(),
        }));
        counts.extend(manifest.counts.iter().map(|(k, v)| (k.clone(), json!(v))));
        let of_stage: Map<String, Value> = manifest.figures.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        if !of_stage.is_empty() {
            figures.insert(stage.name.to_string(), of_stage.into());
        }
        warnings.extend(manifest.warnings.iter().cloned());
    }
    let facts: Map<String, Value> = job
        .stages
        .iter()
        .filter_map(|s| s.manifest.as_ref())
        .flat_map(|m| m.facts.iter().map(|(k, v)| (k.clone(), json!(v))))
        .collect();
    let training = effective_training_time(job);
    let artifact = |role: Role| {
        let manifests = job.stages.iter().filter_map(|stage| stage.manifest.as_ref());
        let mut artifacts = manifests.flat_map(|manifest| &manifest.artifacts);
        artifacts
            .find(|artifact| artifact.role == role)
            .map(|artifact| &artifact.path)
    };
    let evaluate = job.stages.iter().find(|stage| stage.name == StageName::Evaluate);
    let evaluated = evaluate.and_then(|stage| stage.manifest.as_ref());
    let config = artifact(Role::Bundle(Part::Config)).and_then(|path| path.rsplit_once('/'));
    let report = json!({
        "page": artifact(Role::ReportPage),
        "benchmark": artifact(Role::Benchmark),
        "retrieval": evaluated.map(|manifest| Retrieval::rows(&manifest.figures)),
        "bundle": config.map(|(directory, _)| directory),
        "training": training.map(|(share, seconds)| json!({"effective_time": share, "seconds": seconds})),
        "job": job.file.name,
        "id": job.id,
        "output": job.file.output,
        "seconds": (now - job.submitted_at) as f64 / 1000.0,
        "stages": stages,
        "counts": counts,
        "figures": figures,
        "facts": facts,
        "warnings": warnings,
    });
    serde_json::to_string_pretty(&report).expect("a JSON value has a text")
}

/// Returns the share of the training time that was spent in steps that counted, over all stages that train, and that
/// time in seconds. Lost ranks, waits and repeated steps do not count.
fn effective_training_time(job: &Job) -> Option<(f64, f64)> {
    let (mut counted, mut whole) = (0.0, 0.0);
    for figures in job
        .stages
        .iter()
        .filter_map(|s| s.manifest.as_ref())
        .map(|m| &m.figures)
    {
        if let (Some(seconds), Some(share)) = (figures.get("step_seconds"), figures.get("effective_time")) {
            counted += seconds;
            whole += seconds / share.max(1e-9);
        }
    }
    (whole > 0.0).then(|| (counted / whole, whole))
}
