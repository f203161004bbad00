//! The assignment of waiting tasks to idle workers.

use std::collections::BTreeSet;

use llink_proto::{Assignment, Seat};

use super::timers::Due;
use super::turns::Limit;
use super::{Action, Cluster, Effects, Lease, Level, Member, MemberState, Millis, TaskRecord, TaskState};

/// The reason why a waiting task is not leased.
#[derive(Debug, PartialEq, Eq, strum::Display)]
enum Wait {
    #[strum(to_string = "failed a moment ago, tried again in {0} ms")]
    Backoff(Millis),
    #[strum(to_string = "no worker is connected")]
    NoWorker,
    #[strum(to_string = "local workers are starting")]
    Starting,
    #[strum(to_string = "all {0} workers are busy")]
    Busy(usize),
    #[strum(to_string = "{0}")]
    Held(Limit),
    #[strum(to_string = "gathers {wanted} ranks: {idle} of {workers} workers are idle, {min} will do after a while")]
    Gathers { wanted: usize, idle: usize, workers: usize, min: usize },
}

impl Cluster {
    /// Leases every task that can be leased. It costs nothing while no worker is free.
    pub fn dispatch(&mut self, now: Millis, fx: &mut Effects) {
        self.tasks.pass(now);
        if self.workers.idle().is_empty() {
            return self.lease_ahead(now, fx);
        }
        let mut passed = BTreeSet::new();
        while !self.workers.idle().is_empty() {
            let Some(task) = self.next_in_turn(&passed) else { return };
            match self.ranks_for(task, now) {
                Ok(ranks) => {
                    let members = self.workers.idle().iter().take(ranks).cloned().collect();
                    self.lease(task.id, members, now, fx);
                }
                // Otherwise small tasks of other jobs would take each worker as it becomes free, and the gang would
                // never form.
                Err(Wait::Gathers { workers, min, .. }) if workers >= min => return,
                Err(_) => drop(passed.insert(task.job.clone())),
            }
        }
    }

    /// Leases workers that embed their next shard, so that reading, tokenizing and writing overlap with the device's
    /// work. The shard must use the model that is loaded, because two may not fit. More shards must wait than there are
    /// workers, so that the last shards go to the first free workers.
    fn lease_ahead(&mut self, now: Millis, fx: &mut Effects) {
        if !self.workers.anybody_takes_ahead() {
            return;
        }
        let next = self.next_in_turn(&BTreeSet::new());
        let Some((job, model)) = next.and_then(|task| Some((task.job.clone(), task.model.clone()?))) else {
            return;
        };
        let spare = self.tasks.ready_for(&job, &model).saturating_sub(self.workers.len());
        let spare = spare.min(self.room_of(&job).0);
        let takers: Vec<String> = self.workers.ahead(&model).take(spare).cloned().collect();
        for worker in takers {
            let next = self.tasks.of_job(&job).and_then(|of_job| of_job.ready.first().copied());
            let alike = |id: &u64| self.tasks.get(id).is_some_and(|task| task.model.as_ref() == Some(&model));
            let Some(id) = next.filter(alike) else { return };
            self.lease(id, vec![worker], now, fx);
        }
    }

    /// Returns whether a waiting task's job holds as many workers as it may.
    pub(super) fn is_held(&self, task: &TaskRecord) -> bool {
        matches!(self.ranks_for(task, self.tasks.now()), Err(Wait::Held(_)))
    }

    pub(super) fn waits_for(&self, task: &TaskRecord) -> String {
        let waits = self.ranks_for(task, self.tasks.now()).err();
        waits.map_or_else(
            || "waits for its turn: jobs that come first take the workers that are idle".to_owned(),
            |wait| wait.to_string(),
        )
    }

    /// Returns how many of the idle workers run the task now.
    fn ranks_for(&self, task: &TaskRecord, now: Millis) -> Result<usize, Wait> {
        let TaskState::Waiting { since, not_before } = task.state else {
            return Err(Wait::Busy(0));
        };
        if now < not_before {
            return Err(Wait::Backoff(not_before - now));
        }
        let workers = self.workers.listening();
        if workers == 0 {
            return Err(if self.expected_workers > 0 { Wait::Starting } else { Wait::NoWorker });
        }
        let idle = self.workers.idle().len();
        let min = task.ranks.min.max(1) as usize;
        let wanted = match task.ranks.max {
            None => workers.max(task.last_world_size as usize).max(self.expected_workers),
            Some(max) => max as usize,
        }
        .max(min);
        let (room, limit) = self.room_of(&task.job);
        let wanted = wanted.min(room);
        if let Some(limit) = limit.filter(|_| wanted < min) {
            return Err(Wait::Held(limit));
        }
        if idle >= wanted {
            return Ok(wanted);
        }
        if wanted == 1 {
            return Err(Wait::Busy(workers));
        }
        if idle >= min && now - since >= self.timing.gather {
            return Ok(idle);
        }
        Err(Wait::Gathers { wanted, idle, workers, min })
    }

    fn lease(&mut self, id: u64, workers: Vec<String>, now: Millis, fx: &mut Effects) {
        let deadline = now + self.timing.lease;
        let member = |worker: &String| Member {
            worker: worker.clone(),
            deadline,
            state: MemberState::Running,
            address: None,
            progress: (0, 0),
            figures: std::collections::BTreeMap::new(),
            place: String::new(),
        };
        let lease = Lease {
            since: now,
            members: workers.iter().map(member).collect(),
            breaking_since: None,
            ended: Vec::new(),
        };
        let world_size = workers.len() as u32;
        self.tasks.change(id, |task| {
            task.token += 1;
            task.last_world_size = world_size;
            task.state = TaskState::Leased(Box::new(lease));
        });
        let Some(task) = self.tasks.get(&id) else { return };
        let token = task.token;
        let attempt = u32::try_from(token).unwrap_or(u32::MAX);
        let trace = self.jobs.get(&*task.job).map(|job| job.trace.clone()).unwrap_or_default();
        let (spec, label) = task.read();
        let text = format!("{label}: attempt {attempt} on {}", workers.join(", "));
        fx.happened(now, task, Level::Info, text);
        fx.tasks.insert(id);
        self.timers.set(deadline, Due::Lease { task: id, token });
        for (rank, worker) in workers.into_iter().enumerate() {
            let seat = (task.ranks.max != Some(1)).then_some(Seat { rank: rank as u32, world_size, generation: token });
            self.workers.change(&worker, |worker| {
                let first = worker.seats.is_empty();
                worker.model = task.model.clone().filter(|model| first || worker.model.as_ref() == Some(model));
                worker.seats.push((id, token));
            });
            let assignment = Assignment {
                task_id: id,
                token,
                attempt,
                task: Some(spec.clone()),
                seat,
                job_id: task.job.to_string(),
                stage: task.stage.to_string(),
                trace: trace.clone(),
            };
            fx.actions.push(Action::Start { worker, assignment: Box::new(assignment) });
        }
    }
}
