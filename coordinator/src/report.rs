//! The job's report: what it read, kept, learnt and measured, and where the artefacts are.

use serde_json::{Map, Value, json};

use crate::schedule::{Job, Millis};

/// The report of a job whose stages are all complete, as JSON.
#[must_use]
pub fn build(job: &Job, now: Millis) -> String {
    let mut stages = Vec::new();
    let mut counts = Map::new();
    let mut figures = Map::new();
    let mut warnings = Vec::new();
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
    let report = json!({
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
