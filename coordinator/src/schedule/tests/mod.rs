//! Tests of the scheduler in single situations. `serve/engine/simulation` tests it with random faults.

use std::collections::{BTreeMap, BTreeSet};

use llink_datasets::role::{Corpus, Role, Side};
use llink_proto::task::Kind;
use llink_proto::{
    Artifact, Assignment, Failure, FailureKind, JobState, RegisterRequest, StageState, Task, TaskProgress, TaskResult,
};

use super::*;
use crate::job::parse;
use crate::plan::fake;
use shelf::Shelf;

mod ahead;
mod deleted;
mod fair;
mod gangs;
mod invariants;
mod kept;
mod shared;
mod shelf;

/// A cluster with its workers and its store, and the actions that are left.
struct Scene {
    cluster: Cluster,
    now: Millis,
    at_work: BTreeMap<String, Vec<Assignment>>,
    tokens: BTreeMap<u64, u64>,
    shelf: Shelf,
    /// How often each task's result counted, by what it wrote.
    counted: BTreeMap<String, u32>,
    pending: Vec<Action>,
}

fn job(id: &str, text: &str) -> NewJob {
    NewJob::new(id, parse("job.toml", text).unwrap())
}

fn new_job() -> NewJob {
    job("job-1", "[corpus]\nsource = [\"/a.tsv\", \"/b.tsv\", \"/c.tsv\"]\n[align]\nmax_ranks = 2\n")
}

/// What a worker would have written.
fn result_of(task: &Task) -> TaskResult {
    let kind = task.kind.as_ref().unwrap();
    let artifact = |(role, path): (String, String)| Artifact {
        sha256: format!("hash of {path}"),
        path,
        role,
        rows: 10,
        ..Artifact::default()
    };
    let artifacts = fake::outputs(kind).into_iter().map(artifact).collect();
    let mut result = TaskResult { artifacts, ..TaskResult::default() };
    match kind {
        Kind::SplitCorpus(_) => result.artifacts.extend(fake::shards()),
        Kind::PrepareModel(model) => result.facts.extend(fake::facts(model, &model.path, &model.path)),
        _ => {}
    }
    result
}

impl Scene {
    fn new() -> Self {
        let timing = Timing { max_failures: 1000, max_losses: 1000, ..Timing::default() };
        Self {
            cluster: Cluster::new(timing),
            now: 1_000,
            at_work: BTreeMap::new(),
            tokens: BTreeMap::new(),
            shelf: Shelf::default(),
            counted: BTreeMap::new(),
            pending: Vec::new(),
        }
    }

    /// A cluster without workers that has been given a job.
    fn submitted() -> Self {
        let mut s = Self::new();
        s.submit(new_job());
        s.act();
        s
    }

    /// What a coordinator has that starts with the jobs and tasks of another one.
    fn restarted(&self, tasks: Vec<TaskRecord>, now: Millis) -> Self {
        let jobs = self.cluster.jobs.values().cloned().collect();
        let cluster = Cluster::restore(Timing::default(), jobs, tasks, now);
        Self { cluster, now, ..Self::new() }
    }

    fn step<R>(&mut self, f: impl FnOnce(&mut Cluster, Millis, &mut Effects) -> R) -> R {
        let mut fx = Effects::default();
        let answer = f(&mut self.cluster, self.now, &mut fx);
        self.cluster.dispatch(self.now, &mut fx);
        self.pending.extend(fx.actions);
        answer
    }

