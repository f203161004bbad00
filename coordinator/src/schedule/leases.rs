//! Reports of workers, and what they do to leases.

use llink_proto::{Abort, Failure, FailureKind, RegisterRequest, TaskProgress, TaskResult};

use super::timers::Due;
use super::{Action, Cluster, Effects, Level, MemberState, Millis, TaskState, Worker};

/// The most leases that a worker may hold ahead of the one at work, whatever it asks for. More would keep tasks from
/// workers that could begin them.
pub const MOST_LEASES_AHEAD: u32 = 4;

/// The outcome of a task as a worker reports it.
#[derive(Debug, Clone)]
pub enum Outcome {
    Done(TaskResult),
    Failed(Failure),
    /// The worker was told to stop, and gives the lease back.
    Left,
}

impl From<Failure> for Outcome {
    /// On the wire, a lease is given back as a failure of its own kind.
    fn from(failure: Failure) -> Self {
        match failure.kind() {
            FailureKind::Stopped => Self::Left,
            _ => Self::Failed(failure),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reported {
    Accepted,
    Refused(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rendezvous {
    /// All ranks are there. The addresses are in rank order.
    Complete(Vec<String>),
    Waiting,
    /// The lease is over. The text says so.
    Refused(String),
}

impl Cluster {
    pub fn register(&mut self, mut info: RegisterRequest, now: Millis) -> String {
        info.leases_ahead = info.leases_ahead.min(MOST_LEASES_AHEAD);
        let id = format!("w{}-{}", self.next_worker, info.name);
        self.next_worker += 1;
        let deadline = now + self.timing.lease;
        self.workers.insert(id.clone(), Worker { info, listening: false, seats: Vec::new(), model: None, deadline });
        self.timers.set(deadline, Due::Worker(id.clone()));
        id
    }

    /// Notes that a worker's stream is open. From now on it is given work.
    pub fn listens(&mut self, worker: &str) {
        self.workers.change(worker, |worker| worker.listening = true);
    }

    /// Removes a worker that closed its connection or said that it ends.
    pub fn worker_gone(&mut self, worker: &str, why: &str, now: Millis, fx: &mut Effects) {
        let Some(gone) = self.workers.remove(worker) else {
            return;
        };
        for (place, (task, token)) in gone.seats.into_iter().enumerate() {
            // A lease that was only held ahead is not the cause of the loss.
            let ended = match place {
                0 => MemberState::Lost(why.into()),
                _ => MemberState::LostAhead(why.into()),
            };
            self.member_ended(task, token, worker, ended, now, fx);
        }
    }

    /// Renews the leases that a heartbeat names. Returns those that the worker no longer holds, or `None` for an
    /// unknown worker.
    pub fn heartbeat(&mut self, worker: &str, running: &[TaskProgress], now: Millis) -> Option<Vec<Abort>> {
        let deadline = now + self.timing.lease;
        let seats = self.workers.beat(worker, deadline)?.to_vec();
        // A lease that is over and that the worker does not name holds the worker no longer.
        let holds = |&(task, token): &(u64, u64)| {
            running.iter().any(|p| (p.task_id, p.token) == (task, token)) || self.works_on(worker, task, token)
        };
        let held: Vec<(u64, u64)> = seats.iter().copied().filter(holds).collect();
        if held.len() < seats.len() {
            self.workers.change(worker, |worker| worker.seats = held);
        }
        let mut aborts = Vec::new();
        for progress in running {
            let lease = self.tasks.lease_mut(progress.task_id, progress.token);
            let whole = lease.filter(|lease| lease.breaking_since.is_none());
            match whole.and_then(|lease| lease.members.iter_mut().find(|m| m.worker == worker)) {
                Some(member) => {
                    member.deadline = deadline;
                    member.progress = (progress.done, progress.total);
                    member.figures.clone_from(&progress.figures);
                    member.place.clone_from(&progress.place);
                }
                None => aborts.push(Abort {
                    task_id: progress.task_id,
                    token: progress.token,
                    reason: "the lease is over".into(),
                }),
            }
        }
        Some(aborts)
    }

    fn works_on(&self, worker: &str, task: u64, token: u64) -> bool {
        let task = self.tasks.get(&task).filter(|t| t.token == token);
        let Some(TaskState::Leased(lease)) = task.map(|t| &t.state) else {
            return false;
        };
        let at_work = |m: &super::Member| m.worker == worker && m.state == MemberState::Running;
        lease.members.iter().any(at_work)
    }

    pub fn report(
        &mut self,
        worker: &str,
        task: u64,
        token: u64,
        outcome: Outcome,
        now: Millis,
        fx: &mut Effects,
    ) -> Reported {
        let leaves = matches!(outcome, Outcome::Left);
        self.workers.change(worker, |worker| {
            worker.seats.retain(|seat| *seat != (task, token));
            // A worker that is ending gets no more work.
            worker.listening &= !leaves;
        });
        let Some(record) = self.tasks.get(&task) else {
            return Reported::Refused(format!("there is no task {task}"));
        };
        let TaskState::Leased(lease) = &record.state else {
            return Reported::Refused(format!("task {task} is not leased"));
        };
        if record.token != token {
            return Reported::Refused(format!(
                "the lease with token {token} is over: task {task} was leased again with token {}",
                record.token
            ));
        }
        let Some(rank) = lease.members.iter().position(|m| m.worker == worker) else {
            return Reported::Refused(format!("worker {worker} holds no seat in task {task}"));
        };
        if lease.members[rank].state != MemberState::Running {
            return Reported::Refused(format!("worker {worker} has already reported its end in task {task}"));
        }
        match outcome {
            // Rank 0 writes the gang's result, so its report decides.
            Outcome::Done(result) if rank == 0 && lease.breaking_since.is_none() => {
                self.task_done(task, result, now, fx);
            }
            Outcome::Done(_) => self.member_ended(task, token, worker, MemberState::Finished, now, fx),
            Outcome::Left => self.member_ended(task, token, worker, MemberState::Left, now, fx),
            Outcome::Failed(failure) => {
                self.member_ended(task, token, worker, MemberState::Failed(failure), now, fx);
            }
        }
        Reported::Accepted
    }

    /// Takes the address of a rank. Once all ranks have one, each rank gets all addresses.
    pub fn rendezvous(&mut self, worker: &str, task: u64, token: u64, address: &str) -> Rendezvous {
        let over = || Rendezvous::Refused(format!("the lease of task {task} with token {token} is over"));
        let Some(lease) = self.tasks.lease_mut(task, token) else {
            return over();
        };
        if lease.breaking_since.is_some() {
            return over();
        }
        let Some(member) = lease.members.iter_mut().find(|m| m.worker == worker) else {
            return over();
        };
        member.address = Some(address.into());
        let all: Option<Vec<String>> = lease.members.iter().map(|m| m.address.clone()).collect();
        all.map_or(Rendezvous::Waiting, Rendezvous::Complete)
    }

    /// Advances the time: gives up silent workers, breaks expired leases, and looks again at the work of other
    /// coordinators. It costs nothing for entries that are not due.
    pub fn tick(&mut self, now: Millis, fx: &mut Effects) {
        self.forgive_own_absence(now);
        for due in self.timers.take_due(now) {
            match due {
                Due::Worker(id) => self.look_at_worker(id, now, fx),
                Due::Lease { task, token } => self.look_at_lease(task, token, now, fx),
                Due::Stage { job, stage } => self.look_again(&job, stage, fx),
            }
        }
        self.fold_ended(now, fx);
    }

    fn look_at_worker(&mut self, id: String, now: Millis, fx: &mut Effects) {
        let Some(worker) = self.workers.get(&id) else { return };
        if worker.deadline >= now {
            return self.timers.set(worker.deadline, Due::Worker(id));
        }
        let why = format!("no heartbeat for {} s", self.timing.lease / 1000);
        self.worker_gone(&id, &why, now, fx);
        fx.actions.push(Action::Forget { worker: id });
    }

    fn look_at_lease(&mut self, task: u64, token: u64, now: Millis, fx: &mut Effects) {
        let Some(lease) = self.tasks.lease_mut(task, token) else {
            return;
        };
        let at_work = lease.members.iter().filter(|m| m.state == MemberState::Running);
        let (overdue, others): (Vec<_>, Vec<_>) = at_work.partition(|m| m.deadline < now);
        if let Some(next) = others.iter().map(|m| m.deadline).min() {
            self.timers.set(next, Due::Lease { task, token });
        }
        let overdue: Vec<String> = overdue.into_iter().map(|m| m.worker.clone()).collect();
        for worker in overdue {
            let why = MemberState::Lost("its lease ran out".into());
            self.member_ended(task, token, &worker, why, now, fx);
        }
    }

    /// Extends all leases after the coordinator itself was stopped, suspended or starved. No heartbeat could reach it
    /// then, so no worker is given up for that time.
    fn forgive_own_absence(&mut self, now: Millis) {
        let away = now - std::mem::replace(&mut self.ticked, now);
        // The first tick has no tick before it.
        if away <= self.timing.lease / 2 || away == now {
            return;
        }
        tracing::warn!("the coordinator did not run for {away} ms: leases are extended by that time");
        self.workers.forgive(away);
        for lease in self.tasks.leases_mut() {
            lease.members.iter_mut().for_each(|member| member.deadline += away);
        }
    }

    fn task_done(&mut self, id: u64, result: TaskResult, now: Millis, fx: &mut Effects) {
        let Some(task) = self.tasks.get(&id) else { return };
        for warning in &result.warnings {
            fx.happened(now, task, Level::Warn, warning.clone());
        }
        let (job, stage) = (task.job.clone(), task.stage);
        self.tasks.change(id, |task| task.state = TaskState::Done(result.into()));
        fx.tasks.insert(id);
        self.next_phase(&job, stage, now, fx);
    }
}
