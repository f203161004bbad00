//! The effects of a step: what must be saved, and the actions that follow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use llink_datasets::manifest::Manifest;
use llink_datasets::shown::redacted;
use llink_proto::{Abort, Assignment};

use super::{Lease, Member, MemberState, Millis, Pack, Packed, TaskRecord, Work};
use crate::plan::{Claim, StageName};

/// The effects of a step. The fields stand in the order in which they are saved and done.
#[derive(Debug, Default)]
pub struct Effects {
    pub jobs: BTreeSet<String>,
    pub tasks: BTreeSet<u64>,
    /// The stages whose manifest has changed and is to be saved.
    pub manifests: BTreeSet<(String, StageName)>,
    pub packs: Vec<Arc<Pack>>,
    /// The ids of tasks to delete, because their stage is planned anew.
    pub dropped_tasks: BTreeSet<u64>,
    /// The ids of packs that no task uses any more.
    pub dropped_packs: BTreeSet<u64>,
    /// The ids of folded jobs, whose events about single tasks are deleted.
    pub folded: BTreeSet<String>,
    pub events: Vec<Happening>,
    /// The attempts that ended without the task's result.
    pub attempts: Vec<Attempt>,
    pub actions: Vec<Action>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    pub at: Millis,
    pub job: String,
    /// The name of the stage, or an empty text.
    pub stage: String,
    /// The id of the task, or 0.
    pub task: u64,
    pub level: Level,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::AsRefStr)]
#[strum(serialize_all = "lowercase")]
pub enum Level {
    Info,
    Warn,
    Error,
}

/// The record of one member's part in a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub task: u64,
    pub token: u64,
    pub worker: String,
    pub rank: u32,
    pub began: Millis,
    pub ended: Millis,
    pub outcome: String,
}

/// An action for the coordinator's edges.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Start {
        worker: String,
        assignment: Box<Assignment>,
    },
    Abort {
        worker: String,
        abort: Abort,
    },
    /// Look up whether a stage is committed under its key with all its files, and claim it if it is not. The answer
    /// goes to [`Cluster::looked_up`]. Of the files in `kept`, which earlier tasks wrote, those with another size are lost.
    LookUp {
        work: Work,
        claim: Option<Claim>,
        kept: BTreeMap<String, u64>,
    },
    /// Check the stage's files and write its manifest last. The answer goes to [`Cluster::committed`].
    Commit {
        work: Work,
        claim: Claim,
        manifest: Box<Manifest>,
    },
    /// Give up a claim, because no job of this coordinator wants the stage any more.
    Release {
        work: Work,
        claim: Claim,
    },
    /// Close the stream of a worker that was given up, if it has one.
    Forget {
        worker: String,
    },
    /// Write the job's report. The answer goes to [`Cluster::published`]. The job succeeds only if all `files` have their
    /// sizes in bytes.
    Publish {
        job: String,
        output: String,
        report: String,
        files: BTreeMap<String, u64>,
    },
}

impl Effects {
    pub fn change_nothing(&self) -> bool {
        let Self { jobs, tasks, manifests, packs, dropped_tasks, dropped_packs, folded, events, attempts, actions: _ } =
            self;
        let same = jobs.is_empty() && tasks.is_empty() && manifests.is_empty() && packs.is_empty();
        same && dropped_tasks.is_empty()
            && dropped_packs.is_empty()
            && folded.is_empty()
            && events.is_empty()
            && attempts.is_empty()
    }

    /// Adds the packs of new tasks, each pack once.
    pub(super) fn add_packs<'a>(&mut self, packed: impl Iterator<Item = &'a Packed>) {
        for packed in packed {
            if self.packs.last().is_none_or(|last| !Arc::ptr_eq(last, &packed.pack)) {
                self.packs.push(packed.pack.clone());
            }
        }
    }

    pub(super) fn drop_pack(&mut self, of_task: Option<Packed>) {
        let Some(Packed { pack, .. }) = of_task else { return };
        self.packs.retain(|new| new.id != pack.id || Arc::strong_count(new) > 2);
        if Arc::strong_count(&pack) == 1 {
            self.dropped_packs.insert(pack.id);
        }
    }

    /// Records the end of a lease for the members that are still at work.
    pub(super) fn ended(&mut self, task: u64, token: u64, lease: &Lease, now: Millis, outcome: &str) {
        let at_work = lease.members.iter().enumerate();
        for (rank, _) in at_work.filter(|(_, member)| member.state == MemberState::Running) {
            self.attempted(task, token, lease, rank, now, outcome);
        }
    }

    /// Records the end of a member's part in a lease.
    pub(super) fn attempted(&mut self, task: u64, token: u64, lease: &Lease, rank: usize, now: Millis, outcome: &str) {
        let worker = lease.members[rank].worker.clone();
        let (began, outcome) = (lease.since, outcome.into());
        self.attempts.push(Attempt { task, token, worker, rank: rank as u32, began, ended: now, outcome });
    }

    pub(super) fn abort(&mut self, task_id: u64, token: u64, lease: &Lease, reason: &str) {
        let abort = |member: &Member| Action::Abort {
            worker: member.worker.clone(),
            abort: Abort { task_id, token, reason: reason.into() },
        };
        self.actions.extend(lease.members.iter().map(abort));
    }

    pub(super) fn happened(&mut self, at: Millis, task: &TaskRecord, level: Level, text: impl Into<String>) {
        let (job, stage) = (task.job.to_string(), task.stage.to_string());
        self.note(Happening { at, job, stage, task: task.id, level, text: text.into() });
    }

    pub(super) fn happened_to_job(
        &mut self,
        at: Millis,
        job: &str,
        stage: &str,
        level: Level,
        text: impl Into<String>,
    ) {
        let (job, stage) = (job.into(), stage.into());
        self.note(Happening { at, job, stage, task: 0, level, text: text.into() });
    }

    fn note(&mut self, event: Happening) {
        let text = redacted(&event.text).into_owned();
        self.events.push(Happening { text, ..event });
    }
}
