//! The end of a lease. The first cause counts, the other members stop, and the task is tried again or fails.

use llink_proto::{Abort, Failure, FailureKind};

use super::{Action, Attempt, Cluster, Effects, Lease, Level, MemberState, Millis, TaskRecord, TaskState};

/// The cause of a broken lease, with the rank where it began.
#[derive(Debug, Clone, PartialEq)]
enum Cause {
    Failed(usize, Failure),
    Lost(usize, String),
    Left(usize),
    /// The worker was lost while it had only read ahead for the task.
    LostAhead(usize, String),
    /// Ranks lost each other while all of them were alive, so the network is the cause.
    Parted(usize, Failure),
}

enum Verdict {
    Again { wait: Millis },
    Hopeless(Failure),
}

impl Cluster {
    /// Records the end of a member's part in a lease.
    pub(super) fn member_ended(
        &mut self,
        id: u64,
        token: u64,
        worker: &str,
        ended: MemberState,
        now: Millis,
        fx: &mut Effects,
    ) {
        let Some(lease) = self.tasks.lease_mut(id, token) else {
            return;
        };
        let Some(rank) = lease.members.iter().position(|m| m.worker == worker) else {
            return;
        };
        if lease.members[rank].state != MemberState::Running {
            return;
        }
        let (text, breaks) = match &ended {
            MemberState::Running | MemberState::Finished => ("done".to_owned(), false),
            MemberState::Failed(f) => (f.text.clone(), true),
            MemberState::Lost(why) => (format!("worker {worker} was lost: {why}"), true),
            MemberState::Left => (format!("worker {worker} was told to stop"), true),
            MemberState::LostAhead(why) => (format!("worker {worker}, which held it ahead, was lost: {why}"), true),
        };
        lease.members[rank].state = ended;
        lease.ended.push(rank);
        fx.attempts.push(Attempt {
            task: id,
            token,
            worker: worker.into(),
            rank: rank as u32,
            began: lease.since,
            ended: now,
            outcome: text.clone(),
        });
        if breaks && lease.breaking_since.is_none() {
            lease.breaking_since = Some(now);
            for member in lease.members.iter().filter(|m| m.state == MemberState::Running) {
                fx.actions.push(Action::Abort {
                    worker: member.worker.clone(),
                    abort: Abort { task_id: id, token, reason: format!("rank {rank} ended: {text}") },
                });
            }
        }
        self.decide(id, now, fx);
    }

    /// Decides on a task whose lease broke, once no member is at work any more.
    fn decide(&mut self, id: u64, now: Millis, fx: &mut Effects) {
        let Some(task) = self.tasks.get(&id) else { return };
        let TaskState::Leased(lease) = &task.state else { return };
        if lease.breaking_since.is_none() || lease.members.iter().any(|m| m.state == MemberState::Running) {
            return;
        }
        let cause = cause(lease);
        let (told, places, label) = (tell(lease, &cause), places(lease), task.label());
        let timing = self.timing;
        let verdict = self.tasks.change(id, |task| {
            forget_failures_after_progress(task);
            let verdict = judge(task, &label, &cause, &timing);
            task.state = match &verdict {
                Verdict::Hopeless(failure) => TaskState::Failed(failure.clone()),
                Verdict::Again { wait } => TaskState::Waiting { since: now, not_before: now + wait },
            };
            verdict
        });
        fx.tasks.insert(id);
        let (Some(verdict), Some(task)) = (verdict, self.tasks.get(&id)) else {
            return;
        };
        match verdict {
            Verdict::Hopeless(failure) => {
                // The job's event reports the failure itself.
                if !places.is_empty() {
                    fx.happened(now, task, Level::Warn, format!("{label}: {places}"));
                }
                let job = task.job.clone();
                self.fail(&job, failure, now, fx);
            }
            Verdict::Again { .. } => {
                let text = format!("{label}: {told}");
                let text = if places.is_empty() { text } else { format!("{text}. {places}") };
                fx.happened(now, task, Level::Warn, text);
            }
        }
    }
}

