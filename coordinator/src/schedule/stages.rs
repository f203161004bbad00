//! The course of a stage from its key to its manifest.

use std::collections::BTreeSet;

use llink_datasets::manifest::Manifest;
use llink_datasets::measured::{self, TrainingTime};
use llink_proto::{Artifact, Failure, StageState, TaskResult};

use super::jobs::{results_before, unplanned};
use super::{Action, Cluster, Effects, Job, Level, Millis, Packed, Pursuit, Stage, TaskRecord, TaskState, Work};
use crate::plan::{self, Claim, Inputs, Phase, PlanError, PlannedTask, PlannedTasks, StageName, Traits};

#[derive(Debug, Clone, PartialEq)]
pub enum LookedUp {
    /// The stage is committed, and all its files are there.
    Whole(Box<Manifest>),
    Claimed {
        claim: Claim,
        /// The files of the question that are gone or have another size.
        lost: BTreeSet<String>,
        damage: Option<String>,
    },
    Elsewhere {
        who: String,
    },
}

impl Cluster {
    pub fn looked_up(&mut self, work: &Work, found: Result<LookedUp, Failure>, now: Millis, fx: &mut Effects) {
        let (leader, name) = (self.leader(work), work.stage);
        let waits = |s: &Stage| matches!(s.pursuit, Pursuit::LookingUp | Pursuit::Elsewhere);
        let stage = leader.as_ref().and_then(|id| self.stage_mut(id, name));
        let held = stage.as_ref().and_then(|stage| stage.claim.clone());
        // An answer that comes too late for the job that asked also serves the present leader, if it waits for one.
        let (Some(id), true) = (leader, stage.is_some_and(|stage| waits(stage))) else {
            if let Ok(LookedUp::Claimed { claim, .. }) = found
                && held.is_none_or(|held| held.attempt != claim.attempt)
            {
                let work = work.clone();
                fx.actions.push(Action::Release { work, claim });
            }
            return;
        };
        match found {
            Err(failure) => self.fail(&id, failure, now, fx),
            Ok(LookedUp::Elsewhere { who }) => self.is_elsewhere(&id, name, &who, now, fx),
            Ok(LookedUp::Whole(manifest)) => {
                let reason = "found finished under the same key";
                self.complete(&id, name, StageState::Cached, reason, *manifest, now, fx);
            }
            Ok(LookedUp::Claimed { claim, lost, damage }) => {
                if let Some(damage) = damage {
                    fx.happened_to_job(now, &id, name.as_str(), Level::Warn, damage);
                }
                self.compute(&id, name, claim, &lost, now, fx);
            }
        }
    }

    /// Computes a claimed stage from where it stopped.
    fn compute(
        &mut self,
        id: &str,
        name: StageName,
        claim: Claim,
        lost: &BTreeSet<String>,
        now: Millis,
        fx: &mut Effects,
    ) {
        let Some(stage) = self.stage_mut(id, name) else { return };
        stage.pursuit = Pursuit::Computing;
        let before = stage.claim.replace(claim.clone());
        fx.jobs.insert(id.into());
        if before.is_some_and(|before| before.apart != claim.apart) {
            // Another attempt may have written where the old tasks wrote.
            let stale = std::mem::take(&mut stage.phases).concat();
            self.drop_tasks(stale, fx);
        }
        self.forget_lost(id, name, lost, now, fx);
        let kept = self.stage_mut(id, name).map(|stage| stage.phases.concat());
        for task in kept.into_iter().flatten() {
            self.requeue_unless_done(task, now, fx);
        }
        self.plan_last_phase_anew(id, name, now, fx);
        self.next_phase(id, name, now, fx);
    }

    pub fn committed(&mut self, work: &Work, written: Result<Manifest, Failure>, now: Millis, fx: &mut Effects) {
        let Some(id) = self.leader(work) else { return };
        match written {
            Err(failure) => self.fail(&id, failure, now, fx),
            Ok(manifest) => {
                fx.happened_to_job(now, &id, work.stage.as_str(), Level::Info, "done");
                self.complete(&id, work.stage, StageState::Done, "", manifest, now, fx);
            }
        }
    }

