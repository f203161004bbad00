//! What workers say, and what becomes of their leases.

use llink_proto::{Abort, Failure, FailureKind, RegisterRequest, TaskProgress, TaskResult};

use super::{Action, Attempt, Cluster, Effects, Level, MemberState, Millis, TaskState, Worker};

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
    pub fn register(&mut self, info: RegisterRequest, now: Millis) -> String {
        let id = format!("w{}-{}", self.next_worker, info.name);
        self.next_worker += 1;
        let deadline = now + self.timing.lease;
        self.workers.insert(
            id.clone(),
            Worker {
                info,
                listening: false,
                seat: None,
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
        if let Some((task, token)) = gone.seat {
            self.member_ended(task, token, worker, MemberState::Lost(why.into()), now, fx);
        }
    }

    /// Renews leases. Answers with the leases that the worker no longer holds, or `None` if it is not known.
    pub fn heartbeat(&mut self, worker: &str, running: &[TaskProgress], now: Millis) -> Option<Vec<Abort>> {
        let deadline = now + self.timing.lease;
        self.workers.get_mut(worker)?.deadline = deadline;
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
        if let Some(w) = self.workers.get_mut(worker)
            && w.seat == Some((task, token))
        {
            w.seat = None;
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
        let silent: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, w)| w.deadline < now)
            .map(|(id, _)| id.clone())
            .collect();
        for worker in silent {
            let why = format!("no heartbeat for {} s", self.timing.lease / 1000);
            self.worker_gone(&worker, &why, now, fx);
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

    fn member_ended(&mut self, id: u64, token: u64, worker: &str, ended: MemberState, now: Millis, fx: &mut Effects) {
        let Some(task) = self.tasks.get_mut(&id).filter(|t| t.token == token) else {
            return;
        };
        let TaskState::Leased(lease) = &mut task.state else {
            return;
        };
        let Some(rank) = lease.members.iter().position(|m| m.worker == worker) else {
            return;
        };
        if lease.members[rank].state != MemberState::Running {
            return;
        }
        lease.members[rank].state = ended.clone();
        let (level, text, breaks) = match &ended {
            MemberState::Running | MemberState::Finished => (Level::Info, "done".to_owned(), false),
            MemberState::Failed(f) => (Level::Warn, f.text.clone(), true),
            MemberState::Lost(why) => (Level::Warn, format!("worker {worker} was lost: {why}"), true),
        };
        fx.attempts.push(Attempt {
            task: id,
            token,
            worker: worker.into(),
            rank: rank as u32,
            at: now,
            outcome: text.clone(),
        });
        if breaks && lease.breaking_since.is_none() {
            lease.breaking_since = Some(now);
            for member in lease.members.iter().filter(|m| m.state == MemberState::Running) {
                fx.actions.push(Action::Abort {
                    worker: member.worker.clone(),
                    abort: Abort {
                        task_id: id,
                        token,
                        reason: format!("rank {rank} is gone: {text}"),
                    },
                });
            }
        }
        let place = if lease.members.len() > 1 {
            format!("{}: rank {rank}: {text}", task.label)
        } else {
            format!("{}: {text}", task.label)
        };
        if breaks {
            fx.happened(now, task, level, place);
        }
        self.decide(id, now, fx);
    }

    /// A lease that broke, once nobody works on it any more: the first real failure counts, else the loss.
    fn decide(&mut self, id: u64, now: Millis, fx: &mut Effects) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let TaskState::Leased(lease) = &task.state else { return };
        if lease.breaking_since.is_none() || lease.members.iter().any(|m| m.state == MemberState::Running) {
            return;
        }
        let failures = || {
            lease.members.iter().filter_map(|m| match &m.state {
                MemberState::Failed(f) => Some(f),
                _ => None,
            })
        };
        let peer = i32::from(FailureKind::Peer);
        let own = failures().find(|f| f.kind != peer).cloned();
        let lost = lease.members.iter().any(|m| matches!(m.state, MemberState::Lost(_)));
        let followed = failures().next().cloned();
        let failure = match (own, lost) {
            (Some(failure), _) => {
                task.failures += 1;
                failure
            }
            (None, true) => {
                task.losses += 1;
                Failure {
                    kind: FailureKind::Internal.into(),
                    text: format!(
                        "{}: lost its worker {} times; it may be what kills them (out of memory?)",
                        task.label, task.losses
                    ),
                }
            }
            (None, false) => {
                task.failures += 1;
                followed.unwrap_or_default()
            }
        };
        let hopeless = failure.kind == i32::from(FailureKind::Input)
            || task.failures >= self.timing.max_failures
            || task.losses >= self.timing.max_losses;
        fx.tasks.insert(id);
        if hopeless {
            task.state = TaskState::Failed(failure.clone());
            let job = task.job.clone();
            let text = format!("{}: {}", task.label, failure.text);
            let named = Failure {
                text: if failure.text.starts_with(&task.label) {
                    failure.text
                } else {
                    text
                },
                ..failure
            };
            self.fail(&job, named, now, fx);
            return;
        }
        let wait = if task.failures == 0 {
            0
        } else {
            self.timing.backoff << (task.failures - 1).min(6)
        };
        task.state = TaskState::Waiting {
            since: now,
            not_before: now + wait,
            reason: "to be tried again".into(),
        };
    }
}