    /// Does what is to be done now; what comes of that is left for the next time.
    fn act(&mut self) {
        for action in std::mem::take(&mut self.pending) {
            match action {
                Action::Start { worker, assignment } => {
                    let newest = self.tokens.entry(assignment.task_id).or_default();
                    assert!(assignment.token >= *newest, "tokens only grow");
                    *newest = assignment.token;
                    let ahead = self.cluster.workers.get(&worker).map_or(0, |w| w.info.leases_ahead as usize);
                    let held = self.at_work.entry(worker).or_default();
                    held.push(*assignment);
                    let first = model_of(&held[0]);
                    let alike = first.is_some() && held.iter().all(|a| model_of(a) == first);
                    assert!(
                        held.len() == 1 || held.len() <= 1 + ahead && alike,
                        "one lease, or shards of one model: {held:?}"
                    );
                }
                Action::Abort { worker, abort } => {
                    let lease = (abort.task_id, abort.token);
                    if self.holds(&worker, lease) {
                        let failure = Failure { kind: FailureKind::Peer.into(), text: "stopped".into() };
                        self.end_lease(&worker, lease, Outcome::Failed(failure));
                    }
                }
                Action::LookUp { work, claim, kept } => {
                    let found = self.shelf.look_up(&work, claim, kept);
                    self.step(|c, now, fx| c.looked_up(&work, Ok(found), now, fx));
                }
                Action::Commit { work, claim, manifest } => {
                    let manifest = self.shelf.commit(&work, &claim, *manifest);
                    self.step(|c, now, fx| c.committed(&work, Ok(manifest), now, fx));
                }
                Action::Release { work, claim } => self.shelf.release(&work, &claim),
                Action::Publish { job, .. } => {
                    self.step(|c, now, fx| c.published(&job, Ok(()), now, fx));
                }
                Action::Forget { .. } => {}
            }
        }
    }

    fn submit(&mut self, job: NewJob) {
        self.step(|c, now, fx| c.submit(job, now, fx));
    }

    fn tick(&mut self) {
        self.step(|c, now, fx| c.tick(now, fx));
    }

    fn holds(&self, worker: &str, lease: (u64, u64)) -> bool {
        let held = self.at_work.get(worker).into_iter().flatten();
        held.into_iter().any(|a| (a.task_id, a.token) == lease)
    }

    /// Ends a worker's first lease.
    fn end(&mut self, worker: &str, outcome: Outcome) -> Option<Reported> {
        let first = self.at_work.get(worker)?.first()?;
        self.end_lease(worker, (first.task_id, first.token), outcome)
    }

    /// A worker ends its first lease with what the task should write.
    fn done(&mut self, worker: &str) -> Option<Reported> {
        let result = result_of(self.at_work.get(worker)?[0].task.as_ref()?);
        self.end(worker, Outcome::Done(result))
    }

    /// Each worker ends its first lease.
    fn work(&mut self) {
        for worker in self.at_work.keys().cloned().collect::<Vec<_>>() {
            self.done(&worker);
        }
    }

    fn lose(&mut self, worker: &str) {
        self.at_work.remove(worker);
        self.step(|c, now, fx| c.worker_gone(worker, "killed", now, fx));
    }

    fn end_lease(&mut self, worker: &str, (task, token): (u64, u64), outcome: Outcome) -> Option<Reported> {
        let held = self.at_work.get_mut(worker)?;
        held.retain(|a| (a.task_id, a.token) != (task, token));
        if held.is_empty() {
            self.at_work.remove(worker);
        }
        let wrote = match &outcome {
            Outcome::Done(result) => result.artifacts.first().map(|a| a.path.clone()),
            Outcome::Failed(_) | Outcome::Left => None,
        };
        let reported = self.step(|c, now, fx| c.report(worker, task, token, outcome, now, fx));
        if reported == Reported::Accepted
            && let Some(path) = wrote
        {
            *self.counted.entry(path).or_default() += 1;
        }
        Some(reported)
    }

    fn running(&self, worker: &str) -> Vec<TaskProgress> {
        self.at_work.get(worker).into_iter().flatten().map(progress).collect()
    }

    fn join(&mut self) {
        self.join_with(1);
    }

    fn joins(&mut self, workers: usize) {
        (0..workers).for_each(|_| self.join());
    }

    fn join_with(&mut self, leases_ahead: u32) {
        let info = RegisterRequest { name: "sim".into(), leases_ahead, ..RegisterRequest::default() };
        self.step(|c, now, _| {
            let id = c.register(info, now);
            c.listens(&id);
        });
    }
}

