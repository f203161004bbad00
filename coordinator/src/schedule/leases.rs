//! What workers say, and what becomes of their leases.

use llink_proto::{Abort, Failure, FailureKind, RegisterRequest, TaskProgress, TaskResult};

use super::{Action, Attempt, Cluster, Effects, Level, MemberState, Millis, TaskState, Worker};

/// Leases that a worker may hold beside the one at work, whatever it asks for: others would wait for what it does not begin.
pub const MOST_LEASES_AHEAD: u32 = 4;

/// How a worker says a task ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Done, with what it wrote.
    Done(TaskResult),
    /// Failed.
    Failed(Failure),
}

/// Whether a report counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reported {
    /// It does.
    Accepted,
    /// It does not: the lease is over.
    Refused(String),
}

/// Where a gang's rendezvous stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rendezvous {
    /// Everybody is there: their addresses, by rank.
    Complete(Vec<String>),
    /// Ranks are missing.
    Waiting,
    /// The lease is over.
    Refused(String),
}

impl Cluster {
    /// A worker joins. Its id, under which it asks for assignments.
    pub fn register(&mut self, mut info: RegisterRequest, now: Millis) -> String {
        info.leases_ahead = info.leases_ahead.min(MOST_LEASES_AHEAD);
        let id = format!("w{}-{}", self.next_worker, info.name);
        self.next_worker += 1;
        let deadline = now + self.timing.lease;
        self.workers.insert(
            id.clone(),
            Worker {
                info,
                listening: false,
                seats: Vec::new(),
                deadline,
            },
        );
        id
    }

