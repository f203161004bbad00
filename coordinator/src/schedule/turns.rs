//! The order in which jobs get workers. A higher priority comes first, then the job with the fewest workers, so that a
//! long job does not starve a short one. Among equals, the job that was served longest ago comes first. The workers of
//! a job and of a person may be limited.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::tasks::OfJob;
use super::{Cluster, Job, Pursuit, TaskRecord};

/// A limit that holds a job back although workers may be idle.
#[derive(Debug, Clone, PartialEq, Eq, strum::Display)]
pub(super) enum Limit {
    #[strum(to_string = "the job has all the workers that its `workers.at_most` = {0} allows")]
    OfJob(usize),
    #[strum(
        to_string = "the jobs of {name} have all the workers that this coordinator's limit of {workers} for each person allows"
    )]
    OfPerson { name: String, workers: usize },
}

impl Cluster {
    /// Returns the first task of the job whose turn it is. Jobs in `passed` are passed over.
    pub(super) fn next_in_turn(&self, passed: &BTreeSet<Arc<str>>) -> Option<&TaskRecord> {
        let people = self.workers_of_people();
        let turns = self.tasks.ready_jobs().filter(|(id, _)| !passed.contains(*id));
        let turns = turns.filter_map(|(id, of_job)| {
            let job = self.jobs.get(&**id)?;
            let task = self.tasks.get(of_job.ready.first()?)?;
            let may = self.is_computing(task) && room(self, &people, job, of_job).0 > 0;
            may.then(|| (turn(job, of_job, task), task))
        });
        turns.min_by_key(|(turn, _)| *turn).map(|(_, task)| task)
    }

    /// Returns how many more workers a job may have, and the limit that decides.
    pub(super) fn room_of(&self, job: &str) -> (usize, Option<Limit>) {
        match (self.jobs.get(job), self.tasks.of_job(job)) {
            (Some(job), Some(of_job)) => room(self, &self.workers_of_people(), job, of_job),
            _ => (usize::MAX, None),
        }
    }

    /// Returns how many workers the running jobs of each person have. The map is empty where no limit is set.
    fn workers_of_people(&self) -> HashMap<&str, usize> {
        let mut people = HashMap::new();
        if self.at_most_per_person > 0 {
            for job in self.running_jobs() {
                if let (Some(owner), Some(of_job)) = (&job.owner, self.tasks.of_job(&job.id)) {
                    *people.entry(owner.as_str()).or_default() += of_job.at_work;
                }
            }
        }
        people
    }

    fn is_computing(&self, task: &TaskRecord) -> bool {
        let stage = self.stage(&task.job, task.stage);
        stage.is_some_and(|stage| stage.pursuit == Pursuit::Computing)
    }
}

fn room(cluster: &Cluster, people: &HashMap<&str, usize>, job: &Job, of_job: &OfJob) -> (usize, Option<Limit>) {
    let own = match job.file.workers.at_most {
        None => (usize::MAX, None),
        Some(at_most) => {
            let at_most = at_most as usize;
            (at_most.saturating_sub(of_job.at_work), Some(Limit::OfJob(at_most)))
        }
    };
    let workers = cluster.at_most_per_person;
    let Some(name) = job.owner.as_deref().filter(|_| workers > 0) else {
        return own;
    };
    let left = workers.saturating_sub(people.get(name).copied().unwrap_or(0));
    if own.0 <= left {
        return own;
    }
    let limit = Limit::OfPerson { name: name.to_owned(), workers };
    (left, Some(limit))
}

/// Returns the sort key of a job. The least comes first.
fn turn<'a>(job: &'a Job, of_job: &OfJob, first: &TaskRecord) -> impl Ord + Copy + use<'a> {
    // A gang that broke goes first, so that it forms again before others get its workers.
    let forms_again = first.ranks.max != Some(1) && first.token > 0;
    (
        Reverse(job.file.workers.priority),
        Reverse(forms_again),
        of_job.at_work,
        of_job.served,
        job.submitted_at,
        job.id.as_str(),
    )
}
