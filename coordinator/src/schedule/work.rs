//! Shared work. Jobs with the same output and the same key of a stage share its result. One of them leads, and its
//! tasks are computed. The others follow it and use its result. When the leader ends early, a follower takes the work
//! over with all finished and running tasks.

use std::collections::BTreeMap;

use llink_proto::StageState;

use super::timers::Due;
use super::{Action, Cluster, Effects, Job, Level, Millis, Pursuit, Stage, TaskState, Work};
use crate::plan::StageName;

/// The interval at which the work of another coordinator is looked up.
const LOOK_AGAIN: Millis = 1_000;

impl Pursuit {
    /// Returns whether the stage's job looks up, claims and computes the work.
    fn leads(&self) -> bool {
        match self {
            Self::LookingUp | Self::Elsewhere | Self::Computing => true,
            Self::Idle | Self::Follows(_) => false,
        }
    }
}

impl Work {
    pub(super) fn of(job: &Job, stage: &Stage) -> Self {
        Self { output: job.file.output.trim_end_matches('/').to_owned(), stage: stage.name, key: stage.key.clone() }
    }
}

impl Cluster {
    pub(super) fn leader(&self, work: &Work) -> Option<String> {
        let leads = |job: &&Job| job.stage(work.stage).is_some_and(|s| s.pursuit.leads() && Work::of(job, s) == *work);
        self.running_jobs().find(leads).map(|job| job.id.clone())
    }

    /// Returns the jobs that follow `leader` in a stage, the oldest first.
    pub(super) fn followers(&self, leader: &str, stage: StageName) -> Vec<String> {
        let follows = |job: &&Job| job.stage(stage).is_some_and(|s| s.pursuit == Pursuit::Follows(leader.into()));
        let mut found: Vec<&Job> = self.running_jobs().filter(follows).collect();
        found.sort_by_key(|job| job.submitted_at);
        found.into_iter().map(|job| job.id.clone()).collect()
    }

    /// Starts to obtain the result of a stage with a known key, by following the leader or by leading.
    pub(super) fn pursue(&mut self, id: &str, name: StageName, now: Millis, fx: &mut Effects) {
        let Some(work) = self.work(id, name) else { return };
        if let Some(leader) = self.leader(&work) {
            self.follow(id, name, &leader);
            // Nobody leases the tasks that it planned before a restart, and later tasks would wait behind them forever.
            let own = self.stage(id, name).map(|stage| stage.phases.concat());
            for task in own.into_iter().flatten() {
                self.stop_task(task, "another job computes the stage", now, fx);
            }
            let text = format!("job {leader} is computing this stage: its result is waited for");
            return fx.happened_to_job(now, id, name.as_str(), Level::Info, text);
        }
        if let Some(other) = self.left_by(id, &work) {
            self.move_work(&other, id, name, now, fx);
        }
        self.look_up(id, name, fx);
    }

    fn follow(&mut self, id: &str, name: StageName, leader: &str) {
        if let Some(stage) = self.stage_mut(id, name) {
            stage.reason = format!("job {leader} is computing this stage");
            stage.pursuit = Pursuit::Follows(leader.into());
        }
    }

    fn look_up(&mut self, id: &str, name: StageName, fx: &mut Effects) {
        let Some(work) = self.work(id, name) else { return };
        let kept = self.kept_files(id, name);
        let Some(stage) = self.stage_mut(id, name) else { return };
        stage.pursuit = Pursuit::LookingUp;
        fx.actions.push(Action::LookUp { work, claim: stage.claim.clone(), kept });
    }

    /// Waits for another coordinator that computes the stage, and looks again after a delay.
    pub(super) fn is_elsewhere(&mut self, id: &str, name: StageName, who: &str, now: Millis, fx: &mut Effects) {
        let due = Due::Stage { job: id.into(), stage: name };
        self.timers.set(now + LOOK_AGAIN, due);
        let Some(stage) = self.stage_mut(id, name) else { return };
        let open = match std::mem::replace(&mut stage.pursuit, Pursuit::Elsewhere) {
            Pursuit::Elsewhere => Vec::new(),
            _ => stage.phases.concat(),
        };
        let reason = format!("another coordinator, {who}, is computing this stage");
        if stage.reason != reason {
            let text = format!("{reason}: its result is waited for");
            stage.reason = reason;
            fx.jobs.insert(id.into());
            fx.happened_to_job(now, id, name.as_str(), Level::Warn, text);
        }
        for task in open {
            self.stop_task(task, "another coordinator computes this stage", now, fx);
        }
    }

    pub(super) fn look_again(&mut self, id: &str, name: StageName, fx: &mut Effects) {
        if self.stage(id, name).is_some_and(|stage| stage.pursuit == Pursuit::Elsewhere) {
            self.look_up(id, name, fx);
        }
    }

    pub(super) fn share_result(
        &mut self,
        leader: &str,
        name: StageName,
        followers: Vec<String>,
        now: Millis,
        fx: &mut Effects,
    ) {
        let manifest = self.stage(leader, name).and_then(|stage| stage.manifest.clone());
        for id in &followers {
            if let Some(stage) = self.stage_mut(id, name) {
                stage.state = StageState::Cached;
                stage.pursuit = Pursuit::Idle;
                stage.reason = format!("job {leader} computed it");
                stage.manifest.clone_from(&manifest);
                stage.ended_at = Some(now);
                fx.manifests.insert((id.clone(), name));
            }
        }
        for id in followers {
            self.advance(&id, now, fx);
        }
    }

