//! The course of a job through its stages.

use std::collections::BTreeMap;

use llink_datasets::manifest::Manifest;
use llink_proto::{Failure, FailureKind, JobState, StageState};

use super::{Action, Cluster, Effects, Job, Level, Millis, Pursuit, Stage};
use crate::job::JobFile;
use crate::plan::{self, Inputs, PlanError, StageName};
use crate::report;

#[derive(Debug, Clone)]
pub struct NewJob {
    /// The id, derived from the job's content.
    pub id: String,
    /// The person who submitted the job first, where callers are authenticated.
    pub owner: Option<String>,
    pub file: JobFile,
    pub stamps: BTreeMap<String, String>,
    /// The trace of its submission, which leases carry to the workers; may be empty.
    pub trace: String,
}

impl NewJob {
    /// Returns a job of nobody in particular.
    pub fn new(id: impl Into<String>, file: JobFile) -> Self {
        Self { id: id.into(), owner: None, file, stamps: BTreeMap::new(), trace: String::new() }
    }
}

impl Cluster {
    /// Starts a job, or starts it again with all that it finished before. A job that already runs is left alone.
    pub fn submit(&mut self, new: NewJob, now: Millis, fx: &mut Effects) {
        let id = new.id.clone();
        let known = self.jobs.get(&id).map(|j| j.state);
        if known == Some(JobState::Running) {
            return;
        }
        // Keys and tasks stay. A stage whose key is the same continues where it stopped.
        let old = self.jobs.remove(&id);
        if let Some(old) = &old {
            self.ended.remove(&(old.ended_at.unwrap_or(0), id.clone()));
        }
        let mut old = old.map(|old| old.stages).unwrap_or_default();
        let stage = |name| match old.iter().position(|stage| stage.name == name) {
            Some(at) => reset(old.swap_remove(at), now),
            None => Stage::new(name),
        };
        let stages = StageName::of(&new.file).into_iter().map(stage).collect();
        let text = if known.is_some() { "submitted again" } else { "submitted" };
        fx.happened_to_job(now, &id, "", Level::Info, text);
        self.running.insert(id.clone());
        self.jobs.insert(
            id.clone(),
            Job {
                id: id.clone(),
                owner: new.owner,
                file: new.file,
                stamps: new.stamps,
                trace: new.trace,
                state: JobState::Running,
                reason: String::new(),
                stages,
                submitted_at: now,
                ended_at: None,
                failure: None,
                report: None,
            },
        );
        self.advance(&id, now, fx);
    }

    pub fn resume(&mut self, id: &str, now: Millis, fx: &mut Effects) -> Result<(), String> {
        let job = self.jobs.get(id).ok_or_else(|| format!("there is no job {id}"))?;
        let again = NewJob {
            id: id.into(),
            owner: job.owner.clone(),
            file: job.file.clone(),
            stamps: job.stamps.clone(),
            trace: job.trace.clone(),
        };
        self.submit(again, now, fx);
        Ok(())
    }

    /// Continues the jobs that were running when the coordinator stopped.
    pub fn wake(&mut self, now: Millis, fx: &mut Effects) {
        for id in self.running.clone() {
            if let Some(job) = self.jobs.get_mut(&id) {
                for stage in job.stages.iter_mut().filter(|s| !s.is_complete()) {
                    *stage = reset(stage.clone(), now);
                }
            }
            self.advance(&id, now, fx);
        }
    }

    /// Ends the jobs that were running when the coordinator stopped, because nobody asked this one to continue them.
    pub fn interrupt(&mut self, now: Millis, fx: &mut Effects) {
        for id in self.running.clone() {
            let why = "its coordinator ended before it did: submit it again to continue";
            fx.happened_to_job(now, &id, "", Level::Warn, why);
            self.end(&id, JobState::Cancelled, why.into(), now, fx);
        }
    }

    pub fn cancel(&mut self, id: &str, now: Millis, fx: &mut Effects) -> Result<(), String> {
        let job = self.jobs.get(id).ok_or_else(|| format!("there is no job {id}"))?;
        if job.state == JobState::Running {
            fx.happened_to_job(now, id, "", Level::Warn, "cancelled");
            self.end(id, JobState::Cancelled, "cancelled".into(), now, fx);
        }
        Ok(())
    }

    pub fn warn(&mut self, id: &str, text: String, now: Millis, fx: &mut Effects) {
        if self.jobs.contains_key(id) {
            fx.happened_to_job(now, id, "", Level::Warn, text);
        }
    }

