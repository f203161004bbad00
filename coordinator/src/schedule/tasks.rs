//! The tasks, and the indexes through which the scheduler finds ready tasks and the progress of phases. No event of one
//! task costs time in proportion to the others.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;

use super::wanted::Wanted;
use super::{Lease, Millis, TaskRecord, TaskState};
use crate::plan::StageName;

/// The tasks of all jobs by id. Only [`Tasks::change`] changes them, which keeps the indexes consistent.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    records: BTreeMap<u64, TaskRecord>,
    index: Index,
    /// The texts that many tasks share.
    names: HashSet<Arc<str>>,
}

#[derive(Debug, Clone, Default)]
struct Index {
    jobs: HashMap<Arc<str>, OfJob>,
    ready_jobs: BTreeSet<Arc<str>>,
    /// The waiting tasks that become ready at a later time.
    later: BTreeSet<(Millis, u64)>,
    /// The newest time that was seen.
    now: Millis,
    leases: u64,
    counts: Counts,
    wanted: Wanted,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub waiting: usize,
    pub leased: usize,
    pub done: usize,
    pub failed: usize,
    pub failures: u64,
    pub losses: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct OfJob {
    pub(super) waiting: BTreeSet<u64>,
    pub(super) ready: BTreeSet<u64>,
    pub(super) leased: BTreeSet<u64>,
    models: HashMap<Arc<str>, usize>,
    /// The number of workers that hold tasks of the job.
    pub(super) at_work: usize,
    /// The number of the newest lease of the job. The job with the lowest number has waited longest for a lease.
    pub(super) served: u64,
    phases: BTreeMap<(StageName, usize), Tally>,
}

/// The progress of a phase. Tasks at work are read one by one.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) tasks: usize,
    pub(super) done: usize,
    pub(super) parts: Vec<PartTally>,
}

/// The progress of a part of the phase, in the stage's unit.
#[derive(Debug, Clone, Default)]
pub(super) struct PartTally {
    pub(super) name: Option<&'static str>,
    tasks: usize,
    pub(super) done: u64,
    /// The weight of tasks that are neither done nor at work.
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

    /// Changes a task and updates the indexes.
    pub(super) fn change<R>(&mut self, id: u64, f: impl FnOnce(&mut TaskRecord) -> R) -> Option<R> {
        let task = self.records.get_mut(&id)?;
        self.index.leave(task);
        let answer = f(task);
        self.index.enter(task);
        Some(answer)
    }

    /// Returns a task's newest lease while it is at work. Changes of its members affect no index.
    pub(super) fn lease_mut(&mut self, id: u64, token: u64) -> Option<&mut Lease> {
        match self.records.get_mut(&id).filter(|task| task.token == token)?.state {
            TaskState::Leased(ref mut lease) => Some(lease),
            _ => None,
        }
    }

    pub(super) fn leases_mut(&mut self) -> impl Iterator<Item = &mut Lease> {
        self.records.values_mut().filter_map(|task| match &mut task.state {
            TaskState::Leased(lease) => Some(lease.as_mut()),
            _ => None,
        })
    }

    /// Advances the time, which makes tasks ready.
    pub(super) fn pass(&mut self, now: Millis) {
        self.index.now = self.index.now.max(now);
        while let Some(&(at, id)) = self.index.later.first()
            && at <= self.index.now
        {
            // The task is indexed anew, now as a ready one.
            self.change(id, |_| ());
        }
    }

    pub(super) fn now(&self) -> Millis {
        self.index.now
    }

    pub(super) fn name(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.names.get(text) {
            return known.clone();
        }
        let name: Arc<str> = text.into();
        self.names.insert(name.clone());
        name
    }

    pub(super) fn forget_names(&mut self) {
        self.names.retain(|name| Arc::strong_count(name) > 1);
    }

    pub(super) fn of_job(&self, job: &str) -> Option<&OfJob> {
        self.index.jobs.get(job)
    }

    pub(super) fn ready_jobs(&self) -> impl Iterator<Item = (&Arc<str>, &OfJob)> {
        let of_job = |job| Some((job, self.index.jobs.get(job)?));
        self.index.ready_jobs.iter().filter_map(of_job)
    }

