//! A job's way through its stages.

use std::collections::BTreeMap;

use llink_datasets::manifest::Manifest;
use llink_proto::{Abort, Failure, FailureKind, JobState, StageState, TaskResult};

use super::{Action, Cluster, Effects, Job, Level, Millis, Stage, TaskRecord, TaskState};
use crate::job::JobFile;
use crate::plan::{self, Inputs, Phase, PlanError, StageName};
use crate::report;

/// A job as it is submitted.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Derived from its content.
    pub id: String,
    /// The file, its paths absolute.
    pub file: JobFile,
    /// Stamps of the files it reads from outside.
    pub stamps: BTreeMap<String, String>,
}

impl Cluster {
    /// Starts a job, or starts it again: what it finished before is kept. A job that runs already is left alone.
    pub fn submit(&mut self, new: NewJob, now: Millis, fx: &mut Effects) {
        let id = new.id.clone();
        let known = self.jobs.get(&id).map(|j| j.state);
        if known == Some(JobState::Running) {
            return;
        }
        // Keys and tasks stay: a stage whose key comes out the same goes on where it stopped.
        let mut old = self.jobs.remove(&id).map(|old| old.stages).unwrap_or_default();
        let stage = |name| match old.iter().position(|stage| stage.name == name) {
            Some(at) => reset(old.swap_remove(at), now),
            None => Stage::new(name),
        };
        let stages = StageName::of(&new.file).into_iter().map(stage).collect();
        let text = if known.is_some() {
            "submitted again"
        } else {
            "submitted"
        };
        fx.happened_to_job(now, &id, "", Level::Info, text);
        self.jobs.insert(
            id.clone(),
            Job {
                id: id.clone(),
                file: new.file,
                stamps: new.stamps,
                state: JobState::Running,
                reason: String::new(),
                stages,
                submitted_at: now,
                ended_at: 0,
                failure: None,
                report: None,
            },
        );
        self.advance(&id, now, fx);
    }

    /// Starts a job that failed or was cancelled again.
    ///
    /// # Errors
    /// When there is no such job.
    pub fn resume(&mut self, id: &str, now: Millis, fx: &mut Effects) -> Result<(), String> {
        let job = self.jobs.get(id).ok_or_else(|| format!("there is no job {id}"))?;
        let again = NewJob {
            id: id.into(),
            file: job.file.clone(),
            stamps: job.stamps.clone(),
        };
        self.submit(again, now, fx);
        Ok(())
    }

    /// Jobs that were running when the coordinator stopped go on.
    pub fn wake(&mut self, now: Millis, fx: &mut Effects) {
        let running: Vec<_> = self.jobs.values().filter(|j| j.state == JobState::Running).collect();
        for id in running.into_iter().map(|j| j.id.clone()).collect::<Vec<_>>() {
            if let Some(job) = self.jobs.get_mut(&id) {
                for stage in job.stages.iter_mut().filter(|s| !s.is_complete()) {
                    *stage = reset(stage.clone(), now);
                }
            }
            self.advance(&id, now, fx);
        }
    }

    /// Jobs that were running when the coordinator stopped are ended: nobody asked this one to go on with them.
    pub fn interrupt(&mut self, now: Millis, fx: &mut Effects) {
        let running = self.jobs.values().filter(|j| j.state == JobState::Running);
        for id in running.map(|j| j.id.clone()).collect::<Vec<_>>() {
            let why = "its coordinator ended before it did: submit it again to go on";
            fx.happened_to_job(now, &id, "", Level::Warn, why);
            self.end(&id, JobState::Cancelled, why.into(), None, now, fx);
        }
    }

    /// Stops a job.
    ///
    /// # Errors
    /// When there is no such job.
    pub fn cancel(&mut self, id: &str, now: Millis, fx: &mut Effects) -> Result<(), String> {
        let job = self.jobs.get(id).ok_or_else(|| format!("there is no job {id}"))?;
        if job.state == JobState::Running {
            fx.happened_to_job(now, id, "", Level::Warn, "cancelled");
            self.end(id, JobState::Cancelled, "cancelled".into(), None, now, fx);
        }
        Ok(())
    }

