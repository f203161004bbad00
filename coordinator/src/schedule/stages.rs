//! A stage's way from its key to its manifest.

use std::collections::{BTreeMap, BTreeSet};

use llink_datasets::manifest::Manifest;
use llink_proto::{Artifact, Failure, JobState, StageState, TaskResult};

use super::jobs::{results_before, unplanned};
use super::{Action, Cluster, Effects, Level, Millis, Stage, TaskRecord, TaskState};
use crate::plan::{self, Inputs, Phase, StageName};

/// What the store holds of a stage.
#[derive(Debug, Clone, PartialEq)]
pub enum LookedUp {
    /// It is committed, and all its files are there.
    Whole(Box<Manifest>),
    /// It is to be computed.
    Absent {
        /// Of the files that the question named, those that are gone or have another size.
        lost: BTreeSet<String>,
        /// What is wrong with a manifest that is there all the same.
        damage: Option<String>,
    },
}

impl Cluster {
    /// What the store holds of a stage under its key.
    pub fn looked_up(
        &mut self,
        id: &str,
        name: StageName,
        found: Result<LookedUp, Failure>,
        now: Millis,
        fx: &mut Effects,
    ) {
        let Some(stage) = self.current_stage(id, name) else {
            return;
        };
        match found {
            Err(failure) => self.fail(id, failure, now, fx),
            // The answer to a question of before the job was submitted again, with other inputs.
            Ok(LookedUp::Whole(manifest)) if manifest.key != stage.key => {}
            Ok(LookedUp::Whole(manifest)) => {
                stage.state = StageState::Cached;
                stage.reason = "found finished under the same key".into();
                stage.manifest = Some(*manifest);
                stage.ended_at = now;
                self.advance(id, now, fx);
            }
            Ok(LookedUp::Absent { lost, damage }) => {
                stage.state = StageState::Running;
                if let Some(damage) = damage {
                    fx.happened_to_job(now, id, name.as_str(), Level::Warn, damage);
                }
                self.forget_lost(id, name, &lost, now, fx);
                let kept = self.stage_mut(id, name).map(|stage| stage.phases.concat());
                for task in kept.into_iter().flatten() {
                    self.requeue_unless_done(task, now, fx);
                }
                self.next_phase(id, name, now, fx);
            }
        }
    }

    /// A stage's manifest was written, or could not be.
    pub fn committed(
        &mut self,
        id: &str,
        name: StageName,
        written: Result<Manifest, Failure>,
        now: Millis,
        fx: &mut Effects,
    ) {
        let Some(stage) = self.current_stage(id, name) else {
            return;
        };
        match written {
            Err(failure) => self.fail(id, failure, now, fx),
            Ok(manifest) if manifest.key != stage.key => {}
            Ok(manifest) => {
                stage.state = StageState::Done;
                stage.reason = String::new();
                stage.ended_at = now;
                stage.manifest = Some(manifest);
                fx.happened_to_job(now, id, name.as_str(), Level::Info, "done");
                self.advance(id, now, fx);
            }
        }
    }

    /// The stage, if its job still runs and the stage is not over.
    fn current_stage(&mut self, id: &str, name: StageName) -> Option<&mut Stage> {
        let running = self.jobs.get(id).is_some_and(|j| j.state == JobState::Running);
        self.stage_mut(id, name)
            .filter(|s| running && !s.is_complete() && s.state != StageState::Waiting)
    }

    /// The files that the stage's finished tasks wrote, with their sizes.
    pub(super) fn kept_files(&self, id: &str, name: StageName) -> BTreeMap<String, u64> {
        let stage = self.jobs.get(id).and_then(|j| j.stages.iter().find(|s| s.name == name));
        let tasks = stage.into_iter().flat_map(|stage| stage.phases.iter().flatten());
        let files = tasks.flat_map(|task| self.files_of(*task));
        files.map(|file| (file.path.clone(), file.bytes)).collect()
    }

    /// What a finished task wrote. Artifacts without a hash are plans of a later phase.
    fn files_of(&self, task: u64) -> impl Iterator<Item = &Artifact> {
        let result = match self.tasks.get(&task).map(|t| &t.state) {
            Some(TaskState::Done(result)) => Some(result),
            _ => None,
        };
        let artifacts = result.into_iter().flat_map(|result| &result.artifacts);
        artifacts.filter(|artifact| !artifact.sha256.is_empty())
    }