    pub(super) fn ready_for(&self, job: &str, model: &str) -> usize {
        let models = self.index.jobs.get(job).map(|of_job| &of_job.models);
        models.and_then(|models| models.get(model)).copied().unwrap_or(0)
    }

    pub(super) fn tally(&self, job: &str, stage: StageName, phase: usize) -> Option<&Tally> {
        self.index.jobs.get(job)?.phases.get(&(stage, phase))
    }

    pub fn counts(&self) -> Counts {
        self.index.counts
    }

    /// Returns how many workers the open tasks have use for, of which `connected` are there.
    pub fn wanted_workers(&self, connected: usize) -> usize {
        self.index.wanted.workers(connected)
    }
}

impl Index {
    fn enter(&mut self, task: &TaskRecord) {
        self.count(task, 1);
        let of_job = self.jobs.entry(task.job.clone()).or_default();
        match &task.state {
            TaskState::Leased(_) => {
                of_job.leased.insert(task.id);
                self.leases += 1;
                of_job.served = self.leases;
            }
            TaskState::Waiting { not_before, .. } => {
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
            TaskState::Done(_) | TaskState::Failed(_) | TaskState::Cancelled => {}
        }
    }

    fn leave(&mut self, task: &TaskRecord) {
        self.count(task, -1);
        let Some(of_job) = self.jobs.get_mut(&task.job) else {
            return;
        };
        of_job.leased.remove(&task.id);
        let TaskState::Waiting { not_before, .. } = task.state else {
            return;
        };
        of_job.waiting.remove(&task.id);
        if !of_job.ready.remove(&task.id) {
            self.later.remove(&(not_before, task.id));
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

    /// Counts a task in, or out again with -1.
    fn count(&mut self, task: &TaskRecord, by: i64) {
        self.counts.count(task, by);
        self.wanted.count(task, by);
        let of_job = self.jobs.entry(task.job.clone()).or_default();
        let tally = of_job.phases.entry((task.stage, task.phase)).or_default();
        shift(&mut tally.tasks, by);
        let part = tally.part(task.part);
        shift(&mut part.tasks, by);
        let weight = |unknown: i64| by * task.weight.map_or(unknown, |weight| weight.get() as i64);
        match &task.state {
            TaskState::Done(_) => {
                part.done = part.done.wrapping_add_signed(weight(1));
                shift(&mut tally.done, by);
            }
            TaskState::Leased(lease) => shift(&mut of_job.at_work, by * lease.members.len() as i64),
            _ => part.open = part.open.wrapping_add_signed(weight(0)),
        }
    }

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
    pub(super) fn parts(&self) -> impl Iterator<Item = &PartTally> {
        self.parts.iter().filter(|part| part.tasks > 0)
    }

    fn part(&mut self, name: Option<&'static str>) -> &mut PartTally {
        let at = self.parts.iter().position(|part| part.name == name).unwrap_or_else(|| {
            self.parts.push(PartTally { name, ..PartTally::default() });
            self.parts.len() - 1
        });
        &mut self.parts[at]
    }
}

/// Counts up or down. What is counted out was counted in before.
pub(super) fn shift(count: &mut usize, by: i64) {
    *count = count.wrapping_add_signed(by as isize);
}

impl Counts {
    fn count(&mut self, task: &TaskRecord, by: i64) {
        if let Some(count) = self.of(&task.state) {
            shift(count, by);
        }
        self.failures = self.failures.wrapping_add_signed(by * i64::from(task.failures));
        self.losses = self.losses.wrapping_add_signed(by * i64::from(task.losses));
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
    /// Asserts that the indexes agree with the tasks.
    pub(super) fn check(&self, told: &str) {
        let mut anew = Self::default();
        anew.pass(self.index.now);
        self.records.values().for_each(|task| anew.insert(task.clone()));
        let (Index { jobs, ready_jobs, later, counts, wanted, .. }, anew) = (&self.index, anew.index);
        assert_eq!(
            (ready_jobs, later, counts, wanted),
            (&anew.ready_jobs, &anew.later, &anew.counts, &anew.wanted),
            "{told}"
        );
        for (id, expected) in &anew.jobs {
            let found = &jobs[id];
            assert_eq!(
                (&found.waiting, &found.ready, &found.leased, &found.models, found.at_work),
                (&expected.waiting, &expected.ready, &expected.leased, &expected.models, expected.at_work),
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
