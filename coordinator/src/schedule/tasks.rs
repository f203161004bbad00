//! The tasks, and the indexes by which the scheduler finds them: what is ready for whom, what is done of a phase. Nothing
//! that happens to one task costs time in proportion to the others.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;

use super::{Lease, Millis, TaskRecord, TaskState};
use crate::plan::StageName;

/// Tasks by id, of all jobs. They are changed through [`Tasks::change`] alone, which keeps the indexes in step.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    records: BTreeMap<u64, TaskRecord>,
    index: Index,
    /// Texts that many tasks have in common.
    names: HashSet<Arc<str>>,
}

/// Where tasks are found by what they wait for, and what is known of all of them together.
#[derive(Debug, Clone, Default)]
struct Index {
    jobs: HashMap<Arc<str>, OfJob>,
    /// Jobs that have a task which is ready.
    ready_jobs: BTreeSet<Arc<str>>,
    /// Waiting tasks that are not ready before a time.
    later: BTreeSet<(Millis, u64)>,
    /// The newest time that was heard of.
    now: Millis,
    leases: u64,
    counts: Counts,
}

/// How many tasks are in which state, and what befell them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting for a worker.
    pub waiting: usize,
    /// In somebody's hands.
    pub leased: usize,
    /// Done.
    pub done: usize,
    /// Failed for good.
    pub failed: usize,
    /// Failed attempts of all of them.
    pub failures: u64,
    /// Lost attempts of all of them.
    pub losses: u64,
}

/// A job's tasks.
#[derive(Debug, Clone, Default)]
pub(super) struct OfJob {
    pub(super) waiting: BTreeSet<u64>,
    pub(super) ready: BTreeSet<u64>,
    pub(super) leased: BTreeSet<u64>,
    /// Ready tasks by the model that they go through.
    models: HashMap<Arc<str>, usize>,
    /// Workers that hold its tasks.
    pub(super) at_work: usize,
    /// Grows with each lease that anybody is given: the job with the least has waited longest for one.
    pub(super) served: u64,
    phases: BTreeMap<(StageName, usize), Tally>,
}

/// What is done of a phase. Tasks that are at work are looked at one by one.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) tasks: usize,
    pub(super) done: usize,
    pub(super) parts: Vec<PartTally>,
}

/// The same of a part of the phase, in the stage's unit.
#[derive(Debug, Clone, Default)]
pub(super) struct PartTally {
    pub(super) name: Option<&'static str>,
    tasks: usize,
    pub(super) done: u64,
    /// Of tasks that are neither done nor at work.
    pub(super) open: u64,
}

impl Deref for Tasks {
    type Target = BTreeMap<u64, TaskRecord>;

    fn deref(&self) -> &Self::Target {
        &self.records
    }
}

