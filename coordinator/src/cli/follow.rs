//! Following a job to its end.

use llink_proto::{Job, JobState, WatchRequest};

use super::client::{Client, job_failed, refused};
use super::{Exit, Failed};
use crate::ui::{self, Style, View};

/// A job that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) job: Job,
}

/// Shows the job as it goes; `seen` is told of each change.
pub(super) async fn follow(
    client: &mut Client,
    id: &str,
    style: Style,
    mut seen: impl FnMut(&Job) -> Result<(), Failed>,
) -> Result<Ended, Failed> {
    let request = WatchRequest { job_id: id.into() };
    let mut updates = client.watch(request).await.map_err(|s| refused(&s))?.into_inner();
    let mut view = View::new(style);
    let mut last = None;
    while let Some(update) = updates.message().await.map_err(|s| refused(&s))? {
        let Some(job) = update.job else { continue };
        view.show(&job, &update.events);
        seen(&job)?;
        last = Some(job);
    }
    view.close();
    match last {
        Some(job) if job.state() != JobState::Running => Ok(Ended { job }),
        _ => Err(Failed::new(
            Exit::Unavailable,
            "the coordinator stopped before the job ended",
        )),
    }
}

/// The report of a job that succeeded, or why it did not.
pub(super) fn conclude(ended: &Ended, style: Style) -> Result<(), Failed> {
    let job = &ended.job;
    match job.state() {
        JobState::Succeeded => {
            ui::report(job, style);
            Ok(())
        }
        JobState::Cancelled => Err(Failed::new(
            Exit::Cancelled,
            format!(
                "job {} was cancelled. What was finished is kept: submit it again to go on",
                job.id
            ),
        )),
        _ => Err(match &job.failure {
            Some(failure) => job_failed(failure),
            None => Failed::new(Exit::Internal, format!("job {} failed: {}", job.id, job.reason)),
        }),
    }
}