    /// Hands the stage of an ended job to its oldest follower. Without a follower, the claim is given up.
    pub(super) fn hand_over(&mut self, id: &str, now: Millis, fx: &mut Effects) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let Some(stage) = job.stages.iter_mut().find(|s| s.pursuit != Pursuit::Idle) else {
            return;
        };
        let led = std::mem::take(&mut stage.pursuit).leads();
        let (name, claim) = (stage.name, stage.claim.clone());
        let Some(work) = self.work(id, name).filter(|_| led) else {
            return;
        };
        let followers = self.followers(id, name);
        let Some((next, others)) = followers.split_first() else {
            fx.actions.extend(claim.map(|claim| Action::Release { work, claim }));
            return;
        };
        self.move_work(id, next, name, now, fx);
        let text = format!("job {id} has ended: this job continues to compute the stage");
        fx.happened_to_job(now, next, name.as_str(), Level::Info, text);
        others.iter().for_each(|other| self.follow(other, name, next));
        fx.jobs.extend(followers.iter().cloned());
        self.look_up(next, name, fx);
    }

    /// Returns a job that began the work earlier and does not pursue it now.
    fn left_by(&self, id: &str, work: &Work) -> Option<String> {
        let begun = |job: &&Job| {
            let left = |s: &Stage| !s.is_complete() && !s.phases.is_empty() && s.pursuit == Pursuit::Idle;
            job.stages.iter().any(|s| left(s) && Work::of(job, s) == *work)
        };
        if !self.stage(id, work.stage)?.phases.is_empty() {
            return None;
        }
        self.jobs.values().filter(|job| job.id != id).find(begun).map(|job| job.id.clone())
    }

    /// Moves a stage's tasks and its claim to another job. Running tasks go on for that job.
    fn move_work(&mut self, from: &str, to: &str, name: StageName, now: Millis, fx: &mut Effects) {
        let Some(stage) = self.stage_mut(from, name) else {
            return;
        };
        let (phases, claim) = (std::mem::take(&mut stage.phases), stage.claim.take());
        let spent = stage.spent(now);
        let job = self.tasks.name(to);
        for id in phases.iter().flatten() {
            if let Some(mut task) = self.tasks.remove(*id) {
                task.job = job.clone();
                self.tasks.insert(task);
                fx.tasks.insert(*id);
            }
        }
        let Some(stage) = self.stage_mut(to, name) else { return };
        let own = std::mem::replace(&mut stage.phases, phases);
        stage.claim = claim.or(stage.claim.take());
        (stage.started_at, stage.spent_before) = (Some(now), spent);
        self.drop_tasks(own.concat(), fx);
        fx.jobs.extend([from.to_owned(), to.to_owned()]);
    }

    pub(super) fn drop_tasks(&mut self, tasks: Vec<u64>, fx: &mut Effects) {
        for task in tasks {
            let dropped = self.tasks.remove(task);
            fx.drop_pack(dropped.map(|task| task.packed));
            fx.tasks.remove(&task);
            fx.dropped_tasks.insert(task);
        }
        self.tasks.forget_names();
    }

    /// Ends the tasks of a stage that another coordinator took over, and asks the store again.
    pub fn claim_lost(&mut self, work: &Work, attempt: &str, now: Millis, fx: &mut Effects) {
        let Some(id) = self.leader(work) else { return };
        let Some(stage) = self.stage_mut(&id, work.stage) else {
            return;
        };
        if stage.claim.as_ref().is_none_or(|claim| claim.attempt != attempt) {
            return;
        }
        let tasks: Vec<u64> = stage.phases.concat();
        let text = "another coordinator took this stage over";
        fx.happened_to_job(now, &id, work.stage.as_str(), Level::Warn, text);
        for task in tasks {
            self.stop_task(task, text, now, fx);
        }
        self.look_up(&id, work.stage, fx);
    }

    pub(super) fn stop_task(&mut self, id: u64, why: &str, now: Millis, fx: &mut Effects) {
        let Some(task) = self.tasks.get(&id) else { return };
        match &task.state {
            TaskState::Leased(lease) => {
                fx.abort(id, task.token, lease, why);
                fx.ended(id, task.token, lease, now, why);
            }
            TaskState::Waiting { .. } => {}
            TaskState::Done(_) | TaskState::Failed(_) | TaskState::Cancelled => return,
        }
        self.tasks.change(id, |task| task.state = TaskState::Cancelled);
        fx.tasks.insert(id);
    }

    pub(super) fn work(&self, id: &str, name: StageName) -> Option<Work> {
        let job = self.jobs.get(id)?;
        job.stage(name).map(|stage| Work::of(job, stage))
    }

    /// Returns the files that the stage's finished tasks wrote, with their sizes in bytes.
    fn kept_files(&self, id: &str, name: StageName) -> BTreeMap<String, u64> {
        let tasks = self.stage(id, name).into_iter().flat_map(|stage| stage.phases.iter().flatten());
        let files = tasks.flat_map(|task| self.files_of(*task));
        files.map(|file| (file.path, file.bytes)).collect()
    }
}
