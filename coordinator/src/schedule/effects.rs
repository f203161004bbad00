//! What a step leaves to be saved and done.

use std::collections::{BTreeMap, BTreeSet};

use llink_datasets::manifest::Manifest;
use llink_datasets::shown::redacted;
use llink_proto::{Abort, Assignment};

use super::{Lease, Member, Millis, TaskRecord, Work};
use crate::plan::Claim;

/// What a step leaves to be saved and done, in this order.
#[derive(Debug, Default)]
pub struct Effects {
    /// Jobs (with their stages) to save.
    pub jobs: BTreeSet<String>,
    /// Tasks to save.
    pub tasks: BTreeSet<u64>,
    /// Tasks to forget: their stage is planned anew.
    pub dropped_tasks: BTreeSet<u64>,
    /// Things that happened.
    pub events: Vec<Happening>,
    /// Leases that began or ended.
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

/// A lease's beginning or a member's end, for the record.
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
    /// When this was.
    pub at: Millis,
    /// Empty when it began; how it ended otherwise.
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
            job: task.job.clone(),
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