    /// Whether a stage was found committed under its key.
    pub fn looked_up(
        &mut self,
        id: &str,
        name: StageName,
        found: Result<Option<Manifest>, Failure>,
        now: Millis,
        fx: &mut Effects,
    ) {
        let Some(stage) = self.current_stage(id, name) else {
            return;
        };
        match found {
            Err(failure) => self.fail(id, failure, now, fx),
            // The answer to a question of before the job was submitted again, with other inputs.
            Ok(Some(manifest)) if manifest.key != stage.key => {}
            Ok(Some(manifest)) => {
                stage.state = StageState::Cached;
                stage.reason = "found finished under the same key".into();
                stage.manifest = Some(manifest);
                stage.ended_at = now;
                self.advance(id, now, fx);
            }
            Ok(None) => {
                stage.state = StageState::Running;
                let kept = stage.phases.clone();
                if !kept.is_empty() {
                    stage.reason = "goes on where it stopped".into();
                }
                for task in kept.iter().flatten() {
                    self.requeue_unless_done(*task, now, fx);
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

    /// Begins the next stage that is not complete, or ends the job.
    fn advance(&mut self, id: &str, now: Millis, fx: &mut Effects) {
        fx.jobs.insert(id.into());
        let Some(job) = self.jobs.get(id) else { return };
        let Some(next) = job.stages.iter().position(|s| !s.is_complete()) else {
            let report = report::build(job, now);
            fx.actions.push(Action::Publish {
                output: job.file.output.clone(),
                report: report.clone(),
            });
            fx.happened_to_job(now, id, "", Level::Info, "succeeded");
            self.end(id, JobState::Succeeded, String::new(), Some(report), now, fx);
            return;
        };
        let name = job.stages[next].name;
        let done = results_before(job);
        let inputs = Inputs {
            job: &job.file,
            stamps: &job.stamps,
            done: &done,
        };
        let key = plan::stage_key(name, &inputs);
        let output = job.file.output.clone();
        match key {
            Err(e) => self.fail(id, unplanned(&e), now, fx),
            Ok(key) => {
                let stale: Vec<u64> = match self.stage_mut(id, name) {
                    Some(stage) => {
                        let same = stage.key == key;
                        stage.state = StageState::Running;
                        stage.reason = "looking for an earlier result".into();
                        stage.key.clone_from(&key);
                        stage.started_at = now;
                        stage.ended_at = 0;
                        if same {
                            Vec::new()
                        } else {
                            stage.spent_before = 0;
                            std::mem::take(&mut stage.phases).concat()
                        }
                    }
                    None => Vec::new(),
                };
                for task in stale {
                    self.tasks.remove(&task);
                    fx.dropped_tasks.insert(task);
                }
                fx.actions.push(Action::LookUp {
                    job: id.into(),
                    stage: name,
                    output,
                    key,
                });
            }
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
                state: TaskState::Waiting {
                    since: now,
                    not_before: now,
                    reason: "waits for a worker".into(),
                },
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
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if matches!(task.state, TaskState::Failed(_) | TaskState::Cancelled) {
            (task.failures, task.losses) = (0, 0);
            task.state = TaskState::Waiting {
                since: now,
                not_before: now,
                reason: "waits for a worker".into(),
            };
            fx.tasks.insert(id);
        }
    }

    /// Ends the job with a failure.
    pub(super) fn fail(&mut self, id: &str, failure: Failure, now: Millis, fx: &mut Effects) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let stage = job.stages.iter_mut().find(|s| s.state == StageState::Running);
        let place = stage.as_ref().map_or("", |s| s.name.as_str());
        fx.happened_to_job(now, id, place, Level::Error, failure.text.clone());
        if let Some(stage) = stage {
            stage.state = StageState::Failed;
            stage.reason.clone_from(&failure.text);
            stage.ended_at = now;
        }
        job.failure = Some(failure.clone());
        self.end(id, JobState::Failed, failure.text, None, now, fx);
    }

    fn end(
        &mut self,
        id: &str,
        state: JobState,
        reason: String,
        report: Option<String>,
        now: Millis,
        fx: &mut Effects,
    ) {
        fx.jobs.insert(id.into());
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.state = state;
        job.reason.clone_from(&reason);
        job.ended_at = now;
        job.report = report;
        for stage in &mut job.stages {
            if matches!(stage.state, StageState::Running | StageState::Waiting) && state != JobState::Succeeded {
                stage.state = StageState::Cancelled;
                // The failure itself is told once, by the stage that it happened in.
                stage.reason = match state {
                    JobState::Failed => "the job failed before".into(),
                    _ => format!("the job was stopped: {reason}"),
                };
                if stage.started_at > 0 {
                    stage.ended_at = now;
                }
            }
        }
        let open = self.tasks.values_mut().filter(|t| t.job == id);
        for task in open {
            match &task.state {
                TaskState::Leased(lease) => {
                    for member in &lease.members {
                        fx.actions.push(Action::Abort {
                            worker: member.worker.clone(),
                            abort: Abort {
                                task_id: task.id,
                                token: task.token,
                                reason: reason.clone(),
                            },
                        });
                    }
                }
                TaskState::Waiting { .. } => {}
                TaskState::Done(_) | TaskState::Failed(_) | TaskState::Cancelled => continue,
            }
            task.state = TaskState::Cancelled;
            fx.tasks.insert(task.id);
        }
    }
}

fn reset(stage: Stage, now: Millis) -> Stage {
    Stage {
        // What a complete stage took is told by its manifest.
        spent_before: if stage.is_complete() { 0 } else { stage.spent(now) },
        state: StageState::Waiting,
        reason: String::new(),
        manifest: None,
        started_at: 0,
        ended_at: 0,
        ..stage
    }
}

fn results_before(job: &Job) -> BTreeMap<StageName, Manifest> {
    let complete = job.stages.iter().filter(|s| s.is_complete());
    complete.filter_map(|s| Some((s.name, s.manifest.clone()?))).collect()
}

fn unplanned(error: &PlanError) -> Failure {
    Failure {
        kind: FailureKind::Internal.into(),
        text: error.to_string(),
    }
}
