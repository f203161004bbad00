//! The scheduler: a state machine over jobs, tasks, leases and workers.
//!
//! Every method takes the time and returns what must be saved and done. No code here reads a clock, a disk or a
//! network, so the simulation can drive it with any order of events.

mod dispatch;
mod effects;
mod jobs;
mod keep;
mod leases;
mod outcome;
mod stages;
mod tasks;
mod timers;
mod turns;
mod view;
mod wanted;
mod work;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::Arc;

use llink_datasets::manifest::Manifest;
use llink_proto::{Failure, JobState, RegisterRequest, StageState, Task, TaskResult};
use prost::Message;

use crate::job::JobFile;
pub(crate) use crate::plan::traits;
use crate::plan::{Claim, Ranks, StageName};
pub use crate::plan::{Pack, Packed};

pub use effects::{Action, Attempt, Effects, Happening, Level};
pub use jobs::NewJob;
pub use keep::Keep;
pub use leases::{MOST_LEASES_AHEAD, Outcome, Rendezvous, Reported};
pub use stages::LookedUp;
pub use tasks::{Counts, Tasks};
use timers::Timers;
pub use view::{LeaseView, WorkerView};
pub use workers::Workers;

/// A time or a duration in milliseconds. Times count from the Unix epoch.
pub type Millis = i64;

/// The time limits and retry limits of the scheduler.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// The time from the last heartbeat that named a lease to the lease's end.
    pub lease: Millis,
    /// The time for which a gang waits for all the ranks it wants, before it starts with fewer.
    pub gather: Millis,
    /// The delay before a failed task is tried again. It doubles with each failure.
    pub backoff: Millis,
    /// The number of failures of one task that fail its job.
    pub max_failures: u32,
    /// The number of lost workers of one task that fail its job, because the task may be the cause.
    pub max_losses: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self { lease: 15_000, gather: 10_000, backoff: 500, max_failures: 3, max_losses: 8 }
    }
}

/// The state of the coordinator: jobs, tasks and workers.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    pub jobs: BTreeMap<String, Job>,
    running: BTreeSet<String>,
    /// The ended jobs whose tasks are still kept, by the time of their end.
    ended: BTreeSet<(Millis, String)>,
    /// The limits on how long the tasks of ended jobs are kept.
    pub keep: Keep,
    pub tasks: Tasks,
    pub workers: Workers,
    timers: Timers,
    pub timing: Timing,
    /// The number of workers that are still to connect. A gang waits for them as for connected ones.
    pub expected_workers: usize,
    /// The most workers that the jobs of one person hold at the same time. 0 means no limit.
    pub at_most_per_person: usize,
    ticked: Millis,
    next_task: u64,
    next_pack: u64,
    next_worker: u64,
}

#[derive(Debug, Clone)]
pub struct Job {
    /// The id. It is derived from the job's content, so that the same job has the same id.
    pub id: String,
    /// The person who submitted the job first, where callers are authenticated.
    pub owner: Option<String>,
    /// The job file with absolute paths.
    pub file: JobFile,
    /// The stamps of the external files that the job reads.
    pub stamps: BTreeMap<String, String>,
    /// The trace of its submission, as leases carry it; may be empty.
    pub trace: String,
    pub state: JobState,
    /// The reason why the job waits, failed or was cancelled.
    pub reason: String,
    pub stages: Vec<Stage>,
    pub submitted_at: Millis,
    pub ended_at: Option<Millis>,
    pub failure: Option<Failure>,
    /// The report as JSON, once the job has succeeded.
    pub report: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Stage {
    pub name: StageName,
    pub state: StageState,
    /// The current phase, or what the stage waits for.
    pub reason: String,
    /// The key, which is empty until the stage's inputs are known.
    pub key: String,
    pub phases: Vec<Vec<u64>>,
    pub manifest: Option<Manifest>,
    pub started_at: Option<Millis>,
    pub ended_at: Option<Millis>,
    /// The time that cancelled, failed or interrupted runs under the same key took.
    pub spent_before: Millis,
    /// The claim under which the tasks run, once the stage was claimed.
    pub claim: Option<Claim>,
    /// The source of the stage's result while it runs. It is not saved.
    pub pursuit: Pursuit,
}

/// The source of a running stage's result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Pursuit {
    #[default]
    Idle,
    /// The store is asked for the result, and for the claim to compute it.
    LookingUp,
    /// Another coordinator has the claim. The store is asked again after a delay.
    Elsewhere,
    /// The stage's own tasks compute the result, and the commit follows.
    Computing,
    /// The named job, which has the same output and key, computes the result.
    Follows(String),
}

