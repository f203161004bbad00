//! Which waiting task goes to which idle worker.

use llink_proto::task::Kind;
use llink_proto::{Assignment, Seat};

use super::{
    Action, Attempt, Cluster, Effects, Lease, Level, Member, MemberState, Millis, Pursuit, TaskRecord, TaskState,
    Worker,
};

/// What to do with a waiting task, given who is idle.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Lease(usize),
    Wait(String),
}

impl Cluster {
    /// Leases every waiting task that can be, oldest job first, and gives each other one its reason for waiting.
    pub fn dispatch(&mut self, now: Millis, fx: &mut Effects) {
        let mut idle: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, w)| w.listening && w.seats.is_empty())
            .map(|(id, _)| id.clone())
            .collect();
        let mut in_turn = self.waiting_in_order();
        if idle.is_empty() {
            self.lease_ahead(&mut in_turn, now, fx);
        }
        for id in in_turn {
            match self.verdict(id, idle.len(), now) {
                Verdict::Lease(ranks) => {
                    let members: Vec<String> = idle.drain(..ranks).collect();
                    self.lease(id, members, now, fx);
                }
                Verdict::Wait(why) => {
                    // Younger jobs' small tasks would otherwise take each worker as it comes free, for ever.
                    if self.gathers(id, now) {
                        idle.clear();
                    }
                    if let Some(task) = self.tasks.get_mut(&id)
                        && let TaskState::Waiting { reason, .. } = &mut task.state
                    {
                        *reason = why;
                    }
                }
            }
        }
    }

    /// Gives workers that embed their next shard, so that reading, tokenizing and writing happen while the device computes. Only by the
    /// model that is loaded there, for two may not fit at once; and only while more shards wait than there are workers: the last ones
    /// go to whoever is free first.
    fn lease_ahead(&mut self, in_turn: &mut Vec<u64>, now: Millis, fx: &mut Effects) {
        let ready = |id: &u64| self.is_ready(*id, now).then(|| self.model(*id)).flatten();
        let Some(model) = in_turn.first().and_then(ready) else {
            return;
        };
        let shards = in_turn.iter().take_while(|id| ready(id) == Some(model)).count();
        let takers: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, w)| self.takes_ahead(w, model))
            .map(|(id, _)| id.clone())
            .take(shards.saturating_sub(self.workers.len()))
            .collect();
        for (id, worker) in in_turn.drain(..takers.len()).zip(takers) {
            self.lease(id, vec![worker], now, fx);
        }
    }

    fn is_ready(&self, id: u64, now: Millis) -> bool {
        let task = self.tasks.get(&id);
        task.is_some_and(|task| matches!(task.state, TaskState::Waiting { not_before, .. } if not_before <= now))
    }

    /// The fingerprint of the model that a shard goes through; none for other tasks.
    fn model(&self, id: u64) -> Option<&str> {
        match &self.tasks.get(&id)?.spec.kind {
            Some(Kind::EmbedShard(shard)) => Some(shard.model.as_ref()?.fingerprint.as_str()),
            _ => None,
        }
    }

    fn takes_ahead(&self, worker: &Worker, model: &str) -> bool {
        worker.listening
            && (1..=worker.info.leases_ahead as usize).contains(&worker.seats.len())
            && worker.seats.iter().all(|(task, _)| self.model(*task) == Some(model))
    }

    /// Whether a task waits for nothing but more ranks, and enough of them are connected to come.
    fn gathers(&self, id: u64, now: Millis) -> bool {
        let connected = self.workers.values().filter(|w| w.listening).count();
        self.tasks.get(&id).is_some_and(|task| {
            self.is_ready(id, now) && task.ranks.max != 1 && connected >= task.ranks.min.max(1) as usize
        })
    }

    fn waiting_in_order(&self) -> Vec<u64> {
        let submitted = |id: &u64| {
            let job = self.tasks.get(id).and_then(|t| self.jobs.get(&t.job));
            (job.map_or(Millis::MAX, |j| j.submitted_at), *id)
        };
        let computing = |task: &TaskRecord| {
            let stages = self.jobs.get(&task.job).map(|job| job.stages.iter());
            let own = stages.and_then(|mut stages| stages.find(|stage| stage.name == task.stage));
            own.is_some_and(|stage| stage.pursuit == Pursuit::Computing)
        };
        let waiting = self
            .tasks
            .values()
            .filter(|t| matches!(t.state, TaskState::Waiting { .. }) && computing(t));
        let mut ids: Vec<u64> = waiting.map(|t| t.id).collect();
        ids.sort_by_key(submitted);
        ids
    }

    fn verdict(&self, id: u64, idle: usize, now: Millis) -> Verdict {
        let Some(task) = self.tasks.get(&id) else {
            return Verdict::Wait(String::new());
        };
        let TaskState::Waiting { since, not_before, .. } = task.state else {
            return Verdict::Wait(String::new());
        };
        if now < not_before {
            return Verdict::Wait(format!("failed a moment ago, tried again in {} ms", not_before - now));
        }
        let workers = self.workers.values().filter(|w| w.listening).count();
        if workers == 0 {
            let why = match self.expected_workers {
                0 => "no worker is connected",
                _ => "local workers are starting",
            };
            return Verdict::Wait(why.into());
        }
        let min = task.ranks.min.max(1) as usize;
        let wanted = match task.ranks.max {
            0 => workers.max(task.last_world_size as usize).max(self.expected_workers),
            max => max as usize,
        }
        .max(min);
        if idle >= wanted {
            return Verdict::Lease(wanted);
        }
        let waited = now - since;
        if wanted > 1 && idle >= min && waited >= self.timing.gather {
            return Verdict::Lease(idle);
        }
        Verdict::Wait(match wanted {
            1 => format!("all {workers} workers are busy"),
            _ => format!("gathers {wanted} ranks: {idle} of {workers} workers are idle, {min} will do after a while"),
        })
    }

    fn lease(&mut self, id: u64, workers: Vec<String>, now: Millis, fx: &mut Effects) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.token += 1;
        task.last_world_size = workers.len() as u32;
        let world_size = workers.len() as u32;
        let attempt = u32::try_from(task.token).unwrap_or(u32::MAX);
        let who = workers.join(", ");
        for (rank, worker) in workers.iter().enumerate() {
            let seat = (task.ranks.max != 1).then_some(Seat {
                rank: rank as u32,
                world_size,
                generation: task.token,
            });
            let assignment = Assignment {
                task_id: id,
                token: task.token,
                attempt,
                task: Some(task.spec.clone()),
                seat,
            };
            fx.actions.push(Action::Start {
                worker: worker.clone(),
                assignment: Box::new(assignment),
            });
            fx.attempts.push(Attempt {
                task: id,
                token: task.token,
                worker: worker.clone(),
                rank: rank as u32,
                at: now,
                outcome: String::new(),
            });
            if let Some(worker) = self.workers.get_mut(worker) {
                worker.seats.push((id, task.token));
            }
        }
        let member = |worker| Member {
            worker,
            deadline: now + self.timing.lease,
            state: MemberState::Running,
            address: None,
            progress: (0, 0),
            figures: std::collections::BTreeMap::new(),
            place: String::new(),
        };
        task.state = TaskState::Leased(Lease {
            members: workers.into_iter().map(member).collect(),
            breaking_since: None,
            ended: Vec::new(),
        });
        fx.tasks.insert(id);
        fx.happened(
            now,
            task,
            Level::Info,
            format!("{}: attempt {attempt} on {who}", task.label),
        );
    }
}