    /// Completes the stage for its job and for all jobs that follow it.
    #[expect(clippy::too_many_arguments, reason = "what is known of an end")]
    fn complete(
        &mut self,
        id: &str,
        name: StageName,
        state: StageState,
        reason: &str,
        manifest: Manifest,
        now: Millis,
        fx: &mut Effects,
    ) {
        let Some(stage) = self.stage_mut(id, name) else { return };
        (stage.state, stage.reason) = (state, reason.into());
        (stage.pursuit, stage.claim) = (Pursuit::Idle, None);
        stage.ended_at = Some(now);
        stage.manifest = Some(manifest);
        fx.manifests.insert((id.into(), name));
        for task in stage.phases.concat() {
            self.stop_task(task, "the stage is finished", now, fx);
        }
        let followers = self.followers(id, name);
        self.advance(id, now, fx);
        self.share_result(id, name, followers, now, fx);
    }

    /// Returns the files that a finished task wrote. Artifacts without a hash are plans of a later phase.
    pub(super) fn files_of(&self, task: u64) -> impl Iterator<Item = Artifact> + use<> {
        let result = match self.tasks.get(&task).map(|t| &t.state) {
            Some(TaskState::Done(result)) => Some(result.decode()),
            _ => None,
        };
        let artifacts = result.into_iter().flat_map(|result| result.artifacts);
        artifacts.filter(|artifact| !artifact.sha256.is_empty())
    }

    /// Resets the tasks whose files are gone, and drops the phases that were planned from their results.
    fn forget_lost(&mut self, id: &str, name: StageName, lost: &BTreeSet<String>, now: Millis, fx: &mut Effects) {
        if lost.is_empty() {
            return;
        }
        let Some(stage) = self.stage(id, name) else { return };
        let is_lost = |task: &u64| self.files_of(*task).any(|file| lost.contains(&file.path));
        let Some(first) = stage.phases.iter().position(|phase| phase.iter().any(is_lost)) else {
            return;
        };
        let again: Vec<u64> = stage.phases[first].iter().copied().filter(is_lost).collect();
        let text = format!("{} earlier files are gone or have another size: they are made again", lost.len());
        fx.happened_to_job(now, id, name.as_str(), Level::Warn, text);
        for task in again {
            self.requeue(task, now, fx);
        }
        let later = self.stage_mut(id, name).map(|stage| stage.phases.split_off(first + 1));
        self.drop_tasks(later.unwrap_or_default().concat(), fx);
    }

    /// Replaces the open tasks by those that this job would plan. Another job with another endpoint or checkpoint
    /// interval may have planned them, or an attempt that wrote elsewhere.
    fn plan_last_phase_anew(&mut self, id: &str, name: StageName, now: Millis, fx: &mut Effects) {
        let Some(job) = self.jobs.get(id) else { return };
        let Some(stage) = job.stage(name) else { return };
        let Some((last, before)) = stage.phases.split_last() else {
            return;
        };
        let (Some(results), None) = (self.results(before), self.results(std::slice::from_ref(last))) else {
            return;
        };
        let last = last.clone();
        let (label, planned) = match plan_phase(job, stage, &results) {
            Ok(Phase::Tasks { label, tasks }) if tasks.len() == last.len() => (label, tasks),
            _ => {
                let stage = self.stage_mut(id, name);
                stage.and_then(|stage| stage.phases.pop());
                return self.drop_tasks(last, fx);
            }
        };
        let differs = |(id, planned): &(u64, PlannedTask)| {
            let open = self.tasks.get(id).filter(|task| !matches!(task.state, TaskState::Done(_)));
            open.is_some_and(|task| task.spec() != planned.spec || task.ranks != planned.ranks)
        };
        let anew: Vec<(u64, PlannedTask)> = last.into_iter().zip(planned.iter()).filter(differs).collect();
        if let Some(stage) = self.stage_mut(id, name) {
            stage.reason = label;
        }
        let (ids, anew): (Vec<u64>, Vec<PlannedTask>) = anew.into_iter().unzip();
        let packed = PlannedTasks::from_iter(anew).packed(&mut self.next_pack);
        let packed: Vec<(Packed, Traits)> = packed.collect();
        fx.add_packs(packed.iter().map(|(packed, _)| packed));
        for (id, (packed, traits)) in ids.into_iter().zip(packed) {
            self.stop_task(id, "the task is planned anew", now, fx);
            let model = traits.model.map(|model| self.tasks.name(&model));
            let before = self.tasks.change(id, |task| {
                (task.model, task.part) = (model, traits.part);
                (task.ranks, task.weight) = (traits.ranks, traits.weight);
                std::mem::replace(&mut task.packed, packed)
            });
            fx.drop_pack(before);
            self.requeue(id, now, fx);
        }
    }

