//! What a job would do: each stage's key as far as it is known, and whether its result is there already.

use std::collections::BTreeMap;

use llink_proto::{Failure, FailureKind, Job, JobState, Stage, StageState};

use super::engine::look_up;
use crate::plan::{self, Inputs, Phase, StageName};
use crate::schedule::NewJob;

/// The plan of a job; nothing is recorded or started.
///
/// # Errors
/// When the output cannot be read.
pub(super) async fn plan(new: &NewJob) -> Result<Job, Failure> {
    let mut done = BTreeMap::new();
    let mut stages = Vec::new();
    for name in StageName::of(&new.file) {
        let inputs = Inputs {
            job: &new.file,
            stamps: &new.stamps,
            done: &done,
        };
        let mut stage = Stage {
            name: name.to_string(),
            state: StageState::Waiting.into(),
            unit: name.unit().into(),
            ..Stage::default()
        };
        // A stage after one that is still to run has no key yet: its inputs are not made.
        match plan::stage_key(name, &inputs) {
            Err(_) => stage.reason = "will run: its inputs are not made yet".into(),
            Ok(key) => {
                stage.key.clone_from(&key);
                if let Some(manifest) = look_up(&new.file.output, name, &key).await? {
                    stage.state = StageState::Cached.into();
                    stage.reason = "cached".into();
                    done.insert(name, manifest);
                } else {
                    let first = plan::phase(name, &key, &inputs, &[]).map_err(|e| Failure {
                        kind: FailureKind::Internal.into(),
                        text: e.to_string(),
                    })?;
                    if let Phase::Tasks { tasks, label } = first {
                        stage.reason = format!("will run: {} tasks to {label} first", tasks.len());
                        stage.tasks_total = tasks.len() as u32;
                        stage.total = tasks.iter().map(|t| t.weight).sum();
                    }
                }
            }
        }
        stages.push(stage);
    }
    Ok(Job {
        id: new.id.clone(),
        name: new.file.name.clone(),
        state: JobState::Unspecified.into(),
        stages,
        output_url: new.file.output.clone(),
        ..Job::default()
    })
}