/// The work of a stage. Jobs with the same output and the same key share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Work {
    /// The output URL of the jobs, without a trailing `/`.
    pub output: String,
    pub stage: StageName,
    pub key: String,
}

impl Job {
    pub fn stage(&self, name: StageName) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.name == name)
    }
}

impl Stage {
    fn new(name: StageName) -> Self {
        Self {
            name,
            state: StageState::Waiting,
            reason: String::new(),
            key: String::new(),
            phases: Vec::new(),
            manifest: None,
            started_at: None,
            ended_at: None,
            spent_before: 0,
            claim: None,
            pursuit: Pursuit::Idle,
        }
    }

    /// Returns the time that all runs of the stage took, until `now` or its end.
    pub fn spent(&self, now: Millis) -> Millis {
        let end = self.ended_at.unwrap_or(now);
        let this_run = self.started_at.map_or(0, |start| end - start);
        self.spent_before + this_run.max(0)
    }

    /// Returns the time that the stage's last run took, once it has ended.
    pub fn took(&self) -> Option<Millis> {
        Some(self.ended_at? - self.started_at?)
    }

    pub fn is_complete(&self) -> bool {
        matches!(self.state, StageState::Done | StageState::Cached)
    }
}

/// A task: the unit of work that is leased to a worker or a gang.
#[derive(Debug, Clone)]
pub struct TaskRecord {
    /// The id, which is unique in this coordinator.
    pub id: u64,
    pub job: Arc<str>,
    pub stage: StageName,
    pub phase: usize,
    pub index: usize,
    /// The place of the task's label and spec in a pack.
    pub packed: Packed,
    /// The fingerprint of the model that embeds the task's shard. Other tasks have none.
    pub model: Option<Arc<str>>,
    /// The part of the stage's progress that the task counts in. A stage that embeds has one part for each model.
    pub part: Option<&'static str>,
    pub weight: Option<NonZeroU64>,
    pub ranks: Ranks,
    pub state: TaskState,
    /// The token of the newest lease. It grows with each lease.
    pub token: u64,
    pub failures: u32,
    pub losses: u32,
    /// The number of ranks of the last lease. A gang that broke waits for as many again.
    pub last_world_size: u32,
    /// The most progress of any lease, in the worker's unit. Progress beyond it clears the counts of failures and
    /// losses, because a training of days may lose a worker now and then. It is not saved.
    pub furthest: u64,
}

#[derive(Debug, Clone)]
pub enum TaskState {
    /// After a failure it is not leased before `not_before`.
    Waiting {
        since: Millis,
        not_before: Millis,
    },
    Leased(Box<Lease>),
    Done(Encoded),
    Failed(Failure),
    /// The task's job was cancelled, or another of its tasks failed.
    Cancelled,
}

/// A reported task result in the contract's encoding. Most results are never decoded one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded(pub Box<[u8]>);

impl Encoded {
    pub fn decode(&self) -> TaskResult {
        TaskResult::decode(&*self.0).expect("it was encoded by this process, or decoded once when it was loaded")
    }
}

impl From<TaskResult> for Encoded {
    fn from(result: TaskResult) -> Self {
        Self(result.encode_to_vec().into())
    }
}

impl TaskRecord {
    pub fn label(&self) -> String {
        self.read().1
    }

    pub fn spec(&self) -> Task {
        self.read().0
    }

    fn read(&self) -> (Task, String) {
        let read = self.packed.read();
        read.expect("it was packed by this process, or read once when it was loaded")
    }
}

/// A lease of a task to one worker or a gang.
#[derive(Debug, Clone)]
pub struct Lease {
    pub since: Millis,
    pub members: Vec<Member>,
    /// The time when a member failed or was lost. The others are told to stop, and the task is decided on when all have
    /// stopped.
    pub breaking_since: Option<Millis>,
    /// The ranks in the order in which they ended. The first that failed is the cause.
    pub ended: Vec<usize>,
}