impl Tasks {
    pub(super) fn insert(&mut self, task: TaskRecord) {
        let id = task.id;
        self.remove(id);
        self.index.enter(&task);
        self.records.insert(id, task);
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<TaskRecord> {
        let task = self.records.remove(&id)?;
        self.index.leave(&task);
        self.index.forget_empty(&task);
        Some(task)
    }

    /// Changes a task, and where it is found.
    pub(super) fn change<R>(&mut self, id: u64, f: impl FnOnce(&mut TaskRecord) -> R) -> Option<R> {
        let task = self.records.get_mut(&id)?;
        self.index.leave(task);
        let answer = f(task);
        self.index.enter(task);
        Some(answer)
    }

    /// A task's newest lease, while it is at work. What its members do changes no index.
    pub(super) fn lease_mut(&mut self, id: u64, token: u64) -> Option<&mut Lease> {
        match self.records.get_mut(&id).filter(|task| task.token == token)?.state {
            TaskState::Leased(ref mut lease) => Some(lease),
            _ => None,
        }
    }

    /// All leases.
    pub(super) fn leases_mut(&mut self) -> impl Iterator<Item = &mut Lease> {
        self.records.values_mut().filter_map(|task| match &mut task.state {
            TaskState::Leased(lease) => Some(lease.as_mut()),
            _ => None,
        })
    }

    /// Time passes: tasks become ready.
    pub(super) fn pass(&mut self, now: Millis) {
        self.index.now = self.index.now.max(now);
        while let Some(&(at, id)) = self.index.later.first()
            && at <= self.index.now
        {
            // To enter anew finds that it is ready.
            self.change(id, |_| ());
        }
    }

    /// The newest time that was heard of.
    pub(super) fn now(&self) -> Millis {
        self.index.now
    }

    /// A text that is held once, however many tasks have it.
    pub(super) fn name(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.names.get(text) {
            return known.clone();
        }
        let name: Arc<str> = text.into();
        self.names.insert(name.clone());
        name
    }

    /// Forgets the texts that no task has any more.
    pub(super) fn forget_names(&mut self) {
        self.names.retain(|name| Arc::strong_count(name) > 1);
    }

    /// A job's tasks, if it has any.
    pub(super) fn of_job(&self, job: &str) -> Option<&OfJob> {
        self.index.jobs.get(job)
    }

    /// Jobs that have a task which is ready.
    pub(super) fn ready_jobs(&self) -> impl Iterator<Item = (&Arc<str>, &OfJob)> {
        let of_job = |job| Some((job, self.index.jobs.get(job)?));
        self.index.ready_jobs.iter().filter_map(of_job)
    }

    /// Ready tasks of a job that go through a model.
    pub(super) fn ready_for(&self, job: &str, model: &str) -> usize {
        let models = self.index.jobs.get(job).map(|of_job| &of_job.models);
        models.and_then(|models| models.get(model)).copied().unwrap_or(0)
    }

    /// What is done of a phase.
    pub(super) fn tally(&self, job: &str, stage: StageName, phase: usize) -> Option<&Tally> {
        self.index.jobs.get(job)?.phases.get(&(stage, phase))
    }

    /// How many are in which state.
    pub fn counts(&self) -> Counts {
        self.index.counts
    }
}

impl Index {
    fn enter(&mut self, task: &TaskRecord) {
        self.counts.add(task);
        let of_job = self.jobs.entry(task.job.clone()).or_default();
        let tally = of_job.phases.entry((task.stage, task.phase)).or_default();
        tally.tasks += 1;
        let part = tally.part(task.part);
        part.tasks += 1;
        match &task.state {
            TaskState::Done(_) => {
                part.done += task.weight.max(1);
                tally.done += 1;
            }
            TaskState::Leased(lease) => {
                of_job.leased.insert(task.id);
                of_job.at_work += lease.members.len();
                self.leases += 1;
                of_job.served = self.leases;
            }
            TaskState::Waiting { not_before, .. } => {
                part.open += task.weight;
                of_job.waiting.insert(task.id);
                if *not_before > self.now {
                    self.later.insert((*not_before, task.id));
                    return;
                }
                of_job.ready.insert(task.id);
                if let Some(model) = &task.model {
                    *of_job.models.entry(model.clone()).or_default() += 1;
                }
                if of_job.ready.len() == 1 {
                    self.ready_jobs.insert(task.job.clone());
                }
            }
            TaskState::Failed(_) | TaskState::Cancelled => part.open += task.weight,
        }
    }

    fn leave(&mut self, task: &TaskRecord) {
        self.counts.subtract(task);
        let Some(of_job) = self.jobs.get_mut(&task.job) else {
            return;
        };
        let Some(tally) = of_job.phases.get_mut(&(task.stage, task.phase)) else {
            return;
        };
        tally.tasks -= 1;
        if let TaskState::Done(_) = &task.state {
            tally.done -= 1;
        }
        let part = tally.part(task.part);
        part.tasks -= 1;
        match &task.state {
            TaskState::Done(_) => part.done -= task.weight.max(1),
            TaskState::Leased(lease) => {
                of_job.leased.remove(&task.id);
                of_job.at_work -= lease.members.len();
            }
            TaskState::Waiting { not_before, .. } => {
                part.open -= task.weight;
                of_job.waiting.remove(&task.id);
                if !of_job.ready.remove(&task.id) {
                    self.later.remove(&(*not_before, task.id));
                    return;
                }
                if let Some(model) = &task.model
                    && let Some(count) = of_job.models.get_mut(model)
                {
                    *count -= 1;
                    if *count == 0 {
                        of_job.models.remove(model);
                    }
                }
                if of_job.ready.is_empty() {
                    self.ready_jobs.remove(&task.job);
                }
            }
            TaskState::Failed(_) | TaskState::Cancelled => part.open -= task.weight,
        }
    }

