//! What a step leaves to be saved and done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use llink_datasets::manifest::Manifest;
use llink_datasets::shown::redacted;
use llink_proto::{Abort, Assignment};

use super::{Lease, Member, MemberState, Millis, Pack, Packed, TaskRecord, Work};
use crate::plan::{Claim, StageName};

/// What a step leaves to be saved and done, in this order.
#[derive(Debug, Default)]
pub struct Effects {
    /// Jobs (with their stages) to save.
    pub jobs: BTreeSet<String>,
    /// Tasks to save.
    pub tasks: BTreeSet<u64>,
    /// Stages whose manifest is to be saved, and is not what it was.
    pub manifests: BTreeSet<(String, StageName)>,
    /// Specs to save, of tasks that are new.
    pub packs: Vec<Arc<Pack>>,
    /// Tasks to forget: their stage is planned anew.
    pub dropped_tasks: BTreeSet<u64>,
    /// Specs that no task has any more.
    pub dropped_packs: BTreeSet<u64>,
    /// Jobs of which the events about single tasks are to be forgotten.
    pub folded: BTreeSet<String>,
    /// Things that happened.
    pub events: Vec<Happening>,
    /// Leases that ended.
    pub attempts: Vec<Attempt>,
    /// What to do once all that is saved.
    pub actions: Vec<Action>,
}

/// Something that happened, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// When.
    pub at: Millis,
    /// To which job.
    pub job: String,
    /// In which stage, or empty.
    pub stage: String,
    /// To which task, or 0.
    pub task: u64,
    /// How bad it is.
    pub level: Level,
    /// What.
    pub text: String,
}

/// How bad a happening is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// As expected.
    Info,
    /// Worth a look.
    Warn,
    /// A failure.
    Error,
}

impl Level {
    /// The word in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// A member's part in a lease, for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The task.
    pub task: u64,
    /// The lease.
    pub token: u64,
    /// The member.
    pub worker: String,
    /// Its rank.
    pub rank: u32,
    /// When it began.
    pub began: Millis,
    /// When it ended.
    pub ended: Millis,
    /// How it ended.
    pub outcome: String,
}

/// What the coordinator's edges must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Tell a worker to start.
    Start {
        /// The worker.
        worker: String,
        /// The lease.
        assignment: Box<Assignment>,
    },
    /// Tell a worker to stop.
    Abort {
        /// The worker.
        worker: String,
        /// Which lease, and why.
        abort: Abort,
    },
    /// Look whether a stage is committed under its key with all its files, and claim it if it is not; answer with
    /// [`Cluster::looked_up`].
    LookUp {
        /// Which stage.
        work: Work,
        /// The claim under which its tasks were computed so far.
        claim: Option<Claim>,
        /// Files that tasks of this stage wrote before, with their sizes: they count only while they are there.
        kept: BTreeMap<String, u64>,
    },
    /// Look whether the stage's files are there and write its manifest, last of all; answer with [`Cluster::committed`].
    Commit {
        /// Which stage.
        work: Work,
        /// What it was computed under.
        claim: Claim,
        /// What the stage made.
        manifest: Box<Manifest>,
    },
    /// Give up a claim: no job here wants the stage any more.
    Release {
        /// Which stage.
        work: Work,
        /// The claim.
        claim: Claim,
    },
    /// A worker was given up: close its stream, if it has one.
    Forget {
        /// The worker.
        worker: String,
    },
    /// Write the job's report; answer with [`Cluster::published`].
    Publish {
        /// The job.
        job: String,
        /// The job's output.
        output: String,
        /// JSON.
        report: String,
        /// What the job made, with sizes: it has succeeded only if all of it is there.
        files: BTreeMap<String, u64>,
    },
}

impl Effects {
    /// Whether there is nothing to save.
    #[must_use]
    pub fn change_nothing(&self) -> bool {
        let Self {
            jobs,
            tasks,
            manifests,
            packs,
            dropped_tasks,
            dropped_packs,
            folded,
            events,
            attempts,
            actions: _,
        } = self;
        let same = jobs.is_empty() && tasks.is_empty() && manifests.is_empty() && packs.is_empty();
        same && dropped_tasks.is_empty()
            && dropped_packs.is_empty()
            && folded.is_empty()
            && events.is_empty()
            && attempts.is_empty()
    }

    /// Specs of tasks that are new, once for each pack.
    pub(super) fn add_packs(&mut self, packed: &[Packed]) {
        for packed in packed {
            if self.packs.last().is_none_or(|last| !Arc::ptr_eq(last, &packed.pack)) {
                self.packs.push(packed.pack.clone());
            }
        }
    }

    /// A task has its spec no more: its pack is dropped when it was the last of it.
    pub(super) fn drop_pack(&mut self, of_task: Option<Packed>) {
        let Some(Packed { pack, .. }) = of_task else { return };
        self.packs.retain(|new| new.id != pack.id || Arc::strong_count(new) > 2);
        if Arc::strong_count(&pack) == 1 {
            self.dropped_packs.insert(pack.id);
        }
    }

    /// A lease ends for the members that still are at work.
    pub(super) fn ended(&mut self, task: u64, token: u64, lease: &Lease, now: Millis, outcome: &str) {
        let at_work = lease.members.iter().enumerate();
        let at_work = at_work.filter(|(_, member)| member.state == MemberState::Running);
        self.attempts.extend(at_work.map(|(rank, member)| Attempt {
            task,
            token,
            worker: member.worker.clone(),
            rank: rank as u32,
            began: lease.since,
            ended: now,
            outcome: outcome.into(),
        }));
    }

    /// Every member of a lease is told to stop.
    pub(super) fn abort(&mut self, task_id: u64, token: u64, lease: &Lease, reason: &str) {
        let abort = |member: &Member| Action::Abort {
            worker: member.worker.clone(),
            abort: Abort {
                task_id,
                token,
                reason: reason.into(),
            },
        };
        self.actions.extend(lease.members.iter().map(abort));
    }

    pub(super) fn happened(&mut self, at: Millis, task: &TaskRecord, level: Level, text: impl Into<String>) {
        let text: String = text.into();
        self.events.push(Happening {
            at,
            job: task.job.to_string(),
            stage: task.stage.to_string(),
            task: task.id,
            level,
            text: redacted(&text).into_owned(),
        });
    }

    pub(super) fn happened_to_job(
        &mut self,
        at: Millis,
        job: &str,
        stage: &str,
        level: Level,
        text: impl Into<String>,
    ) {
        let text: String = text.into();
        self.events.push(Happening {
            at,
            job: job.into(),
            stage: stage.into(),
            task: 0,
            level,
            text: redacted(&text).into_owned(),
        });
    }
}
