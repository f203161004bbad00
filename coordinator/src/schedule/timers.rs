//! The timers of workers, leases and stages. A renewal changes no entry: when the entry is due, it is put off to the
//! new deadline, so renewals cost nothing.

use std::collections::BTreeSet;

use super::Millis;
use crate::plan::StageName;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// A worker that may have fallen silent.
    Worker(String),
    /// A task's lease, of which a member may be overdue.
    Lease { task: u64, token: u64 },
    /// A job's stage that another coordinator computes.
    Stage { job: String, stage: StageName },
}

#[derive(Debug, Clone, Default)]
pub(super) struct Timers(BTreeSet<(Millis, Due)>);

impl Timers {
    pub(super) fn set(&mut self, at: Millis, due: Due) {
        self.0.insert((at, due));
    }

    /// Takes the entries due before `now`. Workers come first, because a lost worker is the cause for its leases.
    pub(super) fn take_due(&mut self, now: Millis) -> Vec<Due> {
        let mut due = Vec::new();
        while self.0.first().is_some_and(|(at, _)| *at < now) {
            due.extend(self.0.pop_first().map(|(_, due)| due));
        }
        due.sort();
        due
    }
}
