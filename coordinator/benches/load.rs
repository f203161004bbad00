//! The cost of a step, a save and a restart by the number of waiting tasks: `cargo bench -p llink-coord --bench load`.
//! Each figure is a line of JSON.
//!
//! `LLINK_BENCH_TASKS="1000 100000"` sets the sizes, and `LLINK_BENCH_DIR` the folder of the state. A memory disk
//! excludes the speed of the disk. Every task is leased to a worker and reported done, in the order of the engine:
//! change, save, act.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::FutureExt;
use llink_coord::job;
use llink_coord::plan::Claim;
use llink_coord::schedule::{Action, Cluster, Effects, LookedUp, NewJob, Outcome, Timing};
use llink_coord::state::StateStore;
use llink_datasets::role::{Corpus, Role};
use llink_proto::task::Kind;
use llink_proto::{Artifact, Assignment, RegisterRequest, TaskResult};
use serde_json::json;

const WORKERS: usize = 100;
/// The steps of each measurement.
const STEPS: usize = 2_000;

/// Returns a job with this number of sources, each of which is a task that is ready at once.
fn job_of(tasks: usize) -> NewJob {
    let sources: Vec<String> = (0..tasks).map(|i| format!("\"/src/{i:07}.tsv\"")).collect();
    let text = format!("[corpus]\nsource = [{}]\n", sources.join(", "));
    NewJob {
        id: "bench-1".into(),
        owner: None,
        file: job::parse("job.toml", &text).unwrap(),
        stamps: BTreeMap::new(),
        trace: String::new(),
    }
}

fn result_of(assignment: &Assignment) -> TaskResult {
    let Some(Kind::CleanSource(clean)) = assignment.task.as_ref().and_then(|task| task.kind.as_ref()) else {
        panic!("{assignment:?}")
    };
    TaskResult {
        artifacts: vec![Artifact {
            path: clean.path.clone(),
            role: Role::Cleaned(Corpus::Pairs).into(),
            rows: 10,
            bytes: 100,
            sha256: "5".repeat(64),
            ..Artifact::default()
        }],
        ..TaskResult::default()
    }
}

/// A coordinator without its network.
struct Bench {
    cluster: Cluster,
    store: Option<StateStore>,
    now: i64,
    held: Vec<(String, Assignment)>,
}

impl Bench {
    /// Starts with all tasks waiting but those of the workers.
    fn new(tasks: usize, workers: usize, directory: Option<&Path>) -> Self {
        let store = directory.map(|directory| StateStore::open(directory).unwrap());
        let mut bench = Self { cluster: Cluster::new(Timing::default()), store, now: 1_000, held: Vec::new() };
        let mut fx = Effects::default();
        bench.cluster.submit(job_of(tasks), bench.now, &mut fx);
        let works = fx.actions.iter().filter_map(|action| match action {
            Action::LookUp { work, .. } => Some(work.clone()),
            _ => None,
        });
        let works: Vec<_> = works.collect();
        bench.settle(fx);
        for work in works {
            let claimed = LookedUp::Claimed { claim: Claim::default(), lost: Default::default(), damage: None };
            bench.step(|c, now, fx| c.looked_up(&work, Ok(claimed), now, fx));
        }
        for _ in 0..workers {
            bench.step(|c, now, _| {
                let id = c.register(RegisterRequest::default(), now);
                c.listens(&id);
            });
        }
        bench
    }

    fn step(&mut self, f: impl FnOnce(&mut Cluster, i64, &mut Effects)) {
        let mut fx = Effects::default();
        f(&mut self.cluster, self.now, &mut fx);
        self.cluster.dispatch(self.now, &mut fx);
        self.settle(fx);
    }

    fn settle(&mut self, fx: Effects) {
        if let Some(store) = &mut self.store {
            // Without a replica nothing is waited for.
            store.save(&self.cluster, &fx).now_or_never().unwrap().unwrap();
        }
        let started = fx.actions.into_iter().filter_map(|action| match action {
            Action::Start { worker, assignment } => Some((worker, *assignment)),
            _ => None,
        });
        self.held.extend(started);
    }

    /// Reports tasks as done, several at once, and leases others in their places.
    fn finish(&mut self, tasks: usize, at_once: usize) -> Duration {
        let mut took = Duration::ZERO;
        for _ in 0..tasks / at_once {
            let ended: Vec<_> = self.held.drain(..at_once).collect();
            let ended: Vec<_> = ended.into_iter().map(|(worker, a)| (worker, result_of(&a), a)).collect();
            let began = Instant::now();
            let mut fx = Effects::default();
            for (worker, result, a) in ended {
                let done = Outcome::Done(result);
                self.cluster.report(&worker, a.task_id, a.token, done, self.now, &mut fx);
                self.cluster.dispatch(self.now, &mut fx);
            }
            self.settle(fx);
            took += began.elapsed();
        }
        took
    }
}

fn micros(took: Duration, times: usize) -> f64 {
    took.as_secs_f64() * 1e6 / times as f64
}

/// Reads a figure of this process from `/proc`.
fn account(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Prints one figure, whose name ends in its unit.
fn print(tasks: usize, name: &str, value: f64) {
    println!("{}", json!({ "job": "load", "tasks": tasks, name: (value * 100.0).round() / 100.0 }));
}

fn measure(tasks: usize, parent: &Path) {
    let steps = STEPS.min(tasks / 2);
    let before = account("status", "VmRSS");
    let mut bench = Bench::new(tasks, WORKERS, None);
    if let (Some(before), Some(after)) = (before, account("status", "VmRSS")) {
        print(tasks, "memory_per_task_bytes", (after.saturating_sub(before) * 1024) as f64 / tasks as f64);
    }
    let took = bench.finish(steps, 1);
    print(tasks, "report_and_next_lease_us", micros(took, steps));
    let began = Instant::now();
    for _ in 0..1_000 {
        bench.now += 1;
        bench.step(|c, now, fx| c.tick(now, fx));
    }
    print(tasks, "tick_us", micros(began.elapsed(), 1_000));
    let began = Instant::now();
    for _ in 0..1_000 {
        std::hint::black_box(bench.cluster.view("bench-1"));
    }
    print(tasks, "view_of_the_job_us", micros(began.elapsed(), 1_000));
    drop(bench);

    for at_once in [1, 10, 100] {
        let directory = tempfile::tempdir_in(parent).unwrap();
        let mut bench = Bench::new(tasks, WORKERS, Some(directory.path()));
        let written = account("io", "wchar");
        let took = bench.finish(steps, at_once);
        print(tasks, &format!("saved_{at_once}_at_once_tasks_per_s"), steps as f64 / took.as_secs_f64());
        if let (Some(before), Some(after)) = (written, account("io", "wchar")) {
            print(tasks, &format!("saved_{at_once}_at_once_bytes_per_task"), (after - before) as f64 / steps as f64);
        }
        if at_once == 100 {
            drop(bench);
            let began = Instant::now();
            let (jobs, tasks_read) = StateStore::open(directory.path()).unwrap().load().unwrap();
            let cluster = Cluster::restore(Timing::default(), jobs, tasks_read, 0);
            print(cluster.tasks.len(), "restart_ms", began.elapsed().as_secs_f64() * 1e3);
        }
    }
}

fn main() {
    let sizes = std::env::var("LLINK_BENCH_TASKS").unwrap_or_else(|_| "1000 20000 100000".into());
    let parent = std::env::var_os("LLINK_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    for size in sizes.split_whitespace() {
        measure(size.parse().unwrap(), &parent);
    }
}
