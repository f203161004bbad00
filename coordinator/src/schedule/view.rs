//! The cluster as people see it.

use std::collections::BTreeMap;

use llink_proto as proto;
use llink_proto::task::Kind;

use super::{Cluster, Job, Pursuit, Stage, TaskRecord, TaskState};

/// Warnings of a stage that are shown; its manifest has all of them.
const MOST_WARNINGS: usize = 200;

impl Cluster {
    /// A job as the gRPC contract shows it.
    #[must_use]
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
            ended_at: job.ended_at,
            failure: job.failure.clone(),
            report_json: job.report.clone().unwrap_or_default(),
            workers: self.workers.len() as u32,
            warnings: crate::job::warnings(&job.file),
        })
    }

    fn stage_view(&self, job: &Job, stage: &Stage) -> proto::Stage {
        // Who follows another job sees how far that one is.
        let leader = match &stage.pursuit {
            Pursuit::Follows(leader) => self.jobs.get(leader),
            _ => None,
        };
        let led = leader.and_then(|job| job.stages.iter().find(|led| led.name == stage.name));
        let shown = led.unwrap_or(stage);
        let newest = shown.phases.last().map(Vec::as_slice).unwrap_or_default();
        let tasks: Vec<&TaskRecord> = newest.iter().filter_map(|id| self.tasks.get(id)).collect();
        let (mut done, mut total, mut tasks_done) = (0, 0, 0);
        let mut figures = BTreeMap::new();
        let mut parts: Vec<proto::StagePart> = Vec::new();
        for task in &tasks {
            let (task_done, task_total) = progress(task);
            done += task_done;
            total += task_total;
            if let Some(name) = part(task) {
                add_to(&mut parts, name, task_done, task_total);
            }
            tasks_done += u32::from(matches!(task.state, TaskState::Done(_)));
            if let TaskState::Leased(lease) = &task.state
                && let Some(first) = lease.members.first()
            {
                figures.extend(first.figures.clone());
            }
        }
        proto::Stage {
            name: stage.name.to_string(),
            state: stage.state.into(),
            reason: self.reason(job, stage, &tasks),
            key: stage.key.clone(),
            done,
            total,
            unit: stage.name.unit().into(),
            tasks_done,
            tasks_total: tasks.len() as u32,
            started_at: stage.started_at,
            ended_at: stage.ended_at,
            figures: match &stage.manifest {
                Some(manifest) => manifest.figures.clone(),
                None => figures,
            },
            warnings: match &stage.manifest {
                Some(manifest) => manifest.warnings.iter().take(MOST_WARNINGS).cloned().collect(),
                None => Vec::new(),
            },
            details: Vec::new(),
            parts,
        }
    }

    /// What a stage waits for: the stage before it, or what its waiting tasks wait for when none is at work.
    fn reason(&self, job: &Job, stage: &Stage, tasks: &[&TaskRecord]) -> String {
        if stage.state == proto::StageState::Waiting {
            let before = job
                .stages
                .iter()
                .take_while(|s| s.name != stage.name)
                .filter(|s| !s.is_complete());
            return before
                .last()
                .map_or_else(String::new, |s| format!("waits for {}", s.name));
        }
        let at_work = tasks.iter().any(|t| matches!(t.state, TaskState::Leased(_)));
        let waiting = tasks.iter().find_map(|t| match &t.state {
            TaskState::Waiting { reason, .. } => Some(format!("{}: {reason}", stage.reason)),
            _ => None,
        });
        match waiting {
            Some(waiting) if !at_work && stage.state == proto::StageState::Running => waiting,
            _ => stage.reason.clone(),
        }
    }
}

/// The part of its stage's progress that a task belongs to: shards to embed go through one of two models.
fn part(task: &TaskRecord) -> Option<&'static str> {
    match &task.spec.kind {
        Some(Kind::EmbedShard(shard)) => match shard.model.as_ref()?.role() {
            proto::ModelRole::Encoder => Some("encoder"),
            proto::ModelRole::Decoder => Some("teacher"),
            proto::ModelRole::Unspecified => None,
        },
        _ => None,
    }
}

fn add_to(parts: &mut Vec<proto::StagePart>, name: &str, done: u64, total: u64) {
    match parts.iter_mut().find(|part| part.name == name) {
        Some(part) => (part.done, part.total) = (part.done + done, part.total + total),
        None => parts.push(proto::StagePart {
            name: name.into(),
            done,
            total,
        }),
    }
}

/// Done and total of a task, in the stage's unit.
fn progress(task: &TaskRecord) -> (u64, u64) {
    match &task.state {
        TaskState::Done(_) => (task.weight.max(1), task.weight.max(1)),
        TaskState::Leased(lease) => {
            let (done, total) = lease.members.first().map_or((0, 0), |m| m.progress);
            if task.weight == 0 {
                (done, total)
            } else if total == 0 {
                (0, task.weight)
            } else {
                (
                    (u128::from(done.min(total)) * u128::from(task.weight) / u128::from(total)) as u64,
                    task.weight,
                )
            }
        }
        _ => (0, task.weight),
    }
}
