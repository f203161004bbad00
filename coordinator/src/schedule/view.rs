//! The views of the cluster for people.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use llink_proto as proto;

use super::tasks::{PartTally, Tally};
use super::{Cluster, Job, Millis, Pursuit, Stage, TaskRecord, TaskState, Worker};
use crate::plan::StageName;

/// The most warnings of a stage that are shown. Its manifest has all of them.
const MOST_WARNINGS: usize = 200;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerView {
    pub info: proto::RegisterRequest,
    pub listening: bool,
    /// The leases of the worker: the one at work first, then those that it reads ahead for.
    pub leases: Vec<LeaseView>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct LeaseView {
    pub job: String,
    pub stage: String,
    pub task: String,
    pub since: Millis,
    pub progress: (u64, u64),
    /// The rank and the world size.
    pub rank: (usize, usize),
}

impl Cluster {
    /// Returns the first workers by id, at most `most`.
    pub fn worker_views(&self, most: usize) -> Vec<WorkerView> {
        let view = |(id, worker): (&String, &Worker)| WorkerView {
            info: worker.info.clone(),
            listening: worker.listening,
            leases: worker.seats.iter().filter_map(|(task, _)| self.lease_view(id, *task)).collect(),
        };
        self.workers.iter().take(most).map(view).collect()
    }

    fn lease_view(&self, worker: &str, task: u64) -> Option<LeaseView> {
        let task = self.tasks.get(&task)?;
        let TaskState::Leased(lease) = &task.state else {
            return None;
        };
        let rank = lease.members.iter().position(|member| member.worker == worker)?;
        Some(LeaseView {
            job: task.job.to_string(),
            stage: task.stage.to_string(),
            task: task.label(),
            since: lease.since,
            progress: lease.members[rank].progress,
            rank: (rank, lease.members.len()),
        })
    }

    pub fn view(&self, id: &str) -> Option<proto::Job> {
        let job = self.jobs.get(id)?;
        Some(proto::Job {
            id: job.id.clone(),
            name: job.file.name.clone(),
            state: job.state.into(),
            reason: job.reason.clone(),
            stages: job.stages.iter().map(|s| self.stage_view(job, s)).collect(),
            output_url: job.file.output.clone(),
            submitted_at: job.submitted_at,
            ended_at: job.ended_at.unwrap_or_default(),
            failure: job.failure.clone(),
            report_json: job.report.clone().unwrap_or_default(),
            workers: self.workers.len() as u32,
            warnings: crate::job::warnings(&job.file),
        })
    }

    fn stage_view(&self, job: &Job, stage: &Stage) -> proto::Stage {
        // A job that follows another shows the progress of that one.
        let leader = match &stage.pursuit {
            Pursuit::Follows(leader) => self.jobs.get(leader),
            _ => None,
        };
        let led = leader.and_then(|job| job.stages.iter().find(|led| led.name == stage.name));
        let shown = led.unwrap_or(stage);
        // The shown tasks belong to the job that computes the stage.
        let of = if led.is_some() { leader.unwrap_or(job) } else { job };
        let phase = shown.phases.len().wrapping_sub(1);
        let tally = self.tasks.tally(&of.id, stage.name, phase);
        let mut parts: Vec<Part> = tally.into_iter().flat_map(Tally::parts).map(Part::of).collect();
        let mut figures = BTreeMap::new();
        for task in self.at_work(of, stage.name, phase) {
            let (task_done, task_total) = progress(task);
            if let Some(part) = parts.iter_mut().find(|part| part.name == task.part) {
                (part.done, part.total) = (part.done + task_done, part.total + task_total);
            }
            if let TaskState::Leased(lease) = &task.state
                && let Some(first) = lease.members.first()
            {
                figures.extend(first.figures.clone());
            }
        }
        let done = parts.iter().map(|part| part.done).sum();
        let total = parts.iter().map(|part| part.total).sum();
        proto::Stage {
            name: stage.name.to_string(),
            state: stage.state.into(),
            reason: self.reason(job, stage, of, phase),
            key: stage.key.clone(),
            done,
            total,
            unit: stage.name.unit().into(),
            tasks_done: tally.map_or(0, |tally| tally.done) as u32,
            tasks_total: tally.map_or(0, |tally| tally.tasks) as u32,
            started_at: stage.started_at.unwrap_or_default(),
            ended_at: stage.ended_at.unwrap_or_default(),
            figures: match &stage.manifest {
                Some(manifest) => manifest.figures.clone(),
                None => figures,
            },
            warnings: match &stage.manifest {
                Some(manifest) => manifest.warnings.iter().take(MOST_WARNINGS).cloned().collect(),
                None => Vec::new(),
            },
            details: Vec::new(),
            parts: parts.into_iter().filter_map(Part::shown).collect(),
        }
    }

    fn at_work(&self, job: &Job, stage: StageName, phase: usize) -> impl Iterator<Item = &TaskRecord> {
        let leased = self.tasks.of_job(&job.id).into_iter().flat_map(|own| &own.leased);
        let tasks = leased.filter_map(|id| self.tasks.get(id));
        tasks.filter(move |task| task.stage == stage && task.phase == phase)
    }

    /// Returns the reason of a stage's state. A waiting stage names the stage before it. A running stage adds the wait
    /// of its tasks when none is at work, or when the job may have no more workers.
    fn reason(&self, job: &Job, stage: &Stage, of: &Job, phase: usize) -> String {
        if stage.state == proto::StageState::Waiting {
            let before = job.stages.iter().take_while(|s| s.name != stage.name).filter(|s| !s.is_complete());
            return before.last().map_or_else(String::new, |s| format!("waits for {}", s.name));
        }
        if stage.state != proto::StageState::Running {
            return stage.reason.clone();
        }
        let is_at_work = self.at_work(of, stage.name, phase).next().is_some();
        let waiting = self.tasks.of_job(&of.id).and_then(|own| own.waiting.first());
        let waiting = waiting.and_then(|id| self.tasks.get(id));
        match waiting.filter(|task| task.stage == stage.name && task.phase == phase) {
            Some(task) if !is_at_work || self.is_held(task) => format!("{}: {}", stage.reason, self.waits_for(task)),
            _ => stage.reason.clone(),
        }
    }
}

struct Part {
    name: Option<&'static str>,
    done: u64,
    total: u64,
}

impl Part {
    /// Returns the progress without the tasks at work.
    fn of(tally: &PartTally) -> Self {
        Self { name: tally.name, done: tally.done, total: tally.done + tally.open }
    }

    fn shown(self) -> Option<proto::StagePart> {
        Some(proto::StagePart { name: self.name?.into(), done: self.done, total: self.total })
    }
}

/// Returns the done and total amounts of a task, in the stage's unit.
fn progress(task: &TaskRecord) -> (u64, u64) {
    let told = match &task.state {
        TaskState::Leased(lease) => lease.members.first().map_or((0, 0), |m| m.progress),
        _ => (0, 0),
    };
    match (told, task.weight.map(NonZeroU64::get)) {
        (told, None) => told,
        ((_, 0), Some(weight)) => (0, weight),
        ((done, total), Some(weight)) => {
            let share = u128::from(done.min(total)) * u128::from(weight) / u128::from(total);
            (share as u64, weight)
        }
    }
}