    /// Forgets a phase and a job of which no task is left.
    fn forget_empty(&mut self, last: &TaskRecord) {
        let Some(of_job) = self.jobs.get_mut(&last.job) else {
            return;
        };
        let phase = (last.stage, last.phase);
        if of_job.phases.get(&phase).is_some_and(|tally| tally.tasks == 0) {
            of_job.phases.remove(&phase);
        }
        if of_job.phases.is_empty() {
            self.jobs.remove(&last.job);
        }
    }
}

impl Tally {
    /// Parts that no task belongs to any more are shown no more.
    pub(super) fn parts(&self) -> impl Iterator<Item = &PartTally> {
        self.parts.iter().filter(|part| part.tasks > 0)
    }

    fn part(&mut self, name: Option<&'static str>) -> &mut PartTally {
        let at = self.parts.iter().position(|part| part.name == name).unwrap_or_else(|| {
            self.parts.push(PartTally {
                name,
                ..PartTally::default()
            });
            self.parts.len() - 1
        });
        &mut self.parts[at]
    }
}

impl Counts {
    fn add(&mut self, task: &TaskRecord) {
        if let Some(count) = self.of(&task.state) {
            *count += 1;
        }
        self.failures += u64::from(task.failures);
        self.losses += u64::from(task.losses);
    }

    fn subtract(&mut self, task: &TaskRecord) {
        if let Some(count) = self.of(&task.state) {
            *count -= 1;
        }
        self.failures -= u64::from(task.failures);
        self.losses -= u64::from(task.losses);
    }

    fn of(&mut self, state: &TaskState) -> Option<&mut usize> {
        match state {
            TaskState::Waiting { .. } => Some(&mut self.waiting),
            TaskState::Leased(_) => Some(&mut self.leased),
            TaskState::Done(_) => Some(&mut self.done),
            TaskState::Failed(_) => Some(&mut self.failed),
            TaskState::Cancelled => None,
        }
    }
}

#[cfg(test)]
impl Tasks {
    /// What the indexes say is what the tasks say.
    pub(super) fn check(&self, told: &str) {
        let mut anew = Self::default();
        anew.pass(self.index.now);
        self.records.values().for_each(|task| anew.insert(task.clone()));
        let (
            Index {
                jobs,
                ready_jobs,
                later,
                counts,
                ..
            },
            anew,
        ) = (&self.index, anew.index);
        assert_eq!(
            (ready_jobs, later, counts),
            (&anew.ready_jobs, &anew.later, &anew.counts),
            "{told}"
        );
        for (id, expected) in &anew.jobs {
            let found = &jobs[id];
            assert_eq!(
                (
                    &found.waiting,
                    &found.ready,
                    &found.leased,
                    &found.models,
                    found.at_work
                ),
                (
                    &expected.waiting,
                    &expected.ready,
                    &expected.leased,
                    &expected.models,
                    expected.at_work
                ),
                "{told}: {id}"
            );
            let told_of = |phases: &BTreeMap<(StageName, usize), Tally>| -> Vec<String> {
                let parts =
                    |tally: &Tally| -> BTreeSet<String> { tally.parts().map(|part| format!("{part:?}")).collect() };
                let tally = |(phase, tally): (&(StageName, usize), &Tally)| {
                    format!("{phase:?} {} {} {:?}", tally.tasks, tally.done, parts(tally))
                };
                phases.iter().map(tally).collect()
            };
            assert_eq!(told_of(&found.phases), told_of(&expected.phases), "{told}: {id}");
        }
        assert_eq!(jobs.len(), anew.jobs.len(), "{told}");
    }
}
