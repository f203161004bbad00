//! The number of workers that the open tasks have use for.

use std::collections::BTreeMap;

use super::tasks::shift;
use super::{TaskRecord, TaskState};

/// The use for workers: one for each held lease, and as many as each waiting task takes at most.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The members of leases, and the most ranks of waiting tasks.
    limited: usize,
    /// The waiting gangs without a limit, by the fewest ranks. Each takes all workers.
    without_limit: BTreeMap<usize, usize>,
}

impl Wanted {
    /// Counts a task in, or out again with -1.
    pub(super) fn count(&mut self, task: &TaskRecord, by: i64) {
        match workers_of(task) {
            Some(workers) => shift(&mut self.limited, by * workers as i64),
            None => {
                shift(self.without_limit.entry(task.ranks.min.max(1) as usize).or_default(), by);
                self.without_limit.retain(|_, gangs| *gangs > 0);
            }
        }
    }

    pub(super) fn workers(&self, connected: usize) -> usize {
        let gangs = self.without_limit.iter().map(|(min, gangs)| connected.max(*min) * gangs);
        self.limited + gangs.sum::<usize>()
    }
}

/// Returns how many workers a task has use for, or `None` for all there are.
fn workers_of(task: &TaskRecord) -> Option<usize> {
    match &task.state {
        TaskState::Waiting { .. } => task.ranks.max.map(|max| max as usize),
        TaskState::Leased(lease) => Some(lease.members.len()),
        TaskState::Done(_) | TaskState::Failed(_) | TaskState::Cancelled => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use llink_proto::Failure;

    use super::*;
    use crate::plan::{Ranks, StageName};
    use crate::schedule::{Lease, Member, MemberState, Packed};

    fn task(state: TaskState, min: u32, max: Option<u32>) -> TaskRecord {
        TaskRecord {
            id: 1,
            job: "job".into(),
            stage: StageName::Align,
            phase: 0,
            index: 0,
            packed: Packed::default(),
            model: None,
            part: None,
            weight: None,
            ranks: Ranks { min, max },
            state,
            token: 0,
            failures: 0,
            losses: 0,
            last_world_size: 0,
            furthest: 0,
        }
    }

    fn waiting() -> TaskState {
        TaskState::Waiting { since: 0, not_before: 0 }
    }

    fn leased(ranks: usize) -> TaskState {
        let member = Member {
            worker: String::new(),
            deadline: 0,
            state: MemberState::Running,
            address: None,
            progress: (0, 0),
            figures: BTreeMap::new(),
            place: String::new(),
        };
        TaskState::Leased(Box::new(Lease {
            since: 0,
            members: vec![member; ranks],
            breaking_since: None,
            ended: Vec::new(),
        }))
    }

    #[test]
    fn workers_are_wanted_for_each_lease_and_each_task_that_waits() {
        let mut wanted = Wanted::default();
        assert_eq!(wanted.workers(4), 0, "nothing runs: all may go");
        let ended = [task(TaskState::Failed(Failure::default()), 1, Some(1)), task(TaskState::Cancelled, 1, Some(8))];
        ended.iter().for_each(|task| wanted.count(task, 1));
        assert_eq!(wanted.workers(4), 0);
        let open = [task(waiting(), 1, Some(1)), task(waiting(), 2, Some(8)), task(leased(3), 1, Some(8))];
        open.iter().for_each(|task| wanted.count(task, 1));
        assert_eq!(wanted.workers(1), 12);
        let without_limit = [task(waiting(), 2, None), task(waiting(), 2, None), task(waiting(), 3, None)];
        without_limit.iter().for_each(|task| wanted.count(task, 1));
        assert_eq!(wanted.workers(0), 12 + 2 + 2 + 3);
        assert_eq!(wanted.workers(5), 12 + 3 * 5);
        let all = ended.iter().chain(&open).chain(&without_limit);
        all.for_each(|task| wanted.count(task, -1));
        assert_eq!(wanted, Wanted::default());
    }
}