    /// Tasks whose files are gone are done again, and what was planned from their results is planned anew.
    fn forget_lost(&mut self, id: &str, name: StageName, lost: &BTreeSet<String>, now: Millis, fx: &mut Effects) {
        let Some(job) = self.jobs.get(id) else { return };
        let Some(stage) = job.stages.iter().find(|s| s.name == name) else {
            return;
        };
        let is_lost = |task: &u64| self.files_of(*task).any(|file| lost.contains(&file.path));
        let Some(first) = stage.phases.iter().position(|phase| phase.iter().any(is_lost)) else {
            return;
        };
        let again: Vec<u64> = stage.phases[first].iter().copied().filter(is_lost).collect();
        let text = format!(
            "{} files that were written before are gone or have another size: they are made again",
            lost.len()
        );
        fx.happened_to_job(now, id, name.as_str(), Level::Warn, text);
        for task in again {
            self.requeue(task, now, fx);
        }
        let later = self.stage_mut(id, name).map(|stage| stage.phases.split_off(first + 1));
        for task in later.into_iter().flatten().flatten() {
            self.tasks.remove(&task);
            fx.tasks.remove(&task);
            fx.dropped_tasks.insert(task);
        }
    }

    /// Plans phases until one has tasks that are not done, or the stage is complete.
    pub(super) fn next_phase(&mut self, id: &str, name: StageName, now: Millis, fx: &mut Effects) {
        fx.jobs.insert(id.into());
        loop {
            let Some(job) = self.jobs.get(id) else { return };
            let Some(stage) = job.stages.iter().find(|s| s.name == name) else {
                return;
            };
            let results: Option<Vec<Vec<TaskResult>>> = stage.phases.iter().map(|p| self.results(p)).collect();
            let Some(results) = results else { return };
            let done = results_before(job);
            let inputs = Inputs {
                job: &job.file,
                stamps: &job.stamps,
                done: &done,
            };
            match plan::phase(name, &stage.key, &inputs, &results) {
                Err(e) => return self.fail(id, unplanned(&e), now, fx),
                Ok(Phase::Complete(mut manifest)) => {
                    // Of the time that training took, gangs that were lost and steps taken twice included.
                    if let Some(seconds) = manifest.figures.get("step_seconds") {
                        let share = seconds * 1000.0 / stage.spent(now).max(1) as f64;
                        manifest.figures.insert("effective_time".into(), share.min(1.0));
                    }
                    let output = job.file.output.clone();
                    if let Some(stage) = self.stage_mut(id, name) {
                        stage.reason = "committing".into();
                    }
                    fx.actions.push(Action::Commit {
                        job: id.into(),
                        output,
                        manifest: Box::new(manifest),
                    });
                    return;
                }
                Ok(Phase::Tasks { label, tasks }) => self.add_phase(id, name, label, tasks, now, fx),
            }
        }
    }

    fn add_phase(
        &mut self,
        id: &str,
        name: StageName,
        label: String,
        tasks: Vec<plan::PlannedTask>,
        now: Millis,
        fx: &mut Effects,
    ) {
        let phase = self.stage_mut(id, name).map_or(0, |s| s.phases.len());
        let mut ids = Vec::with_capacity(tasks.len());
        for (index, planned) in tasks.into_iter().enumerate() {
            let task = TaskRecord {
                id: self.next_task,
                job: id.into(),
                stage: name,
                phase,
                index,
                label: planned.label,
                spec: planned.spec,
                weight: planned.weight,
                ranks: planned.ranks,
                state: to_be_leased(now),
                token: 0,
                failures: 0,
                losses: 0,
                last_world_size: 0,
                furthest: 0,
            };
            self.next_task += 1;
            ids.push(task.id);
            fx.tasks.insert(task.id);
            self.tasks.insert(task.id, task);
        }
        if let Some(stage) = self.stage_mut(id, name) {
            stage.reason = label;
            stage.phases.push(ids);
        }
    }

    /// The results of a phase, if every task of it is done.
    fn results(&self, phase: &[u64]) -> Option<Vec<TaskResult>> {
        phase
            .iter()
            .map(|id| match self.tasks.get(id).map(|t| &t.state) {
                Some(TaskState::Done(result)) => Some(result.clone()),
                _ => None,
            })
            .collect()
    }

    fn requeue_unless_done(&mut self, id: u64, now: Millis, fx: &mut Effects) {
        let state = self.tasks.get(&id).map(|task| &task.state);
        if matches!(state, Some(TaskState::Failed(_) | TaskState::Cancelled)) {
            self.requeue(id, now, fx);
        }
    }

    fn requeue(&mut self, id: u64, now: Millis, fx: &mut Effects) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        (task.failures, task.losses) = (0, 0);
        task.state = to_be_leased(now);
        fx.tasks.insert(id);
    }
}

fn to_be_leased(now: Millis) -> TaskState {
    TaskState::Waiting {
        since: now,
        not_before: now,
        reason: "waits for a worker".into(),
    }
}
