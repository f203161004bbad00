//! Who does what, when: a state machine over jobs, tasks, leases and workers.
//!
//! Every method takes the time and returns what must be saved and done; nothing in here reads a clock, a disk or a
//! network, so a simulation can drive it with any order of events.

mod dispatch;
mod effects;
mod jobs;
mod keep;
mod leases;
mod outcome;
mod pack;
mod stages;
mod tasks;
mod timers;
mod turns;
mod view;
mod work;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use llink_datasets::manifest::Manifest;
use llink_proto::task::Kind;
use llink_proto::{Failure, JobState, ModelRole, RegisterRequest, StageState, Task, TaskResult};
use prost::Message;

use crate::job::JobFile;
use crate::plan::{Claim, Ranks, StageName};

pub use effects::{Action, Attempt, Effects, Happening, Level};
pub use jobs::NewJob;
pub use keep::Keep;
pub use leases::{MOST_LEASES_AHEAD, Outcome, Rendezvous, Reported};
pub use pack::{Pack, Packed};
pub use stages::LookedUp;
pub use tasks::{Counts, Tasks};
use timers::Timers;
pub use view::{LeaseView, WorkerView};
pub use workers::Workers;

/// Milliseconds since the Unix epoch.
pub type Millis = i64;

/// How patient the scheduler is.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A lease ends this long after the last heartbeat that named it.
    pub lease: Millis,
    /// How long a gang waits for all the ranks it wants before it starts with fewer.
    pub gather: Millis,
    /// A failed task waits this long, doubled each time.
    pub backoff: Millis,
    /// A task that failed this often fails its job.
    pub max_failures: u32,
    /// A task that lost its worker this often fails its job: it may be what kills them.
    pub max_losses: u32,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: 15_000,
            gather: 10_000,
            backoff: 500,
            max_failures: 3,
            max_losses: 8,
        }
    }
}

/// Everything the coordinator knows.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Jobs by id.
    pub jobs: BTreeMap<String, Job>,
    /// Ids of the jobs that run.
    running: BTreeSet<String>,
    /// Jobs that have ended and of which everything is known, by the time of their end.
    ended: BTreeSet<(Millis, String)>,
    /// How long that is so.
    pub keep: Keep,
    /// Tasks by id, of all jobs.
    pub tasks: Tasks,
    /// Workers that are connected.
    pub workers: Workers,
    timers: Timers,
    /// How patient it is.
    pub timing: Timing,
    /// Workers that are on their way: a gang waits for them as for those that are here.
    pub expected_workers: usize,
    /// Workers that the jobs of one person hold at the same time; 0 is any number.
    pub at_most_per_person: usize,
    /// When time last passed.
    ticked: Millis,
    next_task: u64,
    next_pack: u64,
    next_worker: u64,
}

/// A job and its stages.
#[derive(Debug, Clone)]
pub struct Job {
    /// Derived from the job's content, so that the same job has the same id.
    pub id: String,
    /// Who submitted it first, where callers say who they are.
    pub owner: Option<String>,
    /// The file, its paths absolute.
    pub file: JobFile,
    /// Stamps of the files it reads from outside.
    pub stamps: BTreeMap<String, String>,
    /// Where it stands.
    pub state: JobState,
    /// Why it waits, failed or was cancelled.
    pub reason: String,
    /// In the order in which they run.
    pub stages: Vec<Stage>,
    /// When it was submitted last.
    pub submitted_at: Millis,
    /// When it ended; 0 while it runs.
    pub ended_at: Millis,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// What it found, once it has succeeded.
    pub report: Option<String>,
}

/// A stage of a job.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Which one.
    pub name: StageName,
    /// Where it stands.
    pub state: StageState,
    /// What it waits for, or the phase it is in.
    pub reason: String,
    /// Known once its inputs are.
    pub key: String,
    /// Task ids, phase by phase.
    pub phases: Vec<Vec<u64>>,
    /// What it made.
    pub manifest: Option<Manifest>,
    /// When it began; 0 before.
    pub started_at: Millis,
    /// When it ended; 0 before.
    pub ended_at: Millis,
    /// What earlier runs of it took that were cancelled, failed or interrupted, under the same key.
    pub spent_before: Millis,
    /// What its tasks are computed under, once it was claimed.
    pub claim: Option<Claim>,
    /// How it comes by its result while it runs. Not saved.
    pub pursuit: Pursuit,
}

