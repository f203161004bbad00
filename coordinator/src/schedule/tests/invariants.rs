//! The invariants of a cluster, and the part of it that a restart must bring back.

use super::*;

impl Cluster {
    /// Checks the invariants.
    ///
    /// # Panics
    /// If one does not hold.
    pub(crate) fn check(&self) {
        self.tasks.check("tasks and their indexes");
        self.workers.check("workers and their indexes");
        self.check_leaders();
        let stages = self.jobs.values().flat_map(|job| &job.stages);
        let listed: Vec<u64> = stages.flat_map(|stage| stage.phases.concat()).collect();
        let once: BTreeSet<u64> = listed.iter().copied().collect();
        assert_eq!(listed.len(), once.len(), "a task belongs to two stages");
        assert_eq!(once, self.tasks.keys().copied().collect(), "each task belongs to a stage");
    }

    /// One of the jobs that need a stage leads, and only its tasks are open.
    fn check_leaders(&self) {
        let mut led = BTreeSet::new();
        for job in self.running_jobs() {
            for stage in &job.stages {
                let work = Work::of(job, stage);
                match &stage.pursuit {
                    Pursuit::Idle => {}
                    Pursuit::Follows(leader) => {
                        assert_eq!(self.leader(&work).as_ref(), Some(leader), "{} follows", job.id);
                    }
                    _ => assert!(led.insert((stage.name, stage.key.clone())), "{} has two leaders", stage.name),
                }
            }
        }
        for task in self.tasks.values() {
            let pursuit = self.stage(&task.job, task.stage).map(|stage| &stage.pursuit);
            let may_be = match task.state {
                TaskState::Leased(_) => matches!(pursuit, Some(Pursuit::Computing | Pursuit::LookingUp)),
                TaskState::Waiting { .. } => !matches!(pursuit, Some(Pursuit::Idle | Pursuit::Follows(_))),
                _ => true,
            };
            assert!(may_be, "{} is open for a job that does not lead: {pursuit:?}", task.label());
        }
    }

    /// Returns all knowledge that must outlive the coordinator, as text.
    pub(crate) fn known(&self) -> Vec<String> {
        let jobs = self.jobs.values().map(|job| {
            let stages = job.stages.iter().map(|stage| Stage { pursuit: Pursuit::Idle, ..stage.clone() });
            let stages: Vec<Stage> = stages.collect();
            let (state, failure) = (job.state, &job.failure);
            format!("{} {state:?} {} {failure:?} {:?} {stages:?}", job.id, job.reason, job.ended_at)
        });
        let tasks = self.tasks.values().map(|task| {
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
}