    /// A worker's stream is open: from now on it is given work.
    pub fn listens(&mut self, worker: &str) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.listening = true;
        }
    }

    /// A worker is gone: it broke the connection, or said goodbye.
    pub fn worker_gone(&mut self, worker: &str, why: &str, now: Millis, fx: &mut Effects) {
        let Some(gone) = self.workers.remove(worker) else {
            return;
        };
        for (place, (task, token)) in gone.seats.into_iter().enumerate() {
            // What it only held ahead is not what it was lost over.
            let ended = match place {
                0 => MemberState::Lost(why.into()),
                _ => MemberState::LostAhead(why.into()),
            };
            self.member_ended(task, token, worker, ended, now, fx);
        }
    }

    /// Renews leases. Answers with the leases that the worker no longer holds, or `None` if it is not known.
    pub fn heartbeat(&mut self, worker: &str, running: &[TaskProgress], now: Millis) -> Option<Vec<Abort>> {
        let deadline = now + self.timing.lease;
        let mut seats = {
            let worker = self.workers.get_mut(worker)?;
            worker.deadline = deadline;
            worker.seats.clone()
        };
        // A lease that is over, and that the worker does not speak of: it holds its worker no longer.
        seats.retain(|&(task, token)| {
            running.iter().any(|p| (p.task_id, p.token) == (task, token)) || self.works_on(worker, task, token)
        });
        self.workers.get_mut(worker)?.seats = seats;
        let mut aborts = Vec::new();
        for progress in running {
            let member = self
                .tasks
                .get_mut(&progress.task_id)
                .and_then(|task| match &mut task.state {
                    TaskState::Leased(lease) if task.token == progress.token && lease.breaking_since.is_none() => {
                        lease.members.iter_mut().find(|m| m.worker == worker)
                    }
                    _ => None,
                });
            match member {
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

    /// Whether `worker` is at work under that lease.
    fn works_on(&self, worker: &str, task: u64, token: u64) -> bool {
        let task = self.tasks.get(&task).filter(|t| t.token == token);
        let Some(TaskState::Leased(lease)) = task.map(|t| &t.state) else {
            return false;
        };
        let at_work = |m: &super::Member| m.worker == worker && m.state == MemberState::Running;
        lease.members.iter().any(at_work)
    }

    /// A worker says how a task ended.
    pub fn report(
        &mut self,
        worker: &str,
        task: u64,
        token: u64,
        outcome: Outcome,
        now: Millis,
        fx: &mut Effects,
    ) -> Reported {
        if let Some(w) = self.workers.get_mut(worker) {
            w.seats.retain(|seat| *seat != (task, token));
        }
        let leaves = matches!(&outcome, Outcome::Failed(f) if f.kind() == FailureKind::Stopped);
        if leaves && let Some(w) = self.workers.get_mut(worker) {
            // It is on its way out: no more work for it.
            w.listening = false;
        }
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
        match outcome {
            // Rank 0 writes what the gang made, so its word decides.
            Outcome::Done(result) if rank == 0 && lease.breaking_since.is_none() => {
                self.task_done(task, worker, result, now, fx);
            }
            Outcome::Done(_) => self.member_ended(task, token, worker, MemberState::Finished, now, fx),
            Outcome::Failed(_) if leaves => self.member_ended(task, token, worker, MemberState::Left, now, fx),
            Outcome::Failed(failure) => {
                self.member_ended(task, token, worker, MemberState::Failed(failure), now, fx);
            }
        }
        Reported::Accepted
    }

    /// A rank says where it listens; once all have, each is told of the others.
    pub fn rendezvous(&mut self, worker: &str, task: u64, token: u64, address: &str) -> Rendezvous {
        let over = || Rendezvous::Refused(format!("the lease of task {task} with token {token} is over"));
        let Some(record) = self.tasks.get_mut(&task).filter(|t| t.token == token) else {
            return over();
        };
        let TaskState::Leased(lease) = &mut record.state else {
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

    /// Time passes: silent workers are given up, leases that broke are decided on.
    pub fn tick(&mut self, now: Millis, fx: &mut Effects) {
        self.forgive_own_absence(now);
        self.look_again(now, fx);
        let silent: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, w)| w.deadline < now)
            .map(|(id, _)| id.clone())
            .collect();
        for worker in silent {
            let why = format!("no heartbeat for {} s", self.timing.lease / 1000);
            self.worker_gone(&worker, &why, now, fx);
            fx.actions.push(Action::Forget { worker });
        }
        let mut expired = Vec::new();
        for task in self.tasks.values() {
            if let TaskState::Leased(lease) = &task.state {
                let overdue = lease
                    .members
                    .iter()
                    .filter(|m| m.state == MemberState::Running && m.deadline < now);
                expired.extend(overdue.map(|m| (task.id, task.token, m.worker.clone())));
            }
        }
        for (task, token, worker) in expired {
            let why = MemberState::Lost("its lease ran out".into());
            self.member_ended(task, token, &worker, why, now, fx);
        }
    }

    /// When this coordinator itself was away (stopped, suspended, starved), heartbeats could not come through: nobody is
    /// given up for that time.
    fn forgive_own_absence(&mut self, now: Millis) {
        let away = now - std::mem::replace(&mut self.ticked, now);
        // The first tick has no one before it.
        if away <= self.timing.lease / 2 || away == now {
            return;
        }
        tracing::warn!("the coordinator was away for {away} ms: leases last that much longer");
        self.workers.values_mut().for_each(|worker| worker.deadline += away);
        for task in self.tasks.values_mut() {
            if let TaskState::Leased(lease) = &mut task.state {
                lease.members.iter_mut().for_each(|member| member.deadline += away);
            }
        }
    }

    fn task_done(&mut self, id: u64, worker: &str, result: TaskResult, now: Millis, fx: &mut Effects) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        for warning in &result.warnings {
            fx.happened(now, task, Level::Warn, warning.clone());
        }
        fx.attempts.push(Attempt {
            task: id,
            token: task.token,
            worker: worker.into(),
            rank: 0,
            at: now,
            outcome: "done".into(),
        });
        task.state = TaskState::Done(result);
        fx.tasks.insert(id);
        let (job, stage) = (task.job.clone(), task.stage);
        self.next_phase(&job, stage, now, fx);
    }
}