    /// Starts the next stage that is not complete, or ends the job.
    pub(super) fn advance(&mut self, id: &str, now: Millis, fx: &mut Effects) {
        fx.jobs.insert(id.into());
        let Some(job) = self.jobs.get(id) else { return };
        let Some(next) = job.stages.iter().position(|s| !s.is_complete()) else {
            self.publish(id, now, fx);
            return;
        };
        let name = job.stages[next].name;
        let done = results_before(job);
        let inputs = Inputs { job: &job.file, stamps: &job.stamps, done: &done, claim: None };
        let key = match plan::stage_key(name, &inputs) {
            Err(e) => return self.fail(id, unplanned(&e), now, fx),
            Ok(key) => key,
        };
        let Some(stage) = self.stage_mut(id, name) else { return };
        stage.state = StageState::Running;
        stage.reason = "looking for an earlier result".into();
        stage.started_at = Some(now);
        stage.ended_at = None;
        if stage.key != key {
            let stale = std::mem::take(&mut stage.phases).concat();
            (stage.key, stage.spent_before, stage.claim) = (key, 0, None);
            self.drop_tasks(stale, fx);
        }
        self.pursue(id, name, now, fx);
    }

    /// Writes the report, since every stage is complete. The job succeeds once the report is written.
    fn publish(&mut self, id: &str, now: Millis, fx: &mut Effects) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let report = serde_json::to_string_pretty(&report::build(job, now)).expect("a report is plain data");
        job.reason = "writing the report".into();
        job.report = Some(report.clone());
        let manifests = job.stages.iter().filter_map(|stage| stage.manifest.as_ref());
        let files = manifests.flat_map(|manifest| &manifest.artifacts);
        fx.actions.push(Action::Publish {
            job: id.into(),
            output: job.file.output.clone(),
            report,
            files: files.map(|file| (file.path.clone(), file.bytes)).collect(),
        });
    }

    pub fn published(&mut self, id: &str, written: Result<(), Failure>, now: Millis, fx: &mut Effects) {
        let complete = |j: &Job| j.state == JobState::Running && j.stages.iter().all(Stage::is_complete);
        if !self.jobs.get(id).is_some_and(complete) {
            return;
        }
        match written {
            Err(failure) => self.fail(id, failure, now, fx),
            Ok(()) => {
                fx.happened_to_job(now, id, "", Level::Info, "succeeded");
                self.end(id, JobState::Succeeded, String::new(), now, fx);
            }
        }
    }

    pub(super) fn fail(&mut self, id: &str, failure: Failure, now: Millis, fx: &mut Effects) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let stage = job.stages.iter_mut().find(|s| s.state == StageState::Running);
        let place = stage.as_ref().map_or("", |s| s.name.as_str());
        fx.happened_to_job(now, id, place, Level::Error, failure.text.clone());
        if let Some(stage) = stage {
            stage.state = StageState::Failed;
            stage.reason.clone_from(&failure.text);
            stage.ended_at = Some(now);
        }
        job.failure = Some(failure.clone());
        self.end(id, JobState::Failed, failure.text, now, fx);
    }

    fn end(&mut self, id: &str, state: JobState, reason: String, now: Millis, fx: &mut Effects) {
        fx.jobs.insert(id.into());
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.state = state;
        job.reason.clone_from(&reason);
        job.ended_at = Some(now);
        if state != JobState::Succeeded {
            job.report = None;
        }
        for stage in &mut job.stages {
            if matches!(stage.state, StageState::Running | StageState::Waiting) && state != JobState::Succeeded {
                stage.state = StageState::Cancelled;
                // The stage where the failure happened reports it once.
                stage.reason = match state {
                    JobState::Failed => "the job failed before".into(),
                    _ => format!("the job was stopped: {reason}"),
                };
                stage.ended_at = stage.started_at.map(|_| now);
            }
        }
        self.running.remove(id);
        self.ended.insert((now, id.to_owned()));
        self.hand_over(id, now, fx);
        let own = self.tasks.of_job(id).map(|own| own.leased.union(&own.waiting).copied());
        for task in own.into_iter().flatten().collect::<Vec<_>>() {
            self.stop_task(task, &reason, now, fx);
        }
    }
}

fn reset(stage: Stage, now: Millis) -> Stage {
    Stage {
        // The manifest of a complete stage holds its time.
        spent_before: if stage.is_complete() { 0 } else { stage.spent(now) },
        state: StageState::Waiting,
        reason: String::new(),
        manifest: None,
        started_at: None,
        ended_at: None,
        pursuit: Pursuit::Idle,
        ..stage
    }
}

pub(super) fn results_before(job: &Job) -> BTreeMap<StageName, Manifest> {
    let complete = job.stages.iter().filter(|s| s.is_complete());
    complete.filter_map(|s| Some((s.name, s.manifest.clone()?))).collect()
}

pub(super) fn unplanned(error: &PlanError) -> Failure {
    Failure { kind: FailureKind::Internal.into(), text: error.to_string() }
}
