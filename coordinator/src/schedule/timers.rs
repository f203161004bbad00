//! When to look at what: an entry for each worker, lease and stage that time may end. One that is renewed meanwhile is found
//! when its entry comes up, which is then put off, so that renewing costs nothing.

use std::collections::BTreeSet;

use super::Millis;
use crate::plan::StageName;

/// What is to be looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// A worker, which may have fallen silent.
    Worker(String),
    /// A task's lease, by its token, of which a member may be overdue.
    Lease { task: u64, token: u64 },
    /// A job's stage, which another coordinator computes.
    Stage { job: String, stage: StageName },
}

/// Entries by their time.
#[derive(Debug, Clone, Default)]
pub(super) struct Timers(BTreeSet<(Millis, Due)>);

impl Timers {
    pub(super) fn set(&mut self, at: Millis, due: Due) {
        self.0.insert((at, due));
    }

    /// What was to be looked at before `now`: workers first, as one that is lost is why its leases are.
    pub(super) fn take_due(&mut self, now: Millis) -> Vec<Due> {
        let mut due = Vec::new();
        while self.0.first().is_some_and(|(at, _)| *at < now) {
            due.extend(self.0.pop_first().map(|(_, due)| due));
        }
        due.sort();
        due
    }
}