/// The model that a shard goes through; none for other tasks.
fn model_of(a: &Assignment) -> Option<String> {
    match a.task.as_ref()?.kind.as_ref()? {
        Kind::EmbedShard(shard) => Some(shard.model.as_ref()?.fingerprint.clone()),
        _ => None,
    }
}

fn progress(a: &Assignment) -> TaskProgress {
    TaskProgress { task_id: a.task_id, token: a.token, ..TaskProgress::default() }
}

fn manifests(cluster: &Cluster) -> Vec<Manifest> {
    cluster.jobs["job-1"].stages.iter().map(|s| s.manifest.clone().unwrap()).collect()
}

fn calm() -> Vec<Manifest> {
    let mut s = Scene::new();
    s.submit(new_job());
    s.joins(2);
    run_calmly(&mut s, "job-1");
    manifests(&s.cluster)
}

fn leased(s: &mut Scene, name: &str) -> (String, Assignment) {
    s.act();
    let found = s.at_work.iter().find(|(worker, _)| worker.contains(name));
    found.map(|(w, held)| (w.clone(), held[0].clone())).unwrap()
}

#[test]
fn a_late_report_is_refused() {
    let mut s = Scene::submitted();
    s.join();
    let (worker, _) = leased(&mut s, "w1");
    s.now += s.cluster.timing.lease + 1;
    s.tick();
    s.join();
    s.act();
    let late = s.done(&worker);
    assert!(matches!(late, Some(Reported::Refused(_))), "{late:?}");
}

#[test]
fn wrong_input_fails_the_job_at_once_and_says_where() {
    let mut s = Scene::submitted();
    s.join();
    let (worker, _) = leased(&mut s, "w1");
    let failure = Failure { kind: FailureKind::Input.into(), text: "/a.tsv: no such file".into() };
    s.end(&worker, Outcome::Failed(failure));
    let job = s.cluster.view("job-1").unwrap();
    assert_eq!(job.state(), JobState::Failed);
    let text = job.failure.unwrap().text;
    assert!(text.contains("clean pairs from") && text.contains("/a.tsv: no such file"), "{text}");
}

#[test]
fn a_task_that_kills_its_workers_fails_the_job_in_the_end() {
    let mut s = Scene::new();
    s.cluster.timing.max_losses = 3;
    s.submit(new_job());
    s.act();
    for _ in 0..3 {
        s.join();
        let (worker, _) = leased(&mut s, "w");
        s.lose(&worker);
        s.act();
    }
    let job = s.cluster.view("job-1").unwrap();
    assert_eq!(job.state(), JobState::Failed);
    assert!(job.failure.unwrap().text.contains("lost its worker 3 times"));
}

/// A job that cannot be planned would be waited for without end.
fn still_runs(s: &Scene) {
    let job = &s.cluster.jobs["job-1"];
    assert_eq!(job.state, JobState::Running, "{}", job.reason);
}

/// Runs the job to its end with workers that do what they are told.
fn run_calmly(s: &mut Scene, id: &str) {
    run_until(s, |s| s.cluster.jobs[id].state != JobState::Running);
}

/// Runs until `until` holds, with workers that do what they are told.
fn run_until(s: &mut Scene, until: impl Fn(&Scene) -> bool) {
    for _ in 0..10_000 {
        s.act();
        s.cluster.check();
        if until(s) {
            return;
        }
        s.now += 100;
        s.tick();
        for worker in s.cluster.workers.keys().cloned().collect::<Vec<_>>() {
            let running = s.running(&worker);
            s.cluster.heartbeat(&worker, &running, s.now);
        }
        s.work();
    }
    let states: Vec<_> = s.cluster.jobs.keys().map(|id| s.cluster.view(id)).collect();
    panic!("waited in vain: {states:#?}");
}

fn stage(s: &Scene, id: &str, name: StageName) -> Stage {
    let stages = &s.cluster.jobs[id].stages;
    stages.iter().find(|stage| stage.name == name).unwrap().clone()
}