/// How a running stage comes by its result.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Pursuit {
    /// It does not run.
    #[default]
    Idle,
    /// The store is asked for it, and for the claim to compute it.
    LookingUp,
    /// Another coordinator has the claim; the store is asked again in a while.
    Elsewhere,
    /// By its own tasks, and then the commit.
    Computing,
    /// That job, which has the same output and key, computes it.
    Follows(String),
}

/// A stage's work: what jobs share that come to the same key on one output.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Work {
    /// The jobs' output, without a trailing `/`.
    pub output: String,
    /// The stage.
    pub stage: StageName,
    /// The key.
    pub key: String,
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
            started_at: 0,
            ended_at: 0,
            spent_before: 0,
            claim: None,
            pursuit: Pursuit::Idle,
        }
    }

    /// How long it has been at work, over all its runs, until `now` or its end.
    #[must_use]
    pub fn spent(&self, now: Millis) -> Millis {
        let end = if self.ended_at > 0 { self.ended_at } else { now };
        let this_run = if self.started_at > 0 { end - self.started_at } else { 0 };
        self.spent_before + this_run.max(0)
    }

    /// Whether its result is there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self.state, StageState::Done | StageState::Cached)
    }
}

/// A task: what is leased to a worker, or to a gang of them.
#[derive(Debug, Clone)]
pub struct TaskRecord {
    /// Unique in this coordinator.
    pub id: u64,
    /// The job.
    pub job: Arc<str>,
    /// The stage.
    pub stage: StageName,
    /// The phase within it.
    pub phase: usize,
    /// The place within the phase.
    pub index: usize,
    /// What people call it, and what workers are told.
    pub packed: Packed,
    /// The fingerprint of the model that a shard goes through; none for other tasks.
    pub model: Option<Arc<str>>,
    /// The part of its stage's progress that it belongs to: shards to embed go through one of two models.
    pub part: Option<&'static str>,
    /// Its share of the stage's progress.
    pub weight: u64,
    /// How many run it.
    pub ranks: Ranks,
    /// Where it stands.
    pub state: TaskState,
    /// Of the newest lease; grows with each.
    pub token: u64,
    /// How often it failed.
    pub failures: u32,
    /// How often its workers were lost.
    pub losses: u32,
    /// Ranks of the last lease: a gang that broke waits for as many again.
    pub last_world_size: u32,
    /// How far any lease got, of the worker's total. Getting further than ever before clears the counts of failures and
    /// losses: a training of days may lose a worker now and then. Not saved.
    pub furthest: u64,
}

/// Where a task stands.
#[derive(Debug, Clone)]
pub enum TaskState {
    /// To be leased.
    Waiting {
        /// Since when.
        since: Millis,
        /// Not before then: it failed a moment ago.
        not_before: Millis,
    },
    /// Somebody works on it.
    Leased(Box<Lease>),
    /// It is done.
    Done(Encoded),
    /// It failed for good.
    Failed(Failure),
    /// Its job was cancelled or failed elsewhere.
    Cancelled,
}

/// A task's result, as it was reported, in the contract's encoding: most are never looked at one by one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded(pub Box<[u8]>);

impl Encoded {
    /// The result.
    #[must_use]
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
    /// What people call it.
    #[must_use]
    pub fn label(&self) -> String {
        self.read().1
    }

    /// What workers are told.
    #[must_use]
    pub fn spec(&self) -> Task {
        self.read().0
    }

    fn read(&self) -> (Task, String) {
        let read = self.packed.read();
        read.expect("it was packed by this process, or read once when it was loaded")
    }
}

/// What scheduling looks at in a task's spec: the fingerprint of a shard's model, and the part of the progress.
pub(crate) fn traits(spec: &Task) -> (Option<&str>, Option<&'static str>) {
    let Some(Kind::EmbedShard(shard)) = &spec.kind else {
        return (None, None);
    };
    let Some(model) = &shard.model else { return (None, None) };
    let part = match model.role() {
        ModelRole::Encoder => Some("encoder"),
        ModelRole::Decoder => Some("teacher"),
        ModelRole::Unspecified => None,
    };
    (Some(&model.fingerprint), part)
}

