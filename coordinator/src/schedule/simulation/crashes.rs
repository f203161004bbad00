//! The coordinator dies at any time, between what it saved and what it was about to do, and goes on from what its store has.

use super::*;

/// What is known and must outlive the coordinator, in words.
fn known(cluster: &Cluster) -> Vec<String> {
    let jobs = cluster.jobs.values().map(|job| {
        let stages = job.stages.iter().map(|stage| Stage {
            pursuit: Pursuit::Idle,
            ..stage.clone()
        });
        let stages: Vec<Stage> = stages.collect();
        let (state, failure) = (job.state, &job.failure);
        format!(
            "{} {state:?} {} {failure:?} {} {stages:?}",
            job.id, job.reason, job.ended_at
        )
    });
    let tasks = cluster.tasks.values().map(|task| {
        let state = match &task.state {
            TaskState::Waiting { .. } | TaskState::Leased(_) => "open".to_owned(),
            ended => format!("{ended:?}"),
        };
        let place = (task.id, &task.job, task.stage, task.phase, task.index);
        let counts = (task.token, task.failures, task.losses, task.last_world_size);
        let plan = (task.read(), task.weight, task.ranks, &task.model, task.part);
        format!("{place:?} {state} {counts:?} {plan:?}")
    });
    jobs.chain(tasks).collect()
}

impl Simulation {
    /// Dies, with what it had not yet done, and starts on what is saved. Its workers come back as new ones.
    fn crash(&mut self, told: &str) {
        let store = self.store.as_ref().unwrap();
        let (jobs, tasks) = store.load().unwrap();
        let before = known(&self.cluster);
        let mut again = Cluster::restore(self.cluster.timing, jobs, tasks, self.now);
        assert_eq!(known(&again), before, "{told}: what is saved is what was known");
        // Numbers of workers begin anew with a process; here they tell the old ones from the new.
        again.next_worker = self.cluster.next_worker;
        self.cluster = again;
        self.pending.clear();
        self.at_work.clear();
        self.silent.clear();
        self.step(|c, now, fx| c.wake(now, fx));
    }
}

#[test]
fn whenever_the_coordinator_dies_it_goes_on_from_its_store_and_computes_nothing_twice() {
    let expected = calm();
    for seed in 0..40 {
        let directory = tempfile::tempdir().unwrap();
        let mut s = Simulation::new(seed);
        s.store = Some(StateStore::open(directory.path()).unwrap().without_sync());
        s.step(|c, now, fx| c.submit(new_job(), now, fx));
        let mut ticks = 0;
        while s.cluster.jobs["job-1"].state == JobState::Running {
            s.tick();
            ticks += 1;
            let told = format!("seed {seed}, tick {ticks}");
            assert!(ticks < 50_000, "{told}: no end: {:?}", s.cluster.view("job-1"));
            if s.random.one_in(30) {
                s.crash(&told);
            } else if s.random.one_in(60) {
                // Between what a tick saved and what it was about to do.
                s.now += 100;
                s.step(|c, now, fx| c.tick(now, fx));
                s.crash(&told);
            }
        }
        assert_eq!(s.cluster.jobs["job-1"].state, JobState::Succeeded, "seed {seed}");
        assert_eq!(manifests(&s.cluster), expected, "seed {seed}");
        // Each rank of a gang reports; of the other tasks one worker does.
        let alone = |path: &String| path.starts_with("shard/") || path.starts_with("embed/");
        for (path, times) in s.counted.iter().filter(|(path, _)| alone(path)) {
            assert_eq!(*times, 1, "seed {seed}: {path}");
        }
        s.crash(&format!("seed {seed}, at the end"));
        s.cluster.keep = Keep { millis: 0, jobs: 0 };
        s.step(|c, now, fx| c.tick(now + 1, fx));
        assert!(s.cluster.tasks.is_empty());
        s.crash(&format!("seed {seed}, folded"));
    }
}