/// Returns the first rank that failed by itself, else the first that was lost or left, else the first that lost a peer.
fn cause(lease: &Lease) -> Cause {
    let in_order = || lease.ended.iter().map(|rank| (*rank, &lease.members[*rank].state));
    let own = in_order().find_map(|(rank, state)| match state {
        MemberState::Failed(f) if f.kind() != FailureKind::Peer => Some(Cause::Failed(rank, f.clone())),
        _ => None,
    });
    let gone = || {
        in_order().find_map(|(rank, state)| match state {
            MemberState::Lost(why) => Some(Cause::Lost(rank, why.clone())),
            MemberState::Left => Some(Cause::Left(rank)),
            MemberState::LostAhead(why) => Some(Cause::LostAhead(rank, why.clone())),
            _ => None,
        })
    };
    let parted = || {
        in_order().find_map(|(rank, state)| match state {
            MemberState::Failed(f) => Some(Cause::Parted(rank, f.clone())),
            _ => None,
        })
    };
    // A lease that breaks has a member that failed, was lost or left.
    own.or_else(gone).or_else(parted).unwrap_or_else(|| Cause::Lost(0, String::new()))
}

fn tell(lease: &Lease, cause: &Cause) -> String {
    let name = |rank: usize| match lease.members.len() {
        1 => String::new(),
        _ => format!("rank {rank}: "),
    };
    match cause {
        Cause::Failed(rank, failure) | Cause::Parted(rank, failure) => format!("{}{}", name(*rank), failure.text),
        Cause::Lost(rank, why) => format!("{}worker {} was lost: {why}", name(*rank), lease.members[*rank].worker),
        Cause::Left(rank) => format!("{}worker {} was told to stop", name(*rank), lease.members[*rank].worker),
        Cause::LostAhead(rank, why) => {
            let worker = &lease.members[*rank].worker;
            format!("{}worker {worker}, which held it ahead, was lost: {why}", name(*rank))
        }
    }
}

/// Lists the last reported position of each rank. The text is empty for a lease of one, and before any rank has
/// reported.
fn places(lease: &Lease) -> String {
    let known = |(rank, member): (usize, &super::Member)| {
        let place = if member.place.is_empty() { "not yet begun" } else { &member.place };
        format!("rank {rank} at {place}")
    };
    if lease.members.len() < 2 || lease.members.iter().all(|m| m.place.is_empty()) {
        return String::new();
    }
    let all: Vec<String> = lease.members.iter().enumerate().map(known).collect();
    format!("Last heard of: {}", all.join("; "))
}

/// Clears the failures of a task whose lease got further than any before it, by at least a hundredth of the whole.
fn forget_failures_after_progress(task: &mut TaskRecord) {
    let TaskState::Leased(lease) = &task.state else { return };
    let (done, total) = lease.members.iter().map(|m| m.progress).max().unwrap_or_default();
    if total > 0 && done >= task.furthest + (total / 100).max(1) {
        (task.failures, task.losses) = (0, 0);
    }
    task.furthest = task.furthest.max(done);
}

fn judge(task: &mut TaskRecord, label: &str, cause: &Cause, timing: &super::Timing) -> Verdict {
    let labelled = |text: &str| format!("{label}: {text}");
    let failure = match cause {
        Cause::Left(_) | Cause::LostAhead(..) => return Verdict::Again { wait: 0 },
        Cause::Lost(_, why) => {
            task.losses += 1;
            let times = match task.losses {
                1 => "once".to_owned(),
                n => format!("{n} times"),
            };
            let text =
                format!("lost its worker {times}, last because of: {why}; the task may be the cause (out of memory?)");
            Failure { kind: FailureKind::Internal.into(), text: labelled(&text) }
        }
        Cause::Failed(_, failure) | Cause::Parted(_, failure) => {
            let named = Failure { kind: failure.kind, text: labelled(&failure.text) };
            task.failures += 1;
            named
        }
    };
    let hopeless = failure.kind() == FailureKind::Input
        || task.failures >= timing.max_failures
        || task.losses >= timing.max_losses;
    if hopeless {
        return Verdict::Hopeless(failure);
    }
    let wait = match task.failures {
        0 => 0,
        n => timing.backoff << (n - 1).min(6),
    };
    Verdict::Again { wait }
}