/// A task in somebody's hands.
#[derive(Debug, Clone)]
pub struct Lease {
    /// When it began.
    pub since: Millis,
    /// By rank.
    pub members: Vec<Member>,
    /// Set once a member failed or was lost: the others are told to stop, and the task is decided on when all have.
    pub breaking_since: Option<Millis>,
    /// Ranks in the order in which they ended: the first that failed is the cause.
    pub ended: Vec<usize>,
}

/// One rank of a lease.
#[derive(Debug, Clone)]
pub struct Member {
    /// The worker.
    pub worker: String,
    /// The lease ends then, unless a heartbeat names it before.
    pub deadline: Millis,
    /// Where it stands.
    pub state: MemberState,
    /// Where it listens for the other ranks.
    pub address: Option<String>,
    /// Done and total, in the worker's unit.
    pub progress: (u64, u64),
    /// Newest figures.
    pub figures: BTreeMap<String, f64>,
    /// Where it was in its training when it was last heard of.
    pub place: String,
}

/// Where a member stands.
#[derive(Debug, Clone, PartialEq)]
pub enum MemberState {
    /// At work.
    Running,
    /// Reported done.
    Finished,
    /// Reported a failure.
    Failed(Failure),
    /// Fell silent or broke the connection.
    Lost(String),
    /// Its worker was told to stop, and gave the lease back.
    Left,
    /// Its worker was lost while it had only read ahead for this one.
    LostAhead(String),
}

/// A connected worker.
#[derive(Debug, Clone)]
pub struct Worker {
    /// What it said it is.
    pub info: RegisterRequest,
    /// Whether its stream is open, so that it can be told what to do.
    pub listening: bool,
    /// The leases it holds, task and token, in the order in which it was given them: the first is the one at work, as a rule.
    pub seats: Vec<(u64, u64)>,
    /// The model that all of them go through.
    pub model: Option<Arc<str>>,
    /// It is given up then, unless a heartbeat comes before.
    pub deadline: Millis,
}

impl Cluster {
    /// An empty cluster.
    #[must_use]
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            next_task: 1,
            next_pack: 1,
            next_worker: 1,
            ..Self::default()
        }
    }

    /// A cluster as the state store remembers it. Leases of before are void: their workers register anew, and their
    /// tasks wait again under the tokens they had, so that a late report is refused.
    pub fn restore(timing: Timing, jobs: Vec<Job>, tasks: Vec<TaskRecord>, now: Millis) -> Self {
        let mut cluster = Self::new(timing);
        cluster.next_task = tasks.iter().map(|t| t.id + 1).max().unwrap_or(1);
        cluster.next_pack = tasks.iter().map(|t| t.packed.pack.id + 1).max().unwrap_or(1);
        let running = jobs.iter().filter(|job| job.state == JobState::Running);
        cluster.running = running.map(|job| job.id.clone()).collect();
        cluster.jobs = jobs.into_iter().map(|j| (j.id.clone(), j)).collect();
        cluster.tasks.pass(now);
        for mut task in tasks {
            // Waiting counts anew: workers are on their way back, and a gang is to wait for all of them.
            if let TaskState::Leased(_) | TaskState::Waiting { .. } = task.state {
                task.state = TaskState::Waiting {
                    since: now,
                    not_before: now,
                };
            }
            task.job = cluster.tasks.name(&task.job);
            task.model = task.model.map(|model| cluster.tasks.name(&model));
            cluster.tasks.insert(task);
        }
        let ended = cluster.jobs.values().filter(|job| job.state != JobState::Running);
        let whole = ended.filter(|job| cluster.tasks.of_job(&job.id).is_some());
        cluster.ended = whole.map(|job| (job.ended_at, job.id.clone())).collect();
        cluster
    }

    /// Whether any job runs.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.running.is_empty()
    }

    /// The jobs that run.
    fn running_jobs(&self) -> impl Iterator<Item = &Job> {
        self.running.iter().filter_map(|id| self.jobs.get(id))
    }

    /// The job's stage of that name.
    fn stage_mut(&mut self, job: &str, name: StageName) -> Option<&mut Stage> {
        self.jobs.get_mut(job)?.stages.iter_mut().find(|s| s.name == name)
    }

    fn stage(&self, job: &str, name: StageName) -> Option<&Stage> {
        self.jobs.get(job)?.stages.iter().find(|s| s.name == name)
    }
}

#[cfg(test)]
mod simulation;