    /// Plans phases until one has tasks that are not done, or the stage is complete.
    pub(super) fn next_phase(&mut self, id: &str, name: StageName, now: Millis, fx: &mut Effects) {
        loop {
            let Some(job) = self.jobs.get(id) else { return };
            let Some(stage) = job.stage(name).filter(|stage| stage.pursuit == Pursuit::Computing) else {
                return;
            };
            let is_done = |phase| self.tasks.tally(id, name, phase).is_none_or(|tally| tally.done == tally.tasks);
            if !(0..stage.phases.len()).all(is_done) {
                return;
            }
            fx.jobs.insert(id.into());
            let Some(results) = self.results(&stage.phases) else {
                return;
            };
            match plan_phase(job, stage, &results) {
                Err(e) => return self.fail(id, unplanned(&e), now, fx),
                Ok(Phase::Complete(mut manifest)) => {
                    // The stage's whole time includes lost gangs and repeated steps.
                    if let Some(time) = measured::get::<TrainingTime>(&manifest.figures, "") {
                        let share = time.step_seconds * 1000.0 / stage.spent(now).max(1) as f64;
                        let effective_time = Some(share.min(1.0));
                        let time = TrainingTime { effective_time, ..time };
                        measured::put(&mut manifest.figures, "", &time);
                    }
                    fx.actions.push(Action::Commit {
                        work: Work::of(job, stage),
                        claim: stage.claim.clone().unwrap_or_default(),
                        manifest: Box::new(manifest),
                    });
                    if let Some(stage) = self.stage_mut(id, name) {
                        stage.reason = "committing".into();
                    }
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
        tasks: PlannedTasks,
        now: Millis,
        fx: &mut Effects,
    ) {
        let phase = self.stage_mut(id, name).map_or(0, |s| s.phases.len());
        let packed: Vec<(Packed, Traits)> = tasks.packed(&mut self.next_pack).collect();
        fx.add_packs(packed.iter().map(|(packed, _)| packed));
        let job = self.tasks.name(id);
        let mut ids = Vec::with_capacity(packed.len());
        for (index, (packed, traits)) in packed.into_iter().enumerate() {
            let task = TaskRecord {
                id: self.next_task,
                job: job.clone(),
                stage: name,
                phase,
                index,
                packed,
                model: traits.model.map(|model| self.tasks.name(&model)),
                part: traits.part,
                weight: traits.weight,
                ranks: traits.ranks,
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
            self.tasks.insert(task);
        }
        if let Some(stage) = self.stage_mut(id, name) {
            stage.reason = label;
            stage.phases.push(ids);
        }
    }

    fn results(&self, phases: &[Vec<u64>]) -> Option<Vec<Vec<TaskResult>>> {
        let result = |id: &u64| match self.tasks.get(id).map(|t| &t.state) {
            Some(TaskState::Done(result)) => Some(result.decode()),
            _ => None,
        };
        phases.iter().map(|phase| phase.iter().map(result).collect()).collect()
    }

    fn requeue_unless_done(&mut self, id: u64, now: Millis, fx: &mut Effects) {
        let state = self.tasks.get(&id).map(|task| &task.state);
        if matches!(state, Some(TaskState::Failed(_) | TaskState::Cancelled)) {
            self.requeue(id, now, fx);
        }
    }

    fn requeue(&mut self, id: u64, now: Millis, fx: &mut Effects) {
        self.tasks.change(id, |task| {
            (task.failures, task.losses) = (0, 0);
            task.state = to_be_leased(now);
        });
        fx.tasks.insert(id);
    }
}

fn plan_phase(job: &Job, stage: &Stage, results: &[Vec<TaskResult>]) -> Result<Phase, PlanError> {
    let inputs =
        Inputs { job: &job.file, stamps: &job.stamps, done: &results_before(job), claim: stage.claim.as_ref() };
    plan::phase(stage.name, &stage.key, &inputs, results)
}

fn to_be_leased(now: Millis) -> TaskState {
    TaskState::Waiting { since: now, not_before: now }
}
