//! The end of a lease. The first cause counts, the other members stop, and the task is tried again or fails.

use llink_proto::{Abort, Failure, FailureKind};

use super::{Action, Cluster, Effects, Lease, Level, Member, MemberState, Millis, TaskRecord, TaskState};

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
        let breaks = !matches!(ended, MemberState::Running | MemberState::Finished);
        lease.members[rank].state = ended;
        let text = in_words(&lease.members[rank]);
        lease.ended.push(rank);
        fx.attempted(id, token, lease, rank, now, &text);
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
        let (told, places, label) = (tell(lease, cause), places(lease), task.label());
        let cause = lease.members[cause].state.clone();
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
/// If all ranks that failed lost a peer, the network is the cause.
fn cause(lease: &Lease) -> usize {
    let order = |rank: &usize| match &lease.members[*rank].state {
        MemberState::Failed(failure) if failure.kind() != FailureKind::Peer => 0,
        MemberState::Lost(_) | MemberState::Left | MemberState::LostAhead(_) => 1,
        MemberState::Failed(_) => 2,
        MemberState::Running | MemberState::Finished => 3,
    };
    lease.ended.iter().copied().min_by_key(order).unwrap_or(0)
}

fn tell(lease: &Lease, rank: usize) -> String {
    let text = in_words(&lease.members[rank]);
    match lease.members.len() {
        1 => text,
        _ => format!("rank {rank}: {text}"),
    }
}

/// Says how a member's part in a lease ended.
fn in_words(member: &Member) -> String {
    let worker = &member.worker;
    match &member.state {
        MemberState::Running | MemberState::Finished => "done".to_owned(),
        MemberState::Failed(failure) => failure.text.clone(),
        MemberState::Lost(why) => format!("worker {worker} was lost: {why}"),
        MemberState::Left => format!("worker {worker} was told to stop"),
        MemberState::LostAhead(why) => format!("worker {worker}, which held it ahead, was lost: {why}"),
    }
}

/// Lists the last reported position of each rank. The text is empty for a lease of one, and before any rank has
/// reported.
fn places(lease: &Lease) -> String {
    let known = |(rank, member): (usize, &Member)| {
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

fn judge(task: &mut TaskRecord, label: &str, cause: &MemberState, timing: &super::Timing) -> Verdict {
    let labeled = |text: &str| format!("{label}: {text}");
    let failure = match cause {
        MemberState::Lost(why) => {
            task.losses += 1;
            let times = match task.losses {
                1 => "once".to_owned(),
                n => format!("{n} times"),
            };
            let text =
                format!("lost its worker {times}, last because of: {why}; the task may be the cause (out of memory?)");
            Failure { kind: FailureKind::Internal.into(), text: labeled(&text) }
        }
        MemberState::Failed(failure) => {
            let named = Failure { kind: failure.kind, text: labeled(&failure.text) };
            task.failures += 1;
            named
        }
        // A lease that breaks has a member that failed, was lost or left.
        MemberState::Left | MemberState::LostAhead(_) | MemberState::Running | MemberState::Finished => {
            return Verdict::Again { wait: 0 };
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