#[derive(Debug, Clone)]
pub struct Member {
    pub worker: String,
    /// The time when the lease ends, unless a heartbeat names it before.
    pub deadline: Millis,
    pub state: MemberState,
    /// The address where the member listens for the other ranks.
    pub address: Option<String>,
    /// The done and total amounts, in the worker's unit.
    pub progress: (u64, u64),
    pub figures: BTreeMap<String, f64>,
    /// The last reported position in the training.
    pub place: String,
}

#[derive(Debug, Clone, PartialEq)]
pub enum MemberState {
    Running,
    Finished,
    Failed(Failure),
    /// The worker fell silent or closed its connection. The text is the cause.
    Lost(String),
    /// The worker was told to stop, and gave the lease back.
    Left,
    /// The worker was lost while it had only read ahead for this task. The text is the cause.
    LostAhead(String),
}

#[derive(Debug, Clone)]
pub struct Worker {
    pub info: RegisterRequest,
    /// Whether the worker's stream is open, so that instructions reach it.
    pub listening: bool,
    /// The leases that the worker holds as (task, token), in the order in which they were given. As a rule the first is
    /// at work.
    pub seats: Vec<(u64, u64)>,
    /// The model that all of them use.
    pub model: Option<Arc<str>>,
    /// The time when the worker is given up, unless a heartbeat comes before.
    pub deadline: Millis,
}

impl Cluster {
    pub fn new(timing: Timing) -> Self {
        Self { timing, next_task: 1, next_pack: 1, next_worker: 1, ..Self::default() }
    }

    /// Restores a cluster from the state store. Earlier leases are void: workers register anew, and tasks wait under
    /// their old tokens, so that a late report is refused.
    pub fn restore(timing: Timing, jobs: Vec<Job>, tasks: Vec<TaskRecord>, now: Millis) -> Self {
        let mut cluster = Self::new(timing);
        cluster.next_task = tasks.iter().map(|t| t.id + 1).max().unwrap_or(1);
        cluster.next_pack = tasks.iter().map(|t| t.packed.pack.id + 1).max().unwrap_or(1);
        let running = jobs.iter().filter(|job| job.state == JobState::Running);
        cluster.running = running.map(|job| job.id.clone()).collect();
        cluster.jobs = jobs.into_iter().map(|j| (j.id.clone(), j)).collect();
        cluster.tasks.pass(now);
        for mut task in tasks {
            // The waiting time starts anew. Workers are on their way back, and a gang is to wait for all of them.
            if let TaskState::Leased(_) | TaskState::Waiting { .. } = task.state {
                task.state = TaskState::Waiting { since: now, not_before: now };
            }
            task.job = cluster.tasks.name(&task.job);
            task.model = task.model.map(|model| cluster.tasks.name(&model));
            cluster.tasks.insert(task);
        }
        let ended = cluster.jobs.values().filter(|job| job.state != JobState::Running);
        let whole = ended.filter(|job| cluster.tasks.of_job(&job.id).is_some());
        cluster.ended = whole.map(|job| (job.ended_at.unwrap_or(0), job.id.clone())).collect();
        cluster
    }

    /// Numbers new tasks above `forgotten`, the highest number of a deleted task. A late message about a deleted task must
    /// not be taken for one about another task.
    pub fn number_tasks_after(&mut self, forgotten: u64) {
        self.next_task = self.next_task.max(forgotten + 1);
    }

    pub fn has_work(&self) -> bool {
        !self.running.is_empty()
    }

    fn running_jobs(&self) -> impl Iterator<Item = &Job> {
        self.running.iter().filter_map(|id| self.jobs.get(id))
    }

    fn stage_mut(&mut self, job: &str, name: StageName) -> Option<&mut Stage> {
        self.jobs.get_mut(job)?.stages.iter_mut().find(|s| s.name == name)
    }

    fn stage(&self, job: &str, name: StageName) -> Option<&Stage> {
        self.jobs.get(job)?.stage(name)
    }
}

#[cfg(test)]
mod tests;
