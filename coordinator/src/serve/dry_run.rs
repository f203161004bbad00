//! The plan of a job. It says for each stage whether its result is there, whether it will run, or what that depends on.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use llink_datasets::manifest::Manifest;
use llink_datasets::store::Store;
use llink_proto::{Failure, FailureKind, Job, JobState, Stage, StageState};
use serde_json::Value;

use super::stages::whole;
use crate::job::{self, JobFile, is_built_in};
use crate::plan::{self, Inputs, Phase, StageName};
use crate::schedule::NewJob;

/// Plans a job. Nothing is recorded or started.
pub(super) async fn plan(new: &NewJob) -> Result<Job, Failure> {
    let mut done = BTreeMap::new();
    let mut stages = Vec::new();
    for name in StageName::of(&new.file) {
        let mut stage = plan_stage(name, new, &mut done).await?;
        stage.name = name.to_string();
        stage.unit = name.unit().into();
        stage.details = match name {
            StageName::Models => models(&new.file).await,
            _ => plan::outline(name, &new.file),
        };
        stages.push(stage);
    }
    Ok(Job {
        id: new.id.clone(),
        name: new.file.name.clone(),
        state: JobState::Unspecified.into(),
        stages,
        output_url: new.file.output.clone(),
        warnings: job::warnings(&new.file),
        ..Job::default()
    })
}

async fn plan_stage(name: StageName, new: &NewJob, done: &mut BTreeMap<StageName, Manifest>) -> Result<Stage, Failure> {
    let fault = |e: plan::PlanError| Failure { kind: FailureKind::Internal.into(), text: e.to_string() };
    let awaited = awaited(name, &new.file, done);
    if !awaited.is_empty() {
        return Ok(Stage {
            state: StageState::Depends.into(),
            reason: format!("its tasks are known once {} done", are(&awaited)),
            ..Stage::default()
        });
    }
    let inputs = Inputs { job: &new.file, stamps: &new.stamps, done, claim: None };
    let key = plan::stage_key(name, &inputs).map_err(fault)?;
    if let Some(manifest) = whole(&new.file.output, name, &key).await? {
        done.insert(name, manifest);
        return Ok(Stage {
            key,
            state: StageState::Cached.into(),
            reason: "its result is there".into(),
            ..Stage::default()
        });
    }
    let mut stage = Stage { state: StageState::Planned.into(), ..Stage::default() };
    if let Phase::Tasks { tasks, label } = plan::phase(name, &key, &inputs, &[]).map_err(fault)? {
        let plural = if tasks.len() == 1 { "" } else { "s" };
        stage.reason = format!("{} task{plural} to {label} first", tasks.len());
        stage.tasks_total = tasks.len() as u32;
        stage.total = tasks.iter().filter_map(|t| t.weight).map(NonZeroU64::get).sum();
    }
    stage.key = key;
    Ok(stage)
}

/// Returns the stages without a result that `name` reads, without those that another of them reads.
fn awaited(name: StageName, job: &JobFile, done: &BTreeMap<StageName, Manifest>) -> Vec<StageName> {
    let missing: Vec<StageName> = name.reads(job).into_iter().filter(|s| !done.contains_key(s)).collect();
    let is_read = |stage: &StageName| missing.iter().any(|other| reaches(*other, *stage, job));
    missing.iter().copied().filter(|stage| !is_read(stage)).collect()
}

/// Returns whether `stage` reads `other`, directly or through other stages.
fn reaches(stage: StageName, other: StageName, job: &JobFile) -> bool {
    let reads = stage.reads(job);
    reads.contains(&other) || reads.into_iter().any(|read| reaches(read, other, job))
}

/// Returns `stage shard is` or `stages shard and models are`.
fn are(stages: &[StageName]) -> String {
    let names: Vec<&str> = stages.iter().map(|stage| stage.as_str()).collect();
    match names.as_slice() {
        [] => String::new(),
        [one] => format!("stage {one} is"),
        [first @ .., last] => format!("stages {} and {last} are", first.join(", ")),
    }
}

async fn models(job: &JobFile) -> Vec<String> {
    let mut lines = plan::outline(StageName::Models, job);
    for (line, (_, folder)) in lines.iter_mut().zip(job.models.paths()) {
        if let Some(size) = size(folder).await {
            line.push_str(&format!(" ({size})"));
        }
    }
    lines
}

/// Reads the architecture, width and depth of a model from its folder. `None` means that they cannot be read, since
/// another check decides whether the model can be used.
async fn size(folder: &str) -> Option<String> {
    if is_built_in(folder) {
        return None;
    }
    let content = Store::open(folder).ok()?.get("config.json").await.ok()?;
    let config: Value = serde_json::from_slice(&content).ok()?;
    let architecture = config["model_type"].as_str()?;
    let (width, layers) = (config["hidden_size"].as_u64()?, config["num_hidden_layers"].as_u64()?);
    Some(format!("{architecture}, width {width}, {layers} layers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(text: &str) -> JobFile {
        job::parse("job.toml", &format!("[corpus]\nsource = \"sample\"\n{text}")).unwrap()
    }

    #[test]
    fn a_stage_names_the_nearest_stages_that_it_waits_for() {
        let (with_b, nothing) = (job("[instructions]\nsource = \"sample\"\n[instruct]\n"), BTreeMap::new());
        let waits = |stage| are(&awaited(stage, &with_b, &nothing));
        assert_eq!(waits(StageName::Shard), "");
        assert_eq!(waits(StageName::Models), "");
        assert_eq!(waits(StageName::Embed), "stages shard and models are");
        assert_eq!(waits(StageName::Align), "stage embed is");
        assert_eq!(waits(StageName::Instruct), "stage align is");
        assert_eq!(waits(StageName::Baseline), "stages shard and models are");
        assert_eq!(waits(StageName::Evaluate), "stages baseline and instruct are");
        assert_eq!(waits(StageName::Export), "stage evaluate is");
    }
}
