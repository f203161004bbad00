//! The limits on how long the tasks of ended jobs are kept. After that a job is folded: its tasks, their attempts and
//! the events about them are deleted. The job's file, end, stages, figures, warnings, failures and report stay.

use super::{Cluster, Effects, Millis};

/// The limits on how long the tasks of ended jobs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// The time after the job's end.
    pub millis: Millis,
    /// The number of jobs, the newest that ended.
    pub jobs: usize,
}

impl Default for Keep {
    fn default() -> Self {
        Self { millis: Millis::MAX, jobs: usize::MAX }
    }
}

impl Cluster {
    /// Folds the ended job that is due first, if one is due. Each tick folds one job at most.
    pub(super) fn fold_ended(&mut self, now: Millis, fx: &mut Effects) {
        let Some((ended_at, _)) = self.ended.first() else {
            return;
        };
        let too_old = ended_at.saturating_add(self.keep.millis) <= now;
        if (too_old || self.ended.len() > self.keep.jobs)
            && let Some((_, id)) = self.ended.pop_first()
        {
            self.fold(&id, fx);
        }
    }

    fn fold(&mut self, id: &str, fx: &mut Effects) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let mut tasks = Vec::new();
        for stage in &mut job.stages {
            tasks.extend(std::mem::take(&mut stage.phases).concat());
            if let Some(manifest) = &mut stage.manifest {
                // The manifest in the store has all of them.
                manifest.artifacts = Vec::new();
                fx.manifests.insert((id.to_owned(), stage.name));
            }
        }
        self.drop_tasks(tasks, fx);
        fx.jobs.insert(id.to_owned());
        fx.folded.insert(id.to_owned());
    }
}
